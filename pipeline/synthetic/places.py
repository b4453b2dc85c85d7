"""The static surroundings of a clip: a kitchen sink or a building site."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from pipeline.synthetic.paint import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    RGB,
    Canvas,
    Pose,
    Vector,
    capsule,
    cover,
    ellipse,
    grain,
    mix,
    ramp,
    rounded_box,
    shade,
)
from pipeline.synthetic.scene import Camera, Kitchen, Scene, Site

BASIN_CENTRE = (96.0, 80.0)


def _view(canvas: Canvas, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Frame coordinates, transformed by the camera's shift, zoom and roll."""
    u, v = Pose(96 + camera.shift[0], 72 + camera.shift[1], camera.zoom, camera.roll).local(canvas)
    return u + 96, v + 72


def _seen(camera: Camera, x: float, y: float) -> tuple[float, float]:
    """Frame coordinates of a point of the place."""
    return Pose(96 + camera.shift[0], 72 + camera.shift[1], camera.zoom, camera.roll).frame(x - 96, y - 72)


def _tiles(canvas: Canvas, x: np.ndarray, y: np.ndarray, room: Kitchen, rng: np.random.Generator) -> None:
    width, height = room.tile
    row = np.floor(y / height)
    across = x / width + 0.5 * (row % 2)
    column = np.floor(across)
    tone = rng.uniform(-0.05, 0.05, 64).astype(np.float32)[((row * 13 + column * 7) % 64).astype(int)]
    inset_x, inset_y = (across - column - 0.5) * width, (y / height - row - 0.5) * height
    distance = rounded_box(inset_x, inset_y, width / 2 - 0.6, height / 2 - 0.6, 1.0)
    bevel = ramp(distance, -2.0, 0)[..., None] * 0.12
    canvas.paint(room.grout_rgb, np.float32(1))
    canvas.paint(np.asarray(room.wall_rgb, np.float32) + tone[..., None] - bevel, cover(distance))


def _counter(canvas: Canvas, x: np.ndarray, y: np.ndarray, room: Kitchen, rng: np.random.Generator) -> None:
    shape = canvas.alpha.shape
    if room.veined:
        pattern = 0.06 * grain(rng, shape, cell=(90, 3)) + 0.04 * grain(rng, shape, cell=(160, 12))
    else:
        pattern = 0.1 * grain(rng, shape, cell=(2.5, 2.5)) + 0.03 * grain(rng, shape, cell=(20, 20))
    far = 0.12 * (1 - ramp(y, room.wall_bottom, room.wall_bottom + 6))
    colour = np.asarray(room.counter_rgb, np.float32) + (pattern - far)[..., None]
    canvas.paint(colour, cover(room.wall_bottom - y))


def _basin(
    canvas: Canvas, x: np.ndarray, y: np.ndarray, room: Kitchen, light: Vector, rng: np.random.Generator
) -> None:
    """A rim, four walls down to a floor set nearer the viewer, water and a drain."""
    width, height = room.basin
    u, v = x - BASIN_CENTRE[0], y - BASIN_CENTRE[1]
    rim = rounded_box(u, v, width + 4, height + 4, room.corner + 4)
    edge = rounded_box(u, v, width, height, room.corner)
    floor = rounded_box(u, v - 4, width - 13, height - 13, room.corner * 0.8)
    depth = np.clip(edge / np.minimum(edge - floor, -1e-3), 0, 1)
    wall = (1 - ramp(depth, 0.85, 1.0)) * 0.75
    slope_x, slope_y = u / width, v / height
    length = np.maximum(np.hypot(slope_x**3, slope_y**3), 1e-3)
    nx, ny = -wall * slope_x**3 / length, -wall * slope_y**3 / length
    if room.metal:
        brushed = 0.035 * grain(rng, u.shape, cell=(60, 1.5))
    else:
        brushed = 0.01 * grain(rng, u.shape, cell=(30, 30))
    base = np.asarray(room.basin_rgb, np.float32) + brushed[..., None]
    canvas.paint(mix(room.basin_rgb, (1, 1, 1), 0.3), cover(rim))
    canvas.paint((0.2, 0.2, 0.22), cover(np.abs(rim) - 0.6) * 0.5)
    inner = shade(base, nx, ny, light, gloss=0.2 if room.metal else 0.1, sharpness=12)
    canvas.paint(inner * (1 - 0.22 * depth)[..., None], cover(edge))
    canvas.paint((0.1, 0.12, 0.14), cover(np.abs(edge) - 0.5) * 0.4)

    ripple = 0.08 * grain(rng, u.shape, cell=(26, 9))
    canvas.paint(np.asarray((0.62, 0.75, 0.8), np.float32) + ripple[..., None], cover(floor + 3) * 0.45)
    drain = np.hypot(u, (v - 14) / 0.8)
    canvas.paint((0.75, 0.77, 0.78), cover(drain - 10) * 0.8)
    canvas.paint((0.12, 0.13, 0.14), cover(drain - 8) * 0.8)
    canvas.paint((0.6, 0.62, 0.63), cover(np.abs(np.abs(u) - 2.7) - 0.6) * cover(drain - 8) * 0.8)


def _bottle(canvas: Canvas, foot: tuple[float, float], colour: RGB, light: Vector) -> None:
    x, y = foot
    ellipse(canvas, (x + 2, y + 8), (10, 4), (0, 0, 0), 0.3)
    capsule(canvas, (x, y - 16), (x, y), (6.5, 8.0), colour, light, gloss=0.5)
    capsule(canvas, (x, y - 26), (x, y - 20), 2.6, (0.93, 0.93, 0.93), light, gloss=0.3)
    capsule(canvas, (x, y - 28), (x + 6, y - 28), 1.8, (0.93, 0.93, 0.93), light, gloss=0.3)
    ellipse(canvas, (x, y - 7), (5, 5), (0.97, 0.97, 0.95), 0.8)


def _cloth(canvas: Canvas, centre: tuple[float, float], colour: RGB) -> None:
    u, v = Pose(*centre, angle=0.2).local(canvas)
    stripes = 0.16 * (np.sin(v * 1.5) > 0.3)[..., None]
    canvas.paint((0, 0, 0), cover(rounded_box(u - 1.5, v - 1.5, 11, 19, 3)) * 0.25)
    canvas.paint(np.asarray(colour, np.float32) + stripes, cover(rounded_box(u, v, 11, 19, 3)))


def _kitchen(scene: Scene, room: Kitchen) -> Canvas:
    rng = np.random.default_rng(scene.texture_seed)
    canvas, light = Canvas(), scene.light.towards
    x, y = _view(canvas, scene.camera)
    _tiles(canvas, x, y, room, rng)
    _counter(canvas, x, y, room, rng)
    _basin(canvas, x, y, room, light, rng)
    side = 1 if rng.random() < 0.5 else -1
    _bottle(canvas, _seen(scene.camera, 96 + side * 86, rng.uniform(38, 56)), room.bottle_rgb, light)
    _cloth(canvas, _seen(scene.camera, 96 - side * 89, rng.uniform(50, 95)), room.cloth_rgb)
    return canvas


def spout(scene: Scene) -> tuple[float, float]:
    """The point where water leaves the tap, in frame pixels."""
    assert isinstance(scene.place, Kitchen), "only a kitchen has a tap"
    return _seen(scene.camera, 96 + scene.place.tap_x, scene.place.wall_bottom + 17)


@lru_cache(maxsize=64)
def tap(scene: Scene) -> Image.Image:
    """The chrome tap on its own layer, because it is in front of the dish."""
    canvas, light = Canvas(), scene.light.towards
    chrome, dark = (0.72, 0.75, 0.78), (0.5, 0.53, 0.56)
    x, y = spout(scene)
    base = y - 15
    for side in (-1, 1):
        capsule(canvas, (x + side * 13, base + 1), (x + side * 19, base - 1), (2.6, 2.0), chrome, light, gloss=0.6)
    capsule(canvas, (x - 13, base + 2), (x + 13, base + 2), 2.6, dark, light, gloss=0.5)
    capsule(canvas, (x, base + 1), (x, base - 7), (4.6, 3.6), chrome, light, gloss=0.7)
    capsule(canvas, (x, base - 7), (x, y - 4), (3.6, 4.2), chrome, light, gloss=0.8)
    ellipse(canvas, (x, y - 1), (3.6, 2.0), (0.2, 0.22, 0.24))
    return canvas.image()


def _site(scene: Scene, site: Site) -> Canvas:
    rng = np.random.default_rng(scene.texture_seed)
    canvas, light = Canvas(), scene.light.towards
    x, y = _view(canvas, scene.camera)
    shape = canvas.alpha.shape
    cloud = 0.12 * grain(rng, shape, cell=(90, 30)) + 0.1 * ramp(y, 0, site.horizon)
    canvas.paint(np.asarray(site.sky_rgb, np.float32) + cloud[..., None], np.float32(1))

    board = np.floor(x / site.fence_board)
    tone = rng.uniform(-0.07, 0.07, 32).astype(np.float32)[(board % 32).astype(int)]
    gap = cover(np.abs(x / site.fence_board - board - 0.5) * -site.fence_board + site.fence_board / 2 - 0.7)
    wood = tone + 0.04 * grain(rng, shape, cell=(4, 60)) - 0.22 * gap
    canvas.paint(np.asarray(site.fence_rgb, np.float32) + wood[..., None], cover(site.horizon - 26 - y))

    gravel = 0.12 * grain(rng, shape, cell=(4, 3)) + 0.08 * grain(rng, shape, cell=(50, 20))
    gravel -= 0.15 * (1 - ramp(y, site.horizon, site.horizon + 12))
    canvas.paint(np.asarray(site.ground_rgb, np.float32) + gravel[..., None], cover(site.horizon - y))

    side = 1 if rng.random() < 0.5 else -1
    bx, by = _seen(scene.camera, 96 + side * 80, rng.uniform(85, 118))
    ellipse(canvas, (bx + 3, by + 12), (15, 5), (0, 0, 0), 0.35)
    capsule(canvas, (bx, by - 6), (bx, by + 8), (12.5, 9.0), site.bucket_rgb, light, gloss=0.2)
    ellipse(canvas, (bx, by - 12), (12.5, 5), mix(site.bucket_rgb, (0, 0, 0), 0.5))
    ellipse(canvas, (bx, by - 11), (10.5, 3.8), site.mortar_rgb)
    return canvas


@lru_cache(maxsize=64)
def backdrop(scene: Scene) -> Image.Image:
    """The place without the work, supersampled; treat it as read-only."""
    place = scene.place
    canvas = _kitchen(scene, place) if isinstance(place, Kitchen) else _site(scene, place)
    return canvas.image().convert("RGB")


@lru_cache(maxsize=64)
def light_map(scene: Scene) -> np.ndarray:
    """Factors of the light per pixel and colour, [144, 192, 3]: brighter on the lit side, darker in corners."""
    y, x = np.mgrid[-1 : 1 : FRAME_HEIGHT * 1j, -1 : 1 : FRAME_WIDTH * 1j].astype(np.float32)
    towards = scene.light.towards
    slant = 1 + scene.light.slant * (x * towards[0] + y * towards[1]) / max(np.hypot(*towards[:2]), 1e-3)
    vignette = 1 - 0.07 * (x * x + y * y)
    return (slant * vignette)[..., None].astype(np.float32) * np.asarray(scene.light.rgb, np.float32)
