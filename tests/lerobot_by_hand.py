"""Small LeRobot data sets, in both layouts, whose frames carry their number as a barcode and in their values."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from factories import barcode_frame

FPS = 30
LENGTHS = (24, 33, 40, 20, 29, 36, 25, 34, 22, 38, 27, 30)
EVERY = tuple(range(len(LENGTHS)))
CAMERAS = {"observation.images.front": 0, "observation.images.wrist": 100}  # added to a frame's number
FILES = {"observation.images.front": (0, 7, 12), "observation.images.wrist": (0, 4, 12)}  # episodes, in v3.0
LOSSLESS = {"codec": "libx264", "options": {"qp": "0"}, "pix_fmt": "yuv444p"}
TEXTS = ("pick the bolt", "pick the vial")


def first_number(episode: int) -> int:
    """The number of the episode's first frame among all frames."""
    return sum(LENGTHS[:episode])


def barcode(episode: int, frame: int, camera: str) -> int:
    return (first_number(episode) + frame + CAMERAS[camera]) % 256


def speed(episode: int, frame: np.ndarray) -> np.ndarray:
    return np.float32(0.01 * episode + 0.02 * (frame % 8))


def attempts(episode: int, frame: np.ndarray) -> np.ndarray:
    return ((frame + episode) % 5 == 0).astype(np.int64)


def features(extra: dict | None = None) -> dict:
    video = {
        "dtype": "video",
        "shape": [144, 176, 3],
        "names": ["height", "width", "channel"],
        "info": {"video.fps": FPS},
    }
    number = {"dtype": "int64", "shape": [1], "names": None}
    return {
        **dict.fromkeys(CAMERAS, video),
        "action": {"dtype": "float32", "shape": [4], "names": [["x", "y", "z", "speed"]]},
        **{name: number for name in ("next.attempts", "frame_index", "episode_index", "index", "task_index")},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **(extra or {}),
    }


def frames_table(episodes) -> pa.Table:
    """The values of all frames of episodes."""
    number = np.concatenate([np.full(LENGTHS[k], k) for k in episodes])
    frame = np.concatenate([np.arange(LENGTHS[k]) for k in episodes])
    action = np.stack([np.zeros_like(frame), np.zeros_like(frame), np.zeros_like(frame), speed(number, frame)], axis=1)
    return pa.table(
        {
            "action": pa.FixedSizeListArray.from_arrays(pa.array(action.astype(np.float32).ravel()), 4),
            "next.attempts": attempts(number, frame),
            "next.success": (attempts(number, frame) > 0) & (frame % 2 == 0),
            "next.reward": attempts(number, frame).astype(np.float32),
            "timestamp": (frame / FPS).astype(np.float32),
            "frame_index": frame,
            "episode_index": number,
            "index": frame + np.array([first_number(k) for k in number]),
            "task_index": number % 2,
        }
    )


def write_frames(path: Path, numbers, *, codec="libx264", options=None, pix_fmt="yuv420p") -> Path:
    """A video of barcodes at FPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 144, 176, pix_fmt
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode_frame(number, 144, 176), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_table(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_info(folder: Path, version: str, **changes) -> None:
    v3 = version == "v3.0"
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}" if v3 else "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": version, "fps": FPS, "chunks_size": 1000, "total_episodes": len(LENGTHS),
        "features": features(), "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": f"data/{place}.parquet" if v3 else f"data/{place}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4" if v3
        else f"videos/{place}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }  # fmt: skip
    path = folder / "meta/info.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(info | changes))


def write_v3(folder: Path, *, drift=lambda camera, episode: 0.0, episodes=EVERY, **video) -> Path:
    """Write a v3.0 data set. drift: error of each from_timestamp in frames. Only `episodes` are listed in meta."""
    write_info(folder, "v3.0", total_episodes=len(episodes))
    columns: dict[str, list] = {
        "episode_index": list(episodes), "length": [LENGTHS[k] for k in episodes],
        "tasks": [[TEXTS[k % 2]] for k in episodes], "data/chunk_index": [0] * len(episodes),
        "data/file_index": [int(k >= 6) for k in episodes],
    }  # fmt: skip
    for camera, bounds in FILES.items():
        start_s, file_of = [], []
        for k in episodes:
            file = int(k >= bounds[1])
            start_s.append((first_number(k) - first_number(bounds[file]) + drift(camera, k)) / FPS)
            file_of.append(file)
        columns[f"videos/{camera}/chunk_index"] = [0] * len(episodes)
        columns[f"videos/{camera}/file_index"] = file_of
        columns[f"videos/{camera}/from_timestamp"] = start_s
        columns[f"videos/{camera}/to_timestamp"] = [
            start + LENGTHS[k] / FPS for start, k in zip(start_s, episodes, strict=True)
        ]
        for file in (0, 1):
            numbers = [barcode(k, f, camera) for k in range(*bounds[file : file + 2]) for f in range(LENGTHS[k])]
            write_frames(folder / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", numbers, **video)
    half = len(episodes) // 2
    for file, part in enumerate((slice(None, half), slice(half, None))):
        rows = {name: values[part] for name, values in columns.items()}
        write_table(folder / f"meta/episodes/chunk-000/file-{file:03d}.parquet", pa.table(rows))
    for file, part in enumerate((range(6), range(6, len(LENGTHS)))):
        write_table(folder / f"data/chunk-000/file-{file:03d}.parquet", frames_table(part))
    write_table(folder / "meta/tasks.parquet", pa.table({"task_index": [0, 1], "__index_level_0__": list(TEXTS)}))
    return folder


def write_v2(folder: Path, **video) -> Path:
    write_info(folder, "v2.1")
    rows = [{"episode_index": k, "tasks": [TEXTS[k % 2]], "length": length} for k, length in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"task_index": k, "task": text} for k, text in enumerate(TEXTS)]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    for k, length in enumerate(LENGTHS):
        write_table(folder / f"data/chunk-000/episode_{k:06d}.parquet", frames_table([k]))
        for camera in CAMERAS:
            path = folder / f"videos/chunk-000/{camera}/episode_{k:06d}.mp4"
            write_frames(path, [barcode(k, f, camera) for f in range(length)], **video)
    return folder
