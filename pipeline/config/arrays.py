"""Settings of a stage that runs as an array: launcher, Slurm resources, GPUs and random seeds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from pipeline.config.base import MAX_SEED, Config

# None: no array, the stage runs in this process.
Launcher = Annotated[
    Literal["local", "slurm"] | None,
    Field(description="Run as an array: local processes, or Slurm jobs."),
]
SlurmPartition = Annotated[str | None, Field(description="Slurm partition; by default the cluster's.")]
SlurmTime = Annotated[
    str,
    AfterValidator(lambda text: (slurm_minutes(text), text)[1]),
    Field(description="Time limit per Slurm task, in minutes or as [D-]H:MM:SS; a task that reaches it is requeued."),
]
SlurmGres = Annotated[str | None, Field(description="Slurm generic resources per task, such as gpu:1.")]
SlurmCpus = Annotated[int | None, Field(ge=1, description="Processors per Slurm task; by default Slurm's.")]
NoWait = Annotated[bool, Field(description="Submit the Slurm array and print the command that finishes it.")]
SLURM_SETTINGS = ("slurm_partition", "slurm_time", "slurm_gres", "slurm_cpus", "no_wait")
C = TypeVar("C", bound=Config)


def device_numbers(text: str | None) -> str | None:
    """The text if it is `all` or GPU numbers; else ValueError."""
    numbers = (text or "0").split(",")
    if text != "all" and not (all(number.isdecimal() for number in numbers) and len(set(numbers)) == len(numbers)):
        raise ValueError("must be all or GPU numbers such as 0,1,2,3")
    return text


Devices = Annotated[
    str | None,
    AfterValidator(device_numbers),
    Field(
        description="GPUs of this machine, such as 0,1,2,3 or all: one process per GPU; videos are split among them."
    ),
]


def slurm_minutes(text: str) -> int:
    """A Slurm time limit, minutes or [days-]hours:minutes:seconds, in minutes, rounded up; else ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    total = int(text) if text.isdecimal() else 1440 * days + 60 * hours + minutes + -(-seconds // 60)
    if total == 0:
        raise ValueError("must be a time limit such as 90, 4:00:00 or 1-12:00:00")
    return total


def check_launcher(cfg: Any) -> None:
    """ValueError if a Slurm setting would have no effect."""
    for name in SLURM_SETTINGS:
        if cfg.launcher != "slurm" and getattr(cfg, name) != type(cfg).model_fields[name].default:
            raise ValueError(f"--{name.replace('_', '-')} needs --launcher slurm")


def check_shards(cfg: Any) -> None:
    """ValueError if the settings of shards contradict each other, or one of them would have no effect."""
    if isinstance(cfg.shard, int) and cfg.shard >= cfg.shards:
        raise ValueError(f"shard ({cfg.shard}) is not below shards ({cfg.shards}); count from 0")
    if cfg.launcher and cfg.shards == 1:
        raise ValueError("--launcher runs an array; add --shards, the number of its tasks")
    if cfg.launcher and cfg.shard is not None:
        raise ValueError(f"--launcher runs all shards and --shard {cfg.shard} only one; drop either")
    if cfg.devices and cfg.shard is not None:
        raise ValueError(f"--devices works on all videos and --shard {cfg.shard} on some; drop either")
    if cfg.devices and cfg.device != "auto":
        raise ValueError(
            f"--devices runs one process on each GPU, --device {cfg.device} computes on one device; drop either"
        )
    if cfg.devices and cfg.launcher == "slurm":
        raise ValueError("--devices selects GPUs of this machine; with Slurm, request them: --slurm-gres gpu:1")
    check_launcher(cfg)


def alone(cfg: C) -> C:
    """The settings of one task of the array: the same without launcher and devices."""
    names = [name for name in ("launcher", "devices", *SLURM_SETTINGS) if name in type(cfg).model_fields]
    return cfg.model_copy(update={name: type(cfg).model_fields[name].default for name in names})


MAX_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """Random seeds in rising order from text such as "0-4" or "0,2,7-9"; ValueError for other text."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        if match is None:
            raise ValueError("must be like 0-4 or 0,2,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise ValueError(f"a range must rise, and stay at or below {MAX_SEED}")
        if last - first + len(seeds) >= MAX_SEEDS:
            raise ValueError(f"at most {MAX_SEEDS} seeds are allowed")
        seeds.update(range(first, last + 1))
    return sorted(seeds)
