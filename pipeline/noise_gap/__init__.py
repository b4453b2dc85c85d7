"""Novelty by the noise gap of a video diffusion model: models, further channels, scores, and their evaluation."""

from pipeline.noise_gap.blocks import Block, Corpus, read_clips, split_blocks
from pipeline.noise_gap.channels import MIN_FOR_SCORES, Scores, knn_distance, score, weights
from pipeline.noise_gap.corpus import CORPUS_CLASS, CorpusBackend, fit, load_corpus
from pipeline.noise_gap.detection import judge
from pipeline.noise_gap.gap import SIGMAS, Backend, clip_gap, noise_gap
from pipeline.noise_gap.images import energies, thumbnails, to_images
from pipeline.noise_gap.svd import HUB_ID, SvdBackend, folder_sha256, load_svd, pipeline_class

__all__ = [
    "CORPUS_CLASS",
    "HUB_ID",
    "MIN_FOR_SCORES",
    "SIGMAS",
    "Backend",
    "Block",
    "Corpus",
    "CorpusBackend",
    "Scores",
    "SvdBackend",
    "clip_gap",
    "energies",
    "fit",
    "folder_sha256",
    "judge",
    "knn_distance",
    "load_corpus",
    "load_svd",
    "noise_gap",
    "pipeline_class",
    "read_clips",
    "score",
    "split_blocks",
    "thumbnails",
    "to_images",
    "weights",
]
