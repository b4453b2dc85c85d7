"""Small robomimic and Minari files whose frames carry their number as a barcode."""

import io
import json

import h5py
import numpy as np
from factories import barcode_frame, write_video
from PIL import Image

RATE = 20
LENGTHS = (24, 40, 33)
CAMERAS = {"agentview_image": 0, "robot0_eye_in_hand_image": 100}  # added to a frame's number
SIZES = {"agentview_image": (84, 96), "robot0_eye_in_hand_image": (64, 80)}


def number(episode: int, frame: int, camera: str) -> int:
    return sum(LENGTHS[:episode]) + frame + CAMERAS[camera]


def frames(episode: int, camera: str, count: int | None = None) -> np.ndarray:
    count = LENGTHS[episode] if count is None else count
    return np.stack([barcode_frame(number(episode, frame, camera), *SIZES[camera]) for frame in range(count)])


def actions(episode: int, count: int) -> np.ndarray:
    """[count, 3]; the last one counts up by a hundredth."""
    return np.column_stack([np.zeros(count), np.full(count, 0.1 * episode), 0.01 * np.arange(count)])


def write_robomimic(path, *, rate=RATE, cameras=tuple(CAMERAS), names=("demo_0", "demo_2", "demo_10"), masks=None):
    """Three demonstrations; rate: control_freq, None leaves it out."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {} if rate is None else {"control_freq": rate}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        for episode, name in reversed(list(enumerate(names))):  # the order in the file says nothing
            group, count = data.create_group(name), LENGTHS[episode]
            group.attrs["num_samples"] = count
            for camera in cameras:
                group.create_dataset(f"obs/{camera}", data=frames(episode, camera), compression="gzip")
                group.create_dataset(f"next_obs/{camera}", data=frames(episode, camera))
            group["obs/robot0_eef_pos"] = np.zeros((count, 3))
            group["actions"] = actions(episode, count)
            group["rewards"] = (np.arange(count) % 8 == 0).astype(float)
            group["dones"] = np.arange(count) == count - 1
        for mask, episodes in (masks or {}).items():
            file[f"mask/{mask}"] = np.array(episodes, "S")
    return path


def write_minari(folder, *, rate=RATE, layout="jpeg"):
    """The same episodes, one frame more in each. layout: jpeg, dict (arrays in a dictionary) or infos."""
    (folder / "data").mkdir(parents=True)
    metadata = {"data_format": "hdf5", "total_episodes": 3, "minari_version": "0.5.4"}
    (folder / "data/metadata.json").write_text(json.dumps(metadata | ({} if rate is None else {"fps": rate})))
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for episode, count in enumerate(LENGTHS):
            group, seen = file.create_group(f"episode_{episode}"), frames(episode, "agentview_image", count + 1)
            if layout == "jpeg":
                encoded = group.create_dataset("observations", count + 1, h5py.vlen_dtype(np.uint8))
                for index, frame in enumerate(seen):
                    encoded[index] = np.frombuffer(jpeg(frame), np.uint8)
            elif layout == "dict":
                group["observations/rgb"] = seen
                group["observations/state"] = np.zeros((count + 1, 3))
            else:
                group["observations"] = np.zeros((count + 1, 3))
                group["infos/pixels"] = seen
            group["actions"] = actions(episode, count)
            group["rewards"] = (np.arange(count) % 8 == 0).astype(float)
            group["terminations"], group["truncations"] = np.zeros(count, bool), np.zeros(count, bool)
    return folder


def jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_named(folder, *, names=("demo_0", "demo_2", "demo_10"), extra=0):
    """The same demonstrations without images, with a video of each beside it that ends in `extra` more frames."""
    (folder / "videos").mkdir(parents=True)
    path = write_robomimic(folder / "lift.hdf5", cameras=[], names=names)
    for episode, name in enumerate(names):
        first, count = number(episode, 0, "agentview_image"), LENGTHS[episode] + extra
        write_video(folder / f"videos/{name}.mp4", count, fps=RATE, first=first)
    return path
