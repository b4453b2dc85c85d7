import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from pipeline import econ
from pipeline.errors import VtpError
from pipeline.rl.envs import EmbeddingEnv, GymEnv, SimEnv, Workplace, expected_work, value_work
from pipeline.synthetic import dynamics

SEED = dynamics.scenario()
MIXED = dynamics.scenario("dishwashing", "mixed")
BRICKS = dynamics.scenario("bricklaying", "mixed")
PAN, PLATE, GLASS, MUG = range(4)


def embedding_env(lengths, num_envs=4, *, scenario=MIXED, seed=0, **settings):
    """Videos of these many clips one after another, whose contexts go round."""
    ends = np.cumsum(lengths)
    videos = np.stack([ends - lengths, ends], 1)
    context = np.arange(ends[-1]) % len(scenario.contexts)
    rng = np.random.default_rng(seed)
    return EmbeddingEnv(scenario, num_envs, videos=videos, context=context, rng=rng, **settings)


def half(num_envs):
    return np.full((num_envs, 2), 0.5, np.float32)


def with_outcomes(monkeypatch, attempts, errors):
    """From now on each step has these outcomes [N]."""
    monkeypatch.setattr(dynamics, "sample_outcomes", lambda rate, p_err, rng: (np.array(attempts), np.array(errors)))


# Prices by hand


def test_one_context_is_priced_by_the_seeds_formula():
    work = value_work(SEED, np.array([[111.0]]), np.array([[2.0]]), np.array([1.0]))
    assert [round(float(field[0]), 3) for field in work] == [109, 0.018, 30.736, 30.636]


def test_contexts_are_priced_each_at_its_own_rates_and_added():
    attempts, errors = np.array([[20.0, 10.0, 0.0, 30.0]]), np.array([[0.0, 1.0, 0.0, 3.0]])
    work = value_work(MIXED, attempts, errors, np.array([0.5]))
    wage = 40 * 0.30 + 18 * (0.30 - 1.00 * 0.1) + 54 * (0.30 - 0.50 * 0.1)
    assert work.implied_wage == pytest.approx(wage)
    assert work.profit == pytest.approx(wage - 0.10)
    assert work.mp == pytest.approx(112)
    assert work.err_rate == pytest.approx(4 / 60)


def test_an_episode_that_has_not_begun_is_worth_no_more_than_its_energy():
    work = value_work(MIXED, np.zeros((1, 4)), np.zeros((1, 4)), np.zeros(1))
    assert [float(field[0]) for field in work] == [0, 0, 0, -0.10]


@pytest.mark.parametrize("scenario", [SEED, MIXED, BRICKS], ids=["seed", "mixed", "bricks"])
def test_expected_work_is_the_mean_of_sampled_steps(scenario):
    rng = np.random.default_rng(0)
    for k in range(len(scenario.contexts)):
        context = np.full(100_000, k)
        workplace = Workplace(scenario, len(context), reward_window="step", rng=rng)
        rewards = workplace.work(context, np.full((len(context), 2), (0.8, 0.3)))
        attempts, errors = workplace.outcomes
        attempts_per_hour, err_rate, profit = expected_work(scenario, np.array([k]), np.array([0.8]), np.array([0.3]))
        assert 60 * attempts.mean() == pytest.approx(attempts_per_hour[0], rel=0.01)
        assert errors.sum() / attempts.sum() == pytest.approx(err_rate[0], rel=0.05, abs=5e-4)
        # What a step pays is linear in its errors; the seed's formula squares the error rate of good units.
        damage = scenario.contexts[k].damage_usd
        linear = profit[0] - damage * attempts_per_hour[0] * err_rate[0] ** 2
        sampled = rewards * scenario.human_wage_usd
        assert sampled.mean() == pytest.approx(linear, abs=5 * sampled.std() / np.sqrt(len(sampled)))


def test_expected_work_is_the_mean_of_sampled_hours():
    rng = np.random.default_rng(0)
    rate, p_err = dynamics.dynamics(SEED, 0, 1.0, 0.5)
    attempts, errors = (x.sum(1)[:, None] for x in dynamics.sample_outcomes(rate, p_err, rng, (5_000, 60)))
    sampled = value_work(SEED, attempts, errors, np.ones(5_000)).profit
    _, _, profit = expected_work(SEED, np.array([0]), np.array([1.0]), np.array([0.5]))
    assert sampled.mean() == pytest.approx(profit[0], abs=5 * sampled.std() / np.sqrt(5_000) + 0.05)


# Rewards by hand


def test_step_reward_charges_every_error_of_the_step_in_full(monkeypatch):
    with_outcomes(monkeypatch, [2, 3], [1, 0])
    workplace = Workplace(MIXED, 2, reward_window="step", rng=np.random.default_rng(0))
    workplace.lambda_dual, workplace.err_target = 2.0, 0.06
    rewards = workplace.work(np.array([GLASS, PAN]), half(2))
    glass = (60 * (0.45 * 1 - 4.00 * 1) - 0.10) / 18 - 2.0 * (0.5 - 0.06)
    pan = (60 * 0.30 * 3 - 0.10) / 18 + 2.0 * 0.06
    np.testing.assert_allclose(rewards, [glass, pan])


def test_episode_reward_is_the_lagrangian_of_the_rates_to_date(monkeypatch):
    workplace = Workplace(SEED, 1, reward_window="episode", rng=np.random.default_rng(0))
    workplace.lambda_dual, workplace.err_target = 0.5, 0.08
    with_outcomes(monkeypatch, [2], [1])
    workplace.work(np.array([0]), half(1))
    with_outcomes(monkeypatch, [3], [0])
    (reward,) = workplace.work(np.array([0]), half(1))
    mp, err_rate = 4 / (2 / 60), 1 / 5
    profit = econ.profit(econ.implied_wage(mp, err_rate, 0.30, 1.00), 0.10)
    assert reward == pytest.approx(profit / 18 - 0.5 * (0.2 - 0.08))


@pytest.mark.parametrize("window", ["step", "episode"])
def test_on_the_first_step_without_error_both_windows_agree(monkeypatch, window):
    with_outcomes(monkeypatch, [3], [0])
    workplace = Workplace(SEED, 1, reward_window=window, rng=np.random.default_rng(0))
    assert workplace.work(np.array([0]), half(1)) == pytest.approx((180 * 0.30 - 0.10) / 18)


@pytest.mark.parametrize("action", [(-0.01, 0.5), (0.5, 1.01), (np.nan, 0.5), (0.5, np.inf)])
def test_an_action_outside_the_unit_square_is_an_error_and_no_work(action):
    env = SimEnv(SEED, 2, rng=np.random.default_rng(0))
    env.reset()
    with pytest.raises(VtpError, match=r"outside \[0, 1\].*scale speed and care"):
        env.step(np.array([(0.5, 0.5), action]))
    assert not env.workplace.steps.any()


# The simulator's environment


@given(st.sampled_from([SEED, MIXED, BRICKS]), st.integers(1, 5), st.integers(1, 60), st.integers(0, 1000))
def test_the_books_are_the_sum_of_the_outcomes_by_context(scenario, num_envs, num_steps, seed):
    rng = np.random.default_rng(seed)
    env = SimEnv(scenario, num_envs, rng=rng)
    env.reset()
    expected = np.zeros((2, num_envs, len(scenario.contexts)))
    for _ in range(num_steps):
        worked_on = env.context.copy()
        env.step(rng.random((num_envs, 2)))
        for i in range(num_envs):
            expected[:, i, worked_on[i]] += np.array(env.workplace.outcomes)[:, i]
    np.testing.assert_array_equal(env.workplace.attempts, expected[0])
    np.testing.assert_array_equal(env.workplace.errors, expected[1])
    np.testing.assert_array_equal(env.workplace.steps, num_steps)


def test_an_hour_is_truncated_at_its_last_step_and_not_before():
    env = SimEnv(MIXED, 3, rng=np.random.default_rng(0))
    env.reset()
    assert [bool(env.step(half(3))[2].any()) for _ in range(60)] == [False] * 59 + [True]
    assert env.step(half(3))[2].all()


def test_only_the_environments_asked_for_start_again():
    env = SimEnv(MIXED, 3, rng=np.random.default_rng(0))
    env.reset()
    for _ in range(5):
        env.step(half(3))
    kept = env.context.copy()
    observations = env.reset(np.array([True, False, True]))
    np.testing.assert_array_equal(env.workplace.steps, [0, 5, 0])
    np.testing.assert_array_equal(env.workplace.attempts.sum(1) > 0, [False, True, False])
    assert env.context[1] == kept[1]
    assert observations[0, 0] == 0
    assert observations[1, 0] == pytest.approx(5 / 60)


def test_observations_by_hand(monkeypatch):
    env = SimEnv(MIXED, 1, rng=np.random.default_rng(0))
    env.reset()
    with_outcomes(monkeypatch, [4], [1])
    monkeypatch.setattr(dynamics, "next_context", lambda scenario, context, rng: np.array([GLASS]))
    env.step(half(1))
    observations, *_ = env.step(half(1))
    # 2 of 60 steps; third of four contexts; 4 attempts a step against twice the fastest 3.0; 2 errors of 8
    np.testing.assert_allclose(observations, [[2 / 60, 2 / 3, 4 / 6, 0.25]], rtol=1e-6)
    assert observations.dtype == np.float32


@pytest.mark.parametrize("scenario", [SEED, MIXED, BRICKS], ids=["seed", "mixed", "bricks"])
def test_observations_stay_in_the_unit_cube(scenario):
    rng = np.random.default_rng(0)
    env = SimEnv(scenario, 50, rng=rng)
    seen = [env.reset(), *(env.step(rng.random((50, 2)))[0] for _ in range(60))]
    assert np.min(seen) >= 0
    assert np.max(seen) <= 1


@pytest.mark.parametrize("make", [lambda seed: SimEnv(MIXED, 3, rng=np.random.default_rng(seed)),
                                  lambda seed: embedding_env([5, 80, 1], 3, seed=seed)])  # fmt: skip
def test_same_seed_same_trajectory_and_another_seed_another(make):
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


# The embeddings' environment


def test_an_episode_plays_one_videos_clips_in_order_to_its_last():
    env = embedding_env([3, 5], 20)
    rows = env.reset()
    np.testing.assert_array_equal(np.unique(rows), [0, 3])
    lengths = np.where(rows == 0, 3, 5)
    for played in range(1, 6):
        following, _, truncated = env.step(half(20))
        np.testing.assert_array_equal(truncated, played >= lengths)
        # after the last clip nothing is known, and the last stands for what follows
        np.testing.assert_array_equal(following, rows + np.minimum(played, lengths - 1))


def test_the_context_of_the_clip_that_is_seen_is_what_is_worked_on():
    env = embedding_env([8], 1)
    env.reset()
    for k in (PAN, PLATE, GLASS, MUG):
        env.step(half(1))
        assert (env.workplace.attempts[0] > 0).tolist() == [j <= k for j in range(4)]


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


def test_videos_are_played_equally_often_however_long():
    starts = embedding_env([2, 50], 4_000).reset()
    assert (starts == 0).mean() == pytest.approx(0.5, abs=0.03)


def test_only_the_episodes_that_ended_start_again():
    env = embedding_env([4], 2)
    env.reset()
    env.step(half(2))
    np.testing.assert_array_equal(env.reset(np.array([True, False])), [0, 1])
    np.testing.assert_array_equal(env.workplace.steps, [0, 1])


@pytest.mark.parametrize("videos", [np.zeros((0, 2), int), np.array([[0, 3], [3, 3]])])
def test_nothing_to_play_is_an_error(videos):
    with pytest.raises(VtpError, match="no clip to play"):
        EmbeddingEnv(SEED, 1, videos=videos, context=np.zeros(3, int), rng=np.random.default_rng(0))


# Through Gymnasium


def gym_envs():
    """Fresh environments, one a kind."""
    rng = np.random.default_rng(0)
    for scenario in (SEED, MIXED, BRICKS):
        yield pytest.param(GymEnv(SimEnv(scenario, 1, rng=rng)), id=f"{scenario.task}-{scenario.name}")
    embeddings = rng.normal(size=(70, 128)).astype(np.float32)
    yield pytest.param(GymEnv(embedding_env([5, 65], 1), embeddings), id="embeddings")


@pytest.mark.filterwarnings("ignore:.*(infinity|spec).*")  # embeddings have no bounds; the env is not registered
@pytest.mark.parametrize("env", [*gym_envs()])
def test_gymnasiums_own_checker_is_content(env):
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("env", [*gym_envs()])
def test_one_episode_through_gymnasium_counts_what_it_did(env):
    env.reset(seed=3)
    attempts, truncated = [0.0], False
    while not truncated:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        assert not terminated, "a time limit is no end"
        attempts.append(info["attempts"])
        assert 0 <= info["errors"] <= info["attempts"]
    assert (np.diff(attempts) >= 1).all(), "every step has at least one attempt"
    assert len(attempts) - 1 in (5, 60)


def test_gymnasium_observes_the_embedding_of_the_row():
    embeddings = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    env = GymEnv(embedding_env([3], 1), embeddings)
    np.testing.assert_array_equal(env.reset(seed=0)[0], embeddings[0])
    np.testing.assert_array_equal(env.step(np.array([0.5, 0.5]))[0], embeddings[1])
