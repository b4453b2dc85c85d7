"""Settings of logs, experiments, report pages and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import MAX_SEED, Config, Device, NewPrices

Outcomes = Annotated[
    Literal["auto", "logged", "simulator"],
    Field(
        description="Outcomes that policies learn from: those in the logs, or the simulator's; auto: the logs if "
        "labels have actions, attempts and errors, else the simulator."
    ),
]


class LogsConfig(Config):
    """Show what the logs hold and teach, and what to log next."""

    embeddings: Path = Field(description="Embeddings file, with labels.")
    task: NewPrices = None
    steps: int = Field(
        100,
        ge=10,
        le=100_000,
        description="Number of further steps that could be logged; suggestions of what to log next are ranked for it.",
    )


class FrontierConfig(Config):
    """Find the actions that meet the service level.

    By formula and by simulation; the figure shows a run's policy among them.
    """

    run: Path | None = Field(
        None, description="Run directory whose policy is placed in the figure; its task and scenario are used."
    )
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    task: str = Field(
        "dishwashing", description="Task with a simulator, if no run is given: a built-in name or a YAML file."
    )
    scenario: str | None = Field(
        None, description="Scenario of the task's simulator if no run is given; by default its first."
    )
    axes: str | None = Field(
        None,
        description="Two actions that are the axes of the figure, such as speed,care; by default the task's first two.",
    )
    grid: int = Field(50, ge=2, le=500, description="Grid points per action.")
    episodes: int = Field(100, ge=1, le=10_000, description="Simulated episodes per point.")
    min_mp: float = Field(80.0, ge=0, description="Service level: minimum good units per hour.")
    max_err: float = Field(0.06, ge=0, le=1, description="Service level: maximum error rate, from 0 to 1.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")

    @model_validator(mode="after")
    def _a_run_has_its_own_task(self) -> FrontierConfig:
        for name in ("task", "scenario"):
            if self.run is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name} is for a frontier without a run; {self.run} has its own; drop either")
        return self


class ElasticityConfig(Config):
    """Show how profit changes with prices, wages and error targets.

    Elasticities of profit, spread and price of errors, for a run's policy and for the optimum.
    """

    run: Path = Field(description="Run directory of a validated run.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    points: int = Field(10, ge=2, le=200, description="Points per curve.")
    range: float = Field(2.0, gt=1, le=100, description="Sweep each parameter from 1/RANGE to RANGE times its value.")
    retrain: int | None = Field(
        None, ge=1, le=1_000_000, description="SAC updates for retraining the policy at every point."
    )
    retrain_seeds: int = Field(1, ge=1, le=100, description="Retrainings per point, whose mean is shown.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the bootstrap intervals and of retraining.")

    @model_validator(mode="after")
    def _seeds_are_of_retraining(self) -> ElasticityConfig:
        if self.retrain is None and self.retrain_seeds != type(self).model_fields["retrain_seeds"].default:
            raise ValueError(f"--retrain-seeds {self.retrain_seeds} has no effect without --retrain; add it")
        return self


class SpreadConfig(Config):
    """Show how earnings above the human wage were divided."""

    run: Path = Field(description="Run directory.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    periods: int = Field(10, ge=1, le=1000, description="Number of periods that the training is divided into.")
    market_wage: float | None = Field(
        None,
        gt=0,
        description="Market wage in $/h, which the wage index approaches; by default the run's human wage.",
    )
    wage_smoothing: float = Field(
        0.1, ge=0, le=1, description="Share of its distance to the market wage that the wage index moves per period."
    )
    inflation: float = Field(
        0.0, gt=-1, le=10, description="Growth of the wage index per period, as a share (0.02 is 2%)."
    )

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
    """Value each demonstration in profit on held-out videos.

    By its Shapley value, with the price that follows from it.
    """

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    outcomes: Outcomes = "auto"
    task: NewPrices = None
    out: Path = Field(
        Path("runs/value"), description="Folder for the files; with RUN/experiments, the run's report shows them."
    )
    by: Literal["video", "contributor"] = Field(
        "video", description="Unit that is valued and paid: each video or each contributor."
    )
    rounds: int = Field(
        12,
        ge=2,
        le=10_000,
        description="Maximum number of rounds, each of up to 32 random orders of the demonstrations (8 if outcomes are "
        "logged).",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="Stop an order when its profit is this close to that of all data, in $/h; by default 0.02, or, if "
        "outcomes are logged, a tenth of the standard error of the gain from all data on held-out logs.",
    )
    draws: int = Field(
        200, ge=20, le=10_000, description="Random actions per clip whose outcomes are sampled, if simulated."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class NoveltyExperimentConfig(Config):
    """Test whether novelty helps to learn policies.

    As a weight of clips in learning, and to select which demonstrations to keep.
    """

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    outcomes: Outcomes = "auto"
    novelty: Path | None = Field(None, description="Novelty file; by default novelty.h5 beside the embeddings.")
    task: NewPrices = None
    out: Path = Field(
        Path("runs/novelty"), description="Folder for the files; with RUN/experiments, the run's report shows them."
    )
    rounds: int = Field(
        20,
        ge=2,
        le=10_000,
        description="Repetitions; each draws outcomes, or logged videos, and learns policies from them.",
    )
    draws: int = Field(
        200, ge=1, le=10_000, description="Random actions per clip whose outcomes are sampled, if simulated."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class ReportConfig(Config):
    """Write a run's report page, RUN/report.html."""

    run: Path = Field(description="Run directory.")


class CompareConfig(Config):
    """Compare validated runs in one table and page, with intervals."""

    runs: list[Path] = Field(min_length=2, description="Two or more run directories; each is compared with the first.")
    out: Path = Field(Path("runs"), description="Folder for compare.csv and compare.html.")


class DemoConfig(Config):
    """Run every stage on rendered demonstrations, up to the report."""

    out: Path = Field(Path("runs/demo"), description="Run directory, also for its videos and embeddings.")
    quick: bool = Field(False, description="Run a smaller version (about 75 s on two cores).")
    device: Device = "auto"
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")
