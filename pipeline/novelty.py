"""Novelty: how unusual each clip is compared with a reference corpus, by the noise gap of a video diffusion model.

Blocks of videos are read again and measured into part files beside the output, so that a stopped run can continue and
shards can split the blocks. The shard that finds all blocks measured turns the measures into scores and weights.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import dataset, noise_gap, storage
from pipeline.config import NoveltyConfig
from pipeline.dataset import manifest
from pipeline.encoders import one_thread
from pipeline.errors import TryAgainError, VtpError
from pipeline.extraction.shards import lock_path, parts_folder, shard_number, split_by_cost
from pipeline.files import atomic_folder, check_file_place, remove_leftovers, save_config, write_json
from pipeline.kept_inputs import is_hdf5_or_empty, keep_inputs, keep_others, settings_of
from pipeline.noise_gap import Block, Corpus, read_clips, split_blocks
from pipeline.tasks import EPISODE_STEPS
from pipeline.text_files import read_text
from pipeline.video import FRAME_SIZE
from pipeline.writer_lock import WriterLock, one_writer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
SHARED = {"shards", "reference", "model", "draws", "resolution", "updates", "seed"}  # settings equal in all shards
MAX_FIT_CLIPS = 2048
THUMBNAIL = (8, 8)
CORPUS_FRAMES = 8
CORPUS_HEIGHT = 64
SVD_HEIGHT, SVD_ASPECT = 320, 576 / 320


@dataclass(frozen=True)
class Scorer:
    """Clips of fold f are scored by backends[f]; a model that was not trained on the corpus scores both folds."""

    name: str
    why: str
    sha256: str
    size: tuple[int, int]  # height and width of the model's frames
    backends: tuple[noise_gap.Backend, ...]

    @property
    def num_frames(self) -> int:
        return self.backends[0].num_frames

    @property
    def frame_size(self) -> tuple[int, int]:
        """Size of decoded frames: at least the model's, to which they are then averaged down."""
        return max(self.size, FRAME_SIZE)


def run(cfg: NoveltyConfig, *, progress: Progress = lambda done, total, text: None) -> dict[str, Any]:
    """Score every clip of the embeddings file; returns the output of `--json`.

    A shard that is not the last to finish writes its blocks only, and returns how many blocks are measured.
    """
    started_s = time.monotonic()
    shard = shard_number(cfg.shards, cfg.shard)
    out = cfg.out or cfg.embeddings.with_name("novelty.h5")
    check_file_place(out)
    folder = parts_folder(out)
    fits = cfg.model in ("auto", "corpus")
    keep_inputs(cfg, [folder, *(path for path in written(out) if fits or path != model_folder(out))])
    keep_others({out: is_hdf5_or_empty, out.with_suffix(".yaml"): settings_of("embeddings", "model", "draws")})
    if fits:
        keep_others({model_folder(out): lambda path: (path / "corpus.json").exists()})
    corpus = find_corpus(cfg)
    shared = json.dumps([corpus.sha256, cfg.model_dump(mode="json", include=SHARED)])
    with one_writer(lock_path(folder, cfg.shards, shard), out, settings=shared) as lock:
        for place, name in ((folder, None), *((out.parent, path.name) for path in written(out))):
            remove_leftovers(place, name)
        return _run(cfg, corpus, shard, out, lock, progress, started_s)


def _run(
    cfg: NoveltyConfig, corpus: Corpus, shard: int, out: Path, lock: WriterLock, progress: Progress, started_s: float
) -> dict[str, Any]:
    """Measure this shard's blocks, and write `out` if no other block is missing."""
    num_known = int(corpus.reference.sum())
    if num_known < noise_gap.MIN_FOR_SCORES:
        logger.warning(
            "%d clips are too few for a reference, at least %d are needed; every clip gets weight 1",
            num_known, noise_gap.MIN_FOR_SCORES,
        )  # fmt: skip
        return write_ones(cfg, corpus, out, started_s)
    scorer = choose_scorer(cfg, corpus, out, progress)
    logger.info("model %s: %s", scorer.name, scorer.why)

    settings = {
        "corpus_sha256": corpus.sha256, "model_sha256": scorer.sha256, "draws": cfg.draws, "seed": cfg.seed,
        "height": scorer.size[0], "width": scorer.size[1],
    }  # fmt: skip
    blocks = list(split_blocks(corpus))
    owners = split_by_cost([block.num_clips for block in blocks], cfg.shards)
    mine = [block for block, owner in zip(blocks, owners, strict=True) if owner == shard]
    missing = [block for block in mine if read_block(out, block, settings) is None]
    measure_blocks(cfg, corpus, scorer, missing, out, settings, progress)
    lock.check()
    parts = [part for block in blocks if (part := read_block(out, block, settings)) is not None]
    if len(parts) < len(blocks):
        logger.info("%d of %d blocks are measured; the shard that measures the last block writes %s",
                    len(parts), len(blocks), out)  # fmt: skip
        return {"path": None, "blocks": len(blocks), "blocks_measured": len(parts)}
    measures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with one_thread():
        columns = score_clips(corpus, measures)
    attrs = settings | {
        "model": scorer.name, "model_why": scorer.why, "sigmas": json.dumps(noise_gap.SIGMAS),
        "reference": storage.name_of(cfg.reference or "the clips themselves, by two-fold cross-fitting"),
    }  # fmt: skip
    return write_scores(cfg, corpus, columns, attrs, out, started_s)


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


def choose_scorer(cfg: NoveltyConfig, corpus: Corpus, out: Path, progress: Progress) -> Scorer:
    """The model named by `--model`. VtpError if it cannot be loaded, or would be too slow without a GPU."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if cfg.model == "corpus" or (cfg.model == "auto" and not gpu):
        why = "trained on these clips" + ("" if cfg.model == "corpus" else ": Stable Video Diffusion needs a GPU")
        return corpus_scorer(cfg, corpus, out, why, progress)
    if cfg.model == "auto":
        try:
            return svd_scorer(cfg, noise_gap.load_svd(noise_gap.HUB_ID, device=device), "there is a GPU")
        except VtpError as error:
            reason = str(error).split(";")[0]
            why = f"trained on these clips, because Stable Video Diffusion could not be loaded ({reason})"
            return corpus_scorer(cfg, corpus, out, why, progress)
    if Path(cfg.model).is_dir() and noise_gap.pipeline_class(Path(cfg.model)) == noise_gap.CORPUS_CLASS:
        backend = noise_gap.load_corpus(Path(cfg.model))
        if backend.embedding_dim != corpus.embeddings.shape[1]:
            raise VtpError(
                f"model {cfg.model} is for embeddings of {backend.embedding_dim} numbers; use --model corpus",
                code="model-wrong",
            )
        height = cfg.resolution or CORPUS_HEIGHT
        return Scorer(
            "corpus", f"read from {cfg.model}", noise_gap.folder_sha256(Path(cfg.model)), (height, height), (backend,)
        )
    if not (gpu or cfg.allow_slow):
        raise VtpError(
            "Stable Video Diffusion takes half an hour per clip without a GPU; use --model corpus, or --allow-slow",
            code="gpu-missing",
        )
    return svd_scorer(cfg, noise_gap.load_svd(cfg.model, device=device), f"read from {cfg.model}")


def svd_scorer(cfg: NoveltyConfig, backend: noise_gap.SvdBackend, why: str) -> Scorer:
    if cfg.updates != NoveltyConfig.model_fields["updates"].default:
        raise VtpError(
            f"--updates {cfg.updates} trains the corpus model, but Stable Video Diffusion scores these clips; "
            "leave it out, or use --model corpus",
            code="setting-without-effect",
        )
    height = cfg.resolution or SVD_HEIGHT
    factor = backend.multiple
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, height * SVD_ASPECT))
    return Scorer("svd", why, backend.sha256, (rows, columns), (backend,))


def corpus_scorer(cfg: NoveltyConfig, corpus: Corpus, out: Path, why: str, progress: Progress) -> Scorer:
    """Two small models, each trained on half of the reference; those saved beside `out` are reused if they match."""
    height = cfg.resolution or CORPUS_HEIGHT
    num_frames = min(CORPUS_FRAMES, int(corpus.files[0].attrs["clip_len"]))
    if num_frames < 2:
        raise VtpError(
            f"clip_len ({num_frames}) is too short to show motion; extract with --clip-len 2 or more",
            code="clips-short",
        )
    what = {"corpus": corpus.sha256, "height": height, "frames": num_frames, "updates": cfg.updates, "seed": cfg.seed}
    folder = model_folder(out)
    with one_writer(folder.with_name(f".{folder.name}.lock"), folder, wait=True):  # all shards share it
        if not _fits(folder, what):
            with atomic_folder(folder) as temporary:
                fit_folds(cfg, corpus, height, num_frames, temporary, progress)
                write_json(temporary / "corpus.json", what)
    backends = tuple(noise_gap.load_corpus(folder / f"fold-{fold}") for fold in (0, 1))
    return Scorer("corpus", why, noise_gap.folder_sha256(folder), (height, height), backends)


def model_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}.model")


def written(out: Path) -> tuple[Path, ...]:
    """The files of a finished run: weights, settings and the corpus model."""
    return out, out.with_suffix(".yaml"), model_folder(out)


def _fits(folder: Path, what: dict[str, Any]) -> bool:
    try:
        return json.loads(read_text(folder / "corpus.json")) == what
    except (OSError, ValueError):
        return False


def fit_folds(
    cfg: NoveltyConfig, corpus: Corpus, height: int, num_frames: int, folder: Path, progress: Progress
) -> None:
    """Train fold-0 and fold-1 in `folder`, each on the reference clips of the other fold."""
    rows = np.flatnonzero(corpus.reference)
    rows = rows[:: 1 + len(rows) // MAX_FIT_CLIPS]
    images = torch.empty(0)
    kept = 0
    for block in split_blocks(corpus):
        for _, frames in read_clips(corpus, block, wanted=rows):
            pixels = ((noise_gap.to_images(frames, (height, height)) + 1) * 127.5).round().to(torch.uint8)
            if kept == 0:
                images = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8)
            images[kept : kept + len(pixels)] = pixels
            kept += len(pixels)
            progress(kept, len(rows), "clips read to train on")
    embeddings = torch.from_numpy(corpus.embeddings[rows])

    def half(number: int) -> Progress:
        return lambda done, total, text: progress(done, total, f"updates of half {number}, {text}")

    for fold in (0, 1):
        learned = corpus.folds[rows] != fold
        if learned.sum() < 2:
            learned[:] = True
        backend = noise_gap.fit(
            images[learned], embeddings[learned], num_frames=num_frames, updates=cfg.updates, seed=cfg.seed + fold,
            progress=half(fold + 1),
        )  # fmt: skip
        backend.save(folder / f"fold-{fold}")


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
    cfg: NoveltyConfig, corpus: Corpus, scorer: Scorer, blocks: list[Block], out: Path, settings: dict[str, Any],
    progress: Progress,
) -> None:  # fmt: skip
    total, done = sum(block.num_clips for block in blocks), 0
    for block in blocks:
        measured = []
        batches = read_clips(corpus, block, frame_size=scorer.frame_size, batch_size=cfg.batch_size)
        for part in _measured(batches, scorer, corpus, draws=cfg.draws, seed=cfg.seed):
            measured.append(part)
            done += len(part["gap"])
            progress(done, total, "clips measured")
        columns = {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
        dataset.write_measures(block_path(out, block), columns, settings)


def _measured(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], scorer: Scorer, corpus: Corpus, *, draws: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """The measures of each batch, in order.

    The corpus model measures each batch on one thread, several in parallel, so that results do not depend on the number
    of threads. Stable Video Diffusion uses all threads for one batch.
    """
    if scorer.name != "corpus":
        for rows, frames in batches:
            yield measure(scorer, corpus, rows, frames, draws=draws, seed=seed)
        return
    workers = torch.get_num_threads()
    waiting: deque[Future[dict[str, np.ndarray]]] = deque()
    with ThreadPoolExecutor(workers, "measure", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for rows, frames in batches:
            waiting.append(pool.submit(measure, scorer, corpus, rows, frames, draws=draws, seed=seed))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def measure(
    scorer: Scorer, corpus: Corpus, rows: np.ndarray, frames: np.ndarray, *, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Measure each clip by itself: rows [B] of the corpus, frames [B, T, H, W, 3] uint8.

    Returns gap [B, K], the log noise gap (mean over the clip's whole windows of num_frames frames), motion_energy and
    texture_energy [B], logs, and thumbnails [B, T, 8, 8, 3] float16 in [-1, 1].
    """
    num_frames = scorer.num_frames
    if frames.shape[1] < num_frames:
        raise VtpError(
            f"clip_len ({frames.shape[1]}) is less than the {num_frames} frames of model {scorer.name}; "
            f"extract with --clip-len {num_frames} or more, or use --model corpus",
            code="clips-short",
        )
    images = noise_gap.to_images(frames, scorer.size)
    embeddings = torch.from_numpy(corpus.embeddings[rows])
    gaps = np.empty((len(rows), len(noise_gap.SIGMAS)), np.float32)
    folds = corpus.folds[rows] % len(scorer.backends)
    for fold, backend in enumerate(scorer.backends):
        here = folds == fold
        if here.any():
            gap = noise_gap.clip_gap(backend, images[here], embeddings[here], draws=draws, seed=seed)
            gaps[here] = gap.clamp_min(1e-12).log().cpu().numpy()
    motion, texture = noise_gap.energies(images)
    return {
        "gap": gaps,
        "motion_energy": motion.numpy(),
        "texture_energy": texture.numpy(),
        "thumbnails": noise_gap.thumbnails(images, THUMBNAIL).numpy().astype(np.float16),
    }


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
