"""Worker processes: how many there may be, and that they end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that new processes may take before something is killed, the container's limit included; None if unknown."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # there is no limit, which the file calls "max"
        return available
    return min(available, max(limit - used, 0))


def end_with_parent() -> None:
    """In a worker of multiprocessing: end when the parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process is no worker"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def no_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block; processes started in it never see one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_held() -> Iterator[threading.Event]:
    """Within the block, Ctrl-C and SIGTERM only set the event, so that the work can stop where it is whole.

    Elsewhere than in the main thread, which alone may say so, they are handled as ever, and so is a signal that has a
    handler already: under submitit SIGTERM comes before a requeue, and the task must not end by itself.
    """
    held = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler in usual]
    for number in ours:
        signal.signal(number, lambda *_: held.set())
    try:
        yield held
    finally:
        for number in ours:
            signal.signal(number, before[number])
