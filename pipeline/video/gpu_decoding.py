"""Whether decoders may use NVDEC: its package, a GPU, and a test in a process of its own, as it runs a driver."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipeline import processes
from pipeline.errors import VtpError

logger = logging.getLogger(__name__)

PACKAGE = "PyNvVideoCodec"
CHECK_S = 120.0
CHECK = "from pipeline.video.nvdec import main; main()"


class Nvdec(NamedTuple):
    """A GPU, by its number, and the codecs that its NVDEC decodes exactly as PyAV does."""

    gpu: int
    codecs: tuple[str, ...]


def check_decoder(decoder: str) -> None:
    """VtpError if the setting `decoder` names one whose package is not installed."""
    if decoder == "nvdec" and not _is_installed():
        raise VtpError(
            f"--decoder nvdec needs the package {PACKAGE}; run pip install 'video-to-policy[nvdec]', or use --decoder "
            "auto",
            code="nvdec-unusable",
        )


def _is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def choose_nvdec(decoder: str, *, verify: bool, gpu: int | None) -> Nvdec | None:
    """NVDEC, if the setting `decoder` asks for it, or is auto and allows it; gpu: of the encoder, None without one.

    VtpError if it is asked for and cannot be used. With `verify`, auto uses decoders only that find damage.
    """
    check_decoder(decoder)
    if decoder == "nvdec":
        if gpu is None:
            raise VtpError(
                "--decoder nvdec decodes on the GPU that encodes, and here the processor encodes; use --decoder auto",
                code="gpu-missing",
            )
        return _tested(gpu)
    if decoder != "auto" or gpu is None or not _is_installed():
        return None
    if verify:
        logger.info("NVDEC is not used, because it may overlook damage; --no-verify or --decoder nvdec use it")
        return None
    try:
        return _tested(gpu)
    except VtpError as error:
        logger.warning("%s", str(error).replace("use --decoder auto", "the processor decodes"))
        return None


def _tested(gpu: int) -> Nvdec:
    """VtpError if it decodes no codec's test video exactly."""
    found = _test(gpu)
    codecs = tuple(codec for codec, reason in found.items() if reason == "")
    refused = [f"{codec}: {reason}" for codec, reason in found.items() if reason]
    if not codecs:
        raise VtpError(f"NVDEC cannot be used ({refused[0]}); use --decoder auto", code="nvdec-unusable")
    logger.info("NVDEC decodes %s%s", ", ".join(codecs), f" (not {'; '.join(refused)})" if refused else "")
    return Nvdec(gpu, codecs)


def _test(gpu: int) -> dict[str, str]:
    """By codec, the reason why NVDEC is not used for it, or ""."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        result = Path(folder) / "found.json"
        try:
            subprocess.run(
                [*processes.new_interpreter(CHECK), str(gpu), str(result)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                timeout=CHECK_S,
                check=True,
            )
            return dict(json.loads(result.read_text()))
        except subprocess.TimeoutExpired:
            reason = f"its test took longer than {CHECK_S:g} s"
        except subprocess.CalledProcessError as error:
            printed.seek(0)
            lines = printed.read().decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"]
            reason = f"its test ended with {error.returncode}: {lines[-1][:200]}"
    raise VtpError(f"NVDEC cannot be used ({reason}); use --decoder auto", code="nvdec-unusable")
