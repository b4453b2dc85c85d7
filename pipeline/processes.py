"""Processes: how many workers may run, ending them with their parent, and telling whether a process has ended."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
SAFE_PATH = "PYTHONSAFEPATH"  # keeps the working folder out of sys.path

_most_processors: int | None = None


def num_processors() -> int:
    """Number of processors for this process: within its affinity, its cgroup's CPU quota and `limit_processors`."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for limit in (cpu_quota(), _most_processors) if limit is not None]
    return max(1, int(min([available, *limits])))


def limit_processors(most: int) -> None:
    """Let `num_processors` return no more than `most`, in a process that shares the machine with others."""
    global _most_processors
    _most_processors = most


def cpu_quota() -> float | None:
    """Processors' time per time that this process's cgroups may use, such as a container's limit; None: no limit."""
    quotas = []
    for folder in _own_cgroups("cpu"):
        try:
            if (limit := folder / "cpu.max").exists():
                quota, period = limit.read_text().split()
            else:  # version 1
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):  # this one has no limit
            continue
    return min(quotas, default=None)


def _own_cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those around it, whose limits all apply.

    A container may show the path of a cgroup that only its host has; its own is then the root.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):  # version 2 names none
            root = CGROUP / controller if controllers else CGROUP
            yield root
            inside = root
            for name in Path(path).parts[1:]:
                inside = inside / name
                yield inside


def available_memory() -> int | None:
    """Bytes that new processes can use within the limits of machine and container; None if unknown."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for folder in _own_cgroups("memory"):
        try:
            limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        except (OSError, ValueError):  # no limit ("max" in the file)
            continue
        available = min(available, max(limit - used + _file_cache(folder), 0))
    return available


def _file_cache(cgroup: Path) -> int:
    """Bytes that the cgroup uses for files that were read, which the kernel gives up when memory is needed."""
    try:
        rows = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return int(rows["active_file"]) + int(rows["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0


class ProcessIdentity(NamedTuple):
    """One process of one machine, distinct from later processes with the same number.

    machine: a boot and a namespace of process numbers, such as a container's; empty if the system shows neither.
    started: clock ticks since the boot.
    """

    machine: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity | None:
        """The reverse of `str`; None if the text is something else."""
        machine, _, rest = text.partition("-")
        pid, _, started = rest.partition("-")
        return cls(machine, int(pid), int(started)) if pid.isdecimal() and started.isdecimal() else None

    @property
    def is_of_this_machine(self) -> bool:
        return self.machine != "" and self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether the process has certainly ended; only its own machine can tell."""
        if not self.is_of_this_machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        state, started = _state(self.pid)
        return state in "ZX" or started != self.started if state else False


def this_process() -> ProcessIdentity:
    return ProcessIdentity(_machine(), os.getpid(), _state(os.getpid())[1])


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, int]:
    """A process's state, such as Z for a zombie, and its start in ticks; ("", 0) if not visible."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # after its name (any text)
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def new_interpreter(code: str) -> list[str]:
    """The command of an interpreter that runs the code, with this process's module path and none of its modules.

    Its path is without the working folder, whose files may have the names of modules.
    """
    ours_in, folders = str(Path(__file__).parent.parent), [folder for folder in sys.path if folder]
    if ours_in not in folders:  # the package was imported from the working folder
        folders.insert(0, ours_in)
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {folders!r}; {code}"]


def end_with_parent() -> None:
    """In a worker of multiprocessing: end when the parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process is no worker"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started in the block never receive Ctrl-C (their parent handles it), import nothing from the working
    folder (Python 3.10 still looks there for its own modules), and do not run the user's script again, as they would
    by default in multiprocessing: the script needs no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    set_by_user = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if set_by_user is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = set_by_user
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_held() -> Iterator[threading.Event]:
    """Within the block, Ctrl-C and SIGTERM only set the event, so that the work can stop in a complete state.

    Only the main thread can install handlers; elsewhere signals keep their behaviour. So does a signal that has a
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
