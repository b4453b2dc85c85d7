"""The noise gap of a video diffusion model, and the models: Stable Video Diffusion, or a small one of its class."""

from pipeline.diffusion.corpus import CORPUS_CLASS, CorpusBackend, fit, load_corpus
from pipeline.diffusion.gap import SIGMAS, Backend, clip_gap, noise_gap
from pipeline.diffusion.images import energies, thumbnails, to_images
from pipeline.diffusion.svd import HUB_ID, SvdBackend, folder_sha256, load_svd, pipeline_class

__all__ = [
    "CORPUS_CLASS",
    "HUB_ID",
    "SIGMAS",
    "Backend",
    "CorpusBackend",
    "SvdBackend",
    "clip_gap",
    "energies",
    "fit",
    "folder_sha256",
    "load_corpus",
    "load_svd",
    "noise_gap",
    "pipeline_class",
    "thumbnails",
    "to_images",
]
