"""A run's policy as one file, and what it does in the clips of an embeddings file.

The policy is the deterministic map that validation judged: observations → encoder → averaged actor → tanh of the mean,
as actions in [0, 1]. Each file carries a card in its format's own metadata: what the policy observes, which encoder and
projector that was made with, and the run that it comes from.

A policy's file may be anybody's, so this much of it is loaded:

- *safetensors* holds numbers and text; the network is vtp's own.
- *ONNX* is a graph of numerical operators, which ONNX Runtime computes. One that reads other files, calls functions or
  branches is refused.
- *TorchScript* is a program. `torch.jit.load` runs its `__setstate__`, and operators such as `torch.save` write files.
  So its code and its pickles are read as text first, and it is loaded only where they hold nothing but tensors and the
  arithmetic of a feed-forward network.

The first two carry a sha256 of all their bytes, the third is an archive with a checksum for each record: a damaged file
is refused before anything in it is run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import logging
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from pipeline import __version__, encoders, evaluate, store
from pipeline.config import ActConfig, PolicyExportConfig
from pipeline.envs import SimEnv
from pipeline.errors import CorruptError, VtpError
from pipeline.rundir import atomic_path
from pipeline.sac import ACTION_SIZE, Agent

SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx", "safetensors": ".safetensors"}
OBSERVATION_SIZES = {"embeddings": encoders.EMBEDDING_DIM, "sim": SimEnv.OBSERVATION_SIZE}
CARD = "vtp"  # its key in each format's metadata
UNSEALED = "-" * 64  # stands for the file's sha256 while that is computed
BLOCK_ROWS = 8192

# What is read of a TorchScript archive, and all that a feed-forward network's program calls and its pickles name.
MAX_UNPACKED_BYTES = 1 << 28
PROGRAM = re.compile(r"code/.+\.py|(data|constants)(\.pkl|/\d+)|version|byteorder")
OPERATIONS = {
    *(f"torch.{name}" for name in ("linear", "relu", "tanh", "layer_norm", "add", "sub", "mul", "div", "chunk")),
    "torch.slice", "getattr", "annotate",
}  # fmt: skip
PICKLED = {
    "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch DoubleStorage", "torch LongStorage",
    "collections OrderedDict", "torch.jit._pickle restore_type_tag",
}  # fmt: skip

Act = Callable[[np.ndarray], np.ndarray]  # observations [B, n] float32 → actions [B, 2] float32 in [0, 1]


class Encoding(BaseModel):
    """How a policy's embeddings were made."""

    backbone: str
    weights: str
    weights_sha256: str
    transform: str
    clip_len: int
    fps: float
    precision: str
    projector: str
    projector_sha256: str


# What embeddings must have in common with those that a policy was trained on, and how they are made so.
REMEDIES = {
    "backbone": "extract them with --backbone {trained}",
    "weights_sha256": "extract them with --weights {weights}, of that sha256",
    "transform": "extract them with the version of vtp that the policy was trained with",
    "clip_len": "extract them with --clip-len {trained}",
    "fps": "extract them with --fps {trained}",
    "projector_sha256": "extract them with --projector {embeddings}",
}


class Card(BaseModel):
    """What must be known to use a policy."""

    card_version: Literal[1]
    vtp_version: str
    source: Literal["embeddings", "sim"]
    observation_size: int
    actions: list[str]
    task: str
    scenario: str
    seed: int
    outcome_model: str
    encoding: Encoding | None  # None of a policy on the simulator's state
    provenance: dict[str, Any]
    sha256: str = UNSEALED  # of the file, where the format has no checksums of its own


class Policy(NamedTuple):
    card: Card
    act: Act


class Network(nn.Module):
    """Observations [B, n] → actions [B, 2] in [0, 1]: an agent's deterministic policy."""

    def __init__(self, agent: Agent):
        super().__init__()
        self.encoder, self.actor = agent.encoder, agent.average_actor.net

    def forward(self, observations: Tensor) -> Tensor:
        mean, _ = self.actor(self.encoder(observations)).chunk(2, dim=-1)
        return 0.5 * (torch.tanh(mean) + 1)


def export(cfg: PolicyExportConfig) -> Path:
    """Write the run's best policy in that format; returns the file."""
    suffix = SUFFIXES[cfg.to]
    path = cfg.out or cfg.run / f"policy{suffix}"
    if path.suffix != suffix:
        raise VtpError(f"--out {path} must end in {suffix}, by which vtp act knows a policy in {cfg.to}; rename it")
    agent, meta = evaluate.load_run(cfg.run)
    content = WRITERS[cfg.to](Network(agent).eval(), card_of(meta))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def act(cfg: ActConfig) -> pd.DataFrame:
    """What the policy does in each clip: video_id, clip (from 0 in its video), start_s, end_s, speed, care."""
    policy = load(cfg.policy)
    if policy.card.encoding is None:
        raise VtpError(
            f"{cfg.policy} observes the simulator's state, not embeddings; train one that does: "
            "vtp train --source embeddings"
        )
    data = store.read_embeddings(cfg.embeddings)
    check_encoding(policy.card, data, cfg)
    blocks = [policy.act(data.embeddings[start : start + BLOCK_ROWS]) for start in range(0, data.num_clips, BLOCK_ROWS)]
    actions = np.concatenate(blocks)
    if not (actions.shape == (data.num_clips, ACTION_SIZE) and ((actions >= 0) & (actions <= 1)).all()):
        raise CorruptError(f"{cfg.policy} gives something other than actions in [0, 1]; export it again")
    rows = np.arange(data.num_clips)
    video = evaluate.video_of(data, rows)
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "clip": rows - data.offset[video],
            "start_s": data.clips.start_s, "end_s": data.clips.end_s, "speed": actions[:, 0], "care": actions[:, 1],
        }
    )  # fmt: skip
    if cfg.out is not None:
        with atomic_path(cfg.out) as temporary:
            table.to_csv(temporary, index=False)
    return table


def load(path: Path) -> Policy:
    """The policy of a run directory or of an exported file; CorruptError where it is damaged or not to be trusted."""
    if path.is_dir():
        agent, meta = evaluate.load_run(path)
        return Policy(card_of(meta), _act_of(Network(agent)))
    if path.suffix not in READERS or not path.is_file():
        raise VtpError(
            f"{path} is neither a run directory nor a policy's file ({', '.join(READERS)}); "
            "make one with: vtp policy export RUN"
        )
    return READERS[path.suffix](path, path.read_bytes())


def card_of(meta: dict[str, Any]) -> Card:
    """The card of a checkpoint with that `meta`."""
    if meta["source"] not in OBSERVATION_SIZES:
        raise VtpError(
            f"a policy of --source {meta['source']} cannot be used alone; of {' or '.join(OBSERVATION_SIZES)} it can"
        )
    encoding = None
    if "encoding" in meta:
        parts = {name: None if part is None else np.asarray(part) for name, part in meta["projector"].items()}
        encoding = Encoding(**meta["encoding"], projector_sha256=_projector_sha256(**parts))
    return Card(
        card_version=1, vtp_version=__version__, source=meta["source"],
        observation_size=OBSERVATION_SIZES[meta["source"]], actions=["speed", "care"], task=meta["task"],
        scenario=meta["scenario"], seed=meta["seed"], outcome_model=meta["outcome_model"], encoding=encoding,
        provenance=meta["provenance"],
    )  # fmt: skip


def _projector_sha256(
    mean: np.ndarray, components: np.ndarray, scale: float | np.ndarray, norm: np.ndarray | None = None
) -> str:
    return encoders.Projector(mean, components, float(scale), "", norm).sha256


def check_encoding(card: Card, data: store.Embeddings, cfg: ActConfig) -> None:
    """VtpError where the embeddings come from another encoder or projector than the policy was trained with."""
    projector = _projector_sha256(
        data.projector_mean, data.projector_components, data.projector_scale, data.projector_norm
    )
    found, trained = data.attrs | {"projector_sha256": projector}, card.encoding.model_dump()
    for name, remedy in REMEDIES.items():
        if found.get(name) != trained[name]:
            shown = [
                str(value)[:12] if name.endswith("sha256") else value for value in (found.get(name), trained[name])
            ]
            embeddings = card.provenance.get("embeddings", "the embeddings that it was trained on")
            remedy = remedy.format(trained=trained[name], weights=trained["weights"], embeddings=embeddings)
            raise VtpError(
                f"{cfg.embeddings} has {name} {shown[0]}, but {cfg.policy} was trained with {shown[1]}; {remedy}"
            )


def _act_of(network: nn.Module) -> Act:
    @torch.no_grad()
    def act(observations: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(observations)).numpy()

    return act


# Formats: a writer returns the file's bytes, a reader is given them.


def _write_safetensors(network: Network, card: Card) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return _seal(safetensors.torch.save(tensors, {CARD: card.model_dump_json()}))


def _read_safetensors(path: Path, content: bytes) -> Policy:
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        card = _open_card(path, header["__metadata__"][CARD], content)
        network = Network(evaluate.build_agent(card.source)).eval()
        network.load_state_dict(safetensors.torch.load(content))
    except (ValueError, TypeError, LookupError, RuntimeError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from error
    return Policy(card, _act_of(network))


def _write_onnx(network: Network, card: Card) -> bytes:
    onnx, _ = _import("onnx"), _import("onnxscript")  # the second is what torch's exporter is built on
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no notes of each pass of its optimiser
    program = torch.onnx.export(
        network, (torch.zeros(2, card.observation_size),), dynamo=True, verbose=False,
        input_names=["observations"], output_names=["actions"], dynamic_shapes=({0: torch.export.Dim("clips")},),
    )  # fmt: skip
    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # stack traces with this machine's paths
    onnx.helper.set_model_props(model, {CARD: card.model_dump_json()})
    return _seal(model.SerializeToString())


def _read_onnx(path: Path, content: bytes) -> Policy:
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    decode_error = _import("google.protobuf.message").DecodeError
    try:
        model = onnx.load_model_from_string(content)
        card = _open_card(path, {prop.key: prop.value for prop in model.metadata_props}[CARD], content)
    except (decode_error, LookupError, ValueError) as error:
        raise _damaged(path, error) from error
    graph, kinds = model.graph, onnx.AttributeProto
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(attribute.t for attribute in attributes)]
    harmless = (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS, kinds.STRING, kinds.TENSOR)
    if (
        model.functions
        or graph.sparse_initializer
        or any(attribute.type not in harmless for attribute in attributes)
        or any(node.domain not in ("", "ai.onnx") for node in graph.node)
        or any(tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
    ):
        raise _untrusted(path, "it reads other files, calls functions or branches")
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        session.run(["actions"], {"observations": np.zeros((1, card.observation_size), np.float32)})
    except Exception as error:  # the runtime's errors have no base of their own
        reason = str(error).splitlines()[0]
        raise CorruptError(
            f"{path} does not run in ONNX Runtime {runtime.__version__} ({reason}); export the policy again"
        ) from error
    return Policy(card, lambda observations: session.run(["actions"], {"observations": observations})[0])


def _write_torchscript(network: Network, card: Card) -> bytes:
    buffer = io.BytesIO()
    with _torchscript_is_wanted():
        traced = torch.jit.trace(network, torch.zeros(2, card.observation_size))
        torch.jit.save(traced, buffer, _extra_files={CARD: card.model_dump_json()})
    return buffer.getvalue()


def _read_torchscript(path: Path, content: bytes) -> Policy:
    """What torch is given is a new archive of the records that were checked: two readers of one may disagree."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise _untrusted(path, f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        if f"extra/{CARD}" not in records:
            raise VtpError(f"{path} is no exported policy; of a checkpoint name the run directory, {path.parent}")
        card = _open_card(path, records[f"extra/{CARD}"].decode())
        checked = io.BytesIO()
        with zipfile.ZipFile(checked, "w") as archive:
            for name, record in records.items():
                if PROGRAM.fullmatch(name):
                    _check_record(path, name, record)
                    archive.writestr(f"policy/{name}", record)
        with _torchscript_is_wanted():
            return Policy(card, _act_of(torch.jit.load(io.BytesIO(checked.getvalue()), map_location="cpu")))
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        SyntaxError,
        ValueError,
        RuntimeError,
    ) as error:
        raise _damaged(path, error) from error


def _check_record(path: Path, name: str, record: bytes) -> None:
    """CorruptError where code is more than a feed-forward network's, or a pickle more than tensors."""
    if name.endswith(".py"):
        text = record.decode("ascii")
        if set("#\\\r\f") & set(text):
            raise _untrusted(path, "its code could be read in two ways")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "forward":
                raise _untrusted(path, f"its code defines {node.name}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called not in OPERATIONS and not called.endswith(".forward"):
                    raise _untrusted(path, f"its code calls {called}")
    elif name.endswith(".pkl"):
        for opcode, argument, _ in pickletools.genops(record):
            is_own = str(argument).startswith("__torch__.") and ".classes." not in argument  # a class of the code
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ") or (
                opcode.name == "GLOBAL" and not is_own and argument not in PICKLED
            ):
                raise _untrusted(path, f"its data names {argument}")


@contextmanager
def _torchscript_is_wanted() -> Iterator[None]:
    """Without the advice to use another format: this one was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


def _seal(content: bytes) -> bytes:
    """The file with its sha256, taken while UNSEALED stands in the place of it."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def _open_card(path: Path, text: str, sealed: bytes | None = None) -> Card:
    """The card of a file, whose bytes must agree with the card's sha256 where they are `sealed`."""
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise CorruptError(f"{path} has no card that this vtp reads; export the policy again") from error
    if sealed is not None:
        unsealed = sealed.replace(card.sha256.encode(), UNSEALED.encode(), 1)
        if hashlib.sha256(unsealed).hexdigest() != card.sha256:
            raise CorruptError(f"{path} does not match its own sha256: it is damaged; export the policy again")
    return card


def _damaged(path: Path, error: Exception) -> CorruptError:
    return CorruptError(f"{path} is damaged ({type(error).__name__}); export the policy again")


def _untrusted(path: Path, reason: str) -> CorruptError:
    return CorruptError(f"{path} is not to be trusted, for {reason}; it was not run; export the policy again")


def _import(name: str) -> ModuleType:
    """A library of the extra `export`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VtpError(f"{name} is missing; for ONNX, pip install onnx onnxscript onnxruntime") from error


WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx, "safetensors": _write_safetensors}
READERS = {".pt": _read_torchscript, ".onnx": _read_onnx, ".safetensors": _read_safetensors}
