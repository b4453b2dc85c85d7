"""The worker's gloved hand with a sponge or a trowel, and its strokes.

A tool is painted around its point of contact at (0, 0); the arm enters the frame from the lower right.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.synthetic.paint import RGB, Canvas, Point, Pose, Vector, capsule, cover, grain, mix, rounded_box, shade
from pipeline.synthetic.scene import Worker

TOOL_LEFT, TOOL_TOP, TOOL_SIZE = -36.0, -34.0, 164.0
SLOWEST_HZ, FASTEST_HZ = 0.7, 3.0


def _hand(canvas: Canvas, wrist: Point, angle: float, worker: Worker, light: Vector, *, grip: float) -> None:
    """An arm from outside the frame to the wrist, and four fingers that reach `grip` beyond it."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    cuff = mix(worker.glove_rgb, (1, 1, 1), 0.25)

    def at(along: float, aside: float) -> Point:
        return wrist[0] + along * cos - aside * sin, wrist[1] + along * sin + aside * cos

    capsule(canvas, at(26, 0), at(190, 0), (10.5, 15), worker.sleeve_rgb, light)
    capsule(canvas, at(6, 0), at(30, 0), (9, 11), worker.glove_rgb, light, gloss=0.25)
    capsule(canvas, at(32, -9), at(32, 9), 3.2, cuff, light, gloss=0.2)
    capsule(canvas, at(2, 11), at(-grip * 0.55, 15), (4.6, 3.8), worker.glove_rgb, light, gloss=0.25)
    capsule(canvas, at(-4, -2), at(8, 0), (12.5, 10), worker.glove_rgb, light, gloss=0.2)
    for aside, reach in ((-9.5, 0.75), (-3.4, 1.0), (2.8, 1.0), (8.6, 0.85)):
        capsule(canvas, at(-4, aside), at(-grip * reach, aside), (4.4, 3.6), worker.glove_rgb, light, gloss=0.3)


def _sponge(canvas: Canvas, angle: float, colour: RGB, light: Vector, rng: np.random.Generator) -> None:
    part = canvas.window(-24, -24, 24, 24)
    u, v = Pose(0, 0, 1, angle).local(part)
    distance = rounded_box(u, v, 11, 18, 4)
    pores = np.minimum(grain(rng, u.shape, cell=(3, 3)), 0) * 0.22
    part.paint(shade(mix(colour, (0.1, 0.4, 0.2), 0.75), u / 40 - 0.3, v / 40, light), cover(distance))
    foam = shade(np.asarray(colour, np.float32) + pores[..., None], u / 40, v / 40, light)
    part.paint(foam, cover(rounded_box(u - 3.5, v, 11, 18, 4)) * cover(distance))


def _blade(canvas: Canvas, angle: float, mortar: RGB, light: Vector, rng: np.random.Generator) -> None:
    part = canvas.window(-34, -34, 34, 34)
    u, v = Pose(0, 0, 1, angle).local(part)
    side = np.abs(v) - 12 * np.clip((u + 24) / 24, 0, 1)
    distance = np.maximum(np.maximum(side, -24 - u), u - 14 + np.abs(v) * 0.4)
    steel = shade((0.62, 0.65, 0.68), 0.25 + v / 50, v / 30, light, gloss=0.4)
    part.paint(steel, cover(distance))
    lump = np.hypot((u + 2) / 11, v / 7) - 1 + 0.25 * grain(rng, u.shape, cell=(6, 6))
    part.paint(shade(mortar, u / 30, v / 22, light), cover(lump * 7))


def sponge_hand(worker: Worker, light: Vector, rng: np.random.Generator) -> Image.Image:
    """A gloved hand on a sponge."""
    canvas = Canvas(TOOL_SIZE, TOOL_SIZE, left=TOOL_LEFT, top=TOOL_TOP)
    angle = worker.arm_angle + float(rng.uniform(-0.12, 0.12))
    _sponge(canvas, angle + float(rng.uniform(-0.2, 0.2)), worker.tool_rgb, light, rng)
    _hand(canvas, (16 * np.cos(angle), 16 * np.sin(angle)), angle, worker, light, grip=19)
    return canvas.image()


def trowel_hand(worker: Worker, mortar: RGB, light: Vector, rng: np.random.Generator) -> Image.Image:
    """A gloved hand on a pointing trowel with mortar."""
    canvas = Canvas(TOOL_SIZE, TOOL_SIZE, left=TOOL_LEFT, top=TOOL_TOP)
    angle = worker.arm_angle + float(rng.uniform(-0.12, 0.12))
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    _blade(canvas, angle, mortar, light, rng)
    capsule(canvas, (12 * cos, 12 * sin), (26 * cos, 26 * sin), 1.8, (0.55, 0.57, 0.6), light, gloss=0.4)
    capsule(canvas, (24 * cos, 24 * sin), (44 * cos, 44 * sin), 4.2, worker.tool_rgb, light, gloss=0.2)
    _hand(canvas, (42 * cos, 42 * sin), angle, worker, light, grip=13)
    return canvas.image()


def strokes(
    speed: float, care: float, reach: Point, num_frames: int, *, fps: float, rng: np.random.Generator
) -> np.ndarray:
    """Offsets [T, 2] of the tool from the middle of its area, in frame pixels.

    Speed sets the tempo, 0.7 to 3 strokes per second. Care sets the shape: short straight strokes on one spot at 0,
    round strokes that cover the area at 1.
    """
    tempo_hz = (SLOWEST_HZ + (FASTEST_HZ - SLOWEST_HZ) * speed) * rng.uniform(0.95, 1.05)
    phase = 2 * np.pi * (rng.random() + tempo_hz * np.arange(num_frames) / fps)
    lean = rng.uniform(-0.9, -0.3)  # across the direction of the arm, as a hand moves
    straight = 6.5 * np.sin(phase)[:, None] * np.array([np.cos(lean), np.sin(lean)])
    spot = rng.uniform(-0.35, 0.35, 2) * reach
    round_ = np.stack([np.cos(phase), np.sin(phase)], axis=1) * reach
    return (1 - care) * (spot + straight) + care * round_
