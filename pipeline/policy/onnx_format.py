"""A policy in ONNX: a graph of numerical operators, run by ONNX Runtime.

A graph that reads other files, calls functions or branches is refused.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from pipeline.encoders.weights import first_line
from pipeline.errors import CorruptError, VtpError
from pipeline.policy.card import CARD, Card, Network, damaged, open_card, seal, untrusted
from pipeline.policy.loaded_policy import Policy


def write(network: Network, card: Card) -> bytes:
    onnx, _ = _import("onnx"), _import("onnxscript")  # torch's exporter needs the second
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every optimiser pass
    program = torch.onnx.export(
        network, (torch.zeros(2, card.observation_size),), dynamo=True, verbose=False,
        input_names=["observations"], output_names=["actions"], dynamic_shapes=({0: torch.export.Dim("clips")},),
    )  # fmt: skip
    assert program is not None  # never None with dynamo
    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # stack traces with this machine's paths
    onnx.helper.set_model_props(model, {CARD: card.model_dump_json()})
    return seal(model.SerializeToString())


def read(path: Path, content: bytes) -> Policy:
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    decode_error = _import("google.protobuf.message").DecodeError
    try:
        model = onnx.load_model_from_string(content)
        card = open_card(path, {prop.key: prop.value for prop in model.metadata_props}[CARD], content)
    except (decode_error, LookupError, ValueError) as error:
        raise damaged(path, error) from error
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
        raise untrusted(path, "it reads other files, calls functions or branches")
    refusals: tuple[type[Exception], ...] = (ValueError, *_runtime_errors())
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        session.run(["actions"], {"observations": np.zeros((1, card.observation_size), np.float32)})
    except refusals as error:
        reason = first_line(error)
        raise CorruptError(
            f"{path} does not run in ONNX Runtime {runtime.__version__} ({reason}); export the policy again",
            code="policy-corrupt",
        ) from error
    return Policy(card, lambda observations: session.run(["actions"], {"observations": observations})[0])


def _runtime_errors() -> list[type[Exception]]:
    """The exceptions of ONNX Runtime, one class per status code, which have no common base class."""
    named = vars(_import("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    return [kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception)]


def _import(name: str) -> ModuleType:
    """Import a library of the extra `export`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VtpError(
            f"{name} is missing; for ONNX, pip install onnx onnxscript onnxruntime", code="library-missing"
        ) from error
