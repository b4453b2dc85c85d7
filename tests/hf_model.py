"""A small model of transformers in a folder, as the library saves it."""

from pathlib import Path

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model


def save_dinov2(folder: Path, *, seed: int = 0) -> None:
    """Images of 32x32, 32 features a frame."""
    config = Dinov2Config(image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
