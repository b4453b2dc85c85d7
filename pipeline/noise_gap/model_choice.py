"""Which model scores the clips: chosen, loaded or trained as the settings say."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import NoveltyConfig
from pipeline.errors import VtpError
from pipeline.files import atomic_folder, write_json
from pipeline.noise_gap.blocks import Block, Corpus, split_blocks
from pipeline.noise_gap.corpus import CORPUS_CLASS, fit, load_corpus
from pipeline.noise_gap.gap import Backend
from pipeline.noise_gap.images import upload
from pipeline.noise_gap.scorer import KEPT_BYTES, Pixels, Scorer, read_pixels
from pipeline.noise_gap.svd import HUB_ID, SvdBackend, folder_sha256, load_svd, pipeline_class
from pipeline.text_files import read_text
from pipeline.video import FRAME_SIZE
from pipeline.writer_lock import one_writer

logger = logging.getLogger(__name__)

MAX_FIT_CLIPS = 2048
CORPUS_FRAMES = 8
CORPUS_HEIGHT = 64
SVD_HEIGHT, SVD_ASPECT = 320, 576 / 320
CPU_BATCH, GPU_BATCH = 8, 32  # clips; with Stable Video Diffusion on a GPU one, whose forward passes fill it
COMPILED_CLIPS = 2000  # per process. Compiling takes a minute or two, and saves about a tenth of a second per clip.

Progress = Callable[[int, int, str], None]


def choose_scorer(
    cfg: NoveltyConfig, corpus: Corpus, mine: Sequence[Block], out: Path, device: torch.device, progress: Progress
) -> Scorer:
    """The model named by `--model`. VtpError if it cannot be loaded, or would be too slow without a GPU."""
    gpu = device.type != "cpu"
    if cfg.model == "corpus" or (cfg.model == "auto" and not gpu):
        why = "trained on these clips" + ("" if cfg.model == "corpus" else ": Stable Video Diffusion needs a GPU")
        return corpus_scorer(cfg, corpus, mine, out, device, why, progress)
    if cfg.model == "auto":
        try:
            return svd_scorer(cfg, corpus, load_svd(HUB_ID, device=device), "there is a GPU")
        except VtpError as error:
            reason = str(error).split(";")[0]
            why = f"trained on these clips, because Stable Video Diffusion could not be used ({reason})"
            return corpus_scorer(cfg, corpus, mine, out, device, why, progress)
    if Path(cfg.model).is_dir() and pipeline_class(Path(cfg.model)) == CORPUS_CLASS:
        backend = load_corpus(Path(cfg.model), device=device)
        if backend.embedding_dim != corpus.embeddings.shape[1]:
            raise VtpError(
                f"model {cfg.model} is for embeddings of {backend.embedding_dim} numbers; use --model corpus",
                code="model-wrong",
            )
        check_length(corpus, backend, "corpus")
        height = cfg.resolution or CORPUS_HEIGHT
        return Scorer(
            "corpus", f"read from {cfg.model}", folder_sha256(Path(cfg.model)), (height, height), (backend,),
            device, f"{device.type} fp32", cfg.batch_size or (GPU_BATCH if gpu else CPU_BATCH),
        )  # fmt: skip
    if not (gpu or cfg.allow_slow):
        raise VtpError(
            "Stable Video Diffusion takes half an hour per clip without a GPU; use --model corpus, or --allow-slow",
            code="gpu-missing",
        )
    return svd_scorer(cfg, corpus, load_svd(cfg.model, device=device), f"read from {cfg.model}")


def svd_scorer(cfg: NoveltyConfig, corpus: Corpus, backend: SvdBackend, why: str) -> Scorer:
    if cfg.updates != NoveltyConfig.model_fields["updates"].default:
        raise VtpError(
            f"--updates {cfg.updates} trains the corpus model, but Stable Video Diffusion scores these clips; "
            "leave it out, or use --model corpus",
            code="setting-without-effect",
        )
    check_length(corpus, backend, "svd")
    height = cfg.resolution or SVD_HEIGHT
    factor = backend.multiple
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, height * SVD_ASPECT))
    size = (rows, columns)
    if backend.device.type == "cpu":
        return Scorer(
            "svd", why, backend.sha256, size, (backend,), backend.device, "cpu fp32", cfg.batch_size or CPU_BATCH
        )
    arithmetic = f"{backend.device.type} fp16"
    if int(corpus.offsets[-1]) / cfg.shards >= COMPILED_CLIPS:
        logger.info("compiling the UNet, which takes minutes and makes each of the many clips faster")
        arithmetic += ", compiled" if backend.compile(size, draws=cfg.draws) else ""
    return Scorer("svd", why, backend.sha256, size, (backend,), backend.device, arithmetic, cfg.batch_size or 1)


def check_length(corpus: Corpus, backend: Backend, name: str) -> None:
    """VtpError if clips have fewer frames than the model takes."""
    if (clip_len := int(corpus.files[0].attrs["clip_len"])) < backend.num_frames:
        raise VtpError(
            f"clip_len ({clip_len}) is less than the {backend.num_frames} frames of model {name}; "
            f"extract with --clip-len {backend.num_frames} or more, or use --model corpus",
            code="clips-short",
        )


def corpus_scorer(
    cfg: NoveltyConfig, corpus: Corpus, mine: Sequence[Block], out: Path, device: torch.device, why: str,
    progress: Progress,
) -> Scorer:  # fmt: skip
    """Two small models, each trained on half of the reference; those saved beside `out` are reused if they match.

    A GPU's model is another than the processor's, also by name.
    """
    height = cfg.resolution or CORPUS_HEIGHT
    num_frames = min(CORPUS_FRAMES, int(corpus.files[0].attrs["clip_len"]))
    if num_frames < 2:
        raise VtpError(
            f"clip_len ({num_frames}) is too short to show motion; extract with --clip-len 2 or more",
            code="clips-short",
        )
    gpu = device.type != "cpu"
    what = {"corpus": corpus.sha256, "height": height, "frames": num_frames, "updates": cfg.updates, "seed": cfg.seed}
    what |= {"device": device.type} if gpu else {}
    folder = model_folder(out)
    read: tuple[Pixels, ...] = ()
    batch_size = cfg.batch_size or (GPU_BATCH if gpu else CPU_BATCH)
    with one_writer(folder.with_name(f".{folder.name}.lock"), folder, wait=True):  # all shards share it
        if not _fits(folder, what):
            with atomic_folder(folder) as temporary:
                read = fit_folds(cfg, corpus, mine, num_frames, temporary, device, batch_size, progress)
                write_json(temporary / "corpus.json", what)
    backends = tuple(load_corpus(folder / f"fold-{fold}", device=device) for fold in (0, 1))
    return Scorer(
        f"corpus-{device.type}" if gpu else "corpus", why, folder_sha256(folder), (height, height), backends,
        device, f"{device.type} fp32", batch_size, read,
    )  # fmt: skip


def fit_folds(
    cfg: NoveltyConfig, corpus: Corpus, mine: Sequence[Block], num_frames: int, folder: Path, device: torch.device,
    batch_size: int, progress: Progress,
) -> tuple[Pixels, ...]:  # fmt: skip
    """Train fold-0 and fold-1 in `folder`, each on the reference clips of the other fold.

    A GPU also keeps the clips of the blocks `mine`, which are measured next, if there is room; returns what it has.
    """
    size = (cfg.resolution or CORPUS_HEIGHT,) * 2
    rows = np.flatnonzero(corpus.reference)
    rows = rows[:: 1 + len(rows) // MAX_FIT_CLIPS]
    gpu = device.type != "cpu"
    own = [np.arange(block.first_clip, block.first_clip + block.num_clips) for block in mine]
    both = np.unique(np.concatenate([rows, *own]))
    keeps = gpu and len(both) * int(corpus.files[0].attrs["clip_len"]) * 3 * size[0] * size[1] <= KEPT_BYTES
    wanted = both if keeps else rows
    images = torch.empty(0)
    kept: list[Pixels] = []
    done = 0
    for found, pixels in read_pixels(
        corpus, list(split_blocks(corpus)), size=size, frame_size=max(size, FRAME_SIZE) if gpu else FRAME_SIZE,
        device=device, batch_size=batch_size, wanted=wanted,
    ):  # fmt: skip
        if done == 0:
            images = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, device=device)
        here = np.flatnonzero(np.isin(found, rows))
        places = upload(torch.from_numpy(np.searchsorted(rows, found[here])), device)
        images[places] = pixels[upload(torch.from_numpy(here), device)]
        if keeps:
            kept.append((found, pixels))
        done += len(found)
        progress(done, len(wanted), "clips read to train on")
    embeddings = torch.from_numpy(corpus.embeddings[rows])

    def half(number: int) -> Progress:
        return lambda done, total, text: progress(done, total, f"updates of half {number}, {text}")

    for fold in (0, 1):
        learned = corpus.folds[rows] != fold
        if learned.sum() < 2:
            learned[:] = True
        at = torch.from_numpy(np.flatnonzero(learned)).to(device)
        backend = fit(
            images[at], embeddings[at.cpu()], num_frames=num_frames, updates=cfg.updates, seed=cfg.seed + fold,
            progress=half(fold + 1),
        )  # fmt: skip
        backend.save(folder / f"fold-{fold}")
    return tuple(kept)


def model_folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}.model")


def _fits(folder: Path, what: dict[str, Any]) -> bool:
    try:
        return json.loads(read_text(folder / "corpus.json")) == what
    except (OSError, ValueError):
        return False
