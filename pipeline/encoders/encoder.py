"""The interface of all backbones: clips to features, in passes of one shape, on all threads or on a GPU."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline import devices, named_weights
from pipeline.encoders import efficientnet
from pipeline.encoders.backbone import Backbone
from pipeline.encoders.gpu_passes import GpuPasses, pass_clips
from pipeline.errors import VtpError
from pipeline.hf_models import is_hf

logger = logging.getLogger(__name__)

PASS_CLIPS = 2  # few enough for the cache, enough to amortise reading the last layers' weights


class Encoder:
    """A backbone with its preprocessing.

    On a processor clips are processed in passes of two, the last one padded, each on one thread. A clip's features
    therefore depend neither on the other clips nor on the number of processors, and no thread waits for another between
    layers.

    A GPU is fed by one thread, in passes whose size depends on the shape of a clip only, always full, with one
    algorithm per shape. A clip's features therefore depend neither on the other clips nor on its place among them, on
    GPUs of one model and with one version of PyTorch.
    """

    def __init__(
        self, backbone: Backbone, *, device: torch.device, precision: str, batch_size: int, clip_len: int | None = None
    ):
        """batch_size: clips that callers shall hand over at a time; on a GPU rounded up to whole passes, at least two.

        clip_len: frames of their clips, by default those that the backbone uses, or 16.
        """
        self.backbone = backbone.name
        self.feature_dim = backbone.feature_dim
        self.frame_size = backbone.frame_size
        self.arithmetic = backbone.arithmetic
        self.transform = backbone.transform
        self.weights = backbone.weights
        self.weights_sha256 = backbone.weights_sha256
        self.num_frames = backbone.num_frames
        self.precision = precision
        self.device = devices.name_of(device)
        self.gpu = device.index  # its number; None for a CPU
        self._device = device
        self._forward, self._is_capturable = backbone.forward, backbone.is_capturable
        self._gpu_passes: GpuPasses | None = None  # for the shape of the latest clips
        if self._device.type != "cpu":
            size = pass_clips((clip_len or backbone.num_frames or 16, *backbone.frame_size, 3))
            self.batch_size = max(2, -(-batch_size // size)) * size  # of two, one is uploaded beside the other
            self._threads = ThreadPoolExecutor(1, "encoder", torch.cuda.set_device, (device,))
        else:
            self.batch_size = batch_size
            self._threads = ThreadPoolExecutor(torch.get_num_threads(), "encoder", torch.set_num_threads, (1,))

    def features(self, clips: np.ndarray | Tensor) -> np.ndarray:
        """clips: [B, T, H, W, 3] uint8 in host memory, at least one → [B, feature_dim] float32."""
        clips = torch.as_tensor(clips)
        if self._device.type != "cpu":
            return self._threads.submit(self._on_gpu, clips).result().numpy()
        return torch.cat(list(self._threads.map(self._pass, clips.split(PASS_CLIPS)))).numpy()

    @torch.inference_mode()
    def _pass(self, clips: Tensor) -> Tensor:
        missing = PASS_CLIPS - len(clips)
        padded = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])])
        return self._forward(padded)[: len(clips)]

    def _on_gpu(self, clips: Tensor) -> Tensor:
        shape = tuple(clips.shape[1:])
        try:
            if self._gpu_passes is None or self._gpu_passes.clip_shape != shape:
                self._gpu_passes = None  # frees its memory first
                self._gpu_passes = GpuPasses(self._forward, shape, self._device, is_capturable=self._is_capturable)
            return self._gpu_passes.features(clips)
        except torch.OutOfMemoryError as error:
            raise VtpError(
                f"{self.device} has too little memory for {pass_clips(shape)} clips of {shape[0]} frames; end other "
                "programs that use it, choose another --device, or shorten --clip-len",
                code="gpu-memory",
            ) from error


def load_encoder(
    backbone: str, weights: str | None, precision: str = "auto", *, device: str = "auto", batch_size: int = 8,
    clip_len: int | None = None,
) -> Encoder:  # fmt: skip
    """Load the encoder of that name, or hf:ID_OR_FOLDER.

    weights: kinetics400 or imagenet (None: the backbone's), a file or folder for the backbone, random:SEED, or auto
    (the trained ones if available, else random:0); for hf, where the model was found before, or None. precision: fp32,
    bf16, int8 (r3d_18 on a CPU only), or auto: bf16 on a GPU; on a CPU int8 (r3d_18) or bf16, if the CPU supports it,
    else fp32. device: cpu, cuda, cuda:N, or auto: the first GPU if it computes in the precision, else the CPU.
    """
    named_weights.check_encoder(backbone, weights, precision, device)
    chosen = devices.choose("cpu" if precision == "int8" else device)
    if precision == "auto":
        precision = _fastest(backbone, chosen)
    elif precision == "bf16" and chosen.type == "cuda" and not _gpu_computes_in_bf16():
        without = f"{devices.name_of(chosen)} does not compute in bf16"
        if device != "auto":
            raise VtpError(
                f"precision bf16 with --device {device}: {without}; use fp32 or auto, or --device cpu",
                code="precision-unsupported",
            )
        logger.warning("%s; encoding on the processor", without)
        chosen = torch.device("cpu")
    try:
        trained = named_weights.TRAINED.get(backbone)
        loaded = _load(backbone, trained if weights in (None, "auto") else weights, precision, chosen)
    except VtpError as error:
        if weights != "auto" or error.code != "weights-unavailable":
            raise
        logger.warning("weights auto: %s; using random:0", str(error).split(";")[0])
        loaded = _load(backbone, "random:0", precision, chosen)
    return Encoder(loaded, device=chosen, precision=precision, batch_size=batch_size, clip_len=clip_len)


def _load(backbone: str, weights: str | None, precision: str, device: torch.device) -> Backbone:
    if is_hf(backbone):
        from pipeline.encoders import hf  # transformers takes a second to import

        return hf.load(backbone, weights, precision, device)
    assert weights is not None
    if backbone == "timesformer_b":
        from pipeline.encoders import timesformer

        return timesformer.load(weights, precision, device)
    if backbone == "r3d_18":
        from pipeline.encoders import r3d  # torchvision takes seconds to import

        return r3d.load(weights, precision, device)
    return efficientnet.load(weights, precision, device)


def _fastest(backbone: str, device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if _gpu_computes_in_bf16() else "fp32"
    if backbone == "r3d_18" and named_weights.computes_in_int8():
        return "int8"
    return "bf16" if named_weights.computes_in_bf16() else "fp32"


def _gpu_computes_in_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
