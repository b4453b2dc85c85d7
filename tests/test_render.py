import av
import numpy as np
import pytest
from PIL import Image
from raising import raises
from sklearn.linear_model import RidgeClassifier

from pipeline import synthetic
from pipeline.synthetic import bricks, dishes, paint, rendered_clip, tools
from pipeline.synthetic.thumbnail import write_webp
from pipeline.tasks import load_task, parse_task

RENDERERS = {"dishes": "dishwashing", "bricks": "bricklaying"}
WORKS = {"dishes": dishes.DISHES, "bricks": bricks.BRICKWORK}
NAMED = [(renderer, name) for renderer in RENDERERS for name in WORKS[renderer]]


def contexts(renderer):
    return load_task(RENDERERS[renderer]).context_names


def scene_of(renderer="dishes", seed=0):
    return synthetic.sample_scene(renderer, np.random.default_rng(seed))


def clip_of(scene, context="plate", speed=0.5, care=0.5, seed=0):
    return synthetic.render_clip(scene, context, speed, care, np.random.default_rng(seed))


def strokes(speed, care, seed=0, num_frames=60):
    rng = np.random.default_rng(seed)
    return tools.strokes(speed, care, (30.0, 20.0), num_frames, fps=synthetic.FPS, rng=rng)


@pytest.fixture(scope="module")
def gallery():
    """A clip of each context in 12 scenes, small pictures of the encoder's crop: renderer -> [12, 4, 14, 14, 3]."""

    def look(clip):
        crop = clip[:, 9:135, 33:159].mean(0)
        return crop.reshape(14, 9, 14, 9, 3).mean((1, 3))

    def looks(renderer, seed):
        scene, rng = scene_of(renderer, seed), np.random.default_rng(1000 + seed)
        return [look(synthetic.render_clip(scene, context, *rng.random(2), rng)) for context in contexts(renderer)]

    return {renderer: np.array([looks(renderer, seed) for seed in range(12)]) for renderer in RENDERERS}


def test_every_context_of_the_simulator_can_be_drawn():
    for renderer in RENDERERS:
        assert set(WORKS[renderer]) == set(contexts(renderer))


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_clip_is_sixteen_lively_frames(renderer):
    scene = scene_of(renderer)
    for context in contexts(renderer):
        clip = clip_of(scene, context)
        assert clip.shape == (synthetic.CLIP_LEN, *synthetic.FRAME_SHAPE, 3) and clip.dtype == np.uint8
        assert clip.std() > 25 and 60 < clip.mean() < 190
        assert (clip[:-1] != clip[1:]).any(axis=(1, 2, 3)).all()


def test_the_same_seed_gives_the_same_pixels():
    assert scene_of(seed=3) == scene_of(seed=3) != scene_of(seed=4)
    assert np.array_equal(clip_of(scene_of(seed=3)), clip_of(scene_of(seed=3)))
    assert not np.array_equal(clip_of(scene_of(seed=3)), clip_of(scene_of(seed=3), seed=1))


def test_unknown_names_are_answered_with_the_known_ones():
    with raises("renderer-unknown-context") as caught:
        clip_of(scene_of(), "spoon")
    assert "pan, plate, glass, mug" in str(caught.value)
    with raises("renderer-unknown") as caught:
        scene_of("gardens")
    assert "dishes or bricks" in str(caught.value)
    with raises("novel-unknown"):
        synthetic.render_clip(scene_of(), "pan", 0.5, 0.5, np.random.default_rng(0), novel="odd")


RENDERED = """
name: mine
step_s: 60
human_wage_usd: 18
actions: {care: {low: 0.2, high: 0.9}, speed: {}}
contexts: {mug: {price_usd: 1}, pan: {price_usd: 2}}
simulator: {attempts_per_minute: 2 * speed, error_probability: 0.1 * (1 - care), renderer: dishes}
"""


def test_a_users_task_can_be_drawn():
    assert synthetic.renderer_of(parse_task(RENDERED, "mine.yaml")) == "dishes"
    for renderer, name in RENDERERS.items():
        assert synthetic.renderer_of(load_task(name)) == renderer
        assert synthetic.renderer_of(load_task(name).in_scenario("seed")) == renderer


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (", renderer: dishes", "", "task-not-rendered"),
        ("dishes", "bricks", "renderer-unknown-context"),
        ("mug", "cup", "renderer-unknown-context"),
        ("speed: {}", "speed: {high: 2}", "renderer-actions"),
        ("speed: {}", "speed: {low: -1}", "renderer-actions"),
        ("speed: {}", "speed: {}, grip: {}", "renderer-actions"),
        ("{mug: {price_usd: 1}, pan: {price_usd: 2}}", "{price_usd: 1}", "renderer-unknown-context"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(old, new, code):
    text = RENDERED.replace("2 * speed", "2 * abs(speed)")
    with raises(code):
        synthetic.renderer_of(parse_task(text.replace(old, new, 1), "mine.yaml"))


def test_a_task_without_a_simulator_cannot_be_drawn():
    with raises("task-not-rendered"):
        synthetic.renderer_of(load_task("bin-picking"))
    with raises("task-not-rendered"):
        synthetic.renderer_of(load_task("dishwashing").model_copy(update={"simulator": None}))


@pytest.mark.parametrize(("speed", "tempo_hz"), [(0.0, 0.7), (0.5, 1.85), (1.0, 3.0)])
def test_speed_is_strokes_a_second(speed, tempo_hz):
    path = strokes(speed, care=1.0) / (30.0, 20.0)
    turns = np.unwrap(np.arctan2(path[:, 1], path[:, 0])) / (2 * np.pi)
    assert np.diff(turns).mean() * synthetic.FPS == pytest.approx(tempo_hz, rel=0.06)


def test_care_turns_short_straight_strokes_into_rounds_of_the_whole_area():
    for seed in range(20):
        careless, careful = strokes(0.5, 0.0, seed), strokes(0.5, 1.0, seed)
        assert np.linalg.matrix_rank(careless - careless.mean(0), tol=1e-6) == 1
        assert np.linalg.norm(np.ptp(careless, axis=0)) < 13.5
        assert np.hypot(*(careful / (30.0, 20.0)).T) == pytest.approx(1.0)


def test_tempo_is_visible_in_the_frames():
    def motion(speed):
        clips = (clip_of(scene_of(seed=seed), speed=speed, care=0.7, seed=seed) for seed in range(4))
        return np.mean([np.square(np.diff(clip.astype(np.float32), axis=0)).mean() for clip in clips])

    slow, brisk, fast = (motion(speed) for speed in (0.0, 0.5, 1.0))
    assert slow * 1.2 < brisk and brisk * 1.1 < fast


def test_care_is_visible_in_the_frames():
    def swept(care):
        clips = (clip_of(scene_of(seed=seed), speed=0.6, care=care, seed=seed) for seed in range(4))
        return np.mean([(np.ptp(clip.astype(int), axis=0).max(-1) > 50).mean() for clip in clips])

    assert swept(0.0) * 1.3 < swept(0.5) and swept(0.5) * 1.1 < swept(1.0)


def test_care_makes_suds():
    """Pixels that turn pale from careless to careful washing of the same dark pan are foam."""

    def pale(care):
        clips = (clip_of(scene_of(seed=seed), "pan", care=care, seed=seed) for seed in range(4))
        return np.array([(clip[:, 46:106, 66:126].min(-1) > 170).mean() for clip in clips])

    assert (pale(1.0) > 1.4 * pale(0.0)).all()


@pytest.mark.parametrize(("renderer", "name"), NAMED)
def test_the_work_is_in_the_encoders_crop(renderer, name):
    """R3D-18 sees the middle 112/171 of the width and 112/128 of the height: x in [33, 159), y in [9, 135)."""
    for seed in range(6):
        canvas, rng = paint.Canvas(), np.random.default_rng(seed)
        pose = rendered_clip.stand(scene_of(renderer, seed), rng)
        area = WORKS[renderer][name](canvas, pose, (-0.3, -0.5, 0.81), rng)
        seen = canvas.window(33, 9, 159, 135).alpha.sum()
        assert seen > 0.995 * canvas.alpha.sum()
        assert area.x - area.reach_x > 33 and area.x + area.reach_x < 159
        assert area.y - area.reach_y > 9 and area.y + area.reach_y < 135


@pytest.mark.parametrize("renderer", RENDERERS)
def test_changed_scenes_have_a_light_a_background_and_a_size_that_no_usual_scene_has(renderer):
    usual, changed = (
        [synthetic.sample_scene(renderer, np.random.default_rng(seed), changed=changed) for seed in range(40)]
        for changed in (False, True)
    )
    brightness = sorted(scene.light.rgb[1] for scene in usual)
    assert all(not brightness[0] <= scene.light.rgb[1] <= brightness[-1] for scene in changed)
    assert all(scene.work_size == 1 for scene in usual)
    assert all(abs(scene.work_size - 1) > 0.09 for scene in changed)
    for one, other in zip(usual, changed, strict=True):
        assert one.place != other.place and one.worker == other.worker and one.camera == other.camera


@pytest.mark.parametrize("renderer", RENDERERS)
def test_no_pixel_is_constant_over_scenes(renderer):
    frames = np.array(
        [clip_of(scene_of(renderer, seed), contexts(renderer)[seed % 4], seed=seed)[0] for seed in range(16)]
    )
    assert frames.std(axis=0).min() > 4


@pytest.mark.parametrize("renderer", RENDERERS)
def test_contexts_are_distinguished_in_unseen_scenes(renderer, gallery):
    """The simplest classifier, the nearest mean picture of eight scenes, is right in four others."""
    looks = gallery[renderer].reshape(12, 4, -1)
    means = looks[:8].mean(0)
    distance = np.square(looks[8:, :, None] - means).sum(-1)  # [4 scenes, 4 contexts, 4 means]
    assert (distance.argmin(-1) == np.arange(4)).mean() > 0.8


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_linear_probe_names_the_context_in_unseen_scenes(renderer, gallery):
    looks, names = gallery[renderer].reshape(12, 4, -1), np.tile(np.arange(4), (12, 1))
    mean, scale = looks[:8].mean((0, 1)), looks[:8].std((0, 1))
    looks = (looks - mean) / scale
    probe = RidgeClassifier(alpha=100).fit(looks[:8].reshape(32, -1), names[:8].ravel())
    accuracy = probe.score(looks[8:].reshape(16, -1), names[8:].ravel())
    assert accuracy >= 0.9, f"{accuracy:.0%} of clips in unseen scenes were named; chance is 25%"


def test_cover_is_half_on_the_edge_and_one_inside():
    assert paint.cover(np.array([-1.0, 0.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


def test_painting_half_over_white_gives_the_mean():
    canvas = paint.Canvas(2, 1)
    canvas.paint((1, 1, 1), np.float32(1))
    canvas.paint((0, 0, 1), np.float32(0.5))
    assert canvas.rgb[0, 0].tolist() == [0.5, 0.5, 1.0] and canvas.alpha.min() == 1
    assert np.asarray(canvas.image())[0, 0].tolist() == [128, 128, 255, 255]


def test_painting_on_a_window_paints_the_canvas():
    canvas = paint.Canvas(8, 8)
    canvas.window(2, 4, 3, 6).paint((1, 0, 0), np.float32(1))
    rows, columns = np.nonzero(canvas.alpha)
    assert (columns.min() / 2, (columns.max() + 1) / 2, rows.min() / 2, (rows.max() + 1) / 2) == (2, 3, 4, 6)


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        keys = [i for i, frame in enumerate(frames) if frame.key_frame]
        return stream, np.array([frame.to_ndarray(format="rgb24") for frame in frames]), keys


def test_mp4_decodes_to_the_frames_that_went_in(tmp_path):
    scene = scene_of()
    frames = np.concatenate([clip_of(scene, context, 0.8, 0.5) for context in ("pan", "glass", "mug")])
    synthetic.write_mp4(tmp_path / "a.mp4", frames, fps=15)
    stream, back, keys = decoded(tmp_path / "a.mp4")
    assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    assert stream.average_rate == 15 and stream.frames == 48 and back.shape == frames.shape
    assert keys == [0, 16, 32]
    psnr = 10 * np.log10(255**2 / np.square(back.astype(float) - frames).mean())
    assert psnr > 30


def test_mp4_bytes_are_the_same_each_time(tmp_path):
    """With heap contents that change between encodes, because an encoder may read uninitialised memory."""
    frames = np.concatenate([clip_of(scene_of(), context) for context in contexts("dishes")])
    encodes, heap, rng = set(), [], np.random.default_rng(0)
    for _ in range(15):
        synthetic.write_mp4(tmp_path / "a.mp4", frames)
        encodes.add((tmp_path / "a.mp4").read_bytes())
        heap = [*heap[-10:], rng.integers(256, size=rng.integers(1_000, 400_000), dtype=np.uint8)]
    assert len(encodes) == 1, f"15 encodes of the same frames gave {len(encodes)} different files"


def test_mp4_is_complete_or_absent(tmp_path):
    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        synthetic.write_mp4(tmp_path / "a.mp4", broken())
    with raises("video-no-frames"):
        synthetic.write_mp4(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_webp_keeps_frames_and_tempo(tmp_path):
    clip = clip_of(scene_of())
    write_webp(tmp_path / "a.webp", clip, fps=synthetic.FPS)
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == synthetic.CLIP_LEN and image.size == synthetic.FRAME_SHAPE[::-1]
        assert image.info["loop"] == 0  # forever
        image.seek(1)
        image.load()
        assert image.info["duration"] == 67
