"""Changes of aliases: none is lost when many write at once, on a disk or in a bucket; a service reads them cheaply."""

import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from slml.errors import RegistryError, StorageError
from slml.registry.aliases import (
    Canary,
    Pointer,
    State,
    change_aliases,
    changes_folder,
    read_changes,
    read_state,
    write_change,
)

FIRST, SECOND = (Pointer(n, f"/models/{n}/bundle", "3f2a9c") for n in (1, 2))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An emulated S3, found by the environment as on a real account."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="aliases")
        yield "s3://aliases"
    server.stop()


@pytest.fixture(params=["disk", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    return str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def test_what_was_written_is_read_with_its_history(root):
    assert read_state(root, "dc", "taxi") == State()
    one = write_change(root, "dc", "taxi", replace(State().next("register", "ann"), aliases={"champion": FIRST}))
    two = replace(one.next("canary", "bob", "a try"), canary=Canary(2, SECOND.uri, SECOND.hash, 10), shadow=FIRST)
    write_change(root, "dc", "taxi", two)
    assert read_state(root, "dc", "taxi") == two == read_state(root, "dc", "taxi", since=one)
    assert read_changes(root, "dc", "taxi") == [one, two]
    assert read_state(root, "dc", "other") == State() == read_state(root, "nyc", "taxi")


def test_who_comes_second_is_told_who_came_first_and_changes_nothing(root):
    write_change(root, "dc", "taxi", State().next("promote", "ann", "better"))
    with pytest.raises(RegistryError, match=r"meanwhile[\s\S]*promote by ann .*: better"):
        write_change(root, "dc", "taxi", State().next("promote", "bob"))
    assert [state.who for state in read_changes(root, "dc", "taxi")] == ["ann"]


def test_a_write_that_was_done_but_not_answered_may_be_done_again(root):
    state = State().next("promote", "ann")
    assert write_change(root, "dc", "taxi", state) == write_change(root, "dc", "taxi", state)


WRITER = """
import sys
from slml.registry.aliases import change_aliases
root, who, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
for n in range(number):
    change_aliases(root, "dc", "raced", lambda state: state.next("promote", who, str(n)))
"""


@pytest.mark.parametrize(("root", "number"), [("disk", 25), ("s3", 4)], indirect=["root"])
def test_processes_that_write_at_once_lose_no_change(root, number):
    people = ["ann", "bob", "cid", "dot"]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, root, who, str(number)]) for who in people]
    try:
        assert [writer.wait(120) for writer in writers] == [0] * 4
    finally:
        for writer in writers:
            writer.kill()
    done = read_changes(root, "dc", "raced")
    assert [state.number for state in done] == list(range(1, 4 * number + 1))
    for who in people:  # each of them all, in order
        assert [state.why for state in done if state.who == who] == [str(n) for n in range(number)]


def test_a_decision_is_made_anew_when_somebody_came_between(root):
    seen = []

    def decide(state: State) -> State:
        seen.append(state.number)
        if len(seen) == 1:
            write_change(root, "dc", "taxi", state.next("promote", "bob"))
        return state.next("promote", "ann")

    assert change_aliases(root, "dc", "taxi", decide).number == 2
    assert seen == [0, 1]


def test_a_damaged_change_is_named_and_leaves_the_service_what_it_knows(tmp_path):
    root = str(tmp_path)
    one = write_change(root, "dc", "taxi", State().next("register", "ann"))
    Path(changes_folder(root, "dc", "taxi"), "00000002.json").write_text("{")
    with pytest.raises(RegistryError, match=r"00000002\.json is damaged"):
        read_state(root, "dc", "taxi", since=one)


def test_storage_that_is_away_is_told(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="cannot be read"):
        read_state("s3://aliases/x", "dc", "taxi")
    with pytest.raises(StorageError, match="Nothing was changed"):
        write_change("s3://aliases/x", "dc", "taxi", State().next("register", "ann"))


def test_a_service_carries_nothing_heavy_for_it(root):
    code = "import sys; import slml.registry.aliases; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlflow", "torch", "pandas", "numpy", "pyarrow", "pydantic"} & set(loaded)
