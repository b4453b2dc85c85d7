"""Extract: videos in, one 128-D embedding a clip out.

Each process decodes and encodes its share of the videos into part files beside the output: `--shards N --shard I`, and
one process alone has them all. `merge` puts the parts together, so that names, splits, labels and the projector may
change without decoding again; `landed` says how far all shards are.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import yaml

from pipeline import __version__, encoders, manifest, shards, store
from pipeline.config import ExtractConfig, MergeConfig
from pipeline.encoders import Encoder, Projector
from pipeline.errors import CorruptError, VtpError
from pipeline.manifest import VideoEntry
from pipeline.parts import PartWriter, Settings, check_settings, join_labels, part_paths, put_together
from pipeline.rundir import file_sha256, make_folder, save_config, write_text
from pipeline.shards import Done, Failed, Ledger, Stamp, parts_folder
from pipeline.video import Clip, Decoder, VideoError, check_file

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


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


def run(cfg: ExtractConfig, *, progress: Progress | None = None) -> ExtractResult:
    """Decode and encode this process's share of the videos; with one shard, put the embeddings file together too."""
    shard = shards.shard_number(cfg.shards, cfg.shard)
    if cfg.out.is_dir():
        raise VtpError(f"--out {cfg.out} is a folder; name a file in it, such as {cfg.out / 'embeddings.h5'}")
    entries = manifest.assign_splits(manifest.find_videos(cfg.source))
    encoder = encoders.load_encoder(cfg.backbone, cfg.weights, cfg.precision, batch_size=cfg.batch_size)
    given_projector(
        cfg.projector, encoder.weights_sha256, encoder.feature_dim
    )  # a wrong one is refused before the work
    settings = feature_settings(cfg, encoder)
    folder = parts_folder(cfg.out)
    parts = finished_contents(folder, settings)
    make_folder(folder)
    save_config(folder / "config.yaml", portable(cfg))

    mine = shards.share(entries, cfg.shards, shard)
    ledger = Ledger(shards.ledger_path(folder, cfg.shards, shard), mine)
    num_decoded = extract_videos(cfg, mine, parts, ledger, encoder, settings, progress)
    logger.info("%d videos: %d decoded now, %d failed", len(mine), num_decoded, len(ledger.failures))
    if cfg.shards > 1:
        failures = [asdict(row) for row in ledger.failures]
        return ExtractResult(None, 0, len(mine) - len(failures), num_decoded, failures, ledger.path)
    if progress is not None:
        progress(len(mine), len(mine), "putting together")
    return write_merged(cfg, entries, num_decoded=num_decoded)


def merge(cfg: MergeConfig | ExtractConfig) -> ExtractResult:
    """Put the parts of all shards together at `cfg.out`, with the settings that the shards left beside their parts.

    CorruptError (exit code 4) names what is missing or damaged and the command that does it again.
    """
    path = parts_folder(cfg.out) / "config.yaml"
    if not path.exists():
        raise VtpError(
            f"{cfg.out} has no parts ({path} does not exist); make them with: vtp extract SOURCE --out {cfg.out}"
        )
    saved = ExtractConfig(**yaml.safe_load(path.read_text(encoding="utf-8")) | {"out": cfg.out})
    return write_merged(saved, manifest.assign_splits(manifest.find_videos(saved.source)), num_decoded=0)


def landed(cfg: ExtractConfig, ids: Set[str]) -> int:
    """How many of the videos of these ids are done or have failed, over all shards."""
    return len(ids & {row.video_id for row in shards.read_ledgers(parts_folder(cfg.out), cfg.shards)})


def extract_videos(
    cfg: ExtractConfig,
    entries: Sequence[VideoEntry],
    parts: dict[str, str],
    ledger: Ledger,
    encoder: Encoder,
    settings: Settings,
    progress: Progress | None,
) -> int:
    """Decode and encode the videos whose content no part holds; returns how many. `parts`: content to part."""
    unrecorded: list[tuple[VideoEntry, str, Stamp]] = []
    num_decoded = 0

    def record_part(name: str, contents: Iterable[str]) -> None:
        parts.update(dict.fromkeys(contents, name))
        record_done()

    def record_done() -> None:
        for entry, sha256, stamp in [row for row in unrecorded if row[1] in parts]:
            ledger.record(Done(entry.video_id, str(entry.path), stamp, sha256, parts[sha256]))
        unrecorded[:] = [row for row in unrecorded if row[1] not in parts]
        ledger.write()

    writer = PartWriter(parts_folder(cfg.out), settings, encoder, on_close=record_part)
    try:
        with Decoder(timeout_s=cfg.timeout_s, decoder=cfg.decoder) as decoder:
            for index, entry in enumerate(entries):
                if progress is not None:
                    progress(index, len(entries), entry.video_id)
                try:
                    sha256, stamp = read_content(entry, ledger)
                    if sha256 not in parts and sha256 not in writer.contents:
                        clips = decoder.clips(
                            entry.path, clip_len=cfg.clip_len, clip_stride=cfg.clip_stride, fps=cfg.fps, tail=cfg.tail
                        )
                        writer.add(sha256, clips.info, unchanged(entry.path, stamp, clips))
                        num_decoded += 1
                    unrecorded.append((entry, sha256, stamp))
                except VideoError as error:
                    ledger.record(failure(entry, "decode", error))
    finally:  # what is finished is kept, also when the user has had enough
        writer.close()
        record_done()
    return num_decoded


def feature_settings(cfg: ExtractConfig, encoder: Encoder) -> Settings:
    """All that a video's features depend on, beside its content."""
    return {
        "backbone": encoder.backbone,
        "weights_sha256": encoder.weights_sha256,
        "transform": encoder.transform,
        "precision": encoder.precision,
        "clip_len": cfg.clip_len,
        "clip_stride": cfg.clip_stride,
        "fps": cfg.fps,
        "tail": cfg.tail,
        "decoder": cfg.decoder,
    }


def finished_contents(folder: Path, settings: Settings) -> dict[str, str]:
    """The part of each content that needs no decoding. Damaged parts are set aside, other settings refused."""
    contents = {}
    for path in part_paths(folder):
        try:
            part = store.read_part(path)
        except CorruptError as error:
            aside = path.with_suffix(".damaged")
            logger.warning("%s; set aside as %s", str(error).split(";")[0], aside.name)
            path.replace(aside)
            continue
        check_settings(part, folder, settings)
        contents |= dict.fromkeys(part.videos.sha256, path.name)
    return contents


def portable(cfg: ExtractConfig) -> ExtractConfig:
    """The config of all shards alike, good in any working folder."""
    paths = {"source": os.path.abspath(cfg.source), "out": cfg.out.absolute()}
    paths |= {
        name: os.path.abspath(value) for name in ("weights", "projector") if os.path.isfile(value := getattr(cfg, name))
    }
    return cfg.model_copy(update={**paths, "shard": None})


def failure(entry: VideoEntry, stage: str, error: VideoError) -> Failed:
    logger.warning("%s: %s", entry.video_id, error)
    return Failed(str(entry.path), entry.video_id, stage, error.code, error.reason, error.fix)


def read_content(entry: VideoEntry, ledger: Ledger) -> tuple[str, Stamp]:
    """The file's sha256, checked against the manifest's, and its stamp from before it was read."""
    try:
        check_file(entry.path)
        stamp = _stamp(entry.path)
        sha256 = ledger.known_sha256(entry, stamp) or file_sha256(entry.path)
    except OSError as error:
        raise VideoError("unreadable", f"cannot be read: {error.strerror}", "check the disk and run again") from error
    if entry.sha256 not in (None, sha256):
        raise VideoError(
            "checksum", f"sha256 is {sha256[:12]}, not the manifest's {entry.sha256[:12]}", "fetch the file again"
        )
    return sha256, stamp


def unchanged(path: Path, stamp: Stamp, clips: Iterator[Clip]) -> Iterator[Clip]:
    """The same clips; VideoError at their end if the file is no longer the one that was hashed."""
    yield from clips
    try:
        same = _stamp(path) == stamp
    except OSError:
        same = False
    if not same:
        raise VideoError("changed", "changed while it was read", "run the same command again when it is complete")


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_merged(cfg: ExtractConfig, entries: Sequence[VideoEntry], *, num_decoded: int) -> ExtractResult:
    """Write the embeddings file and failures.jsonl from the parts and ledgers of all shards."""
    folder = parts_folder(cfg.out)
    outcomes = {row.video_id: row for row in shards.read_ledgers(folder, cfg.shards)}
    check_complete(cfg, entries, outcomes)
    failures = [row for entry in entries if isinstance(row := outcomes[entry.video_id], Failed)]
    done = [(entry, row) for entry in entries if isinstance(row := outcomes[entry.video_id], Done)]
    parts = read_parts(cfg, sorted({row.part for _, row in done}))
    labelled = []
    for entry, row in done:
        part = parts[row.part]
        try:
            labelled.append(join_labels(entry, part, part.videos.sha256.index(row.sha256)))
        except VideoError as error:
            failures.append(failure(entry, "labels", error))
    rows = [asdict(row) for row in failures]
    failures_path = write_failures(cfg.out, rows)
    if not labelled:
        return ExtractResult(None, 0, 0, num_decoded, rows, failures_path)
    settings = {name: value for name, value in labelled[0].part.settings.items() if name != "schema_version"}
    feature_dim = labelled[0].part.clips.features.shape[1]
    projector = given_projector(cfg.projector, str(settings["weights_sha256"]), feature_dim)
    embeddings = put_together(labelled, projector, {**settings, **provenance()})
    store.write_embeddings(cfg.out, embeddings)
    save_config(cfg.out.with_suffix(".yaml"), portable(cfg))
    return ExtractResult(cfg.out, embeddings.num_clips, embeddings.num_videos, num_decoded, rows, failures_path)


def check_complete(cfg: ExtractConfig, entries: Sequence[VideoEntry], outcomes: dict[str, Done | Failed]) -> None:
    """CorruptError with the first shard that has not dealt with all of its videos."""
    for shard in range(cfg.shards):
        mine = shards.share(entries, cfg.shards, shard)
        if missing := [entry.video_id for entry in mine if entry.video_id not in outcomes]:
            raise CorruptError(
                f"{cfg.out} is incomplete: shard {shard} of {cfg.shards} lacks {len(missing)} of its {len(mine)} "
                f"videos, such as {missing[0]}; run: {shards.redo_command(cfg, shard)}"
            )


def read_parts(cfg: ExtractConfig, names: Sequence[str]) -> dict[str, store.Part]:
    """The parts by name. CorruptError where one is missing or damaged, VtpError where their settings differ."""
    folder = parts_folder(cfg.out)
    parts: dict[str, store.Part] = {}
    for name in names:
        try:
            parts[name] = store.read_part(folder / name)
        except VtpError as error:
            reason = str(error).partition(";")[0]
            raise CorruptError(f"{reason}; run: {shards.redo_command(cfg, shards.shard_of_part(cfg, name))}") from error
        check_settings(parts[name], folder, parts[names[0]].settings)
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
    versions = {"vtp_version": __version__}
    for name in ("torch", "torchvision", "decord", "decord2", "av", "h5py", "numpy"):
        try:
            versions[f"{name}_version"] = metadata.version(name)
        except metadata.PackageNotFoundError:  # of decord and decord2, one is there
            continue
    return versions


def given_projector(spec: str, weights_sha256: str, feature_dim: int) -> Projector | None:
    """The projector that is known beforehand: random:SEED, or that of an embeddings file; None for pca."""
    if spec == "pca":
        return None
    if (seed := encoders.seed_of(spec)) is not None:
        return encoders.random_projector(seed, feature_dim)
    if not Path(spec).is_file():
        raise VtpError(f"projector {spec!r} is not a file; use pca, random:SEED, or an embeddings file")
    source = store.read_embeddings(Path(spec))
    if source.attrs.get("weights_sha256") != weights_sha256:
        raise VtpError(
            f"projector {spec} belongs to weights {str(source.attrs.get('weights_sha256'))[:12]}, not to "
            f"{weights_sha256[:12]}; pass the --weights that it was made with"
        )
    return Projector(
        source.projector_mean, source.projector_components, source.projector_scale, str(source.attrs["projector"])
    )
