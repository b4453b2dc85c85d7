"""A policy in TorchScript: a program.

`torch.jit.load` runs a program's `__setstate__`, and operators such as `torch.save` write files. So its code and its
pickles are read as text first, and it is loaded only where they hold nothing but tensors and the arithmetic of a
feed-forward network. Its archive has a checksum for each record.
"""

from __future__ import annotations

import ast
import io
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.errors import VtpError
from pipeline.policy.card import CARD, Card, Network, Policy, act_of, damaged, open_card, untrusted

# What is read of a TorchScript archive, and all that a feed-forward network's program calls and its pickles name.
MAX_UNPACKED_BYTES = 1 << 28
PROGRAM = re.compile(r"code/.+\.py|(data|constants)(\.pkl|/\d+)|version|byteorder")
OPERATIONS = {
    *(f"torch.{name}" for name in ("linear", "relu", "tanh", "layer_norm", "add", "sub", "mul", "div", "chunk",
      "clamp")),
    "torch.slice", "getattr", "annotate",
}  # fmt: skip
PICKLED = {
    "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch DoubleStorage", "torch LongStorage",
    "collections OrderedDict", "torch.jit._pickle restore_type_tag",
}  # fmt: skip


def write(network: Network, card: Card) -> bytes:
    buffer = io.BytesIO()
    with _torchscript_is_wanted():
        traced = torch.jit.trace(network, torch.zeros(2, card.observation_size))
        torch.jit.save(traced, buffer, _extra_files={CARD: card.model_dump_json()})
    return buffer.getvalue()


def read(path: Path, content: bytes) -> Policy:
    """What torch is given is a new archive of the records that were checked: two readers of one may disagree."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise untrusted(path, f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        if f"extra/{CARD}" not in records:
            raise VtpError(
                f"{path} is no exported policy; of a checkpoint name the run directory, {path.parent}",
                code="policy-missing",
            )
        card = open_card(path, records[f"extra/{CARD}"].decode())
        checked = io.BytesIO()
        with zipfile.ZipFile(checked, "w") as archive:
            for name, record in records.items():
                if PROGRAM.fullmatch(name):
                    _check_record(path, name, record)
                    archive.writestr(f"policy/{name}", record)
        with _torchscript_is_wanted():
            return Policy(card, act_of(torch.jit.load(io.BytesIO(checked.getvalue()), map_location="cpu")))
    except (zipfile.BadZipFile, zlib.error, EOFError, SyntaxError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error


def _check_record(path: Path, name: str, record: bytes) -> None:
    """CorruptError where code is more than a feed-forward network's, or a pickle more than tensors."""
    if name.endswith(".py"):
        text = record.decode("ascii")
        if set("#\\\r\f") & set(text):
            raise untrusted(path, "its code could be read in two ways")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "forward":
                raise untrusted(path, f"its code defines {node.name}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called not in OPERATIONS and not called.endswith(".forward"):
                    raise untrusted(path, f"its code calls {called}")
    elif name.endswith(".pkl"):
        for opcode, argument, _ in pickletools.genops(record):
            named = str(argument)
            is_own = named.startswith("__torch__.") and ".classes." not in named  # a class of the code
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ") or (
                opcode.name == "GLOBAL" and not is_own and named not in PICKLED
            ):
                raise untrusted(path, f"its data names {named}")


@contextmanager
def _torchscript_is_wanted() -> Iterator[None]:
    """Without the advice to use another format: this one was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield
