"""Clips to features (R3D-18, TimeSformer-B, EfficientNet-Lite0, transformers) and features to 128-D embeddings.

Layout is converted here and nowhere else: clips are [B, T, H, W, 3] uint8 until a backbone converts them.
"""

from pipeline.encoders.centring import RunningCentre, centre_videos
from pipeline.encoders.clip_encoder import ClipEncoder, centre_crop, resized
from pipeline.encoders.encoder import Encoder, load_encoder
from pipeline.encoders.heads import EMBEDDING_DIM, AuxiliaryHeads, MLPEncoder, Normalizer, moments
from pipeline.encoders.projectors import (
    Projector,
    fit_learned,
    fit_pca,
    fit_projector,
    no_projector,
    one_thread,
    random_projector,
)
from pipeline.encoders.weights import state_sha256
from pipeline.named_weights import FITTED, computes_in_bf16

__all__ = [
    "EMBEDDING_DIM",
    "FITTED",
    "AuxiliaryHeads",
    "ClipEncoder",
    "Encoder",
    "MLPEncoder",
    "Normalizer",
    "Projector",
    "RunningCentre",
    "centre_crop",
    "centre_videos",
    "computes_in_bf16",
    "fit_learned",
    "fit_pca",
    "fit_projector",
    "load_encoder",
    "moments",
    "no_projector",
    "one_thread",
    "random_projector",
    "resized",
    "state_sha256",
]
