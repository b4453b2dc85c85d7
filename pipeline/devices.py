"""Where stages compute: on the processor, or on one GPU."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.errors import VtpError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def choose(device: str = "auto") -> torch.device:
    """The device of that name, cpu, cuda or cuda:N; auto is the first GPU that torch sees, else cpu.

    On a GPU convolutions then use one algorithm per shape, and fp32 is fp32, not TF32. VtpError if torch sees no such
    GPU.
    """
    import torch  # takes a second

    count = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    chosen = torch.device("cuda", 0) if device in ("auto", "cuda") else torch.device(device)
    if count == 0:
        raise VtpError(f"--device {device}: torch sees no GPU here; use --device cpu", code="gpu-missing")
    if chosen.index >= count:
        raise VtpError(
            f"--device {device}: torch sees GPUs 0 to {count - 1} here; choose from those, or --device cpu",
            code="gpu-missing",
        )
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    torch.cuda.set_device(chosen)
    logger.info("computing on %s, %s", chosen, name_of(chosen))
    return chosen


def name_of(device: torch.device) -> str:
    """As outputs record the device: cpu, or the GPU's name, such as NVIDIA H200."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
