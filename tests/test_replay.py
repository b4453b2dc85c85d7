import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from pipeline.rl.replay import Batch, ReplayBuffer, SumTree

priorities = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=70).filter(any)


def transitions(rewards):
    """Distinguishable transitions: number i has observation i, action (i/100, 1 − i/100) and next observation i + 1."""
    rewards = np.asarray(rewards, np.float32)
    return Batch(
        rewards.astype(np.int64),
        np.stack([rewards / 100, 1 - rewards / 100], 1),
        rewards,
        np.ones_like(rewards),
        rewards.astype(np.int64) + 1,
    )


def buffer_of(count, capacity=None, novelty=None, td_error=None):
    buffer = ReplayBuffer(capacity or count, (), np.int64, num_actions=2, priority_exponent=0.6)
    buffer.add(transitions(np.arange(count)), np.ones(count) if novelty is None else np.asarray(novelty))
    if td_error is not None:
        buffer.update_priorities(np.arange(count), np.asarray(td_error))
    return buffer


def frequencies(buffer, draws=400, batch_size=500):
    rng = np.random.default_rng(0)
    slots = np.concatenate([buffer.sample(batch_size, rng)[1] for _ in range(draws)])
    return np.bincount(slots, minlength=buffer.capacity) / len(slots)


# The tree, by hand and against numpy


def test_masses_fall_into_their_leaves():
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, 2.0, 0.0, 3.0]))
    assert tree.total == 6
    np.testing.assert_array_equal(tree.find(np.array([0.0, 0.99, 1.0, 2.99, 3.0, 5.99])), [0, 0, 1, 1, 3, 3])


@given(priorities, st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=50))
def test_find_is_a_search_in_the_cumulative_sum(values, shares):
    values, shares = np.array(values), np.array(shares)
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), values)
    assert tree.total == pytest.approx(values.sum())
    masses = shares * tree.total
    found = tree.find(masses)
    assert (values[found] > 0).all(), "a priority of zero was drawn"
    upper = np.cumsum(values)[found]
    rounding = 1e-9 * values.sum()
    assert (masses <= upper + rounding).all()
    assert (masses >= upper - values[found] - rounding).all()


@given(priorities)
def test_the_whole_total_still_falls_into_a_leaf_that_has_priority(values):
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), np.array(values))
    (leaf,) = tree.find(np.array([tree.total]))
    assert values[leaf] > 0


@given(st.integers(1, 70), st.data())
def test_writes_in_any_order_with_repeats_leave_the_sums_right(capacity, data):
    tree, expected = SumTree(capacity), np.zeros(capacity)
    for _ in range(3):
        writes = data.draw(
            st.lists(st.tuples(st.integers(0, capacity - 1), st.floats(0, 100)), min_size=1, max_size=30)
        )
        slots, values = (np.array(column) for column in zip(*writes, strict=True))
        tree.set(slots, values)
        for slot, value in writes:
            expected[slot] = value  # the last write of a repeated slot counts
    np.testing.assert_array_equal(tree.get(np.arange(capacity)), expected)
    assert tree.total == pytest.approx(expected.sum())
    inner = np.arange(1, 1 << tree.depth)
    np.testing.assert_allclose(tree._nodes[inner], tree._nodes[2 * inner] + tree._nodes[2 * inner + 1])


# Sampling


def test_sampling_frequency_is_proportional_to_td_error_to_the_power_and_novelty():
    td_error, novelty = np.array([0.1, 1.0, 2.0, 5.0, 0.5]), np.array([1.0, 0.5, 2.0, 1.0, 3.0])
    buffer = buffer_of(5, novelty=novelty, td_error=td_error)
    expected = td_error**0.6 * novelty
    np.testing.assert_allclose(frequencies(buffer), expected / expected.sum(), atol=0.005)


def test_twice_the_novelty_is_drawn_twice_as_often():
    often = frequencies(buffer_of(4, novelty=[1, 2, 1, 4]))
    np.testing.assert_allclose(often, np.array([1, 2, 1, 4]) / 8, atol=0.005)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 7, 8, 9, 100])
def test_equal_priorities_are_drawn_evenly_at_any_capacity(capacity):
    buffer = buffer_of(capacity)
    np.testing.assert_allclose(frequencies(buffer), 1 / capacity, atol=0.01)


def test_a_half_full_buffer_never_yields_an_empty_slot():
    often = frequencies(buffer_of(5, capacity=12))
    assert not often[5:].any()


def test_one_draw_from_each_stratum():
    """Eight equal priorities and eight draws: stratified sampling takes each exactly once."""
    _, slots, _, _ = buffer_of(8).sample(8, np.random.default_rng(3))
    np.testing.assert_array_equal(np.sort(slots), np.arange(8))


def test_importance_weights_undo_the_prioritisation():
    rng = np.random.default_rng(0)
    td_error = rng.exponential(size=50) + 0.05
    buffer = buffer_of(50, td_error=td_error)
    value = np.sin(np.arange(50)) + 0.2 * td_error  # related to the priority, so that a bias would show
    weighted, plain = [], []
    for _ in range(300):
        _, slots, importance, _ = buffer.sample(512, rng)
        assert importance.mean() == pytest.approx(1, abs=1e-5)
        weighted.append((importance * value[slots]).mean())
        plain.append(value[slots].mean())
    assert np.mean(weighted) == pytest.approx(value.mean(), abs=0.01)
    assert abs(np.mean(plain) - value.mean()) > 0.05, "the unweighted mean should be biased here"


def test_importance_times_novelty_is_the_novelty_weighted_mean():
    rng = np.random.default_rng(0)
    novelty, value = rng.uniform(0.5, 3, 40), np.cos(np.arange(40))
    buffer = buffer_of(40, novelty=novelty, td_error=rng.exponential(size=40))
    sums = np.zeros(2)
    for _ in range(300):
        _, slots, importance, weight = buffer.sample(512, rng)
        np.testing.assert_allclose(weight, novelty[slots], rtol=1e-6)
        sums += (importance * weight * value[slots]).sum(), (importance * weight).sum()
    assert sums[0] / sums[1] == pytest.approx((novelty * value).sum() / novelty.sum(), abs=0.01)


def test_same_generator_same_batch():
    buffer = buffer_of(20, td_error=np.arange(20))
    one, other = (buffer.sample(16, np.random.default_rng(7)) for _ in range(2))
    for a, b in zip([*one[0], *one[1:]], [*other[0], *other[1:]], strict=True):
        np.testing.assert_array_equal(a, b)


# The ring


def test_samples_equal_the_added_transitions():
    batch, slots, _, _ = buffer_of(30, capacity=40).sample(64, np.random.default_rng(0))
    for got, put in zip(batch, transitions(slots), strict=True):
        np.testing.assert_allclose(got, put)


def test_the_oldest_are_overwritten_across_the_end_of_the_ring():
    buffer = ReplayBuffer(5, (), np.int64, num_actions=2, priority_exponent=0.6)
    for start in (0, 3, 6):
        buffer.add(transitions(np.arange(start, start + 3)), np.ones(3))
    assert buffer.size == 5
    batch, *_ = buffer.sample(200, np.random.default_rng(0))
    assert set(batch.observations.tolist()) == {4, 5, 6, 7, 8}


@given(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_a_ring_has_the_last_transitions_for_any_batches(capacity, counts):
    buffer, seen = ReplayBuffer(capacity, (), np.int64, num_actions=2, priority_exponent=0.6), 0
    for count in counts:
        count = min(count, capacity)
        buffer.add(transitions(np.arange(seen, seen + count)), np.ones(count))
        seen += count
    assert buffer.size == min(seen, capacity)
    batch, *_ = buffer.sample(20 * capacity, np.random.default_rng(0))
    assert set(batch.observations.tolist()) == set(range(seen - buffer.size, seen))


def test_capacity_one_keeps_the_last():
    buffer = ReplayBuffer(1, (3,), np.float32, num_actions=2, priority_exponent=0.6)
    for reward in (1.0, 2.0):
        buffer.add(Batch(*(np.full(s, reward) for s in ((1, 3), (1, 2), 1, 1, (1, 3)))), np.ones(1))
        buffer.update_priorities(np.array([0]), np.array([0.0]))
    batch, slots, importance, _ = buffer.sample(4, np.random.default_rng(0))
    np.testing.assert_array_equal(batch.observations, np.full((4, 3), 2.0))
    np.testing.assert_array_equal(slots, 0)
    np.testing.assert_array_equal(importance, 1)


def test_more_environments_than_capacity_is_an_error_that_names_the_flag():
    with raises("buffer-too-small") as caught:
        buffer_of(5, capacity=4)
    assert "--buffer-size" in str(caught.value)


def test_weights_of_zero_throughout_are_an_error_and_not_nan():
    with raises("weights-all-zero"):
        buffer_of(3, novelty=[0, 0, 0]).sample(2, np.random.default_rng(0))


def test_a_weight_of_zero_is_never_drawn():
    assert frequencies(buffer_of(3, novelty=[1, 0, 1]))[1] == 0


# Priorities


def test_a_new_transition_has_the_highest_priority_so_far():
    buffer = buffer_of(3, capacity=4, td_error=[0.5, 32.0, 1.0])
    buffer.add(transitions([3]), np.array([2.0]))
    np.testing.assert_allclose(buffer._tree.get(np.arange(4)), [0.5**0.6, 8.0, 1.0, 16.0])  # 32^0.6 = 8


def test_zero_td_error_keeps_a_priority_and_the_sign_does_not_matter():
    buffer = buffer_of(2, td_error=[0.0, -1.0])
    np.testing.assert_allclose(buffer._tree.get(np.arange(2)), [1e-3**0.6, 1.0])


def test_repeated_slots_leave_consistent_sums():
    buffer = buffer_of(6)
    buffer.update_priorities(np.array([2, 2, 5, 2]), np.array([1.0, 9.0, 4.0, 32.0]))
    leaves = buffer._tree.get(np.arange(6))
    np.testing.assert_allclose(leaves, [1, 1, 8, 1, 1, 4**0.6])
    assert buffer._tree.total == pytest.approx(leaves.sum())


def test_novelty_survives_a_priority_update():
    buffer = buffer_of(2, novelty=[1.0, 3.0], td_error=[1.0, 1.0])
    np.testing.assert_allclose(buffer._tree.get(np.arange(2)), [1.0, 3.0])


def test_a_resumed_buffer_samples_like_an_uninterrupted_one(tmp_path):
    whole = buffer_of(6, capacity=8, novelty=np.arange(1, 7), td_error=np.arange(6.0))
    resumed = ReplayBuffer(8, (), np.int64, num_actions=2, priority_exponent=0.6)
    resumed.load_state_dict(whole.state_dict())
    for buffer in (whole, resumed):
        buffer.add(transitions(np.arange(6, 10)), np.ones(4))  # across the end of the ring
    assert resumed.size == 8
    one, other = (buffer.sample(64, np.random.default_rng(0)) for buffer in (whole, resumed))
    for ours, theirs in zip([*one[0], *one[1:]], [*other[0], *other[1:]], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_actions", [1, 3])
def test_any_number_of_actions_is_kept(num_actions):
    buffer = ReplayBuffer(2, (), np.int64, num_actions=num_actions, priority_exponent=0.6)
    actions = np.arange(2.0 * num_actions).reshape(2, num_actions) - 7.5
    buffer.add(Batch(np.arange(2), actions, np.zeros(2), np.ones(2), np.arange(2)), np.ones(2))
    batch, slots, *_ = buffer.sample(8, np.random.default_rng(0))
    np.testing.assert_array_equal(batch.actions, actions[slots])
