"""Several processes, one output: the shard of each video, and its result.

Beside an output `embeddings.h5` is `embeddings.parts`: part files with features, `config.yaml` with the settings, and
one ledger per shard, `shard-I-of-N.jsonl`, with a row for each video that is done or has failed.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from pipeline import storage
from pipeline.config import Config, ExtractConfig
from pipeline.dataset.segment import Content, Segment
from pipeline.errors import CorruptError, VtpError
from pipeline.files import write_text
from pipeline.text_files import read_text
from pipeline.video import Span

ARRAY_INDEX = {  # environment variables with the index of an array job
    "SLURM_ARRAY_TASK_ID": "Slurm",
    "JOB_COMPLETION_INDEX": "Kubernetes",
    "AWS_BATCH_JOB_ARRAY_INDEX": "AWS Batch",
}
LEDGER_S = 10.0
VIDEO_COST_BYTES = 1 << 17  # cost of opening a video, in bytes of video

C = TypeVar("C", bound=Config)
Stamp = tuple[int, int, int]  # size, mtime and ctime of a file, in ns


@dataclass(frozen=True, slots=True)
class Done:
    """A video whose features are in a part; stamp is that of the file that was read."""

    video_id: str
    path: str
    stamp: Stamp
    sha256: str
    part: str
    start_s: float | None = None
    end_s: float | None = None

    @property
    def content(self) -> Content:
        return Content(self.sha256, Span(self.start_s, self.end_s))


@dataclass(frozen=True, slots=True)
class Failed:
    """A row of failures.jsonl."""

    path: str
    video_id: str
    stage: str
    code: str
    reason: str
    fix: str


Outcome = Done | Failed


def parts_folder(out: Path) -> Path:
    return out.parent / f"{out.stem}.parts"


def settings_path(out: Path) -> Path:
    """Path of an extraction's settings, beside its parts."""
    return parts_folder(out) / "config.yaml"


def pull_output(out: Path) -> None:
    """Download the files beside an output in object storage: other machines' parts, and files not to be overwritten."""
    if storage.url_of(out) is None:
        return
    storage.check_bucket(out)
    storage.pull(parts_folder(out))
    for path in (out.with_suffix(".yaml"), out.with_name("failures.jsonl")):
        storage.pull_file(path)


def shard_number(shards: int, shard: int | str | None) -> int:
    """Number of this process's shard, 0 to shards − 1; "auto" takes the index of the array job that it runs in."""
    if shard == "auto":
        variable = next((name for name in ARRAY_INDEX if name in os.environ), None)
        if variable is None:
            raise VtpError(
                f"--shard auto: not running inside an array job (none of {', '.join(ARRAY_INDEX)} is set); "
                "give a number",
                code="shard-no-array",
            )
        text = os.environ[variable]
        if not (text.isascii() and text.isdigit()):
            raise VtpError(
                f"--shard auto: {variable} is {text!r}, not a whole number from 0 on; give --shard a number",
                code="shard-no-array",
            )
        shard = int(text)
        if shard >= shards:
            raise VtpError(
                f"--shard auto: {variable} is {shard} and there are {shards} shards; "
                f"number the array 0 to {shards - 1}",
                code="shard-out-of-range",
            )
    if shard is None and shards > 1:
        raise VtpError(
            f"--shards {shards} needs --shard, a number from 0 to {shards - 1} or auto", code="shard-missing"
        )
    return int(shard or 0)


def share(entries: Sequence[Segment], shards: int, shard: int) -> list[Segment]:
    """The videos of one shard, in their order: each video is in one shard, and shards have about equal bytes."""
    return [entry for entry, owner in zip(entries, owners(entries, shards), strict=True) if owner == shard]


def owners(entries: Sequence[Segment], shards: int) -> list[int]:
    """The shard of each video. Segments of a file share a shard, and so a pass, unless there are too few files."""
    if shards == 1:
        return [0] * len(entries)
    files: dict[Path, list[int]] = {}
    for number, entry in enumerate(entries):
        files.setdefault(entry.path, []).append(number)
    cost_of = _costs(list(files))
    fair = max(1, sum(cost_of.values()) // shards)
    runs: list[np.ndarray] = []  # segments cut in one pass
    costs: list[int] = []
    for path, numbers in files.items():
        pieces = np.array_split(np.array(numbers), min(len(numbers), -(-cost_of[path] // fair)))
        runs += pieces
        costs += [cost_of[path] // len(pieces)] * len(pieces)
    chosen = [0] * len(entries)
    for run, owner in zip(runs, split_by_cost(costs, shards), strict=True):
        for number in run:
            chosen[number] = owner
    return chosen


def split_by_cost(costs: Sequence[int], shards: int) -> list[int]:
    """The shard of each cost: largest first, each to the shard with the smallest sum so far."""
    loads = [(0, shard) for shard in range(shards)]
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, chosen[index] = loads[0]
        heapq.heapreplace(loads, (load + costs[index], chosen[index]))
    return chosen


def _costs(paths: Sequence[Path]) -> dict[Path, int]:
    """Cost of each file, equal on all machines whether or not it has been fetched there."""
    num_bytes = storage.sizes_of([path for path in paths if storage.url_of(path) is not None])
    for path in paths:
        with contextlib.suppress(OSError):  # fails later, when it is read
            if storage.url_of(path) is None:
                num_bytes[path] = path.stat().st_size
    return {path: VIDEO_COST_BYTES + num_bytes.get(path, 0) for path in paths}


def ledger_path(folder: Path, shards: int, shard: int) -> Path:
    return folder / f"shard-{shard}-of-{shards}.jsonl"


def lock_path(folder: Path, shards: int, shard: int) -> Path:
    """Lock of the process that writes that ledger and its parts."""
    return folder / f".shard-{shard}-of-{shards}.lock"


class Ledger:
    """The result of each of one shard's videos. Results lost before they were written are found again in the parts.

    It starts with the videos that an earlier run finished. Those that failed are tried again.
    """

    def __init__(self, path: Path, entries: Iterable[Segment]):
        self.path = path
        self._written_s = -LEDGER_S
        ids = {entry.video_id for entry in entries}
        self._outcomes: dict[str, Outcome] = {
            row.video_id: row for row in read_ledger(path) if isinstance(row, Done) and row.video_id in ids
        }
        self._sha256_of = {
            (row.path, row.stamp): row.sha256 for row in self._outcomes.values() if isinstance(row, Done)
        }

    @property
    def failures(self) -> list[Failed]:
        return [row for row in self._outcomes.values() if isinstance(row, Failed)]

    def known_sha256(self, path: Path, stamp: Stamp) -> str | None:
        """The sha256 of a file that was hashed before and has not changed since."""
        return self._sha256_of.get((storage.name_of(path), stamp))

    def record(self, outcome: Outcome) -> None:
        self._outcomes[outcome.video_id] = outcome

    def write(self) -> None:
        write_rows(self.path, self._outcomes.values())
        self._written_s = time.monotonic()

    def write_if_due(self) -> None:
        """Write if ten seconds have passed, so that progress can be followed."""
        if time.monotonic() - self._written_s >= LEDGER_S:
            self.write()


def write_rows(path: Path, outcomes: Iterable[Outcome]) -> None:
    write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in outcomes))


def read_ledger(path: Path) -> list[Outcome]:
    """Its rows; none if it does not exist yet."""
    try:
        return [_outcome(json.loads(line)) for line in read_text(path).split("\n") if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptError(
            f"{path} is damaged ({error}); delete it and run the same extraction again", code="ledger-damaged"
        ) from error


def _outcome(row: dict[str, Any]) -> Outcome:
    return Done(**row | {"stamp": tuple(row["stamp"])}) if "stamp" in row else Failed(**row)


def read_ledgers(folder: Path, shards: int) -> Iterator[Outcome]:
    for shard in range(shards):
        yield from read_ledger(ledger_path(folder, shards, shard))


def saved_config(out: Path, kind: type[C], command: str) -> C:
    """The settings that the command which writes `out` saved beside its parts."""
    path = settings_path(out)
    if not path.exists():
        raise VtpError(
            f"{out} has no parts ({path} does not exist); make them with: {command} --out {out}",
            code="parts-missing",
        )
    try:
        return kind(**yaml.safe_load(read_text(path)) | {"out": out})
    except (OSError, ValueError, yaml.YAMLError, TypeError) as error:
        raise CorruptError(
            f"{path} is not a settings file of this vtp version ({str(error).splitlines()[0]}); run the same "
            "command again",
            code="config-damaged",
        ) from error


def redo_command(cfg: ExtractConfig, shard: int) -> str:
    """The command that extracts a shard's missing videos."""
    config = storage.name_of(settings_path(cfg.out))
    command = f"vtp extract --config {shlex.quote(config)}"
    return command if cfg.shards == 1 else f"{command} --shard {shard}"


def shard_of_part(cfg: ExtractConfig, name: str) -> int:
    """The shard whose ledger names that part; 0 if none does."""
    for shard in range(cfg.shards):
        rows = read_ledger(ledger_path(parts_folder(cfg.out), cfg.shards, shard))
        if any(isinstance(row, Done) and row.part == name for row in rows):
            return shard
    return 0
