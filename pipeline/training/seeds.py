"""Several random seeds of one training: one run per seed in RUN/seed-K, and their means in RUN/summary.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import dataset, storage, training
from pipeline.config import SimTrainConfig, TrainConfig, alone, parse_seeds, train_config
from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.files import make_folder, save_config, write_json
from pipeline.run_directory import check_new_run, one_of_several_seeds
from pipeline.runs import RunDirectory, load_metadata
from pipeline.runs.judgement import judge_of, over_logging_policy
from pipeline.stats import bootstrap95, interquartile_mean
from pipeline.text_files import read_text
from pipeline.writer_lock import one_writer

SAME = (  # keys that must be equal to average seeds
    "source", "task", "scenario", "task_definition", "actions", "costs_usd_per_hour", "human_wage", "validation",
    "outcome_model",
)  # fmt: skip
AVERAGED = (
    "mp_mean", "err_mean", "wage_parity", "oracle_profit", "blind_profit", "blind_ratio", "spread", "rebate",
    "captured",
)  # fmt: skip
BY_SEED = ("profit_mean", "oracle_ratio", "err_mean", "wage_parity", "spread", "wall_s")


def prepare(cfg: TrainConfig) -> list[TrainConfig]:
    """Check and save the settings of several seeds; returns those of the runs that are not finished yet.

    Finished runs are kept, so the same command resumes, and one with more seeds adds runs.
    """
    run = RunDirectory(cfg.out)
    check_new_run(cfg.out, seeds=True, overwrite=cfg.overwrite)
    training.check(cfg)
    configs = [config_of(cfg, seed) for seed in parse_seeds(cfg.seeds or "")]
    if not cfg.overwrite:
        for one in configs:
            _refuse_other_settings(one)
    make_folder(cfg.out)
    save_config(run.config, cfg.model_copy(update={"overwrite": False, "no_wait": False}))
    run.summary.unlink(missing_ok=True)
    if cfg.overwrite:
        for seed_run in [RunDirectory(one.out) for one in configs]:
            with one_writer(seed_run.lock, seed_run.path):
                seed_run.forget()
    return [one for one in configs if not RunDirectory(one.out).is_finished]


def config_of(cfg: TrainConfig, seed: int) -> TrainConfig:
    """The settings of one seed's run."""
    return alone(cfg).model_copy(update={"out": run_of(cfg.out, seed), "seed": seed, "seeds": None, "overwrite": False})


def run_of(run: Path, seed: int) -> Path:
    return RunDirectory(run).seed(seed).path


def _refuse_other_settings(cfg: TrainConfig) -> None:
    """VtpError if the seed's run was finished with other settings."""
    run = RunDirectory(cfg.out)
    if not run.is_finished:
        return
    moved = ["out", "device"]
    if not isinstance(cfg, SimTrainConfig) and storage.name_of(cfg.embeddings) != run.read_settings().get("embeddings"):
        clips = load_metadata(run.path).clips
        if clips is not None and clips.content_sha256 == dataset.read_embeddings(cfg.embeddings).content_sha256:
            moved.append("embeddings")
    training.refuse_other_settings(run, cfg, except_for=moved)


def read_config(run: Path) -> TrainConfig:
    """The settings that a run, or several seeds, were started with."""
    path = RunDirectory(run).config
    try:
        return train_config(**yaml.safe_load(read_text(path)))
    except FileNotFoundError as error:
        raise VtpError(f"{run} is not a run directory; give the --out of vtp train", code="run-missing") from error
    except (OSError, ValueError, yaml.YAMLError, TypeError) as error:
        raise CorruptError(
            f"{path} has no settings that this version of vtp train reads; train again", code="run-settings-corrupt"
        ) from error


def runs_in(run: Path) -> list[Path]:
    """The runs in a folder of several seeds, in the order of the seeds; for a single run, itself."""
    if RunDirectory(run).metrics.exists() or not RunDirectory(run).has_seeds:
        return [run]
    return [run_of(run, seed) for seed in parse_seeds(read_config(run).seeds or "")]


def one_run(run: Path | None) -> None:
    """VtpError if a run is a folder of several seeds."""
    if run is not None and runs_in(run) != [run]:
        raise one_of_several_seeds(RunDirectory(run))


def landed(cfg: TrainConfig) -> tuple[int, int]:
    """Training episodes done and to do, over all seeds."""
    runs = [RunDirectory(cfg.out).seed(seed) for seed in parse_seeds(cfg.seeds or "")]
    done = sum(cfg.episodes if run.is_finished else _episodes_done(run.metrics) for run in runs)
    return done, cfg.episodes * len(runs)


def _episodes_done(metrics: Path) -> int:
    """The episode of the last whole row; 0 before the first row."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            rows = file.read().split(b"\n")
        return int(rows[-2].partition(b",")[0])
    except (OSError, IndexError, ValueError):  # not started, or only the header is there
        return 0


def merge(run: Path, *, changed: bool = False) -> dict[str, Any]:
    """Write RUN/summary.json from the summaries of its seeds, and return it; for changed scenes in RUN/changed.

    It has the keys of a single run's: means over seeds, and intervals by bootstrap over seeds, beside the interquartile
    mean and each seed's own figures. TryAgainError if a seed is not finished.
    """
    cfg = read_config(run)
    if cfg.seeds is None:
        raise VtpError(f"{run} holds the run of one seed; give the --out of vtp train --seeds", code="run-of-one-seed")
    seeds = parse_seeds(cfg.seeds)
    if missing := [str(seed) for seed in seeds if not RunDirectory(run).seed(seed).is_finished]:
        raise TryAgainError(
            f"{run}: seed{'s' if len(missing) > 1 else ''} {', '.join(missing)} not finished; "
            f"wait, or continue with: {training.command_line(cfg)}",
            code="seeds-unfinished",
        )
    summary = average([_read_summary(run_of(run, seed), changed=changed) for seed in seeds], seeds)
    summary["provenance"] |= {"command": training.command_line(cfg)}
    write_json((RunDirectory(run).changed if changed else RunDirectory(run)).summary, summary)
    return summary


def _read_summary(run: Path, *, changed: bool) -> dict[str, Any]:
    path = (RunDirectory(run).changed if changed else RunDirectory(run).latest).summary
    try:
        summary = json.loads(read_text(path))
        if lacking := {*SAME, *AVERAGED, *BY_SEED, "episodes", "contexts", "provenance"} - set(summary):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except (OSError, ValueError, TypeError) as error:
        command = f"vtp evaluate {run}{' --scenes changed' if changed else ''}"
        raise CorruptError(f"{path} is not a summary ({error}); run: {command}", code="summary-corrupt") from error
    return summary


def average(summaries: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One summary of the seeds' summaries; wall_s is the sum of theirs."""
    first = summaries[0]
    for one, seed in zip(summaries, seeds, strict=True):
        for name in SAME:
            if one[name] != first[name]:
                raise VtpError(
                    f"seeds {seeds[0]} and {seed} differ in {name}; run vtp evaluate on all of them",
                    code="seeds-differ",
                )
        if one["provenance"].get("embeddings_sha256") != first["provenance"].get("embeddings_sha256"):
            raise VtpError(
                f"seeds {seeds[0]} and {seed} were trained on different embeddings; add --overwrite",
                code="seeds-differ",
            )
    figures = {name: np.array([one[name] for one in summaries], float) for name in (*AVERAGED, *BY_SEED)}  # None is NaN
    measured: dict[str, Any] = {}
    for name, key in (("profit", "profit_mean"), ("oracle_ratio", "oracle_ratio")):
        if np.isnan(figures[key]).any():
            names = (key, f"{name}_ci95", f"{name}_iqm", f"{name}_iqm_ci95", f"{name}_worst")
            measured |= dict.fromkeys(names)
            continue
        measured |= {
            key: float(figures[key].mean()),
            f"{name}_ci95": bootstrap95(figures[key]),
            f"{name}_iqm": float(interquartile_mean(figures[key])),
            f"{name}_iqm_ci95": bootstrap95(figures[key], interquartile_mean),
            f"{name}_worst": float(figures[key].min()),
        }
    return {
        **{name: first[name] for name in SAME},
        "judge": judge_of(first),
        "seeds": list(seeds),
        "episodes": sum(one["episodes"] for one in summaries),
        **measured,
        **{name: None if np.isnan(figures[name]).any() else float(figures[name].mean()) for name in AVERAGED},
        "contexts": _average_contexts([one["contexts"] for one in summaries]),
        "context_mix": first.get("context_mix"),
        "contexts_not_met": list(dict.fromkeys(k for one in summaries for k in one.get("contexts_not_met", []))),
        "by_seed": [
            {"seed": seed, **{name: one[name] for name in BY_SEED}, "verdict": _verdict(one)}
            for seed, one in zip(seeds, summaries, strict=True)
        ],
        "wall_s": float(figures["wall_s"].sum()),
        "provenance": first["provenance"],
    }  # fmt: skip


def _verdict(summary: dict[str, Any]) -> str | None:
    """The logs' verdict on a seed's policy against the logging policy; None without logs."""
    found = over_logging_policy(summary)
    return None if found is None else found.verdict


def _average_contexts(contexts: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each context's figures: means over the seeds that met it."""
    names = dict.fromkeys(name for one in contexts for name in one)
    return {name: _mean_of_trees([one[name] for one in contexts if name in one]) for name in names}


def _mean_of_trees(trees: Sequence[Any]) -> Any:
    """The means of the numbers at the same places of nested mappings."""
    if isinstance(trees[0], dict):
        return {key: _mean_of_trees([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))
