"""Clips to features (R3D-18, TimeSformer-B) and features to 128-D embeddings (projectors).

Layout is converted here and nowhere else: clips come as [B, T, H, W, 3] uint8, each backbone makes of them what it sees.
"""

from pipeline.encoders.encoder import Encoder, load_encoder
from pipeline.encoders.heads import EMBEDDING_DIM, AuxiliaryHeads, MLPEncoder, Normalizer
from pipeline.encoders.projectors import Projector, fit_pca, random_projector
from pipeline.encoders.weights import seed_of, state_sha256

__all__ = [
    "EMBEDDING_DIM",
    "AuxiliaryHeads",
    "Encoder",
    "MLPEncoder",
    "Normalizer",
    "Projector",
    "fit_pca",
    "load_encoder",
    "random_projector",
    "seed_of",
    "state_sha256",
]
