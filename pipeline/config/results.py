"""What logs hold, and what a run is worth: experiments, pages, and the demo of all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import MAX_SEED, Config


class LogsConfig(Config):
    """Show what the logs of a data set hold, what can be learned from them, and what to log next."""

    embeddings: Path = Field(description="Embeddings file, with labels.")
    task: str | None = Field(
        None,
        description="Task file or name whose prices, wage, costs and error target replace the recorded ones; "
        "by default none.",
    )
    steps: int = Field(
        100, ge=10, le=100_000, description="Steps that could be logged in one place next: what to log is ranked by it."
    )


class FrontierConfig(Config):
    """Find the actions that meet the service level, by formula and by simulation, and place a run's policy."""

    run: Path | None = Field(None, description="Run directory whose policy to place; its task and scenario are used.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    task: str = Field(
        "dishwashing", description="Task if no run is given: a built-in name or a YAML file, with a simulator."
    )
    scenario: str | None = Field(
        None, description="Scenario of the task's simulator if no run is given; by default its first."
    )
    axes: str | None = Field(
        None, description="Two actions to draw, such as speed,care; by default the task's first two."
    )
    grid: int = Field(50, ge=2, le=500, description="Points per action.")
    episodes: int = Field(100, ge=1, le=10_000, description="Simulated episodes per point.")
    min_mp: float = Field(80.0, ge=0, description="Service level: good units an hour, at least.")
    max_err: float = Field(0.06, ge=0, le=1, description="Service level: error rate, at most.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")

    @model_validator(mode="after")
    def _a_run_has_its_own_task(self) -> FrontierConfig:
        for name in ("task", "scenario"):
            if self.run is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name} is for a frontier without a run; {self.run} has its own, so drop either")
        return self


class ElasticityConfig(Config):
    """How much prices, wages and error targets change a run's profit, spread and price of errors, and the optimum's."""

    run: Path = Field(description="Run directory, with its validation.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    points: int = Field(10, ge=2, le=200, description="Points per curve.")
    range: float = Field(2.0, gt=1, le=100, description="Sweep each parameter from 1/RANGE to RANGE times its value.")
    retrain: int | None = Field(
        None, ge=1, le=1_000_000, description="Also retrain the policy at every point, with this many SAC updates."
    )
    retrain_seeds: int = Field(1, ge=1, le=100, description="Retrainings per point, whose mean is taken.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the intervals' bootstrap and of retraining.")

    @model_validator(mode="after")
    def _seeds_are_of_retraining(self) -> ElasticityConfig:
        if self.retrain is None and self.retrain_seeds != type(self).model_fields["retrain_seeds"].default:
            raise ValueError(f"--retrain-seeds {self.retrain_seeds} has no effect without --retrain; add it")
        return self


class SpreadConfig(Config):
    """How a run's earnings above the human wage were divided over its training."""

    run: Path = Field(description="Run directory.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    periods: int = Field(10, ge=1, le=1000, description="Periods that the training is divided into.")
    market_wage: float | None = Field(
        None,
        gt=0,
        description="Human wage on the market in $/h, which the wage index approaches; by default the run's.",
    )
    wage_smoothing: float = Field(0.1, ge=0, le=1, description="Step of the wage index towards the market per period.")
    inflation: float = Field(0.0, gt=-1, le=10, description="Growth of the wage index with prices per period.")

    @model_validator(mode="after")
    def _smoothing_needs_a_distance(self) -> SpreadConfig:
        default = type(self).model_fields["wage_smoothing"].default
        if self.wage_smoothing != default and self.market_wage is None and self.inflation == 0:
            raise ValueError(
                f"--wage-smoothing {self.wage_smoothing:g} has no effect while the wage index is the market's wage; "
                "add --market-wage or --inflation, or leave it out"
            )
        return self


class ValueConfig(Config):
    """Value each demonstration: its Shapley value in profit on held-out videos, and its price."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    outcomes: Literal["auto", "logged", "simulator"] = Field(
        "auto",
        description="What demonstrations teach: the outcomes in their logs, or simulated ones; auto takes the logs if "
        "labels have actions, attempts and errors.",
    )
    task: str | None = Field(
        None,
        description="Task file or name whose prices, wage, costs and error target replace the recorded ones; "
        "by default none.",
    )
    out: Path = Field(Path("runs/value"), description="Folder for the files; RUN/experiments puts them in its report.")
    by: Literal["video", "contributor"] = Field("video", description="Unit that is valued and paid.")
    rounds: int = Field(
        12,
        ge=2,
        le=10_000,
        description="Budget: rounds of up to 32 random orders of the demonstrations (8 if outcomes are logged).",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="Stop an order when its profit is within this of all data's, in $/h; by default 0.02, or if "
        "outcomes are logged a tenth of the standard deviation with which held-out logs know what all data adds.",
    )
    draws: int = Field(200, ge=20, le=10_000, description="Sampled outcomes of random actions per clip, if simulated.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class NoveltyExperimentConfig(Config):
    """Test whether novelty helps: as a learning weight, and to choose which demonstrations to keep."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    outcomes: Literal["auto", "logged", "simulator"] = Field(
        "auto",
        description="What demonstrations teach: the outcomes in their logs, or simulated ones; auto takes the logs if "
        "labels have actions, attempts and errors.",
    )
    novelty: Path | None = Field(None, description="Novelty file; by default novelty.h5 beside the embeddings.")
    task: str | None = Field(
        None,
        description="Task file or name whose prices, wage, costs and error target replace the recorded ones; "
        "by default none.",
    )
    out: Path = Field(
        Path("runs/novelty"), description="Folder for the files; RUN/experiments puts them in its report."
    )
    rounds: int = Field(
        20, ge=2, le=10_000, description="Draws of outcomes, or of logged videos, each with its own policies."
    )
    draws: int = Field(200, ge=1, le=10_000, description="Sampled outcomes of random actions per clip, if simulated.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class ReportConfig(Config):
    """Write a run's report page."""

    run: Path = Field(description="Run directory.")


class CompareConfig(Config):
    """Compare validated runs in one table and page, with intervals."""

    runs: list[Path] = Field(min_length=2, description="Run directories; the others are compared with the first.")
    out: Path = Field(Path("runs"), description="Folder for compare.csv and compare.html.")


class DemoConfig(Config):
    """Run the whole pipeline on rendered demonstrations, then the report."""

    out: Path = Field(Path("runs/demo"), description="Run directory, with its videos and embeddings.")
    quick: bool = Field(False, description="Run a smaller version (under three minutes).")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")
