"""Complete files with foreign bytes or unknown sizes are accepted; the same files cut off are found."""

import io
import struct

import av
import numpy as np
import pytest
from factories import barcode_frame, write_video
from raising import raises

from pipeline.video import Decoder, VideoError, check_file
from pipeline.video.container_end import (
    asf_end,
    avi_end,
    dv_end,
    flv_end,
    mp4_end,
    mxf_end,
    ogg_end,
    program_stream_end,
    walk_avi,
)  # fmt: skip

TEXT = b"GPS N37.5 E127.0 2024-01-01\n"
LIVE = {"a.webm": "libvpx", "a.mkv": "libx264", "a.avi": "mpeg4", "a.flv": "flv1", "a.wmv": "wmv2", "a.ts": "libx264"}
FORMATS = {".webm": "webm", ".mkv": "matroska", ".avi": "avi", ".flv": "flv", ".wmv": "asf", ".ts": "mpegts"}


class Pipe(io.RawIOBase):
    """Accepts bytes and cannot seek, so that no size is filled in afterwards."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def write_live(path, codec, num_frames=30):
    pipe = Pipe()
    with av.open(pipe, "w", format=FORMATS[path.suffix]) as container:
        stream = container.add_stream(codec, rate=15)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for number in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode_frame(number, 144, 176), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(pipe.data)
    return path


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def num_frames(decoder, path):
    clips = decoder.clips(path, clip_len=1, clip_stride=1)
    list(clips)
    return clips.info.num_frames


@pytest.mark.parametrize("name", LIVE)
def test_a_live_recording_is_complete(tmp_path, decoder, name):
    assert num_frames(decoder, write_live(tmp_path / name, LIVE[name])) == 30


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov"])
@pytest.mark.parametrize("foreign", [TEXT, b"\n", bytes(100), np.random.default_rng(0).bytes(3000)])
def test_foreign_bytes_after_the_container(tmp_path, decoder, name, foreign):
    path = write_video(tmp_path / name, 30, codec="mpeg4")
    path.write_bytes(path.read_bytes() + foreign)
    assert num_frames(decoder, path) == 30


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.avi"])
def test_foreign_text_after_a_live_recording(tmp_path, decoder, name):
    path = write_live(tmp_path / name, LIVE[name])
    path.write_bytes(path.read_bytes() + TEXT)
    assert num_frames(decoder, path) == 30


@pytest.mark.parametrize("name", [*LIVE, "b.mpg"])
def test_a_cut_is_still_found(tmp_path, decoder, name):
    path = tmp_path / name
    if name in LIVE:
        write_live(path, LIVE[name])
    else:
        write_video(path, 30, codec="mpeg2video", fps=25)
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(data) // 2, len(data) - 1, 5):
        path.write_bytes(data[:at])
        with raises("damaged", VideoError):
            num_frames(decoder, path)


def box(kind, size=8):
    return struct.pack(">I4s", size, kind) + bytes(size - 8)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (box(b"ftyp") + box(b"moov", 20), 28),
        (box(b"ftyp") + box(b"moov", 20) + TEXT, 28),
        (box(b"ftyp") + box(b"moov", 20) + b"\0\0", 28),
        (box(b"ftyp") + box(b"moov", 20) + box(b"mdat", 30)[:20], 58),
        (box(b"ftyp") + box(b"moov", 20) + box(b"moof", 30)[:6], 58),
        (box(b"ftyp") + struct.pack(">I4s", 0, b"mdat") + bytes(10), 26),
        (box(b"ftyp") + struct.pack(">I4sQ", 1, b"mdat", 40) + bytes(24), 48),
        (box(b"ftyp") + TEXT + box(b"moof", 20), 8 + len(TEXT) + 20),  # damaged in between: FFmpeg must see all of it
    ],
)
def test_boxes(data, end):
    assert mp4_end(io.BytesIO(data), len(data)) == end


def chunk(name, data, size=None):
    return name + struct.pack("<I", len(data) if size is None else size) + data


PICTURES = chunk(b"00dc", b"1234") + chunk(b"00dc", b"") + chunk(b"01wb", b"12") + chunk(b"00dc", b"123") + b"\0"


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, None])
def test_avi_chunks(size):
    movi = chunk(b"LIST", b"movi" + PICTURES, size)
    whole = chunk(b"RIFF", b"AVI " + movi, size)
    end, num_chunks, num_pictures = walk_avi(io.BytesIO(whole + TEXT), len(whole) + len(TEXT))
    assert (end, num_chunks[0], num_pictures[0]) == (len(whole), 3, 2)
    assert avi_end(io.BytesIO(whole), len(whole)) == len(whole)
    assert avi_end(io.BytesIO(whole[:-3]), len(whole) - 3) > len(whole) - 3


def test_an_avi_in_two_riffs():
    data = chunk(b"RIFF", b"AVI ") + chunk(b"RIFF", b"AVIX1234")
    assert avi_end(io.BytesIO(data), len(data)) == len(data)
    assert avi_end(io.BytesIO(data[:-1]), len(data) - 1) == len(data)


def test_pages_tags_objects_and_packs():
    page = b"OggS" + bytes(22) + bytes([2, 3, 4]) + bytes(7)
    assert ogg_end(io.BytesIO(page + TEXT), 100) == len(page)
    assert ogg_end(io.BytesIO(page[:-1]), len(page) - 1) == len(page)
    flv = b"FLV\x01\x01\0\0\0\x09" + bytes(4) + bytes([9, 0, 0, 5]) + bytes(7 + 5 + 4)
    assert flv_end(io.BytesIO(flv), len(flv)) == len(flv)
    assert flv_end(io.BytesIO(flv[:-6]), len(flv) - 6) == len(flv)
    asf = bytes.fromhex("3026b2758e66cf11") + bytes(8) + struct.pack("<Q", 30) + bytes(6)
    assert asf_end(io.BytesIO(asf + TEXT), len(asf + TEXT)) == len(asf)
    assert asf_end(io.BytesIO(asf[:-1]), len(asf) - 1) == len(asf)
    pack = b"\0\0\1\xba\x44" + bytes(8) + b"\xf8" + b"\0\0\1\xe0\0\x05" + bytes(5)
    assert program_stream_end(io.BytesIO(pack + bytes(9)), len(pack) + 9) == len(pack)
    assert program_stream_end(io.BytesIO(pack[:-2]), len(pack) - 2) == len(pack)


def test_recordings_of_studios_and_camcorders():
    header = bytes.fromhex("060e2b34020501010d01020101020400") + b"\x83\0\0\x68" + bytes(24)
    assert mxf_end(io.BytesIO(header + (5000).to_bytes(8, "big") + TEXT), 300) == 5001
    assert mxf_end(io.BytesIO(header + bytes(8) + TEXT), 300) == 300, "a live recording has no footer yet"
    assert mxf_end(io.BytesIO(header[:9]), 9) == 9
    assert dv_end(io.BytesIO(bytes.fromhex("1f07003f")), 240_000) == 240_000  # NTSC
    assert dv_end(io.BytesIO(bytes.fromhex("1f0700bf")), 240_000) == 288_000  # PAL


def test_the_gate_returns_the_end_of_the_container(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + TEXT)
    assert check_file(path) == size
