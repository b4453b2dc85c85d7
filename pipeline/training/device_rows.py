"""Rows of an array, looked up as tensors on a device."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

BLOCK = 1 << 12  # rows
SHARE = 0.5  # of a device's free memory that an array may take


class DeviceRows:
    """An array [N, ...] in a device's memory if it takes at most half of what is free there, else on the host."""

    def __init__(self, name: str, array: np.ndarray, device: torch.device):
        self._array, self._device = array, device
        self._table: Tensor | None = None
        if device.type == "cpu":
            return
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        if array.nbytes <= SHARE * free:
            dtype = torch.from_numpy(np.array(array[:0])).dtype
            self._table = torch.empty(array.shape, dtype=dtype, device=device)
            for start in range(0, len(array), BLOCK):  # it may be mapped from the disk and exceed the host's memory
                self._table[start : start + BLOCK] = torch.from_numpy(np.array(array[start : start + BLOCK])).to(device)
        else:
            logger.warning(
                "%s take %.1f GB, more than half of the free %.1f GB of %s: they stay on the host and are uploaded in "
                "batches", name, array.nbytes / 1e9, free / 1e9, device,
            )  # fmt: skip

    @property
    def is_on_device(self) -> bool:
        """Whether looking up waits for nothing on the host."""
        return self._table is not None

    def look_up(self, rows: np.ndarray | Tensor) -> Tensor:
        """Rows [B] → [B, ...] on the device."""
        if self._table is not None:
            return self._table[torch.as_tensor(rows, device=self._device)]
        found = torch.from_numpy(np.asarray(self._array[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]))
        return found if self._device.type == "cpu" else found.pin_memory().to(self._device, non_blocking=True)
