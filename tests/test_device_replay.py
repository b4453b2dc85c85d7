import math

import numpy as np
import pytest
import torch
from raising import raises

from pipeline.rl.device_replay import UNITS, DeviceReplay
from pipeline.rl.replay import Batch, ReplayBuffer

CPU = torch.device("cpu")


def filled(capacity, count, *, priority_exponent=0.6, seed=0, device=CPU):
    """Both replays with the same transitions, novelty and priorities."""
    rng = np.random.default_rng(seed)
    settings = {"num_actions": 2, "priority_exponent": priority_exponent}
    on_host = ReplayBuffer(capacity, (), np.int64, **settings)
    on_device = DeviceReplay(capacity, (), np.int64, **settings, device=device)
    for start in range(0, count, 5):
        rows = np.arange(start, start + 5)
        batch = Batch(rows, rng.random((5, 2), np.float32), rng.random(5), np.ones(5), rows + 1)
        novelty = rng.random(5).astype(np.float32)
        for replay in (on_host, on_device):
            replay.add(batch, novelty)
    slots, td_error = rng.permutation(min(capacity, count))[:20], rng.standard_normal(20).astype(np.float32)
    on_host.update_priorities(slots, td_error)
    on_device.update_priorities(torch.from_numpy(slots).to(device), torch.from_numpy(td_error).to(device))
    return on_host, on_device


class Fixed:
    """A generator that returns the given numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, count):
        return self.numbers[:count]


@pytest.mark.parametrize(("capacity", "count"), [(64, 40), (40, 40), (32, 100)])
def test_from_the_same_numbers_both_draw_the_same(capacity, count):
    on_host, on_device = filled(capacity, count)
    uniforms = np.random.default_rng(1).random(500)
    theirs, their_slots, their_importance, their_novelty = on_host.sample(500, Fixed(uniforms))
    ours, slots, importance, novelty = on_device.sample(torch.from_numpy(uniforms))
    assert (slots.numpy() == their_slots).mean() > 0.99  # priorities are rounded up to whole units
    same = slots.numpy() == their_slots
    np.testing.assert_allclose(importance.numpy()[same], their_importance[same], rtol=1e-4)
    np.testing.assert_array_equal(novelty.numpy()[same], their_novelty[same])
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(ours, name).numpy()[same], getattr(theirs, name)[same])


def test_draws_follow_the_priorities_and_weights_undo_them():
    replay = DeviceReplay(8, (), np.int64, num_actions=1, priority_exponent=1.0, device=CPU)
    rows = np.arange(4)
    replay.add(Batch(rows, np.zeros((4, 1)), rows, np.ones(4), rows), np.array([1.0, 1.0, 0.0, 2.0]))
    replay.update_priorities(torch.arange(4), torch.tensor([1.0, 3.0, 9.0, 2.0]))  # priorities 1, 3, 0, 4
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(80_000, generator=generator, dtype=torch.float64)
    _, slots, importance, _ = replay.sample(uniforms)
    shares = np.bincount(slots.numpy(), minlength=4) / len(slots)
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 0, 4 / 8], atol=1e-4)
    of_slot = [float(importance[slots == slot][0]) for slot in (0, 1, 3)]
    np.testing.assert_allclose(np.array(of_slot) / of_slot[0], [1, 1 / 3, 1 / 4], rtol=1e-5)
    assert float(importance.mean()) == pytest.approx(1)


def test_of_a_transition_that_a_batch_has_twice_the_greater_error_counts():
    replay = DeviceReplay(4, (), np.int64, num_actions=1, priority_exponent=1.0, device=CPU)
    rows = np.arange(2)
    replay.add(Batch(rows, np.zeros((2, 1)), rows, np.ones(2), rows), np.ones(2))
    replay.update_priorities(torch.tensor([1, 0, 1]), torch.tensor([0.25, 0.5, 0.125]))
    np.testing.assert_allclose(replay.state_dict()["priorities"], [0.5, 0.25], atol=1 / UNITS)


def test_a_run_continues_from_the_state_of_the_other():
    on_host, on_device = filled(32, 60)
    back = DeviceReplay(32, (), np.int64, num_actions=2, priority_exponent=0.6, device=CPU)
    back.load_state_dict(on_host.state_dict())
    again = ReplayBuffer(32, (), np.int64, num_actions=2, priority_exponent=0.6)
    again.load_state_dict(on_device.state_dict())
    ours, theirs = back.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1.01 / UNITS, err_msg=name)
    uniforms = torch.rand(100, dtype=torch.float64)
    back.load_state_dict(on_device.state_dict())
    for one, other in zip(back.sample(uniforms)[1:], on_device.sample(uniforms)[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_without_any_weight_nothing_can_be_drawn():
    replay = DeviceReplay(4, (), np.int64, num_actions=1, priority_exponent=1.0, device=CPU)
    rows = np.arange(2)
    batch = Batch(rows, np.zeros((2, 1)), rows, np.ones(2), rows)
    replay.add(batch, np.zeros(2))
    with raises("weights-all-zero"):
        replay.check()
    replay.add(batch, np.ones(2))
    replay.check()
    replay.add(batch, np.zeros(2))
    replay.add(batch, np.zeros(2))  # over those that had weights
    with raises("weights-all-zero"):
        replay.check()
    with raises("buffer-too-small"):
        replay.add(Batch(*(np.zeros(5) for _ in Batch._fields)), np.ones(5))


def test_errors_that_are_not_finite_lead_no_draw_out_of_the_replay():
    """Losses are read later, and end the training."""
    replay = DeviceReplay(5, (), np.int64, num_actions=1, priority_exponent=1.0, device=CPU)
    rows = np.arange(5)
    replay.add(Batch(rows, np.zeros((5, 1)), rows, np.ones(5), rows), np.ones(5))
    for errors in ([math.nan] * 5, [math.inf] * 5, [math.nan, math.inf, 1.0, 0.0, math.nan]):
        replay.update_priorities(torch.arange(5), torch.tensor(errors))
        assert (replay.state_dict()["priorities"] >= 0).all()
        _, slots, _, _ = replay.sample(torch.rand(64, dtype=torch.float64))
        assert int(slots.min()) >= 0 and int(slots.max()) < 5


def test_a_state_replaces_all_that_was_there():
    replay = DeviceReplay(4, (), np.int64, num_actions=1, priority_exponent=1.0, device=CPU)
    rows = np.arange(2)
    batch = Batch(rows, np.zeros((2, 1)), rows, np.ones(2), rows)
    replay.add(batch, np.zeros(2))
    state = replay.state_dict() | {"novelty": np.zeros(2, np.float32)}
    replay.add(batch, np.ones(2))
    replay.check()
    replay.load_state_dict(state)
    with raises("weights-all-zero"):
        replay.check()


def test_drawing_and_priorities_wait_for_nothing():
    """Tensors on the meta device have no values, so reading one is an error."""
    replay = DeviceReplay(64, (4,), np.float32, num_actions=2, priority_exponent=0.6, device=torch.device("meta"))
    replay.add(Batch(np.zeros((8, 4)), np.zeros((8, 2)), np.zeros(8), np.ones(8), np.zeros((8, 4))), np.ones(8))
    batch, slots, importance, _ = replay.sample(torch.empty(16, dtype=torch.float64, device="meta"))
    assert batch.observations.shape == (16, 4)
    assert slots.device.type == importance.device.type == "meta"
    replay.update_priorities(slots, importance)


@pytest.mark.gpu
def test_on_a_gpu_it_draws_what_it_draws_on_a_processor():
    device = torch.device("cuda")
    _, on_device = filled(64, 100, device=device)
    _, on_processor = filled(64, 100)
    uniforms = torch.rand(500, dtype=torch.float64)
    for one, other in zip(on_device.sample(uniforms.to(device))[1:], on_processor.sample(uniforms)[1:], strict=True):
        torch.testing.assert_close(one.cpu(), other)
