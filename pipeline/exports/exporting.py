"""Export an embeddings file to the files of another library; the output is complete or absent."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import __version__, storage
from pipeline.config import AnyExportConfig, MinariExportConfig, NpyExportConfig, ParquetExportConfig
from pipeline.dataset import Embeddings, read_embeddings
from pipeline.errors import VtpError
from pipeline.exports import d3rlpy_file, lerobot_folder, minari_folder, npy_folder, parquet_table
from pipeline.exports.clip_steps import SPLITS, Steps, priced_logs, steps_of
from pipeline.files import atomic_folder, atomic_path, remove_leftovers, write_json
from pipeline.kept_inputs import keep_inputs

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
FILES = {"parquet": ".parquet", "d3rlpy": ".d3rlpy.h5"}  # single-file formats and their default suffixes
FOLDERS = {"npy": "-npy", "lerobot": "-lerobot", "minari": "-minari-v0"}
ORIGIN = "export.json"  # origin of a folder; marks it as replaceable by vtp


@dataclass(frozen=True)
class ExportResult:
    """The written export. left_out: clips of the videos whose labels lack values that the format needs."""

    path: Path
    to: str
    num_clips: int
    num_videos: int
    num_episodes: int
    left_out: int
    load: str  # Python code that loads it


def run(cfg: AnyExportConfig, *, progress: Progress = lambda done, total, text: None) -> ExportResult:
    """Write the data set in the format `cfg.to`.

    VtpError, and nothing written, if the output exists (unless `cfg.overwrite` is set and it is an earlier export), or
    if the labels lack values that the format needs.
    """
    out = cfg.out or default_out(cfg)
    keep_inputs(cfg, [out])
    check_output(cfg, out)
    progress(0, 1, f"reading {cfg.embeddings}")
    data = read_embeddings(cfg.embeddings, or_features=cfg.to in ("npy", "parquet"))
    videos = videos_of_split(data, cfg)
    origin = {
        "to": cfg.to, "vtp_version": __version__, "embeddings": storage.name_of(cfg.embeddings),
        "split": cfg.split or "all",
        "content_sha256": data.content_sha256,
    }  # fmt: skip
    remove_leftovers(out.parent, out.name)
    if cfg.to in FILES:
        with atomic_path(out) as temporary:
            steps = _write_file(cfg, data, videos, temporary, origin, progress)
    else:
        with atomic_folder(out) as temporary:
            steps = _write_folder(cfg, data, videos, temporary, out.name, progress)
            write_json(temporary / ORIGIN, origin)
    num_clips, num_videos, num_episodes, left_out = int(np.diff(data.offset)[videos].sum()), len(videos), len(videos), 0
    if steps is not None:
        num_clips, num_episodes, left_out = steps.num_steps, len(steps.episodes), steps.left_out
        num_videos = len({episode.video for episode in steps.episodes})
    return ExportResult(out, cfg.to, num_clips, num_videos, num_episodes, left_out, _loading(cfg, out))


def _write_file(
    cfg: AnyExportConfig, data: Embeddings, videos: np.ndarray, path: Path, origin: dict[str, str], progress: Progress
) -> Steps | None:
    """Return the written steps; None if every clip was written."""
    assert not isinstance(cfg, NpyExportConfig)
    logs = priced_logs(data, cfg.task)
    if isinstance(cfg, ParquetExportConfig):
        parquet_table.write(path, data, logs, videos, cfg.novelty, json.dumps(origin), progress)
        return None
    steps = steps_of(data, logs, videos, must_have=cfg.to)
    d3rlpy_file.write(path, data, steps, origin, progress)
    return steps


def _write_folder(
    cfg: AnyExportConfig, data: Embeddings, videos: np.ndarray, folder: Path, name: str, progress: Progress
) -> Steps | None:
    """Return the written steps; None if every clip was written. name: of the finished folder."""
    if isinstance(cfg, NpyExportConfig):
        npy_folder.write(folder, data, videos, progress)
        return None
    logs = priced_logs(data, cfg.task)
    if isinstance(cfg, MinariExportConfig):
        steps = steps_of(data, logs, videos, must_have=cfg.to)
        minari_folder.write(folder, data, steps, name, progress)
    else:
        steps = steps_of(data, logs, videos)
        lerobot_folder.write(folder, data, steps, progress)
    return steps


def default_out(cfg: AnyExportConfig) -> Path:
    """Beside the embeddings, named after them and the format."""
    stem = cfg.embeddings.stem
    if cfg.to == "minari":
        stem = re.sub(r"[^\w-]", "_", stem)
    return cfg.embeddings.with_name(stem + (FILES | FOLDERS)[cfg.to])


def check_output(cfg: AnyExportConfig, out: Path) -> None:
    """VtpError if the output exists and may not be replaced, or if its name is not valid."""
    if cfg.to == "minari":
        minari_folder.check_name(out)
    if out.name in ("", ".."):
        raise VtpError(f"--out {out} is an existing folder; name a new one in it", code="output-name")
    if out.is_symlink():
        raise VtpError(f"--out {out} is a link; name the file or folder itself", code="output-is-link")
    if not out.exists():
        return
    if cfg.to in FILES:
        if out.is_dir():
            raise VtpError(f"--out {out} is a folder, and {cfg.to} is one file; name a file", code="output-is-folder")
        if not (parquet_table if cfg.to == "parquet" else d3rlpy_file).is_export(out):
            raise VtpError(f"--out {out} was not exported by vtp; name a new file", code="output-exists")
    else:
        if not out.is_dir():
            raise VtpError(
                f"--out {out} is a file, and {cfg.to} is a folder of files; name a folder", code="output-is-file"
            )
        if not os.listdir(out):
            return
        if not (out / ORIGIN).is_file():
            raise VtpError(
                f"--out {out} has files that were not exported by vtp; name a new folder", code="output-exists"
            )
    if not cfg.overwrite:
        raise VtpError(f"--out {out} exists; name another, or add --overwrite", code="output-exists")


def videos_of_split(data: Embeddings, cfg: AnyExportConfig) -> np.ndarray:
    """The exported videos, [V]."""
    split = np.array(data.videos.split)
    if cfg.split is None:
        return np.arange(data.num_videos)
    videos = np.flatnonzero(split == cfg.split)
    if len(videos) == 0:
        counts = ", ".join(f"{int((split == name).sum())} {name}" for name in SPLITS)
        raise VtpError(
            f"no video of {cfg.embeddings} is in split {cfg.split} ({counts}); name another, or leave --split out",
            code="split-empty",
        )
    return videos


def _loading(cfg: AnyExportConfig, out: Path) -> str:
    path = os.fspath(out)
    return {
        "npy": f"pandas.read_csv({os.path.join(path, npy_folder.INDEX)!r})  # and numpy.load",
        "parquet": f"pandas.read_parquet({path!r})",
        "lerobot": f"LeRobotDataset({'vtp/' + out.name!r}, root={path!r})",
        "minari": f"minari.MinariDataset({os.path.join(path, 'data')!r})",
        "d3rlpy": f"d3rlpy.dataset.ReplayBuffer.load(open({path!r}, 'rb'), d3rlpy.dataset.InfiniteBuffer())",
    }[cfg.to]
