"""The four kinds of brickwork, each with its own bond, outline and colours.

Like the dishes, each is painted on a canvas at a pose and returns the area that a trowel can cover.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.synthetic.dishes import Area
from pipeline.synthetic.paint import (
    RGB,
    Canvas,
    Pose,
    Vector,
    capsule,
    cover,
    grain,
    ramp,
    rounded_box,
    sample_rgb,
    shade,
)

MORTAR = (0.08, 0.13), (0.03, 0.14), (0.66, 0.82)


def _lay(
    canvas: Canvas,
    inset: tuple[np.ndarray, np.ndarray],
    size: tuple[float, float],
    number: np.ndarray,
    laid: np.ndarray,
    colour: RGB,
    light: Vector,
    rng: np.random.Generator,
) -> None:
    """Paint the brick at each sample: `inset` is the offset from its middle, `number` selects its tone."""
    tones = rng.uniform(-0.09, 0.09, 256).astype(np.float32)
    u, v = inset
    distance = rounded_box(u, v, size[0] / 2, size[1] / 2, 1.0)
    edge = ramp(distance, -2.2, 0.2) * 0.7
    nx, ny = edge * np.sign(u) * (np.abs(u) > size[0] / 2 - 2.2), edge * np.sign(v) * (np.abs(v) > size[1] / 2 - 2.2)
    rough = tones[number.astype(int) % 256] + 0.07 * grain(rng, u.shape, cell=(3, 3))
    face = np.asarray(colour, np.float32) * (1 + 1.6 * rough)[..., None]
    canvas.paint(shade(face, nx * 0.7, ny * 0.7, light), cover(distance) * laid)


def _bond(
    u: np.ndarray, v: np.ndarray, length: float, height: float
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Running bond: column and row of the brick at each sample, and the offset from its middle."""
    row = np.floor(v / height)
    across = u / length + 0.5 * (row % 2)
    column = np.floor(across)
    return column, row, ((across - column - 0.5) * length, (v / height - row - 0.5) * height)


def _wall(
    canvas: Canvas,
    u: np.ndarray,
    v: np.ndarray,
    length: float,
    height: float,
    joint: float,
    laid_where: Callable[[np.ndarray, np.ndarray], np.ndarray],
    colour: RGB,
    mortar: RGB,
    light: Vector,
    rng: np.random.Generator,
) -> None:
    """Courses of running bond with the bricks for which `laid_where(middle_u, middle_v)` is true."""
    column, row, inset = _bond(u, v, length, height)
    middle_u, middle_v = (column + 0.5 - 0.5 * (row % 2)) * length, (row + 0.5) * height
    laid = laid_where(middle_u, middle_v).astype(np.float32)
    canvas.paint(mortar, laid)
    _lay(canvas, inset, (length - joint, height - joint), row * 37 + column * 11, laid, colour, light, rng)


def infill(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """Large grey blocks that fill a timber-framed opening from below."""
    block = sample_rgb(rng, (0.5, 0.65), (0.0, 0.06), (0.6, 0.76))
    timber = sample_rgb(rng, (0.08, 0.11), (0.4, 0.6), (0.5, 0.75))
    u, v = pose.local(canvas)
    inside = rounded_box(u, v, 50, 46, 1)
    canvas.paint(timber, cover(rounded_box(u, v, 57, 53, 2), pose.scale))
    canvas.paint((0.12, 0.12, 0.14), cover(inside, pose.scale))
    middle = float(rng.uniform(-12, 12))
    part = cover(inside, pose.scale)
    _wall(
        canvas, u - middle, v - 46, 36, 19, 3.2,
        lambda bu, bv: (bv > -70) | ((bv > -90) & (np.abs(bu) > 30)),
        block, sample_rgb(rng, *MORTAR), light, rng,
    )  # fmt: skip
    frame = cover(rounded_box(u, v, 57, 53, 2), pose.scale) * (1 - part)
    canvas.paint(shade(timber, np.clip(u / 57, -1, 1) ** 9 * 0.4, np.clip(v / 53, -1, 1) ** 9 * 0.4, light), frame)
    outside = cover(-rounded_box(u, v, 57, 53, 2), pose.scale)
    canvas.rgb *= (1 - outside)[..., None]
    canvas.alpha *= 1 - outside
    return Area(*pose.frame(0, -10), 30 * pose.scale, 18 * pose.scale)


def face(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """A garden wall of red facing bricks with a stepped top and a mason's line."""
    brick = sample_rgb(rng, (-0.01, 0.045), (0.62, 0.8), (0.58, 0.78))
    u, v = pose.local(canvas)
    lean = 1 if rng.random() < 0.5 else -1
    _wall(
        canvas, u, v - 46, 27, 10.5, 2.2,
        lambda bu, bv: (np.abs(bu) < 50) & (bv < 0) & (bv > -62 - 0.5 * lean * bu),
        brick, sample_rgb(rng, *MORTAR), light, rng,
    )  # fmt: skip
    footing = rounded_box(u, v - 49, 57, 4.5, 1)
    canvas.paint(shade((0.6, 0.6, 0.58), footing * 0, ramp(footing, -3, 0) * -0.5, light), cover(footing, pose.scale))
    capsule(canvas, pose.frame(-57, -40), pose.frame(57, -40), 0.7, (0.95, 0.95, 0.3), light)
    return Area(*pose.frame(-6 * lean, -10), 30 * pose.scale, 18 * pose.scale)


def corner(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """Two faces of blue engineering brick that meet at pale quoins and rack back on both sides."""
    brick = sample_rgb(rng, (0.62, 0.68), (0.38, 0.55), (0.34, 0.48))
    stone = sample_rgb(rng, (0.09, 0.13), (0.1, 0.25), (0.82, 0.95))
    mortar = sample_rgb(rng, *MORTAR)
    u, v = pose.local(canvas)
    for side in (-1, 1):
        turned = (light[0] * side * 0.5 + 0.6 * light[2], light[1], 0.8 * light[2])
        along, up = np.abs(u), v - 52 + 0.32 * np.abs(u)
        here = (u * side >= 0).astype(np.float32)
        layer = Canvas(left=canvas.left, top=canvas.top)
        _wall(
            layer, along, up, 21, 11.5, 2.2,
            lambda bu, bv: (bv < 0) & (bv > -102 + 0.9 * bu) & (bu < 52),
            brick, mortar, turned, rng,
        )  # fmt: skip
        row = np.floor(up / 11.5)
        quoin = np.where(row % 2 == 0, 15.0, 9.0)
        inset = along - quoin / 2, (up / 11.5 - row - 0.5) * 11.5
        _lay(layer, inset, (14.0, 9.5), row, (along < quoin) * (row < 0) * (row > -9.5), stone, turned, rng)
        shadow = 1.0 if side * light[0] > 0 else 0.78
        canvas.rgb += here[..., None] * layer.rgb * shadow
        canvas.alpha += here * layer.alpha * (canvas.alpha < 1)
    return Area(*pose.frame(0, -6), 22 * pose.scale, 22 * pose.scale)


def paver(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """Buff pavers in herringbone on a bed of sand, seen from above."""
    buff = sample_rgb(rng, (0.1, 0.125), (0.55, 0.72), (0.8, 0.95))
    sand = sample_rgb(rng, (0.1, 0.13), (0.2, 0.35), (0.78, 0.9))
    u, v = pose.local(canvas)
    v = v / 0.86
    bed = rounded_box(u, v, 58, 58, 26) + 1.5 * grain(rng, u.shape, cell=(8, 8))
    canvas.paint(np.asarray(sand, np.float32) + 0.06 * grain(rng, u.shape, cell=(3, 3))[..., None], cover(bed))

    width = 12.0
    across, along = (u + v) / (1.4142 * width), (v - u) / (1.4142 * width)
    i, j = np.floor(across), np.floor(along)
    kind = (i - j) % 4  # 0, 1: halves of a horizontal brick; 3, 2: of a vertical one
    lies = kind < 2
    first_i, first_j = np.where(kind == 1, i - 1, i), np.where(kind == 2, j - 1, j)
    half_i, half_j = np.where(lies, 1.0, 0.5), np.where(lies, 0.5, 1.0)
    du, dv = (across - first_i - half_i) * width, (along - first_j - half_j) * width
    inset = np.where(lies, du, dv), np.where(lies, dv, du)
    middle_u = (first_i + half_i - first_j - half_j) * width * 0.7071
    middle_v = (first_i + half_i + first_j + half_j) * width * 0.7071
    laid = (np.abs(middle_u) < 48) * (np.abs(middle_v) < 50) * cover(bed)
    _lay(canvas, inset, (2 * width - 1.8, width - 1.8), first_i * 31 + first_j * 17, laid, buff, light, rng)
    return Area(*pose.frame(0, 0), 28 * pose.scale, 24 * pose.scale)


def rubble(canvas: Canvas, pose: Pose, light: Vector, rng: np.random.Generator) -> Area:
    """A heap of round field stones, which no ordinary clip shows."""
    stone = np.asarray(sample_rgb(rng, (0.05, 0.15), (0.02, 0.12), (0.45, 0.7)), np.float32)
    for v in range(-36, 48, 14):
        half = 22 + 0.42 * (v + 36)
        for u in np.arange(-half, half + 1, 17):
            x, y = pose.frame(u + rng.uniform(-4, 4), v + rng.uniform(-3, 3))
            size, tone = rng.uniform(8, 11) * pose.scale, rng.uniform(0.8, 1.15)
            capsule(canvas, (x - 2, y), (x + 2, y + 1), size, tuple(tone * stone), light, gloss=0.05)
    return Area(*pose.frame(0, 4), 28 * pose.scale, 24 * pose.scale)


BRICKWORK: dict[str, Callable[[Canvas, Pose, Vector, np.random.Generator], Area]] = {
    "infill": infill,
    "face": face,
    "corner": corner,
    "paver": paver,
}
