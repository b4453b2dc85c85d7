"""The clips of a run on video, stored in its run directory and memory-mapped."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline import dataset, devices
from pipeline.dataset import rereading
from pipeline.encoders import ClipEncoder, centre_crop, resized, state_sha256
from pipeline.files import atomic_path
from pipeline.training.device_rows import DeviceRows

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
BATCH_CLIPS = 8
BATCH_CLIPS_GPU = 64

Progress = Callable[[int, int, str], None]


class FrameCache:
    """N clips for training and validation, indexed by their rows in the embeddings file.

    `prepare` writes three arrays to `folder`: `frames` [N, T, S, S, 3] uint8, decoded once; `inputs` of the first
    encoder layer that is fine-tuned, unless they are the frames; and `embeddings` [N, 128] float32, by the encoder
    before training. Their names contain a hash of what they were made from, so matching ones are reused. Only the
    embeddings are held in memory, on the device; on a GPU that has room for them, so are the inputs.
    """

    def __init__(
        self, folder: Path, data: dataset.Embeddings, rows: np.ndarray, *, frame_size: int, device: torch.device = CPU
    ):
        self.is_frozen = True  # until the encoder is fine-tuned
        self._device = device
        self._folder, self._data, self._rows, self._frame_size = folder, data, np.sort(rows), frame_size
        self._index = np.full(data.num_clips, -1)
        self._index[self._rows] = np.arange(len(rows))
        self._index_on_device = torch.from_numpy(self._index).to(device)

    def prepare(self, encoder: ClipEncoder, progress: Progress) -> None:
        """Make the arrays that are missing, and remove arrays made from something else."""
        data = self._data
        made_of = [data.content_sha256, str(data.attrs["decoder"]), self._frame_size, self._rows.tolist()]
        frames = self._kept("frames", made_of, self._read, progress)
        inputs = frames
        if encoder.layers != "all":
            made_of = [*made_of, encoder.weights_sha256, encoder.layers, *self._other_arithmetic()]
            inputs = self._kept(
                "inputs", made_of, lambda: _batches(encoder.inputs, frames, device=self._device), progress
            )
        made_of = [
            *made_of,
            state_sha256({name: value.cpu() for name, value in encoder.state_dict().items()}),
            *self._other_arithmetic(),
        ]
        table = self._kept(
            "embeddings", made_of, lambda: _batches(encoder.embed, inputs, device=self._device), progress
        )
        self._inputs, self._table = inputs, torch.from_numpy(np.array(table)).to(self._device)
        self._inputs_on_device = DeviceRows("clips", inputs, self._device)
        current = {Path(array.filename).name for array in (frames, inputs, table) if array.filename is not None}
        for path in self._folder.glob("*.npy"):
            if path.name not in current:
                path.unlink()

    def look_up(self, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Observations of clips `rows` [B]: embeddings [B, 128] while the encoder is frozen, else inputs."""
        index = self._index_on_device[torch.as_tensor(rows, device=self._device)]
        return self._table[index] if self.is_frozen else self._inputs_on_device.look_up(index)

    def embeddings(self, encoder: ClipEncoder, rows: np.ndarray) -> np.ndarray:
        """Embeddings [n, 128] of clips `rows` [n], by the current encoder."""
        if self.is_frozen:
            return self._table[self._index[rows]].cpu().numpy()
        return np.concatenate(list(_batches(encoder.embed, self._inputs, self._index[rows], device=self._device)))

    def _other_arithmetic(self) -> list[str]:
        """The GPU's name: what it computes differs a little from what a processor does."""
        return [] if self._device.type == "cpu" else [devices.name_of(self._device)]

    def _read(self) -> Iterator[np.ndarray]:
        for _, frames in rereading.read_clips(
            self._data, range(self._data.num_videos), frame_size=resized(self._frame_size), wanted=self._rows,
            batch_size=BATCH_CLIPS,
        ):  # fmt: skip
            yield centre_crop(frames, self._frame_size)

    def _kept(
        self, name: str, made_of: list, make: Callable[[], Iterable[np.ndarray]], progress: Progress
    ) -> np.memmap:
        """The array of that name, reused if it was made from `made_of`, else made by `make` in blocks of clips."""
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        path = self._folder / f"{name}-{key[:16]}.npy"
        if not path.is_file():
            blocks = _counted(make(), lambda done: progress(done, len(self._rows), f"clips: {name}"))
            write_array(path, len(self._rows), blocks)
        array = np.load(path, mmap_mode="r")
        logger.info("%s of %d clips: %.1f MB in %s", name, len(array), array.nbytes / 1e6, path)
        return array


def write_array(path: Path, length: int, blocks: Iterable[np.ndarray]) -> None:
    """Write blocks [B, ...] in sequence as one .npy of that length, atomically."""
    blocks = iter(blocks)
    first = next(blocks)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (length, *first.shape[1:])})
        for block in itertools.chain([first], blocks):
            file.write(np.ascontiguousarray(block).data)


def _counted(blocks: Iterable[np.ndarray], tell: Callable[[int], None]) -> Iterator[np.ndarray]:
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        tell(done)


@torch.no_grad()
def _batches(
    function: Callable[[torch.Tensor], torch.Tensor],
    clips: np.ndarray,
    index: np.ndarray | None = None,
    *,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """Apply the function on the device to clips [N, ...], or to those in `index`, in batches."""
    index = np.arange(len(clips)) if index is None else index
    size = BATCH_CLIPS if device.type == "cpu" else BATCH_CLIPS_GPU
    for start in range(0, len(index), size):
        batch = torch.from_numpy(np.asarray(clips[index[start : start + size]]))
        yield function(batch.to(device)).cpu().numpy()
