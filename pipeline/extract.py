"""Extract: decode videos and write one 128-D embedding per clip.

Videos, task and labels are checked before torch is imported, so that mistakes in them show within seconds.
Each process decodes and encodes its share of the videos (`--shards N --shard I`; by default all of them) into part
files beside the output. `merge` assembles the parts: names, splits, labels and the projector can change without
decoding again. `landed` counts the videos that all shards have dealt with.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline import __version__, dataset, hf_models, named_weights, storage
from pipeline.callable_stage import make_callable
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.dataset.frame_logs import FrameLogs
from pipeline.dataset.segment import Content, Segment, assign_splits
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError
from pipeline.extraction import shards
from pipeline.extraction.failures import write_failures
from pipeline.extraction.fetching import Fetching
from pipeline.extraction.file_contents import Reading, changed, read_contents
from pipeline.extraction.inputs import Inputs, as_video_error, read_inputs
from pipeline.extraction.parts import (
    Finished,
    PartWriter,
    Settings,
    assemble,
    check_settings,
    devices_of,
    finished_contents,
    join_labels,
    steps_differ,
    times_of,
)
from pipeline.extraction.shards import Done, Failed, Ledger, parts_folder
from pipeline.files import check_file_place, remove_leftovers, save_config
from pipeline.tasks import BUILT_IN
from pipeline.video import Clip, DecoderPool, Restart, VideoError, check_decoder, choose_nvdec, num_decoders
from pipeline.writer_lock import one_writer

if TYPE_CHECKING:
    from pipeline.encoders import Encoder, Projector

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
T = TypeVar("T")
# codes of errors that may not be the file's fault
WORTH_ANOTHER_TRY = ("changed", "crashed", "memory", "timeout", "unreachable", "unreadable")


@dataclass(frozen=True)
class ExtractResult:
    """`path` is None if no embeddings were written: every video failed, or this was one shard of several.

    num_videos and num_clips count those in the file (for a shard: the videos it has done); failures are the rows of
    `failures_path`.
    """

    path: Path | None
    num_clips: int
    num_videos: int
    num_decoded: int
    failures: list[dict[str, str]]
    failures_path: Path


def run(cfg: ExtractConfig, *, progress: Progress = lambda done, total, text: None) -> ExtractResult:
    """Decode and encode this process's share of the videos; with one shard, assemble the embeddings file too."""
    shard = shards.shard_number(cfg.shards, cfg.shard)
    named_weights.check_encoder(cfg.backbone, cfg.weights, cfg.precision, cfg.device)
    check_decoder(cfg.decoder)
    check_file_place(cfg.out)
    shards.pull_output(cfg.out)
    inputs = read_inputs(cfg)
    decoders: DecoderPool[Reading] = DecoderPool(  # its processes start while torch is imported
        num_decoders(on_gpu=False), timeout_s=cfg.timeout_s, decoder=cfg.decoder, verify=cfg.verify
    )
    with decoders:
        return run_shard(cfg, shard, inputs, decoders, progress)


def run_shard(
    cfg: ExtractConfig, shard: int, inputs: Inputs, decoders: DecoderPool[Reading], progress: Progress
) -> ExtractResult:
    from pipeline import encoders

    encoder = encoders.load_encoder(
        cfg.backbone, cfg.weights, cfg.precision, device=cfg.device, batch_size=cfg.batch_size, clip_len=cfg.clip_len
    )
    given_projector(cfg.projector, encoder.weights_sha256, encoder.feature_dim)  # fail before the work, not after it
    if encoder.num_frames is not None and cfg.clip_len < encoder.num_frames:
        logger.warning(
            "clips have %d frames and %s takes %d: frames are repeated; --clip-len %d shows each once",
            cfg.clip_len, encoder.backbone, encoder.num_frames, encoder.num_frames,
        )  # fmt: skip
    nvdec = choose_nvdec(cfg.decoder, verify=cfg.verify, gpu=encoder.gpu)
    decoders.grow(num_decoders(on_gpu=encoder.gpu is not None), nvdec)
    folder, settings = parts_folder(cfg.out), feature_settings(cfg, encoder)
    ids = [(entry.video_id, entry.span) for entry in inputs.entries]
    shared = json.dumps([ids, cfg.shards, settings])  # must be equal for all shards
    with one_writer(shards.lock_path(folder, cfg.shards, shard), cfg.out, settings=shared) as lock:
        parts = finished_contents(folder, settings)
        remove_leftovers(folder)
        for name in (cfg.out.name, cfg.out.with_suffix(".yaml").name, "failures.jsonl"):
            remove_leftovers(cfg.out.parent, name)
        save_config(shards.settings_path(cfg.out), portable(cfg))

        mine = shards.share(inputs.entries, cfg.shards, shard)
        ledger = Ledger(shards.ledger_path(folder, cfg.shards, shard), mine)
        num_decoded = extract_videos(cfg, mine, parts, ledger, encoder, decoders, progress, inputs)
        logger.info("%d videos: %d decoded now, %d failed", len(mine), num_decoded, len(ledger.failures))
        if cfg.shards > 1:
            failures = [asdict(row) for row in ledger.failures]
            return ExtractResult(None, 0, len(mine) - len(failures), num_decoded, failures, ledger.path)
        progress(len(mine), len(mine), "assembling")
        lock.check()
        return write_merged(cfg, inputs, num_decoded=num_decoded)


def merge(cfg: MergeConfig | ExtractConfig) -> ExtractResult:
    """Assemble the parts of all shards at `cfg.out`, with the settings that the shards saved beside their parts.

    CorruptError (exit code 4) names what is missing or damaged and the command that redoes it.
    """
    shards.pull_output(cfg.out)
    saved = shards.saved_config(cfg.out, ExtractConfig, "vtp extract SOURCE")
    return write_merged(saved, read_inputs(saved), num_decoded=0)


def landed(cfg: ExtractConfig, ids: Set[str]) -> int:
    """Number of videos with these ids that are done or have failed, over all shards."""
    return len(ids & {row.video_id for row in shards.read_ledgers(parts_folder(cfg.out), cfg.shards)})


def extract_videos(
    cfg: ExtractConfig,
    entries: Sequence[Segment],
    parts: dict[Content, Finished],
    ledger: Ledger,
    encoder: Encoder,
    decoders: DecoderPool[Reading],
    progress: Progress,
    inputs: Inputs,
) -> int:
    """Decode and encode the videos whose content is not in `parts`, the finished contents; return how many.

    All segments of a file are cut in one pass. Clips are encoded in the order in which decoders deliver them; a clip's
    features do not depend on it. Labels with a wrong number of steps are reported as soon as their video is decoded.
    """
    queue: dict[Path, list[Segment]] = {}  # by file
    for entry in entries:
        queue.setdefault(entry.path, []).append(entry)
    waiting: dict[str, list[Segment]] = {}  # by sha256 of a file being decoded: segments of it or its copies
    decoding: Counter[str] = Counter()  # number of segments by sha256 of their file
    tries: Counter[str] = Counter()
    for_pyav: set[str] = set()  # ids of videos that may have hung or crashed decord
    encoded: dict[Content, list[Reading]] = {}  # done as soon as their part is written
    num_clips = {content: finished.num_clips for content, finished in parts.items()}  # of every decoded content
    left_out = {entry.video_id for entry in entries if entry.video_id in inputs.bad_labels}  # will fail at stage labels
    num_decoded = num_ended = 0

    def end(entry: Segment) -> None:
        nonlocal num_ended
        num_ended += 1
        progress(num_ended, len(entries), entry.video_id)

    def stop_if_too_many_failed() -> None:
        failed = left_out | {row.video_id for row in ledger.failures}
        if cfg.max_failures is not None and len(failed) > cfg.max_failures:
            raise PartialError(
                f"{len(failed)} videos failed, more than --max-failures {cfg.max_failures}; the reasons are in "
                f"{ledger.path}, for wrong labels in the log: correct them or raise --max-failures, and run the "
                "same command again",
                code="too-many-failures",
            )

    def finish(video: Reading) -> None:
        entry = video.entry
        if misfit := steps_differ(entry, num_clips[video.content], inputs.logs.get(entry.video_id)):
            logger.warning("%s will be left out: %s", entry.video_id, misfit)
            left_out.add(entry.video_id)
        encoded.setdefault(video.content, []).append(video)
        end(entry)

    def fail(entry: Segment, error: VideoError) -> None:
        tries[entry.video_id] += 1
        if error.code in WORTH_ANOTHER_TRY and tries[entry.video_id] <= cfg.retries:
            if error.code in ("crashed", "timeout") and cfg.decoder == "auto":
                for_pyav.add(entry.video_id)
            queue.setdefault(entry.path, []).append(entry)
            return
        ledger.record(failure(entry, "decode" if entry.error is None else "manifest", error))
        end(entry)
        stop_if_too_many_failed()

    def record(part: str, contents: Sequence[Content]) -> None:
        parts.update({content: Finished(part, num_clips[content]) for content in contents})
        record_done()
        ledger.write_if_due()

    def record_done() -> None:
        for content in parts.keys() & encoded.keys():
            for video in encoded.pop(content):
                entry = video.entry
                done = Done(
                    entry.video_id, storage.name_of(entry.path), video.stamp, content.sha256, parts[content].part,
                    *entry.span,
                )  # fmt: skip
                ledger.record(done)

    writer = PartWriter(parts_folder(cfg.out), feature_settings(cfg, encoder), encoder, on_close=record)
    try:
        stop_if_too_many_failed()
        fetching = Fetching(ledger, parts, lambda text: progress(num_ended, len(entries), text), ahead=decoders.size)
        with decoders, fetching:
            while queue or decoding:
                while queue and decoders.num_idle:
                    path = fetching.next(queue, is_urgent=not decoding)
                    if path is None:
                        break
                    wanted: dict[Content, Reading] = {}
                    for video in read_contents(path, queue.pop(path), fail, fetching):
                        sha256 = video.content.sha256
                        if video.content in parts or video.content in encoded:
                            finish(video)
                            stop_if_too_many_failed()
                        elif sha256 in decoding or video.content in wanted:
                            waiting.setdefault(sha256, []).append(video.entry)
                        else:
                            wanted[video.content] = video
                    if wanted:
                        decoding.update(content.sha256 for content in wanted)
                        was_hung = any(video.entry.video_id in for_pyav for video in wanted.values())
                        decoders.submit(
                            {video: content.span for content, video in wanted.items()}, path,
                            clip_len=cfg.clip_len, clip_stride=cfg.clip_stride, fps=cfg.fps, tail=cfg.tail,
                            frame_size=encoder.frame_size, decoder="pyav" if was_hung else None,
                        )  # fmt: skip
                    else:
                        storage.release(path)
                for video, event in decoders.events():
                    if isinstance(event, Clip):
                        writer.add(video.content, event)
                        continue
                    if isinstance(event, Restart):
                        writer.discard(video.content)
                        continue
                    event = changed(video) or event
                    if isinstance(event, VideoError):
                        writer.discard(video.content)
                        fail(video.entry, event)
                    else:
                        num_clips[video.content] = event.num_clips
                        finish(video)
                        num_decoded += 1
                        writer.finish(video.content, event)
                        stop_if_too_many_failed()
                    sha256 = video.content.sha256
                    decoding[sha256] -= 1
                    if decoding[sha256] == 0:
                        del decoding[sha256]
                        storage.release(video.entry.path)
                        for entry in waiting.pop(sha256, []):
                            queue.setdefault(entry.path, []).append(entry)
    finally:  # keep finished work, also after Ctrl-C and if the encoder fails
        try:
            writer.close()
        finally:
            record_done()
            ledger.write()
    return num_decoded


def feature_settings(cfg: ExtractConfig, encoder: Encoder) -> Settings:
    """Everything that a video's features depend on besides its content."""
    return {
        "backbone": encoder.backbone,
        "weights_sha256": encoder.weights_sha256,
        "transform": encoder.transform,
        "precision": encoder.precision,
        "arithmetic": encoder.arithmetic,
        "clip_len": cfg.clip_len,
        "clip_stride": cfg.clip_stride,
        "fps": cfg.fps,
        "tail": cfg.tail,
        "decoder": cfg.decoder,
    }


def portable(cfg: ExtractConfig) -> ExtractConfig:
    """The config without a shard number and with absolute paths: valid for every shard in any working folder."""
    paths: dict[str, str | Path] = {"source": os.path.abspath(cfg.source), "out": cfg.out.absolute()}
    if (weights := named_weights.weights_path(cfg.backbone, cfg.weights)) is not None:
        paths["weights"] = os.path.abspath(weights)
    if (projector := named_weights.check_projector(cfg.projector)) is not None:
        paths["projector"] = os.path.abspath(projector)
    paths["backbone"] = hf_models.absolute(cfg.backbone)
    if cfg.task is not None and cfg.task not in BUILT_IN:
        paths["task"] = os.path.abspath(cfg.task)
    return cfg.model_copy(update={**paths, "shard": None})


def failure(entry: Segment, stage: str, error: VideoError) -> Failed:
    name = entry.video_id if entry.video_id.isprintable() else repr(entry.video_id)
    logger.warning("%s: %s", name, error)
    reason = storage.with_urls(error.reason)
    return Failed(storage.name_of(entry.path), entry.video_id, stage, error.code, reason, error.fix)


def write_merged(cfg: ExtractConfig, inputs: Inputs, *, num_decoded: int) -> ExtractResult:
    """Write the embeddings file and failures.jsonl from the parts and ledgers of all shards."""
    folder, entries = parts_folder(cfg.out), inputs.entries
    span_of = {entry.video_id: entry.span for entry in entries}
    outcomes = {
        row.video_id: row
        for row in shards.read_ledgers(folder, cfg.shards)
        if isinstance(row, Failed) or row.content.span == span_of.get(row.video_id)
    }
    check_complete(cfg, entries, outcomes)
    failures = [row for entry in entries if isinstance(row := outcomes[entry.video_id], Failed)]
    done = [row for entry in entries if isinstance(row := outcomes[entry.video_id], Done)]
    finished = [entry for entry in entries if isinstance(outcomes[entry.video_id], Done)]
    parts = read_parts(cfg, sorted({row.part for row in done}))
    number_of = {(name, content): k for name, part in parts.items() for k, content in enumerate(part.videos.contents)}
    numbers = [number_of[row.part, row.content] for row in done]
    fps = [float(parts[row.part].videos.fps[number]) for row, number in zip(done, numbers, strict=True)]
    finished = assign_splits(finished, [row.content for row in done], fps)
    labelled, num_unseen, other_lengths = [], 0, []
    for entry, row, number in zip(finished, done, numbers, strict=True):
        try:
            if entry.video_id in inputs.bad_labels:
                raise inputs.bad_labels[entry.video_id]
            logs = inputs.logs.get(entry.video_id)
            labelled.append(join_labels(entry, row.part, parts[row.part], number, logs, inputs.task))
            if isinstance(logs, FrameLogs):
                num_unseen += logs.num_unseen("attempts", *times_of(parts[row.part], number))
                num_frames = int(parts[row.part].videos.num_frames[number])
                if logs.values and abs(num_frames - logs.num_frames) > 1:  # Minari records one frame more
                    other_lengths.append(f"{entry.video_id} ({num_frames} frames, {logs.num_frames} values)")
        except VtpError as error:
            failures.append(failure(entry, "labels", as_video_error(error)))
    if num_unseen:
        logger.warning(
            "%d frames with attempts are in no clip, and their attempts are lost; --tail pad keeps those after a "
            "video's last whole clip", num_unseen,
        )  # fmt: skip
    if other_lengths:
        logger.warning(
            "the logs of %d videos, such as %s, do not have one value per frame; clips after the last value have no "
            "labels", len(other_lengths), other_lengths[0],
        )  # fmt: skip
    rows = [asdict(row) for row in failures]
    failures_path = write_failures(cfg.out, rows)
    if not labelled:
        return ExtractResult(None, 0, 0, num_decoded, rows, failures_path)
    settings = labelled[0].part.settings
    feature_dim = labelled[0].part.clips.features.shape[1]
    projector = given_projector(cfg.projector, str(settings["weights_sha256"]), feature_dim)
    embeddings = assemble(
        labelled, projector, {**settings, "device": devices_of(parts.values()), **provenance()}, inputs.task,
        lambda name: of_part(cfg, name, lambda: parts[name].clips.features[:]),
    )  # fmt: skip
    dataset.write_embeddings(cfg.out, embeddings)
    save_config(cfg.out.with_suffix(".yaml"), portable(cfg))
    return ExtractResult(cfg.out, embeddings.num_clips, embeddings.num_videos, num_decoded, rows, failures_path)


def check_complete(cfg: ExtractConfig, entries: Sequence[Segment], outcomes: dict[str, Done | Failed]) -> None:
    """CorruptError naming the first shard with unfinished videos."""
    if all(entry.video_id in outcomes for entry in entries):
        return
    owners = shards.owners(entries, cfg.shards)
    missing = [(owner, entry) for owner, entry in zip(owners, entries, strict=True) if entry.video_id not in outcomes]
    shard, first = min(missing, key=lambda pair: pair[0])
    raise CorruptError(
        f"{cfg.out} is incomplete: shard {shard} of {cfg.shards} lacks {sum(owner == shard for owner, _ in missing)} "
        f"of its {owners.count(shard)} videos, such as {first.video_id}; run: {shards.redo_command(cfg, shard)}",
        code="shard-incomplete",
    )


def read_parts(cfg: ExtractConfig, names: Sequence[str]) -> dict[str, dataset.Part]:
    """The parts by name. CorruptError if one is missing or damaged, VtpError if their settings differ."""
    folder = parts_folder(cfg.out)
    parts: dict[str, dataset.Part] = {}
    for name in names:
        parts[name] = of_part(cfg, name, partial(dataset.read_part, folder / name))
        check_settings(parts[name], folder, parts[names[0]].settings)
        check_settings(parts[names[0]], folder, parts[name].settings)  # settings that only one of them has
    return parts


def of_part(cfg: ExtractConfig, name: str, read: Callable[[], T]) -> T:
    """Return `read()`; CorruptError with the command that redoes the part if it is missing or damaged."""
    try:
        return read()
    except TryAgainError:
        raise
    except VtpError as error:
        reason = str(error).partition(";")[0]
        redo = shards.redo_command(cfg, shards.shard_of_part(cfg, name))
        raise CorruptError(f"{reason}; run: {redo}", code="part-damaged") from error


def provenance() -> Settings:
    versions: Settings = {"vtp_version": __version__}
    for name in ("torch", "torchvision", "transformers", "decord", "decord2", "av", "PyNvVideoCodec", "h5py", "numpy"):
        try:
            versions[f"{name}_version"] = metadata.version(name)
        except metadata.PackageNotFoundError:  # only one of decord and decord2 is installed
            continue
    return versions


def given_projector(spec: str, weights_sha256: str, feature_dim: int) -> Projector | str:
    """The projector if it needs no fitting (none, random:SEED or an embeddings file's), else the name of one to fit."""
    from pipeline import encoders
    from pipeline.encoders import Projector

    file = named_weights.check_projector(spec)
    if file is None:
        seed = named_weights.seed_of(spec)
        if spec == named_weights.NONE:
            return encoders.no_projector(feature_dim)
        return spec if seed is None else encoders.random_projector(seed, feature_dim)
    source = dataset.read_embeddings(file)
    if source.attrs.get("weights_sha256") != weights_sha256:
        raise VtpError(
            f"projector {spec} belongs to weights {str(source.attrs.get('weights_sha256'))[:12]}, not to "
            f"{weights_sha256[:12]}; use the --backbone and --weights that it was made with",
            code="projector-other-weights",
        )
    return Projector(
        source.projector_mean, source.projector_components, source.projector_scale, str(source.attrs["projector"]),
        source.projector_norm,
    )  # fmt: skip


make_callable(__name__)
