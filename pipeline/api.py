"""The functions for scripts and notebooks: each stage takes its settings by name and returns a typed result.

Settings are those of the commands, with _ for -: `vtp extract --clip-len 8` is `extract(..., clip_len=8)`. Paths may be
strings. A wrong setting is a VtpError of one line. `progress` is called with (done, total, news) during the work; news
is text or, in training, the figures of the latest episode by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import pipeline.evaluate as evaluation
import pipeline.extract as extraction
import pipeline.simulate as simulation
import pipeline.train as training
from pipeline import exports, policy, storage
from pipeline.cluster import launch
from pipeline.config import EvaluateConfig, ExportConfig, ExtractConfig, Settings, SimulateConfig, TrainConfig
from pipeline.dataset import Embeddings, read_embeddings
from pipeline.errors import VtpError
from pipeline.exports import ExportResult
from pipeline.extract import ExtractResult
from pipeline.policy import Policy
from pipeline.report import verdict
from pipeline.runs import RunDirectory
from pipeline.runs.judgement import Comparison, judge_of, over_logging_policy
from pipeline.training import seeds

Progress = Callable[[int, int, Any], None]


@dataclass(frozen=True, repr=False)
class Validation:
    """The figures of a run's latest validation; money is in $/h.

    judge: the source of the figures, such as "Estimated from your logs". interval95: of the profit; None if it has
    none. over_logging_policy: the policy compared with the logging policy on held-out logs; None if no clip has logs.
    contexts: one row per context: its share, the policy's mean actions, profits and error rate. summary: all figures,
    as in summary.json.
    """

    run: Path
    judge: str
    profit: float
    interval95: tuple[float, float] | None
    oracle_ratio: float | None
    error_rate: float
    wage_parity: float
    deployed: str
    over_logging_policy: Comparison | None
    contexts: pd.DataFrame
    summary: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return f"Validation({self.run}: {self.judge}. {verdict.title(self.summary)})"

    def load_policy(self) -> Policy:
        """The run's policy, ready to act."""
        return policy.load(self.run)


def simulate(out: str | Path, *, progress: Progress | None = None, **settings: Any) -> Path:
    """Render demonstration videos with logs; returns their manifest. Settings: those of `vtp simulate`."""
    cfg: SimulateConfig = Settings[SimulateConfig](SimulateConfig).of({"out": out, **settings})
    told = _told(progress)
    return simulation.run(cfg, progress=lambda done, total: told(done, total, ""))


def extract(source: str | Path, *, progress: Progress | None = None, **settings: Any) -> ExtractResult | None:
    """Turn videos into one 128-D embedding per clip. Settings: those of `vtp extract`, such as out="embeddings.h5".

    With launcher or devices, all shards are extracted and merged; None with no_wait: run `vtp merge` later.
    """
    text = source if isinstance(source, str) else str(storage.path_of(source))
    cfg: ExtractConfig = Settings[ExtractConfig](ExtractConfig).of({"source": text, **settings})
    told = _told(progress)
    if cfg.launcher is None and cfg.devices is None:
        return extraction.run(cfg, progress=told)
    return launch.extract(cfg, progress=told)


def read_dataset(path: str | Path) -> Embeddings:
    """An embeddings file: its arrays, `to_pandas()` and `to_torch(split)`. CorruptError if it is damaged.

    With `projector="none"` it has only `features` [N, D], and `embeddings` is [N, 0].
    """
    return read_embeddings(storage.path_of(path), or_features=True)


def export(embeddings: str | Path, to: str, *, progress: Progress | None = None, **settings: Any) -> ExportResult:
    """Write a data set in the format of another library. Settings: those of `vtp export`, such as split="train"."""
    cfg = Settings[Any](ExportConfig).of({"embeddings": embeddings, "to": to, **settings})
    return exports.run(cfg, progress=_told(progress))


def train(
    embeddings: str | Path | None = None, *, progress: Progress | None = None, **settings: Any
) -> Validation | None:
    """Train a policy with SAC and validate it. Settings: those of `vtp train`, such as out="runs/first".

    embeddings: the embeddings file to train on; without one, give `source="sim"` to train in the simulator. With
    seeds, the figures are means over them; None with no_wait: run `vtp merge` later.
    """
    values: dict[str, Any] = {} if embeddings is None else {"source": "embeddings", "embeddings": embeddings}
    cfg: TrainConfig = Settings[Any](TrainConfig).of(values | settings)
    told = _told(progress)
    if cfg.seeds is not None:
        found = launch.train(cfg, progress=told)
        return None if found is None else validation_of(cfg.out, found)
    return validation_of(cfg.out, training.run(cfg, progress=told))


def evaluate(run: str | Path, *, progress: Progress | None = None, **settings: Any) -> Validation:
    """Validate a run's policy. Settings: those of `vtp evaluate`."""
    cfg: EvaluateConfig = Settings[EvaluateConfig](EvaluateConfig).of({"run": run, **settings})
    told = _told(progress)
    if seeds.runs_in(cfg.run) != [cfg.run]:
        return validation_of(cfg.run, launch.evaluate(cfg, progress=told))
    return validation_of(cfg.run, evaluation.run(cfg, progress=lambda done, total: told(done, total, "")))


def read_run(path: str | Path) -> Validation:
    """The latest validation of a run. VtpError if the run has not been validated."""
    run = storage.refuse_url(path, "a run")
    return validation_of(run, RunDirectory(run).read_summary())


def load_policy(path: str | Path) -> Policy:
    """The policy of a run or of a file that `vtp policy export` wrote. UntrustedError if loading it could run code."""
    return policy.load(storage.refuse_url(path, "a policy"))


def validation_of(run: Path, summary: dict[str, Any]) -> Validation:
    """The validation in a summary; VtpError if another version of vtp wrote it."""
    try:
        bounds = summary["profit_ci95"]
        return Validation(
            run=run,
            judge=judge_of(summary),
            profit=summary["profit_mean"],
            interval95=None if bounds is None else (bounds[0], bounds[1]),
            oracle_ratio=summary["oracle_ratio"],
            error_rate=summary["err_mean"],
            wage_parity=summary["wage_parity"],
            deployed=summary.get("deployed", "learned policy"),
            over_logging_policy=over_logging_policy(summary),
            contexts=_contexts(summary["contexts"]),
            summary=summary,
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise VtpError(
            f"{run}: its summary was written by another version of vtp ({error}); make a new one with: vtp evaluate "
            f"{run}",
            code="summary-other-version",
        ) from error


def _contexts(contexts: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per context; columns include the policy's actions, and the oracle's as oracle_NAME."""
    rows = {}
    for name, figures in contexts.items():
        plain = {key: value for key, value in figures.items() if key not in ("actions", "oracle_actions")}
        best = {f"oracle_{action}": value for action, value in figures["oracle_actions"].items()}
        rows[name] = plain | figures["actions"] | best
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("context")


def _told(progress: Progress | None) -> Progress:
    """The callback, or one that does nothing; VtpError if it cannot be called."""
    if progress is not None and not callable(progress):
        raise VtpError(
            f"progress {progress!r} is not a function; give one that takes (done, total, news), or None",
            code="setting-invalid",
        )
    return progress or (lambda done, total, news: None)
