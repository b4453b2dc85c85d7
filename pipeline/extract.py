"""Extract: videos in, one 128-D embedding a clip out.

Videos, task and labels are checked first, before torch is imported: what is wrong there shows in seconds.
Each process decodes and encodes its share of the videos into part files beside the output: `--shards N --shard I`, and
one process alone has them all. `merge` puts the parts together, so that names, splits, labels and the projector may
change without decoding again; `landed` says how far all shards are.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import __version__, dataset, hf_models
from pipeline.callable_stage import make_callable
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.dataset import manifest
from pipeline.dataset.logs import Logs
from pipeline.dataset.manifest import VideoEntry
from pipeline.errors import CorruptError, PartialError, TryAgainError, VtpError
from pipeline.extraction import shards
from pipeline.extraction.inputs import Inputs, read_inputs
from pipeline.extraction.parts import (
    PartWriter,
    Settings,
    check_settings,
    finished_contents,
    join_labels,
    put_together,
    steps_differ,
)
from pipeline.extraction.shards import Done, Failed, Ledger, Stamp, parts_folder
from pipeline.files import file_sha256, remove_leftovers, save_config, write_text
from pipeline.tasks import BUILT_IN
from pipeline.video import Clip, DecoderPool, Restart, VideoError, check_file, unreadable
from pipeline.writer_lock import one_writer

if TYPE_CHECKING:
    from pipeline.encoders import Encoder, Projector

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
WORTH_ANOTHER_TRY = ("changed", "crashed", "memory", "timeout", "unreadable")  # the file may be whole all the same


@dataclass(frozen=True)
class ExtractResult:
    """`path` is None where no embeddings were written: every video failed, or this was one shard of several.

    num_videos and num_clips count what the file holds, for a shard the videos that it has done; failures are rows of
    `failures_path`.
    """

    path: Path | None
    num_clips: int
    num_videos: int
    num_decoded: int
    failures: list[dict[str, str]]
    failures_path: Path


def run(cfg: ExtractConfig, *, progress: Progress = lambda done, total, text: None) -> ExtractResult:
    """Decode and encode this process's share of the videos; with one shard, put the embeddings file together too."""
    shard = shards.shard_number(cfg.shards, cfg.shard)
    if cfg.out.is_dir():
        raise VtpError(
            f"--out {cfg.out} is a folder; name a file in it, such as {cfg.out / 'embeddings.h5'}",
            code="output-is-folder",
        )
    hf_models.check_named(cfg.backbone)
    inputs = read_inputs(cfg)
    from pipeline import encoders

    encoder = encoders.load_encoder(cfg.backbone, cfg.weights, cfg.precision, batch_size=cfg.batch_size)
    given_projector(cfg.projector, encoder.weights_sha256, encoder.feature_dim)  # refused now, not after the work
    if encoder.num_frames is not None and cfg.clip_len < encoder.num_frames:
        logger.warning(
            "clips have %d frames and %s takes %d: frames are repeated; --clip-len %d shows each once",
            cfg.clip_len, encoder.backbone, encoder.num_frames, encoder.num_frames,
        )  # fmt: skip
    folder, settings = parts_folder(cfg.out), feature_settings(cfg, encoder)
    shared = json.dumps([[entry.video_id for entry in inputs.entries], cfg.shards, settings])  # by all shards
    with one_writer(shards.lock_path(folder, cfg.shards, shard), cfg.out, settings=shared) as lock:
        parts = finished_contents(folder, settings)
        remove_leftovers(folder)
        for name in (cfg.out.name, cfg.out.with_suffix(".yaml").name, "failures.jsonl"):
            remove_leftovers(cfg.out.parent, name)
        save_config(folder / "config.yaml", portable(cfg))

        mine = shards.share(inputs.entries, cfg.shards, shard)
        ledger = Ledger(shards.ledger_path(folder, cfg.shards, shard), mine)
        num_decoded = extract_videos(cfg, mine, parts, ledger, encoder, progress, inputs.logs)
        logger.info("%d videos: %d decoded now, %d failed", len(mine), num_decoded, len(ledger.failures))
        if cfg.shards > 1:
            failures = [asdict(row) for row in ledger.failures]
            return ExtractResult(None, 0, len(mine) - len(failures), num_decoded, failures, ledger.path)
        progress(len(mine), len(mine), "putting together")
        lock.check()
        return write_merged(cfg, inputs, num_decoded=num_decoded)


def merge(cfg: MergeConfig | ExtractConfig) -> ExtractResult:
    """Put the parts of all shards together at `cfg.out`, with the settings that the shards left beside their parts.

    CorruptError (exit code 4) names what is missing or damaged and the command that does it again.
    """
    saved = shards.saved_config(cfg.out)
    return write_merged(saved, read_inputs(saved), num_decoded=0)


def landed(cfg: ExtractConfig, ids: Set[str]) -> int:
    """How many of the videos of these ids are done or have failed, over all shards."""
    return len(ids & {row.video_id for row in shards.read_ledgers(parts_folder(cfg.out), cfg.shards)})


@dataclass
class _Reading:
    """A video file whose content is known, and the others of the same content that came while it was decoded."""

    entry: VideoEntry
    sha256: str
    stamp: Stamp
    twins: list[_Reading] = field(default_factory=list)


def extract_videos(
    cfg: ExtractConfig,
    entries: Sequence[VideoEntry],
    parts: dict[str, str],
    ledger: Ledger,
    encoder: Encoder,
    progress: Progress,
    logs: Mapping[str, Logs],
) -> int:
    """Decode and encode the videos whose content no part holds; returns how many. `parts`: content to part.

    Clips are encoded in the order in which decoders have them ready. A clip's features do not depend on that. Labels
    that do not fit are told of as soon as their video is decoded, not after all of them.
    """
    queue = deque(entries)
    tries: Counter[str] = Counter()
    for_pyav: set[str] = set()  # ids of videos that decord may have hung or died of
    decoding: dict[str, _Reading] = {}
    encoded: dict[str, list[_Reading]] = {}  # by content; done as soon as their part is written
    num_decoded = 0

    def finish(video: _Reading) -> None:
        encoded.setdefault(video.sha256, []).append(video)
        progress(len(entries) - len(queue) - len(decoding), len(entries), video.entry.video_id)

    def fail(entry: VideoEntry, error: VideoError) -> None:
        tries[entry.video_id] += 1
        if error.code in WORTH_ANOTHER_TRY and tries[entry.video_id] <= cfg.retries:
            if error.code in ("crashed", "timeout") and cfg.decoder == "auto":
                for_pyav.add(entry.video_id)
            queue.append(entry)
            return
        ledger.record(failure(entry, "decode", error))
        progress(len(entries) - len(queue) - len(decoding), len(entries), entry.video_id)
        if cfg.max_failures is not None and len(ledger.failures) > cfg.max_failures:
            raise PartialError(
                f"{len(ledger.failures)} videos failed, more than --max-failures {cfg.max_failures}; each is in "
                f"{ledger.path}: mend them or raise it, and run the same command again",
                code="too-many-failures",
            )

    def record(part: str, contents: Sequence[str]) -> None:
        parts.update(dict.fromkeys(contents, part))
        record_done()
        ledger.write_if_due()

    def record_done() -> None:
        for sha256 in parts.keys() & encoded.keys():
            for video in encoded.pop(sha256):
                entry = video.entry
                ledger.record(Done(entry.video_id, str(entry.path), video.stamp, sha256, parts[sha256]))

    writer = PartWriter(parts_folder(cfg.out), feature_settings(cfg, encoder), encoder, on_close=record)
    decoders: DecoderPool[_Reading] = DecoderPool(
        num_decoders(), timeout_s=cfg.timeout_s, decoder=cfg.decoder, verify=cfg.verify, frame_size=encoder.frame_size
    )
    try:
        with decoders as pool:
            while queue or decoding:
                while queue and pool.num_idle:
                    entry = queue.popleft()
                    try:
                        video = read_content(entry, ledger)
                    except VideoError as error:
                        fail(entry, error)
                        continue
                    if video.sha256 in parts or video.sha256 in encoded:
                        finish(video)
                    elif video.sha256 in decoding:
                        decoding[video.sha256].twins.append(video)
                    else:
                        decoding[video.sha256] = video
                        pool.submit(
                            video, entry.path,
                            clip_len=cfg.clip_len, clip_stride=cfg.clip_stride, fps=cfg.fps, tail=cfg.tail,
                            decoder="pyav" if entry.video_id in for_pyav else None,
                        )  # fmt: skip
                for video, event in pool.events():
                    if isinstance(event, Clip):
                        writer.add(video.sha256, event)
                        continue
                    if isinstance(event, Restart):
                        writer.discard(video.sha256)
                        continue
                    event = changed(video) or event
                    del decoding[video.sha256]
                    queue.extendleft(twin.entry for twin in video.twins)
                    if isinstance(event, VideoError):
                        writer.discard(video.sha256)
                        fail(video.entry, event)
                    else:
                        if misfit := steps_differ(video.entry, event.num_clips, logs.get(video.entry.video_id)):
                            logger.warning("%s will be left out: %s", video.entry.video_id, misfit)
                        finish(video)
                        num_decoded += 1
                        writer.finish(video.sha256, event)
    finally:  # what is finished is kept, also when the user has had enough
        writer.close()
        record_done()
        ledger.write()
    return num_decoded


def num_decoders() -> int:
    """Two at least, so that one opens a video while the other decodes; more where there are processors for them."""
    return max(2, min(8, len(os.sched_getaffinity(0)) // 4))


def feature_settings(cfg: ExtractConfig, encoder: Encoder) -> Settings:
    """All that a video's features depend on, beside its content."""
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
    """The config of all shards alike, good in any working folder."""
    paths = {"source": os.path.abspath(cfg.source), "out": cfg.out.absolute()}
    paths |= {
        name: os.path.abspath(value)
        for name in ("weights", "projector")
        if (value := getattr(cfg, name)) is not None and os.path.isfile(value)
    }
    paths["backbone"] = hf_models.absolute(cfg.backbone)
    if cfg.task is not None and cfg.task not in BUILT_IN:
        paths["task"] = os.path.abspath(cfg.task)
    return cfg.model_copy(update={**paths, "shard": None})


def failure(entry: VideoEntry, stage: str, error: VideoError) -> Failed:
    name = entry.video_id if entry.video_id.isprintable() else repr(entry.video_id)
    logger.warning("%s: %s", name, error)
    return Failed(str(entry.path), entry.video_id, stage, error.code, error.reason, error.fix)


def read_content(entry: VideoEntry, ledger: Ledger) -> _Reading:
    """The file's sha256, checked against the manifest's, and its stamp from before it was read."""
    try:
        check_file(entry.path)
        stamp = file_stamp(entry.path)
        sha256 = ledger.known_sha256(entry, stamp) or file_sha256(entry.path)
    except OSError as error:
        raise unreadable(error) from error
    if entry.sha256 not in (None, sha256):
        raise VideoError(
            "checksum", f"sha256 is {sha256[:12]}, not the manifest's {entry.sha256[:12]}", "fetch the file again"
        )
    return _Reading(entry, sha256, stamp)


def changed(video: _Reading) -> VideoError | None:
    """What is wrong if the file is no longer the one that was hashed."""
    try:
        if file_stamp(video.entry.path) == video.stamp:
            return None
    except OSError:
        pass
    return VideoError("changed", "changed while it was read", "run the same command again when it is complete")


def file_stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_merged(cfg: ExtractConfig, inputs: Inputs, *, num_decoded: int) -> ExtractResult:
    """Write the embeddings file and failures.jsonl from the parts and ledgers of all shards."""
    folder, entries = parts_folder(cfg.out), inputs.entries
    outcomes = {row.video_id: row for row in shards.read_ledgers(folder, cfg.shards)}
    check_complete(cfg, entries, outcomes)
    failures = [row for entry in entries if isinstance(row := outcomes[entry.video_id], Failed)]
    done = [row for entry in entries if isinstance(row := outcomes[entry.video_id], Done)]
    finished = [entry for entry in entries if isinstance(outcomes[entry.video_id], Done)]
    finished = manifest.assign_splits(finished, [row.sha256 for row in done])
    parts = read_parts(cfg, sorted({row.part for row in done}))
    labelled = []
    for entry, row in zip(finished, done, strict=True):
        part = parts[row.part]
        try:
            if entry.video_id in inputs.bad_labels:
                raise inputs.bad_labels[entry.video_id]
            logs = inputs.logs.get(entry.video_id)
            labelled.append(join_labels(entry, part, part.videos.sha256.index(row.sha256), logs))
        except VideoError as error:
            failures.append(failure(entry, "labels", error))
    rows = [asdict(row) for row in failures]
    failures_path = write_failures(cfg.out, rows)
    if not labelled:
        return ExtractResult(None, 0, 0, num_decoded, rows, failures_path)
    settings = labelled[0].part.settings
    feature_dim = labelled[0].part.clips.features.shape[1]
    projector = given_projector(cfg.projector, str(settings["weights_sha256"]), feature_dim)
    embeddings = put_together(labelled, projector, {**settings, **provenance()}, inputs.task)
    dataset.write_embeddings(cfg.out, embeddings)
    save_config(cfg.out.with_suffix(".yaml"), portable(cfg))
    return ExtractResult(cfg.out, embeddings.num_clips, embeddings.num_videos, num_decoded, rows, failures_path)


def check_complete(cfg: ExtractConfig, entries: Sequence[VideoEntry], outcomes: dict[str, Done | Failed]) -> None:
    """CorruptError with the first shard that has not dealt with all of its videos."""
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
    """The parts by name. CorruptError where one is missing or damaged, VtpError where their settings differ."""
    folder = parts_folder(cfg.out)
    parts: dict[str, dataset.Part] = {}
    for name in names:
        try:
            parts[name] = dataset.read_part(folder / name)
        except TryAgainError:
            raise
        except VtpError as error:
            reason = str(error).partition(";")[0]
            redo = shards.redo_command(cfg, shards.shard_of_part(cfg, name))
            raise CorruptError(f"{reason}; run: {redo}", code="part-damaged") from error
        check_settings(parts[name], folder, parts[names[0]].settings)
        check_settings(parts[names[0]], folder, parts[name].settings)  # what only one of them states
    return parts


def write_failures(out: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Leave the rows beside the parts and, with those of other outputs in the folder, in failures.jsonl: its path."""
    _write_rows(parts_folder(out) / "failures.jsonl", rows)
    path = out.parent / "failures.jsonl"
    outputs = sorted(out.parent.glob("*.parts/failures.jsonl"))
    _write_rows(path, [json.loads(line) for output in outputs for line in output.read_text().splitlines()])
    return path


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """No rows, no file."""
    if rows:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)


def provenance() -> Settings:
    versions: Settings = {"vtp_version": __version__}
    for name in ("torch", "torchvision", "transformers", "decord", "decord2", "av", "h5py", "numpy"):
        try:
            versions[f"{name}_version"] = metadata.version(name)
        except metadata.PackageNotFoundError:  # of decord and decord2, one is there
            continue
    return versions


def given_projector(spec: str, weights_sha256: str, feature_dim: int) -> Projector | str:
    """The projector that is known beforehand: none, random:SEED, an embeddings file's; the name of one to be fitted."""
    from pipeline import encoders
    from pipeline.encoders import Projector

    if spec in encoders.FITTED:
        return spec
    if spec == encoders.NONE:
        return encoders.no_projector(feature_dim)
    if (seed := encoders.seed_of(spec)) is not None:
        return encoders.random_projector(seed, feature_dim)
    if not Path(spec).is_file():
        raise VtpError(
            f"projector {spec!r} is not a file; use pca, learned, random:SEED, none, or an embeddings file",
            code="projector-missing",
        )
    source = dataset.read_embeddings(Path(spec))
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
