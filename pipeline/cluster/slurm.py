"""An array of Slurm jobs, submitted through submitit.

A task that is preempted, requeued or out of time starts again with the same settings, and stages resume from their
files. If a task ended before Slurm handled its request to be requeued, it is requeued from here. The array outlives the
process that submitted it, and a later process can wait for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, pickle_load

from pipeline.cluster.array import Failure, Task, failed, lost
from pipeline.config import slurm_minutes
from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.files import make_folder, write_json
from pipeline.processes import SAFE_PATH
from pipeline.text_files import read_text

logger = logging.getLogger(__name__)

MAX_TIMEOUTS = 20  # requeues per task after reaching its time limit
POLL_S = 1.0
SQUEUE_S = 5.0
GRACE_S = 30.0  # after the end of a task according to Slurm, for its files to arrive or Slurm to requeue it
PREEMPTED = "Exiting gracefully after preemption"  # submitit's line in the log of a task
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip

Tick = Callable[[int, int, str], None]


class _Requeueable(submitit.helpers.Checkpointable):
    """A task that restarts with its job."""

    def __call__(self, task: Task) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        task()


class SlurmArray:
    """A submitted array: its id and the jobs by task name."""

    def __init__(self, folder: Path, array_id: str, names: Sequence[str]):
        self.id = array_id
        ids = [f"{array_id}_{index}" for index in range(len(names))] if len(names) > 1 else [array_id]
        self.jobs: dict[str, submitit.SlurmJob[None]] = {
            name: submitit.SlurmJob(folder=folder, job_id=job_id) for name, job_id in zip(names, ids, strict=True)
        }


def submit(tasks: Sequence[Task], folder: Path, *, settings: dict[str, Any], **options: Any) -> SlurmArray:
    """Submit the tasks; options are those of `parameters`. The folder keeps scripts, logs and the array's record."""
    if "%" in str(folder.absolute()):
        raise VtpError(
            f"{folder.absolute()} contains %, which Slurm replaces by a job number; choose another --out",
            code="folder-unusable",
        )
    make_folder(folder)
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
    except RuntimeError as error:
        raise VtpError(
            "srun is not installed here; run this on a Slurm cluster, or use --launcher local", code="slurm-missing"
        ) from error
    executor.update_parameters(**parameters(num_tasks=len(tasks), **options))
    try:
        jobs = executor.map_array(_Requeueable(), tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise VtpError(
            f"sbatch refused the array: {' '.join(str(error).split())}; correct the --slurm settings",
            code="slurm-refused",
        ) from error
    array_id = jobs[0].job_id.split("_")[0]
    names = [task.name for task in tasks]
    write_json(folder / "array.json", {"id": array_id, "tasks": names, "settings": settings})
    return SlurmArray(folder, array_id, names)


def parameters(
    *, job_name: str, num_tasks: int, time_limit: str, partition: str | None, gres: str | None, cpus: int | None
) -> dict[str, Any]:
    """submitit's parameters for an array; sbatch's SBATCH_* variables can set the others."""
    return {
        "job_name": job_name,
        "time": slurm_minutes(time_limit),
        "partition": partition,
        "gres": gres,
        "cpus_per_task": cpus,
        "array_parallelism": num_tasks,
        "setup": [
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_ON_NODE:-1}}",
            f"export {SAFE_PATH}=1",
        ],
        "srun_args": [] if cpus is None else [f"--cpus-per-task={cpus}"],  # since Slurm 22.05 srun does not inherit it
        "additional_parameters": {"requeue": True},
    }


def running(folder: Path, settings: dict[str, Any]) -> SlurmArray | None:
    """The array submitted from this folder, unless it has ended; VtpError if its settings differ."""
    path = folder / "array.json"
    try:
        earlier = json.loads(read_text(path))
        array = SlurmArray(folder, earlier["id"], earlier["tasks"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{path} is damaged ({error}), so it is unknown whether an array runs; delete it if squeue shows none",
            code="array-damaged",
        ) from error
    states = squeue()
    if states is None:
        raise TryAgainError(
            f"Slurm does not answer, so it is unknown whether array {array.id} runs; try again later",
            code="slurm-silent",
        )
    if not any(at_work(states, job) for job in array.jobs.values()):
        return None
    if earlier["settings"] != settings:
        raise VtpError(
            f"Slurm array {array.id} works on {folder.parent} with other settings; wait for it, or end it with: "
            f"scancel {array.id}",
            code="array-differs",
        )
    return array


def watch(array: SlurmArray, *, tick: Tick) -> list[Failure]:
    """Wait for the array's tasks and return the failures; tick is called every second with their status."""
    failures: list[Failure] = []
    waiting = dict(array.jobs)
    ended_at: dict[str, float] = {}
    folder = next(iter(array.jobs.values())).paths.folder
    states, asked_at = None, -SQUEUE_S
    while True:
        now = time.monotonic()
        if now - asked_at >= SQUEUE_S:
            states, asked_at = squeue(), now
            look_again(folder)
        for name, job in list(waiting.items()):
            if job.paths.result_pickle.exists():
                del waiting[name]
                outcome, trace = pickle_load(job.paths.result_pickle)
                if outcome == "error":
                    failures.append(_failed(name, trace, job))
            elif states is None or at_work(states, job):
                ended_at.pop(name, None)
            elif now - ended_at.setdefault(name, now) < GRACE_S:
                pass  # Slurm may still requeue the task at its own request, and it must not be requeued twice
            elif _was_preempted(job) and _requeue(job):
                del ended_at[name]
                asked_at = -SQUEUE_S
            else:
                del waiting[name]
                state, _ = states.get(job.job_id, ("unknown to Slurm", ""))
                failures.append(lost(name, f"job {job.job_id} ended without reporting a result: {state}", _logs(job)))
        num_jobs = len(array.jobs)
        tick(num_jobs - len(waiting), num_jobs, _going_on(states or {}, waiting.values(), len(failures)))
        if not waiting:
            return failures
        time.sleep(POLL_S)


def _was_preempted(job: submitit.SlurmJob) -> bool:
    """Whether the last attempt at the task ended in submitit's response to a signal: requeue and exit."""
    try:
        log = job.paths.stdout.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return log.rfind(PREEMPTED) > log.rfind("Starting with")


def _requeue(job: submitit.SlurmJob) -> bool:
    return subprocess.run(["scontrol", "requeue", job.job_id], capture_output=True, check=False).returncode == 0


def look_again(folder: Path) -> None:
    """Make a network file system drop its cached list of the folder, which can be outdated for a minute."""
    with contextlib.suppress(OSError):
        folder.chmod(folder.stat().st_mode)


def squeue() -> dict[str, tuple[str, str]] | None:
    """State and reason of each job and array task of this user, including those ended recently; None without an answer.

    Not sacct, which many clusters lack.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("squeue: %s", (getattr(error, "stderr", None) or str(error)).strip())
        return None
    rows = (line.split("|", 2) for line in lines)
    return {job_id: (state, reason) for job_id, state, reason in rows}


def at_work(states: dict[str, tuple[str, str]], job: submitit.SlurmJob) -> bool:
    """Whether the job is running or will run, according to these states."""
    return job.job_id in states and states[job.job_id][0] not in ENDED


def _going_on(states: dict[str, tuple[str, str]], jobs: Iterable[submitit.SlurmJob], num_failed: int) -> str:
    """A status text such as: 3 running, 4 pending (Priority)"""
    counts: Counter[str] = Counter()
    for job in jobs:
        state, reason = states.get(job.job_id, ("UNKNOWN", ""))
        counts[f"{state.lower()} ({reason})" if state == "PENDING" else state.lower()] += 1
    if num_failed:
        counts["failed"] = num_failed
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _failed(name: str, trace: str, job: submitit.SlurmJob) -> Failure:
    if "UncompletedJobError: Job not requeued" in trace:
        reason = trace.strip().rpartition(": ")[2].rstrip(".")
        return Failure(
            name, TryAgainError(f"{reason}; run the same command again to continue", code="task-lost"), _logs(job)
        )
    return failed(name, trace, _logs(job))


def _logs(job: submitit.SlurmJob) -> tuple[Path, Path]:
    return job.paths.stdout, job.paths.stderr
