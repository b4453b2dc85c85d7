import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raising import raises

import pipeline
from pipeline import writer_lock
from pipeline.errors import TryAgainError
from pipeline.processes import this_process
from pipeline.writer_lock import one_writer

CHILD = """
import sys, time
from pathlib import Path
from pipeline.errors import VtpError
from pipeline.writer_lock import one_writer

lock, count = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
input()
try:
    with one_writer(lock, lock.parent, wait=sys.argv[3] == "wait"):
        number = int(count.read_text())
        time.sleep(float(sys.argv[4]))
        count.write_text(str(number + 1))
        print("wrote", flush=True)
        if sys.argv[3] == "hold":
            input()
except VtpError as error:
    print(error.code, error, flush=True)
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "run" / ".lock"


@pytest.fixture(autouse=True)
def count(tmp_path):
    (tmp_path / "count").write_text("0")
    return tmp_path / "count"


def child(lock, how="refuse", seconds=0.0):
    environment = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(lock), str(lock.parent.parent / "count"), how, str(seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def holder(lock):
    """A child that holds the lock."""
    process = child(lock, "hold")
    go(process)
    assert process.stdout.readline() == "wrote\n"
    yield process
    process.kill()
    process.communicate()


def as_of(lock, **changes):
    """Make the lock look as if another had made it."""
    lock.write_text(json.dumps(json.loads(lock.read_text()) | changes))


def test_the_second_writer_is_told_who_the_first_is(lock, holder):
    with raises("output-in-use") as caught, one_writer(lock, lock.parent):
        raise AssertionError("both write")
    contents = json.loads(lock.read_text())
    for words in (str(lock.parent), f"process {holder.pid} ", f"on {os.uname().nodename}", contents["since"]):
        assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_thread_of_the_same_process_is_another_writer(lock):
    with one_writer(lock, lock.parent), raises("output-in-use"), one_writer(lock, lock.parent):
        pass


def test_the_lock_goes_with_its_writer_and_so_does_a_folder_made_for_it(lock):
    for _ in range(2):
        with one_writer(lock, lock.parent) as held:
            assert lock.exists()
            held.check()
        assert not lock.parent.exists()
    with one_writer(lock, lock.parent):
        (lock.parent / "config.yaml").touch()
    assert [path.name for path in lock.parent.iterdir()] == ["config.yaml"]


def test_a_killed_writer_is_succeeded_at_once(lock, holder, caplog):
    holder.kill()  # and not collected: a zombie is dead too
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
        time.sleep(0.01)
    with one_writer(lock, lock.parent):
        assert f"process {holder.pid} on" in caplog.text and "taking over" in caplog.text
        assert json.loads(lock.read_text())["pid"] == str(os.getpid())
    holder.wait()


def test_a_later_process_with_the_same_number_is_not_taken_for_the_writer(lock, holder):
    process = json.loads(lock.read_text())["process"]
    as_of(lock, process=f"{process}0")  # it started at another time
    with one_writer(lock, lock.parent):
        pass


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(writer_lock, "DEAD_S", 0.6)
    monkeypatch.setattr(writer_lock, "POLL_S", 0.01)
    monkeypatch.setattr(writer_lock, "HEARTBEAT_S", 0.05)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "changes",
    [
        {"process": "00000000-1-1", "host": "elsewhere"},  # another host or container
        {"process": "-1-1"},  # a system that does not tell boot and start
        {"path": "/a/copied/run/.lock"},  # copied while it was written
        {"process": "nonsense"},
    ],
)
def test_a_writer_elsewhere_is_alive_as_long_as_its_heart_beats(lock, changes):
    with one_writer(lock, lock.parent):
        as_of(lock, **changes)
        with raises("output-in-use"), one_writer(lock, lock.parent):
            raise AssertionError("both write")
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"token": "0" * 16, **changes}))
    with one_writer(lock, lock.parent):
        pass


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("contents", ["", "{", "[]", '{"token": "../../x", "process": 5}', "\udcff"])
def test_an_unreadable_lock_is_cleared_when_nobody_keeps_it_alive(lock, contents):
    lock.parent.mkdir()
    lock.write_bytes(contents.encode("utf-8", "surrogateescape"))
    with one_writer(lock, lock.parent):
        assert json.loads(lock.read_text())["pid"] == str(os.getpid())
    assert list(lock.parent.iterdir()) == []


@pytest.mark.usefixtures("short")
def test_a_writer_whose_lock_was_taken_over_stops(lock):
    with one_writer(lock, lock.parent) as held:
        held.check()
        as_of(lock, token="0" * 16)
        with raises("writer-replaced", TryAgainError):
            held.check()
    assert json.loads(lock.read_text())["token"] == "0" * 16, "another's lock is left alone"


def test_of_many_writers_at_once_one_writes(lock, count):
    children = [child(lock, seconds=1.0) for _ in range(5)]
    for process in children:
        go(process)
    said = [process.communicate()[0] for process in children]
    assert sum("wrote" in text for text in said) == 1 and sum("output-in-use" in text for text in said) == 4
    assert count.read_text() == "1"


@pytest.mark.slow
def test_those_who_wait_write_one_after_the_other_also_after_dead_ones(lock, count):
    """Each reads a number and writes the next: two at once would lose one."""
    lock.parent.mkdir()
    me = this_process()
    lock.write_text(json.dumps({"token": "1" * 16, "process": str(me._replace(started=1)), "path": str(lock)}))
    children = [child(lock, "wait", 0.05) for _ in range(8)]
    for process in children:
        go(process)
    for process in children:
        assert process.communicate(timeout=60)[0] == "wrote\n"
    assert count.read_text() == "8"


def test_shards_of_the_same_settings_write_at_once_and_others_do_not(tmp_path):
    def shard(number, settings):
        return one_writer(tmp_path / f".shard-{number}.lock", tmp_path, settings=settings)

    with shard(0, "a"), shard(1, "a"):
        with raises("output-in-use"), shard(2, "b"):
            pass
        with raises("output-in-use"), shard(1, "a"):
            pass
        with shard(2, "a"):
            assert len(list(tmp_path.glob(".*.lock"))) == 3
    with shard(2, "b"):
        pass
    assert not list(tmp_path.glob(".*.lock"))


def test_a_writer_in_another_thread_is_waited_for(lock):
    order = []
    begun = threading.Event()

    def first():
        with one_writer(lock, lock.parent):
            begun.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    with one_writer(lock, lock.parent, wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
