import copy
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image
from raising import raises

from pipeline import noise_gap
from pipeline.errors import CorruptError
from pipeline.noise_gap import corpus, scorer, svd
from pipeline.noise_gap.corpus import fit_codec
from pipeline.noise_gap.detection import rank_correlation
from pipeline.noise_gap.gap import noise_gap_at_once, preconditioning, velocity
from pipeline.noise_gap.images import to_images, to_pixels

pytestmark = pytest.mark.slow

HEIGHT, WIDTH, FRAMES = 32, 64, 4
META = torch.device("meta")  # computes shapes only: it refuses tensors of another device, and to be waited for


@pytest.fixture(scope="module")
def clips():
    """Four clips [4, 16, 3, 64, 64] uint8 of a square that moves over stripes, and embeddings [4, 128]."""
    rng = np.random.default_rng(0)
    images = np.zeros((4, 16, 3, 64, 64), np.uint8)
    images[:, :, :, :, ::4] = 90
    for clip in images:
        x, y, dx, dy = rng.integers(5, 40, 2).tolist() + rng.integers(-2, 3, 2).tolist()
        for t, frame in enumerate(clip):
            frame[:, y + dy * t // 4 :, x + dx * t // 4 :][:, :16, :16] = 200
    return torch.from_numpy(images), torch.from_numpy(rng.standard_normal((4, 128)).astype(np.float32))


def scaled(images):
    return images.float() / 127.5 - 1


def test_an_oracle_has_no_gap_and_a_wrong_one_the_square_of_its_error():
    latents = torch.randn(3, FRAMES, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()

    def oracle(delta):
        def denoiser(noisy, timestep):
            sigma = math.exp(4 * timestep)
            noise = (noisy * math.sqrt(1 + sigma**2) - latents) / sigma
            return velocity(latents, noise, sigma) + delta

        return denoiser

    assert noise_gap.noise_gap(oracle(0.0), latents).abs().max() < 1e-12
    assert torch.allclose(noise_gap.noise_gap(oracle(0.3), latents, draws=2), torch.tensor(0.09), atol=1e-6)


def test_the_first_frame_is_left_out():
    latents = torch.randn(2, FRAMES, 4, 4, 4)

    def denoiser(noisy, timestep):
        prediction = torch.zeros_like(noisy)
        prediction[:, 0] = 1e6
        return prediction

    assert (noise_gap.noise_gap(denoiser, latents) < 1e3).all()


def denoised(noisy, prediction, sigma):
    """The clean latents that the network's output F predicts, by EDM's c_skip and c_out."""
    return noisy / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * prediction


@pytest.mark.parametrize("sigma", noise_gap.SIGMAS)
def test_the_clean_latents_are_the_schedulers(svd_folder, sigma):
    scheduler = EulerDiscreteScheduler.from_pretrained(svd_folder, subfolder="scheduler")
    scheduler.set_timesteps(10)
    scheduler.sigmas[0] = sigma
    noisy, prediction = torch.randn(2, 1, FRAMES, 4, 4, 8)
    step = scheduler.step(prediction, scheduler.timesteps[0], noisy)
    assert torch.allclose(denoised(noisy, prediction, sigma), step.pred_original_sample, atol=1e-5)


def test_the_error_in_v_is_the_error_in_the_clean_latents_scaled():
    sigma, generator = 0.7, torch.Generator().manual_seed(2)
    latents, noise, prediction = torch.randn(3, 1000, generator=generator)
    error = (prediction - velocity(latents, noise, sigma)).square().mean()
    clean = denoised(latents + sigma * noise, prediction, sigma)
    assert error == pytest.approx(((clean - latents).square().mean() * (1 + sigma**2) / sigma**2).item(), rel=1e-4)


def test_the_unet_is_given_what_the_real_pipeline_gives_it(svd_folder):
    pipeline = StableVideoDiffusionPipeline.from_pretrained(svd_folder)
    pipeline.set_progress_bar_config(disable=True)
    seen = {}

    def keep(module, args, kwargs):
        seen.setdefault("inputs", (args[0], args[1], kwargs))

    pipeline.unet.register_forward_pre_hook(keep, with_kwargs=True)
    frames = np.random.default_rng(3).integers(0, 256, (1, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    seed = 11
    pipeline(
        Image.fromarray(frames[0, 0]), height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=2, fps=7,
        motion_bucket_id=127, noise_aug_strength=0.02, max_guidance_scale=1.0, output_type="latent",
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    sample, timestep, kwargs = seen["inputs"]
    sigma = math.exp(4 * timestep.item())

    backend = noise_gap.load_svd(str(svd_folder))
    conditioned = backend.condition(noise_gap.to_images(frames, (HEIGHT, WIDTH)), torch.zeros(1, 128), seed=seed)
    given = {}
    backend._pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(sample=args[0], timestep=args[1], **kwargs), with_kwargs=True
    )
    backend.denoise(sample[:, :, :4], preconditioning(sigma).timestep, conditioned)
    assert torch.allclose(given["sample"], sample, atol=1e-5)
    assert given["timestep"].item() == pytest.approx(timestep.item(), abs=1e-5)
    for name in ("encoder_hidden_states", "added_time_ids"):
        assert torch.allclose(given[name], kwargs[name].to(given[name]), atol=1e-5), name


def test_svd_scores_do_not_depend_on_batch_and_order(svd_folder):
    backend = noise_gap.load_svd(str(svd_folder))
    frames = np.random.default_rng(4).integers(0, 256, (3, 5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    images, embeddings = noise_gap.to_images(frames, (HEIGHT, WIDTH)), torch.zeros(3, 128)
    together = noise_gap.clip_gap(backend, images, embeddings)
    alone = torch.cat([noise_gap.clip_gap(backend, images[i : i + 1], embeddings[:1]) for i in (2, 0, 1)])
    assert together.shape == (3, len(noise_gap.SIGMAS))
    assert torch.allclose(together[[2, 0, 1]], alone, atol=1e-5)


@pytest.fixture(scope="module")
def two_clips(svd_folder):
    backend = noise_gap.load_svd(str(svd_folder))
    frames = np.random.default_rng(5).integers(0, 256, (2, FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return backend, backend.condition(to_images(frames, (HEIGHT, WIDTH)), torch.zeros(2, 128))


@pytest.mark.parametrize("passes", [1, 3, 8, 40])
def test_all_passes_at_once_give_the_gap_of_one_after_the_other(two_clips, passes):
    backend, conditioned = two_clips
    sizes = []
    hook = backend._pipeline.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    pixels = (passes + 1) * conditioned.latents[0, :, 0].numel() - 1  # one too few for another
    found = noise_gap_at_once(backend, conditioned, draws=2, seed=3, pixels_at_once=pixels)
    hook.remove()
    assert sum(sizes) == 2 * 20 and max(sizes) == passes and len(set(sizes[:-1])) <= 1
    expected = noise_gap.noise_gap(
        lambda noisy, timestep: backend.denoise(noisy, timestep, conditioned), conditioned.latents, draws=2, seed=3
    )
    assert torch.allclose(found, expected, rtol=1e-4)


def test_attention_to_one_token_is_diffusers_own_without_queries(two_clips):
    backend, conditioned = two_clips
    noisy = torch.randn(conditioned.latents.shape, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = backend.denoise(noisy, 0.3, conditioned)
        short = copy.deepcopy(backend)
        unet = short._pipeline.unet
        svd.attend_to_one_token(unet)
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight.fill_(math.nan)
        found = short.denoise(noisy, 0.3, conditioned)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model-wrong"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "model-wrong"),
        (lambda f: shutil.rmtree(f / "unet"), "model-incomplete"),
        (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "model-damaged"),
        (lambda f: next((f / "vae").glob("*.safetensors")).write_bytes(b"\0" * 64), "model-damaged"),
    ],
    ids=["no index", "another class", "no unet", "no unet weights", "damaged vae"],
)
def test_an_incomplete_model_folder_is_refused(svd_folder, tmp_path, break_it, code):
    folder = tmp_path / "copy"
    shutil.copytree(svd_folder, folder)
    break_it(folder)
    with raises(code) as caught:
        noise_gap.load_svd(str(folder))
    assert "--model corpus" in str(caught.value)


def test_the_error_of_unavailable_weights_has_remedies(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with raises("model-unavailable") as caught:
        noise_gap.load_svd("nobody/no-such-model")
    assert "--model corpus" in str(caught.value) and "--model DIR" in str(caught.value)


def test_the_codec_keeps_what_varies_most_and_has_unit_variance(clips):
    images = scaled(clips[0]).flatten(0, 1)
    latents = fit_codec(images).encode(images)
    assert latents.shape == (64, 4, 8, 8)
    assert torch.allclose(latents.transpose(0, 1).flatten(1).var(1), torch.ones(4), atol=0.01)
    assert latents.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-4


def test_a_small_model_learns_its_corpus_and_survives_saving(clips, tmp_path):
    images, embeddings = clips
    settings = {"num_frames": 8, "seed": 0}
    untrained = noise_gap.fit(images, embeddings, updates=1, **settings)
    trained = noise_gap.fit(images, embeddings, updates=40, **settings)
    before, after = (noise_gap.clip_gap(model, scaled(images), embeddings) for model in (untrained, trained))
    assert (after.log().mean() < before.log().mean() - 0.2).item()
    again = noise_gap.fit(images, embeddings, updates=40, **settings)
    assert torch.allclose(noise_gap.clip_gap(again, scaled(images), embeddings), after, rtol=1e-4)

    trained.save(tmp_path / "model")
    loaded = noise_gap.load_corpus(tmp_path / "model")
    assert torch.equal(noise_gap.clip_gap(loaded, scaled(images), embeddings), after)
    assert noise_gap.pipeline_class(tmp_path / "model") == noise_gap.CORPUS_CLASS
    next((tmp_path / "model/unet").glob("*.safetensors")).unlink()
    with raises("model-damaged", CorruptError):
        noise_gap.load_corpus(tmp_path / "model")


def on_meta():
    codec = corpus.PatchCodec(torch.zeros(192), torch.zeros(4, 192), torch.ones(4))
    return corpus.CorpusBackend(codec, corpus.small_unet(8, 8, 128), 1.0, device=META)


def test_an_update_waits_for_no_gpu_and_takes_nothing_from_the_processor():
    network = on_meta()
    network.unet.train()
    optimizer = torch.optim.AdamW(network.unet.parameters())
    drawn = corpus.draw(torch.arange(6), 9, (3, 8, 4, 8, 8), torch.Generator().manual_seed(0))
    latents, embeddings = torch.empty(6, 16, 4, 8, 8, device=META), torch.empty(6, 128, device=META)
    loss = corpus.learn(network, optimizer, latents, embeddings, drawn.to(META))
    assert loss.device == META and loss.shape == ()


def test_an_update_takes_windows_from_its_random_starts():
    latents = torch.arange(6 * 16.0).view(6, 16, 1, 1, 1).expand(-1, -1, 4, 8, 8)
    drawn = corpus.draw(torch.arange(6), 9, (3, 8, 4, 8, 8), torch.Generator().manual_seed(0))
    seen = {}

    class Network:
        embedding_scale = 2.0
        unet = torch.nn.Linear(1, 1)

        def denoise(self, noisy, timestep, conditioned):
            seen.update(timestep=timestep, conditioned=conditioned)
            return noisy * self.unet.weight

    network = Network()
    corpus.learn(network, torch.optim.SGD(network.unet.parameters()), latents, torch.ones(6, 128), drawn)
    first = 16.0 * drawn.rows + drawn.starts
    windows = seen["conditioned"].latents
    assert torch.equal(windows[:, :, 0, 0, 0], first[:, None] + torch.arange(8.0))
    assert torch.allclose(seen["timestep"], 0.25 * drawn.sigma.log()) and (seen["conditioned"].context == 0.5).all()


@pytest.mark.parametrize("model", ["corpus", "svd"])
def test_scores_wait_for_no_gpu(svd_folder, model):
    backends = (on_meta(), on_meta()) if model == "corpus" else (noise_gap.load_svd(str(svd_folder), device=META),)
    size = (64, 64) if model == "corpus" else (HEIGHT, WIDTH)
    one = noise_gap.Scorer(model, "", "", size, backends, META, "", 3)
    pixels = to_pixels(to_images(np.zeros((3, 16, 70, 90, 3), np.uint8), size, META))
    found = scorer.measure(
        one, scorer.scaled(pixels), np.zeros((3, 128), np.float32), np.array([0, 1, 0]), draws=1, seed=0
    )
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "gap": (3, 5), "motion_energy": (3,), "texture_energy": (3,), "thumbnails": (3, 16, 8, 8, 3),
    }  # fmt: skip
    assert {tensor.device for tensor in found.values()} == {META}


def test_pixels_keep_images():
    images = torch.linspace(-1, 1, 256)
    assert torch.allclose(scorer.scaled(to_pixels(images)), images, atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_learns_and_ranks_like_the_processor_and_repeats_its_bits(clips):
    images, embeddings = clips
    images = torch.cat([images, images.flip(1), images.flip(-1), images // 2, 255 - images])
    embeddings = embeddings.repeat(5, 1)
    settings = {"num_frames": 8, "updates": 60, "seed": 0}
    models = [noise_gap.fit(images.to(device), embeddings, **settings) for device in ("cpu", "cuda", "cuda")]
    gaps = []
    for model, device in zip(models, ("cpu", "cuda", "cuda"), strict=True):
        gap = noise_gap.clip_gap(model, scaled(images).to(device), embeddings.to(device))
        gaps.append(gap.log().mean(1).cpu())
    assert rank_correlation(gaps[0].numpy(), gaps[1].numpy()) > 0.9
    assert torch.equal(gaps[1], gaps[2])
    for one, other in zip(models[1].unet.parameters(), models[2].unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_unet_that_cannot_be_compiled_is_used_as_it_is_and_says_so(svd_folder, monkeypatch, caplog):
    backend = noise_gap.load_svd(str(svd_folder))

    def fail(*args, **options):
        raise RuntimeError("\nno compiler found\nat length")

    with monkeypatch.context() as patch:
        patch.setattr(svd, "noise_gap_at_once", fail)
        assert not backend.compile((HEIGHT, WIDTH))
    assert "the UNet is not compiled, and slower: no compiler found" in caplog.messages
    assert backend._pipeline.unet._compiled_call_impl is None


@pytest.mark.gpu
def test_a_compiled_unet_gives_the_same_gap(svd_folder):
    images = to_images(np.zeros((1, FRAMES, HEIGHT, WIDTH, 3), np.uint8), (HEIGHT, WIDTH), torch.device("cuda"))
    backend = noise_gap.load_svd(str(svd_folder), device="cuda")
    plain = noise_gap.clip_gap(backend, images, torch.zeros(1, 128, device="cuda"))
    assert backend.compile((HEIGHT, WIDTH))
    assert torch.allclose(noise_gap.clip_gap(backend, images, torch.zeros(1, 128, device="cuda")), plain, rtol=0.02)


@pytest.mark.gpu
def test_svd_on_a_gpu_is_near_the_processors(svd_folder):
    frames = np.random.default_rng(4).integers(0, 256, (3, 5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        images = to_images(frames, (HEIGHT, WIDTH), torch.device(device))
        backend = noise_gap.load_svd(str(svd_folder), device=device)
        found.append(noise_gap.clip_gap(backend, images, torch.zeros(3, 128, device=device)).cpu())
    assert torch.allclose(found[0], found[1], rtol=0.02)
    assert torch.equal(found[1], found[2])


def test_motion_and_texture_energies():
    still = torch.zeros(1, 4, 3, 16, 16)
    blink = still.clone()
    blink[:, ::2] = 0.5
    stripes = still.clone()
    stripes[..., ::2] = 0.5
    motion, texture = noise_gap.energies(torch.cat([still, blink, stripes]))
    assert motion[1] == pytest.approx(math.log(0.25 + 1e-8)) and motion[2] == motion[0] < motion[1]
    assert texture[2] == pytest.approx(math.log(0.25 + 1e-8)) and texture[1] == texture[0] < texture[2]


def test_loading_a_model_is_silent(svd_folder, tmp_path, capfd, clips):
    noise_gap.load_svd(str(svd_folder))
    backend = noise_gap.fit(*clips, num_frames=4, updates=1, seed=0)
    backend.save(tmp_path / "corpus")
    noise_gap.load_corpus(tmp_path / "corpus")
    assert capfd.readouterr() == ("", "")
