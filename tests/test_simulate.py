import multiprocessing
import signal

import av
import numpy as np
import pandas as pd
import pytest
from raising import raises

from pipeline import dataset, simulate, synthetic
from pipeline.config import SimulateConfig
from pipeline.dataset import manifest
from pipeline.outcomes import logging_policy, simulate_logs
from pipeline.synthetic.dynamics import Dynamics
from pipeline.tasks import load_task, parse_task

SMALL = {"videos": 3, "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    cfg = SimulateConfig(out=tmp_path_factory.mktemp("demos"), **SMALL)
    calls = []
    path = simulate.run(cfg, progress=lambda done, total: calls.append((done, total)))
    return cfg, path, calls


def explored(seed, *, steps=60, task="dishwashing", name="mixed"):
    return simulate.demonstrate(load_task(task).in_scenario(name), steps, np.random.default_rng(seed))


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
        assert list(labels) == ["step", "context", "speed", "care", "attempts", "errors", "propensity"]
        assert labels["step"].tolist() == [0, 1]
        with av.open(str(cfg.out / row.path)) as container:
            stream = container.streams.video[0]
            assert stream.frames == 2 * synthetic.CLIP_LEN and stream.average_rate == synthetic.FPS
            assert (stream.height, stream.width) == synthetic.FRAME_SHAPE


def test_extraction_reads_what_was_written(demos):
    """The manifest and labels pass the checks of extraction, and each video shows its labels."""
    cfg, path, _ = demos
    entries = manifest.find_videos(str(path))
    assert [(entry.video_id, entry.split) for entry in entries] == [
        ("0000", "train"),
        ("0001", "train"),
        ("0002", "val"),
    ]
    for entry, stream in zip(entries, np.random.SeedSequence(cfg.seed).spawn(cfg.videos), strict=True):
        rng = np.random.default_rng(stream)
        task = load_task(entry.task)
        explored = simulate.demonstrate(task.in_scenario("mixed"), cfg.steps, rng)
        logs = dataset.read_labels(entry.labels, task)
        assert logs.context.tolist() == explored["context"].tolist()
        np.testing.assert_array_equal(logs.actions, explored[["speed", "care"]])
        np.testing.assert_array_equal(logs.attempts, explored["attempts"])
        np.testing.assert_array_equal(logs.errors, explored["errors"])
        np.testing.assert_array_equal(logs.propensity, [1.0] * cfg.steps)
        shown = np.stack(list(simulate.film("dishes", explored, rng)))
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
    """Use two processes even for little work; monkeypatches of `simulate` do not reach them."""
    monkeypatch.setattr(simulate, "POOL_CLIPS", 0)
    monkeypatch.setattr(simulate.processes, "num_processors", lambda: 2)
    monkeypatch.setattr(simulate, "film", None)
    yield
    assert multiprocessing.active_children() == [], "a process was left behind"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "Ctrl-C is still held back"


@pytest.mark.slow
def test_processes_give_the_same_bytes(demos, tmp_path, in_processes):
    cfg, _, calls = demos
    told = []
    simulate.run(cfg.model_copy(update={"out": tmp_path}), progress=lambda done, total: told.append((done, total)))
    assert files(tmp_path) == files(cfg.out) and told == calls


@pytest.mark.slow
def test_an_error_in_a_process_is_the_caller_s(tmp_path, in_processes):
    (tmp_path / "videos").write_text("in the way")
    with raises("output-is-foreign"):
        simulate.run(SimulateConfig(out=tmp_path, videos=3, steps=1))
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.slow
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
    task = load_task("dishwashing").in_scenario("mixed")
    simulator = Dynamics(task)
    context = labels["context"].map(task.context_names.index)
    rate, p_err = simulator(context.to_numpy(), labels[["speed", "care"]].to_numpy())
    assert (labels["attempts"] >= 1).all() and (labels["errors"] <= labels["attempts"]).all()
    assert labels["attempts"].mean() == pytest.approx(simulator.expected_attempts(rate).mean(), rel=0.05)
    assert labels["errors"].sum() == pytest.approx((p_err * labels["attempts"]).sum(), rel=0.15)
    assert context.value_counts(normalize=True).between(0.15, 0.35).all()


@pytest.mark.parametrize("name", ["plates", "seed"])
def test_the_first_scenario_has_one_context(name):
    assert set(explored(0, name=name)["context"]) == {"plate"}
    assert set(explored(0, task="bricklaying", name="seed")["context"]) == {"face"}


def test_bricklaying_is_filmed_too():
    frames = simulate.film("bricks", explored(0, steps=2, task="bricklaying"), np.random.default_rng(0))
    assert sum(1 for _ in frames) == 2 * synthetic.CLIP_LEN


# Loggers


@pytest.mark.parametrize("name", ["uniform", "human", "expert"])
def test_labels_have_the_propensity_of_what_they_log(name, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "film", lambda *_: iter(np.zeros((16, 32, 32, 3), np.uint8)))
    path = simulate.run(SimulateConfig(out=tmp_path / "demos", logger=name, videos=2, steps=19, novel=0.3))
    assert f"logger: {name}\n" in (tmp_path / "demos/config.yaml").read_text()
    task = load_task("dishwashing")
    policy = logging_policy(name, task.in_scenario("mixed"))
    for entry in manifest.find_videos(str(path)):
        logs = dataset.read_labels(entry.labels, task)
        expected = policy.propensity(logs.context_index(task), logs.actions)
        expected[np.isin(logs.novel_kind, ["fast", "reversed"])] = np.nan  # whose actions nobody drew
        np.testing.assert_array_equal(logs.propensity, expected)


@pytest.mark.parametrize("name", ["human", "expert"])
def test_rounding_moves_no_action_onto_a_bound_or_off_it(name):
    """Of the bounds 0.123456 and 0.20001, which have more digits than labels."""
    task = parse_task(MINE.replace("low: 0.2, high: 0.35", "low: 0.20001, high: 0.2003"), "mine.yaml")
    policy, seeds = logging_policy(name, task), (np.random.default_rng(3) for _ in range(2))
    logs = simulate_logs(task, policy, videos=1, steps=3000, rng=next(seeds))
    labels = simulate.demonstrate(task, 3000, next(seeds), policy=policy)[["care", "speed"]].to_numpy()
    for bound in (task.low, task.high):
        np.testing.assert_array_equal(labels == bound, logs.actions[0] == bound)
    assert ((task.low <= labels) & (labels <= task.high)).all() and (labels == task.high).any()


def test_an_unknown_logger_is_refused(vtp, tmp_path):
    code, out, err = vtp("simulate", "--logger", "robot")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert all(word in err for word in ("--logger robot", "'uniform'", "'human'", "'expert'"))
    assert list(tmp_path.iterdir()) == []


# Tasks of one's own

MINE = """
name: mine
step_s: 120
human_wage_usd: 18
actions: {care: {low: 0.2, high: 0.35}, speed: {low: 0.123456, high: 0.4}}
contexts: {mug: {price_usd: 1}, pan: {price_usd: 2}}
simulator:
  attempts_per_minute: 50 * speed
  error_probability: 0.5 * (1 - care)
  scenarios: {mugs: [mug], both: [mug, pan]}
  renderer: dishes
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


def test_a_task_s_file_goes_with_its_videos(mine, tmp_path):
    path = simulate.run(SimulateConfig(out=tmp_path / "demos", task=str(mine), scenario="both", videos=2, steps=3))
    assert (tmp_path / "demos/task.yaml").read_text() == MINE
    entries = manifest.find_videos(str(path))
    for entry in entries:
        task = load_task(entry.task)
        assert (task.name, task.scenario) == ("mine", "")
        logs = dataset.read_labels(entry.labels, task)
        assert logs.num_clips == 3 and logs.attempts.max() > 3  # of two minutes
    assert set(pd.read_csv(tmp_path / "demos/labels/0000.csv").columns[2:4]) == {"care", "speed"}


def test_the_default_scenario_is_mixed_or_the_first(mine):
    for task, scenario in (("dishwashing", "mixed"), ("bricklaying", "mixed"), (str(mine), "mugs")):
        assert simulate.simulated_task(SimulateConfig(task=task)).scenario == scenario


def test_logged_actions_stay_within_bounds_that_rounding_would_leave(mine):
    labels = simulate.demonstrate(parse_task(MINE, "mine.yaml"), 2000, np.random.default_rng(0))
    assert labels["speed"].min() >= 0.123456 and labels["care"].max() <= 0.35


def test_planted_novelty_stays_within_the_bounds(mine, tmp_path):
    path = simulate.run(SimulateConfig(out=tmp_path / "demos", task=str(mine), videos=2, steps=6, novel=1.0))
    for entry in manifest.find_videos(str(path)):
        logs = dataset.read_labels(entry.labels, load_task(entry.task))
        assert (logs.novel == 1).all() and set(logs.novel_kind) == set(synthetic.NOVEL_KINDS)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "bin-picking"}, "task-not-rendered"),
        ({"task": "gardening"}, "task-unknown"),
        ({"scenario": "spring"}, "scenario-unknown"),
    ],
)
def test_what_cannot_be_simulated_leaves_nothing(tmp_path, changes, code):
    with raises(code):
        simulate.run(SimulateConfig(out=tmp_path / "demos", **changes))
    assert not (tmp_path / "demos").exists()


def test_a_step_must_have_a_length(tmp_path):
    (tmp_path / "t.yaml").write_text(MINE.replace("step_s: 120\n", ""))
    with raises("task-no-step-s"):
        simulate.simulated_task(SimulateConfig(task=str(tmp_path / "t.yaml")))


def test_settings_without_effect_are_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(simulate, "film", lambda *_: iter(np.zeros((16, 32, 32, 3), np.uint8)))
    simulate.run(SimulateConfig(out=tmp_path, videos=1, steps=1, val_fraction=0.5, novel=0.1))
    assert "--val-fraction 0.5 has no effect: the only video is for training" in caplog.text
    assert "--novel 0.1" in caplog.text
