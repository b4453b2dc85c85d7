"""Training is killed repeatedly with SIGKILL: the resumed run equals an uninterrupted one.

VTP_CRASH=full kills thirty times at random and once at every single write.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from small_runs import assert_same_run, sim_config

from pipeline import train
from pipeline.runs import RunDirectory

pytestmark = pytest.mark.slow
KILLS, EVERY = (30, 1) if os.environ.get("VTP_CRASH") == "full" else (6, 9)
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pipeline.train", "small_runs"])


def train_or_die(folder, die_at):
    """Killed before it opens a temporary file, renames or removes one: the first time, the second, ..."""
    import torch

    torch.set_num_threads(1)
    left = die_at

    def hook(event, args):
        nonlocal left
        is_opened = event == "open" and str(args[0]).endswith((".tmp", ".lock")) and "r" not in str(args[1])
        if is_opened or event in WRITES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train.CHECKPOINT_S = 0.2
    train.run(sim_config(folder))


def in_child(folder, die_at=0):
    process = PROCESSES.Process(target=train_or_die, args=(folder, die_at))
    process.start()
    return process


def exit_code(process):
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, and how many seconds it took."""
    assert exit_code(in_child(tmp_path_factory.mktemp("first"))) == 0  # the server that forks runs from now on
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    assert exit_code(in_child(folder)) == 0
    return folder / "run", time.monotonic() - started


def check_end(folder, whole):
    assert exit_code(in_child(folder)) == 0
    run = folder / "run"
    assert_same_run(whole, run)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())
    summaries = [json.loads((path / "summary.json").read_text()) for path in (whole, run)]
    for summary in summaries:
        for name in ("wall_s", "stages_wall_s", "provenance", "evaluation"):
            del summary[name]
    assert summaries[0] == summaries[1]
    assert RunDirectory(run).is_finished


def test_random_kills(whole, tmp_path):
    run, duration_s = whole
    rng = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = in_child(tmp_path)
        time.sleep(rng.uniform(0, duration_s))
        process.kill()
        if exit_code(process) == 0 or RunDirectory(tmp_path / "run").is_finished:
            assert_same_run(run, tmp_path / "run")
            shutil.rmtree(tmp_path / "run")
        else:
            killed += 1
    check_end(tmp_path, run)


def test_a_kill_at_every_write(whole, tmp_path):
    """Also between summary, slimming and marker, and in another place than the one it was killed in."""
    run, _ = whole
    write, code = 1, -signal.SIGKILL
    while code != 0:
        folder = tmp_path / str(write)
        code = exit_code(in_child(folder, die_at=write))
        if code != 0:
            assert code == -signal.SIGKILL
            moved = Path(f"{folder}-moved")
            folder.rename(moved) if folder.exists() else moved.mkdir()
            check_end(moved, run) if not RunDirectory(moved / "run").is_finished else assert_same_run(
                run, moved / "run"
            )
            shutil.rmtree(moved)
        write += EVERY
    assert write > 60
