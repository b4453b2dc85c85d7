"""From videos to embeddings and their novelty."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.arrays import (
    Launcher,
    NoWait,
    SlurmCpus,
    SlurmGres,
    SlurmPartition,
    SlurmTime,
    check_launcher,
    check_shard,
    device_numbers,
)
from pipeline.config.base import MAX_SEED, Config, Shard

BACKBONES = ("r3d_18", "timesformer_b", "efficientnet_lite0")


def known_backbone(name: str) -> str:
    """The name, if it says an encoder; whether a model of transformers is there is seen later."""
    if name not in BACKBONES and name.removeprefix("hf:") in (name, ""):
        raise ValueError(f"Input should be {', '.join(BACKBONES)} or hf:ID_OR_FOLDER")
    return name


class SimulateConfig(Config):
    """Render demonstration videos with labels and a manifest."""

    out: Path = Field(Path("data/demos"), description="Folder for videos, labels and manifest.csv.")
    videos: int = Field(12, ge=1, le=100_000, description="Number of videos, one episode each.")
    steps: int = Field(60, ge=1, le=60, description="Simulator steps per video; each is one clip of 16 frames.")
    task: str = Field(
        "dishwashing", description="What the demonstrator does: dishwashing, bricklaying, or a task's YAML file."
    )
    scenario: str | None = Field(
        None, description="Scenario of the task; by default mixed, or the task's first if it has no mixed."
    )
    logger: Literal["uniform", "human", "expert"] = Field(
        "uniform",
        description="How the logged actions are chosen, each within its range. uniform: evenly; human: normally around "
        "0.55 of the first action's range and 0.60 of every other (standard deviation 0.18 of it); expert: normally "
        "around each context's best action (0.15).",
    )
    val_fraction: float = Field(0.2, ge=0, lt=1, description="Share of the videos marked val in the manifest.")
    novel: float = Field(0.0, ge=0, le=1, description="Share of the clips that show planted novelty, of six kinds.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed; the same seed gives the same bytes.")


class ExtractConfig(Config):
    """Turn videos into one 128-D embedding per clip."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"source", "out", "task"})
    source: str = Field(
        description="Folder, glob, one video, a manifest (.csv, .jsonl, .parquet), a LeRobot data set's folder, or "
        "robomimic's or Minari's HDF5 files with images; also a URL in object storage, such as "
        "s3://bucket/demos/manifest.csv."
    )
    out: Path = Field(
        Path("data/embeddings.h5"), description="HDF5 file to write; also a URL, such as s3://bucket/embeddings.h5."
    )
    task: str | None = Field(
        None,
        description="Task of all videos: dishwashing, bricklaying, bin-picking, or a task's YAML file; by default the "
        "one in the manifest's column.",
    )
    bare: bool = Field(
        False,
        description="Ignore a folder's manifest or LeRobot's meta: take its videos without labels, splits and ids.",
    )
    camera: str | None = Field(
        None,
        description="Camera of a LeRobot, robomimic or Minari data set, such as observation.images.front or "
        "agentview_image; by default all.",
    )
    clip_len: int = Field(16, ge=1, le=256, description="Frames per clip.")
    clip_stride: int = Field(16, ge=1, le=4096, description="Sampled frames from one clip's start to the next.")
    fps: float = Field(15.0, gt=0, le=240, description="Frames per second, sampled by presentation time.")
    tail: Literal["drop", "pad"] = Field("drop", description="What to do with a last clip that is too short.")
    backbone: Annotated[str, AfterValidator(known_backbone)] = Field(
        "r3d_18",
        description="Encoder: r3d_18, timesformer_b, efficientnet_lite0, or hf:ID_OR_FOLDER for a video or image model "
        "of transformers, such as V-JEPA 2 or DINOv2, from the hub or a folder.",
    )
    weights: str | None = Field(
        None,
        description="kinetics400, imagenet (of efficientnet_lite0), the backbone's own file or folder, random:SEED, or "
        "auto; by default the trained ones. hf: brings its own.",
    )
    projector: str = Field(
        "pca",
        description="Features to 128-D embeddings. pca, learned: fitted to these clips, so comparable with no other "
        "extraction, and best with hundreds of clips; random:SEED; an embeddings file: its projector, for embeddings "
        "that are comparable with it; none: features alone.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto", description="auto: what the processor is fastest in: int8 (of r3d_18 only), bf16, or fp32."
    )
    batch_size: int = Field(8, ge=1, le=1024, description="Clips per forward pass.")
    decoder: Literal["auto", "decord", "pyav"] = Field(
        "auto", description="auto: decord, or PyAV for what decord gets wrong, cannot open or complains about."
    )
    verify: bool = Field(
        True,
        description="Have auto read HEVC, VP8 and VP9 with PyAV's strictest decoders: more damage inside pictures is "
        "found. It costs no time.",
    )
    timeout_s: float = Field(300.0, gt=0, description="Deadline for decoding one video, in seconds.")
    retries: int = Field(
        1, ge=0, le=10, description="More tries for a video that could not be read or whose decoder died or hung."
    )
    max_failures: int | None = Field(None, ge=0, description="Stop when more videos than this have failed.")
    shards: int = Field(1, ge=1, le=100_000, description="Number of processes that the videos are split among.")
    shard: Shard = Field(
        None,
        description="Which of the shards this process is, from 0; auto: the index of the array job (Slurm, "
        "Kubernetes, AWS Batch).",
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False
    devices: Annotated[
        str | None,
        AfterValidator(device_numbers),
        Field(
            description="GPUs of this machine, such as 0,1,2,3 or all: one process per GPU; videos are split among "
            "them."
        ),
    ] = None

    @model_validator(mode="after")
    def _a_camera_is_of_episodes(self) -> ExtractConfig:
        if self.bare and self.camera is not None:
            raise ValueError(
                f"--bare takes videos without episodes and --camera {self.camera} one of them; drop either"
            )
        return self

    @model_validator(mode="after")
    def _a_model_brings_its_weights(self) -> ExtractConfig:
        if self.backbone.startswith("hf:") and self.weights is not None:
            raise ValueError(f"--weights {self.weights} is not for --backbone {self.backbone}, which brings its own")
        return self

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> ExtractConfig:
        check_shard(self)
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
    """Assemble the shards of an extraction, or the seeds of a training."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"out"})
    out: Path = Field(
        Path("data/embeddings.h5"), description="Output path of the sharded extraction or the multi-seed run."
    )


class DoctorConfig(Config):
    """Check the decoders and the integrity of an extraction."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"out"})
    out: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, as given to vtp extract.")


class NoveltyConfig(Config):
    """Score how unusual each clip is compared with a reference corpus, by the noise gap of a video diffusion model."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"embeddings", "reference"})
    writes_beside: ClassVar[bool] = True
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
    batch_size: int = Field(8, ge=1, le=1024, description="Clips per forward pass.")
    allow_slow: bool = Field(False, description="Let Stable Video Diffusion run without a GPU: half an hour per clip.")
    shards: int = Field(1, ge=1, le=100_000, description="Number of processes that the videos are split among.")
    shard: Shard = Field(
        None, description="Which of the shards this process is, from 0; auto: the index of the array job."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the noise and of the corpus model.")

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> NoveltyConfig:
        check_shard(self)
        return self
