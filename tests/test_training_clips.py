import numpy as np
import pytest
from raising import raises

from pipeline.policy import training_clips
from pipeline.policy.training_clips import TrainingClips


def line(*places):
    """Clips on a line; distances are divided by √2 times their standard deviation."""
    return np.array(places, np.float32)[:, None]


def filmed(rng, videos, clips=10, *, of_video=0.5, shift=0.0):
    """Clips [videos · clips, 8] of videos that differ from each other, and the video of each."""
    video = np.repeat(np.arange(videos), clips)
    centres = rng.normal(shift, of_video, (videos, 8))
    return (centres[video] + rng.normal(0, 1, (len(video), 8))).astype(np.float32), video


def test_novelty_by_hand(monkeypatch):
    """Videos at 0 and 1, 10 and 14: from each clip to the other video's nearest it is 10, 9, 9 and 13."""
    monkeypatch.setattr(training_clips, "NOVELTY_NEIGHBOUR", 1)
    clips = TrainingClips(line(0, 1, 10, 14), np.array([0, 0, 1, 1]))
    found = clips.nearest(line(0, 5, 19.5, 23.5, 50, -20))  # 0, 4, 5.5, 9.5, 36 and 20 from the nearest
    unit = np.sqrt(2 * np.var([0, 1, 10, 14]))
    np.testing.assert_allclose(found.distance[:, 0] * unit, [0, 4, 5.5, 9.5, 36, 20], rtol=1e-6)
    assert found.clip[:, 0].tolist() == [0, 1, 3, 3, 3, 0]
    assert clips.novelty(found).tolist() == [0, 0, 0, 0.5, 1, 1]


def test_the_distance_is_that_of_the_fifth_neighbour():
    clips = TrainingClips(line(*range(6), *range(100, 106)), np.repeat([0, 1], 6))
    usual = [100, 101, 102, 103, 104, 99]  # to the fifth of the other video, from 4, 3, 2, 1, 0 and 5
    assert clips.novelty(clips.nearest(line(-96.5))) == np.mean(np.array(usual) < 100.5)


def test_clips_of_unseen_videos_have_a_uniform_novelty():
    """For videos of the same kind, over many draws of both; clips of a video are correlated."""
    rng = np.random.default_rng(0)
    novelty = []
    for _ in range(40):
        clips = TrainingClips(*filmed(rng, 30))
        novelty.append(clips.novelty(clips.nearest(filmed(rng, 30)[0])))
    shares = [(np.concatenate(novelty) > level).mean() for level in (0.2, 0.5, 0.8, 0.95)]
    np.testing.assert_allclose(shares, [0.8, 0.5, 0.2, 0.05], atol=0.015)


def test_trained_clips_are_familiar_and_far_ones_are_new():
    rng = np.random.default_rng(1)
    seen, video = filmed(rng, 30, of_video=2.0)
    clips = TrainingClips(seen, video)
    assert clips.novelty(clips.nearest(seen)).mean() < 0.25
    assert clips.novelty(clips.nearest(filmed(rng, 5, shift=9.0)[0])).min() > 0.95


def test_large_sets_are_measured_in_blocks_and_judged_by_a_part(monkeypatch):
    seen, video = filmed(np.random.default_rng(2), 20)
    clips = TrainingClips(seen, video)
    expected = clips.nearest(seen)
    monkeypatch.setattr(training_clips, "AT_ONCE", 7 * len(seen))
    np.testing.assert_allclose(clips.nearest(seen).distance, expected.distance, atol=1e-6)
    monkeypatch.setattr(training_clips, "MOST_HELD_OUT", 50)
    part = TrainingClips(seen, video)
    np.testing.assert_allclose(part.novelty(expected), clips.novelty(expected), atol=0.15)


def test_a_single_video_says_nothing_of_others():
    with raises("novelty-one-video"):
        TrainingClips(line(0, 1, 2), np.zeros(3, int))


# What clips show


def coloured(rng, videos, *, apart):
    """Clips of three kinds as far apart as that, all kinds in each video, and their kinds."""
    seen, video = filmed(rng, videos, of_video=0.1)
    kind = rng.integers(3, size=len(seen))
    seen[np.arange(len(seen)), kind] += apart
    return seen, video, kind


def test_clips_show_what_their_neighbours_do():
    rng = np.random.default_rng(3)
    seen, video, kind = coloured(rng, 20, apart=12.0)
    clips = TrainingClips(seen, video)
    others, _, truth = coloured(rng, 5, apart=12.0)
    found = clips.shares(clips.nearest(others), kind)
    np.testing.assert_allclose(found.share.sum(1), 1)
    assert found.accuracy == 1 and (found.share.argmax(1) == truth).all()
    assert found.share.max(1).min() > 0.99


def test_shares_are_probabilities():
    """Of kinds that look much alike, the share of one is how often it is that one."""
    rng = np.random.default_rng(4)
    seen, video, kind = coloured(rng, 40, apart=2.0)
    clips = TrainingClips(seen, video)
    others, _, truth = coloured(rng, 200, apart=2.0)
    found = clips.shares(clips.nearest(others), kind)
    right = found.share.argmax(1) == truth
    assert 0.5 < right.mean() < 0.9
    assert found.accuracy == pytest.approx(right.mean(), abs=0.08)
    assert found.share.max(1).mean() == pytest.approx(right.mean(), abs=0.08)


def test_kinds_that_look_the_same_have_the_shares_of_all():
    rng = np.random.default_rng(5)
    seen, video = filmed(rng, 40)
    kind = (rng.random(len(seen)) < 0.25).astype(int)
    clips = TrainingClips(seen, video)
    found = clips.shares(clips.nearest(filmed(rng, 5)[0]), kind)
    np.testing.assert_allclose(found.share[:, 1], 0.25, atol=0.1)


def test_clips_of_unknown_kind_have_no_say():
    rng = np.random.default_rng(6)
    seen, video, kind = coloured(rng, 20, apart=12.0)
    clips = TrainingClips(seen, video)
    others, _, truth = coloured(rng, 5, apart=12.0)
    kind[rng.random(len(kind)) < 0.5] = -1
    assert (clips.shares(clips.nearest(others), kind).share.argmax(1) == truth).all()
