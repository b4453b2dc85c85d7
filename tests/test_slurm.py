"""Against a real one-node Slurm, started by tests/slurm/start.sh if its programs are installed."""

import contextlib
import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from raising import raises

from pipeline import dataset, extract, simulate, train
from pipeline.cluster import launch, slurm
from pipeline.cluster.array import Task, report
from pipeline.config import ExtractConfig, SimTrainConfig, SimulateConfig
from pipeline.dataset import manifest
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError
from pipeline.extraction import shards
from pipeline.files import make_folder
from pipeline.training import seeds

SCRIPTS = Path(__file__).parent / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here; `make test-slurm` installs them"),
]

SLURM = {"launcher": "slurm", "slurm_time": "10", "slurm_cpus": 1}
SMALL = {"episodes": 96, "num_envs": 8, "updates_per_episode": 10, "warmup_steps": 64, "batch_size": 32}
OPTIONS = {"job_name": "vtp-test", "time_limit": "10", "partition": None, "gres": None, "cpus": 1}


@pytest.fixture(scope="module", autouse=True)
def node():
    """A one-node Slurm; everything that runs on it or is compared with it uses one thread."""
    state = tempfile.mkdtemp(prefix="vtp-slurm-", dir="/tmp")  # short, because it contains a socket
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{state}/slurm.conf")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(slurm, "POLL_S", 0.2)
        patch.setattr(slurm, "SQUEUE_S", 0.5)
        patch.setattr(slurm, "GRACE_S", 3.0)
        try:
            subprocess.run([SCRIPTS / "start.sh", state], check=True)
            yield
        finally:
            subprocess.run([SCRIPTS / "stop.sh", state], check=False)
            shutil.rmtree(state, ignore_errors=True)
            torch.set_num_threads(threads)


def scontrol(*words):
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout


def wait_for(true, what, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def array_of(folder):
    """Wait for an array submitted from the folder; return its id."""
    wait_for((folder / "array.json").exists, "nothing was submitted")
    return json.loads((folder / "array.json").read_text())["id"]


def stop_and_requeue(job_id, at_work, *command):
    """Stop a task once it is running, and let it restart soon."""
    wait_for(at_work, f"{job_id} does not start")
    subprocess.run([*command, job_id], check=True)
    start_soon(job_id)


def start_soon(job_id):
    """Let a requeued task start before Slurm's two minutes are over, but not in the second in which it was stopped,
    because a node refuses credentials that old.
    """
    wait_for(lambda: "JobState=PENDING" in scontrol("show", "job", job_id), f"{job_id} was not requeued")
    scontrol("update", f"JobId={job_id}", "StartTime=now+3")


@contextlib.contextmanager
def meanwhile(function, *arguments):
    """Run the function in parallel with the block; its error is raised in the block."""
    errors = []

    def run():
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def test_seven_shards_one_of_them_killed_and_requeued_equal_one_process(tmp_path):
    manifest_path = simulate.run(SimulateConfig(out=tmp_path / "demos", videos=8, steps=2, seed=1))
    simulate.run(SimulateConfig(out=tmp_path / "long", videos=1, steps=30, seed=2))
    shutil.copy(tmp_path / "long" / "videos" / "0000.mp4", tmp_path / "demos" / "videos" / "0000.mp4")
    shutil.copy(tmp_path / "long" / "labels" / "0000.csv", tmp_path / "demos" / "labels" / "0000.csv")
    settings = {"source": str(manifest_path), "weights": "random:0", "precision": "fp32", "clip_len": 4}
    cfg = ExtractConfig(out=tmp_path / "hostile name's" / "e.h5", shards=7, **settings, **SLURM)
    folder = tmp_path / "hostile name's" / "e.jobs"
    entries = manifest.find_videos(cfg.source)
    (victim,) = (k for k in range(7) if "0000" in {entry.video_id for entry in shards.share(entries, 7, k)})

    def kill():
        job_id = f"{array_of(folder)}_{victim}"
        log = folder / f"{job_id}_0_log.out"
        begun = lambda: log.exists() and "Loading pickle" in log.read_text()  # noqa: E731
        stop_and_requeue(job_id, begun, "scontrol", "requeue")

    told = []
    with meanwhile(kill):
        result = launch.extract(cfg, progress=lambda *status: told.append(status))
    whole = extract.run(ExtractConfig(out=tmp_path / "whole.h5", **settings))

    assert "Restarts=1" in scontrol("show", "job", f"{array_of(folder)}_{victim}")
    assert (result.num_videos, result.num_clips, result.failures) == (8, 44, [])
    content = [dataset.read_embeddings(path).attrs["content_sha256"] for path in (result.path, whole.path)]
    assert content[0] == content[1]
    assert told[-1][1] == 8 and sorted(done for done, _, _ in told) == [done for done, _, _ in told]
    assert any("running" in text for _, _, text in told)


def test_seeds_are_submitted_found_again_preempted_and_merged(tmp_path):
    cfg = SimTrainConfig(out=tmp_path / "run", seeds="3-4", **SMALL, **SLURM)
    folder = tmp_path / "run" / "jobs"

    assert launch.train(cfg.model_copy(update={"no_wait": True})) is None
    with raises("seeds-unfinished", TryAgainError) as caught:
        seeds.merge(cfg.out)
    assert "seeds 3, 4 not finished" in str(caught.value)
    with raises("array-differs"):
        launch.train(cfg.model_copy(update={"episodes": 97}))
    with raises("array-running", TryAgainError):
        launch.train(cfg.model_copy(update={"launcher": None}))

    def interrupt(*_):
        raise KeyboardInterrupt

    with raises("command-interrupted", TryAgainError):
        launch.train(cfg, progress=interrupt)

    def preempt():
        begun = (cfg.out / "seed-4" / "metrics.csv").exists
        stop_and_requeue(f"{array_of(folder)}_1", begun, "scancel", "--signal=USR2")

    before = array_of(folder)
    with meanwhile(preempt):
        summary = launch.train(cfg)
    assert array_of(folder) == before, "it was submitted again"
    assert "Restarts=1" in scontrol("show", "job", f"{before}_1")

    alone = train.run(SimTrainConfig(out=tmp_path / "alone", seed=4, **SMALL))
    assert [row["seed"] for row in summary["by_seed"]] == [3, 4]
    assert summary["by_seed"][1]["profit_mean"] == alone["profit_mean"]
    assert json.loads((cfg.out / "summary.json").read_text()) == summary
    assert launch.train(cfg)["profit_mean"] == summary["profit_mean"]
    assert array_of(folder) == before, "a finished seed was trained again"


def test_a_task_that_ended_before_it_was_requeued_is_requeued(tmp_path):
    """Slurm can handle a task's request after the task has ended, when only its state and its log are left."""
    words = f"echo 'Starting with'; echo '{slurm.PREEMPTED}'; kill -9 $PPID"
    script = f"test -e '{tmp_path}/begun' || {{ touch '{tmp_path}/begun'; {words}; }}"
    array = slurm.submit(
        [Task("preempted", subprocess.check_call, ["sh", "-c", script])], tmp_path / "jobs", settings={}, **OPTIONS
    )

    def begin_again():
        wait_for(lambda: "Restarts=1" in scontrol("show", "job", array.id), "it was not requeued")
        start_soon(array.id)

    with meanwhile(begin_again):
        assert slurm.watch(array, tick=lambda *_: None) == []


def test_failures_have_traceback_and_logs(tmp_path):
    (tmp_path / "file").touch()
    tasks = [
        Task("fine", math.sqrt, 4),
        Task("bug", math.sqrt, -1),
        Task("gone", os._exit, 9),
        Task("usage", make_folder, tmp_path / "file"),
    ]
    array = slurm.submit(tasks, tmp_path / "jobs", settings={}, **OPTIONS)
    failures = {failure.task: failure for failure in slurm.watch(array, tick=lambda *_: None)}
    assert failures.keys() == {"bug", "gone", "usage"}
    assert isinstance(failures["bug"].error, PartialError) and "ValueError: " in str(failures["bug"].error)
    assert "Traceback (most recent call last)" in str(failures["bug"].error)
    assert isinstance(failures["gone"].error, TryAgainError) and "FAILED" in str(failures["gone"].error)
    assert str(failures["usage"].error).startswith(f"{tmp_path / 'file'} cannot be a folder")
    assert failures["usage"].error.code == "folder-is-file"
    whole = report(list(failures.values()), 4)
    assert whole.exit_code == VtpError.exit_code != CorruptError.exit_code
    for failure in failures.values():
        for log in failure.logs:
            assert log.is_file() and str(log) in str(whole)
    wait_for(lambda: not any(slurm.at_work(slurm.squeue(), job) for job in array.jobs.values()), "a task still runs")
    states = {name: slurm.squeue()[job.job_id][0] for name, job in array.jobs.items()}
    assert states == {"fine": "COMPLETED", "bug": "FAILED", "gone": "FAILED", "usage": "FAILED"}


def test_slurm_refusals_are_reported(tmp_path):
    with raises("slurm-refused") as caught:
        slurm.submit([Task("root", math.sqrt, 4)], tmp_path, settings={}, **OPTIONS | {"partition": "none"})
    assert "invalid partition" in str(caught.value)
    assert not (tmp_path / "array.json").exists()
