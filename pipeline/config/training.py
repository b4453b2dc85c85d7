"""Training a policy, validating it, and using it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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
from pipeline.config.base import MAX_SEED, Config, Scenario, Task

# Steps of the simulator are free and updates are not. From sim the budget is the episodes, so each is replayed often;
# clips have noise of their own to be told from that of outcomes, which takes many more of them. Clips come as they were
# filmed, whatever is done: values of what follows would be nothing but noise.
TRAIN_DEFAULTS: dict[str, dict[str, Any]] = {
    "sim": {"episodes": 500, "num_envs": 32, "updates_per_episode": 8.0},
    "embeddings": {
        "episodes": 20_000, "num_envs": 256, "updates_per_episode": 1.0,
        "gamma": 0.0, "observation_noise": 0.2, "centre": "corpus",
    },
    "video": {
        "episodes": 2000, "num_envs": 8, "updates_per_episode": 8.0, "batch_size": 32, "gamma": 0.0,
        "frame_size": 112, "encoder_layers": "layer4", "encoder_lr": 1e-5,
    },
}  # fmt: skip
EMBEDDINGS_SETTINGS = ("centre",)
VIDEO_SETTINGS = ("frame_size", "unfreeze_after", "encoder_layers", "encoder_lr")


class TrainConfig(Config):
    """Train a policy with SAC under an economic reward."""

    source: Literal["embeddings", "sim", "video"] = Field(
        description="What the policy observes; from video its encoder learns too."
    )
    out: Path = Field(Path("runs/train"), description="Run directory.")
    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, for all but --source sim.")
    novelty: Path | None = Field(
        None, description="Novelty file; by default novelty.h5 beside the embeddings, where there is one."
    )
    task: Task = Field("dishwashing", description="Simulator task, for --source sim.")
    scenario: Scenario = Field("seed", description="Simulator scenario, for --source sim.")
    episodes: int | None = Field(
        None, ge=1, description="Training episodes; by default 500 of sim, 20000 of embeddings, 2000 of video."
    )
    num_envs: int | None = Field(
        None, ge=1, le=1024, description="Episodes side by side; by default 32 of sim, 256 of embeddings, 8 of video."
    )
    updates_per_episode: float | None = Field(
        None, gt=0, le=6000, description="SAC updates per 60 steps; by default 8 of sim and video, 1 of embeddings."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")
    seeds: str | None = Field(
        None, description="Several seeds, such as 0-4 or 0,2,7-9: a run each in OUT/seed-K, and their mean in OUT."
    )
    reward_window: Literal["step", "episode"] = Field(
        "step", description="Rates in the reward: of the step, or of the episode to date."
    )
    batch_size: int = Field(256, ge=2, le=1 << 20, description="Transitions an update; of video by default 32.")
    buffer_size: int = Field(1_000_000, ge=1, le=1 << 28, description="Replay capacity in transitions.")
    warmup_steps: int = Field(600, ge=0, description="Transitions with uniformly random actions before learning.")
    priority_exponent: float = Field(
        0.2, ge=0, le=1, description="Replay priority is |TD| to this power, times novelty."
    )
    observation_noise: float = Field(
        0.0, ge=0, description="Deviation of the Gaussian noise on what updates see, encoded; of embeddings 0.2."
    )
    random_actions: float = Field(0.1, ge=0, le=1, description="Share of training actions drawn uniformly.")
    lr: float = Field(1e-3, gt=0, description="Initial learning rate; it falls linearly to a twentieth.")
    gamma: float = Field(
        0.995, ge=0, lt=1, description="Discount per step; of a step's rewards on clips 0, for what is done moves none."
    )
    tau: float = Field(5e-3, gt=0, le=1, description="Step of the target networks' moving average.")
    final_entropy: float = Field(
        -6.0, description="Target entropy at the end, in the [-1, 1] space; it starts at -2 and falls linearly."
    )
    dual_lr: float = Field(0.01, ge=0, description="Step of dual ascent on the error constraint.")
    init: Path | None = Field(None, description="Run whose best policy to begin with, instead of an untrained one.")
    overwrite: bool = Field(False, description="Replace an earlier run in the run directory.")
    evaluations: int = Field(20, ge=1, description="Sampled validations during training, which choose best.pt.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations in a row without a better one."
    )
    centre: Literal["video", "corpus"] | None = Field(
        None,
        description="From which mean --source embeddings sees a clip: of all, or of its video, which hides the scene.",
    )
    frame_size: int | None = Field(
        None, ge=16, le=112, description="Height and width of the frames, for --source video; by default 112."
    )
    unfreeze_after: int | None = Field(
        None, ge=0, description="Episodes before the encoder of --source video learns; by default all but a tenth."
    )
    encoder_layers: Literal["projector", "layer4", "layer3", "all"] | None = Field(
        None, description="From where on the encoder of --source video learns; by default layer4."
    )
    encoder_lr: float | None = Field(
        None,
        gt=0,
        description="Initial learning rate of the encoder of --source video, which falls as --lr; by default 1e-5.",
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False

    @property
    def frozen_episodes(self) -> int:
        """Episodes before the encoder learns."""
        assert self.episodes is not None, "the source has a default"
        return self.episodes - self.episodes // 10 if self.unfreeze_after is None else self.unfreeze_after

    @field_validator("seeds")
    @classmethod
    def _seeds_are_numbers(cls, text: str | None) -> str | None:
        if text is not None:
            parse_seeds(text)
        return text

    @model_validator(mode="after")
    def _an_array_has_seeds(self) -> TrainConfig:
        if self.launcher and self.seeds is None:
            raise ValueError("--launcher runs an array; add --seeds, such as --seeds 0-4")
        if self.seeds is not None and self.seed:
            raise ValueError(f"--seed {self.seed} and --seeds {self.seeds} exclude each other; drop one")
        check_launcher(self)
        return self

    @model_validator(mode="after")
    def _settings_fit_the_source(self) -> TrainConfig:
        for source, names in (("embeddings", EMBEDDINGS_SETTINGS), ("video", VIDEO_SETTINGS)):
            for name in names:
                if self.source != source and getattr(self, name) is not None:
                    raise ValueError(f"--{name.replace('_', '-')} needs --source {source}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, values: dict[str, Any]) -> dict[str, Any]:
        defaults = dict(TRAIN_DEFAULTS.get(str(values.get("source")), {}))
        if values.get("reward_window") == "episode":
            defaults.pop("gamma", None)  # what is done counts in the rates of all that follows
        return defaults | {name: value for name, value in values.items() if value is not None}


class EvaluateConfig(Config):
    """Validate a run's policy in closed loop."""

    run: Path = Field(description="Run directory.")
    validation: Literal["auto", "pixels", "clips"] = Field(
        "auto", description="pixels: rendered scenes; clips: held-out clips; auto: pixels where the clips have labels."
    )
    scenes: Literal["usual", "changed"] = Field(
        "usual",
        description="Rendered scenes; changed: light, backgrounds, sizes unlike any demo's, summed up in RUN/changed.",
    )
    episodes: int | None = Field(
        None, ge=1, le=10_000, description="Validation episodes; by default 8 from pixels, 200 in the simulator."
    )
    steps: int = Field(60, ge=1, le=60, description="Steps an episode.")
    seed: int = Field(10_000, ge=0, le=MAX_SEED, description="Random seed of the validation scenes.")


class PolicyExportConfig(Config):
    """Write a run's best policy as one file that is used without the run."""

    run: Path = Field(description="Run directory.")
    to: Literal["torchscript", "onnx", "safetensors"] = Field(description="Format.")
    out: Path | None = Field(None, description="File to write; by default policy.pt, .onnx or .safetensors in the run.")


class ActConfig(Config):
    """What a policy does in each clip of an embeddings file, as CSV."""

    policy: Path = Field(description="Run directory, or a file that vtp policy export wrote.")
    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, of the policy's own encoder.")
    out: Path | None = Field(None, description="CSV file to write; by default it is printed.")
