"""The four kinds of dish, each with its own outline, colours and size.

A dish is painted on a canvas at a pose; the function returns the area that a sponge can cover. Each is centred on its
outline, and its handle points away from the hand, which comes from the lower right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.synthetic.paint import (
    RGB,
    Canvas,
    Point,
    Pose,
    Vector,
    band,
    capsule,
    cover,
    ellipse,
    grain,
    mix,
    ramp,
    rounded_box,
    sample_rgb,
    shade,
)


class Area(NamedTuple):
    """The ellipse that the tool can reach, in frame pixels."""

    x: float
    y: float
    reach_x: float
    reach_y: float


def _turned(
    u: np.ndarray,
    v: np.ndarray,
    r: np.ndarray,
    slope: np.ndarray,
    light: Vector,
    colour: RGB | np.ndarray,
    gloss: float,
) -> np.ndarray:
    """Shading of a turned surface seen from above; `slope` is the fall of its height with the radius."""
    steep = slope / (np.sqrt(1 + slope * slope) * np.maximum(r, 1e-3))
    return shade(colour, u * steep, v * steep, light, gloss=gloss, sharpness=24)


def _leftovers(canvas: Canvas, pose: Pose, radius: float, colour: RGB, rng: np.random.Generator) -> None:
    """A few smears of food."""
    for _ in range(rng.integers(2, 6)):
        angle, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform(0, 1))
        centre = pose.frame(float(r * np.cos(angle)), float(r * np.sin(angle)))
        radii = float(rng.uniform(1.5, 5.5)) * pose.scale, float(rng.uniform(1.5, 5.5)) * pose.scale
        ellipse(canvas, centre, radii, colour, float(rng.uniform(0.3, 0.7)))


def plate(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """White or cream, wide, with a blue rim, seen from above."""
    radius = 48.0
    body = sample_rgb(rng, (0.09, 0.14), (0.02, 0.12), (0.93, 1.0))
    rim = sample_rgb(rng, (0.57, 0.65), (0.55, 0.85), (0.5, 0.8))
    u, v = pose.local(canvas)
    v = v / 0.9
    r = np.hypot(u, v)
    slope = -0.55 * band(r, 0.58 * radius, 0.68 * radius, 3) - 0.16 * ramp(r, 0.68 * radius, 0.75 * radius)
    slope += 1.1 * ramp(r, 0.95 * radius, radius)
    painted = band(r, 0.8 * radius, 0.94 * radius, 0.4) + band(r, 0.735 * radius, 0.755 * radius, 0.4)
    colour = np.asarray(body, np.float32) + painted[..., None] * (np.asarray(rim, np.float32) - body)
    canvas.paint(_turned(u, v, r, slope, light, colour, 0.25), cover(r - radius, pose.scale))
    _leftovers(canvas, pose, 0.5 * radius, sample_rgb(rng, (0.02, 0.12), (0.5, 0.9), (0.3, 0.7)), rng)
    return Area(pose.x, pose.y, 30 * pose.scale, 27 * pose.scale)


def pan(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """Dark cast iron: a round body and a long handle."""
    radius = 37.0
    iron = sample_rgb(rng, (0.0, 1.0), (0.0, 0.12), (0.08, 0.15))
    angle = float(np.pi + rng.uniform(-0.35, 0.25))
    centre = Pose(*pose.frame(-19 * np.cos(angle), -12 * np.sin(angle)), pose.scale, pose.angle)

    def along(distance: float) -> Point:
        return centre.frame(distance * np.cos(angle), distance * np.sin(angle))

    capsule(canvas, along(radius - 4), along(radius + 6), (7.5 * pose.scale, 4.5 * pose.scale), iron, light, gloss=0.3)
    capsule(canvas, along(radius + 4), along(radius + 36), (4 * pose.scale, 5.5 * pose.scale), iron, light, gloss=0.45)
    ellipse(canvas, along(radius + 36), (2.2 * pose.scale, 2.2 * pose.scale), (0.35, 0.35, 0.36))

    u, v = centre.local(canvas)
    v = v / 0.93
    r = np.hypot(u, v)
    slope = -1.3 * band(r, 0.76 * radius, 0.93 * radius, 2) + 1.6 * ramp(r, 0.95 * radius, radius)
    floor = 1 - ramp(r, 0.74 * radius, 0.8 * radius)
    rough = 0.03 * grain(rng, r.shape, cell=(5, 5))
    worn = (rough + 0.05 * floor)[..., None] + np.asarray(iron, np.float32)
    canvas.paint(_turned(u, v, r, slope, light, worn, 0.22), cover(r - radius, pose.scale))
    _leftovers(canvas, centre, 0.6 * radius, sample_rgb(rng, (0.04, 0.1), (0.5, 0.8), (0.25, 0.45)), rng)
    return Area(centre.x, centre.y, 24 * pose.scale, 22 * pose.scale)


def glass(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """A tall stemmed glass, translucent cyan with bright streaks."""
    tint = sample_rgb(rng, (0.47, 0.52), (0.42, 0.6), (0.85, 0.97))
    u, v = pose.local(canvas)
    foot = np.hypot(u / 24, (v - 46) / 7.5)
    canvas.paint(mix(tint, (1, 1, 1), 0.25), cover((foot - 1) * 7.5, pose.scale) * (0.45 + 0.4 * ramp(foot, 0.6, 1)))

    # Half-width along the axis: a tulip bowl that narrows into the stem.
    depth = np.clip((v + 50) / 54, 0, 1)
    bowl = (24 + 10 * np.sin(np.pi * np.minimum(depth * 1.25, 1))) * np.sqrt(np.maximum(1 - depth**3.2, 0))
    half = np.maximum(bowl, 3.0 + 5 * ramp(v, 38, 47))
    across = np.clip(u / half, -1, 1)
    inside = cover(np.maximum(np.abs(u) - half, v - 46), pose.scale)
    inside *= cover(-50 - v - 6 * np.sqrt(1 - across * across), pose.scale)
    lit = shade(tint, across * 0.9, np.zeros_like(across), light, gloss=0.35, sharpness=40)
    canvas.paint(lit, inside * (0.5 + 0.45 * np.abs(across) ** 3))
    in_bowl = inside * band(v, -44, -6, 4)
    canvas.paint((1, 1, 1), in_bowl * (0.85 * band(across, -0.72, -0.6, 0.06) + 0.5 * band(across, 0.66, 0.74, 0.05)))

    mouth = np.hypot(u / 24, (v + 50) / 6)
    canvas.paint(mix(tint, (0.1, 0.35, 0.4), 0.35), cover((mouth - 1) * 6, pose.scale) * 0.5)
    canvas.paint((0.95, 1, 1), cover(np.abs(mouth - 1) * 6 - 0.7, pose.scale) * 0.9)
    x, y = pose.frame(6, -8)
    return Area(x, y, 12 * pose.scale, 22 * pose.scale)


def mug(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """Squat, in a saturated red or orange, with a handle and a pale inside."""
    glaze = sample_rgb(rng, (-0.03, 0.06), (0.8, 0.97), (0.72, 0.95))
    inner = sample_rgb(rng, (0.08, 0.13), (0.05, 0.2), (0.85, 0.97))
    u, v = pose.local(canvas)
    u = u - 8
    ring = np.hypot((u + 36) / 15, (v - 3) / 17)
    lobe = np.clip((ring - 1) * 15 / 5, -0.95, 0.95)
    unit = np.maximum(ring * 16, 1e-3)
    handle = shade(glaze, lobe * (u + 36) / unit, lobe * (v - 3) / unit, light, gloss=0.3)
    canvas.paint(handle, cover(np.abs(ring - 1) * 15 - 5, pose.scale))

    half = 33 - 4 * ramp(v, 18, 36)
    across = np.clip(u / half, -1, 1)
    bulge = np.sqrt(1 - across * across)
    body = cover(np.maximum(np.abs(u) - half, v - 25 - 9 * bulge), pose.scale) * cover(-24 - v, pose.scale)
    lit = shade(glaze, across * 0.95, np.full_like(across, -0.12), light, gloss=0.5, sharpness=30)
    canvas.paint(lit, body)
    canvas.paint((1, 1, 1), body * 0.4 * band(across, -0.68, -0.56, 0.05) * band(v, -8, 20, 4))

    mouth = np.hypot(u / 33, (v + 24) / 11)
    canvas.paint(shade(glaze, mouth * 0, mouth * 0 - 0.3, light, gloss=0.2), cover((mouth - 1) * 11, pose.scale))
    hole = np.hypot(u / 29.5, (v + 24) / 8.8)
    deep = np.asarray(inner, np.float32) * (0.55 + 0.45 * ramp(v, -33, -16))[..., None]
    canvas.paint(deep, cover((hole - 1) * 8.8, pose.scale))
    dregs = np.hypot(u / 22, (v + 20) / 4.5)
    canvas.paint(sample_rgb(rng, (0.05, 0.09), (0.6, 0.8), (0.25, 0.4)), cover((dregs - 1) * 4.5, pose.scale) * 0.8)
    x, y = pose.frame(14, 4)
    return Area(x, y, 15 * pose.scale, 15 * pose.scale)


def board(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """A wooden chopping board with round corners and a slot to hang it by, which no ordinary clip shows."""
    wood = sample_rgb(rng, (0.07, 0.1), (0.45, 0.65), (0.6, 0.85))
    u, v = pose.local(canvas)
    outline = rounded_box(u, v, 47, 33, 7)
    bevel = 0.6 * ramp(outline, -4, 0)
    rings = 0.5 * np.sin(v * 0.55 + 1.5 * grain(rng, u.shape, cell=(60, 8))) + grain(rng, u.shape, cell=(20, 2))
    planks = np.asarray(wood, np.float32) * (1 + 0.09 * rings)[..., None]
    lit = shade(planks, bevel * np.sign(u) * (np.abs(u) > 43), bevel * np.sign(v) * (np.abs(v) > 29), light)
    canvas.paint(lit, cover(outline, pose.scale))
    canvas.paint((0.1, 0.09, 0.08), cover(rounded_box(u + 38, v, 3, 11, 3), pose.scale))
    return Area(pose.x, pose.y, 30 * pose.scale, 22 * pose.scale)


DISHES: dict[str, Callable[[Canvas, Pose, Vector, np.random.Generator], Area]] = {
    "pan": pan,
    "plate": plate,
    "glass": glass,
    "mug": mug,
}
