"""Videos for tests, whose frames carry their number as a barcode that survives compression, and their embeddings."""

import struct
from pathlib import Path

import av
import numpy as np

from pipeline import dataset
from pipeline.dataset import logs as clip_logs
from pipeline.files import file_sha256
from pipeline.tasks import load_task
from pipeline.video import Decoder

BITS = 8


def barcode_frame(number: int, height: int, width: int) -> np.ndarray:
    """White columns for the ones of `number`, most significant first; the top eighth is red, to tell what is up."""
    columns = np.arange(width) * BITS // width
    ones = (number >> (BITS - 1 - columns)) & 1
    frame = np.repeat(np.where(ones, 230, 25).astype(np.uint8)[None, :, None], height, axis=0).repeat(3, axis=2)
    frame[: height // 8] = (220, 20, 20)
    return frame


def read_barcode(frame: np.ndarray) -> int:
    height, width, _ = frame.shape
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = frame[height // 4 :, centres].mean(axis=(0, 2)) > 128
    return int(sum(1 << (BITS - 1 - k) for k in np.flatnonzero(bits)))


def write_video(
    path: Path, num_frames: int, *, codec="libx264", fps=15, size=(144, 176), pix_fmt="yuv420p", options=None, pts=None,
    time_base=None, first=0, stream=None,
) -> Path:  # fmt: skip
    """A video of `num_frames` barcodes from `first` on, at `fps` or at the times `pts` in units of `time_base`.

    stream: properties of its codec context, such as its colour range.
    """
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=fps, options=options or {})
        track.height, track.width = size
        track.pix_fmt = pix_fmt
        for name, value in (stream or {}).items():
            setattr(track.codec_context, name, value)
        if time_base is not None:
            track.codec_context.time_base = time_base
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(barcode_frame(first + index, *size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], time_base
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def skip_by_edit_list(path: Path, num_skipped: int, *, num_frames: int, fps: int) -> None:
    """Change the mp4's edit list so that the first frames are in the file and not shown."""
    data = bytearray(path.read_bytes())
    entry = data.find(b"elst") + 12
    media_timescale = struct.unpack(">I", data[data.find(b"mdhd") + 16 :][:4])[0]
    duration, media_time = struct.unpack(">Ii", data[entry : entry + 8])
    kept = duration * (num_frames - num_skipped) // num_frames
    data[entry : entry + 8] = struct.pack(">Ii", kept, media_time + num_skipped * media_timescale // fps)
    path.write_bytes(data)


def turn(path: Path) -> None:
    """Mark an mp4 as recorded on its side: players turn it by 90 degrees."""
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def assert_equal(one, other) -> None:
    """All fields of two dataclasses are equal; NaN is."""
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def small_part() -> dataset.Part:
    """Two videos of two and three clips."""
    rng = np.random.default_rng(0)
    clips = dataset.Clips(
        features=rng.standard_normal((5, 512)).astype(np.float32),
        start_frame=np.array([0, 16, 0, 32, 64]),
        start_s=np.array([0, 1.0667, 0, 1.0667, 2.1333]),
        end_s=np.array([1.0667, 2.1333, 1.0667, 2.1333, 2.5]),
        valid_frames=np.array([16, 16, 16, 16, 6]),
        offset=np.array([0, 2, 5]),
    )
    videos = dataset.Videos(["a" * 64, "b" * 64], np.array([15.0, 29.97]), np.array([40, 90]), ["decord", "pyav"])
    return dataset.Part(clips, videos, {"backbone": "r3d_18", "clip_len": 16, "fps": 15.0})


CLIP_SETTINGS = {"clip_len": 16, "clip_stride": 16, "fps": 15.0, "tail": "drop", "decoder": "auto"}


def write_embeddings(path, entries, *, seed=0, task="dishwashing", **attrs):
    """An embeddings file of those videos, with their labels and random embeddings."""
    task = load_task(task)
    rows, logs, counts = [], [], []
    with Decoder() as decoder:
        for entry in entries:
            clips = list(
                decoder.clips(entry.path, **{k: CLIP_SETTINGS[k] for k in ("clip_len", "clip_stride", "fps", "tail")})
            )
            rows += [(clip.start_frame, clip.start_s, clip.end_s, clip.valid_frames) for clip in clips]
            logs.append(dataset.read_labels(entry.labels, task))
            counts.append(len(clips))
    start_frame, start_s, end_s, valid_frames = map(np.array, zip(*rows, strict=True))
    embeddings = np.random.default_rng(seed).standard_normal((len(rows), 128)).astype(np.float32)
    names = [entry.video_id for entry in entries]
    data = dataset.Embeddings(
        embeddings=embeddings,
        clips=dataset.Clips(
            embeddings, start_frame, start_s, end_s, valid_frames, np.concatenate([[0], np.cumsum(counts)])
        ),
        videos=dataset.Videos(
            sha256=[file_sha256(entry.path) for entry in entries], fps=np.full(len(names), 15.0),
            num_frames=np.array(counts) * 16, decoder=["decord"] * len(names), id=names,
            path=[str(entry.path) for entry in entries], split=[entry.split for entry in entries],
        ),
        task=task, logs=clip_logs.concatenate(logs, counts, task.num_actions),
        projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0,
        attrs={**CLIP_SETTINGS, "weights_sha256": "w", "projector_sha256": "p", **attrs},
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path
