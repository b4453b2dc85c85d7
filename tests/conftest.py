import os
import random
import sys
from collections import Counter

# One thread for each process: beside others, threads that wait for each other's are many times slower than one alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded, which read it

import numpy as np
import pytest
from hypothesis import settings

# Shared machines are slow now and then, and a red run must be red again when it is repeated.
settings.register_profile("vtp", deadline=None, derandomize=True, database=None)
settings.load_profile("vtp")


def pytest_configure(config):
    """The tests of a GPU run by themselves; all others hold what the processor computes, and see no GPU."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU; with one, run `pytest -m gpu`")


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that no process is left with a long one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def random_state_is_restored():
    """No test leaves a seed behind for the next one; torch is asked only where something has loaded it."""
    python, legacy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python)
    np.random.set_state(legacy)
    if torch:
        torch.set_rng_state(state)


@pytest.fixture
def one_thread():
    """Sums of several threads differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kept(monkeypatch):
    """The newest checkpoint of a finished run stays whole, so that all of two runs can be compared."""
    from pipeline import train

    monkeypatch.setattr(train, "slim", lambda *_: None)


@pytest.fixture
def encoder(monkeypatch):
    """What every extraction encodes with in place of a network."""
    from pixel_encoder import PixelEncoder

    from pipeline import encoders

    encoder = PixelEncoder()
    monkeypatch.setattr(encoders, "load_encoder", lambda *args, **kwargs: encoder)
    return encoder


@pytest.fixture
def vtp(monkeypatch, capfd, tmp_path):
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    from pipeline import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.logging, "basicConfig", lambda **settings: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vtp", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def svd_folder(tmp_path_factory):
    """A tiny random pipeline of SVD's classes, saved in its format."""
    import torch  # here, for most tests need none of these
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    pipeline = StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=37,
                projection_dim=24,
                num_hidden_layers=1,
                num_attention_heads=4,
                image_size=224,
                patch_size=56,
            )
        ),
        unet=UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=24,
            num_attention_heads=(2, 4),
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            num_frames=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            interpolation_type="linear",
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(size=224, crop_size=224),
    )
    folder = tmp_path_factory.mktemp("models") / "svd"
    pipeline.save_pretrained(folder)
    return folder
