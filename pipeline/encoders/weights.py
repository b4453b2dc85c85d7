"""Download weights, read them from untrusted files, and hash them."""

from __future__ import annotations

import hashlib
import pickle
import struct
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import CorruptError, VtpError

PROBE_S = 10.0
UNREADABLE = (  # raised by torch for damaged files
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    AssertionError, struct.error,
)  # fmt: skip


def probe(url: str) -> None:
    """Raise OSError unless the server answers soon.

    Runs in a thread, because name look-ups ignore the socket timeout and each of a host's addresses has its own.
    """
    result: list[OSError | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_S):
                result.append(None)
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    if not result:
        raise TimeoutError(f"no answer from the server within {PROBE_S:g} s")
    if result[0] is not None:
        raise result[0]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_state(path: Path, ways_out: str) -> Mapping[str, Tensor]:
    """Load the state dict of a file, tensors and plain values only; CorruptError if it is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CorruptError(
            f"weights {path} cannot be loaded safely ({first_line(error)}); {ways_out}", code="weights-damaged"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise VtpError(f"weights {path} is not a state dict of tensors; {ways_out}", code="weights-wrong")
    return state


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict's names and values; the same for random weights and for their file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
