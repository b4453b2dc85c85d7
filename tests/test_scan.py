"""Scans of streams, frames and times, compared with the frames that are read."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from factories import barcode_frame, read_barcode, write_video
from raising import raises

from pipeline.video import Decoder, VideoError, check_file
from pipeline.video.scan import scan


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def read(decoder, path, *, fps=15):
    """Each sampled barcode, and the file's VideoInfo."""
    stream = decoder.clips(path, clip_len=1, clip_stride=1, fps=fps)
    return [read_barcode(clip.frames[0]) for clip in stream], stream.info


def scanned(path):
    return scan(path, check_file(path))


def add_stream(container, size, *, codec="libx264", fps=15):
    stream = container.add_stream(codec, rate=fps)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    return stream


def add_frames(container, stream, numbers, times=None):
    for index, number in enumerate(numbers):
        frame = av.VideoFrame.from_ndarray(barcode_frame(number, stream.height, stream.width), format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = times[index], Fraction(1, 15)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize("name", ["two.mp4", "two.mkv", "two.avi", "two.ts"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_pictures_and_times_come_from_one_stream(tmp_path, decoder, name, order):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        kinds = [((144, 176), 15, range(30)), ((240, 320), 30, range(100, 160))]
        for size, fps, numbers in [kinds[k] for k in order]:
            kinds.append((add_stream(container, size, codec="mpeg4", fps=fps), numbers))
        for stream, numbers in kinds[2:]:
            add_frames(container, stream, numbers)
    codes, info = read(decoder, path, fps=30)
    expected = {30: np.repeat(np.arange(30), 2), 60: np.arange(100, 160)}[info.num_frames]
    assert codes == expected.tolist()
    assert (info.width, info.decoder) == ({30: 176, 60: 320}[info.num_frames], "pyav")


def test_a_cover_is_not_the_video(tmp_path, decoder):
    plain = write_video(tmp_path / "plain.mp4", 20)
    path = tmp_path / "cover.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        cover = add_stream(container, (480, 640), codec="mjpeg")
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        copy = container.add_stream_from_template(source.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")) + cover.encode())
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    assert read(decoder, path)[0] == list(range(20))


def test_an_empty_chunk_repeats_the_previous_picture(tmp_path, decoder):
    # of 20 frames, those at 3, 8, 13 and 18 are empty chunks
    path = tmp_path / "dropped.avi"
    kept = [number for number in range(20) if number % 5 != 3]
    with av.open(str(path), "w") as container:
        stream = add_stream(container, (144, 176), codec="mpeg4")
        stream.codec_context.time_base = Fraction(1, 15)
        add_frames(container, stream, kept, times=kept)
    codes, info = read(decoder, path)
    assert codes == [number - (number % 5 == 3) for number in range(20)]
    assert info.num_frames == 16


def not_coded(like):
    """An MPEG-4 packet that only states that there is no picture, at the time of `like`, in 15 ticks per second."""
    at = like.find(b"\0\0\1\xb6")
    bits = "".join(f"{byte:08b}" for byte in like[at + 4 : at + 12])
    head = bits[: bits.index("0", 2) + 1 + 1 + 4 + 1] + "0"  # type, seconds, marker, ticks, marker; not coded
    head += "0".ljust(8 - len(head) % 8, "1")
    return like[at : at + 4] + int(head, 2).to_bytes(len(head) // 8, "big")


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_a_picture_that_is_not_coded_repeats_the_previous_one(tmp_path, decoder, name):
    path = write_video(tmp_path / f"plain_{name}", 24, codec="mpeg4", options={"bf": "0", "g": "12"})
    with av.open(str(path)) as source, av.open(str(tmp_path / name), "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(list(source.demux(video=0))[:24]):
            changed = av.Packet(not_coded(bytes(packet)) if number in (11, 23) else bytes(packet))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.duration, changed.is_keyframe, changed.stream = packet.duration, packet.is_keyframe, copy
            container.mux(changed)
    codes, _ = read(decoder, tmp_path / name)
    assert codes == [*range(11), 10, *range(12, 23), 22]


def cut_at_second_key(source_path, path):
    """Copy from the second key frame on, like a cut without re-encoding."""
    with av.open(str(source_path)) as source, av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        keys, start = 0, 0
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if packet.dts is None or keys < 2:
                continue
            start = start or packet.dts
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = copy
            container.mux(packet)
    return path


OPEN_GOPS = {
    "x264": dict(options={"x264-params": "open-gop=1:bframes=3:keyint=10:b-adapt=0:scenecut=0"}),
    "x265": dict(
        codec="libx265",
        options={"x265-params": "open-gop=1:bframes=3:keyint=10:b-adapt=0:scenecut=0:log-level=none"},
    ),
    "mpeg2": dict(codec="mpeg2video", fps=25, options={"bf": "2", "g": "12"}),
}


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
@pytest.mark.parametrize("name", OPEN_GOPS)
def test_pictures_that_need_cut_off_ones_are_not_counted(tmp_path, decoder, name, suffix):
    options = OPEN_GOPS[name]
    whole = write_video(tmp_path / f"whole{suffix}", 40, **options)
    path = cut_at_second_key(whole, tmp_path / f"cut{suffix}")
    codes, info = read(decoder, path, fps=options.get("fps", 15))
    first = codes[0]
    assert codes == list(range(first, 40))
    assert 0 < first < 20
    assert (info.num_frames, info.decoder) == (40 - first, "pyav")


def test_a_broadcast_may_start_anywhere(tmp_path, decoder):
    path = write_video(tmp_path / "a.ts", 60, options={"g": "10", "bf": "2"})
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 // 4 * 188 :])
    codes, info = read(decoder, path)
    assert codes == list(range(codes[0], 60))
    assert 0 < codes[0] < 30
    assert info.num_frames == len(codes)


@pytest.mark.parametrize("kind", ["vcd", "svcd", "vob", "mpeg"])
def test_program_streams(tmp_path, decoder, kind):
    path = tmp_path / "a.mpg"
    with av.open(str(path), "w", format=kind) as container:
        stream = add_stream(container, (288, 352), codec="mpeg1video" if kind == "vcd" else "mpeg2video", fps=25)
        stream.max_b_frames = 2
        add_frames(container, stream, range(45))
    codes, info = read(decoder, path, fps=25)
    assert (codes, info.num_frames, info.decoder) == (list(range(45)), 45, "pyav")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.mxf", dict(codec="mpeg2video")), ("a.dv", dict(codec="dvvideo", size=(576, 720), pix_fmt="yuv420p"))],
)
def test_recordings_of_studios_and_camcorders(tmp_path, decoder, name, settings):
    path = write_video(tmp_path / name, 30, fps=25, **settings)
    codes, info = read(decoder, path, fps=25)
    assert (codes, info.num_frames) == (list(range(30)), 30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5 + 1])
    with pytest.raises(VideoError, match="cut off"):
        read(decoder, path, fps=25)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg makes alternate reference frames, in two passes")
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alternate_reference_frames_are_not_shown(tmp_path, decoder, codec):
    raw = b"".join(barcode_frame(number, 144, 176).tobytes() for number in range(90))
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "176x144", "-r", "15", "-i", "-", "-pix_fmt", "yuv420p"]
    coding = ["-c:v", codec, "-auto-alt-ref", "1", "-lag-in-frames", "25", "-b:v", "150k", "-passlogfile", "log"]
    for number, out in ((1, ["-f", "null", "-"]), (2, ["a.webm"])):
        command = ["ffmpeg", "-v", "error", *source, *coding, "-pass", str(number), *out]
        subprocess.run(command, input=raw, cwd=tmp_path, check=True)
    with av.open(str(tmp_path / "a.webm")) as container:
        num_packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert (num_packets > 90) == (codec == "libvpx")
    codes, info = read(decoder, tmp_path / "a.webm")
    assert (codes, info.num_frames) == (list(range(90)), 90)


def test_an_unknown_codec_is_refused_by_name(tmp_path, decoder):
    path = write_video(tmp_path / "a.mp4", 20)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"avc1\0\0\0\0\0\0", b"zzz9\0\0\0\0\0\0"))
    with raises("unsupported", VideoError) as caught:
        read(decoder, path)
    assert "does not know" in caught.value.reason


@pytest.mark.parametrize("which", ["auto", "pyav"])
def test_metadata_need_not_be_unicode(tmp_path, which):
    path = write_video(tmp_path / "a.mp4", 20)
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"Vid\xe9oHandler"))
    with Decoder(decoder=which) as decoder:
        assert read(decoder, path)[0] == list(range(20))


def test_damage_is_named_by_frame_and_time(tmp_path, decoder):
    path = write_video(tmp_path / "a.mkv", 60, options={"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[45]
    data = bytearray(path.read_bytes())
    at = data.find(bytes(packet)) + packet.size // 2
    data[at : at + 20] = np.random.default_rng(0).bytes(20)
    path.write_bytes(data)
    with raises("damaged", VideoError) as caught:
        read(decoder, path)
    assert "frame 45 at 3.00 s" in caught.value.reason


def test_the_scan_of_a_plain_video(tmp_path):
    video = scanned(write_video(tmp_path / "a.mp4", 30, options={"bf": "2"}))
    assert (video.codec, video.width, video.height, video.num_frames) == ("h264", 176, 144, 30)
    assert video.alone
    assert video.shows_all
    assert not video.starts_late
    assert video.place(15) == "frame 15 at 1.00 s"
    assert video.edges_s == pytest.approx(np.arange(31) / 15)
