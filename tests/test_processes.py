import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import write_video

import pipeline
from pipeline import dataset, processes
from pipeline.processes import ProcessIdentity, this_process

NAMES = ("pipeline", "numpy", "av", "decord", "torch")  # of files that people have beside their videos
OF_PYTHON = ("random", "signal", "queue", "types", "tempfile", "socket", "multiprocessing")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A working folder with files named like modules, which print a line when they are imported."""
    names = NAMES + (OF_PYTHON if sys.version_info >= (3, 11) else ())
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the working folder\\'s {name} was imported')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vtp(*words):
    """Run the command as its script does: the script's folder is on the module path, the working folder is not."""
    modules = [str(Path(pipeline.__file__).parent.parent), *filter(None, sys.path)]
    script = f"import sys; sys.path[:] = {modules!r}; from pipeline.cli import main; main()"
    return subprocess.run([sys.executable, "-I", "-c", script, *words], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--shards", "2", "--launcher", "local"]], ids=["alone", "shards"])
def test_extraction_in_a_folder_of_files_named_like_modules(hostile, how):
    (hostile / "videos").mkdir()
    for number in range(2):
        write_video(hostile / "videos" / f"{number}.mp4", 6, first=20 * number)
    done = vtp(
        "extract", "videos", "--out", "e.h5", "--weights", "random:0", "--clip-len", "2", "--clip-stride", "4", *how
    )
    assert done.returncode == 0, done.stderr
    assert dataset.read_embeddings(hostile / "e.h5").num_clips == 4
    assert "working folder" not in done.stderr + done.stdout


@pytest.mark.slow
def test_simulation_in_a_folder_of_files_named_like_modules(hostile, monkeypatch):
    done = vtp("simulate", "--out", "d", "--videos", "2", "--steps", "20")  # enough for workers
    assert done.returncode == 0, done.stderr
    assert len(list((hostile / "d" / "videos").iterdir())) == 2
    assert "working folder" not in done.stderr + done.stdout


def test_what_starting_workers_changes_is_put_back(monkeypatch):
    for value in (None, "", "1"):
        if value is None:
            monkeypatch.delenv(processes.SAFE_PATH, raising=False)
        else:
            monkeypatch.setenv(processes.SAFE_PATH, value)
        with processes.starting_workers():
            assert os.environ[processes.SAFE_PATH] == "1"
        assert os.environ.get(processes.SAFE_PATH) == value


# Which process


def test_an_identity_reads_back_as_itself():
    me = this_process()
    assert ProcessIdentity.parse(str(me)) == me
    assert me.pid == os.getpid() and me.is_of_this_machine and not me.has_ended
    for text in ("", "a-b-c", "a-1", "1", "a-1-x", "a--1-1"):
        assert ProcessIdentity.parse(text) is None


def test_only_its_own_machine_knows_that_a_process_has_ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        me = this_process()
        ended = me._replace(pid=process.pid, started=1)
    assert ended.has_ended
    assert not ended._replace(machine="elsewhere").has_ended
    assert not ended._replace(machine="").has_ended
    assert me._replace(started=me.started + 1).has_ended, "a later process has its number"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a space of process numbers")
def test_another_space_of_process_numbers_is_another_machine():
    show = "from pipeline.processes import this_process; print(this_process())"
    environment = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parent.parent)}
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", show]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("unshare is not allowed here")
    inside = ProcessIdentity.parse(done.stdout.strip())
    assert inside is not None and not inside.is_of_this_machine and not inside.has_ended
