"""Novelty: how far each clip lies off what a reference corpus does, by the noise gap of a video diffusion model.

Blocks of videos are read again and measured into part files beside the output, so a run that was stopped goes on where
it was, and shards share the blocks. Whoever finds every block there turns measures into scores and weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import diffusion, evaluate, footage, manifest, sim, store, surprise
from pipeline.config import NoveltyConfig
from pipeline.errors import CorruptError, VtpError
from pipeline.rundir import make_folder, save_config, write_json
from pipeline.shards import parts_folder, shard_number, split_by_cost
from pipeline.video import FRAME_SIZE

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
BLOCK_CLIPS = 256
MAX_FIT_CLIPS = 2048
THUMBNAIL = (8, 8)
CORPUS_FRAMES = 8
CORPUS_HEIGHT = 64
SVD_HEIGHT, SVD_ASPECT = 320, 576 / 320


@dataclass(frozen=True)
class Corpus:
    """The clips to measure: those to score and, after them, those of a reference that lies in another file."""

    files: tuple[store.Embeddings, ...]
    named: np.ndarray  # [clips of all files] bool: the clips of the videos that are ordinary by definition

    @cached_property
    def whole(self) -> np.ndarray:
        """Whether a clip has all its frames: padded ones stand still at their end, and are not scored, [clips]."""
        return np.concatenate([data.clips.valid_frames == data.attrs["clip_len"] for data in self.files])

    @cached_property
    def reference(self) -> np.ndarray:
        return self.named & self.whole

    @cached_property
    def offsets(self) -> np.ndarray:
        """First clip of each file, and the number of all."""
        return np.cumsum([0, *(data.num_clips for data in self.files)])

    @cached_property
    def embeddings(self) -> np.ndarray:
        return np.concatenate([data.embeddings for data in self.files])

    @cached_property
    def folds(self) -> np.ndarray:
        """0 or 1 for each clip: by turns within a video, so that its other clips are known to the other half's model.

        It depends on the clip alone, not on which others there are.
        """
        return np.concatenate([
            (int(sha256[:8], 16) + np.arange(data.offset[v + 1] - data.offset[v])) % 2
            for data in self.files
            for v, sha256 in enumerate(data.videos.sha256)
        ])  # fmt: skip

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(np.packbits(self.reference).tobytes())
        for data in self.files:
            digest.update(data.content_sha256.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Scorer:
    """The model that scores clips of fold f is backends[f]; a model that knows no clip of the corpus scores both."""

    name: str
    why: str
    sha256: str
    size: tuple[int, int]  # height and width of the frames that it sees
    backends: tuple[diffusion.Backend, ...]

    @property
    def num_frames(self) -> int:
        return self.backends[0].num_frames

    @property
    def frame_size(self) -> tuple[int, int]:
        """What to decode to: no less than the model sees, for it is then averaged down."""
        return max(self.size, FRAME_SIZE)


def run(cfg: NoveltyConfig, *, progress: Progress = lambda done, total, text: None) -> dict[str, Any]:
    """Score every clip of the embeddings file; returns what `--json` prints.

    A shard that is not the last one to finish leaves its blocks, and says how many there are.
    """
    started_s = time.monotonic()
    shard = shard_number(cfg.shards, cfg.shard)
    out = cfg.out or cfg.embeddings.with_name("novelty.h5")
    if out.is_dir():
        raise VtpError(f"--out {out} is a folder; name a file in it, such as {out / 'novelty.h5'}")
    corpus = find_corpus(cfg)
    num_known = int(corpus.reference.sum())
    if num_known < surprise.MIN_FOR_SCORES:
        logger.warning(
            "%d clips are too few to say what is ordinary, at least %d are needed: every clip weighs 1",
            num_known, surprise.MIN_FOR_SCORES,
        )  # fmt: skip
        return write_ones(cfg, corpus, out, started_s)
    make_folder(parts_folder(out))
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
    parts = [part for block in blocks if (part := read_block(out, block, settings)) is not None]
    if len(parts) < len(blocks):
        logger.info("%d of %d blocks are measured; the shard that measures the last one writes %s",
                    len(parts), len(blocks), out)  # fmt: skip
        return {"path": None, "blocks": len(blocks), "blocks_measured": len(parts)}
    measures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns = score_clips(corpus, measures)
    attrs = settings | {
        "model": scorer.name, "model_why": scorer.why, "sigmas": json.dumps(diffusion.SIGMAS),
        "reference": str(cfg.reference or "the clips themselves, by two-fold cross-fitting"),
    }  # fmt: skip
    return write_scores(cfg, corpus, columns, attrs, out, started_s)


def find_corpus(cfg: NoveltyConfig) -> Corpus:
    """The clips to score and those that are ordinary by definition; VtpError where they cannot be compared."""
    data = store.read_embeddings(cfg.embeddings)
    if not np.isfinite(data.embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(data.embeddings).all(axis=1))[0])
        raise CorruptError(f"{cfg.embeddings}: the embedding of clip {row} is not finite; extract its video again")
    if cfg.reference is None:
        return Corpus((data,), np.ones(data.num_clips, bool))
    if cfg.reference.suffix.lower() in manifest.MANIFEST_SUFFIXES:
        return Corpus((data,), _clips_of_manifest(data, cfg))
    other = store.read_embeddings(cfg.reference)
    for name in ("weights_sha256", "projector_sha256", "clip_len", "fps"):
        if other.attrs.get(name) != data.attrs.get(name):
            raise VtpError(
                f"--reference {cfg.reference} has {name} {str(other.attrs.get(name))[:12]}, {cfg.embeddings} has "
                f"{str(data.attrs.get(name))[:12]}; extract one with the settings of the other, and its --projector"
            )
    return Corpus((data, other), np.repeat([False, True], [data.num_clips, other.num_clips]))


def _clips_of_manifest(data: store.Embeddings, cfg: NoveltyConfig) -> np.ndarray:
    wanted = {str(entry.path): entry.video_id for entry in manifest.read_manifest(cfg.reference)}
    if missing := [name for path, name in wanted.items() if path not in set(data.videos.path)]:
        raise VtpError(
            f"--reference {cfg.reference} names {missing[0]!r}, which {cfg.embeddings} does not hold; "
            f"extract it too, or give an embeddings file"
        )
    return np.repeat([path in wanted for path in data.videos.path], np.diff(data.offset))


def choose_scorer(cfg: NoveltyConfig, corpus: Corpus, out: Path, progress: Progress) -> Scorer:
    """The model that `--model` stands for. VtpError where it is not to be had, or too slow here."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if cfg.model == "corpus" or (cfg.model == "auto" and not gpu):
        why = "trained on these clips" + ("" if cfg.model == "corpus" else ": Stable Video Diffusion wants a GPU")
        return corpus_scorer(cfg, corpus, out, why, progress)
    if cfg.model == "auto":
        try:
            return svd_scorer(cfg, diffusion.load_svd(diffusion.HUB_ID, device=device), "there is a GPU")
        except VtpError as error:
            why = f"trained on these clips, for Stable Video Diffusion is not to be had ({str(error).split(';')[0]})"
            return corpus_scorer(cfg, corpus, out, why, progress)
    if Path(cfg.model).is_dir() and diffusion.pipeline_class(Path(cfg.model)) == diffusion.CORPUS_CLASS:
        backend = diffusion.load_corpus(Path(cfg.model))
        if backend.embedding_dim != corpus.embeddings.shape[1]:
            raise VtpError(f"model {cfg.model} is for embeddings of {backend.embedding_dim} numbers; fit another")
        height = cfg.resolution or CORPUS_HEIGHT
        return Scorer(
            "corpus", f"read from {cfg.model}", diffusion.folder_sha256(Path(cfg.model)), (height, height), (backend,)
        )
    if not (gpu or cfg.allow_slow):
        raise VtpError(
            "Stable Video Diffusion takes about half an hour a clip without a GPU; use --model corpus, or --allow-slow"
        )
    return svd_scorer(cfg, diffusion.load_svd(cfg.model, device=device), f"read from {cfg.model}")


def svd_scorer(cfg: NoveltyConfig, backend: diffusion.SvdBackend, why: str) -> Scorer:
    height = cfg.resolution or SVD_HEIGHT
    factor = backend.multiple
    size = tuple(max(factor, round(side / factor) * factor) for side in (height, height * SVD_ASPECT))
    return Scorer("svd", why, backend.sha256, size, (backend,))


def corpus_scorer(cfg: NoveltyConfig, corpus: Corpus, out: Path, why: str, progress: Progress) -> Scorer:
    """Two small models, each trained on half of the reference; those beside `out` where they fit this corpus."""
    height = cfg.resolution or CORPUS_HEIGHT
    num_frames = min(CORPUS_FRAMES, int(corpus.files[0].attrs["clip_len"]))
    if num_frames < 2:
        raise VtpError(f"clip_len ({num_frames}) leaves no motion to score; extract clips of two frames or more")
    what = {"corpus": corpus.sha256, "height": height, "frames": num_frames, "updates": cfg.updates, "seed": cfg.seed}
    folder = out.with_name(f"{out.stem}.model")
    if not _fits(folder, what):
        partial = folder.with_name(f".{folder.name}.{time.time_ns()}.tmp")
        make_folder(partial)
        try:
            fit_folds(cfg, corpus, height, num_frames, partial, progress)
            write_json(partial / "corpus.json", what)
            if not _fits(folder, what):  # another shard may have been quicker: all must use the same
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    backends = tuple(diffusion.load_corpus(folder / f"fold-{fold}") for fold in (0, 1))
    return Scorer("corpus", why, diffusion.folder_sha256(folder), (height, height), backends)


def _fits(folder: Path, what: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / "corpus.json").read_text(encoding="utf-8")) == what
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
            pixels = ((diffusion.to_images(frames, (height, height)) + 1) * 127.5).round().to(torch.uint8)
            if kept == 0:
                images = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8)
            images[kept : kept + len(pixels)] = pixels
            kept += len(pixels)
            progress(kept, len(rows), "clips read to train on")
    embeddings = torch.from_numpy(corpus.embeddings[rows])
    for fold in (0, 1):
        learned = corpus.folds[rows] != fold
        if learned.sum() < 2:
            learned[:] = True
        backend = diffusion.fit(
            images[learned], embeddings[learned], num_frames=num_frames, updates=cfg.updates, seed=cfg.seed + fold,
            progress=lambda done, total, text, fold=fold: progress(done, total, f"updates of half {fold + 1}, {text}"),
        )  # fmt: skip
        backend.save(folder / f"fold-{fold}")


@dataclass(frozen=True)
class Block:
    """Consecutive videos of one file: what a part file holds."""

    file: int
    videos: range
    first_clip: int  # in the corpus
    num_clips: int


def split_blocks(corpus: Corpus) -> Iterator[Block]:
    for file, data in enumerate(corpus.files):
        start = 0
        for v in range(data.num_videos):
            num_clips = int(data.offset[v + 1] - data.offset[start])
            if num_clips >= BLOCK_CLIPS or v + 1 == data.num_videos:
                first = int(corpus.offsets[file] + data.offset[start])
                yield Block(file, range(start, v + 1), first, num_clips)
                start = v + 1


def block_path(out: Path, block: Block) -> Path:
    return parts_folder(out) / f"block-{block.first_clip}-{block.num_clips}.h5"


def read_block(out: Path, block: Block, settings: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The measures of a block; None where they are not there, damaged or of other settings: they are made again."""
    try:
        return store.read_measures(block_path(out, block), settings)
    except VtpError:
        return None


def measure_blocks(
    cfg: NoveltyConfig, corpus: Corpus, scorer: Scorer, blocks: list[Block], out: Path, settings: dict[str, Any],
    progress: Progress,
) -> None:  # fmt: skip
    total, done = sum(block.num_clips for block in blocks), 0
    for block in blocks:
        measured = []
        for rows, frames in read_clips(corpus, block, frame_size=scorer.frame_size, batch_size=cfg.batch_size):
            measured.append(measure(scorer, corpus, rows, frames, draws=cfg.draws, seed=cfg.seed))
            done += len(rows)
            progress(done, total, "clips measured")
        columns = {name: np.concatenate([part[name] for part in measured]) for name in measured[0]}
        store.write_measures(block_path(out, block), columns, settings)


def read_clips(
    corpus: Corpus,
    block: Block,
    *,
    frame_size: tuple[int, int] = FRAME_SIZE,
    wanted: np.ndarray | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `footage.read_clips`, with rows of the corpus, in what is wanted too."""
    first = corpus.offsets[block.file]
    for rows, frames in footage.read_clips(
        corpus.files[block.file], block.videos, frame_size=frame_size, batch_size=batch_size,
        wanted=None if wanted is None else wanted - first,
    ):  # fmt: skip
        yield rows + first, frames


def measure(
    scorer: Scorer, corpus: Corpus, rows: np.ndarray, frames: np.ndarray, *, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """What is known of each clip by itself: rows [B] of the corpus, frames [B, T, H, W, 3] uint8.

    gap [B, K] log noise gap, mean over the windows of num_frames frames that the clip has room for; motion_energy and
    texture_energy [B], logs; thumbnails [B, T, 8, 8, 3] float16 in [-1, 1].
    """
    num_frames = scorer.num_frames
    if frames.shape[1] < num_frames:
        raise VtpError(
            f"clip_len ({frames.shape[1]}) is less than the {num_frames} frames that model {scorer.name} looks at; "
            f"extract with --clip-len {num_frames} or more, or use --model corpus"
        )
    images = diffusion.to_images(frames, scorer.size)
    embeddings = torch.from_numpy(corpus.embeddings[rows])
    gaps = np.empty((len(rows), len(diffusion.SIGMAS)), np.float32)
    folds = corpus.folds[rows] % len(scorer.backends)
    for fold, backend in enumerate(scorer.backends):
        here = folds == fold
        if here.any():
            gap = diffusion.clip_gap(backend, images[here], embeddings[here], draws=draws, seed=seed)
            gaps[here] = gap.clamp_min(1e-12).log().cpu().numpy()
    motion, texture = diffusion.energies(images)
    return {
        "gap": gaps,
        "motion_energy": motion.numpy(),
        "texture_energy": texture.numpy(),
        "thumbnails": diffusion.thumbnails(images, THUMBNAIL).numpy().astype(np.float16),
    }


def score_clips(corpus: Corpus, measures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of novelty.h5, for the clips to score. Padded clips are compared with nothing: score NaN, weight 1."""
    whole = corpus.whole
    reference, folds = corpus.reference[whole], corpus.folds[whole]
    complexity = np.column_stack([measures["motion_energy"], measures["texture_energy"]])[whole].astype(np.float64)

    def calibrated(values: np.ndarray) -> np.ndarray:
        return surprise.robust_z(surprise.remove_complexity(values, complexity, reference), reference)

    z = np.clip(calibrated(_by_fold(measures["gap"][whole].astype(np.float64), folds, reference)), -6, 6)
    channels = {"gap": surprise.robust_z(z.mean(axis=1, keepdims=True), reference)[:, 0]}
    learned = reference
    for _ in range(3):  # again without the clips that the time before found most novel
        for name, values in surprise.clip_channels(measures["thumbnails"][whole], learned, folds).items():
            channels[name] = calibrated(values[:, None])[:, 0]
        score = surprise.novelty_score(np.column_stack(list(channels.values())), reference)
        learned = reference & (score <= np.quantile(score[reference], 1 - surprise.TRIMMED))

    num_clips = corpus.files[0].num_clips
    own = whole[:num_clips]
    knn = surprise.knn_distance(corpus.embeddings[whole], reference)
    columns = {"z": z, "score": score, "knn": knn} | {f"channels/{name}": values for name, values in channels.items()}
    spread = {name: np.full((num_clips, *values.shape[1:]), np.nan) for name, values in columns.items()}
    for name, values in columns.items():
        spread[name][own] = values[: own.sum()]
    weight = np.ones(num_clips, np.float32)
    visits = clip_visits(corpus.files[0])
    weight[own] = surprise.weights(score[: own.sum()], visits[own])
    return spread | {
        "weight": weight,
        "gap": measures["gap"][:num_clips],
        "motion_energy": measures["motion_energy"][:num_clips],
        "texture_energy": measures["texture_energy"][:num_clips],
    }


def _by_fold(values: np.ndarray, folds: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Less the median of each fold's reference clips: two models, trained apart, are not equally good."""
    centred = values.copy()
    for fold in (0, 1):
        known = values[reference & (folds == fold)]
        centred[folds == fold] -= np.median(known if len(known) else values[reference], axis=0)
    return centred


def clip_visits(data: store.Embeddings) -> np.ndarray:
    """How often training plays each clip, [N]: videos are drawn alike, of a long one a stretch of 60 steps."""
    visits = np.zeros(data.num_clips)
    videos, _, _ = evaluate.split_rows(data)
    for start, end in videos:
        num_starts = max(1, end - start - sim.EPISODE_STEPS + 1)
        clip = np.arange(end - start)
        first, last = np.maximum(clip - sim.EPISODE_STEPS + 1, 0), np.minimum(clip, num_starts - 1)
        visits[start:end] = (last - first + 1) / num_starts
    return visits


def write_ones(cfg: NoveltyConfig, corpus: Corpus, out: Path, started_s: float) -> dict[str, Any]:
    """Too little is known to score anything."""
    num_clips = corpus.files[0].num_clips
    unknown = np.full(num_clips, np.nan)
    columns = {"score": unknown, "weight": np.ones(num_clips, np.float32)}
    attrs = {"model": "none", "model_why": f"fewer than {surprise.MIN_FOR_SCORES} clips to compare with"}
    return write_scores(cfg, corpus, columns, attrs, out, started_s)


def write_scores(
    cfg: NoveltyConfig,
    corpus: Corpus,
    columns: dict[str, np.ndarray],
    attrs: dict[str, Any],
    out: Path,
    started_s: float,
) -> dict[str, Any]:
    """Write novelty.h5 and its settings; returns the key numbers, with what labels say of the scores."""
    data = corpus.files[0]
    result: dict[str, Any] = {
        "path": str(out),
        "num_clips": data.num_clips,
        "num_scored": int(np.isfinite(columns["score"]).sum()),
    }
    result |= judge(data, columns)
    attrs = {"content_sha256": data.content_sha256, **attrs, "detection": json.dumps(result.get("detection", {}))}
    store.write_novelty(out, columns, attrs)
    save_config(out.with_suffix(".yaml"), cfg.model_copy(update={"shard": None}))
    return result | {"model": attrs["model"], "model_why": attrs["model_why"], "wall_s": time.monotonic() - started_s}


def judge(data: store.Embeddings, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """How well the score, its channels and the baseline find labelled novelty, and whether it merely measures busyness.

    Labels judge the score and enter it nowhere. Nothing where no clip is labelled novel.
    """
    scored = np.isfinite(columns["score"])
    if data.labels is None or "knn" not in columns:
        return {}
    novel = np.where(scored, data.labels["novel"], np.nan)
    ordinary = novel == 0
    result: dict[str, Any] = {
        "rho_motion": surprise.rank_correlation(columns["score"][ordinary], columns["motion_energy"][ordinary]),
        "rho_texture": surprise.rank_correlation(columns["score"][ordinary], columns["texture_energy"][ordinary]),
    }
    if not ((novel == 1).any() and ordinary.any()):
        return result if ordinary.any() else {}
    scores = {"score": columns["score"], "knn": columns["knn"]}
    scores |= {
        name.removeprefix("channels/"): column for name, column in columns.items() if name.startswith("channels/")
    }
    kinds = data.labels.get("novel_kind", np.full(data.num_clips, "", object)).astype(str)
    found = surprise.detection(scores, kinds, novel, np.random.default_rng(0))
    auroc = {kind: row["auroc"] for kind, row in found["score"].items()}
    return result | {
        "auroc": auroc,
        "auroc_mean": float(np.mean(list(auroc.values()))),
        "auroc_knn_mean": float(np.mean([row["auroc"] for row in found["knn"].values()])),
        "detection": found,
    }
