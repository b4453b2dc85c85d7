"""Doctor: check that this machine can extract, and that an extraction is undamaged. It changes nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pipeline.extract as extraction
from pipeline import dataset, storage, synthetic
from pipeline.config import DoctorConfig, ExtractConfig
from pipeline.errors import CorruptError, VtpError
from pipeline.extraction import shards
from pipeline.extraction.inputs import read_inputs
from pipeline.extraction.parts import part_paths
from pipeline.extraction.shards import Done, parts_folder
from pipeline.video import Decoder

LITTLE_SPACE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """fix: the remedy, empty if all is well. is_damage: a finished file is damaged or missing."""

    subject: str
    found: str
    fix: str = ""
    is_damage: bool = False


def run(cfg: DoctorConfig) -> list[Finding]:
    """Check the machine and `cfg.out`. VtpError if `cfg.out` is given but no extraction is there."""
    shards.pull_output(cfg.out)
    storage.pull_file(cfg.out)
    if cfg.out.exists() and not cfg.out.is_file():
        raise VtpError(f"{cfg.out} is not a regular file; give the --out of vtp extract", code="output-is-no-file")
    if "out" in cfg.model_fields_set and not (cfg.out.exists() or parts_folder(cfg.out).exists()):
        raise VtpError(
            f"there is neither an embeddings file at {cfg.out} nor {parts_folder(cfg.out).name} beside it; give the "
            "--out of vtp extract, or no path to check only this machine",
            code="output-missing",
        )
    return [*check_machine(cfg.out), *check_output(cfg.out)]


def check_machine(out: Path) -> Iterator[Finding]:
    """Check both decoders on a test video, and the free space beside `out`."""
    frames = [np.full((96, 128, 3), 12 * number, np.uint8) for number in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.mp4"
        synthetic.write_mp4(path, frames)
        for name in ("decord", "pyav"):
            try:
                with Decoder(decoder=name) as decoder:
                    (clip,) = decoder.clips(path)
                wrong = np.abs(clip.frames.mean((1, 2, 3)) - 12 * np.arange(16)).max() > 6
                found = "decodes a test video to wrong frames" if wrong else "decodes a test video correctly"
                yield Finding(name, found, "reinstall vtp" if wrong else "")
            except VtpError as error:
                yield Finding(name, str(error), "reinstall vtp")
    existing = next(place for place in out.absolute().parents if place.is_dir())
    space = os.statvfs(existing)
    free_bytes = space.f_bavail * space.f_frsize
    fix = "" if free_bytes > LITTLE_SPACE_BYTES else "free some space"
    yield Finding("space", f"{free_bytes / 1e9:.1f} GB free in {existing}", fix)


def check_output(out: Path) -> Iterator[Finding]:
    """Check the embeddings file, its parts, and the progress of the shards."""
    if out.exists():
        try:
            data = dataset.read_embeddings(out, or_features=True)
            dataset.check_rows(data.features)
            kind = "" if data.has_embeddings else ", features only"
            yield Finding(storage.name_of(out), f"undamaged: {data.num_clips} clips of {data.num_videos} videos{kind}")
        except VtpError as error:
            yield Finding(storage.name_of(out), *_split(error), is_damage=isinstance(error, CorruptError))
    folder = parts_folder(out)
    if not shards.settings_path(out).exists():
        yield Finding(storage.name_of(folder), "no extraction was started here")
        return
    try:
        cfg = shards.saved_config(out, ExtractConfig, "vtp extract SOURCE")
    except VtpError as error:
        yield Finding(storage.name_of(folder), *_split(error), is_damage=True)
        return
    for path in part_paths(folder):
        try:
            dataset.check_rows(dataset.read_part(path).clips.features)
        except VtpError as error:
            yield Finding(path.name, str(error).partition(";")[0], f"run: {_redo(cfg, path.name)}", is_damage=True)
    try:
        entries = read_inputs(cfg).entries
    except VtpError as error:
        yield Finding(storage.name_of(cfg.source), *_split(error))
        return
    rows = {row.video_id: row for row in shards.read_ledgers(folder, cfg.shards)}
    outcomes = [rows[entry.video_id] for entry in entries if entry.video_id in rows]
    for name in sorted({row.part for row in outcomes if isinstance(row, Done)}):
        if not (folder / name).exists():
            yield Finding(name, "is missing", f"run: {_redo(cfg, name)}", is_damage=True)
    done = sum(isinstance(row, Done) for row in outcomes)
    state = f"{done} of {len(entries)} videos are done, {len(outcomes) - done} have failed"
    try:
        extraction.check_complete(cfg, entries, rows)
        yield Finding(storage.name_of(folder), state)
    except VtpError as error:
        yield Finding(
            storage.name_of(folder), f"{state}, {len(entries) - len(outcomes)} are still to do", _split(error)[1]
        )
    leftovers = sorted(path.name for path in [*folder.glob(".*.tmp"), *folder.glob("*.damaged")])
    if leftovers:
        yield Finding(
            storage.name_of(folder),
            f"{len(leftovers)} temporary or damaged files, such as {leftovers[0]}",
            "delete them when no process is writing here",
        )


def _redo(cfg: ExtractConfig, part: str) -> str:
    return shards.redo_command(cfg, shards.shard_of_part(cfg, part))


def _split(error: VtpError) -> tuple[str, str]:
    found, _, fix = storage.with_urls(str(error)).rpartition("; ")
    return found, fix
