"""Display matrices, by hand and through files."""

import struct

import av
import numpy as np
import pytest
from raising import raises

from pipeline.video import Decoder, VideoError
from pipeline.video.orientation import UPRIGHT, orientation

PICTURE = np.array([["R", "G"], ["B", "W"]])
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}
MATRICES = {  # (a, b, c, d), and what is shown
    "upright": ((1, 0, 0, 1), "RGBW"),
    "mirrored": ((-1, 0, 0, 1), "GRWB"),
    "upside down": ((1, 0, 0, -1), "BWRG"),
    "half a turn": ((-1, 0, 0, -1), "WBGR"),
    "a quarter": ((0, 1, -1, 0), "BRWG"),
    "three quarters": ((0, -1, 1, 0), "GWRB"),
    "transposed": ((0, 1, 1, 0), "RBGW"),
    "about the other diagonal": ((0, -1, -1, 0), "WGBR"),
    "stretched": ((2, 0, 0, 1), "RGBW"),
    "half a degree": ((0.99996, 0.0087, -0.0087, 0.99996), "RGBW"),
    "of zeros": ((0, 0, 0, 0), "RGBW"),
}
REFUSED = {
    "45 degrees": (0.7071, 0.7071, -0.7071, 0.7071),
    "3 degrees": (0.9986, 0.0523, -0.0523, 0.9986),
    "sheared": (1, 0, 0.5, 1),
    "flat": (1, 0, 0, 0),
}


def fixed_point(a, b, c, d):
    a, b, c, d = (round(value * 65536) for value in (a, b, c, d))
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize("name", MATRICES)
def test_each_right_angle_and_mirror(name):
    matrix, shown = MATRICES[name]
    turned = orientation(struct.pack("=9i", *fixed_point(*matrix))).apply(PICTURE[..., None])
    assert "".join(turned.ravel()) == shown


@pytest.mark.parametrize("name", REFUSED)
def test_other_matrices_are_refused(name):
    with raises("unsupported", VideoError):
        orientation(struct.pack("=9i", *fixed_point(*REFUSED[name])))


def test_perspective_is_refused():
    with raises("unsupported", VideoError):
        orientation(struct.pack("=9i", 65536, 0, 1 << 20, 0, 65536, 0, 0, 0, 1 << 30))


def test_upright_changes_nothing():
    assert orientation(struct.pack("=9i", *fixed_point(1, 0, 0, 1))) == UPRIGHT


def write_quarters(path, *, matrix=None, size=(144, 176)):
    """Ten frames with a colour in each quarter."""
    frame = np.array([[COLOURS[name] for name in row] for row in PICTURE], np.uint8)
    frame = frame.repeat(size[0] // 2, 0).repeat(size[1] // 2, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if matrix is not None:
            stream.set_display_matrix(fixed_point(*matrix))
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def quarters(frame):
    height, width = frame.shape[:2]
    names = {tuple(value > 127 for value in colour): name for name, colour in COLOURS.items()}
    return "".join(
        names[tuple(bool(value > 127) for value in frame[y * height // 4, x * width // 4])]
        for y in (1, 3)
        for x in (1, 3)
    )


@pytest.fixture(scope="module")
def decoders():
    with Decoder() as auto, Decoder(decoder="pyav") as pyav, Decoder(decoder="decord") as decord:
        yield {"auto": auto, "pyav": pyav, "decord": decord}


@pytest.mark.parametrize("size", [(144, 176), (160, 160)])
@pytest.mark.parametrize("name", MATRICES)
def test_a_file_is_shown_by_its_matrix(tmp_path, decoders, name, size):
    matrix, shown = MATRICES[name]
    path = write_quarters(tmp_path / "a.mp4", matrix=matrix, size=size)
    for which, decoder in decoders.items():
        try:
            clips = list(decoder.clips(path, clip_len=1, clip_stride=1))
        except VideoError as error:
            assert (which, error.code) == ("decord", "unsupported")
        else:
            assert {quarters(clip.frames[0]) for clip in clips} == {shown}


@pytest.mark.parametrize("name", ["a quarter", "half a turn", "three quarters"])
def test_matroska_turns_too(tmp_path, decoders, name):
    matrix, shown = MATRICES[name]
    path = write_quarters(tmp_path / "a.mkv", matrix=matrix)
    clips = list(decoders["auto"].clips(path, clip_len=1, clip_stride=1))
    assert {quarters(clip.frames[0]) for clip in clips} == {shown}


def test_a_slanted_video_is_refused_by_name(tmp_path, decoders):
    path = write_quarters(tmp_path / "a.mp4", matrix=REFUSED["45 degrees"])
    with raises("unsupported", VideoError) as caught:
        list(decoders["auto"].clips(path))
    assert "by 45 degrees" in caught.value.reason
