import numpy as np
import pytest
from raising import raises
from worlds import DISHES, PLATES

from pipeline import stats
from pipeline.outcomes import LoggedSteps, Targets, estimate_off_policy
from pipeline.outcomes.off_policy import bandwidth_of

VIDEOS, STEPS = 30, 20


def logs_of(draw, *, videos=VIDEOS, task=PLATES, seed=0, propensity=None):
    """Steps with actions in the unit box chosen by `draw`, a function of a generator and a number."""
    rng = np.random.default_rng(seed)
    n = videos * STEPS
    unit = draw(rng, n)
    context = rng.integers(len(task.contexts), size=n)
    zeros = np.zeros(n)
    return LoggedSteps(
        np.arange(n), context, task.from_unit(unit), 1.0 + np.arange(n) % 5, zeros, np.repeat(np.arange(videos), STEPS),
        None if propensity is None else np.full(n, propensity),
    )  # fmt: skip


def uniform(rng, n):
    return rng.random((n, 2))


def surface(actions):
    """A known value, best at the corner (1, 1): 10 + 8 speed + 6 care."""
    return 10 + 8 * actions[..., 0] + 6 * actions[..., 1]


def at(steps, *action, expected=None):
    """The policy that always chooses this action; the model expects the given values, or the true ones."""
    actions = np.tile(np.array(action, float), (steps.num_steps, 1))
    return Targets(actions, surface(actions) if expected is None else np.full(steps.num_steps, float(expected)))


def noisy(steps, deviation=1.0, seed=1):
    return surface(steps.actions) + deviation * np.random.default_rng(seed).standard_normal(steps.num_steps)


# By hand


def test_a_perfect_model_without_noise_gives_the_change_itself():
    """Residuals are 0, so only the mean of m(t) − m(a) is left."""
    steps = logs_of(uniform)
    value = surface(steps.actions)
    result = estimate_off_policy(PLATES, steps, value, value, at(steps, 1.0, 1.0))
    assert result.change.usd_per_hour.value == pytest.approx(24 - value.mean())
    assert result.doubly_robust.value == pytest.approx(24)
    assert result.direct.value == pytest.approx(24)
    assert result.change.verdict == "better" and "$" in result.change.reason and not result.change.advice


def test_a_worse_policy_is_reported_with_a_minus_before_the_dollar():
    steps = logs_of(uniform)
    change = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), at(steps, 0.0, 0.0)).change
    assert change.verdict == "worse" and "-$7." in change.reason


def test_a_change_within_noise_is_not_distinguishable_and_asks_for_more_videos():
    steps = logs_of(uniform)
    value = noisy(steps, 50.0)
    change = estimate_off_policy(PLATES, steps, value, surface(steps.actions), at(steps, 0.6, 0.5)).change
    assert change.verdict == "not distinguishable" and "videos" in change.advice


def test_a_perfect_model_is_exact_in_expectation():
    errors = []
    for seed in range(30):
        steps = logs_of(uniform, videos=10, seed=seed)
        value = noisy(steps, 5.0, seed)
        result = estimate_off_policy(PLATES, steps, value, surface(steps.actions), at(steps, 1.0, 0.0))
        errors.append(result.doubly_robust.value - 18)
    low, high = stats.interval95(np.array(errors))
    assert low < 0 < high and high - low < 1.5


def test_the_logged_estimate_is_the_mean_of_the_logs():
    steps = logs_of(uniform)
    value = noisy(steps)
    result = estimate_off_policy(PLATES, steps, value, value, at(steps, 0.5, 0.5))
    assert result.logged.value == pytest.approx(value.mean())
    assert result.logged.low < value.mean() < result.logged.high


def test_weighting_recovers_the_worth_at_a_corner():
    """For uniform logs without a model; the remaining bias is the kernel's width, 0.8 bandwidths of each slope."""
    steps = logs_of(uniform, videos=150)
    value = noisy(steps)
    result = estimate_off_policy(PLATES, steps, value, np.zeros(steps.num_steps), at(steps, 1.0, 1.0, expected=0.0))
    smoothed = 24 - np.sqrt(2 / np.pi) * (result.bandwidth @ [8, 6])
    assert result.weighted.value == pytest.approx(smoothed, abs=0.5)
    assert result.doubly_robust.value == pytest.approx(result.weighted.value), "a model that knows nothing adds nothing"


def test_logged_propensities_of_uniform_logs_give_the_same():
    steps = logs_of(uniform, videos=100)
    value = noisy(steps)
    model = np.full(steps.num_steps, value.mean())
    results = [
        estimate_off_policy(
            PLATES, steps._replace(propensity=propensity), value, model, at(steps, 0.9, 0.1, expected=0)
        )
        for propensity in (None, np.ones(steps.num_steps))
    ]
    assert [result.propensities for result in results] == ["estimated", "logged"]
    assert results[0].weighted.value == pytest.approx(results[1].weighted.value, abs=0.5)


def test_atoms_at_the_bounds_count():
    """Logs of clipped normals, half of them at the bound: the value at the bound is found, not that before it."""

    def cut(rng, n):
        return np.clip(rng.normal(1.0, 0.2, (n, 2)), 0, 1)

    steps = logs_of(cut, videos=100)
    value = surface(steps.actions)
    model = np.zeros(steps.num_steps)
    result = estimate_off_policy(PLATES, steps, value, model, at(steps, 1.0, 1.0, expected=0))
    assert result.weighted.value == pytest.approx(24, abs=0.5)
    assert result.overlap == pytest.approx(1)


# Intervals


def test_a_change_over_another_policy_is_paired():
    steps = logs_of(uniform, videos=60)
    value = noisy(steps, 20.0)
    policy, other = at(steps, 0.9, 0.9), at(steps, 0.88, 0.9)
    result = estimate_off_policy(PLATES, steps, value, surface(steps.actions), policy, compared=other)
    over_logs, over_other = result.change.usd_per_hour, result.change_over_compared.usd_per_hour
    assert over_other.value == pytest.approx(8 * 0.02, abs=1.5)
    assert over_other.high - over_other.low < 0.3 * (over_logs.high - over_logs.low), "alike policies share their luck"


def test_the_policy_that_is_not_identified_is_named():
    steps = logs_of(lambda rng, n: np.stack([0.3 * rng.random(n), rng.random(n)], 1))
    policy, other = at(steps, 0.15, 0.5), at(steps, 1.0, 0.5)
    result = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), policy, compared=other)
    assert result.change.cause is None
    assert "the other policy chooses speed near 1," in result.change_over_compared.reason
    back = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), other, compared=policy)
    assert "the policy chooses speed near 1," in back.change.reason == back.change_over_compared.reason


def test_a_policy_compared_with_itself_changes_nothing():
    steps = logs_of(uniform)
    policy = at(steps, 0.5, 0.5)
    result = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), policy, compared=policy)
    assert result.change_over_compared.usd_per_hour == (0, 0, 0)
    assert result.change_over_compared.verdict == "not distinguishable"


def test_dependent_steps_of_a_video_widen_the_interval():
    steps = logs_of(uniform)
    luck = np.random.default_rng(2).normal(0, 10, VIDEOS)[steps.video]
    value = surface(steps.actions) + luck

    def width(video):
        result = estimate_off_policy(
            PLATES, steps._replace(video=video), value, surface(steps.actions), at(steps, 0.8, 0.8)
        )
        return result.doubly_robust.high - result.doubly_robust.low

    assert width(steps.video) > 1.5 * width(np.arange(steps.num_steps))


def test_rare_expensive_errors_widen_the_interval_even_if_weights_miss_them():
    """All errors are far from the target, so its own steps look free of noise; the context's variance is not 0."""
    steps = logs_of(uniform)
    far = (steps.actions < 0.3).all(1)
    value = surface(steps.actions) - 240.0 * far
    result = estimate_off_policy(PLATES, steps, value, surface(steps.actions), at(steps, 1.0, 1.0))
    noise = (value - surface(steps.actions)).std()
    assert result.doubly_robust.high - result.doubly_robust.low > 3 * noise / np.sqrt(result.effective_steps)


def test_the_interval_covers_the_change_for_a_handful_of_videos():
    covered = 0
    for seed in range(60):
        steps = logs_of(uniform, videos=6, seed=seed)
        rng = np.random.default_rng(seed)
        value = surface(steps.actions) + rng.normal(0, 4, 6)[steps.video] + rng.normal(0, 4, steps.num_steps)
        targets = at(steps, 0.7, 0.6)
        change = estimate_off_policy(PLATES, steps, value, surface(steps.actions), targets).change.usd_per_hour
        covered += change.low <= surface(np.array([0.7, 0.6])) - 17 <= change.high
    assert covered >= 54


def test_hours_weight_steps():
    steps = logs_of(uniform)
    value = np.where(steps.video < 15, 10.0, 20.0)
    hours = np.where(steps.video < 15, 1.0, 3.0)
    result = estimate_off_policy(PLATES, steps, value, value, at(steps, 0.5, 0.5), hours=hours)
    assert result.logged.value == pytest.approx(17.5)


# What logs cannot tell


def verdict_of(steps, targets, *, task=PLATES, **settings):
    change = estimate_off_policy(task, steps, noisy(steps), surface(steps.actions), targets, **settings).change
    assert change.verdict == "not identified" and change.reason and change.advice
    return change


def test_deterministic_logs_identify_nothing():
    steps = logs_of(lambda rng, n: np.full((n, 2), 0.5))
    change = verdict_of(steps, at(steps, 0.5, 0.5))
    assert change.cause == "logs-deterministic" and "speed, care" in change.reason


def test_a_constant_choice_in_each_context_is_deterministic_too():
    steps = logs_of(uniform, task=DISHES)
    steps = steps._replace(actions=np.array([[0.1, 0.2], [0.9, 0.1], [0.5, 0.5], [0.3, 0.9]])[steps.context])
    assert verdict_of(steps, at(steps, 0.5, 0.5), task=DISHES).cause == "logs-deterministic"


def test_an_action_that_never_varies_is_identified_only_as_it_is():
    steps = logs_of(lambda rng, n: np.stack([rng.random(n), np.full(n, 0.4)], 1))
    assert verdict_of(steps, at(steps, 0.5, 0.8)).cause == "logs-deterministic"
    kept = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), at(steps, 1.0, 0.4))
    assert kept.change.verdict == "better"
    assert kept.change.usd_per_hour.value == pytest.approx(4, abs=1)


def test_no_overlap_names_the_action_to_log():
    steps = logs_of(lambda rng, n: np.stack([0.3 * rng.random(n), rng.random(n)], 1))
    change = verdict_of(steps, at(steps, 1.0, 0.5))
    assert change.cause == "no-overlap"
    assert "speed near 1" in change.advice


def test_no_overlap_in_one_context_of_four_is_enough():
    steps = logs_of(uniform, task=DISHES, videos=100)
    glass = steps.context == 2
    actions = steps.actions.copy()
    actions[glass, 1] = 0.9 + 0.1 * actions[glass, 1]
    steps = steps._replace(actions=actions)
    change = verdict_of(steps, at(steps, 0.5, 0.1), task=DISHES)
    assert change.cause == "no-overlap" and "glass" in change.reason


def test_few_videos_and_few_steps():
    steps = logs_of(uniform, videos=3)
    assert verdict_of(steps, at(steps, 0.5, 0.5)).cause == "few-videos"
    few = logs_of(uniform, videos=10)
    few = few.take(np.arange(few.num_steps) % STEPS == 0)
    assert verdict_of(few, at(few, 0.5, 0.5)).cause == "few-steps"


def test_propensities_of_another_unit_are_detected():
    steps = logs_of(uniform, propensity=0.01)
    assert verdict_of(steps, at(steps, 0.5, 0.5)).cause == "propensities-off"


def test_other_steps_inform_only_the_density():
    """Their outcomes are not used; a video that is in both is refused."""
    steps, others = logs_of(uniform), logs_of(uniform, seed=9)
    targets = at(steps, 1.0, 1.0)
    with raises("off-policy-same-video"):
        estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), targets, others=others)
    others = others._replace(video=others.video + VIDEOS)
    result = estimate_off_policy(PLATES, steps, noisy(steps), surface(steps.actions), targets, others=others)
    assert result.num_steps == steps.num_steps and result.change.verdict == "better"


@pytest.mark.parametrize("propensity", [0.0, np.inf])
def test_a_propensity_that_is_no_density_is_refused(propensity):
    steps = logs_of(uniform, propensity=1.0)
    steps.propensity[3] = propensity
    with raises("logs-bad-propensity"):
        estimate_off_policy(PLATES, steps, noisy(steps), noisy(steps), at(steps, 0.5, 0.5))


def test_numbers_that_do_not_fit_are_refused():
    steps = logs_of(uniform)
    value, targets = noisy(steps), at(steps, 0.5, 0.5)
    with raises("off-policy-bad-numbers"):
        estimate_off_policy(PLATES, steps, value[:-1], value, targets)
    with raises("off-policy-bad-numbers"):
        estimate_off_policy(PLATES, steps, value, np.where(value > 0, np.nan, value), targets)
    with raises("off-policy-bad-numbers"):
        estimate_off_policy(PLATES, steps, value, value, targets._replace(expected=value[:3]))
    with raises("off-policy-bad-hours"):
        estimate_off_policy(PLATES, steps, value, value, targets, hours=np.zeros(steps.num_steps))


# Bandwidths


def test_the_bandwidth_by_hand():
    """2 · 0.3 · 64^(−1/6) = 0.3 for two actions."""
    assert bandwidth_of(np.array([0.3, 0.1]), 64) == pytest.approx([0.3, 0.1])


def test_sensitivity_is_reported():
    steps = logs_of(uniform, videos=100)
    value = noisy(steps)
    model = np.zeros(steps.num_steps)
    result = estimate_off_policy(PLATES, steps, value, model, at(steps, 1.0, 1.0, expected=0))
    half, double = result.half_bandwidth, result.double_bandwidth
    assert half.value > result.change.usd_per_hour.value > double.value, "a model that knows nothing is biased by width"
    assert half.high - half.low > double.high - double.low
