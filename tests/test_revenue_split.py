import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDRegressor
from sklearn.preprocessing import StandardScaler
from worlds import PLATES

from pipeline.runs import load_checkpoint, save_checkpoint
from pipeline.tasks import Worth
from pipeline.training.revenue_split import OnlineLinear, RevenueSplit, estimator_skill, skill_in_words


def close(split, mp=100.0, novelty=1.0):
    """An episode of half an hour at that many good units an hour, worth $30 an hour."""
    return split.close(0.5, Worth(mp / 0.98, mp, 0.02, 30.0, 29.9), novelty)


def test_an_episode_is_priced_by_hand():
    row = close(RevenueSplit(PLATES), mp=109.0)
    assert (row["delta_mpl_total"], row["delta_mpl_cust"]) == (0.0, 0.0), "there is nothing before the first"
    assert (row["mp_h"], row["spread"]) == pytest.approx((60.0, 12.0))
    assert (row["spread_value"], row["rebate"], row["captured_spread"]) == pytest.approx((6.0, 0.0, 6.0))
    assert row["prod_parity"] == pytest.approx(109 / 60)


def test_gains_are_on_the_last_hundred_episodes():
    split = RevenueSplit(PLATES)
    for _ in range(150):
        close(split, mp=50.0)
    assert close(split, mp=60.0)["delta_mpl_total"] == pytest.approx(10.0)
    assert close(split, mp=60.0)["delta_mpl_total"] == pytest.approx(60 - 50.1)


def test_the_estimator_is_asked_before_it_is_told():
    """Two splits with one past answer the same, whatever comes of the episode."""
    splits = RevenueSplit(PLATES), RevenueSplit(PLATES)
    for split in splits:
        for mp in (50.0, 60.0, 40.0):
            close(split, mp=mp, novelty=mp / 50)
    poor, rich = (close(split, mp=mp)["delta_mpl_cust"] for split, mp in zip(splits, (0.0, 500.0), strict=True))
    assert poor == rich != 0


@pytest.mark.parametrize("values", ["noisy", "constant", "huge"])
def test_the_online_model_is_scikit_learns_to_the_last_bit(values):
    rng = np.random.default_rng(0)
    novelty = {"noisy": rng.normal(1, 0.3, 200), "constant": np.full(200, 0.7), "huge": rng.normal(1e6, 1e5, 200)}[
        values
    ]
    gains = rng.normal(0, 1e14 if values == "huge" else 10, 200)
    scaler, regressor, ours = StandardScaler(), SGDRegressor(random_state=0), OnlineLinear()
    for value, gain in zip(novelty, gains, strict=True):
        theirs = scaler.partial_fit([[value]]).transform([[value]])
        regressor.partial_fit(theirs, [gain])
        feature = ours.standardise(float(value))
        ours.learn(feature, float(gain))
        assert feature == theirs[0, 0]
        assert ours.predict(0.5) == regressor.predict([[0.5]])[0]
    state = ours.state_dict()
    for name, learned in (("scaler", scaler), ("estimator", regressor)):
        for field, value in state[name].items():
            np.testing.assert_array_equal(value, getattr(learned, field), err_msg=field)


def test_resumed_split_equals_uninterrupted_split(tmp_path):
    """Its state goes through a checkpoint, which holds tensors and plain values only."""
    rng = np.random.default_rng(0)
    episodes = rng.normal([100.0, 1.0], [10.0, 0.3], (130, 2))
    whole, first = RevenueSplit(PLATES), RevenueSplit(PLATES)
    for mp, novelty in episodes[:120]:
        close(whole, mp, novelty)
        close(first, mp, novelty)
    state = first.state_dict()
    state = {name: value for name, value in state.items() if name not in ("scaler", "estimator")} | {
        name: {key: torch.from_numpy(np.array(value)) for key, value in state[name].items()}
        for name in ("scaler", "estimator")
    }
    save_checkpoint(tmp_path / "last.pt", state)
    state = load_checkpoint(tmp_path / "last.pt")
    for name in ("scaler", "estimator"):
        state[name] = {key: value.numpy() for key, value in state[name].items()}
    resumed = RevenueSplit(PLATES)
    resumed.load_state_dict(state)
    assert resumed.skill() == whole.skill()
    for mp, novelty in episodes[120:]:
        assert close(resumed, mp, novelty) == close(whole, mp, novelty)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_standardised_features_make_the_estimator_blind_to_their_unit(scale):
    rng = np.random.default_rng(0)
    split = RevenueSplit(PLATES)
    for _ in range(600):
        novelty = rng.normal()
        close(split, mp=100 + 10 * novelty + rng.normal(), novelty=scale * (5 + novelty))
    skill = split.skill()
    assert skill["r2_ci95"][0] > 0.5
    assert skill["rank_correlation_ci95"][0] > 0.9


@pytest.mark.parametrize("constant", [True, False])
def test_novelty_that_says_nothing_has_no_skill(constant):
    rng = np.random.default_rng(1)
    split = RevenueSplit(PLATES)
    for _ in range(1000):
        close(split, mp=100 + 10 * rng.normal(), novelty=1.0 if constant else rng.normal())
    skill = split.skill()
    assert skill["r2_ci95"][0] <= 0
    assert skill["r2"] < 0.01
    assert skill["rank_correlation_ci95"][0] <= 0


def test_skill_by_hand():
    gains = np.tile([1.0, -1.0], 50)
    perfect, none = estimator_skill(gains, gains), estimator_skill(np.zeros(100), gains)
    assert (perfect["r2"], perfect["rank_correlation"]) == pytest.approx((1.0, 1.0))
    assert perfect["r2_ci95"] == pytest.approx([1.0, 1.0])
    assert none["r2"] == pytest.approx(0.0), "0 is the gains' mean"
    assert none["rank_correlation"] == 0.0


def test_skill_in_words_says_whether_there_is_any_with_its_intervals():
    figures = dict(
        episodes=1200, r2=-0.012, r2_ci95=[-0.02, -0.001], rank_correlation=0.3, rank_correlation_ci95=[-0.1, 0.7]
    )  # fmt: skip
    words = skill_in_words(figures)
    assert words.startswith(
        "The estimator of the customers’ share has no measurable skill, so this split is arbitrary. "
    )
    assert (
        "Predicting before each of 1,200 episodes, it explains −1.2% of the gains’ variance beyond a constant" in words
    )
    assert "(95% interval −2.0% to −0.1%); its rank correlation with them is 0.30 (−0.10 to 0.70)." in words
    nearly_zero = skill_in_words(figures | {"r2": -0.0004, "rank_correlation": -0.004})
    assert "explains 0.0% of" in nearly_zero and "with them is 0.00 (" in nearly_zero
    assert "share has skill." in skill_in_words(figures | {"r2_ci95": [0.01, 0.2]})
    assert "no better than a constant" in skill_in_words(figures | {"rank_correlation_ci95": [0.01, 0.7]})
    assert "7 episodes are too few" in skill_in_words(estimator_skill(np.zeros(7), np.ones(7)))


@pytest.mark.parametrize("episodes", [0, 1, 19])
def test_too_few_episodes_have_no_figure(episodes):
    skill = estimator_skill(np.zeros(episodes), np.ones(episodes))
    assert skill["episodes"] == episodes
    assert skill["r2"] is skill["r2_ci95"] is skill["rank_correlation"] is None
