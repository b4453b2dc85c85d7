"""Novelty: how unusual each clip is compared with a reference corpus, by the noise gap of a video diffusion model.

Blocks of videos are read again and measured into part files beside the output, so that a stopped run can continue and
shards can split the blocks. The shard that finds all blocks measured turns the measures into scores and weights.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import dataset, devices, noise_gap, storage
from pipeline.config import MergeConfig, NoveltyConfig
from pipeline.dataset import manifest
from pipeline.encoders import one_thread
from pipeline.errors import CorruptError, TryAgainError, VtpError
from pipeline.extraction import shards
from pipeline.extraction.shards import lock_path, parts_folder, settings_path, shard_number, split_by_cost
from pipeline.files import check_file_place, remove_leftovers, save_config, write_json
from pipeline.kept_inputs import is_hdf5_or_empty, keep_inputs, keep_others, settings_of
from pipeline.noise_gap import Block, Corpus, Scorer, model_folder, split_blocks
from pipeline.tasks import EPISODE_STEPS
from pipeline.text_files import read_text
from pipeline.writer_lock import WriterLock, one_writer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
SHARED = {"shards", "reference", "model", "draws", "resolution", "updates", "seed"}  # settings equal in all shards
PART_SETTINGS = ("corpus_sha256", "model_sha256", "arithmetic", "draws", "seed", "height", "width")
NOTES = ("model", "model_why", "device")  # of one shard


def run(cfg: NoveltyConfig, *, progress: Progress = lambda done, total, text: None) -> dict[str, Any]:
    """Score every clip of the embeddings file; returns the output of `--json`.

    A shard that is not the last to finish writes its blocks only, and returns how many blocks are measured.
    """
    started_s = time.monotonic()
    shard = shard_number(cfg.shards, cfg.shard)
    out = output(cfg)
    check_output(cfg)
    device = devices.choose(cfg.device)
    corpus = find_corpus(cfg)
    shared = json.dumps([corpus.sha256, cfg.model_dump(mode="json", include=SHARED), device.type])
    folder = parts_folder(out)
    with one_writer(lock_path(folder, cfg.shards, shard), out, settings=shared) as lock:
        for place, name in ((folder, None), *((out.parent, path.name) for path in written(out))):
            remove_leftovers(place, name)
        save_config(settings_path(out), portable(cfg))
        with devices.enough_memory("lower --batch-size or --resolution"):
            return _run(cfg, corpus, shard, out, device, lock, progress, started_s)


def output(cfg: NoveltyConfig) -> Path:
    return cfg.out or cfg.embeddings.with_name("novelty.h5")


def check_output(cfg: NoveltyConfig) -> None:
    """VtpError if the output would replace an input, or files that no earlier run wrote."""
    out = output(cfg)
    check_file_place(out)
    fits = cfg.model in ("auto", "corpus")
    keep_inputs(cfg, [parts_folder(out), *(path for path in written(out) if fits or path != model_folder(out))])
    keep_others({out: is_hdf5_or_empty, out.with_suffix(".yaml"): settings_of("embeddings", "model", "draws")})
    if fits:
        keep_others({model_folder(out): lambda path: (path / "corpus.json").exists()})


def _run(
    cfg: NoveltyConfig, corpus: Corpus, shard: int, out: Path, device: torch.device, lock: WriterLock,
    progress: Progress, started_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Measure this shard's blocks, and write `out` if no other block is missing."""
    num_known = int(corpus.reference.sum())
    if num_known < noise_gap.MIN_FOR_SCORES:
        logger.warning(
            "%d clips are too few for a reference, at least %d are needed; every clip gets weight 1",
            num_known, noise_gap.MIN_FOR_SCORES,
        )  # fmt: skip
        return write_ones(cfg, corpus, out, started_s)
    blocks = list(split_blocks(corpus))
    mine = [block for block, owner in zip(blocks, owners(cfg, blocks), strict=True) if owner == shard]
    scorer = noise_gap.choose_scorer(cfg, corpus, mine, out, device, progress)
    logger.info("model %s: %s", scorer.name, scorer.why)
    settings = {
        "corpus_sha256": corpus.sha256, "model_sha256": scorer.sha256, "arithmetic": scorer.arithmetic,
        "draws": cfg.draws, "seed": cfg.seed, "height": scorer.size[0], "width": scorer.size[1],
    }  # fmt: skip
    notes = {"model": scorer.name, "model_why": scorer.why, "device": devices.name_of(device)}
    write_json(measures_path(out), {"asked": asked(cfg)} | settings | notes)
    missing = [block for block in mine if read_block(out, block, settings) is None]
    measure_blocks(cfg, corpus, scorer, missing, out, settings | notes, progress)
    lock.check()
    parts = [read_block(out, block, settings) for block in blocks]
    if any(part is None for part in parts):
        num_measured = sum(part is not None for part in parts)
        logger.info("%d of %d blocks are measured; the shard that measures the last block writes %s",
                    num_measured, len(blocks), out)  # fmt: skip
        return {"path": None, "blocks": len(blocks), "blocks_measured": num_measured}
    return write_measured(cfg, corpus, [part for part in parts if part], settings | notes, out, started_s)


def merge(cfg: MergeConfig) -> dict[str, Any]:
    """Score what the shards have measured, with the settings that they saved beside their parts.

    CorruptError names what is missing and the command that measures it.
    """
    started_s = time.monotonic()
    saved = saved_config(cfg.out)
    corpus = find_corpus(saved)
    if corpus.reference.sum() < noise_gap.MIN_FOR_SCORES:
        return write_ones(saved, corpus, cfg.out, started_s)
    blocks = list(split_blocks(corpus))
    chosen = chosen_measures(cfg.out, corpus, saved)
    settings = {name: chosen[name] for name in PART_SETTINGS if chosen}
    parts = [read_block(cfg.out, block, settings) if settings else None for block in blocks]
    if lacking := [owner for owner, part in zip(owners(saved, blocks), parts, strict=True) if part is None]:
        shard = "" if saved.shards == 1 else f" --shard {min(lacking)}"
        raise CorruptError(
            f"{cfg.out} is incomplete: {len(lacking)} of {len(blocks)} blocks are not measured, or by another model; "
            f"run: vtp novelty --config {shlex.quote(str(settings_path(cfg.out)))}{shard}",
            code="shard-incomplete",
        )
    notes = {name: chosen[name] for name in NOTES}
    return write_measured(saved, corpus, [part for part in parts if part], settings | notes, cfg.out, started_s)


def blocks_measured(cfg: NoveltyConfig, corpus: Corpus) -> tuple[int, int]:
    """Number of blocks that shards have measured with these settings, and of all blocks."""
    out, blocks = output(cfg), list(split_blocks(corpus))
    if not (chosen := chosen_measures(out, corpus, cfg)):
        return 0, len(blocks)
    found = [dataset.root_attrs(block_path(out, block)) for block in blocks]
    return sum(all(attrs.get(name) == chosen[name] for name in PART_SETTINGS) for attrs in found), len(blocks)


def chosen_measures(out: Path, corpus: Corpus, cfg: NoveltyConfig) -> dict[str, Any]:
    """What the shards of `out` chose to measure with, for these settings; empty if none has chosen yet."""
    try:
        chosen = json.loads(read_text(measures_path(out)))
    except (OSError, ValueError):
        return {}
    is_for_these = {"asked": asked(cfg), "corpus_sha256": corpus.sha256}.items() <= chosen.items()
    return chosen if is_for_these and chosen.keys() >= {*PART_SETTINGS, *NOTES} else {}


def asked(cfg: NoveltyConfig) -> dict[str, Any]:
    """The settings that decide how clips are measured."""
    return portable(cfg).model_dump(mode="json", include=SHARED - {"shards"} | {"device"})


def owners(cfg: NoveltyConfig, blocks: Sequence[Block]) -> list[int]:
    """The shard of each block."""
    return split_by_cost([block.num_clips for block in blocks], cfg.shards)


def portable(cfg: NoveltyConfig) -> NoveltyConfig:
    """The config without a shard number and with absolute paths: valid for every shard in any working folder."""
    paths: dict[str, Any] = {"embeddings": cfg.embeddings.absolute(), "out": output(cfg).absolute()}
    if cfg.reference is not None:
        paths["reference"] = cfg.reference.absolute()
    if Path(cfg.model).is_dir():
        paths["model"] = os.path.abspath(cfg.model)
    return cfg.model_copy(update={"shard": None, **paths})


def saved_config(out: Path) -> NoveltyConfig:
    """The settings that the shards of `out` saved beside their parts."""
    return shards.saved_config(out, NoveltyConfig, "vtp novelty")


def find_corpus(cfg: NoveltyConfig) -> Corpus:
    """The clips to score and the reference clips; VtpError if they cannot be compared."""
    data = dataset.read_embeddings(cfg.embeddings)
    if cfg.reference is None:
        return Corpus((data,), np.ones(data.num_clips, bool))
    if cfg.reference.suffix.lower() in manifest.MANIFEST_SUFFIXES:
        return Corpus((data,), _clips_of_manifest(data, cfg))
    other = dataset.read_embeddings(cfg.reference)
    for name in ("weights_sha256", "projector_sha256", "clip_len", "fps"):
        if other.attrs.get(name) != data.attrs.get(name):
            raise VtpError(
                f"--reference {cfg.reference} has {name} {str(other.attrs.get(name))[:12]}, {cfg.embeddings} has "
                f"{str(data.attrs.get(name))[:12]}; extract one with the settings of the other, and its --projector",
                code="reference-differs",
            )
    return Corpus((data, other), np.repeat([False, True], [data.num_clips, other.num_clips]))


def _clips_of_manifest(data: dataset.Embeddings, cfg: NoveltyConfig) -> np.ndarray:
    assert cfg.reference is not None
    entries = manifest.read_manifest(cfg.reference)
    if wrong := next((entry.error for entry in entries if entry.error is not None), None):
        raise VtpError(f"--reference {wrong}", code="reference-damaged")
    wanted = {(storage.name_of(entry.path), entry.span): entry.video_id for entry in entries}
    held = [(path, content.span) for path, content in zip(data.videos.path, data.videos.contents, strict=True)]
    known = set(held)
    if missing := [name for key, name in wanted.items() if key not in known]:
        raise VtpError(
            f"--reference {cfg.reference} names {missing[0]!r}, which is not in {cfg.embeddings}; "
            f"extract it too, or give an embeddings file",
            code="reference-missing",
        )
    return np.repeat([key in wanted for key in held], np.diff(data.offset))


def written(out: Path) -> tuple[Path, ...]:
    """The files of a finished run: weights, settings and the corpus model."""
    return out, out.with_suffix(".yaml"), model_folder(out)


def measures_path(out: Path) -> Path:
    """Path of what the newest shard chose to measure with, beside the parts."""
    return parts_folder(out) / "measures.json"


def block_path(out: Path, block: Block) -> Path:
    return parts_folder(out) / f"block-{block.first_clip}-{block.num_clips}.h5"


def read_block(out: Path, block: Block, settings: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The measures of a block; None, which measures it again, if they are missing, damaged or of other settings."""
    try:
        return dataset.read_measures(block_path(out, block), settings)
    except TryAgainError:
        raise
    except VtpError:
        return None


def measure_blocks(
    cfg: NoveltyConfig, corpus: Corpus, scorer: Scorer, blocks: Sequence[Block], out: Path, attrs: dict[str, Any],
    progress: Progress,
) -> None:  # fmt: skip
    """Write a part for each block as soon as all its clips are measured."""
    total, done = sum(block.num_clips for block in blocks), 0
    block_of = np.repeat(np.arange(len(blocks)), [block.num_clips for block in blocks])
    row_of = np.concatenate([np.arange(b.first_clip, b.first_clip + b.num_clips) for b in blocks] or [np.zeros(0, int)])
    waiting: dict[int, list[noise_gap.Measures]] = {number: [] for number in range(len(blocks))}
    for rows, measures in noise_gap.measured(scorer, corpus, blocks, draws=cfg.draws, seed=cfg.seed):
        number = int(block_of[np.searchsorted(row_of, rows[0])])
        waiting[number].append((rows, measures))
        done += len(rows)
        progress(done, total, "clips measured")
        if sum(len(rows) for rows, _ in waiting[number]) == blocks[number].num_clips:
            found = waiting.pop(number)
            order = np.argsort(np.concatenate([rows for rows, _ in found]))
            columns = {
                name: torch.cat([measures[name] for _, measures in found]).cpu().numpy()[order] for name in found[0][1]
            }
            dataset.write_measures(block_path(out, blocks[number]), columns, attrs)


def score_clips(corpus: Corpus, measures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of novelty.h5, for the clips to score. Padded clips are not compared: score NaN, weight 1."""
    whole = corpus.whole
    reference = corpus.reference[whole]
    complexity = np.column_stack([measures["motion_energy"], measures["texture_energy"]])
    found = noise_gap.score(
        measures["gap"][whole], measures["thumbnails"][whole], complexity[whole], reference, corpus.folds[whole]
    )
    columns = {"z": found.z, "score": found.score, "knn": noise_gap.knn_distance(corpus.embeddings[whole], reference)}
    columns |= {f"channels/{name}": values for name, values in found.channels.items()}

    num_clips = corpus.files[0].num_clips
    own = whole[:num_clips]
    spread = {name: np.full((num_clips, *values.shape[1:]), np.nan) for name, values in columns.items()}
    for name, values in columns.items():
        spread[name][own] = values[: own.sum()]
    weight = np.ones(num_clips, np.float32)
    visits = clip_visits(corpus.files[0])
    weight[own] = noise_gap.weights(found.score[: own.sum()], visits[own])
    return spread | {
        "weight": weight,
        "gap": measures["gap"][:num_clips],
        "motion_energy": measures["motion_energy"][:num_clips],
        "texture_energy": measures["texture_energy"][:num_clips],
    }


def clip_visits(data: dataset.Embeddings) -> np.ndarray:
    """How often training plays each clip, [N]: videos are equally likely, and of a long one 60 steps are played."""
    visits = np.zeros(data.num_clips)
    videos, _, _ = dataset.split_rows(data)
    for start, end in videos:
        num_starts = max(1, end - start - EPISODE_STEPS + 1)
        clip = np.arange(end - start)
        first, last = np.maximum(clip - EPISODE_STEPS + 1, 0), np.minimum(clip, num_starts - 1)
        visits[start:end] = (last - first + 1) / num_starts
    return visits


def write_measured(
    cfg: NoveltyConfig, corpus: Corpus, parts: Sequence[dict[str, np.ndarray]], attrs: dict[str, Any], out: Path,
    started_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Write the scores of all blocks' measures."""
    measures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with one_thread():
        columns = score_clips(corpus, measures)
    attrs = attrs | {
        "sigmas": json.dumps(noise_gap.SIGMAS),
        "reference": storage.name_of(cfg.reference or "the clips themselves, by two-fold cross-fitting"),
    }
    return write_scores(cfg, corpus, columns, attrs, out, started_s)


def write_ones(cfg: NoveltyConfig, corpus: Corpus, out: Path, started_s: float) -> dict[str, Any]:
    """Write a weight of 1 for every clip, because the reference is too small."""
    num_clips = corpus.files[0].num_clips
    unknown = np.full(num_clips, np.nan)
    columns = {"score": unknown, "weight": np.ones(num_clips, np.float32)}
    attrs = {"model": "none", "model_why": f"fewer than {noise_gap.MIN_FOR_SCORES} clips to compare with"}
    return write_scores(cfg, corpus, columns, attrs, out, started_s)


def write_scores(
    cfg: NoveltyConfig,
    corpus: Corpus,
    columns: dict[str, np.ndarray],
    attrs: dict[str, Any],
    out: Path,
    started_s: float,
) -> dict[str, Any]:
    """Write novelty.h5 and its settings; returns the key numbers, with the detection by labels."""
    data = corpus.files[0]
    result: dict[str, Any] = {
        "path": str(out),
        "num_clips": data.num_clips,
        "num_scored": int(np.isfinite(columns["score"]).sum()),
    }
    result |= noise_gap.judge(data, columns)
    attrs = {"content_sha256": data.content_sha256, **attrs, "detection": json.dumps(result.get("detection", {}))}
    dataset.write_novelty(out, columns, attrs)
    save_config(out.with_suffix(".yaml"), cfg.model_copy(update={"shard": None}))
    return result | {"model": attrs["model"], "model_why": attrs["model_why"], "wall_s": time.monotonic() - started_s}
