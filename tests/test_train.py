import shlex
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import dataset, evaluate, train, training
from pipeline.config import TrainConfig
from pipeline.errors import VtpError
from pipeline.rl import envs, sac
from pipeline.synthetic import dynamics
from pipeline.training import revenue_split

SMALL = {
    "episodes": 24,
    "num_envs": 8,
    "updates_per_episode": 1,
    "warmup_steps": 64,
    "batch_size": 32,
    "evaluations": 3,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sim_config(folder, **settings):
    return TrainConfig(**{"source": "sim", "out": folder / "run", **SMALL, **settings})


def write_embeddings(
    path, *, contexts=("pan", "plate", "glass", "mug"), labelled=True, splits=("train", "val"), clips=12
):
    """Videos of `clips` clips whose embeddings show the context in its own dimension, with a little noise."""
    rng = np.random.default_rng(0)
    num_videos = 10
    context = rng.integers(len(contexts), size=num_videos * clips)
    features = rng.normal(0, 0.1, (len(context), 512)).astype(np.float32)
    features[np.arange(len(context)), context] += 3
    numbers = dict.fromkeys(dataset.LABEL_NUMBERS, np.full(len(context), np.nan))
    data = dataset.Embeddings(
        embeddings=features[:, :128],
        clips=dataset.Clips(
            features=features,
            start_frame=np.tile(np.arange(clips) * 16, num_videos),
            start_s=np.tile(np.arange(clips) * 1.0, num_videos),
            end_s=np.tile(np.arange(clips) + 1.0, num_videos),
            valid_frames=np.full(len(context), 16),
            offset=np.arange(num_videos + 1) * clips,
        ),
        videos=dataset.Videos(
            sha256=[f"{v:064d}" for v in range(num_videos)],
            fps=np.full(num_videos, 15.0),
            num_frames=np.full(num_videos, 16 * clips),
            decoder=["decord"] * num_videos,
            id=[f"v{v}" for v in range(num_videos)],
            path=[f"v{v}.mp4" for v in range(num_videos)],
            split=[splits[int(v >= 8)] for v in range(num_videos)],
            task=["dishwashing"] * num_videos,
        ),
        labels={"context": np.array(contexts, object)[context], **numbers} if labelled else None,
        projector_mean=np.zeros(512),
        projector_components=np.eye(128, 512),
        projector_scale=1.0,
        attrs={
            "backbone": "r3d_18", "weights": "random:0", "weights_sha256": "0" * 64, "transform": "none",
            "clip_len": 16, "clip_stride": 16, "fps": 15.0, "precision": "fp32", "projector": "pca", "tail": "drop",
            "decoder": "auto",
        },
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path


def embeddings_config(folder, path, **settings):
    return TrainConfig(**{"source": "embeddings", "embeddings": path, "out": folder / "run", **SMALL, **settings})


def write_novelty(path, weight, content):
    with h5py.File(path, "w") as file:
        file.attrs.update(schema_version=dataset.SCHEMA_VERSION, content_sha256=content)
        file["weight"] = np.asarray(weight, np.float32)


# What a run leaves


def test_a_row_an_episode_and_every_number_finite(tmp_path):
    train.run(sim_config(tmp_path))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(metrics.columns) == list(training.METRICS)
    assert len(training.METRICS) == 36
    assert metrics["episode"].tolist() == list(range(1, 25))
    assert np.isfinite(metrics.to_numpy()).all(), metrics.columns[~np.isfinite(metrics.to_numpy()).all(0)]
    assert (metrics["episode_steps"] == 60).all()
    np.testing.assert_allclose(metrics["completed"], metrics["attempts"] - metrics["errors"])
    np.testing.assert_allclose(metrics["rebate"] + metrics["captured_spread"], metrics["spread_value"])


def test_the_books_agree_with_the_seeds_formula(tmp_path):
    train.run(sim_config(tmp_path))
    row = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[-1]
    wage = row.completed * (0.30 - 1.00 * row.errors / row.attempts)
    assert row.w_hat_r == pytest.approx(wage)
    assert row.profit == pytest.approx(wage - 0.10)
    assert row.wage_parity == pytest.approx(wage / 18)
    assert row.err_target == pytest.approx(0.10 - 0.04 * 23 / 600)


def test_the_summary_has_the_agreed_keys(tmp_path):
    summary = train.run(sim_config(tmp_path))
    wanted = {
        "source", "scenario", "episodes", "seeds", "profit_mean", "profit_ci95", "mp_mean", "err_mean", "wage_parity",
        "oracle_profit", "blind_profit", "oracle_ratio", "blind_ratio", "spread", "rebate", "captured", "wall_s",
    }  # fmt: skip
    assert wanted <= set(summary), wanted - set(summary)
    assert summary["oracle_profit"] == pytest.approx(28.43, abs=0.01)
    low, high = summary["profit_ci95"]
    assert low <= summary["profit_mean"] <= high


def test_the_best_checkpoint_is_the_best_of_the_sampled_validations(tmp_path):
    train.run(sim_config(tmp_path))
    run = tmp_path / "run"
    validations = pd.read_csv(run / "validations.csv")
    assert len(validations) == 3
    best = validations.loc[validations["profit_sampled"].idxmax(), "episode"]
    assert sac.load_checkpoint(run / "best.pt")["episode"] == best
    assert sac.load_checkpoint(run / "last.pt")["episode"] == 24


def test_tensorboard_gets_the_same_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.run(sim_config(tmp_path))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {f"train/{name}" for name in training.METRICS[1:]} <= set(board.Tags()["scalars"])


@pytest.mark.parametrize("reward_window", ["step", "episode"])
def test_the_same_seed_writes_the_same_bytes(tmp_path, reward_window):
    for name in ("a", "b"):
        train.run(sim_config(tmp_path, out=tmp_path / name, reward_window=reward_window))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    train.run(sim_config(tmp_path, out=tmp_path / "c", seed=1, reward_window=reward_window))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() != (tmp_path / "c" / "metrics.csv").read_bytes()


def test_the_recorded_command_trains_with_these_settings(tmp_path):
    train.run(sim_config(tmp_path))
    _, meta = evaluate.load_run(tmp_path / "run")
    command = meta["provenance"]["command"]
    assert command.startswith("vtp train --source sim --out")
    assert "--episodes 24" in command
    assert "--lr" not in command, "defaults are left out"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 0.995},
        {"reward_window": "episode"},
        {"reward_window": "episode", "gamma": 0.0},
        {"centre": "video", "novelty": "a folder/novelty.h5"},
    ],
)
def test_a_command_says_all_that_the_defaults_do_not(settings):
    cfg = TrainConfig(source="embeddings", **settings)
    flags = shlex.split(training.command_line(cfg))[2:]
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    assert TrainConfig(**dict(zip(names, flags[1::2], strict=True))) == cfg
    assert set(names) == {"source", *settings}


def test_an_earlier_run_is_kept_unless_told_otherwise(tmp_path):
    train.run(sim_config(tmp_path))
    before = (tmp_path / "run" / "best.pt").read_bytes()
    with pytest.raises(VtpError, match=r"holds a run already.*--overwrite"):
        train.run(sim_config(tmp_path, seed=1))
    assert (tmp_path / "run" / "best.pt").read_bytes() == before
    train.run(sim_config(tmp_path, seed=1, overwrite=True))
    assert (tmp_path / "run" / "best.pt").read_bytes() != before


def test_too_small_a_buffer_writes_nothing(tmp_path):
    with pytest.raises(VtpError, match="--buffer-size 4 is below --num-envs 8"):
        train.run(sim_config(tmp_path, buffer_size=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"warmup_steps": 5000}, {"warmup_steps": 600, "buffer_size": 500}])
def test_a_run_that_cannot_learn_says_so(tmp_path, settings):
    with pytest.raises(VtpError, match="--warmup-steps"):
        train.run(sim_config(tmp_path, **settings))
    assert not (tmp_path / "run" / "summary.json").exists()


# Learning


@pytest.mark.slow
def test_it_learns_the_seed_scenario(tmp_path):
    summary = train.run(sim_config(tmp_path, episodes=160, num_envs=32, updates_per_episode=6, batch_size=128))
    assert summary["oracle_ratio"] > 0.93, "a policy that holds speed and care at one half earns 0.82"
    assert summary["err_mean"] < 0.06


@pytest.mark.slow
def test_it_learns_what_embeddings_show(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    settings = {"episodes": 4000, "num_envs": 256, "batch_size": 128}
    summary = train.run(embeddings_config(tmp_path, path, **settings))
    assert summary["validation"] == "held-out clips"
    assert summary["blind_ratio"] > 1.05, "it earns more than the best policy that cannot see"
    contexts = summary["contexts"]
    assert contexts["glass"]["care"] > contexts["pan"]["care"] + 0.4


# Embeddings as a source


def test_no_embeddings_says_how_to_make_them(tmp_path):
    with pytest.raises(VtpError, match=r"vtp extract VIDEOS.*--source sim"):
        train.run(embeddings_config(tmp_path, tmp_path / "none.h5"))
    assert not (tmp_path / "run").exists()


def test_unlabelled_clips_are_worth_what_the_seeds_parameters_say(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5", labelled=False)
    summary = train.run(embeddings_config(tmp_path, path))
    assert "the seed's parameters (the clips have no labels)" in summary["outcome_model"]
    assert summary["scenario"] == "seed"
    assert summary["episodes"] == 2, "the clips of a held-out video are alike and count as one episode"


def test_an_unknown_context_is_named(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5", contexts=("pan", "wok"))
    with pytest.raises(VtpError, match="'wok' is unknown in dishwashing; use one of pan, plate, glass, mug"):
        train.run(embeddings_config(tmp_path, path))


def test_videos_of_one_context_alone_are_not_seen_from_their_own_mean(tmp_path):
    """The mean of such a video is its context."""
    path = write_embeddings(tmp_path / "embeddings.h5")
    data = dataset.read_embeddings(path)
    alone = np.repeat(np.array(["pan", "glass"] * 5, object), 12)
    dataset.write_embeddings(path, replace(data, labels=data.labels | {"context": alone}))
    cfg = embeddings_config(tmp_path, path, centre="video")
    with pytest.raises(VtpError, match=r"every video of .*embeddings\.h5 shows one context alone.*use --centre corpus"):
        train.run(cfg)
    assert not (tmp_path / "run").exists()
    train.run(cfg.model_copy(update={"centre": "corpus"}))


def test_without_a_val_split_the_last_fifth_is_held_out(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5", splits=("train", "train")))
    videos, rows, how = evaluate.split_rows(data)
    assert "last fifth" in how
    np.testing.assert_array_equal(videos[0], [0, 10])
    np.testing.assert_array_equal(rows[:4], [10, 11, 22, 23])


def test_clips_that_share_frames_with_the_last_fifth_are_left_out(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5", splits=("train", "train")))
    data = replace(data, clips=replace(data.clips, end_s=data.clips.start_s + 2.5))  # each overlaps the next two
    videos, rows, _ = evaluate.split_rows(data)
    np.testing.assert_array_equal(videos[:2], [[0, 8], [12, 20]])
    np.testing.assert_array_equal(rows[:2], [10, 11])


def test_held_out_clips_are_never_played(tmp_path):
    data = dataset.read_embeddings(write_embeddings(tmp_path / "embeddings.h5"))
    videos, rows, how = evaluate.split_rows(data)
    played = np.concatenate([np.arange(start, end) for start, end in videos])
    assert not set(played) & set(rows)
    assert how == "2 videos of the val split"


def test_novelty_weights_beside_the_embeddings_are_used(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    content = dataset.read_embeddings(path).content_sha256
    write_novelty(tmp_path / "novelty.h5", np.full(120, 1.5), content)
    train.run(embeddings_config(tmp_path, path))
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert (metrics["mean_novelty"] == 1.5).all()
    assert metrics["mean_weight"].iloc[-1] == pytest.approx(1.5, abs=1e-4)


def test_novelty_of_other_embeddings_is_refused(tmp_path):
    path = write_embeddings(tmp_path / "embeddings.h5")
    write_novelty(tmp_path / "novelty.h5", np.ones(120), "f" * 64)
    with pytest.raises(VtpError, match="ffffffffffff"):
        train.run(embeddings_config(tmp_path, path))


def test_without_novelty_every_clip_weighs_one(tmp_path):
    train.run(embeddings_config(tmp_path, write_embeddings(tmp_path / "embeddings.h5")))
    assert (pd.read_csv(tmp_path / "run" / "metrics.csv")["mean_novelty"] == 1).all()


# Small parts


def test_sampled_profit_of_the_seeds_result_row(monkeypatch):
    outcomes = np.array([2] * 51 + [1] * 9), np.array([1, 1] + [0] * 58)
    drawn = [np.tile(counts, (train.OUTCOMES_A_STEP, 1)) for counts in outcomes]
    monkeypatch.setattr(dynamics, "coupled_outcomes", lambda *_: drawn)
    steps = pd.DataFrame({"context": [0] * 60, "speed": 1.0, "care": 1.0})
    rng = np.random.default_rng(0)
    assert train.sampled_profit(dynamics.scenario(), steps, rng) == pytest.approx(30.64, abs=0.005)


def test_sampled_profit_ranks_policies_that_differ_by_a_third_of_a_percent():
    profits = []
    for speed in (1.0, 0.99):
        steps = pd.DataFrame({"context": [0] * 12_000, "speed": speed, "care": 1.0})
        profits.append([train.sampled_profit(dynamics.scenario(), steps, np.random.default_rng(k)) for k in range(20)])
    better = np.subtract(*profits)
    assert better.mean() == pytest.approx(0.096, abs=0.005)  # of $28.3: the analytic difference
    assert (better > 0).all()


def test_the_ledger_compares_with_the_episodes_before():
    books = revenue_split.EpisodeLedger(dynamics.scenario())
    mps = [100.0, 110.0, 90.0]
    rows = [books.close(1.0, envs.Economics(mp, 0.0, 0.3 * mp, 0.3 * mp - 0.1), 1.0) for mp in mps]
    assert [row["delta_mpl_total"] for row in rows] == pytest.approx([0.0, 10.0, -15.0])
    assert rows[2]["rebate"] == 0, "a loss has nobody to thank"
