"""Check a command's inputs before its stage is imported: a misspelt path is reported at once, not after torch loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import (
    ActConfig,
    Config,
    D3rlpyExportConfig,
    DemoConfig,
    DoctorConfig,
    EmbeddingsTrainConfig,
    ExtractConfig,
    FrontierConfig,
    MergeConfig,
    NoveltyConfig,
    NoveltyExperimentConfig,
    ParquetExportConfig,
    PolicyExportConfig,
    SimTrainConfig,
    VideoTrainConfig,
)
from pipeline.errors import VtpError

TRAININGS = (SimTrainConfig, EmbeddingsTrainConfig, VideoTrainConfig)
WRITE_A_FILE = (  # at --out; other commands write a folder
    ExtractConfig, NoveltyConfig, PolicyExportConfig, ActConfig, ParquetExportConfig, D3rlpyExportConfig,
)  # fmt: skip
IN_PLACE = (MergeConfig, DoctorConfig)  # whose `out` is what an earlier command wrote


def check_given(cfg: Config) -> None:
    """VtpError if an input is missing or of another kind, or if the output would overwrite an input."""
    for name, check in _CHECKS.items():
        if (value := getattr(cfg, name, None)) is not None:
            check(value)
    if (embeddings := getattr(cfg, "embeddings", None)) is not None:
        or_else = ", or train without video: --source sim" if isinstance(cfg, TRAININGS) else ""
        _embeddings(embeddings, or_else)
    if isinstance(cfg, ExtractConfig):
        _encoder(cfg)
    if isinstance(cfg, ExtractConfig | NoveltyConfig):
        _shard(cfg)
    if isinstance(cfg, SimTrainConfig) or (isinstance(cfg, FrontierConfig) and cfg.run is None):
        _simulator(cfg)
    if isinstance(cfg, NoveltyConfig):
        _model(cfg.model)
    if isinstance(cfg, NoveltyExperimentConfig) and cfg.novelty is None:
        _novelty(cfg.embeddings.with_name("novelty.h5"))
    if isinstance(cfg, FrontierConfig) and cfg.run is None and cfg.out is None:
        raise VtpError("there is no run to write into; name a folder with --out, or give RUN", code="out-missing")
    if isinstance(cfg, MergeConfig) and cfg.out.is_dir():
        _seeds(cfg.out)
    _output(cfg)


def _run(path: Path) -> None:
    from pipeline.run_directory import check_run  # imported here to keep --help fast

    check_run(path)


def _runs(paths: list[Path]) -> None:
    for path in paths:
        _run(path)


def _policy(path: Path) -> None:
    from pipeline.run_directory import check_policy

    check_policy(path)


def _novelty(path: Path) -> None:
    from pipeline import dataset

    _file(path, "novelty", f"make it with: vtp novelty --out {path}")
    dataset.check_novelty(path)


def _reference(path: Path) -> None:
    from pipeline import dataset
    from pipeline.dataset import manifest

    _file(path, "reference", "give an embeddings file or a manifest of some of its videos")
    if path.suffix.lower() in manifest.MANIFEST_SUFFIXES:
        manifest.read_manifest(path)
    else:
        dataset.check_embeddings(path)


def _embeddings(path: Path, or_else: str = "") -> None:
    from pipeline import dataset

    _file(path, "embeddings", f"make them with `vtp extract VIDEOS --out {path}`{or_else}")
    dataset.check_embeddings(path)


def _file(path: Path, name: str, remedy: str) -> None:
    storage.fetch(path)
    if path.exists() and not path.is_file():
        raise VtpError(f"--{name} {path} is not a regular file; {remedy}", code=f"{name}-missing")
    if not path.is_file():
        raise VtpError(f"no {name} at {path}; {remedy}", code=f"{name}-missing")


def _task(name: str) -> None:
    from pipeline.tasks import load_task

    load_task(name)


def _simulator(cfg: SimTrainConfig | FrontierConfig) -> None:
    from pipeline.outcomes import SimulatedOutcomes
    from pipeline.tasks import load_task

    SimulatedOutcomes(load_task(cfg.task).in_scenario(cfg.scenario))


def _encoder(cfg: ExtractConfig) -> None:
    from pipeline import dataset, named_weights

    device = "cuda" if cfg.devices else cfg.device
    named_weights.check_encoder(cfg.backbone, cfg.weights, cfg.precision, device)
    if (projector := named_weights.check_projector(cfg.projector)) is not None:
        dataset.check_embeddings(projector)


def _shard(cfg: ExtractConfig | NoveltyConfig) -> None:
    from pipeline.extraction.shards import shard_number

    if not (cfg.launcher or cfg.devices):
        shard_number(cfg.shards, cfg.shard)


def _model(name: str) -> None:
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/"))
    if name not in ("auto", "corpus") and not Path(name).is_dir() and (Path(name).exists() or not is_hub_id):
        raise VtpError(
            f"--model {name} must be auto, corpus, a folder or a hub id such as owner/name",
            code="model-missing",
        )
    if name not in ("auto", "corpus") and Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise VtpError(
            f"model {name} has no readable model_index.json; give a folder in diffusers format, or --model corpus",
            code="model-wrong",
        )


def _seeds(out: Path) -> None:
    from pipeline.run_directory import RunDirectory, check_run

    check_run(out)
    run = RunDirectory(out)
    if run.metrics.exists() and not run.has_seeds:
        raise VtpError(
            f"{out} holds no seeds to assemble; give the --out of vtp train --seeds, or an embeddings file",
            code="run-of-one-seed",
        )


def _output(cfg: Config) -> None:
    from pipeline.files import check_file_place, check_folder_place
    from pipeline.kept_inputs import keep_inputs, keep_others_from_demo
    from pipeline.run_directory import RunDirectory, check_new_run

    out: Path | None = getattr(cfg, "out", None)
    if out is None or isinstance(cfg, IN_PLACE):
        return
    if isinstance(cfg, WRITE_A_FILE):
        check_file_place(out)
        run = getattr(cfg, "run", None) or getattr(cfg, "policy", None)
        keep_inputs(cfg, [out], reads=[] if run is None else RunDirectory(run).read)
        return
    check_folder_place(out)
    if isinstance(cfg, DemoConfig):
        keep_others_from_demo(out)
    if isinstance(cfg, TRAININGS):
        check_new_run(out, seeds=cfg.seeds is not None, overwrite=cfg.overwrite)
        keep_inputs(cfg, RunDirectory(out).written, reads=[] if cfg.init is None else RunDirectory(cfg.init).read)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "run": _run,
    "runs": _runs,
    "init": _run,
    "policy": _policy,
    "novelty": _novelty,
    "reference": _reference,
    "task": _task,
}
