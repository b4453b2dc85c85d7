"""From a run to a policy's file, and from either to the policy."""

from __future__ import annotations

from pathlib import Path

from pipeline import runs
from pipeline.config import PolicyExportConfig
from pipeline.errors import VtpError
from pipeline.files import atomic_path
from pipeline.policy import onnx_format, safetensors_format, torchscript_format
from pipeline.policy.card import Network, Policy, act_of, card_of

FORMATS = {"torchscript": torchscript_format, "onnx": onnx_format, "safetensors": safetensors_format}
SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx", "safetensors": ".safetensors"}


def export(cfg: PolicyExportConfig) -> Path:
    """Write the run's best policy in that format; returns the file."""
    suffix = SUFFIXES[cfg.to]
    path = cfg.out or runs.RunDirectory(cfg.run).policy_file(suffix)
    if path.suffix != suffix:
        raise VtpError(
            f"--out {path} must end in {suffix}, by which vtp act knows a policy in {cfg.to}; rename it",
            code="output-suffix",
        )
    agent, metadata = runs.load_policy(cfg.run)
    content = FORMATS[cfg.to].write(Network(agent).eval(), card_of(metadata))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def load(path: Path) -> Policy:
    """The policy of a run directory or of an exported file; CorruptError where it is damaged or not to be trusted."""
    if path.is_dir():
        agent, metadata = runs.load_policy(path)
        return Policy(card_of(metadata), act_of(Network(agent)))
    known = {suffix: FORMATS[name] for name, suffix in SUFFIXES.items()}
    if path.suffix not in known or not path.is_file():
        raise VtpError(
            f"{path} is neither a run directory nor a policy's file ({', '.join(known)}); "
            "make one with: vtp policy export RUN",
            code="policy-missing",
        )
    return known[path.suffix].read(path, path.read_bytes())
