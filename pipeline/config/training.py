"""Settings for training, validating and using a policy.

Training has one model per source, so each has only settings that apply to it, with their actual defaults.
`TrainConfig` is the union of these models; `source` selects one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from pipeline.config.arrays import (
    Launcher,
    NoWait,
    SlurmCpus,
    SlurmGres,
    SlurmPartition,
    SlurmTime,
    check_launcher,
    parse_seeds,
)
from pipeline.config.base import MAX_SEED, Config, Device, NewPrices

SOURCE = "What the policy observes: the simulator's state, stored embeddings, or video, whose encoder is fine-tuned."
DISCOUNT = 0.995  # if actions change later rewards
# Settings whose default depends on the source. Simulator steps cost nothing but updates do, so sim has few episodes,
# replayed often. Clips add noise of their own to that of outcomes, so they need many more episodes.
Episodes = Annotated[int, Field(ge=1, description="Training episodes.")]
NumEnvs = Annotated[int, Field(ge=1, le=1024, description="Parallel episodes.")]
UpdatesPerEpisode = Annotated[float, Field(gt=0, le=6000, description="SAC updates per 60 environment steps.")]
BatchSize = Annotated[int, Field(ge=2, le=1 << 20, description="Transitions per update.")]
ObservationNoise = Annotated[
    float, Field(ge=0, description="Standard deviation of Gaussian noise added to encoded observations during updates.")
]
Gamma = Annotated[
    float,
    Field(
        ge=0,
        lt=1,
        description="Discount per step. 0 when training on clips: actions do not change which clip comes next; with "
        f"--reward-window episode {DISCOUNT}, because past steps count in later rewards.",
    ),
]


class _TrainSettings(Config):
    """Train a policy with SAC under an economic reward."""

    source: Literal["sim", "embeddings", "video"] = Field(description=SOURCE)
    out: Path = Field(Path("runs/train"), description="Run directory.")
    episodes: Episodes
    num_envs: NumEnvs
    updates_per_episode: UpdatesPerEpisode
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")
    seeds: str | None = Field(
        None,
        description="Several random seeds, such as 0-4 or 0,2,7-9: one run per seed in OUT/seed-K, their mean in OUT.",
    )
    reward_window: Literal["step", "episode"] = Field(
        "step",
        description="Period over which the reward's hourly rates are computed: this step, or the episode so far.",
    )
    batch_size: BatchSize = 256
    buffer_size: int = Field(1_000_000, ge=1, le=1 << 28, description="Replay capacity in transitions.")
    warmup_steps: int = Field(
        600, ge=0, description="Transitions collected with uniformly random actions before learning starts."
    )
    priority_exponent: float = Field(
        0.2, ge=0, le=1, description="Replay priority is |TD error| to this power, times the clip's novelty weight."
    )
    observation_noise: ObservationNoise = 0.0
    random_actions: float = Field(
        0.1, ge=0, le=1, description="Share of training actions that are drawn uniformly at random."
    )
    lr: float = Field(1e-3, gt=0, description="Initial learning rate; it falls linearly to a twentieth of it.")
    gamma: Gamma = DISCOUNT
    tau: float = Field(5e-3, gt=0, le=1, description="Update rate of the target networks (exponential moving average).")
    final_entropy: float = Field(
        -3.0,
        description="Target entropy per action dimension at the end of training, with actions scaled to [-1, 1]; it "
        "starts at -1 and falls linearly.",
    )
    dual_lr: float = Field(0.01, ge=0, description="Step size of the dual ascent on the error constraint.")
    init: Path | None = Field(
        None, description="Run whose best policy training starts from; by default an untrained policy."
    )
    overwrite: bool = Field(False, description="Replace an earlier run in the run directory.")
    evaluations: int = Field(
        20, ge=1, description="Number of validations during training; the best one selects best.pt."
    )
    device: Device = "auto"
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations in a row without improvement."
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False

    @field_validator("seeds")
    @classmethod
    def _seeds_are_numbers(cls, text: str | None) -> str | None:
        if text is not None:
            parse_seeds(text)
        return text

    @model_validator(mode="after")
    def _launcher_needs_seeds(self) -> _TrainSettings:
        if self.launcher and self.seeds is None:
            raise ValueError("--launcher runs an array; add --seeds, such as --seeds 0-4")
        if self.seeds is not None and self.seed:
            raise ValueError(f"--seed {self.seed} and --seeds {self.seeds} exclude each other; drop one")
        check_launcher(self)
        return self

    @model_validator(mode="after")
    def _buffer_holds_the_warmup(self) -> _TrainSettings:
        for name in ("num_envs", "warmup_steps"):
            if self.buffer_size < (least := getattr(self, name)):
                raise ValueError(
                    f"--buffer-size {self.buffer_size} is below --{name.replace('_', '-')} {least}; raise the former "
                    "or lower the latter"
                )
        return self


class SimTrainConfig(_TrainSettings):
    """Train a policy in the simulator."""

    source: Literal["sim"] = Field("sim", description=SOURCE)
    task: str = Field("dishwashing", description="Task with a simulator: a built-in name or a YAML file.")
    scenario: str | None = Field(None, description="Scenario of the task's simulator; by default its first.")
    episodes: Episodes = 500
    num_envs: NumEnvs = 32
    updates_per_episode: UpdatesPerEpisode = 8.0


class _ClipsTrainSettings(_TrainSettings):
    """Settings for training on clips, whose order no action changes."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file.")
    novelty: Path | None = Field(
        None,
        description="Novelty file whose weights scale replay priorities; by default, or if off, every clip weighs 1.",
    )

    @field_validator("novelty", mode="before")
    @classmethod
    def _off_is_no_file(cls, value: Any) -> Any:
        return None if str(value) == "off" else value

    task: NewPrices = None
    outcomes: Literal["auto", "logged", "simulator"] = Field(
        "auto",
        description="Outcomes of actions. logged: an outcome model fitted to the labels' logs; simulator: the task's; "
        "auto: logged if the labels have the task's actions, attempts and errors, else simulator.",
    )
    kappa: float | None = Field(
        None,
        ge=0,
        description="Penalty in dollars per dollar of the outcome model's standard deviation; by default chosen by "
        "cross-validation on the logs.",
    )
    unsupported: float | None = Field(
        None,
        ge=0,
        description="Penalty for an action unlike all logged ones, in human wages; by default chosen by "
        "cross-validation on the logs.",
    )
    gamma: Gamma = 0.0

    @model_validator(mode="after")
    def _caution_needs_logs(self) -> _ClipsTrainSettings:
        for name in ("kappa", "unsupported"):
            if self.outcomes == "simulator" and getattr(self, name) is not None:
                raise ValueError(f"--{name} has no effect with --outcomes simulator; leave it out")
        if (self.kappa is None) != (self.unsupported is None):
            raise ValueError("--kappa and --unsupported are chosen together; give both or neither")
        return self

    @model_validator(mode="before")
    @classmethod
    def _episode_rewards_have_a_discount(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reward_window") == "episode":
            return {"gamma": DISCOUNT} | values
        return values


class EmbeddingsTrainConfig(_ClipsTrainSettings):
    """Train a policy on stored embeddings."""

    source: Literal["embeddings"] = Field("embeddings", description=SOURCE)
    episodes: Episodes = 20_000
    num_envs: NumEnvs = 256
    updates_per_episode: UpdatesPerEpisode = 1.0
    observation_noise: ObservationNoise = 0.2
    centre: Literal["video", "corpus"] = Field(
        "corpus",
        description="Mean subtracted from each embedding: the corpus mean, or the video's own (removes the scene).",
    )


class VideoTrainConfig(_ClipsTrainSettings):
    """Train a policy on video and fine-tune its encoder."""

    source: Literal["video"] = Field("video", description=SOURCE)
    episodes: Episodes = 2000
    num_envs: NumEnvs = 8
    updates_per_episode: UpdatesPerEpisode = 8.0
    batch_size: BatchSize = 32
    frame_size: int = Field(112, ge=16, le=112, description="Height and width of the frames, in pixels.")
    unfreeze_after: int | None = Field(
        None, ge=0, description="Episodes before the encoder is fine-tuned; by default 90% of them."
    )
    encoder_layers: Literal["projector", "layer4", "layer3", "all"] = Field(
        "layer4", description="First encoder layer to fine-tune."
    )
    encoder_lr: float = Field(1e-5, gt=0, description="Initial learning rate of the encoder; it falls like --lr.")

    @property
    def frozen_episodes(self) -> int:
        """Episodes before the encoder is fine-tuned."""
        return self.episodes - self.episodes // 10 if self.unfreeze_after is None else self.unfreeze_after


TrainConfig = Annotated[SimTrainConfig | EmbeddingsTrainConfig | VideoTrainConfig, Field(discriminator="source")]


def train_config(**values: Any) -> SimTrainConfig | EmbeddingsTrainConfig | VideoTrainConfig:
    """The settings of a training; `source` must be among the values. ValidationError if a value breaks a rule."""
    adapter: TypeAdapter[SimTrainConfig | EmbeddingsTrainConfig | VideoTrainConfig] = TypeAdapter(TrainConfig)
    return adapter.validate_python(values)


class EvaluateConfig(Config):
    """Validate a run's policy; write results to RUN/evaluation."""

    run: Path = Field(description="Run directory.")
    task: NewPrices = None
    validation: Literal["auto", "pixels", "logs", "clips"] = Field(
        "auto",
        description="pixels: closed loop in rendered scenes; logs: off-policy, on the held-out clips' logs; clips: "
        "held-out clips in the simulator; auto: pixels if the clips have labels and the task can be rendered, else "
        "logs if outcomes were learned from them, else clips.",
    )
    scenes: Literal["usual", "changed"] = Field(
        "usual",
        description="Rendered scenes. changed: light, backgrounds and sizes that no demonstration has; results are "
        "written to RUN/changed.",
    )
    episodes: int | None = Field(
        None, ge=1, le=10_000, description="Validation episodes; by default 8 from pixels, 200 in the simulator."
    )
    steps: int = Field(60, ge=1, le=60, description="Steps per episode.")
    seed: int = Field(10_000, ge=0, le=MAX_SEED, description="Random seed of the validation scenes.")
    device: Device = "auto"


class PolicyExportConfig(Config):
    """Write a run's best policy as one file, used without the run."""

    run: Path = Field(description="Run directory.")
    to: Literal["onnx", "safetensors"] = Field(description="File format.")
    out: Path | None = Field(None, description="File to write; by default RUN/policy.onnx or RUN/policy.safetensors.")

    @model_validator(mode="after")
    def _the_file_is_named_after_its_format(self) -> PolicyExportConfig:
        if self.out is not None and self.out.suffix != f".{self.to}":
            raise ValueError(
                f"--out {self.out} must end in .{self.to}, so that vtp act recognises the format; rename it"
            )
        return self


class ActConfig(Config):
    """Write the policy's action for each clip as CSV.

    Columns beside the actions: profit_usd_per_hour, the expected profit, with its 95% interval from profit_low to
    profit_high; novelty, the share, in [0, 1], of the clips of unseen videos that are nearer to the training clips.

    A policy trained on logs has its profit estimated from them. A policy trained on simulated outcomes has its profit
    simulated, only for clips with labels and without an interval. Novelty, and profit from logs, need the embeddings
    file that the policy was trained on; if it is missing or changed, they are empty and a warning is logged.
    """

    policy: Path = Field(description="Run directory, or a file written by vtp policy export.")
    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, made with the policy's encoder.")
    out: Path | None = Field(None, description="CSV file to write; by default the rows are printed.")
