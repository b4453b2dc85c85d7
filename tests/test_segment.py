"""Segments: invalid times, and splits of segments that belong together."""

import math

import pytest
from raising import raises

from pipeline.dataset import Content, Segment, assign_splits
from pipeline.dataset.segment import check_span
from pipeline.video import Span, VideoError


@pytest.mark.parametrize(
    ("span", "code"),
    [
        (Span(math.nan, 1.0), "segment_not_seconds"),
        (Span(0.0, math.inf), "segment_not_seconds"),
        (Span(-0.5, None), "segment_not_seconds"),
        (Span(2.0, 2.0), "segment_empty"),
        (Span(2.0, 1.0), "segment_empty"),
        (Span(None, 0.0), None),  # found when it is read
        (Span(0.0, 0.5), None),
    ],
)
def test_times_of_a_span(span, code):
    if code is None:
        check_span(span)
    else:
        with raises(code, VideoError):
            check_span(span)


def splits(segments, contents=None):
    return [segment.split for segment in assign_splits(segments, contents, contents and [30.0] * len(contents))]


def test_cameras_of_an_episode_share_its_split():
    segments = [Segment(f"{k}/{camera}", None, episode=str(k)) for k in range(60) for camera in "ab"]
    found = splits(segments)
    assert found[::2] == found[1::2] and set(found) == {"train", "val"}
    assert found[::2] == splits([Segment(str(k), None) for k in range(60)])  # the hash is that of the episode
    with raises("split-of-copies"):
        splits([Segment("a", None, split="val", episode="1"), Segment("b", None, split="test", episode="1")])


def test_spans_that_share_frames_share_a_split():
    spans = [Span(0, 4), Span(3, 5), Span(5, 6), Span(6.01, 7), Span(5.99, 6.5), Span(0, 9), Span(None, 0.2)]
    segments = [Segment(str(k), None, split="test" if k == 0 else None) for k in range(len(spans))]
    alike = lambda *numbers: [splits(segments, [Content("a", spans[k]) for k in range(7)])[k] for k in numbers]  # noqa: E731
    assert set(alike(*range(7))) == {"test"}  # all overlap with the one of nine seconds

    def with_test(*chosen):
        """The spans among these that join the first one's split, test."""
        rows = [Segment(str(k), None, split="test" if k == chosen[0] else None) for k in chosen]
        found = splits(rows, [Content("a", spans[k]) for k in chosen])
        return [k for k, split in zip(chosen, found, strict=True) if split == "test"]

    assert with_test(0, 1) == [0, 1]
    assert with_test(1, 2) == [1]  # they meet
    assert with_test(2, 4) == [2]  # by less than half a frame
    assert with_test(3, 4) == [3, 4]
    assert with_test(0, 6) == [0, 6]
    assert with_test(0, 2, 1) == [0, 1]


def test_a_chain_of_overlaps_is_one_group():
    segments = [Segment(str(k), None, split="val" if k == 40 else None) for k in range(50)]
    contents = [Content("a", Span(k, k + 1.5)) for k in range(50)]
    assert set(splits(segments, contents)) == {"val"}
    assert set(splits(segments, [Content(str(k), content.span) for k, content in enumerate(contents)])) == {
        "train",
        "val",
    }
