"""The interface of all backbones: clips to features, in passes of one shape, on all threads."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline import named_weights
from pipeline.encoders import efficientnet
from pipeline.encoders.backbone import Backbone
from pipeline.errors import VtpError
from pipeline.hf_models import is_hf

logger = logging.getLogger(__name__)

PASS_CLIPS = 2  # few enough for the cache, enough to amortise reading the last layers' weights
GPU_PASS_CLIPS = 8


class Encoder:
    """A backbone with its preprocessing.

    Clips are processed in passes of a few, the last one padded, each on one thread. A clip's features therefore depend
    neither on the other clips nor on the number of processors, and no thread waits for another between layers. A GPU is
    fed by one thread.
    """

    def __init__(self, backbone: Backbone, *, device: str, precision: str, batch_size: int):
        self.backbone = backbone.name
        self.feature_dim = backbone.feature_dim
        self.frame_size = backbone.frame_size
        self.arithmetic = backbone.arithmetic
        self.transform = backbone.transform
        self.weights = backbone.weights
        self.weights_sha256 = backbone.weights_sha256
        self.num_frames = backbone.num_frames
        self.precision = precision
        self.batch_size = batch_size
        self._device = device
        self._pass_clips = PASS_CLIPS if device == "cpu" else GPU_PASS_CLIPS
        self._forward = backbone.forward
        num_threads = torch.get_num_threads() if device == "cpu" else 1
        self._threads = ThreadPoolExecutor(num_threads, "encoder", initializer=torch.set_num_threads, initargs=(1,))

    @property
    def on_gpu(self) -> bool:
        return self._device != "cpu"

    def features(self, clips: np.ndarray | Tensor) -> np.ndarray:
        """clips: [B, T, H, W, 3] uint8, at least one → [B, feature_dim] float32."""
        passes = torch.as_tensor(clips).split(self._pass_clips)
        return torch.cat(list(self._threads.map(self._pass, passes))).numpy()

    @torch.inference_mode()
    def _pass(self, clips: Tensor) -> Tensor:
        missing = self._pass_clips - len(clips)
        padded = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])])
        return self._forward(padded.to(self._device))[: len(clips)].cpu()


def load_encoder(backbone: str, weights: str | None, precision: str = "auto", *, batch_size: int = 8) -> Encoder:
    """Load the encoder of that name, or hf:ID_OR_FOLDER, on the first visible GPU if there is one.

    weights: kinetics400 or imagenet (None: the backbone's), a file or folder for the backbone, random:SEED, or auto
    (the trained ones if available, else random:0); for hf, where the model was found before, or None. precision: fp32,
    bf16, int8 (r3d_18 on a CPU only), or auto: bf16 on a GPU; on a CPU int8 (r3d_18) or bf16, if the CPU supports it,
    else fp32.
    """
    named_weights.check_encoder(backbone, weights, precision)
    device = "cuda" if precision != "int8" and torch.cuda.is_available() else "cpu"
    if device == "cuda":  # one algorithm per shape, and no TF32
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
        logger.info("encoding on %s", torch.cuda.get_device_name())
    if precision == "auto":
        precision = _fastest(backbone, device)
    try:
        trained = named_weights.TRAINED.get(backbone)
        loaded = _load(backbone, trained if weights in (None, "auto") else weights, precision, device)
    except VtpError as error:
        if weights != "auto" or error.code != "weights-unavailable":
            raise
        logger.warning("weights auto: %s; using random:0", str(error).split(";")[0])
        loaded = _load(backbone, "random:0", precision, device)
    return Encoder(loaded, device=device, precision=precision, batch_size=batch_size)


def _load(backbone: str, weights: str | None, precision: str, device: str) -> Backbone:
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


def _fastest(backbone: str, device: str) -> str:
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if backbone == "r3d_18" and named_weights.computes_in_int8():
        return "int8"
    return "bf16" if named_weights.computes_in_bf16() else "fp32"
