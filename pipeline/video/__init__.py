"""Video files to clips of frames: check files, decode in a child process that can be killed, cut clips.

Only this room imports decord or av, and in it only the modules that run in the child.
"""

from pipeline.video.decoder import Clip, Decoder, Restart, VideoInfo
from pipeline.video.error import VideoError, unreadable
from pipeline.video.gate import check_file
from pipeline.video.gpu_decoding import check_decoder, choose_nvdec
from pipeline.video.pool import DecoderPool, num_decoders
from pipeline.video.windows import FRAME_SIZE, WHOLE, Span, Windows, clip_windows, resize_frame

__all__ = [
    "FRAME_SIZE",
    "WHOLE",
    "Clip",
    "Decoder",
    "DecoderPool",
    "Restart",
    "Span",
    "VideoError",
    "VideoInfo",
    "Windows",
    "check_decoder",
    "check_file",
    "choose_nvdec",
    "clip_windows",
    "num_decoders",
    "resize_frame",
    "unreadable",
]
