"""Painting with signed distances: antialiased shapes, lit by surface normals, on a supersampled float canvas.

Lengths are frame pixels (x right, y down, z towards the viewer); colours are RGB in [0, 1].
"""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

FRAME_HEIGHT, FRAME_WIDTH = 144, 192
SUPERSAMPLE = 2

RGB = tuple[float, float, float]
Point = tuple[float, float]
Vector = tuple[float, float, float]


class Canvas:
    """Premultiplied RGBA in float32, with the frame coordinates `x`, `y` of every sample."""

    def __init__(self, width: float = FRAME_WIDTH, height: float = FRAME_HEIGHT, *, left: float = 0, top: float = 0):
        columns, rows = round(width * SUPERSAMPLE), round(height * SUPERSAMPLE)
        self.left, self.top = left, top
        self.x = ((np.arange(columns, dtype=np.float32) + 0.5) / SUPERSAMPLE + left)[None, :]
        self.y = ((np.arange(rows, dtype=np.float32) + 0.5) / SUPERSAMPLE + top)[:, None]
        self.rgb = np.zeros((rows, columns, 3), np.float32)
        self.alpha = np.zeros((rows, columns), np.float32)

    def window(self, left: float, top: float, right: float, bottom: float) -> Canvas:
        """The part of this canvas that contains the box; painting on it paints this canvas."""
        columns = slice(*(max(0, round((edge - self.left) * SUPERSAMPLE)) for edge in (left, right)))
        rows = slice(*(max(0, round((edge - self.top) * SUPERSAMPLE)) for edge in (top, bottom)))
        part = Canvas.__new__(Canvas)
        part.left, part.top = self.left + columns.start / SUPERSAMPLE, self.top + rows.start / SUPERSAMPLE
        part.x, part.y = self.x[:, columns], self.y[rows]
        part.rgb, part.alpha = self.rgb[rows, columns], self.alpha[rows, columns]
        return part

    def paint(self, colour: RGB | np.ndarray, cover: np.ndarray) -> None:
        """Paint `colour` ([3] or [H, W, 3]) over the canvas with opacity `cover` [H, W]."""
        cover = np.broadcast_to(cover, self.alpha.shape)
        colour = np.asarray(colour, np.float32)
        self.rgb += cover[..., None] * (colour - self.rgb)
        self.alpha += cover * (1 - self.alpha)

    def image(self) -> Image.Image:
        """Straight-alpha RGBA."""
        rgba = np.empty((*self.alpha.shape, 4), np.float32)
        np.divide(self.rgb, np.maximum(self.alpha, 1e-3)[..., None], out=rgba[..., :3])
        rgba[..., 3] = self.alpha
        return Image.fromarray((np.clip(rgba, 0, 1) * 255 + 0.5).astype(np.uint8))


class Pose(NamedTuple):
    """Position, scale and tilt of an object in the frame."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0

    def local(self, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
        """The canvas's coordinates in the object's own frame [H, W] each."""
        cos, sin = np.float32(np.cos(self.angle) / self.scale), np.float32(np.sin(self.angle) / self.scale)
        x, y = canvas.x - self.x, canvas.y - self.y
        return x * cos + y * sin, y * cos - x * sin

    def frame(self, u: float, v: float) -> Point:
        """An object point in frame coordinates."""
        cos, sin = np.cos(self.angle) * self.scale, np.sin(self.angle) * self.scale
        return float(self.x + u * cos - v * sin), float(self.y + u * sin + v * cos)


def cover(distance: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Antialiased coverage in [0, 1] of the inside of a shape, where its signed distance is negative."""
    return np.clip(0.5 - distance * (SUPERSAMPLE * scale), 0, 1)


def ramp(value: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Smooth step from 0 at `start` to 1 at `stop`."""
    t = np.clip((value - start) / (stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def band(value: np.ndarray, start: float, stop: float, soft: float) -> np.ndarray:
    """1 between `start` and `stop`, 0 outside, with edges `soft` wide."""
    return ramp(value, start - soft, start + soft) * (1 - ramp(value, stop - soft, stop + soft))


def rounded_box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, radius: float) -> np.ndarray:
    """Signed distance to a rounded rectangle at the origin."""
    dx, dy = np.abs(x) - (half_width - radius), np.abs(y) - (half_height - radius)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - radius


def shade(
    colour: RGB | np.ndarray, nx: np.ndarray, ny: np.ndarray, light: Vector, *, gloss: float = 0.0, sharpness: int = 16
) -> np.ndarray:
    """Lambert and Blinn-Phong shading [H, W, 3] of a surface, given x and y of its normals."""
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.0))
    lit = 0.5 + 0.6 * np.maximum(nx * light[0] + ny * light[1] + nz * light[2], 0)
    shaded = lit[..., None] * np.asarray(colour, np.float32)
    if gloss:
        hx, hy, hz = light[0], light[1], light[2] + 1
        norm = float(np.sqrt(hx * hx + hy * hy + hz * hz))
        shine = np.maximum((nx * hx + ny * hy + nz * hz) / norm, 0)
        shaded += (gloss * shine**sharpness)[..., None]
    return shaded


def capsule(
    canvas: Canvas,
    start: Point,
    stop: Point,
    radius: float | tuple[float, float],
    colour: RGB,
    light: Vector,
    *,
    gloss: float = 0.0,
) -> None:
    """A round rod from `start` to `stop`, tapering if two radii are given."""
    r0, r1 = radius if isinstance(radius, tuple) else (radius, radius)
    reach = max(r0, r1) + 1
    part = canvas.window(
        min(start[0], stop[0]) - reach,
        min(start[1], stop[1]) - reach,
        max(start[0], stop[0]) + reach,
        max(start[1], stop[1]) + reach,
    )
    ax, ay = stop[0] - start[0], stop[1] - start[1]
    x, y = part.x - start[0], part.y - start[1]
    along = np.clip((x * ax + y * ay) / max(ax * ax + ay * ay, 1e-6), 0, 1)
    dx, dy = x - along * ax, y - along * ay
    taper = r0 + (r1 - r0) * along
    distance = np.hypot(dx, dy) - taper
    part.paint(shade(colour, dx / taper * 0.98, dy / taper * 0.98, light, gloss=gloss), cover(distance))


def ellipse(canvas: Canvas, centre: Point, radii: Point, colour: RGB, opacity: float = 1.0) -> None:
    """A flat ellipse."""
    part = canvas.window(
        centre[0] - radii[0] - 1, centre[1] - radii[1] - 1, centre[0] + radii[0] + 1, centre[1] + radii[1] + 1
    )
    r = np.hypot((part.x - centre[0]) / radii[0], (part.y - centre[1]) / radii[1])
    part.paint(colour, cover((r - 1) * min(radii)) * opacity)


def grain(rng: np.random.Generator, shape: tuple[int, int], *, cell: Point) -> np.ndarray:
    """Smooth random texture in about [-1, 1], [H, W]; `cell` is the width and height of a blotch in samples."""
    coarse = rng.standard_normal((max(2, int(shape[0] / cell[1])), max(2, int(shape[1] / cell[0]))), np.float32)
    fine = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(fine) * 0.5


def shadow_mask(sprite: Image.Image, offset: Point, *, blur: float, strength: float) -> Image.Image:
    """The soft shadow that a sprite casts, as a mask of the sprite's size; offset and blur in frame pixels."""
    # Blurring at a quarter of the size looks the same and takes a tenth of the time.
    alpha = sprite.getchannel("A")
    small = alpha.reduce(4).filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLE / 4))
    moved = Image.new("L", small.size)
    moved.paste(small, (round(offset[0] * SUPERSAMPLE / 4), round(offset[1] * SUPERSAMPLE / 4)))
    return moved.point(lambda a: round(a * strength)).resize(alpha.size, Image.Resampling.BILINEAR)


def sample_rgb(rng: np.random.Generator, hue: Point, saturation: Point, value: Point) -> RGB:
    """A uniform colour between the given HSV bounds; hue wraps at 1."""
    h, s, v = (float(rng.uniform(*bounds)) for bounds in (hue, saturation, value))
    return colorsys.hsv_to_rgb(h % 1.0, s, v)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Mix of two colours with `share` of the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue
