import multiprocessing
import signal

import av
import numpy as np
import pandas as pd
import pytest

from pipeline import synthetic
from pipeline.config import SimulateConfig
from pipeline.dataset import manifest
from pipeline.errors import VtpError
from pipeline.synthetic import dynamics, simulate

SMALL = {"videos": 3, "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    cfg = SimulateConfig(out=tmp_path_factory.mktemp("demos"), **SMALL)
    calls = []
    path = simulate.run(cfg, progress=lambda done, total: calls.append((done, total)))
    return cfg, path, calls


def explored(seed, *, steps=60, task="dishwashing", name="mixed"):
    return simulate.demonstrate(dynamics.scenario(task, name), steps, np.random.default_rng(seed))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".yaml"}


def test_labels_join_the_manifest_and_the_frames(demos):
    cfg, path, calls = demos
    rows = pd.read_csv(path, dtype=str)
    assert path == cfg.out / "manifest.csv" and (cfg.out / "config.yaml").is_file()
    assert list(rows) == ["video_id", "path", "split", "task", "labels"]
    assert rows["video_id"].tolist() == ["0000", "0001", "0002"] and calls == [(1, 3), (2, 3), (3, 3)]
    for row in rows.itertuples():
        labels = pd.read_csv(cfg.out / row.labels)
        assert list(labels) == ["step", "context", "speed", "care", "attempts", "errors"]
        assert labels["step"].tolist() == [0, 1]
        with av.open(str(cfg.out / row.path)) as container:
            stream = container.streams.video[0]
            assert stream.frames == 2 * synthetic.CLIP_LEN and stream.average_rate == synthetic.FPS
            assert (stream.height, stream.width) == synthetic.FRAME_SHAPE


def test_extraction_reads_what_was_written(demos):
    """The manifest and the labels pass the checks of the stage that takes them, and each video shows its labels."""
    cfg, path, _ = demos
    entries = manifest.find_videos(str(path))
    assert [(entry.video_id, entry.split) for entry in entries] == [
        ("0000", "train"),
        ("0001", "train"),
        ("0002", "val"),
    ]
    for entry, stream in zip(entries, np.random.SeedSequence(cfg.seed).spawn(cfg.videos), strict=True):
        rng = np.random.default_rng(stream)
        explored = simulate.demonstrate(dynamics.scenario(cfg.task, cfg.scenario), cfg.steps, rng)
        pd.testing.assert_frame_equal(manifest.read_labels(entry.labels), explored, check_dtype=False)
        shown = np.stack(list(simulate.film(cfg.task, explored, rng)))
        with av.open(str(entry.path)) as container:
            seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        error = np.square(seen.astype(float) - shown).mean(axis=(1, 2, 3))
        assert (10 * np.log10(255**2 / error) > 28).all(), f"{entry.video_id} shows something else than its labels"


def test_the_same_seed_gives_the_same_bytes(demos, tmp_path):
    cfg, _, _ = demos
    simulate.run(cfg.model_copy(update={"out": tmp_path}))
    assert files(tmp_path) == files(cfg.out)


def test_a_video_does_not_depend_on_how_many_are_made(demos, tmp_path):
    cfg, _, _ = demos
    simulate.run(cfg.model_copy(update={"out": tmp_path, "videos": 1}))
    for name in ("videos/0000.mp4", "labels/0000.csv"):
        assert (tmp_path / name).read_bytes() == (cfg.out / name).read_bytes()


@pytest.fixture
def in_processes(monkeypatch):
    """Two processes, however little there is to do; what a test puts in `simulate` does not reach them."""
    monkeypatch.setattr(simulate, "POOL_CLIPS", 0)
    monkeypatch.setattr(simulate.processes, "num_processors", lambda: 2)
    monkeypatch.setattr(simulate, "film", None)
    yield
    assert multiprocessing.active_children() == [], "a process was left behind"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "Ctrl-C is still held back"


def test_processes_give_the_same_bytes(demos, tmp_path, in_processes):
    cfg, _, calls = demos
    told = []
    simulate.run(cfg.model_copy(update={"out": tmp_path}), progress=lambda done, total: told.append((done, total)))
    assert files(tmp_path) == files(cfg.out) and told == calls


def test_an_error_in_a_process_is_the_caller_s(tmp_path, in_processes):
    (tmp_path / "videos").write_text("in the way")
    with pytest.raises(VtpError, match="videos cannot be a folder"):
        simulate.run(SimulateConfig(out=tmp_path, videos=3, steps=1))
    assert not (tmp_path / "manifest.csv").exists()


def test_ctrl_c_ends_the_processes_and_leaves_whole_videos(tmp_path, in_processes):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate.run(SimulateConfig(out=tmp_path, videos=12, steps=3), progress=interrupt)
    made = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert len(made) < 12 and all(name.endswith(".mp4") for name in made), made
    assert not (tmp_path / "manifest.csv").exists()


def test_a_folder_made_before_is_overwritten(demos, tmp_path):
    cfg, _, _ = demos
    again = cfg.model_copy(update={"out": tmp_path, "videos": 1, "steps": 1})
    simulate.run(again.model_copy(update={"seed": 6}))
    other = files(tmp_path)
    simulate.run(again)
    assert files(tmp_path).keys() == other.keys() and files(tmp_path) != other


@pytest.mark.parametrize(
    ("videos", "fraction", "num_val"), [(1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (5, 0.0, 0), (5, 0.4, 2)]
)
def test_the_last_videos_are_val(videos, fraction, num_val, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "film", lambda *_: iter(np.zeros((16, 32, 32, 3), np.uint8)))
    path = simulate.run(SimulateConfig(out=tmp_path, videos=videos, steps=1, val_fraction=fraction))
    assert pd.read_csv(path)["split"].tolist() == ["train"] * (videos - num_val) + ["val"] * num_val


def test_a_failed_run_leaves_no_manifest(tmp_path, monkeypatch):
    def broken(*_):
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("camera unplugged")

    monkeypatch.setattr(simulate, "film", broken)
    with pytest.raises(RuntimeError, match="unplugged"):
        simulate.run(SimulateConfig(out=tmp_path, videos=1, steps=1))
    assert not (tmp_path / "manifest.csv").exists()


def test_the_demonstrator_tries_all_of_speed_and_care():
    actions = np.concatenate([explored(seed)[["speed", "care"]].to_numpy() for seed in range(30)])
    counts, _, _ = np.histogram2d(*actions.T, bins=4, range=[[0, 1], [0, 1]])
    assert counts.min() / len(actions) > 0.6 / 16 and counts.max() / len(actions) < 1.6 / 16
    assert actions.min() < 0.02 and actions.max() > 0.98


def test_the_demonstrator_keeps_at_an_action_for_a_while():
    changed = np.concatenate([explored(seed)["speed"].diff().iloc[1:].ne(0) for seed in range(30)])
    assert changed.mean() == pytest.approx(0.5, abs=0.05)


def test_outcomes_are_those_of_the_simulator():
    labels = pd.concat([explored(seed) for seed in range(60)])
    scenario = dynamics.scenario("dishwashing", "mixed")
    context = labels["context"].map(scenario.context_names.index)
    rate, p_err = dynamics.dynamics(scenario, context, labels["speed"], labels["care"])
    assert (labels["attempts"] >= 1).all() and (labels["errors"] <= labels["attempts"]).all()
    assert labels["attempts"].mean() == pytest.approx(dynamics.expected_attempts(rate).mean(), rel=0.05)
    assert labels["errors"].sum() == pytest.approx((p_err * labels["attempts"]).sum(), rel=0.15)
    assert context.value_counts(normalize=True).between(0.15, 0.35).all()


@pytest.mark.parametrize(("task", "name", "known"), [("dishwashing", "seed", "plate"), ("bricklaying", "seed", "face")])
def test_the_seed_scenario_has_one_context(task, name, known):
    assert set(explored(0, task=task, name=name)["context"]) == {known}


def test_bricklaying_is_filmed_too():
    frames = simulate.film("bricklaying", explored(0, steps=2, task="bricklaying"), np.random.default_rng(0))
    assert sum(1 for _ in frames) == 2 * synthetic.CLIP_LEN
