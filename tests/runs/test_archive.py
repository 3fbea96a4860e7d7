"""A project travels whole, without its secrets, under a name that says what is in it; and runs where it arrives."""

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from slml.errors import StorageError, SubmissionError
from slml.execution.entry import PORT, launch_command
from slml.runners.runner import Destination, prepare_runs
from slml.runs.archive import check_inputs, pack_project, path_in_project, unpack_archive, upload_project
from slml.runs.environment import workspace_environment
from slml.runs.job import Job, job
from slml.runs.resources import Resources
from slml.runs.run import Run, read_run
from slml.storage import expand, filesystem
from slml.workspace import Workspace


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project under git."""
    files = {"slml.toml": "", ".gitignore": "*.tmp\nbig/\n", "fares.py": "RATE = 2.5", "nbs/zones.csv": "1,Newark"}
    folder = write(tmp_path / "project", files)
    git(folder, "init", "-q")
    return folder


def names(folder: Path) -> set[str]:
    return {name for name in pack_project(folder).files if not (folder / name).is_dir()}


# What travels.


def test_what_git_ignores_stays_and_what_was_committed_travels(project: Path) -> None:
    write(project, {"a.tmp": "", "kept.tmp": "", "big/x": "", "nbs/.gitignore": "out/\n!here.tmp\n", "nbs/out/y": ""})
    write(project, {"nbs/here.tmp": "", "local": "", "new.py": ""})
    (project / ".git/info/exclude").write_text("local\n")
    git(project, "add", "-f", "kept.tmp")
    assert names(project) == {"slml.toml", "fares.py", "nbs/zones.csv", "kept.tmp", "nbs/here.tmp", "new.py"}


def test_a_project_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    """The rules of the folders above hold; what lies beside it does not travel."""
    folder = write(tmp_path, {".gitignore": "*.secret\n", "other/x.py": "", "mine/slml.toml": "", "mine/a.secret": ""})
    git(folder, "init", "-q")
    assert names(folder / "mine") == {"slml.toml"}


def test_nothing_hidden_travels_not_even_when_committed(project: Path) -> None:
    write(project, {".env": "PASSWORD=1", ".aws/credentials": "1", ".slml/catalog.db": "", "__pycache__/a.pyc": ""})
    write(project, {"venv/pyvenv.cfg": "", "venv/lib/a.py": ""})
    git(project, "add", "-f", ".env")
    assert names(project) == {"slml.toml", "fares.py", "nbs/zones.csv"}


def test_slmlignore_has_the_last_word_and_needs_no_git(project: Path, tmp_path: Path) -> None:
    write(project, {"big/x": "", "notes.md": "", ".slmlignore": "!big/\n# a comment\n/notes.md\n", "nbs/notes.md": ""})
    assert {"big/x", "nbs/notes.md"} <= names(project)
    assert "notes.md" not in names(project)
    plain = write(tmp_path / "plain", {"a.py": "", "b.csv": "", "c.csv": "", ".slmlignore": "*.csv\n!c.csv\n"})
    assert names(plain) == {"a.py", "c.csv"}


def test_where_git_cannot_answer_nothing_is_sent(tmp_path: Path) -> None:
    folder = write(tmp_path, {".git": "gitdir: /nowhere", "a.secret": ""})
    with pytest.raises(SubmissionError, match="git does not say"):
        pack_project(folder)


def test_a_file_deleted_since_the_last_commit_is_no_trouble(project: Path) -> None:
    git(project, "add", ".")
    (project / "fares.py").unlink()
    assert names(project) == {"slml.toml", "nbs/zones.csv"}


# The same bytes for the same content.


def test_two_checkouts_have_one_name(project: Path, tmp_path: Path) -> None:
    git(project, "add", ".")
    git(project, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    other = tmp_path / "elsewhere" / "copy"
    before = os.umask(0o077)  # another user's habits
    try:
        git(tmp_path, "clone", "-q", project, other)
    finally:
        os.umask(before)
    os.utime(other / "fares.py", (1e9, 1e9))
    assert pack_project(project) == pack_project(other)
    (other / "fares.py").chmod(0o755)
    assert pack_project(project).hash != pack_project(other).hash, "whether it can be executed is content"


def test_names_of_all_kinds_arrive(project: Path, workspace: Workspace, tmp_path: Path) -> None:
    write(project, {"naïve — 東京.csv": "1", "e\u0301.csv": "2", "line\nbreak": "3", "x" * 200: "4", " -rf": "5"})
    with open(os.fsencode(project) + b"/latin\xe9.csv", "w") as file:
        file.write("6")
    there = unpack_archive(upload_project(project, workspace), tmp_path / "there")
    assert sorted(os.listdir(there)) == sorted(name for name in os.listdir(project) if not name.startswith("."))


def test_links_and_empty_folders(project: Path, workspace: Workspace, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"rates.csv": "2.5"})
    (project / "rates.csv").symlink_to(outside / "rates.csv")
    (project / "again").symlink_to(project / "nbs")
    (project / "nbs/top").symlink_to("..")
    (project / "gone").symlink_to("nowhere")
    (project / "out").mkdir()
    os.mkfifo(project / "pipe")
    there = unpack_archive(upload_project(project, workspace), tmp_path / "there")
    assert (there / "rates.csv").read_text() == "2.5"
    assert not (there / "rates.csv").is_symlink()
    assert os.readlink(there / "again") == "nbs"
    assert (there / "nbs/top/fares.py").exists()
    assert (there / "out").is_dir()
    assert not (there / "pipe").exists()
    assert not (there / "gone").is_symlink()
    (project / "data").symlink_to(outside)
    with pytest.raises(SubmissionError, match="data is a link to a folder") as caught:
        pack_project(project)
    assert ".slmlignore" in caught.value.todo
    write(project, {".slmlignore": "data"})
    pack_project(project)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read a file")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        write(Path(folder), {"open.py": "", "secret.key": ""})
        os.chmod(f"{folder}/secret.key", 0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(SubmissionError, match=r"secret\.key cannot be packed"):
                pack_project(Path(folder))
        finally:
            os.seteuid(0)


def test_a_file_that_never_rests_is_refused(project: Path) -> None:
    log, begun, stop = project / "growing.log", threading.Event(), threading.Event()
    log.write_bytes(b"x" * 90_000_000)  # it takes a while to read, in which the other thread gets its turn

    def grow() -> None:
        with open(log, "rb+", buffering=0) as file:
            while not stop.is_set():
                file.write(b"y")
                begun.set()

    thread = threading.Thread(target=grow)
    thread.start()
    begun.wait(10)
    try:
        with pytest.raises(SubmissionError, match=r"growing\.log changes while"):
            pack_project(project)
    finally:
        stop.set()
        thread.join()


def test_a_large_project_is_refused_before_it_is_read(project: Path) -> None:
    with open(project / "trips.parquet", "wb") as file:
        file.truncate(10**12)  # a sparse file: nothing could read it in time
    with pytest.raises(SubmissionError) as caught:
        pack_project(project)
    assert "trips.parquet (1,000,000.0 MB)" in caught.value.came
    assert "100.0 MB" in caught.value.expected


# Sent and found again.


def test_sent_once_even_by_two_at_once(project: Path, workspace: Workspace) -> None:
    with ThreadPoolExecutor(4) as pool:
        [uri] = set(pool.map(lambda _: upload_project(project, workspace), range(4)))
    made = os.stat(uri).st_mtime_ns
    assert upload_project(project, workspace) == uri
    assert os.stat(uri).st_mtime_ns == made
    assert expand(workspace.uri("code")) == [uri], "and nothing half written beside it"


def packed(folder: Path, *members: tarfile.TarInfo) -> str:
    """An archive with a right name and wrong entries."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for member in members:
            tar.addfile(member)
    path = folder / f"{hashlib.sha256(made.getvalue()).hexdigest()}.tar.gz"
    path.write_bytes(made.getvalue())
    return str(path)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "wrong",
    [
        entry("../evil"),
        entry("/tmp/evil"),
        entry("a/../../evil"),
        entry("link", tarfile.SYMTYPE, "/etc"),
        entry("a/link", tarfile.SYMTYPE, "../../x"),
        entry("hard", tarfile.LNKTYPE, "/etc/passwd"),
        entry("tty", tarfile.CHRTYPE),
    ],
    ids=lambda wrong: f"{wrong.name} {wrong.linkname}",
)
def test_an_archive_writes_nothing_outside(wrong: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be unpacked"):
        unpack_archive(packed(tmp_path, wrong), tmp_path / "there" / "deep")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "there" / "evil").exists()


def test_a_damaged_archive_is_not_unpacked(project: Path, workspace: Workspace, tmp_path: Path) -> None:
    uri = upload_project(project, workspace)
    whole = Path(uri).read_bytes()
    for content in (whole[:-20], b"", whole + b"x", gzip.compress(b"no tar")):
        Path(uri).write_bytes(content)
        with pytest.raises(StorageError, match="is damaged"):
            unpack_archive(uri, tmp_path / "there")
    with pytest.raises(StorageError, match="cannot be read"):
        unpack_archive(uri.replace("code/", "none/"), tmp_path / "there")
    assert not (tmp_path / "there").exists()


# Inputs.


def test_inputs_that_would_be_missing_are_told_together(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, {"big/trips.csv": "1", ".slml/x.csv": "1", "nbs/a.csv": "1"})
    elsewhere = write(tmp_path / "elsewhere", {"c.csv": "1"})
    workspace = Workspace(root=f"memory://{tmp_path.name}", project="fares")
    monkeypatch.chdir(project / "nbs")
    good = {
        "a": "zones.csv",
        "b": "../fares.py",
        "c": "*.csv",
        "d": "",
        "e": 3,
        "f": "tabm",
        "g": "..",
        "h": "s3://x/y",
    }
    good |= {"i": "${20230301-split-1.split}", "j": "new/folder", "k": True}
    check_inputs([{**good, "g": "../nbs"}], project, workspace)
    bad = {
        "ignored": "../big/trips.csv",
        "folder": "../big",
        "hidden": "../.slml/x.csv",
        "outside": str(elsewhere / "c.csv"),
        "absolute": str(project / "fares.py"),
        "object": f"{workspace.root}/raw/2023.csv",
    }
    with pytest.raises(SubmissionError) as caught:
        check_inputs([good | bad, bad], project, workspace)
    lines = caught.value.problem.splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == list(bad), "each of them once"
    told = dict(line.split(": ", 1) for line in lines)
    assert told["ignored"].endswith(".slmlignore: !big/")
    assert "slmlignore" not in told["hidden"]
    assert "lies outside" in told["outside"]
    assert told["absolute"].endswith("pass ../fares.py")


def test_where_a_folder_lies(project: Path, tmp_path: Path) -> None:
    assert path_in_project(project, project) == "."
    assert path_in_project(project / "nbs", project) == "nbs"
    with pytest.raises(SubmissionError):
        path_in_project(tmp_path, project)


# Run where it arrives.

CELLS = (
    "rows: int = 2  # rows\nzones: str = 'zones.csv'  # path",
    "import helper, fares, pathlib, os",
    "from slml.runs.record import record",
    "record({'price': fares.RATE * rows}, {'zones': pathlib.Path(zones).read_text(), 'helper': helper.NAME})",
)


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@dataclass
class Container:
    """What a service would start: a process in an empty folder, with an environment."""

    run: Run
    environ: dict[str, str]
    place: Path

    def start(self, **environ: str) -> subprocess.Popen:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLML_")}
        command = [sys.executable, "-m", "slml.execution.entry"]
        log = open(self.place / "log", "wb")  # noqa: SIM115
        return subprocess.Popen(command, env=clean | self.environ | environ, cwd=self.place, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.place / "log").read_text()

    @property
    def record(self) -> dict:
        return json.loads((Path(self.run.folder) / "run.json").read_text())


def container(project: Path, workspace: Workspace, asked: Job, place: Path, cwd: str = ".") -> Container:
    archive = upload_project(project, workspace)
    [run] = prepare_runs([asked], workspace, destination=Destination("batch", archive, cwd))
    place.mkdir()
    told = workspace_environment(workspace) | {"SLML_RUN": run.folder, "SLML_ARCHIVE": archive, "SLML_CWD": run.cwd}
    return Container(run, told | {"TMPDIR": str(place)}, place)


@pytest.fixture
def shipped(project: Path, tmp_path: Path, tracking_uri: str) -> Workspace:
    return Workspace(root=str(tmp_path / "root"), project="test", tracking_uri=tracking_uri)


@pytest.mark.parametrize("cwd", [".", "nbs"])
def test_a_project_runs_far_from_home(cwd: str, project: Path, shipped: Workspace, tmp_path: Path) -> None:
    """The package at the top, a helper module and a file by the paths that they have in the folder of the call."""
    path = notebook(project / "nbs/price.ipynb", *CELLS)
    write(project, {f"{cwd}/helper.py": "NAME = 'helper'"})
    asked = job(path, {"zones": os.path.relpath(project / "nbs/zones.csv", project / cwd)})
    here = container(project, shipped, asked, tmp_path / "container", cwd)
    project.rename(tmp_path / "moved")  # nothing of it is read any more
    assert here.start().wait(60) == 0, here.log
    run = read_run(here.run.folder)
    assert (run.status, run.metrics) == ("done", {"price": 5.0})
    assert run.outputs == {"zones": "1,Newark", "helper": "helper"}
    assert here.log.startswith(f"run {run.folder} on 1 core, 4 GiB, code {run.archive}\n")


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """A bucket, and the environment that leads to it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    told = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    told |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    yield told
    server.stop()


@pytest.mark.parametrize("how", ["damaged", "gone"])
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_run_without_its_code_says_so(
    how: str, where: str, project: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "root")
    if where == "bucket":
        for name, value in request.getfixturevalue("bucket").items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        root = f"s3://{how}/fares"
        S3FileSystem().mkdir(how)
    path = notebook(project / "nbs/price.ipynb", *CELLS)
    here = container(project, Workspace(root=root, project="fares"), job(path, {}), tmp_path / "container")
    fs, archive = filesystem(here.run.archive)
    fs.pipe(archive, fs.cat(archive)[:-1]) if how == "damaged" else fs.rm(archive)
    assert here.start().wait(60) == 1
    record = read_run(here.run.folder)
    assert (record.status, record.error.type) == ("failed", "StorageError")
    assert here.run.archive in record.error.message
    assert here.run.archive in here.log


def test_wrong_calls_of_the_entry(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLML_")} | {"SLML_CWD": "."}
    for told, code in (({}, 2), ({"SLML_RUN": f"{tmp_path}/none"}, 1)):
        done = subprocess.run([sys.executable, "-m", "slml.execution.entry"], env=environ | told, capture_output=True)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr


def test_the_entry_becomes_the_job_and_hears_its_end(project: Path, shipped: Workspace, tmp_path: Path) -> None:
    path = notebook(project / "nbs/sleeper.ipynb", "", "import time; time.sleep(600)")
    here = container(project, shipped, job(path, {}), tmp_path / "container")
    [line] = (here.run.folder,)
    (tmp_path / "array").write_text(f"nowhere\n{line}\n")
    process = here.start(SLML_RUN=str(tmp_path / "array"), AWS_BATCH_JOB_ARRAY_INDEX="1")
    wait_for(lambda: "sleep" in executed(here), process, here)
    command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    assert b"slml.execution.execute" in command, "no process between the service and the job"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143, here.log
    assert here.record["status"] in ("waiting", "running", "failed", "cancelled")


def executed(here: Container) -> str:
    """The source of the executed notebook, once its second cell has begun."""
    path = Path(here.run.executed)
    if here.record["status"] != "running" or not path.exists():
        return ""
    cells = nbformat.read(path, 4).cells
    return "".join(c.source for c in cells if c.metadata.get("papermill", {}).get("start_time"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, here: Container) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, here.log
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_two_nodes_meet_though_the_main_one_is_not_told_where(tmp_path: Path) -> None:
    """As AWS Batch starts them: the address of the main node is in the environment of the other one alone."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, torch, torch.distributed as d\nd.init_process_group('gloo')\nt = torch.ones(1)\nd.all_reduce(t)\n"
        "print(os.environ['RANK'], t.item())\nd.destroy_process_group()\n"
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    main = {"AWS_BATCH_JOB_NODE_INDEX": "0", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0"}
    address = socket.gethostbyname(socket.gethostname())
    other = {"AWS_BATCH_JOB_NODE_INDEX": "1", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": address}
    nodes = []
    for environ in (main | other, main):
        command = launch_command("folder", Resources(nodes=2), environ)
        assert command[-3:] == ["-m", "slml.execution.execute", "folder"]
        command = [word.replace(str(PORT), str(port)) for word in command[:-3]]
        nodes.append(subprocess.Popen([*command, script], stdout=subprocess.PIPE, text=True))
    assert [node.communicate(timeout=60)[0].strip() for node in nodes] == ["1 2.0", "0 2.0"]


def test_several_processes_end_as_one(project: Path, shipped: Workspace, tmp_path: Path) -> None:
    """torchrun itself ends with 1, whether the notebook failed or the machine was taken back."""
    source = "import os, pathlib, time\npathlib.Path(place, os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
    path = notebook(project / "nbs/ranks.ipynb", f"place: str = {str(tmp_path)!r}  # folder", source, "time.sleep(600)")
    asked = job(path, {}, Resources(processes=2))
    here = container(project, shipped, asked, tmp_path / "container")
    process = here.start()
    wait_for(lambda: all((tmp_path / rank).exists() for rank in "01"), process, here)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, here.log
    assert here.record["status"] != "done"
