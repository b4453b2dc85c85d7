import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from factories import read_barcode, skip_by_edit_list, turn, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from torchvision.transforms.functional import resize

from pipeline.video import (
    WHOLE,
    Clip,
    Decoder,
    DecoderPool,
    Restart,
    VideoError,
    VideoInfo,
    check_file,
    clip_windows,
    num_decoders,
    resize_frame,
)
from pipeline.video.child import Cut, Progress
from pipeline.video.orientation import Orientation
from pipeline.video.readers import choose_reader
from pipeline.video.scan import Scan, check_times
from pipeline.video.transport import check_packets
from pipeline.video.windows import rolling_clips


def constant_rate(num_frames, fps):
    return np.arange(num_frames + 1) / fps


# Clip arithmetic, by hand


def test_every_second_frame_of_30_at_15():
    windows = clip_windows(constant_rate(16, 30), clip_len=4, clip_stride=4, fps=15, tail="drop")
    assert windows.frame_indices.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert windows.valid_frames.tolist() == [4, 4]


def test_frames_of_10_are_repeated_at_15():
    # samples at 0, 1/15, 2/15, 3/15 = 0.2, ... show frames 0, 0, 1, 2, 2, 3
    windows = clip_windows(constant_rate(10, 10), clip_len=6, clip_stride=6, fps=15, tail="drop")
    assert windows.num_samples == 15
    assert windows.frame_indices.tolist() == [[0, 0, 1, 2, 2, 3], [4, 4, 5, 6, 6, 7]]


def test_variable_rate_is_sampled_by_time():
    windows = clip_windows(np.array([2.0, 2.5, 2.6, 3.0]), clip_len=5, clip_stride=5, fps=5, tail="drop")
    assert windows.frame_indices.tolist() == [[0, 0, 0, 2, 2]]  # at 2.0, 2.2, 2.4, 2.6, 2.8


def test_times_rounded_to_a_millisecond():
    edges_s = np.round(constant_rate(60, 15), 3)  # 0, 0.067, 0.133: some start after their sample time
    windows = clip_windows(edges_s, clip_len=60, clip_stride=60, fps=15, tail="drop", tolerance_s=5e-4 + 1e-9)
    assert windows.frame_indices.tolist() == [list(range(60))]


@pytest.mark.parametrize(
    ("num_frames", "clip_stride", "starts", "valid_frames"),
    [
        (10, 4, [0, 4, 8], [4, 4, 2]),
        (8, 4, [0, 4], [4, 4]),
        (9, 2, [0, 2, 4, 6], [4, 4, 4, 3]),
        (9, 8, [0, 8], [4, 1]),
        (6, 8, [0], [4]),
        (3, 4, [0], [3]),
    ],
)
def test_tail_pad_makes_at_most_one_more_clip(num_frames, clip_stride, starts, valid_frames):
    options = dict(clip_len=4, clip_stride=clip_stride, fps=15)
    padded = clip_windows(constant_rate(num_frames, 15), **options, tail="pad")
    assert padded.frame_indices[:, 0].tolist() == starts
    assert padded.valid_frames.tolist() == valid_frames
    last = padded.frame_indices[-1]
    assert (last[valid_frames[-1] :] == last[valid_frames[-1] - 1]).all()
    whole = clip_windows(constant_rate(num_frames, 15), **options, tail="drop")
    assert whole.frame_indices.tolist() == padded.frame_indices[padded.valid_frames == 4].tolist()


@given(
    durations_ms=st.lists(st.integers(1, 400), min_size=1, max_size=60),
    fps=st.sampled_from([1.0, 7.5, 15.0, 29.97]),
    clip_len=st.integers(1, 8),
    clip_stride=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_each_sample_is_the_frame_shown_then(durations_ms, fps, clip_len, clip_stride):
    edges_s = np.cumsum([0, *durations_ms]) / 1000
    windows = clip_windows(edges_s, clip_len=clip_len, clip_stride=clip_stride, fps=fps, tail="drop")
    for clip, indices in enumerate(windows.frame_indices):
        times_s = (clip * clip_stride + np.arange(clip_len)) / fps
        assert (edges_s[indices] <= times_s + 1e-6).all()
        assert (times_s + 1e-6 < edges_s[indices + 1]).all()


def test_rolling_clips_reads_once_and_holds_what_it_needs():
    frames = [np.full((128, 171, 3), number, np.uint8) for number in range(12)]
    indices = np.array([[0, 2, 2], [1, 4, 7], [4, 4, 9]])
    source = iter(frames)
    clips = [[int(frame[0, 0, 0]) for frame in clip] for clip in rolling_clips(source, indices)]
    assert clips == indices.tolist()
    assert next(source, None) is None  # read to the end, so that damage there is found


@pytest.mark.parametrize("size", [(240, 320), (720, 1280), (64, 90), (37, 41), (320, 216), (128, 171), (1, 1)])
@pytest.mark.parametrize("to", [(128, 171), (320, 576)])
def test_resize_equals_torchvision(size, to):
    frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    expected = resize(torch.from_numpy(frames).permute(0, 3, 1, 2), list(to), antialias=False)
    got = np.stack([resize_frame(frame, to) for frame in frames])
    difference = np.abs(got.astype(int) - expected.permute(0, 2, 3, 1).numpy())
    if torch.get_num_threads() > 1:
        assert difference.max() == 0
    else:  # on one thread torch uses another kernel, which rounds ties differently
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


# The gate


def refused(path):
    with pytest.raises(VideoError) as caught:
        check_file(path)
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder):
    return write_video(folder / "plain.mp4", 40)


@pytest.mark.parametrize(
    "text", ["hello, this is no video\n", "#EXTM3U\n/etc/passwd\n", "ffconcat version 1.0\nfile '/tmp/a.mp4'\n"]
)
def test_text_is_no_video(tmp_path, text):
    path = tmp_path / "text.mp4"
    path.write_text(text)
    error = refused(path)
    assert error.code == "not_video"
    assert "it is text that begins" in error.reason


def test_refused_without_opening(tmp_path, plain):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "link.mp4").symlink_to(plain)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(1, 200)))
    assert refused(tmp_path / "fifo.mp4").code == "not_regular"
    assert refused(tmp_path / "link.mp4").code == "not_regular"
    assert refused(tmp_path / "empty.mp4").code == "empty"
    assert refused(tmp_path / "noise.mp4").code == "not_video"
    assert refused(tmp_path / "none.mp4").code == "missing"


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_file_cut_off_at_any_point_is_refused(tmp_path, name, codec):
    whole = write_video(tmp_path / name, 30, codec=codec)
    check_file(whole)
    data = whole.read_bytes()
    for share in (0.5, 0.9, 0.999):
        whole.write_bytes(data[: int(len(data) * share)])
        assert "cut off" in refused(whole).reason


def scanned(**changes):
    return Scan(**{"container": "matroska,webm", "codec": "h264", "width": 320, "height": 240,
                   "edges_s": constant_rate(10, 15), "tick_s": 1e-3, "edited": False, **changes})  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reader"),
    [({}, "decord"), ({"codec": "av1"}, "pyav"), ({"edited": True}, "pyav"), ({"container": "mpegts"}, "pyav"),
     ({"width": 72}, "pyav"), ({"alone": False}, "pyav"), ({"shows_all": False}, "pyav"), ({"counted": False}, "pyav"),
     ({"orientation": Orientation(flip_columns=True)}, "pyav"), ({"container": "mpeg"}, "pyav")],
)  # fmt: skip
def test_auto_avoids_decord_where_it_is_wrong(changes, reader):
    assert choose_reader(scanned(**changes), "auto") == reader
    assert choose_reader(scanned(**changes), "pyav") == "pyav"
    if reader == "pyav":
        with raises("unsupported", VideoError):
            choose_reader(scanned(**changes), "decord")


# Decoding


@pytest.fixture(scope="module")
def decoder():
    with Decoder(timeout_s=60) as decoder:
        yield decoder


def shown(clips):
    return [[read_barcode(frame) for frame in clip.frames] for clip in clips]


KINDS = {
    "b_frames.mp4": dict(options={"bf": "3", "g": "12"}),
    "open_gop.mp4": dict(options={"x264-params": "open-gop=1:bframes=3:keyint=10", "preset": "veryfast"}),
    "long_gop.mkv": dict(options={"g": "250", "bf": "3"}),
    "hevc.mp4": dict(codec="libx265", options={"x265-params": "log-level=none"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "ten_bit.mkv": dict(pix_fmt="yuv420p10le"),
    "odd.mp4": dict(size=(98, 130)),
    "program.mpg": dict(codec="mpeg2video", fps=25),
    "transport.ts": dict(options={"bf": "2"}),
    "narrow.mp4": dict(size=(144, 72)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_right_one(folder, decoder, name):
    path = write_video(folder / name, 40, **KINDS[name])
    fps = KINDS[name].get("fps", 15)
    stream = decoder.clips(path, clip_len=8, clip_stride=6, fps=fps)
    clips = list(stream)
    assert shown(clips) == [list(range(start, start + 8)) for start in (0, 6, 12, 18, 24, 30)]
    assert [clip.frame_indices for clip in clips] == [tuple(range(c.start_frame, c.start_frame + 8)) for c in clips]
    assert stream.info.num_frames == 40
    assert stream.info.decoder == ("pyav" if name in ("program.mpg", "transport.ts", "narrow.mp4") else "decord")
    first_s = clips[0].start_s
    assert [clip.start_s - first_s for clip in clips] == pytest.approx([6 * k / fps for k in range(6)], abs=1e-3)
    assert [clip.end_s - clip.start_s for clip in clips] == pytest.approx([8 / fps] * 6, abs=2e-3)


@pytest.mark.parametrize("name", KINDS)
def test_frames_between_samples_do_not_shift_the_others(folder, decoder, name):
    path = write_video(folder / name, 40, **KINDS[name])
    clips = decoder.clips(path, clip_len=2, clip_stride=5, fps=KINDS[name].get("fps", 15) / 3)
    assert shown(clips) == [[0, 3], [15, 18], [30, 33]]


def test_variable_frame_rate(folder, decoder):
    # ten frames at 15 a second, then ten at 5 a second
    pts = [*range(0, 10), *range(10, 40, 3)]
    path = write_video(folder / "variable.mp4", 20, pts=pts, time_base=Fraction(1, 15), options={"bf": "0"})
    (clip,) = decoder.clips(path, clip_len=36, clip_stride=36, fps=15)
    assert shown([clip]) == [[*range(10), *np.repeat(range(10, 19), 3)[:26]]]


def test_edit_list_hides_frames(folder, decoder):
    path = write_video(folder / "edited.mp4", 40, options={"bf": "2", "g": "10"})
    skip_by_edit_list(path, 13, num_frames=40, fps=15)
    stream = decoder.clips(path, clip_len=9, clip_stride=9, fps=15)
    assert shown(stream) == [list(range(start, start + 9)) for start in (13, 22, 31)]
    assert (stream.info.decoder, stream.info.num_frames) == ("pyav", 27)


def test_turned_video_is_decoded_upright(folder):
    path = write_video(folder / "turned.mp4", 16)
    turn(path)
    clips = {}
    for name in ("decord", "pyav"):
        with Decoder(decoder=name) as decoder:
            (clips[name],) = decoder.clips(path)
    frame = clips["decord"].frames[0].astype(int)
    assert np.abs(frame - clips["pyav"].frames[0]).max() <= 2
    right, left = frame[:, 155:], frame[:, :16]  # the top has turned to the right
    assert (right[..., 0] > right[..., 1] + 100).all()
    assert not (left[..., 0] > left[..., 1] + 100).any()


def test_decord_and_pyav_agree(plain):
    frames = {}
    for name in ("decord", "pyav"):
        with Decoder(decoder=name) as decoder:
            frames[name] = np.stack([clip.frames for clip in decoder.clips(plain)]).astype(int)
    assert np.abs(frames["decord"] - frames["pyav"]).max() <= 2


def test_too_short_error_gives_both_lengths(folder, decoder):
    path = write_video(folder / "short.mp4", 41)
    with raises("too_short", VideoError) as caught:
        decoder.clips(path, clip_len=64)
    assert caught.value.reason == "clip_len (64) is longer than short.mp4 (41 frames at 15 fps)"
    assert caught.value.fix == "lower --clip-len or use --tail pad"
    (clip,) = decoder.clips(path, clip_len=64, tail="pad")
    assert clip.valid_frames == 41
    assert shown([clip]) == [[*range(41), *[40] * 23]]


def test_one_frame(folder, decoder):
    path = write_video(folder / "one.mp4", 1, first=77)
    with raises("too_short", VideoError) as caught:
        decoder.clips(path)
    assert "(1 frames at 15 fps)" in caught.value.reason
    (clip,) = decoder.clips(path, tail="pad")
    assert (shown([clip]), clip.valid_frames) == ([[77] * 16], 1)


def test_clips_wait_for_their_reader(plain, decoder):
    # far more than the slots hold, so the child must wait for the parent to empty them
    clips = list(decoder.clips(plain, clip_len=32, clip_stride=1, fps=60))
    assert len(clips) == 160 - 32 + 1
    assert shown(clips[-1:]) == [[39 - (31 - k) // 4 for k in range(32)]]


def damage(path, start, num_bytes):
    data = bytearray(path.read_bytes())
    at = int(len(data) * start)
    data[at : at + num_bytes] = np.random.default_rng(0).bytes(num_bytes)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_a_damaged_stream_fails(tmp_path, name):
    path = write_video(tmp_path / "damaged.mkv", 60, options={"g": "10"})
    damage(path, 0.5, 200)
    with Decoder(decoder=name) as decoder, raises("damaged", VideoError):
        list(decoder.clips(path))


@pytest.fixture(scope="module")
def transport(folder):
    return write_video(folder / "broadcast.ts", 60, options={"g": "10", "bf": "2"})


def packets_of(path):
    return np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 188).copy()


def pid(packets):
    return (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]


def lose_one(packets):
    return np.delete(packets, np.flatnonzero(pid(packets) == 0x100)[20], axis=0)


def mark_one_wrong(packets):
    packets[len(packets) // 2, 1] |= 0x80
    return packets


def shift_one_byte(packets):
    half = len(packets) // 2 * 188
    return np.concatenate([packets.ravel()[:half], [0], packets.ravel()[half:-1]]).astype(np.uint8)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_one, "packets are missing before transport packet"),
        (mark_one_wrong, "is out of step or marked as wrong"),
        (shift_one_byte, "is out of step or marked as wrong"),
        (lambda packets: packets.ravel()[:-1], "ends within a packet of 188 bytes"),
    ],
)
def test_a_damaged_transport_stream_is_refused(transport, tmp_path, harm, message):
    check_packets(transport)
    path = tmp_path / "harmed.ts"
    path.write_bytes(harm(packets_of(transport)).tobytes())
    with raises("damaged", VideoError) as caught:
        check_packets(path)
    assert message in caught.value.reason


def test_transport_packets_may_come_twice_or_with_time_stamps(transport, tmp_path):
    packets = packets_of(transport)
    twice = tmp_path / "twice.ts"
    twice.write_bytes(np.repeat(packets, 2, axis=0).tobytes())
    check_packets(twice)
    stamped = tmp_path / "stamped.m2ts"
    stamped.write_bytes(np.hstack([np.full((len(packets), 4), 9, np.uint8), packets]).tobytes())
    check_packets(stamped)


@pytest.mark.parametrize(
    ("pts", "dts", "message"),
    [
        ([3, 6, 4, 5], [1, 2, 2, 4], "out of order"),
        ([3, 6, 2, 5], [1, 2, 3, 4], "out of order"),
        ([3, 6, 6, 7], [1, 2, 3, 4], "out of order"),
        ([3, 4, 5, 40], [1, 2, 3, 4], "has no frame for 35.0 s"),
        ([3, 4, None, 6], [1, 2, 3, 4], "without a time"),
    ],
)
def test_times_that_no_encoder_writes(pts, dts, message):
    check_times([(3, 1, 1), (6, 2, 1), (4, 3, 1), (5, 4, 1)], 1.0)
    with raises("damaged", VideoError) as caught:
        check_times([(p, d, 1) for p, d in zip(pts, dts, strict=True)], 1.0)
    assert message in caught.value.reason


def test_an_avi_that_lost_a_frame(tmp_path):
    path = write_video(tmp_path / "a.avi", 40, codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.rfind(b"00dc", 0, data.find(b"idx1"))
    data[at : at + 4] = b"JUNK"  # a chunk type that readers skip
    path.write_bytes(data)
    with Decoder() as decoder, raises("damaged", VideoError):
        list(decoder.clips(path))


# The pool


def test_the_pool_equals_one_decoder(folder, decoder):
    paths = [write_video(folder / f"pool{k}.mp4", 20 + 10 * k, first=40 * k) for k in range(4)]
    options = dict(clip_len=6, clip_stride=6, fps=15, tail="drop")
    alone = {path: np.stack([clip.frames for clip in decoder.clips(path, **options)]) for path in paths}
    clips, infos, waiting = {path: [] for path in paths}, {}, list(paths)
    with DecoderPool(2) as pool:
        while waiting or pool.num_idle < 2:
            while waiting and pool.num_idle:
                pool.submit({waiting[0]: WHOLE}, waiting.pop(0), **options)
            for path, event in pool.events():
                if isinstance(event, Clip):
                    clips[path].append(event.frames)
                else:
                    infos[path] = event
    assert {path: info.num_frames for path, info in infos.items()} == dict(zip(paths, (20, 30, 40, 50), strict=True))
    for path in paths:
        np.testing.assert_array_equal(np.stack(clips[path]), alone[path])


@pytest.mark.slow
def test_a_hung_video_does_not_block_the_others(folder, plain):
    with DecoderPool(2, timeout_s=60) as pool:
        options = dict(clip_len=16, clip_stride=16, fps=15, tail="drop")
        pool.submit({"warm": WHOLE}, plain, **options)
        pool.submit({"hangs": WHOLE}, plain, **options)
        ended = []
        while pool.num_idle < 2:
            ended += [video for video, event in pool.events() if isinstance(event, VideoInfo)]
        pool.submit({"hangs": WHOLE}, plain, **options)
        (hung,) = pool._busy
        hung._process.send_signal(signal.SIGSTOP)
        hung._slack_s = 3.0
        pool.submit({"fine": WHOLE}, plain, **options)
        ends = []
        while pool.num_idle < 2:
            ends += [(video, event) for video, event in pool.events() if not isinstance(event, Clip)]
        assert [video for video, _ in ends] == ["fine", "hangs"]
        assert ends[1][1].code == "timeout"


# The child


def test_a_hanging_child_is_killed_and_replaced(plain):
    with Decoder(timeout_s=30) as decoder:
        next(decoder.clips(plain))
        decoder._timeout_s = 1
        process = decoder._process
        list(decoder.clips(plain))
        decoder._process.send_signal(signal.SIGSTOP)
        stopped = decoder._process
        with raises("timeout", VideoError) as caught:
            decoder.clips(plain)
        assert "1 s" in caught.value.reason
        assert stopped.returncode == -signal.SIGKILL
        assert stopped is not process
        decoder._timeout_s = 30
        assert len(list(decoder.clips(plain))) == 2


def test_a_dying_child_fails_one_video(plain):
    with Decoder() as decoder:
        stream = decoder.clips(plain, clip_stride=1, fps=240)
        decoder._process.kill()
        with raises("crashed", VideoError) as caught:
            list(stream)
        assert "SIGKILL" in caught.value.reason
        assert len(list(decoder.clips(plain))) == 2


def tamper(monkeypatch, tmp_path, lines):
    """Have each decoder process run these lines of Python at its start."""
    before = "import os, signal, sys, time\n" + lines + "\n"
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\ncode = sys.argv.index('-c') + 1\n"
        f"sys.argv[code] = {before!r} + sys.argv[code]\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


ONCE = """
try:
    os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    pass
else:
    {harm}
"""


@pytest.mark.parametrize("harm", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "time.sleep(3600)"])
def test_a_child_that_dies_or_hangs_at_its_start_is_replaced(plain, tmp_path, monkeypatch, harm):
    tamper(monkeypatch, tmp_path, ONCE.format(flag=str(tmp_path / "flag"), harm=harm))
    if "sleep" in harm:
        monkeypatch.setattr("pipeline.video.decoder.START_S", 5.0)
    with Decoder() as decoder:
        assert len(list(decoder.clips(plain))) == 2
    assert (tmp_path / "flag").exists()


def test_children_that_never_start_fail_only_their_videos(plain, tmp_path, monkeypatch):
    with Decoder() as decoder:
        with monkeypatch.context() as patch:
            tamper(patch, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
            with raises("crashed", VideoError) as caught:
                list(decoder.clips(plain))
            assert "died at its start (SIGKILL)" in caught.value.reason
        assert len(list(decoder.clips(plain))) == 2


def test_a_decoder_that_is_not_installed_ends_the_run(plain, tmp_path, monkeypatch):
    tamper(monkeypatch, tmp_path, "sys.modules['decord'] = None")
    with Decoder() as decoder, raises("decoder-unusable"):
        list(decoder.clips(plain))


def test_the_next_video_can_follow_a_failure_midway(tmp_path, plain):
    # when the second half fails, the child has not read all messages about emptied slots
    path = write_video(tmp_path / "damaged.mkv", 200, options={"g": "10"})
    damage(path, 0.6, 200)
    with Decoder(decoder="pyav") as decoder:
        for _ in range(3):
            with raises("damaged", VideoError):
                list(decoder.clips(path, clip_len=64, clip_stride=1, fps=60))
            process = decoder._process
            assert len(list(decoder.clips(plain))) == 2
            assert decoder._process is process


def test_decoded_video_time_extends_the_deadline():
    # messages that came while the caller was busy cost nothing, so the slack is exact: clips are 273 s apart
    decoder = Decoder(timeout_s=300)
    decoder.connection, child = multiprocessing.Pipe()
    decoder._starting, decoder._slack_s, decoder._heard_s = False, 1.0, time.monotonic()
    slacks = []
    for passed_s in (273.0, 0.0, 200.0):
        child.send_bytes(json.dumps({"passed_s": passed_s}).encode())
        assert decoder.receive() == {}
        slacks.append(decoder._slack_s)
    assert slacks == [274.0, 274.0, 300.0]


def test_progress_is_reported_once(monkeypatch):
    sent = []
    monkeypatch.setattr("pipeline.video.child.send", lambda _, message: sent.append(message))
    monkeypatch.setattr("pipeline.video.child.TELL_S", -1)
    progress = Progress(connection=None)
    progress.start("decord", 2.0)
    edges_s = 2.0 + np.arange(5)
    whole = [Cut(0, 0, 9, None)]
    assert list(itertools.islice(progress.follow([1, 2, 3], edges_s, whole), 3)) == [
        1,
        2,
        3,
    ]  # when it starts to be shown
    progress.send({"clip": 1}, 3.0)  # a clip that overlaps the reported time
    progress.send({"clip": 2}, 6.0)
    assert [message["passed_s"] for message in sent] == [0.0, 1.0, 1.0, 0.0, 2.0]


# PyAV for videos that decord fails on


def write_without_duration(path):
    whole = write_video(path.with_suffix(".mkv"), 40)
    data = bytearray(whole.read_bytes())
    at = data.find(bytes.fromhex("4489"), 0, 500)
    data[at : at + 3] = b"\xec\x89\0"  # void, of the same size
    path.write_bytes(data)
    return path


def test_videos_that_decord_cannot_open_are_read_by_pyav(tmp_path):
    path = write_without_duration(tmp_path / "a.webm")
    with Decoder() as decoder:
        stream = decoder.clips(path, clip_len=8, clip_stride=8)
        assert shown(stream) == [list(range(start, start + 8)) for start in range(0, 40, 8)]
        assert stream.info.decoder == "pyav"
    with Decoder(decoder="decord") as decoder, raises("damaged", VideoError):
        list(decoder.clips(path))


def test_the_pool_reports_that_pyav_starts_again(plain):
    options = dict(clip_len=8, clip_stride=8, fps=15, tail="drop")
    with DecoderPool(1) as pool:
        pool.submit({"video": WHOLE}, plain, **options)
        (decoder,) = pool._busy
        receive, events, failed = decoder.receive, [], []

        def fail_once():
            message = receive()
            if "ended" in message and not failed:
                failed.append(True)
                assert "done" in receive()
                decoder._request["decoder"] = "pyav"
                decoder._ask()
                return {"again": "decord fails"}
            return message

        decoder.receive = fail_once
        while pool.num_idle == 0:
            events += [event for _, event in pool.events()]
    (restart,) = (number for number, event in enumerate(events) if isinstance(event, Restart))
    assert shown(events[:restart]) == shown(events[restart + 1 : -1])
    assert events[-1].decoder == "pyav"


def test_clips_already_handed_out_are_compared(plain):
    with Decoder() as decoder:
        stream = decoder.clips(plain, clip_len=8, clip_stride=8)
        clips = [next(stream), next(stream)]
        receive, failed = decoder.receive, []

        def fail_once():
            if failed:
                return receive()
            failed.append(True)
            while "done" not in receive():
                pass
            decoder._request["decoder"] = "pyav"
            decoder._ask()
            return {"again": "decord fails"}

        decoder.receive = fail_once
        clips += list(stream)
        assert shown(clips) == [list(range(start, start + 8)) for start in range(0, 40, 8)]
        assert stream.info.decoder == "pyav"


@pytest.mark.parametrize("name", ["hevc.mp4", "vp9.webm"])
def test_verifying_reads_the_same_frames(folder, name):
    path = write_video(folder / f"verified_{name}", 40, **KINDS[name])
    with Decoder() as plain, Decoder(verify=True) as strict:
        streams = [decoder.clips(path, clip_len=8, clip_stride=8) for decoder in (plain, strict)]
        one, other = (np.stack([clip.frames for clip in stream]).astype(int) for stream in streams)
    assert np.abs(one - other).max() <= 2
    assert [stream.info.decoder for stream in streams] == ["decord", "pyav"]


def test_verifying_finds_bits_flipped_inside_vp9_pictures(folder, tmp_path):
    # each flip changes the picture; without libvpx all of them are accepted
    data = write_video(folder / "flipped.webm", 40, **KINDS["vp9.webm"]).read_bytes()
    with av.open(str(folder / "flipped.webm")) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size > 100]
    path, found = tmp_path / "a.webm", {False: 0, True: 0}
    with Decoder() as plain, Decoder(verify=True) as strict:
        for packet in packets[1:9]:
            flipped = bytearray(data)
            flipped[data.find(packet) + len(packet) // 2] ^= 0x10
            path.write_bytes(flipped)
            for verify, decoder in ((False, plain), (True, strict)):
                try:
                    list(decoder.clips(path))
                except VideoError as error:
                    found[verify] += error.code == "damaged"
    assert found == {False: 0, True: 8}


def test_the_next_video_ends_the_previous_one(plain):
    with Decoder() as decoder:
        first = decoder.clips(plain, clip_stride=1)
        next(first)
        assert len(list(decoder.clips(plain))) == 2
        assert list(first) == []


def test_one_child_serves_many_files_and_is_removed(plain):
    with Decoder() as decoder:
        list(decoder.clips(plain))
        process = decoder._process
        for _ in range(5):
            list(decoder.clips(plain))
        assert decoder._process is process
    assert process.returncode is not None


def test_memory_is_limited(tmp_path):
    path = write_video(tmp_path / "large.mp4", 20, size=(2160, 3840), options={"preset": "ultrafast", "crf": "40"})
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(path.read_bytes()[:-2000])
    with Decoder(memory_bytes=400 << 20) as decoder:
        with raises("memory", VideoError):
            list(decoder.clips(path))
        with pytest.raises(VideoError) as caught:
            list(decoder.clips(broken))
        assert caught.value.code != "memory", "memory of the previous video is not charged to this one"


def test_decoders_are_not_imported_by_the_caller():
    code = "import pipeline.video, sys; print(sorted({'av', 'decord', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("processors", "memory_gib", "on_gpu", "expected"),
    [
        (1, None, False, 2), (2, None, False, 2), (16, None, False, 4), (128, None, False, 8),
        (1, 64, True, 2), (2, 64, True, 2), (4, 64, True, 3), (16, 64, True, 15), (128, 512, True, 127),
        (128, None, True, 127), (16, 2, True, 8), (16, 0.25, True, 2),
    ],
)  # fmt: skip
def test_number_of_decoders(monkeypatch, processors, memory_gib, on_gpu, expected):
    memory = None if memory_gib is None else int(memory_gib * (1 << 30))
    monkeypatch.setattr("pipeline.processes.num_processors", lambda: processors)
    monkeypatch.setattr("pipeline.processes.available_memory", lambda: memory)
    assert num_decoders(on_gpu=on_gpu) == expected


def test_decoders_start_before_their_first_video(plain):
    with DecoderPool(1) as pool:
        pool.grow(2)
        processes = [decoder._process for decoder in pool._idle]
        assert all(process.poll() is None for process in processes)
        pool.submit({"it": WHOLE}, plain, clip_len=16, clip_stride=16, fps=15, tail="drop")
        while pool.num_idle < 2:
            for _ in pool.events():
                pass
        assert {decoder._process for decoder in pool._idle} == set(processes), "no other one was started"
    assert all(process.poll() is not None for process in processes)
