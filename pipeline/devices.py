"""Where stages compute: on the processor, or on one GPU."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import VtpError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
# options of glibc's mallopt
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
LARGEST_THRESHOLD = 32 << 20  # that glibc takes


def choose(device: str = "auto") -> torch.device:
    """The device of that name, cpu, cuda or cuda:N; auto is the first GPU that torch sees, else cpu.

    On a GPU convolutions then use one algorithm per shape, and fp32 is fp32, not TF32; on the processor this process
    keeps the memory that it frees. VtpError if torch sees no such GPU.
    """
    import torch  # takes a second

    count = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and count == 0):
        keep_freed_memory()
        return torch.device("cpu")
    chosen = torch.device("cuda", 0) if device in ("auto", "cuda") else torch.device(device)
    if count == 0:
        raise VtpError(f"--device {device}: torch sees no GPU here; use --device cpu", code="gpu-missing")
    if chosen.index >= count:
        raise VtpError(
            f"--device {device}: torch sees GPUs 0 to {count - 1} here; choose from those, or --device cpu",
            code="gpu-missing",
        )
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.set_device(chosen)
    logger.info("computing on %s, %s", chosen, name_of(chosen))
    return chosen


def name_of(device: torch.device) -> str:
    """As outputs record the device: cpu, or the GPU's name, such as NVIDIA H200."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Within the block, a VtpError with this remedy if the GPU's memory does not suffice."""
    import torch  # takes a second

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VtpError(f"the GPU has too little memory for this; {remedy}", code="gpu-memory") from error


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation, unless the user has set how it allocates.

    By default it returns megabytes to the system and takes them again, and each page of 4 kB is zeroed and mapped anew:
    a quarter of the time of a SAC update with batches of 1,024, an eighth of that of R3D-18 in int8.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's only
    if is_set or mallopt is None:
        return
    for option, value in ((MMAP_THRESHOLD, LARGEST_THRESHOLD), (TRIM_THRESHOLD, 1 << 30), (ARENA_MAX, 1)):
        mallopt(option, value)
