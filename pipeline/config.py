"""One frozen model per stage: every default, bound and help text lives here, once.

The command line is generated from these models, so a parameter has one name from its flag to the HDF5 attribute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

MAX_SEED = 2**63 - 1

Task = Literal["dishwashing", "bricklaying"]
Scenario = Literal["seed", "mixed"]
Shard = NonNegativeInt | Literal["auto"] | None


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Where an array of the same stage runs. Off is None: this process.
Launcher = Annotated[
    Literal["local", "slurm"] | None,
    Field(description="Run the array in processes of this machine, or as an array of Slurm jobs."),
]
SlurmPartition = Annotated[str | None, Field(description="Slurm's partition, if not its default.")]
SlurmTime = Annotated[
    str,
    AfterValidator(lambda text: (slurm_minutes(text), text)[1]),
    Field(description="Time limit of a Slurm task, minutes or [D-]H:MM:SS; one that reaches it is requeued."),
]
SlurmGres = Annotated[str | None, Field(description="Slurm's generic resources of a task, such as gpu:1.")]
SlurmCpus = Annotated[int | None, Field(ge=1, description="Processors of a Slurm task, if not Slurm's default.")]
NoWait = Annotated[bool, Field(description="Submit the Slurm array, print the command that finishes it, and end.")]
SLURM_SETTINGS = ("slurm_partition", "slurm_time", "slurm_gres", "slurm_cpus", "no_wait")
C = TypeVar("C", bound=Config)


def _device_numbers(text: str | None) -> str | None:
    numbers = (text or "0").split(",")
    if text != "all" and not (all(number.isdecimal() for number in numbers) and len(set(numbers)) == len(numbers)):
        raise ValueError("is neither all nor numbers of GPUs such as 0,1,2,3")
    return text


def slurm_minutes(text: str) -> int:
    """Minutes of a time limit in Slurm's forms, minutes or [days-]hours:minutes:seconds, rounded up; or ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    total = int(text) if text.isdecimal() else 1440 * days + 60 * hours + minutes + -(-seconds // 60)
    if total == 0:
        raise ValueError("is no time limit such as 90, 4:00:00 or 1-12:00:00")
    return total


def check_launcher(cfg: Any) -> None:
    """ValueError where a Slurm setting could have no effect."""
    for name in SLURM_SETTINGS:
        if cfg.launcher != "slurm" and getattr(cfg, name) != type(cfg).model_fields[name].default:
            raise ValueError(f"--{name.replace('_', '-')} needs --launcher slurm")


def alone(cfg: C) -> C:
    """The same settings without launcher and devices: those of one task of the array."""
    names = [name for name in ("launcher", "devices", *SLURM_SETTINGS) if name in type(cfg).model_fields]
    return cfg.model_copy(update={name: type(cfg).model_fields[name].default for name in names})


MAX_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """Seeds in rising order, of "0-4" or "0,2,7-9"; ValueError where the text is nothing of the kind."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        if match is None:
            raise ValueError("is not like 0-4 or 0,2,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise ValueError(f"does not rise from {first}, or goes beyond {MAX_SEED}")
        if last - first + len(seeds) >= MAX_SEEDS:
            raise ValueError(f"more than {MAX_SEEDS} seeds")
        seeds.update(range(first, last + 1))
    return sorted(seeds)


class SimulateConfig(Config):
    """Render demonstration videos with labels and a manifest."""

    out: Path = Field(Path("data/demos"), description="Folder for videos, labels and manifest.csv.")
    videos: int = Field(12, ge=1, le=100_000, description="Number of videos, one episode each.")
    steps: int = Field(60, ge=1, le=60, description="Simulator steps a video; each is one clip of 16 frames.")
    task: Task = Field("dishwashing", description="What the demonstrator does.")
    scenario: Scenario = Field("mixed", description="seed: one kind of object; mixed: a context per step.")
    val_fraction: float = Field(0.2, ge=0, lt=1, description="Share of the videos marked val in the manifest.")
    novel: float = Field(0.0, ge=0, le=1, description="Share of the clips that show planted novelty, of six kinds.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed; the same seed gives the same bytes.")


class ExtractConfig(Config):
    """Turn videos into one 128-D embedding a clip."""

    source: str = Field(description="Folder, glob, one video, or a manifest (.csv, .jsonl, .parquet).")
    out: Path = Field(Path("data/embeddings.h5"), description="HDF5 file to write.")
    clip_len: int = Field(16, ge=1, le=256, description="Frames a clip.")
    clip_stride: int = Field(16, ge=1, le=4096, description="Sampled frames from one clip's start to the next.")
    fps: float = Field(15.0, gt=0, le=240, description="Frames a second, sampled by presentation time.")
    tail: Literal["drop", "pad"] = Field("drop", description="What to do with a last clip that is too short.")
    backbone: Literal["r3d_18", "timesformer_b"] = Field("r3d_18", description="Video encoder.")
    weights: str = Field(
        "kinetics400", description="kinetics400, the backbone's own file or folder, random:SEED, or auto."
    )
    projector: str = Field(
        "pca", description="pca, learned, random:SEED, or an embeddings file whose projector to use."
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto", description="auto: what the processor is fastest in: int8 (of r3d_18), bf16, or fp32."
    )
    batch_size: int = Field(8, ge=1, le=1024, description="Clips a forward pass.")
    decoder: Literal["auto", "decord", "pyav"] = Field(
        "auto", description="auto: decord, or PyAV for what decord gets wrong: AV1, edit lists, MPEG-TS, narrow frames."
    )
    timeout_s: float = Field(300.0, gt=0, description="Deadline for decoding one video, in seconds.")
    retries: int = Field(
        1, ge=0, le=10, description="More tries for a video that could not be read or whose decoder died or hung."
    )
    max_failures: int | None = Field(None, ge=0, description="Stop when more videos than this have failed.")
    shards: int = Field(1, ge=1, le=100_000, description="Processes that share the videos between them.")
    shard: Shard = Field(
        None,
        description="Which of them this is, from 0; auto: the index of the array job (Slurm, Kubernetes, AWS Batch).",
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False
    devices: Annotated[
        str | None,
        AfterValidator(_device_numbers),
        Field(
            description="GPUs of this machine, such as 0,1,2,3 or all: a process each shares the videos with others."
        ),
    ] = None

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> ExtractConfig:
        if isinstance(self.shard, int) and self.shard >= self.shards:
            raise ValueError(f"shard ({self.shard}) is not below shards ({self.shards}); count from 0")
        return self

    @model_validator(mode="after")
    def _an_array_has_shards(self) -> ExtractConfig:
        if self.launcher and self.shards == 1:
            raise ValueError("--launcher runs an array; add --shards, the number of its tasks")
        if self.launcher and self.shard is not None:
            raise ValueError(f"--launcher runs all shards and --shard {self.shard} one; drop either")
        if self.devices and self.shard is not None:
            raise ValueError(f"--devices shares all videos and --shard {self.shard} has some; drop either")
        if self.devices and self.launcher == "slurm":
            raise ValueError("--devices is of this machine; Slurm gives a task its GPU: --slurm-gres gpu:1")
        check_launcher(self)
        return self


class MergeConfig(Config):
    """Put the parts of a sharded extraction together, or the seeds of a training."""

    out: Path = Field(
        Path("data/embeddings.h5"), description="What was given as --out to vtp extract --shards or vtp train --seeds."
    )


class DoctorConfig(Config):
    """Check this machine's decoders and what lies at an output."""

    out: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, as given to vtp extract.")


class NoveltyConfig(Config):
    """Score how far each clip lies off what a reference corpus does, by the noise gap of a video diffusion model."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, beside its videos.")
    out: Path | None = Field(None, description="File to write; by default novelty.h5 beside the embeddings.")
    model: str = Field(
        "auto", description="auto, corpus, or Stable Video Diffusion from a folder in diffusers format or the hub."
    )
    reference: Path | None = Field(
        None,
        description="What is ordinary: a manifest of some of these videos, or another embeddings file; by default all.",
    )
    resolution: int | None = Field(
        None, ge=32, le=1024, multiple_of=16, description="Height of the model's frames; by default 64, of svd 320."
    )
    draws: int = Field(1, ge=1, le=64, description="Antithetic pairs of noise at each of five levels.")
    updates: int = Field(200, ge=1, le=100_000, description="Updates of the corpus model, for each of its two halves.")
    batch_size: int = Field(8, ge=1, le=1024, description="Clips a forward pass.")
    allow_slow: bool = Field(False, description="Let Stable Video Diffusion run without a GPU: half an hour a clip.")
    shards: int = Field(1, ge=1, le=100_000, description="Processes that share the videos between them.")
    shard: Shard = Field(None, description="Which of them this one is, from 0; auto: the index of the array job.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the noise and of the corpus model.")


# Steps of the simulator are free and updates are not. From sim the budget is the episodes, so each is replayed often;
# clips have noise of their own to be told from that of outcomes, which takes many more of them. Clips come as they were
# filmed, whatever is done: values of what follows would be nothing but noise.
TRAIN_DEFAULTS = {
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


class FrontierConfig(Config):
    """Which actions meet the service level, by formula and by simulation, and where a run's policy sits."""

    run: Path | None = Field(None, description="Run directory whose policy to place; its task and scenario are used.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    task: Task = Field("dishwashing", description="Simulator task, where no run is given.")
    scenario: Scenario = Field("seed", description="Simulator scenario, where no run is given.")
    grid: int = Field(50, ge=2, le=500, description="Points of speed and of care.")
    episodes: int = Field(100, ge=1, le=10_000, description="Simulated episodes a point.")
    min_mp: float = Field(80.0, ge=0, description="Service level: good units an hour, at least.")
    max_err: float = Field(0.06, ge=0, le=1, description="Service level: error rate, at most.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class ElasticityConfig(Config):
    """How a run's profit, spread and price of errors answer to prices, wages and targets, beside the oracle's."""

    run: Path = Field(description="Run directory, with its validation.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    points: int = Field(10, ge=2, le=200, description="Points a curve.")
    range: float = Field(2.0, gt=1, le=100, description="Curves go from today's value over this to today's times this.")
    retrain: int | None = Field(
        None, ge=1, le=1_000_000, description="Also retrain the policy at every point, by this many SAC updates."
    )
    retrain_seeds: int = Field(1, ge=1, le=100, description="Retrainings a point, whose mean is taken.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the intervals' bootstrap and of retraining.")


class SpreadConfig(Config):
    """Who got what a run earned above the human wage, over its training."""

    run: Path = Field(description="Run directory.")
    out: Path | None = Field(None, description="Folder for the files; by default RUN/experiments.")
    periods: int = Field(10, ge=1, le=1000, description="Periods that the training is divided into.")
    market_wage: float | None = Field(
        None,
        gt=0,
        description="Human wage in the market in $/h, which the wage index approaches; by default the run's.",
    )
    wage_smoothing: float = Field(0.1, ge=0, le=1, description="Step of the wage index towards the market, a period.")
    inflation: float = Field(0.0, gt=-1, le=10, description="Rise of the wage index with prices, a period.")


class ValueConfig(Config):
    """What each demonstration is worth: its Shapley value in profit on videos held out, and its price."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    out: Path = Field(Path("runs/value"), description="Folder for the files; RUN/experiments puts them in its report.")
    by: Literal["video", "contributor"] = Field("video", description="What is valued and paid.")
    rounds: int = Field(12, ge=2, le=10_000, description="Rounds of up to 32 orders of arrival: the budget.")
    tolerance: float = Field(
        0.02, ge=0, description="Cut an order short once its profit is within this of all data's, in $/h."
    )
    draws: int = Field(200, ge=20, le=10_000, description="Sampled outcomes of random actions a clip.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class NoveltyExperimentConfig(Config):
    """Does novelty help: as a learning weight, and to choose which demonstrations to keep."""

    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, with labels.")
    novelty: Path | None = Field(None, description="Novelty file; by default novelty.h5 beside the embeddings.")
    out: Path = Field(
        Path("runs/novelty"), description="Folder for the files; RUN/experiments puts them in its report."
    )
    rounds: int = Field(20, ge=2, le=10_000, description="Draws of outcomes, each with policies of its own.")
    draws: int = Field(200, ge=1, le=10_000, description="Sampled outcomes of random actions a clip.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")


class ReportConfig(Config):
    """Write a run's report page."""

    run: Path = Field(description="Run directory.")


class CompareConfig(Config):
    """Put validated runs beside each other in one table and page, with intervals."""

    runs: list[Path] = Field(min_length=2, description="Run directories; the others are compared with the first.")
    out: Path = Field(Path("runs"), description="Folder for compare.csv and compare.html.")


class DemoConfig(Config):
    """Run the whole pipeline on rendered demonstrations, then the report."""

    out: Path = Field(Path("runs/demo"), description="Run directory; videos and embeddings lie in it too.")
    quick: bool = Field(False, description="A small version of the same, in under three minutes.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed.")
