"""The end that a container declares, from its headers alone.

If the declared end is beyond the file's, the file is cut off. Bytes after it are foreign, such as the text that
dashcams append. Sizes that a live recorder could not know are ignored: the contents are walked through instead.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import BinaryIO, NamedTuple

EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")

_BOXES = (*FIRST_BOXES, b"moof", b"mfra", b"sidx", b"ssix", b"meta", b"uuid", b"udta", b"emsg", b"prft")
_IN_SEGMENT = "114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1941a469", "1043a770", "1254c367", "ec", "bf"
_IN_CLUSTER = "e7", "a3", "a0", "ab", "a7", "af", "5854"
_EBML_IDS = tuple(map(bytes.fromhex, _IN_SEGMENT + _IN_CLUSTER))
_ASF_OBJECTS = tuple(map(bytes.fromhex, ("3026b275", "3626b275", "90080033", "d329e2d6", "f803b1fe", "d03fb73c")))
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA_HEADER = 50  # bytes
_PACK, _PROGRAM_END = bytes.fromhex("000001ba"), bytes.fromhex("000001b9")
_TAIL_BYTES = 4 << 20
_AVI_CHUNKS = (b"LIST", b"JUNK", b"idx1")
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
_HEAD_BYTES = 4096
_LOOK_BYTES = 16 << 20
_MORE_BOXES = re.compile(b"moof|moov|mdat")
_MORE_BLOCKS = re.compile(
    rb"\xa3(?:[\x80-\xff]|[\x40-\x7f].|[\x20-\x3f]..|[\x10-\x1f]...)[\x81-\x8f]..[\x00\x80]", re.DOTALL
)
_MORE_TAGS = re.compile(rb"[\x08\x09\x12].{7}\x00\x00\x00", re.DOTALL)


class Avi(NamedTuple):
    end: int
    num_chunks: Counter[int]  # by stream, including empty ones, which repeat the previous picture
    num_pictures: Counter[int]


def _foreign_from(file: BinaryIO, position: int, size: int, more: re.Pattern[bytes], count: int) -> int:
    """`position`, or `size` if the bytes after it look like more of a container that is damaged in between."""
    file.seek(position)
    return size if len(more.findall(file.read(_LOOK_BYTES))) >= count else position


def mp4_end(file: BinaryIO, size: int) -> int:
    """The end of the last top-level box of an mp4 or mov of `size` bytes."""
    position = 0
    while True:
        file.seek(position)
        header = file.read(16)
        box, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if box == 1 and len(header) == 16:
            box = int.from_bytes(header[8:], "big")
        if box == 0 and kind in _BOXES:  # the box runs to the end of the file
            return size
        if len(kind) == 0 or box < 8:
            return _foreign_from(file, position, size, _MORE_BOXES, 1)
        if position + box > size:
            is_cut = any(known.startswith(kind) for known in _BOXES)
            return position + box if is_cut else _foreign_from(file, position, size, _MORE_BOXES, 1)
        position += box


def matroska_end(file: BinaryIO, size: int) -> int:
    """The end of a Matroska file's segment, or of the last element in one of unknown size."""
    file.seek(0)
    at = file.read(_HEAD_BYTES).find(SEGMENT)
    if at < 0:
        return size
    file.seek(at)
    header, segment = _element(file.read(12))
    position = at + header
    if segment:
        return position + segment
    while position < size:
        file.seek(position)
        head = file.read(12)
        width = 9 - head[0].bit_length()
        if not any(name.startswith(head[:width]) for name in _EBML_IDS if len(name) == width):
            return _foreign_from(file, position, size, _MORE_BLOCKS, 3)
        header, length = _element(head)
        position += header + (length or 0)
    return position


def _element(head: bytes) -> tuple[int, int | None]:
    """Number of bytes of an element's header and of its content; None if unknown."""
    id_width = 9 - head[0].bit_length()
    rest = head[id_width : id_width + 8]
    if not rest or rest[0] == 0:
        return id_width + 1, None
    width = 9 - rest[0].bit_length()
    length = int.from_bytes(rest[:width], "big") & ((1 << 7 * width) - 1)
    return id_width + width, None if length == (1 << 7 * width) - 1 else length


def avi_end(file: BinaryIO, size: int) -> int:
    """The end of the last RIFF chunk of an AVI, or of the last chunk in one of unknown size."""
    position = 0
    while True:
        file.seek(position)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or len(header) < 8:
            return position
        if length in _UNKNOWN_SIZES:
            return walk_avi(file, size).end
        position += 8 + length


def walk_avi(file: BinaryIO, size: int) -> Avi:
    """Walk through every chunk of an AVI of `size` bytes, ignoring the sizes that its lists declare."""
    position, num_chunks, num_pictures = 0, Counter[int](), Counter[int]()
    while position < size:
        file.seek(position)
        header = file.read(8)
        name, end = header[:4], position + 8 + int.from_bytes(header[4:], "little")
        if name == b"RIFF" or (name == b"LIST" and file.read(4) in (b"movi", b"rec ")):
            position += 12
            continue
        is_picture = name[:2].isdigit() and name[2:] in (b"dc", b"db")
        if end > size and not (is_picture or name[:2].isdigit() or name in _AVI_CHUNKS):
            break
        if is_picture:
            num_chunks[int(name[:2])] += 1
            num_pictures[int(name[:2])] += header[4:] != bytes(4)
        position = end + (end % 2 if end < size else 0)
    return Avi(position, num_chunks, num_pictures)


def flv_end(file: BinaryIO, size: int) -> int:
    """The end of the last tag of an FLV."""
    file.seek(5)
    position = int.from_bytes(file.read(4), "big") + 4
    while position < size:
        file.seek(position)
        header = file.read(4)
        if header[0] & 0x1F not in (8, 9, 18):
            return _foreign_from(file, position, size, _MORE_TAGS, 3)
        position += 11 + int.from_bytes(header[1:], "big") + 4
    return position


def ogg_end(file: BinaryIO, size: int) -> int:
    """The end of the last page of an Ogg file."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(27)
        if not b"OggS".startswith(header[:4]):
            break
        lengths = file.read(header[26]) if len(header) == 27 else b""
        position += 27 + len(lengths) + sum(lengths)
    return position


def asf_end(file: BinaryIO, size: int) -> int:
    """The end of the last object of an ASF file, or of the last packet in a live one."""
    position, packet = 0, 0
    while position < size:
        file.seek(position)
        header = file.read(24)
        length = int.from_bytes(header[16:], "little")
        if header[:4] not in _ASF_OBJECTS:
            break
        if position == 0:
            properties = file.read(min(length, _HEAD_BYTES)).partition(_ASF_PROPERTIES)[2]
            packet = int.from_bytes(properties[76:80], "little")  # the size of all packets
        elif header[:4] == _ASF_OBJECTS[1] and not _ASF_DATA_HEADER < length < 1 << 62:
            if packet == 0:
                return size
            length = (size - position) - (size - position - _ASF_DATA_HEADER) % packet
            file.seek(position + length)
            if position + length < size and file.read(4) not in _ASF_OBJECTS:  # no index follows
                length += packet
        if length < 24:
            break
        position += length
    return position


def mxf_end(file: BinaryIO, size: int) -> int:
    """At least one byte past the start of the footer, if the header partition declares it (SMPTE ST 377-1, 7.1)."""
    file.seek(16)
    length = file.read(1)
    file.seek(17 + (length[0] & 0x7F if length >= b"\x80" else 0))  # BER: number of bytes of the length
    pack = file.read(32)
    footer = int.from_bytes(pack[24:32], "big")
    return size if footer == 0 else max(size, footer + 1)


def dv_end(file: BinaryIO, size: int) -> int:
    """The end of the last frame of a raw DV stream; the first frame states the standard (PAL or NTSC), and so the size
    of all."""
    file.seek(3)
    is_pal = file.read(1) >= b"\x80"
    frame_bytes = 144_000 if is_pal else 120_000
    return -(-size // frame_bytes) * frame_bytes


def program_stream_end(file: BinaryIO, size: int) -> int:
    """The end of the last packet of an MPEG program stream; of a long one, only the last packets are read."""
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    position, first = tail.find(_PACK), size - len(tail)
    while 0 <= position < len(tail):
        name = tail[position : position + 4]
        if name == _PACK:
            is_mpeg2 = tail[position + 4 : position + 5] >= b"\x40"
            position += 14 + (tail[position + 13 : position + 14] or b"\0")[0] % 8 if is_mpeg2 else 12
        elif name == _PROGRAM_END:
            position += 4
        elif _PACK[:3].startswith(name[:3]) and name[3:] >= b"\xbb":
            position += 6 + int.from_bytes(tail[position + 4 : position + 6], "big")
        else:  # padding, or bytes that only looked like a pack
            following = tail.find(_PACK, position + 1)
            if following < 0:
                return first + position
            position = following
    return size if position < 0 else first + position
