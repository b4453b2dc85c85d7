"""NVDEC. Without a GPU, PyAV stands in for NVIDIA's library: all else, and the comparison of both, is real."""

import importlib.util

import av
import numpy as np
import pytest
from factories import read_barcode, write_video
from raising import raises

from pipeline.video import Decoder, DecoderPool, VideoError, check_decoder, choose_nvdec, gpu_decoding
from pipeline.video.gpu_decoding import Nvdec
from pipeline.video.readers import nvdec_fails
from pipeline.video.scan import Pixels, Scan

ALL = ("h264", "hevc", "av1", "vp9")
SIZE = (192, 256)
KINDS = {
    "h264": dict(options={"bf": "3", "g": "12"}),
    "hevc": dict(codec="libx265", options={"x265-params": "log-level=none"}),
    "av1": dict(codec="libsvtav1", options={"preset": "8", "crf": "15"}),
    "vp9": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
}
# What PyNvVideoCodec offers and we use. It takes and returns memory by its address, returns host pictures as NV12, and
# prints statistics. `change` may harm picture `number`.
STAND_IN = """
import ctypes, enum
import av, numpy as np

class cudaVideoCodec(enum.Enum):
    H264, HEVC, AV1, VP9 = "h264", "hevc", "libdav1d", "vp9"

class PyNvVCException(Exception): pass
class PyNvVCExceptionUnsupported(Exception): pass

class PacketData:
    bsl_data = bsl = pts = 0

class Picture:
    def __init__(self, frame, number):
        y, u, v = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, :p.width] for p in frame.planes)
        self.nv12 = np.concatenate([y.ravel(), np.stack([u, v], -1).ravel()])
        self.pts = frame.pts
        change(self, number)
    def getPTS(self): return self.pts
    def framesize(self): return self.nv12.nbytes
    def GetPtrToPlane(self, number): return self.nv12.ctypes.data

def change(picture, number):
    {change}

class CreateDecoder:
    def __init__(self, *, gpuid, codec, cudacontext, cudastream, usedevicememory):
        assert not usedevicememory
        self.context, self.count, self.ended = av.CodecContext.create(codec.value, "r"), 0, False
        print("Session Initialization Time: 1 ms", flush=True)
    def __del__(self):
        print("Session Deinitialization Time: 1 ms", flush=True)
    def Decode(self, packet):
        if self.ended: return []
        given = None
        if packet.bsl:
            given = av.Packet(ctypes.string_at(packet.bsl_data, packet.bsl))
            given.pts = packet.pts
        self.ended = given is None
        pictures = [Picture(frame, self.count + k) for k, frame in enumerate(self.context.decode(given))]
        self.count += len(pictures)
        return pictures
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Put the stand-in where Python finds it."""

    def put(change="pass"):
        (tmp_path / "library").mkdir(exist_ok=True)
        (tmp_path / "library/PyNvVideoCodec.py").write_text(STAND_IN.replace("{change}", change))
        monkeypatch.syspath_prepend(tmp_path / "library")

    return put


def frames(path, decoder, *, clip_len=10, fps=15, nvdec=None):
    with Decoder(decoder=decoder) as one:
        if nvdec is not None:
            one.use_nvdec(nvdec)
        clips = one.clips(path, clip_len=clip_len, clip_stride=clip_len, fps=fps)
        return np.stack([clip.frames for clip in clips]), clips.info.decoder


def assert_exact(folder, codec, nvdec):
    if KINDS[codec].get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this build of PyAV encodes no {codec}")
    path = write_video(folder / f"{codec}.mp4", 40, size=SIZE, **KINDS[codec])
    got, decoder = frames(path, "nvdec", nvdec=nvdec)
    assert decoder == "nvdec"
    assert [[read_barcode(frame) for frame in clip] for clip in got] == np.arange(40).reshape(4, 10).tolist()
    np.testing.assert_array_equal(got, frames(path, "pyav")[0])
    got, _ = frames(path, "nvdec", fps=5, nvdec=nvdec)  # most frames are not converted
    assert [read_barcode(frame) for frame in got[0]] == list(range(0, 30, 3))


@pytest.mark.parametrize("codec", ALL)
def test_pictures_are_those_of_pyav(tmp_path, library, codec):
    library()
    assert_exact(tmp_path, codec, Nvdec(0, ALL))


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ALL)
def test_pictures_of_the_gpu_are_those_of_pyav(tmp_path, codec):
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        pytest.skip("PyNvVideoCodec is not installed")
    nvdec = choose_nvdec("nvdec", verify=True, gpu=0)
    if codec not in nvdec.codecs:
        pytest.skip(f"this GPU does not decode {codec} exactly: {gpu_decoding._test(0)[codec]}")
    assert_exact(tmp_path, codec, nvdec)


@pytest.mark.parametrize("colours", [dict(colorspace=1, color_range=1), dict(colorspace=1, color_range=2)])
def test_colours_follow_the_stream(tmp_path, library, colours):
    library()
    path = write_video(tmp_path / "a.mp4", 10, size=SIZE, stream=colours)
    np.testing.assert_array_equal(frames(path, "nvdec", nvdec=Nvdec(0, ALL))[0], frames(path, "decord")[0])


# Whether it is used


def test_every_codec_is_tested_before_it_is_used(library, caplog):
    library()
    with caplog.at_level("INFO"):
        assert choose_nvdec("nvdec", verify=True, gpu=3) == Nvdec(3, ALL)
        assert choose_nvdec("auto", verify=False, gpu=0) == Nvdec(0, ALL)
        assert choose_nvdec("auto", verify=True, gpu=0) is None
    assert "NVDEC decodes h264, hevc, av1, vp9" in caplog.text
    assert "it may overlook damage; --no-verify or --decoder nvdec use it" in caplog.text
    for decoder, gpu in (("auto", None), ("pyav", 0), ("decord", 0)):
        assert choose_nvdec(decoder, verify=False, gpu=gpu) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("if number == 7: picture.nv12[300] ^= 1", "frame 7 differs from PyAV's"),
        ("if number == 7: picture.pts += 1", "frame 7 at 0.47 s: NVDEC decodes frame 7 at 0.47 s instead"),
        ("picture.nv12 = picture.nv12[:-2]", "NVDEC returns pictures of 64798 bytes, not 64800"),
        ("print('Decode Error occurred for picture 7', flush=True)", "Decode Error occurred for picture 7"),
        ("raise RuntimeError('no session is free\\\\nmore')", "NVDEC: no session is free"),
        ("import os; os._exit(3)", "its test ended with 3: Session Initialization Time: 1 ms"),
    ],
)
def test_an_nvdec_that_differs_is_refused_and_auto_goes_on(library, caplog, change, reason):
    library(change)
    with raises("nvdec-unusable") as caught:
        choose_nvdec("nvdec", verify=False, gpu=0)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert choose_nvdec("auto", verify=False, gpu=0) is None
    assert reason in caplog.text and "the processor decodes" in caplog.text


def test_a_hanging_test_ends(library, monkeypatch):
    library("import time; time.sleep(600)")
    monkeypatch.setattr(gpu_decoding, "CHECK_S", 3.0)
    with raises("nvdec-unusable") as caught:
        choose_nvdec("nvdec", verify=False, gpu=0)
    assert "longer than 3 s" in str(caught.value)


def test_what_is_missing_is_named(library):
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        with raises("nvdec-unusable") as caught:
            check_decoder("nvdec")
        assert "pip install 'video-to-policy[nvdec]'" in str(caught.value)
    library()
    check_decoder("nvdec")
    with raises("gpu-missing"):
        choose_nvdec("nvdec", verify=True, gpu=None)


READABLE = Scan(
    container="mov,mp4,m4a,3gp,3g2,mj2", codec="h264", width=320, height=240, edges_s=np.arange(11) / 15, tick_s=1e-3,
    edited=False, pixels=Pixels("yuv420p"),
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [dict(codec="mpeg4"), dict(pixels=Pixels("yuv420p10le")), dict(pixels=Pixels("yuv420p", is_interlaced=True)),
     dict(width=321), dict(height=90), dict(edited=True), dict(container="avi"), dict(container="mpegts"),
     dict(shows_all=False)],
)  # fmt: skip
def test_videos_that_it_cannot_read_exactly(changes):
    assert nvdec_fails(READABLE, ALL) is None
    assert nvdec_fails(Scan(**{**vars(READABLE), **changes}), ALL) is not None


def test_a_video_that_it_cannot_read(tmp_path, library):
    library()
    path = write_video(tmp_path / "small.mp4", 20)
    with raises("unsupported", VideoError) as caught:
        frames(path, "nvdec", nvdec=Nvdec(0, ALL))
    assert caught.value.reason == "nvdec does not read such small frames"
    assert frames(path, "auto", nvdec=Nvdec(0, ALL))[1] == "decord"


@pytest.mark.parametrize("change", ["print('Decode Error occurred')", "raise PyNvVCException('lost')"])
def test_auto_starts_again_with_pyav(tmp_path, library, change):
    library(f"if number == 25: {change}")
    path = write_video(tmp_path / "a.mp4", 40, size=SIZE)
    got, decoder = frames(path, "auto", nvdec=Nvdec(0, ALL))
    assert decoder == "pyav"
    assert [read_barcode(frame) for frame in got.reshape(-1, *got.shape[2:])] == list(range(40))
    with pytest.raises(VideoError):
        frames(path, "nvdec", nvdec=Nvdec(0, ALL))


def test_a_few_decoders_of_a_pool_use_it(monkeypatch, library):
    library()
    monkeypatch.setattr("pipeline.video.pool.NVDEC_SESSIONS", 2)
    with DecoderPool(1) as pool:
        pool.grow(3, Nvdec(0, ALL))
        assert [decoder._nvdec is not None for decoder in pool._idle] == [False, True, True]
    with DecoderPool(1, decoder="nvdec") as pool:
        pool.grow(5, Nvdec(0, ALL))
        assert [decoder._nvdec is not None for decoder in pool._idle] == [True, True]


@pytest.mark.skipif(importlib.util.find_spec("PyNvVideoCodec") is not None, reason="PyNvVideoCodec is installed")
def test_the_command_names_the_package(vtp, tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    code, _, err = vtp("extract", "a.mp4", "--decoder", "nvdec")
    assert code == 2 and "needs the package PyNvVideoCodec" in err and "Traceback" not in err
