import copy

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from raising import raises
from worlds import BRICKS, DISHES, GLASS, MUG, PAN, PARTS, PLATE, PLATES, grasping, random_outcomes

from pipeline.outcomes import Outcomes, SimulatedOutcomes, expected_worth
from pipeline.rl.envs import EmbeddingEnv, GymEnv, SimEnv, Workplace
from pipeline.tasks import Task

plates, dishes, bricks, parts = map(SimulatedOutcomes, (PLATES, DISHES, BRICKS, PARTS))


def embedding_env(lengths, num_envs=4, *, task=DISHES, seed=0, **settings):
    """Videos with these numbers of clips, one after another; their contexts cycle."""
    ends = np.cumsum(lengths)
    videos = np.stack([ends - lengths, ends], 1)
    model = SimulatedOutcomes(task, np.arange(ends[-1]) % len(task.contexts))
    return EmbeddingEnv(model, num_envs, videos=videos, rng=np.random.default_rng(seed), **settings)


def half(num_envs):
    return np.full((num_envs, 2), 0.5, np.float32)


def with_outcomes(monkeypatch, attempts, errors):
    """Make every further step have these outcomes [N]."""
    outcomes = Outcomes(np.array(attempts), np.array(errors))
    monkeypatch.setattr(SimulatedOutcomes, "sample", lambda self, rows, actions, rng: outcomes)


# Prices by hand


def test_the_worth_of_an_hour_by_hand(monkeypatch):
    """111 plates and 2 broken ones: 109 · 0.30 − 2 · 1.00, less 10 cents of energy."""
    workplace = Workplace(plates, 1, reward_window="step", rng=np.random.default_rng(0))
    for step in range(60):
        with_outcomes(monkeypatch, [2 if step < 51 else 1], [int(step < 2)])
        workplace.work(np.array([0]), half(1))
    assert [round(float(field[0]), 3) for field in workplace.worth()] == [111, 109, 0.018, 30.70, 30.60]


def test_each_context_has_its_own_price(monkeypatch):
    workplace = Workplace(dishes, 1, reward_window="step", rng=np.random.default_rng(0))
    for row, attempts, errors in ((PAN, 20, 0), (PLATE, 10, 1), (MUG, 30, 3)):
        with_outcomes(monkeypatch, [attempts], [errors])
        workplace.work(np.array([row]), half(1))
    worth = workplace.worth()
    wage = 20 * (20 * 0.30 + 9 * 0.30 - 1.00 + 27 * 0.30 - 3 * 0.50)  # three minutes, twenty times per hour
    assert worth.implied_wage == pytest.approx(wage)
    assert worth.profit == pytest.approx(wage - 0.10)
    assert worth.mp == pytest.approx(20 * 56)
    assert worth.err_rate == pytest.approx(4 / 60)


def test_an_unstarted_episode_is_worth_minus_its_costs():
    worth = Workplace(dishes, 1, reward_window="step", rng=np.random.default_rng(0)).worth()
    assert [float(field[0]) for field in worth] == [0, 0, 0, 0, -0.10]


def test_hours_are_those_of_the_rows_that_were_worked_on():
    task = Task.model_validate(grasping(step_s=None))
    model = SimulatedOutcomes(task, np.array([0, 1]), step_s=np.array([36.0, 72.0]))
    workplace = Workplace(model, 2, reward_window="step", rng=np.random.default_rng(0))
    workplace.work(np.array([0, 1]), np.full((2, 1), 3.0))
    workplace.work(np.array([1, 1]), np.full((2, 1), 3.0))
    np.testing.assert_allclose(workplace.hours, [0.03, 0.04])


# Rewards by hand


def test_step_reward_charges_every_error_of_the_step_in_full(monkeypatch):
    with_outcomes(monkeypatch, [2, 3], [1, 0])
    workplace = Workplace(dishes, 2, reward_window="step", rng=np.random.default_rng(0))
    workplace.lambda_dual, workplace.err_target = 2.0, 0.06
    rewards = workplace.work(np.array([GLASS, PAN]), half(2))
    glass = (60 * (0.45 * 1 - 4.00 * 1) - 0.10) / 18 - 2.0 * (0.5 - 0.06)
    pan = (60 * 0.30 * 3 - 0.10) / 18 + 2.0 * 0.06
    np.testing.assert_allclose(rewards, [glass, pan])


def test_episode_reward_is_the_lagrangian_of_the_rates_to_date(monkeypatch):
    workplace = Workplace(plates, 1, reward_window="episode", rng=np.random.default_rng(0))
    workplace.lambda_dual, workplace.err_target = 0.5, 0.08
    with_outcomes(monkeypatch, [2], [1])
    workplace.work(np.array([0]), half(1))
    with_outcomes(monkeypatch, [3], [0])
    (reward,) = workplace.work(np.array([0]), half(1))
    profit = 30 * (4 * 0.30 - 1 * 1.00) - 0.10  # two minutes, thirty times per hour
    assert reward == pytest.approx(profit / 18 - 0.5 * (1 / 5 - 0.08))


@pytest.mark.parametrize("window", ["step", "episode"])
def test_on_the_first_step_without_error_both_windows_agree(monkeypatch, window):
    with_outcomes(monkeypatch, [3], [0])
    workplace = Workplace(plates, 1, reward_window=window, rng=np.random.default_rng(0))
    assert workplace.work(np.array([0]), half(1)) == pytest.approx((180 * 0.30 - 0.10) / 18)


@pytest.mark.parametrize("action", [(-0.01, 0.5), (0.5, 1.01), (np.nan, 0.5), (0.5, np.inf)])
def test_an_action_outside_its_bounds_is_refused(action):
    env = SimEnv(plates, 2, rng=np.random.default_rng(0))
    env.reset()
    with raises("action-out-of-bounds"):
        env.step(np.array([(0.5, 0.5), action]))
    assert not env.workplace.steps.any()


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (-2.0, 5.0), (1e6 + 0.03, 1e6 + 200), (-0.7, -0.1)])
def test_bounds_in_float32_are_accepted(low, high):
    """Policies compute in float32, where 0.3 is more than 0.3; larger excesses are still errors."""
    task = Task.model_validate(
        grasping(actions={"force": {"low": low, "high": high}}, simulator=None)
        | {"simulator": {"attempts_per_minute": "2 + 0 * force", "error_probability": "0.1"}}
    )
    env = SimEnv(SimulatedOutcomes(task), 2, rng=np.random.default_rng(0))
    env.reset()
    env.step(np.array([[low], [high]], np.float32))
    for wrong in (low - 0.01 * (high - low), high + 0.01 * (high - low)):
        with raises("action-out-of-bounds") as caught:
            env.step(np.array([[high], [wrong]]))
        assert "force" in str(caught.value)


# The simulator's environment


@given(st.sampled_from([plates, dishes, bricks, parts]), st.integers(1, 5), st.integers(1, 60), st.integers(0, 1000))
def test_the_tally_is_the_sum_of_the_outcomes(model, num_envs, num_steps, seed):
    rng, task = np.random.default_rng(seed), model.task
    env = SimEnv(model, num_envs, rng=rng)
    env.reset()
    attempts, errors, value = np.zeros((3, num_envs))
    for _ in range(num_steps):
        worked_on = env.context.copy()
        env.step(task.from_unit(rng.random((num_envs, task.num_actions))))
        counted = env.workplace.outcomes
        attempts += counted.attempts
        errors += counted.errors
        value += task.price_usd[worked_on] * (counted.attempts - counted.errors)
        value -= task.damage_usd[worked_on] * counted.errors
    np.testing.assert_array_equal(env.workplace.attempts, attempts)
    np.testing.assert_array_equal(env.workplace.errors, errors)
    np.testing.assert_allclose(env.workplace.value_usd, value, atol=1e-9)
    np.testing.assert_array_equal(env.workplace.steps, num_steps)
    np.testing.assert_allclose(env.workplace.hours, num_steps * task.step_s / 3600)


def test_an_hour_is_truncated_at_its_last_step_and_not_before():
    env = SimEnv(dishes, 3, rng=np.random.default_rng(0))
    env.reset()
    assert [bool(env.step(half(3))[2].any()) for _ in range(60)] == [False] * 59 + [True]
    assert env.step(half(3))[2].all()


def test_only_the_given_environments_are_reset():
    env = SimEnv(dishes, 3, rng=np.random.default_rng(0))
    env.reset()
    for _ in range(5):
        env.step(half(3))
    kept = env.context.copy()
    observations = env.reset(np.array([True, False, True]))
    np.testing.assert_array_equal(env.workplace.steps, [0, 5, 0])
    np.testing.assert_array_equal(env.workplace.attempts > 0, [False, True, False])
    assert env.context[1] == kept[1]
    assert observations[0, 0] == 0
    assert observations[1, 0] == pytest.approx(5 / 60)


def test_observations_by_hand(monkeypatch):
    env = SimEnv(dishes, 1, rng=np.random.default_rng(0))
    env.reset()
    with_outcomes(monkeypatch, [4], [1])
    monkeypatch.setattr(SimulatedOutcomes, "next_rows", lambda self, rows, rng: np.array([GLASS]))
    env.step(half(1))
    observations, *_ = env.step(half(1))
    # 2 of 60 steps; third of four contexts; 4 attempts per step against twice the fastest 3.0; 2 errors of 8
    np.testing.assert_allclose(observations, [[2 / 60, 2 / 3, 4 / 6, 0.25]], rtol=1e-6)
    assert observations.dtype == np.float32


@pytest.mark.parametrize(
    "model", [plates, dishes, bricks, parts, *(random_outcomes(seed, 1 + seed % 4) for seed in range(4))]
)
def test_observations_stay_in_the_unit_cube(model):
    rng, task = np.random.default_rng(0), model.task
    env = SimEnv(model, 50, rng=rng)
    seen = [env.reset(), *(env.step(task.from_unit(rng.random((50, task.num_actions))))[0] for _ in range(60))]
    assert np.min(seen) >= 0
    assert np.max(seen) <= 1


@pytest.mark.parametrize("make", [lambda seed: SimEnv(dishes, 3, rng=np.random.default_rng(seed)),
                                  lambda seed: embedding_env([5, 80, 1], 3, seed=seed)])  # fmt: skip
def test_same_seed_same_trajectory_and_other_seeds_differ(make):
    def trajectory(seed):
        env = make(seed)
        trace = [env.reset()]
        for _ in range(30):
            *step, truncated = env.step(half(3))
            trace += [*step, truncated]
            env.reset(truncated)
        return b"".join(array.tobytes() for array in trace)

    assert trajectory(1) == trajectory(1)
    assert trajectory(1) != trajectory(2)


@pytest.mark.parametrize("make", [lambda: SimEnv(dishes, 3, reward_window="episode", rng=np.random.default_rng(1)),
                                  lambda: embedding_env([5, 80, 1], 3, reward_window="episode")])  # fmt: skip
def test_resumed_episodes_equal_uninterrupted_ones(make):
    env = make()
    env.reset()
    env.workplace.lambda_dual, env.workplace.err_target = 0.7, 0.08
    for _ in range(7):
        env.reset(env.step(half(3))[2])
    state = copy.deepcopy((env.state_dict(), env.workplace.state_dict()))
    resumed = make()
    resumed.load_state_dict(state[0])
    resumed.workplace.load_state_dict(state[1])
    for _ in range(70):
        one, other = env.step(half(3)), resumed.step(half(3))
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(env.reset(one[2]), resumed.reset(one[2]))
        np.testing.assert_array_equal(env.workplace.worth(), resumed.workplace.worth())


# The embeddings' environment


def test_an_episode_plays_one_videos_clips_in_order_to_its_last():
    env = embedding_env([3, 5], 20)
    rows = env.reset()
    np.testing.assert_array_equal(np.unique(rows), [0, 3])
    lengths = np.where(rows == 0, 3, 5)
    for played in range(1, 6):
        following, _, truncated = env.step(half(20))
        np.testing.assert_array_equal(truncated, played >= lengths)
        # after the last clip, the next observation is that clip again
        np.testing.assert_array_equal(following, rows + np.minimum(played, lengths - 1))


def test_outcomes_are_those_of_the_observed_clip():
    env = embedding_env([8], 5_000)
    env.reset()
    for row in (PAN, PLATE, GLASS, MUG):
        _, rewards, _ = env.step(half(5_000))
        expected = float(expected_worth(dishes, np.array(row), half(1)[0]).profit)
        assert 18 * rewards.mean() == pytest.approx(expected, abs=5 * 18 * rewards.std() / np.sqrt(5_000))


def test_a_video_of_one_clip_is_an_episode_of_one_step():
    env = embedding_env([1], 2)
    for _ in range(3):
        np.testing.assert_array_equal(env.reset(), 0)
        following, rewards, truncated = env.step(half(2))
        np.testing.assert_array_equal(following, 0)
        assert truncated.all()
        assert np.isfinite(rewards).all()


def test_a_long_video_starts_anywhere_that_leaves_an_hour():
    env = embedding_env([10, 64], 4_000)
    rows = env.reset()
    starts, counts = np.unique(rows[rows >= 10], return_counts=True)
    np.testing.assert_array_equal(starts, 10 + np.arange(5))
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.05)
    ended = np.zeros(4_000, int)
    for step in range(1, 61):
        following, _, truncated = env.step(half(4_000))
        ended[(ended == 0) & truncated] = step
        assert following.max() < 74
    np.testing.assert_array_equal(ended, np.where(rows >= 10, 60, 10))


def test_videos_of_any_length_are_played_equally_often():
    starts = embedding_env([2, 50], 4_000).reset()
    assert (starts == 0).mean() == pytest.approx(0.5, abs=0.03)


def test_only_ended_episodes_are_reset():
    env = embedding_env([4], 2)
    env.reset()
    env.step(half(2))
    np.testing.assert_array_equal(env.reset(np.array([True, False])), [0, 1])
    np.testing.assert_array_equal(env.workplace.steps, [0, 1])


@pytest.mark.parametrize("videos", [np.zeros((0, 2), int), np.array([[0, 3], [3, 3]])])
def test_no_clips_to_play_is_an_error(videos):
    with raises("no-clips"):
        EmbeddingEnv(SimulatedOutcomes(PLATES, np.zeros(3, int)), 1, videos=videos, rng=np.random.default_rng(0))


# Through Gymnasium


def gym_envs():
    """New environments, one of each kind."""
    rng = np.random.default_rng(0)
    for model in (plates, dishes, bricks, parts):
        yield pytest.param(GymEnv(SimEnv(model, 1, rng=rng)), id=str(model.task))
    embeddings = rng.normal(size=(70, 128)).astype(np.float32)
    yield pytest.param(GymEnv(embedding_env([5, 65], 1), embeddings), id="embeddings")


@pytest.mark.filterwarnings("ignore:.*(infinity|spec|symmetric).*")  # of embeddings, of no register, in metres a second
@pytest.mark.parametrize("env", [*gym_envs()])
def test_gymnasiums_checker_passes(env):
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("env", [*gym_envs()])
def test_an_episode_through_gymnasium_counts_its_outcomes(env):
    env.reset(seed=3)
    attempts, truncated = [0.0], False
    while not truncated:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        assert not terminated, "a time limit does not terminate"
        attempts.append(info["attempts"])
        assert 0 <= info["errors"] <= info["attempts"]
    assert (np.diff(attempts) >= 0).all()
    assert len(attempts) - 1 in (5, 60)


def test_gymnasium_observes_the_embedding_of_the_row():
    embeddings = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    env = GymEnv(embedding_env([3], 1), embeddings)
    np.testing.assert_array_equal(env.reset(seed=0)[0], embeddings[0])
    np.testing.assert_array_equal(env.step(np.array([0.5, 0.5]))[0], embeddings[1])
