"""Spans of a video: their frames, and cutting them all in one pass."""

import itertools

import numpy as np
import pytest
from factories import read_barcode, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

from pipeline.video import WHOLE, Clip, Decoder, DecoderPool, Restart, Span, VideoError, VideoInfo
from pipeline.video.windows import frames_of, rolling_clips

EDGES_S = np.arange(11) / 10  # ten frames, at 10 a second

OPTIONS = dict(clip_len=4, clip_stride=4, fps=15, tail="drop")


@pytest.mark.parametrize(
    ("span", "frames"),
    [
        (WHOLE, (0, 10)),
        (Span(0.3, 0.7), (3, 7)),
        (Span(0.31, 0.69), (3, 7)),  # late by less than half a frame, and early
        (Span(0.35, 0.75), (3, 7)),  # half a frame late is treated as the frame's own time
        (Span(0.36, 0.76), (4, 8)),
        (Span(0.0, 1.04), (0, 10)),
        (Span(None, 0.2), (0, 2)),
        (Span(0.8, None), (8, 10)),
        (Span(0.0, 1.06), (0, 11)),  # beyond the last frame
        (Span(0.97, None), (10, 10)),
        (Span(0.5, 0.52), (5, 5)),  # no frame
    ],
)
def test_frames_of_a_span(span, frames):
    assert frames_of([span], EDGES_S) == [frames]


def test_a_long_still_does_not_start_in_its_middle():
    edges_s = np.array([0.0, 0.1, 0.2, 5.2, 5.3])  # frame 2 is shown for five seconds
    assert frames_of([Span(2.0, None), Span(0.24, None)], edges_s) == [(3, 4), (2, 4)]


def test_a_file_that_does_not_start_at_zero():
    edges_s = 1.4 + EDGES_S
    assert frames_of([Span(0.0, 1.6), Span(0.0, 1.0)], edges_s) == [(0, 2), (0, 0)]


@given(
    durations_ms=st.lists(st.integers(5, 400), min_size=1, max_size=40),
    cuts_ms=st.lists(st.integers(0, 16_000), min_size=1, max_size=6, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_adjoining_spans_share_no_frame_and_leave_none_out(durations_ms, cuts_ms):
    edges_s = np.cumsum([0, *durations_ms]) / 1000
    times_s = [None, *(cut / 1000 for cut in sorted(cuts_ms) if cut / 1000 < edges_s[-1]), None]
    spans = frames_of([Span(start, end) for start, end in itertools.pairwise(times_s)], edges_s)
    assert [frame for first, end in spans for frame in range(first, end)] == list(range(len(durations_ms)))


@given(
    starts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 8), min_size=8, max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_overlapping_clips_of_one_pass(starts, lengths):
    clips = [
        [min(start + k, start + length - 1) for k in range(8)] for start, length in zip(starts, lengths, strict=False)
    ]
    indices = np.array(sorted(clips, key=lambda clip: clip[-1]))
    frames = (np.full((128, 171, 3), number, np.uint8) for number in range(40))
    assert [[int(frame[0, 0, 0]) for frame in clip] for clip in rolling_clips(frames, indices)] == indices.tolist()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("spans") / "video.mp4", 120)


def cut(path, spans, **options):
    """Per span, the barcodes of its clips' frames and their times."""
    barcodes, times = {}, {}
    with Decoder(**options) as decoder:
        for clip in decoder.clips(path, **OPTIONS, spans=spans):
            barcodes.setdefault(clip.span, []).append([read_barcode(frame) for frame in clip.frames])
            times.setdefault(clip.span, []).append((clip.start_frame, clip.start_s, clip.end_s))
    return barcodes, times


def test_each_span_has_its_own_clips(video):
    spans = [Span(10 / 15, 30 / 15), WHOLE, Span(26 / 15, 38 / 15), Span(100 / 15, None), Span(None, 9 / 15)]
    barcodes, times = cut(video, spans)
    starts = {0: range(10, 27, 4), 1: range(0, 117, 4), 2: range(26, 35, 4), 3: range(100, 117, 4), 4: range(0, 5, 4)}
    assert barcodes == {number: [list(range(k, k + 4)) for k in first] for number, first in starts.items()}
    assert [start for start, _, _ in times[0]] == [10, 14, 18, 22, 26]
    np.testing.assert_allclose([row[1:] for row in times[0]], [[k / 15, (k + 4) / 15] for k in starts[0]], atol=1e-6)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_a_span_equals_the_span_alone(tmp_path, codec):
    path = write_video(tmp_path / "v.mkv", 90, codec=codec, options={"bf": "2"} if codec == "libx264" else None)
    spans = [Span(1.0, 2.0), Span(2.0, 3.5), Span(1.5, 4.0)]
    together, _ = cut(path, spans)
    assert together == {number: cut(path, [span])[0][0] for number, span in enumerate(spans)}


def ends(pool, segments, path):
    """The pool's events of each segment: its clips and its end."""
    pool.submit(segments, path, **OPTIONS)
    clips, ended = {name: [] for name in segments}, {}
    while len(ended) < len(segments):
        for name, event in pool.events():
            if isinstance(event, Clip):
                clips[name].append(read_barcode(event.frames[0]))
            elif isinstance(event, Restart):
                clips[name].clear()
            else:
                assert name not in ended
                ended[name] = event
    while pool.num_idle < 1:
        list(pool.events())
    return clips, ended


@pytest.mark.parametrize(
    ("span", "code", "text"),
    [
        (Span(1000.0, 2000.0), "segment_beyond_end", "starts at 1000 s and video.mp4 is shown from 0.00 to 8.00 s"),
        (Span(1.0, 8.1), "segment_beyond_end", "ends at 8.1 s"),
        (Span(1.0, 1.01), "segment_empty", "no frame"),
        (Span(1.0, 1.2), "too_short", "the segment of video.mp4 (3 frames at 15 fps)"),
    ],
)
def test_a_wrong_span_fails_alone(video, span, code, text):
    with DecoderPool(1) as pool:
        clips, ended = ends(pool, {"wrong": span, "right": Span(1.0, 2.0)}, video)
        assert ended["wrong"].code == code and text in str(ended["wrong"])
        assert clips == {"wrong": [], "right": [15, 19, 23]}
        assert (ended["right"].num_frames, ended["right"].num_clips) == (15, 3)
        assert ends(pool, {"again": span}, video)[1]["again"].code == code  # and the child continues
        assert isinstance(ends(pool, {"right": WHOLE}, video)[1]["right"], VideoInfo)
    with Decoder() as decoder, raises(code, VideoError):
        decoder.clips(video, **OPTIONS, spans=[span, WHOLE])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damage_voids_segments_that_end_after_it(tmp_path, codec):
    path = write_video(tmp_path / "v.mkv", 240, codec=codec, options={"g": "15"}, size=(240, 320))
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 300] = bytes(300)
    path.write_bytes(data)
    segments = {"early": Span(0.0, 4.0), "late": Span(8.0, 15.0), "whole": WHOLE, "middle": Span(4.0, 7.0)}
    with DecoderPool(1) as pool:
        clips, ended = ends(pool, segments, path)
        assert {name: getattr(end, "code", None) for name, end in ended.items()} == {
            "early": None, "middle": None, "late": "damaged", "whole": "damaged",
        }  # fmt: skip
        assert clips["early"] == list(range(0, 57, 4))
        alone = {name: ends(pool, {name: span}, path) for name, span in segments.items()}
    for name, (its_clips, its_end) in alone.items():  # a segment's result depends on no other segment
        assert getattr(its_end[name], "code", None) == getattr(ended[name], "code", None)
        if not isinstance(ended[name], VideoError):
            assert its_clips[name] == clips[name] and its_end[name] == ended[name]
