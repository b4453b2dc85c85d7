"""An array in local processes, as many at a time as processors and memory allow."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline import processes
from pipeline.cluster.array import Failure, Task, failed, lost
from pipeline.errors import EXIT_TRY_AGAIN
from pipeline.files import make_folder

POLL_S = 0.5
STOP_S = 20.0  # for workers to save finished work

Tick = Callable[[int, int, str], None]


def run(
    tasks: Sequence[Task], folder: Path, *, task_bytes: int, tick: Tick, devices: Sequence[str] = ()
) -> list[Failure]:
    """Run the tasks and return the failures; logs go to the folder.

    task_bytes: memory needed per task. tick: called twice per second with the number of ended tasks, the number of all
    tasks and a status text. devices: GPUs, as CUDA_VISIBLE_DEVICES names them; each runs one task at a time.
    """
    if not tasks:
        return []
    make_folder(folder)
    num_workers = min(len(tasks), len(devices)) if devices else workers(len(tasks), task_bytes)
    num_threads = max(processes.num_processors() // num_workers, 1)
    waiting = list(tasks)
    running: list[_Worker] = []
    failures: list[Failure] = []
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                taken = {worker.device for worker in running}
                device = next((device for device in devices if device not in taken), None)
                running.append(_start(waiting.pop(0), folder, num_threads, device))
            wait([worker.process.sentinel for worker in running], POLL_S)
            for worker in [worker for worker in running if not worker.process.is_alive()]:
                running.remove(worker)
                if failure := worker.outcome():
                    failures.append(failure)
            num_ended = len(tasks) - len(waiting) - len(running)
            tick(num_ended, len(tasks), f"{len(running)} running, {len(waiting)} waiting, {len(failures)} failed")
    finally:
        _stop(running)
    return failures


def workers(num_tasks: int, task_bytes: int) -> int:
    """Number of tasks at a time."""
    memory = processes.available_memory()
    fitting = num_tasks if memory is None else max(memory // task_bytes, 1)
    return min(num_tasks, processes.num_processors(), fitting)


@dataclass(frozen=True)
class _Worker:
    task: Task
    process: BaseProcess
    connection: Connection
    logs: tuple[Path, Path]
    device: str | None

    def outcome(self) -> Failure | None:
        """The failure of a process that has ended; None if it succeeded."""
        try:
            trace = self.connection.recv() if self.connection.poll() else None
        except EOFError:
            trace = None
        self.process.join()
        self.connection.close()
        if trace is not None:
            return failed(self.task.name, trace, self.logs) if trace else None
        code = self.process.exitcode
        assert code is not None, "it was joined"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        if code == -signal.SIGKILL:
            how += ", which the kernel sends when memory runs out"
        return lost(self.task.name, how, self.logs)


def _start(task: Task, folder: Path, num_threads: int, device: str | None) -> _Worker:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    stem = task.name.replace(" ", "-")
    logs = (folder / f"{stem}.out", folder / f"{stem}.err")
    # spawn, because a fork can hang if torch or a progress bar has threads
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, logs, theirs, num_threads, device), name=task.name
    )
    ours_to_set = "OMP_NUM_THREADS" not in os.environ
    if ours_to_set:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read when the worker loads numpy and torch
    try:
        with processes.starting_workers():
            process.start()
    finally:
        if ours_to_set:
            del os.environ["OMP_NUM_THREADS"]
    theirs.close()
    return _Worker(task, process, ours, logs, device)


def _work(task: Task, logs: tuple[Path, Path], connection: Connection, num_processors: int, device: str | None) -> None:
    """In the worker: run the task and send the traceback of its exception, or "" on success."""
    processes.limit_processors(num_processors)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read at the first use of CUDA
    processes.end_with_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that finished work is saved
    for stream, path in zip((1, 2), logs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        task()
    except KeyboardInterrupt:
        sys.exit(EXIT_TRY_AGAIN)
    except Exception:
        connection.send(traceback.format_exc())
        raise  # to the log and the exit code
    connection.send("")


def _stop(workers: Sequence[_Worker]) -> None:
    """Stop the workers and wait until they have ended."""
    for worker in workers:
        worker.process.terminate()
    deadline_s = time.monotonic() + STOP_S
    for worker in workers:
        worker.process.join(max(deadline_s - time.monotonic(), 0))
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
