"""Check MPEG transport streams packet by packet: FFmpeg silently skips lost packets and pads the gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.video.error import damaged

PACKET_BYTES = 188
BLOCK_PACKETS = 1 << 15
NULL_PID = 0x1FFF


def check_packets(path: Path) -> None:
    """VideoError if a packet is out of step, marked as wrong, or missing by its stream's counter."""
    with open(path, "rb") as file:
        head = file.read(5)
        stamp_bytes = 0 if head[0] == 0x47 else 4  # Blu-ray puts a time stamp before each packet
        size = PACKET_BYTES + stamp_bytes
        counters: dict[int, int] = {}
        file.seek(0)
        position = 0
        while block := file.read(BLOCK_PACKETS * size):
            if len(block) % size:
                raise damaged(f"ends within a packet of {size} bytes")
            packets = np.frombuffer(block, np.uint8).reshape(-1, size)[:, stamp_bytes:]
            _check_block(packets, counters, position)
            position += len(packets)


def _check_block(packets: np.ndarray, counters: dict[int, int], position: int) -> None:
    """packets: [P, 188] uint8 from packet number `position` on; counters: the last counter of each stream so far."""
    out_of_step = np.flatnonzero((packets[:, 0] != 0x47) | (packets[:, 1] & 0x80 > 0))
    if len(out_of_step):
        raise damaged(f"transport packet {position + out_of_step[0]} is out of step or marked as wrong")
    pids = (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]
    has_payload = packets[:, 3] & 0x10 > 0
    has_adaptation = packets[:, 3] & 0x20 > 0
    restarts = has_adaptation & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 > 0)
    for pid in np.unique(pids[has_payload]):
        if pid == NULL_PID:
            continue
        (rows,) = np.nonzero((pids == pid) & has_payload)
        counter = packets[rows, 3].astype(int) & 0xF
        before = np.concatenate([[counters.get(int(pid), counter[0] - 1)], counter[:-1]])
        step = (counter - before) % 16
        wrong = np.flatnonzero((step != 1) & (step != 0) & ~restarts[rows])  # a packet may be sent twice
        if len(wrong):
            raise damaged(f"packets are missing before transport packet {position + rows[wrong[0]]}")
        counters[int(pid)] = int(counter[-1])
