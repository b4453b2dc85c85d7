"""What a command is given, checked before its stage is imported: a misspelt path shows at once, not after torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config, EmbeddingsTrainConfig, VideoTrainConfig
from pipeline.errors import VtpError


def check_given(cfg: Config) -> None:
    """VtpError if a run, policy, file or task that the settings name is not there, or is of another kind."""
    for name, check in _CHECKS.items():
        if (value := getattr(cfg, name, None)) is not None:
            check(value)
    if (embeddings := getattr(cfg, "embeddings", None)) is not None:
        has_other_source = isinstance(cfg, EmbeddingsTrainConfig | VideoTrainConfig)
        or_else = ", or train without video: --source sim" if has_other_source else ""
        _file(embeddings, "embeddings", f"make them with `vtp extract VIDEOS --out {embeddings}`{or_else}")


def _run(run: Path) -> None:
    if not run.is_dir():
        raise VtpError(f"{run} is no run directory; make one with: vtp train --out {run}", code="run-missing")


def _runs(runs: list[Path]) -> None:
    for run in runs:
        _run(run)


def _policy(path: Path) -> None:
    if not path.is_dir() and not path.is_file():
        raise VtpError(
            f"{path} is neither a run directory nor a policy's file; make one with: vtp policy export RUN",
            code="policy-missing",
        )


def _novelty(path: Path) -> None:
    _file(path, "novelty", f"make it with: vtp novelty --out {path}")


def _reference(path: Path) -> None:
    _file(path, "reference", "give an embeddings file or a manifest of some of its videos")


def _file(path: Path, name: str, remedy: str) -> None:
    if path.exists() and not path.is_file():
        raise VtpError(f"--{name} {path} is not a regular file; {remedy}", code=f"{name}-missing")
    if not path.is_file():
        raise VtpError(f"no {name} at {path}; {remedy}", code=f"{name}-missing")


def _task(name: str) -> None:
    from pipeline.tasks import load_task  # which --help does without

    load_task(name)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "run": _run,
    "runs": _runs,
    "init": _run,
    "policy": _policy,
    "novelty": _novelty,
    "reference": _reference,
    "task": _task,
}
