"""Settings of simulation, extraction and novelty."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.arrays import (
    Devices,
    Launcher,
    NoWait,
    SlurmCpus,
    SlurmGres,
    SlurmPartition,
    SlurmTime,
    check_shards,
)
from pipeline.config.base import MAX_SEED, Config, Device, Shard

BACKBONES = ("r3d_18", "timesformer_b", "efficientnet_lite0")


def known_backbone(name: str) -> str:
    """The name, if it is a known encoder or hf:...; whether that model exists is checked later."""
    if name not in BACKBONES and name.removeprefix("hf:") in (name, ""):
        raise ValueError(f"Input should be {', '.join(BACKBONES)} or hf:ID_OR_FOLDER")
    return name


class SimulateConfig(Config):
    """Render demonstration videos with labels and a manifest."""

    out: Path = Field(Path("data/demos"), description="Folder for videos, labels and manifest.csv.")
    videos: int = Field(12, ge=1, le=100_000, description="Number of videos; each is one episode.")
    steps: int = Field(60, ge=1, le=60, description="Simulator steps per video; each is one clip of 16 frames.")
    task: str = Field(
        "dishwashing", description="Task that is demonstrated: dishwashing, bricklaying, or a task's YAML file."
    )
    scenario: str | None = Field(
        None, description="Scenario of the task; by default mixed, or the task's first if none is called mixed."
    )
    logger: Literal["uniform", "human", "expert"] = Field(
        "uniform",
        description="Distribution of the logged actions. uniform over each range; human: normal, mean 0.55 of the "
        "first action's range and 0.60 of every other, standard deviation 0.18 of it; expert: normal around each "
        "context's best action, standard deviation 0.15. Values outside the range are cut to it.",
    )
    val_fraction: float = Field(
        0.2, ge=0, lt=1, description="Share of the videos that the manifest marks as val (held out)."
    )
    novel: float = Field(
        0.0, ge=0, le=1, description="Share of the clips that show a planted novelty, one of six kinds."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed; the same seed gives the same bytes.")


class ExtractConfig(Config):
    """Turn videos into one 128-D embedding per clip."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"source", "out", "task"})
    source: str = Field(
        description="Videos: a folder, a glob, one video, a manifest (.csv, .jsonl, .parquet), a LeRobot folder, or "
        "HDF5 files of robomimic or Minari with images; also a URL in object storage, such as "
        "s3://bucket/demos/manifest.csv."
    )
    out: Path = Field(
        Path("data/embeddings.h5"), description="HDF5 file to write; also a URL, such as s3://bucket/embeddings.h5."
    )
    task: str | None = Field(
        None,
        description="Task of all videos: dishwashing, bricklaying, bin-picking, or a task's YAML file; by default the "
        "task column of the manifest.",
    )
    bare: bool = Field(
        False,
        description="Ignore a folder's manifest or LeRobot metadata; read its videos without labels, splits and ids.",
    )
    camera: str | None = Field(
        None,
        description="Camera of a LeRobot, robomimic or Minari data set, such as observation.images.front or "
        "agentview_image; by default all.",
    )
    clip_len: int = Field(16, ge=1, le=256, description="Frames per clip.")
    clip_stride: int = Field(
        16, ge=1, le=4096, description="Sampled frames from the start of one clip to the start of the next."
    )
    fps: float = Field(15.0, gt=0, le=240, description="Frames sampled per second, by presentation time.")
    tail: Literal["drop", "pad"] = Field(
        "drop", description="Last clip of a video, if too short: drop it, or pad it with its last frame."
    )
    backbone: Annotated[str, AfterValidator(known_backbone)] = Field(
        "r3d_18",
        description="Encoder: r3d_18, timesformer_b, efficientnet_lite0, or hf:ID_OR_FOLDER for a video or image model "
        "of the transformers library, such as V-JEPA 2 or DINOv2, from the hub or a folder.",
    )
    weights: str | None = Field(
        None,
        description="Weights of the encoder: kinetics400, imagenet (efficientnet_lite0 only), a file or folder, "
        "random:SEED, or auto (trained weights, else random ones); by default the trained ones. hf: models have their "
        "own.",
    )
    projector: str = Field(
        "pca",
        description="Map from features to 128-D embeddings. pca, learned: fitted to these clips, so not comparable "
        "with another extraction, and best with hundreds of clips; random:SEED; an embeddings file: its projector, so "
        "that both are comparable; none: features only.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Arithmetic of the encoder; auto: the fastest on this processor of int8 (r3d_18 only), bf16, fp32; "
        "on a GPU bf16, if it computes in it, else fp32.",
    )
    device: Device = "auto"
    batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        description="Clips handed to the encoder at a time; on a GPU rounded up to whole passes, at least two, of "
        "64 clips of the usual size. Features do not depend on it.",
    )
    decoder: Literal["auto", "decord", "pyav", "nvdec"] = Field(
        "auto",
        description="Video decoder; auto: decord, and PyAV for files that decord fails on or decodes wrongly; nvdec: "
        "the GPU's, which needs PyNvVideoCodec and which auto uses with --no-verify.",
    )
    verify: bool = Field(
        True,
        description="With --decoder auto, use only decoders that find damage, and read HEVC, VP8 and VP9 with PyAV's "
        "strictest, which find more inside pictures and take no longer.",
    )
    timeout_s: float = Field(300.0, gt=0, description="Time limit for decoding one video, in seconds.")
    retries: int = Field(
        1, ge=0, le=10, description="Further attempts for a video that cannot be read or whose decoder crashed or hung."
    )
    max_failures: int | None = Field(None, ge=0, description="Stop when more than this number of videos have failed.")
    shards: int = Field(1, ge=1, le=100_000, description="Number of processes that the videos are split among.")
    shard: Shard = Field(
        None,
        description="Number of the shard that this process works on, from 0; auto: the index of the array job (Slurm, "
        "Kubernetes, AWS Batch).",
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False
    devices: Devices = None

    @model_validator(mode="after")
    def _camera_needs_episodes(self) -> ExtractConfig:
        if self.bare and self.camera is not None:
            raise ValueError(f"--bare ignores the episodes that --camera {self.camera} selects from; drop either")
        return self

    @model_validator(mode="after")
    def _hf_models_have_their_weights(self) -> ExtractConfig:
        if self.backbone.startswith("hf:") and self.weights is not None:
            raise ValueError(
                f"--weights {self.weights} has no effect with --backbone {self.backbone}, which has its own; leave it "
                "out"
            )
        return self

    @model_validator(mode="after")
    def _shards_are_possible(self) -> ExtractConfig:
        check_shards(self)
        return self


class MergeConfig(Config):
    """Assemble shards of extraction or novelty, or a run's seeds."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"out"})
    out: Path = Field(
        Path("data/embeddings.h5"),
        description="Output path of the sharded extraction or novelty, or of the multi-seed run.",
    )


class DoctorConfig(Config):
    """Check the decoders and the integrity of an extraction."""

    in_storage: ClassVar[frozenset[str]] = frozenset({"out"})
    out: Path = Field(Path("data/embeddings.h5"), description="Embeddings file, as given to vtp extract.")


class NoveltyConfig(Config):
    """Score how unusual each clip is, compared with a reference.

    The score is the noise gap of a video diffusion model.
    """

    in_storage: ClassVar[frozenset[str]] = frozenset({"embeddings", "reference"})
    writes_beside: ClassVar[bool] = True
    embeddings: Path = Field(Path("data/embeddings.h5"), description="Embeddings file; its videos must still be there.")
    out: Path | None = Field(None, description="File to write; by default novelty.h5 beside the embeddings.")
    model: str = Field(
        "auto",
        description="Diffusion model: corpus (trained on the reference), Stable Video Diffusion from a folder in "
        "diffusers format or the hub, or auto: the latter if there is a GPU and it can be downloaded, else corpus.",
    )
    reference: Path | None = Field(
        None,
        description="Reference of what is ordinary: a manifest of some of these videos, or another embeddings file; by "
        "default all these videos.",
    )
    resolution: int | None = Field(
        None,
        ge=32,
        le=1024,
        multiple_of=16,
        description="Height of the model's frames in pixels; by default 64, with Stable Video Diffusion 320.",
    )
    draws: int = Field(1, ge=1, le=64, description="Antithetic pairs of noise at each of five noise levels.")
    updates: int = Field(
        200, ge=1, le=100_000, description="Training updates of each of the corpus model's two halves."
    )
    device: Device = "auto"
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Clips per forward pass; by default 8, on a GPU 32, with Stable Video Diffusion 1.",
    )
    allow_slow: bool = Field(False, description="Allow Stable Video Diffusion without a GPU (half an hour per clip).")
    shards: int = Field(1, ge=1, le=100_000, description="Number of processes that the videos are split among.")
    shard: Shard = Field(
        None, description="Number of the shard that this process works on, from 0; auto: the index of the array job."
    )
    launcher: Launcher = None
    slurm_partition: SlurmPartition = None
    slurm_time: SlurmTime = "4:00:00"
    slurm_gres: SlurmGres = None
    slurm_cpus: SlurmCpus = None
    no_wait: NoWait = False
    devices: Devices = None
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Random seed of the noise and of the corpus model.")

    @model_validator(mode="after")
    def _shards_are_possible(self) -> NoveltyConfig:
        check_shards(self)
        return self
