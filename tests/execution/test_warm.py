"""Warm starts: quicker than cold ones, otherwise not to be told from them, and never in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest

from slml.execution import warm, warm_server
from slml.runners.local import LocalRunner
from slml.runs.job import job
from slml.runs.run import load_run
from slml.workspace import Workspace

pytestmark = pytest.mark.skipif(not warm.CAN_FORK, reason="a fork is safe on Linux only; elsewhere all starts are cold")

# Everything that a process could have from another one, and two random numbers.
REPORT = """
import json, os, random, resource, signal, sys, threading
found = {
    "modules": sorted(name for name in sys.modules if name.startswith(("slml", "helper", "probe"))),
    "environment": {k: v for k, v in os.environ.items() if k != "LC_CTYPE"},
    "folder": os.getcwd(), "path": sys.path, "arguments": sys.argv[1:],
    "files": sorted(p for f in os.listdir("/proc/self/fd") if int(f) > 2 and os.path.exists(p := f"/proc/self/fd/{f}")),
    "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals()) if n not in (9, 19, 32, 33)],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": [t.name for t in threading.enumerate()], "tasks": len(os.listdir("/proc/self/task")),
    "umask": os.umask(0), "limit": resource.getrlimit(resource.RLIMIT_CORE), "niceness": os.nice(0),
    "leader": os.getsid(0) == os.getpid(), "main": __name__, "children": os.path.exists("/proc/self/task/1/children"),
}
print(json.dumps([found, random.random()]))
"""
LEAKS = """
import atexit, os, random, resource, signal, sys, threading, time
import helper
os.environ["LEAKED"] = "1"; os.chdir("/"); os.umask(0o777); sys.path.append("/leaked"); random.seed(1)
signal.signal(signal.SIGUSR1, lambda *_: None); signal.signal(signal.SIGINT, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.nice(1); sys.argv.append("leaked")
opened = open("/proc/self/status"); os.open("/proc/self/maps", os.O_RDONLY)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
json = sys.modules["json"]; json.leaked = True
"""


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a warm process of this test alone, which has loaded next to nothing."""
    folder = tempfile.mkdtemp(prefix="w")  # a socket's path must be short
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    environment = {**os.environ, **warm.PLOT_VARIABLES, "MEANING": "42"}
    assert warm.ensure_warm_process(environment, idle=60, names=["json", "threading"])
    yield environment
    warm.stop_warm_process(environment)
    shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, environment: dict[str, str], source: str, *arguments: str, cold: bool = False) -> tuple:
    """How a module ended, and what it printed."""
    (folder / "probe.py").write_text(source)
    (folder / "helper.py").touch()
    command = [sys.executable, "-m", "probe", *arguments]
    with (folder / "out.txt").open("w+") as out, open(os.devnull, "rb") as null:
        streams = (null.fileno(), out.fileno(), out.fileno())
        if cold:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=null, stdout=out, stderr=out, start_new_session=True
            )
        else:
            process = warm.fork_process(command, str(folder), environment, streams)
            assert process, "no warm process answered"
        code = process.wait(60)
        out.seek(0)
        return process, code, out.read()


def test_a_copy_is_like_a_process_of_its_own_and_knows_nothing_of_others(tmp_path: Path, light: dict) -> None:
    cold, _ = json.loads(run(tmp_path, light, REPORT, "one", "two", cold=True)[2])
    first, number = json.loads(run(tmp_path, light, REPORT, "one", "two")[2])
    assert first == cold
    assert first["environment"]["MEANING"] == "42"
    assert run(tmp_path, light, LEAKS)[1] == 0
    second, other = json.loads(run(tmp_path, light, REPORT, "one", "two")[2])
    assert second == first
    assert other != number


def test_what_the_caller_ignores_is_ignored(tmp_path: Path, light: dict) -> None:
    """As under nohup, which many use for what takes long."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        cold, copy = (json.loads(run(tmp_path, light, REPORT, cold=cold)[2])[0] for cold in (True, False))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert copy["signals"] == cold["signals"]
    assert cold["signals"][0] == str(signal.SIG_IGN)


def test_edited_code_is_seen(tmp_path: Path, light: dict) -> None:
    for answer in ("1", "2"):
        (tmp_path / "mine.py").write_text(f"answer = {answer}")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # written within the same second
        assert run(tmp_path, light, "import mine; print(mine.answer)")[2] == f"{answer}\n"


ENDS = {
    "": 0,
    "import sys; sys.exit(3)": 3,
    "import sys; sys.exit('told')": 1,
    "1 / 0": 1,
    "import os; os._exit(7)": 7,
    "import os; os.kill(os.getpid(), 9)": -9,
    "import os; os.kill(os.getpid(), 15)": -15,
    "import os; os.abort()": -6,
}


def test_the_end_is_told_truly(tmp_path: Path, light: dict) -> None:
    for source, code in ENDS.items():
        assert run(tmp_path, light, source)[1] == code, source
    assert "told" in run(tmp_path, light, "import sys; sys.exit('told')")[2]
    assert "ZeroDivisionError" in run(tmp_path, light, "1 / 0")[2]


def test_nothing_is_lost_at_the_end(tmp_path: Path, light: dict) -> None:
    """Files that are still open are written, exit functions called, threads waited for."""
    source = """
import atexit, threading, time
file = open("open.txt", "w"); file.write("all of it")
atexit.register(print, "exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("end", end="\\n")
"""
    assert run(tmp_path, light, source)[2].split() == ["end", "thread", "exit"]
    assert (tmp_path / "open.txt").read_text() == "all of it"


def test_the_memory_of_a_copy_is_measured(tmp_path: Path, light: dict) -> None:
    small, large = (run(tmp_path, light, f"x = b'1' * {n}")[0].peak_memory for n in (1, 200_000_000))
    assert 190e6 < large - small < 210e6


def test_limits_of_the_caller_hold(tmp_path: Path, light: dict) -> None:
    caller = f"""
import os, resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_warm import run
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.umask(0o077)
source = "import os, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.umask(0))"
print(run(Path({str(tmp_path)!r}), dict(os.environ), source)[2])
"""
    done = subprocess.run([sys.executable, "-c", caller], env=light, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["100", "63"], done.stderr


def test_two_callers_at_once(tmp_path: Path, light: dict) -> None:
    folders = [tmp_path / str(n) for n in range(8)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda f: run(f, light, "import os; print(os.getcwd(), os.getpid())")[2].split(), folders)
        )
    assert [Path(folder).name for folder, _ in found] == [str(n) for n in range(8)]
    assert len({pid for _, pid in found}) == 8


def sleeper(folder: Path, environment: dict) -> warm.ForkedProcess:
    (folder / "probe.py").write_text("import time; time.sleep(60)")
    process = warm.fork_process([sys.executable, "-m", "probe"], str(folder), environment)
    assert process
    assert process.poll() is None
    return process


def gone(pid: int, seconds: float = 30) -> bool:
    """Whether a process ends within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


def test_signals_reach_the_copy(tmp_path: Path, light: dict) -> None:
    process = sleeper(tmp_path, light)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    assert gone(process.pid)
    process.kill()  # of one that has ended: nothing
    assert process.poll() == -signal.SIGTERM


def test_a_copy_ends_with_its_caller(tmp_path: Path, light: dict) -> None:
    (tmp_path / "probe.py").write_text("import time; time.sleep(60)")
    caller = f"""
import os, sys, time
from slml.execution import warm, warm_server
process = warm.fork_process([sys.executable, "-m", "probe"], {str(tmp_path)!r}, dict(os.environ))
print(process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", caller], env=light, stdout=subprocess.PIPE) as starter:
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        starter.kill()
    assert gone(pid)


def test_no_ctrl_c_of_the_caller_reaches_it(tmp_path: Path, light: dict) -> None:
    process = sleeper(tmp_path, light)
    parent = psutil.Process(process.pid).ppid()
    end = time.monotonic() + 30
    while len({os.getsid(process.pid), os.getsid(parent), os.getsid(0)}) < 3 and time.monotonic() < end:
        time.sleep(0.01)  # its session is the first thing that a copy makes
    assert len({os.getsid(process.pid), os.getsid(parent), os.getsid(0)}) == 3
    process.kill()
    process.wait(30)


def test_a_warm_process_that_is_killed_harms_nobody(tmp_path: Path, light: dict) -> None:
    process = sleeper(tmp_path, light)
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):  # its copies go on
        process.wait(0.5)
    process.terminate()
    assert process.wait(30) == warm.UNKNOWN
    assert warm.ensure_warm_process(light, names=["json"])
    assert run(tmp_path, light, "print(1)")[2] == "1\n"


def test_it_ends_itself_when_nobody_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="w")
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    environment = dict(os.environ)
    assert warm.ensure_warm_process(environment, idle=0.5, names=["json"])
    end = time.monotonic() + 30
    while warm.socket_path(environment).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not warm.socket_path(environment).exists()
    shutil.rmtree(folder)


def test_others_can_neither_ask_nor_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = warm.socket_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        warm.socket_folder()
    assert warm.fork_process([sys.executable, "-m", "this"], str(tmp_path), dict(os.environ)) is None


def test_a_thread_is_a_reason_to_refuse() -> None:
    source = (
        "import threading, time\nfrom slml.execution.warm_server import unsafe_threads\nbefore = unsafe_threads()\n"
    )
    source += "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    source += "print(len(before), len(unsafe_threads()))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1"]


def test_what_is_loaded_starts_no_threads_and_keeps_nothing_of_slml() -> None:
    source = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("warm", {warm_server.__file__!r})
warm = sys.modules["warm"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warm)
warm.load_libraries()
print(warm.unsafe_threads(), [name for name in sys.modules if name.startswith("slml")], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.stdout.strip() == "[] [] True", done.stderr


# Whole runs


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Workspace:
    return Workspace(root=str(tmp_path / "root"), project=tmp_path.name, tracking_uri=tracking_uri, cores=2)


@pytest.fixture(scope="module")
def heavy() -> None:
    """The warm process that runs from this machine meet."""
    assert warm.ensure_warm_process(dict(os.environ), timeout=120)


def notebook(folder: Path, *sources: str) -> str:
    cells = [nbformat.v4.new_code_cell(source) for source in ("rows: int = 1", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "job.ipynb")
    return str(folder / "job.ipynb")


LOOK = """
import os, sys
known = "torch" in sys.modules
import numpy, torch
print("seen", known, "slml" in sys.modules, os.environ.get("FOR_THE_RUN"), numpy.random.rand(), torch.rand(1).item())
"""


def test_runs_are_warm_and_independent(
    workspace: Workspace, tmp_path: Path, heavy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOR_THE_RUN", "yes")
    runner, path = LocalRunner(workspace), notebook(tmp_path, LOOK)
    runs = [runner.wait(runner.submit(job(path, {}))) for _ in range(2)]
    assert [r.status for r in runs] == ["done", "done"]
    seen = [next(line for line in runner.logs(r.id).splitlines() if "seen" in line).split("seen ")[1] for r in runs]
    (torch, ours, name, *first), (_, _, _, *second) = (line.split() for line in seen)
    assert (torch, ours, name) == ("True", "False", "yes")
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert all(r.peak_memory > 50e6 for r in runs)


def test_a_warm_run_is_quicker_than_a_cold_one(workspace: Workspace, tmp_path: Path, heavy: None) -> None:
    """From the call to the end of the run, without its tracking; the best of two, for a busy machine."""
    path = notebook(tmp_path, "1")
    runners = {kind: LocalRunner(workspace.model_copy(update={"warm": kind})) for kind in (False, True)}
    seconds = {False: [], True: []}
    for kind in (False, True, True, False):
        begin = time.perf_counter()
        id = runners[kind].submit(job(path, {}))
        while not load_run(workspace, id).has_ended:
            time.sleep(0.02)
        seconds[kind].append(time.perf_counter() - begin)
        assert runners[kind].wait(id).status == "done"
    assert min(seconds[True]) < 0.7 * min(seconds[False]), seconds


def test_a_warm_kernel_that_is_killed_is_reported(workspace: Workspace, tmp_path: Path, heavy: None) -> None:
    runner = LocalRunner(workspace)
    run = runner.wait(runner.submit(job(notebook(tmp_path, "import os; os.kill(os.getpid(), 9)"), {})))
    assert (run.status, run.error.type, run.error.cell) == (
        "failed",
        "KernelDied",
        3,
    )  # the given parameters are a cell too
    assert "SIGKILL" in run.error.message


def test_cancelling_a_warm_run_leaves_no_process(workspace: Workspace, tmp_path: Path, heavy: None) -> None:
    source = "import os, time\nopen('pid', 'w').write(f'{os.getpid()} {os.getppid()}')\ntime.sleep(100)"
    path, pid = notebook(tmp_path, f"import os; os.chdir({str(tmp_path)!r})", source), tmp_path / "pid"
    runner = LocalRunner(workspace)
    id = runner.submit(job(path, {}))
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    kernel, parent = map(int, pid.read_text().split())
    assert "warm" in " ".join(psutil.Process(parent).cmdline())
    assert runner.status(id) == "running"
    runner.cancel(id)
    assert runner.status(id) == "cancelled"
    assert gone(kernel)
    assert psutil.pid_exists(parent)


def test_without_a_warm_process_runs_are_cold(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shut))
    warm.socket_folder().chmod(0o755)
    runner = LocalRunner(workspace)
    assert runner.wait(runner.submit(job(notebook(tmp_path, "1"), {}))).status == "done"


def test_an_engine_of_papermill(tmp_path: Path, heavy: None) -> None:
    """Installed with slml: papermill finds it by its name."""
    path, out = notebook(tmp_path, "import sys; print('torch' in sys.modules, rows)"), tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--engine", "slml", "-k", "python3", "--language", "python"]
    done = subprocess.run([*command, "-p", "rows", "3", path, out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert nbformat.read(out, 4).cells[-1].outputs[0].text == "True 3\n"
