"""Arrays in local processes, and submissions to a mock scheduler; tests/test_slurm.py uses a real one."""

import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import light_tasks
import pytest
import torch
from factories import write_video
from raising import raises

from pipeline import cli, dataset, novelty, processes
from pipeline.cluster import array, launch, local, slurm
from pipeline.cluster.array import Failure, Task
from pipeline.config import EvaluateConfig, ExtractConfig, NoveltyConfig, SimTrainConfig, slurm_minutes
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError
from pipeline.extract import run as extract_alone
from pipeline.files import make_folder
from pipeline.training import seeds

LOGS = (Path("a.out"), Path("a.err"))
SMALL = {"episodes": 24, "num_envs": 8, "updates_per_episode": 1, "warmup_steps": 64, "batch_size": 32}


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    assert multiprocessing.active_children() == []


def run_local(tasks, folder):
    told = []
    failures = local.run(tasks, folder, task_bytes=1, tick=lambda *status: told.append(status))
    return failures, told


# Failures and their report


def test_vtp_errors_are_restored_from_their_traceback():
    trace = 'Traceback (most recent call last):\n  File "x", line 1\npipeline.errors.CorruptError: a.h5 is damaged; b\n'
    failure = array.failed("shard 1", trace, LOGS)
    assert type(failure.error) is CorruptError and str(failure.error) == "a.h5 is damaged; b"
    assert failure.error.code == CorruptError.code
    again = array.failed("shard 1", trace.replace("Error: ", "Error: [embeddings-damaged] "), LOGS)
    assert (str(again.error), again.error.code) == (str(failure.error), "embeddings-damaged")


@pytest.mark.parametrize("last", ["ValueError: x", "pipeline.errors.json: x", "pipeline.errors.Nothing: x", "x"])
def test_any_other_error_keeps_its_traceback(last):
    trace = f"Traceback (most recent call last):\n  File\n{last}\n"
    failure = array.failed("shard 1", trace, LOGS)
    assert type(failure.error) is PartialError and str(failure.error) == trace.rstrip()
    assert failure.error.code == "task-crashed"


def test_the_report_has_each_message_once_and_the_most_severe_code():
    failures = [
        Failure("seed 0", TryAgainError("killed"), (Path("0.out"), Path("0.err"))),
        Failure("seed 1", VtpError("no such file", code="run-missing"), (Path("1.out"), Path("1.err"))),
        Failure("seed 2", VtpError("no such file", code="run-missing"), (Path("2.out"), Path("2.err"))),
    ]
    error = array.report(failures, 5)
    assert type(error) is VtpError and error.code == "run-missing"
    assert str(error).splitlines() == [
        "3 of 5 tasks failed",
        "seed 0: killed",
        "  stdout: 0.out",
        "  stderr: 0.err",
        "seed 1, seed 2: no such file",
        "  stdout: 1.out",
        "  stderr: 1.err",
    ]
    assert type(array.report(failures[:1], 5)) is TryAgainError


# Local processes


def test_failures_of_local_tasks_have_traceback_and_logs(tmp_path):
    (tmp_path / "file").touch()
    tasks = [
        Task("fine", math.sqrt, 4),
        Task("bug", math.sqrt, -1),
        Task("gone", os._exit, 9),
        Task("killed", signal.raise_signal, signal.SIGKILL),
        Task("usage", make_folder, tmp_path / "file"),
    ]
    failures, told = run_local(tasks, tmp_path / "jobs")
    by_task = {failure.task: failure for failure in failures}
    assert by_task.keys() == {"bug", "gone", "killed", "usage"}
    assert "Traceback (most recent call last)" in str(by_task["bug"].error)
    assert "ValueError" in str(by_task["bug"].error) and "ValueError" in by_task["bug"].logs[1].read_text()
    assert str(by_task["gone"].error).startswith("exited with code 9; run the same command again")
    assert str(by_task["killed"].error).startswith("killed by SIGKILL, which the kernel sends when memory runs out")
    usage = by_task["usage"]
    assert type(usage.error) is VtpError and usage.error.code == "folder-is-file"
    assert str(usage.error).startswith(f"{tmp_path / 'file'} cannot be a folder")
    assert "VtpError: [folder-is-file]" in usage.logs[1].read_text()
    assert [by_task[name].error.code for name in ("bug", "gone", "killed")] == [
        "task-crashed",
        "task-lost",
        "task-lost",
    ]
    assert told[-1] == (5, 5, "0 running, 0 waiting, 4 failed")


def test_without_tasks_nothing_runs(tmp_path):
    assert run_local([], tmp_path / "jobs") == ([], [])


@pytest.mark.parametrize(
    ("tasks", "cores", "memory", "expected"),
    [(10, 4, 100, 4), (3, 4, 100, 3), (10, 4, 25, 2), (10, 4, 5, 1), (10, 4, None, 4)],
)
def test_cores_and_memory_limit_the_workers(monkeypatch, tasks, cores, memory, expected):
    monkeypatch.setattr(processes, "num_processors", lambda: cores)
    monkeypatch.setattr(processes, "available_memory", lambda: memory)
    assert local.workers(tasks, 10) == expected


def test_available_memory_respects_the_containers_limit(monkeypatch, tmp_path):
    free = processes.available_memory()
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert processes.available_memory() == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert processes.available_memory() == 4000


SLEEPERS = """
import signal, time
from pathlib import Path
from pipeline import processes
from pipeline.cluster import local
from pipeline.cluster.array import Task
tasks = [Task(f"task {k}", time.sleep, 600) for k in range(2)]
processes.num_processors = lambda: 2
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
local.run(tasks, Path("jobs"), task_bytes=1, tick=lambda *_: None)
"""


def workers_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_the_parent_ends(tmp_path, blow):
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("jobs/*.err"))) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    workers = workers_of(parent.pid)
    assert len(workers) == 2 and all(map(alive, workers))
    parent.send_signal(blow)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode != 0 and (blow == signal.SIGKILL or "KeyboardInterrupt" in err)
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker is still running"
        time.sleep(0.1)


@pytest.mark.slow
def test_seeds_in_local_processes_are_merged_and_validated_again(tmp_path):
    cfg = SimTrainConfig(out=tmp_path / "run", seeds="2,5", **SMALL)
    told = []
    summary = launch.train(cfg, progress=lambda *status: told.append(status))
    assert summary["seeds"] == [2, 5]
    assert [json.loads((cfg.out / f"seed-{k}" / "summary.json").read_text())["seeds"] for k in (2, 5)] == [[2], [5]]
    assert {total for _, total, _ in told} == {48}
    stamp = (cfg.out / "seed-2" / "best.pt").stat().st_mtime_ns
    assert launch.train(cfg)["profit_mean"] == summary["profit_mean"]
    assert (cfg.out / "seed-2" / "best.pt").stat().st_mtime_ns == stamp

    again = launch.evaluate(EvaluateConfig(run=cfg.out, episodes=7, steps=5))
    assert again["episodes"] == 14 and again["profit_mean"] != summary["profit_mean"]
    assert json.loads((cfg.out / "summary.json").read_text()) == again
    with raises("run-has-seeds"):
        seeds.one_run(cfg.out)


@pytest.mark.slow
def test_local_shards_equal_one_process(tmp_path):
    (tmp_path / "videos").mkdir()
    for k in range(3):
        write_video(tmp_path / "videos" / f"{k}.mp4", 20 * (k + 1), first=k)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"\0" * 64)
    settings = {"source": str(tmp_path / "videos"), "weights": "random:0", "precision": "fp32", "clip_len": 4}
    told = []
    result = launch.extract(
        ExtractConfig(out=tmp_path / "a" / "e.h5", shards=2, launcher="local", **settings),
        progress=lambda *status: told.append(status),
    )
    whole = extract_alone(ExtractConfig(out=tmp_path / "b.h5", **settings))
    assert result.num_videos == 3 and [row["video_id"] for row in result.failures] == ["broken.mp4"]
    files = [dataset.read_embeddings(one.path) for one in (result, whole)]
    assert files[0].attrs["content_sha256"] == files[1].attrs["content_sha256"]
    assert {total for _, total, _ in told} == {4}


@pytest.mark.slow
def test_local_shards_of_novelty_equal_one_process(tmp_path, encoder, monkeypatch):
    (tmp_path / "videos").mkdir()
    for k in range(2):
        write_video(tmp_path / "videos" / f"{k}.mp4", 520, first=k, size=(48, 64))
    embeddings = tmp_path / "e.h5"
    extract_alone(ExtractConfig(source=str(tmp_path / "videos"), out=embeddings, clip_len=2, clip_stride=2))
    settings = {
        "embeddings": embeddings, "model": "corpus", "updates": 2, "resolution": 32, "batch_size": 64, "device": "cpu",
    }  # fmt: skip
    told = []
    monkeypatch.setattr(launch, "PROGRESS_S", 0.1)
    result = launch.novelty(
        NoveltyConfig(out=tmp_path / "a" / "n.h5", shards=2, launcher="local", **settings),
        progress=lambda *status: told.append(status[:2]),
    )
    whole = novelty.run(NoveltyConfig(out=tmp_path / "b" / "n.h5", **settings))
    assert result["num_scored"] == whole["num_scored"] == 520 and result["model"] == "corpus"
    assert Path(result["path"]).read_bytes() == Path(whole["path"]).read_bytes()
    assert {total for _, total in told} == {2} and told == sorted(told)
    shutil.rmtree(tmp_path / "videos")
    again = launch.novelty(NoveltyConfig(out=tmp_path / "a" / "n.h5", shards=2, launcher="local", **settings))
    assert again == result | {"wall_s": again["wall_s"]}
    for part in (tmp_path / "a" / "n.parts").glob("*.h5"):
        part.unlink()
    with pytest.raises(VtpError, match="2 of 2 tasks failed") as caught:
        launch.novelty(NoveltyConfig(out=tmp_path / "a" / "n.h5", shards=2, launcher="local", **settings))
    assert caught.value.code == "video-unreadable" and "shard-0-of-2.err" in str(caught.value)


def test_other_arrays_do_not_import_the_models_of_novelty():
    code = "import sys, pipeline.cluster.launch; print('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_each_gpu_has_one_task_at_a_time(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tasks = [Task(f"task {number}", light_tasks.note_device, tmp_path) for number in range(5)]
    assert local.run(tasks, tmp_path / "jobs", task_bytes=1, tick=lambda *_: None, devices=["0", "GPU-3"]) == []
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(rows) == 5 and {device for device, _, _ in rows} == {"0", "GPU-3"}
    for device in ("0", "GPU-3"):
        spans = sorted([began, ended] for seen, began, ended in rows if seen == device)
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_only_gpus_visible_to_torch_are_accepted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.visible_gpus("all") == ["0", "1", "2"]
    with raises("gpu-missing") as caught:
        launch.visible_gpus("1,3")
    assert "GPUs 0 to 2 here, not 3" in str(caught.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    assert launch.visible_gpus("2,1") == ["6", "GPU-5"]


def test_a_task_with_a_gpu_of_its_own_never_falls_back_to_its_processor(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "_run", lambda tasks, *_, devices, **__: started.append((tasks(), devices)))
    write_video(tmp_path / "a.mp4", 16)
    for devices in ("all", None):
        launcher = "local" if devices is None else None
        launch.extract(
            ExtractConfig(source=str(tmp_path), out=tmp_path / "e.h5", devices=devices, launcher=launcher, shards=2)
        )
    (with_gpus, gpus), (without, none) = started
    assert gpus == ["0", "1"] and [(task.cfg.shard, task.cfg.device) for task in with_gpus] == [
        (0, "cuda"), (1, "cuda"),
    ]  # fmt: skip
    assert none == [] and {task.cfg.device for task in without} == {"auto"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize("devices", ["all", "0,1"])
def test_without_a_gpu_devices_are_refused_before_any_work(vtp, tmp_path, devices, encoder):
    write_video(tmp_path / "a.mp4", 20)
    code, _, err = vtp("extract", "a.mp4", "--out", "e.h5", "--devices", devices)
    assert code == 2 and f"--devices {devices}: torch sees no GPU here; drop it" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    extract_alone(ExtractConfig(source="a.mp4", out=Path("e.h5")))
    before = sorted(tmp_path.iterdir())
    code, _, err = vtp("novelty", "--embeddings", "e.h5", "--devices", devices)
    assert code == 2 and f"--devices {devices}: torch sees no GPU here; drop it" in err
    assert sorted(tmp_path.iterdir()) == before


# Submissions to a scheduler


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("4:00:00", 240), ("0:00:01", 1), ("1-12:00:00", 2160), ("2-00:30:00", 2910)]
)
def test_time_limits_have_slurms_formats(text, minutes):
    assert slurm_minutes(text) == minutes


@pytest.mark.parametrize("text", ["0", "", "4h", "1:00", "-1", "1-1", "00:00:00"])
def test_invalid_time_limits_are_refused(text):
    with pytest.raises(ValueError, match="must be a time limit such as 90"):
        slurm_minutes(text)


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """The scheduler's commands in the PATH, as shell scripts with this text."""

    def install(**commands):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in {"srun": "", "squeue": "", **commands}.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return install


OPTIONS = {"job_name": "vtp-e", "time_limit": "1:30:00", "partition": "gpu", "gres": "gpu:a100:2", "cpus": 3}


def submitted(folder, tasks=2, **options):
    names = [f"shard {k}" for k in range(tasks)]
    return slurm.submit([Task(name, math.sqrt, 4) for name in names], folder, settings={"a": 1}, **OPTIONS | options)


@pytest.mark.parametrize("name", ["jobs", "with space", "quote's", 'double "quotes"', "$HOME;x", "Ünïcode", "-dash"])
def test_the_script_requests_the_given_resources(scheduler, tmp_path, name):
    scheduler(sbatch="echo Submitted batch job 42")
    folder = tmp_path / name
    found = submitted(folder)
    assert (found.id, [job.job_id for job in found.jobs.values()]) == ("42", ["42_0", "42_1"])
    script = (folder / "42_submission.sh").read_text()
    flags = dict(
        shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=")[::2] for line in re.findall("#SBATCH.*", script)
    )
    assert flags.items() >= {
        "array": "0-1%2", "time": "90", "partition": "gpu", "gres": "gpu:a100:2", "cpus-per-task": "3",
        "job-name": "vtp-e", "requeue": "", "signal": "USR2@90",
    }.items()  # fmt: skip
    (command,) = (shlex.split(line) for line in script.splitlines() if line.startswith("srun"))
    assert command[command.index("--output") + 1] == str(folder / "%A_%a_%t_log.out")
    assert command[-1] == str(folder) and "--cpus-per-task=3" in command
    assert subprocess.run(["bash", "-n", folder / "42_submission.sh"]).returncode == 0
    assert json.loads((folder / "array.json").read_text())["tasks"] == ["shard 0", "shard 1"]


def test_unset_resources_are_left_to_the_scheduler(scheduler, tmp_path):
    scheduler(sbatch="echo Submitted batch job 42")
    assert [job.job_id for job in submitted(tmp_path, 1, partition=None, gres=None, cpus=None).jobs.values()] == ["42"]
    script = (tmp_path / "42_submission.sh").read_text()
    assert not re.search("partition|gres|cpus-per-task|array", script)


def test_a_percent_sign_in_the_folder_is_refused(scheduler, tmp_path):
    scheduler(sbatch="echo Submitted batch job 42")
    with raises("folder-unusable"):
        submitted(tmp_path / "100%")


def test_without_a_scheduler_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises("slurm-missing"):
        submitted(tmp_path / "jobs")


def test_squeue_returns_states_and_reasons(scheduler):
    scheduler(squeue="echo '7_0|RUNNING|None'; echo '7_1|PENDING|QOSMaxJobsPerUserLimit|x'")
    assert slurm.squeue() == {"7_0": ("RUNNING", "None"), "7_1": ("PENDING", "QOSMaxJobsPerUserLimit|x")}
    scheduler(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert slurm.squeue() is None


def test_a_running_array_is_found_again(scheduler, tmp_path):
    assert slurm.running(tmp_path, {"a": 1}) is None
    scheduler(sbatch="echo Submitted batch job 42", squeue="echo '42_1|RUNNING|None'; echo '42_0|COMPLETED|None'")
    submitted(tmp_path)
    assert slurm.running(tmp_path, {"a": 1}).id == "42"
    with raises("array-differs") as caught:
        slurm.running(tmp_path, {"a": 2})
    assert str(caught.value).endswith("scancel 42")
    scheduler(squeue="echo '42_1|FAILED|None'")
    assert slurm.running(tmp_path, {"a": 2}) is None
    scheduler(squeue="exit 1")
    with raises("slurm-silent", TryAgainError):
        slurm.running(tmp_path, {"a": 1})


def test_an_unreachable_scheduler_loses_no_task(scheduler, tmp_path, monkeypatch):
    """A failing squeue or a task between two states does not end a task; a task that stays missing has ended."""
    monkeypatch.setattr(slurm, "SQUEUE_S", 0.0)
    monkeypatch.setattr(slurm, "POLL_S", 0.01)
    monkeypatch.setattr(slurm, "GRACE_S", 0.2)
    count = tmp_path / "count"
    away = f"""
n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}
if [ $n -lt 5 ]; then exit 1; fi
if [ $n -lt 8 ]; then echo '42|PENDING|BeginTime'; exit; fi
if [ $n -lt 9 ]; then exit; fi
if [ $n -lt 12 ]; then echo '42|RUNNING|None'; exit; fi
echo '42|NODE_FAIL|None'"""
    scheduler(sbatch="echo Submitted batch job 42", squeue=away)
    told = []
    (failure,) = slurm.watch(submitted(tmp_path / "jobs", 1), tick=lambda *status: told.append(status[2]))
    assert type(failure.error) is TryAgainError
    assert (
        str(failure.error)
        == "job 42 ended without reporting a result: NODE_FAIL; run the same command again to continue"
    )
    seen = list(dict.fromkeys(told))
    assert seen == ["1 unknown", "1 pending (BeginTime)", "1 running", "1 node_fail", "1 failed"]


def test_no_wait_prints_the_command_that_merges(scheduler, tmp_path, monkeypatch, capsys):
    scheduler(sbatch="echo Submitted batch job 42", squeue="echo '42_0|PENDING|None'")
    out = tmp_path / "a run"
    command = ["vtp", "train", "--source", "sim", "--seeds", "0-1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--launcher", "slurm", "--no-wait"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out == f"when the array has finished: vtp merge '{out}'\n"
    monkeypatch.setattr(sys, "argv", ["vtp", "merge", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 75 and "seeds 0, 1 not finished" in capsys.readouterr().err


def test_novelty_as_an_array_is_submitted_once_and_merged_by_name(scheduler, vtp, tmp_path, encoder):
    write_video(tmp_path / "a.mp4", 100)
    extract_alone(ExtractConfig(source="a.mp4", out=tmp_path / "e.h5"))
    count = tmp_path / "count"
    scheduler(sbatch=f"echo >> {count}; echo Submitted batch job 42", squeue="echo '42_0|PENDING|None'")
    command = ["novelty", "--embeddings", "e.h5", "--shards", 2, "--launcher", "slurm", "--slurm-gres", "gpu:1"]
    for _ in range(2):
        code, out, err = vtp(*command, "--no-wait")
        assert (code, out) == (0, "when the array has finished: vtp merge novelty.h5\n"), err
    folder = tmp_path / "novelty.jobs"
    assert count.read_text() == "\n"
    script = (folder / "42_submission.sh").read_text()
    assert "--gres=gpu:1" in script and "--job-name=vtp-novelty" in script and "--array=0-1%2" in script
    record = json.loads((folder / "array.json").read_text())
    assert record["tasks"] == ["shard 0 of 2", "shard 1 of 2"] and record["settings"]["launcher"] is None
    code, _, err = vtp("merge", "novelty.h5")
    assert code == 2 and "novelty.h5 has no parts" in err
