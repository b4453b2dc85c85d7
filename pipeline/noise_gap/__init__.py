"""Novelty by the noise gap of a video diffusion model: models, further channels, scores, and their evaluation."""

from pipeline.noise_gap.blocks import Block, Corpus, read_clips, split_blocks
from pipeline.noise_gap.channels import MIN_FOR_SCORES, Scores, knn_distance, score, weights
from pipeline.noise_gap.corpus import CORPUS_CLASS, CorpusBackend, fit, load_corpus
from pipeline.noise_gap.detection import judge
from pipeline.noise_gap.gap import SIGMAS, Backend, clip_gap, noise_gap, noise_gap_at_once
from pipeline.noise_gap.images import energies, thumbnails, to_images
from pipeline.noise_gap.model_choice import choose_scorer, model_folder
from pipeline.noise_gap.scorer import KEPT_BYTES, Measures, Pixels, Scorer, measured, read_pixels
from pipeline.noise_gap.svd import HUB_ID, SvdBackend, folder_sha256, load_svd, pipeline_class

__all__ = [
    "CORPUS_CLASS",
    "HUB_ID",
    "KEPT_BYTES",
    "MIN_FOR_SCORES",
    "SIGMAS",
    "Backend",
    "Block",
    "Corpus",
    "CorpusBackend",
    "Measures",
    "Pixels",
    "Scorer",
    "Scores",
    "SvdBackend",
    "choose_scorer",
    "clip_gap",
    "energies",
    "fit",
    "folder_sha256",
    "judge",
    "knn_distance",
    "load_corpus",
    "load_svd",
    "measured",
    "model_folder",
    "noise_gap",
    "noise_gap_at_once",
    "pipeline_class",
    "read_clips",
    "read_pixels",
    "score",
    "split_blocks",
    "thumbnails",
    "to_images",
    "weights",
]
