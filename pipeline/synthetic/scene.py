"""Differences between videos: the place, its light, the camera and the worker."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import VtpError
from pipeline.synthetic.paint import RGB, Point, Vector, sample_rgb


@dataclass(frozen=True)
class Camera:
    """Small differences of framing; `mirrored` makes the worker left-handed."""

    shift: Point
    zoom: float
    roll: float
    mirrored: bool


@dataclass(frozen=True)
class Light:
    """`towards` is the unit vector to the light; `slant` is how much brighter the frame's lit side is."""

    towards: Vector
    rgb: RGB
    slant: float
    shadow: float


@dataclass(frozen=True)
class Worker:
    """`tool_rgb` colours the sponge, or the trowel's grip."""

    glove_rgb: RGB
    sleeve_rgb: RGB
    tool_rgb: RGB
    arm_angle: float


@dataclass(frozen=True)
class Kitchen:
    """A sink: `veined` counters are wood or marble, others speckled; a `metal` basin is brushed, others glazed."""

    wall_rgb: RGB
    grout_rgb: RGB
    tile: Point
    wall_bottom: float
    counter_rgb: RGB
    veined: bool
    basin_rgb: RGB
    metal: bool
    basin: Point
    corner: float
    tap_x: float
    bottle_rgb: RGB
    cloth_rgb: RGB


@dataclass(frozen=True)
class Site:
    """A building site: sky, a far fence, bare ground."""

    sky_rgb: RGB
    fence_rgb: RGB
    fence_board: float
    ground_rgb: RGB
    horizon: float
    bucket_rgb: RGB
    mortar_rgb: RGB


@dataclass(frozen=True)
class Scene:
    """One video's surroundings. `texture_seed` fixes speckle, veins and other fine grain; `work_size` is that of
    the work, relative to the usual."""

    renderer: str
    place: Kitchen | Site
    camera: Camera
    light: Light
    worker: Worker
    texture_seed: int
    work_size: float = 1.0


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        shift=(float(rng.uniform(-5, 5)), float(rng.uniform(-4, 4))),
        zoom=float(rng.uniform(0.94, 1.08)),
        roll=float(rng.uniform(-0.04, 0.04)),
        mirrored=bool(rng.random() < 0.5),
    )


def _light(rng: np.random.Generator) -> Light:
    azimuth, height = rng.uniform(-np.pi * 0.95, -np.pi * 0.05), rng.uniform(0.75, 1.2)
    warmth, gain = rng.uniform(-1, 1), rng.uniform(0.9, 1.12)
    x, y, z = np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)
    return Light(
        towards=(float(x), float(y), float(z)),
        rgb=_tint(warmth, gain),
        slant=float(rng.uniform(0.0, 0.18)),
        shadow=float(rng.uniform(0.35, 0.6)),
    )


def _tint(warmth: float, gain: float) -> RGB:
    """The colour of a light: 1 is warm, −1 cold."""
    return float(gain * (1 + 0.07 * warmth)), float(gain), float(gain * (1 - 0.1 * warmth))


def _kitchen(rng: np.random.Generator) -> Kitchen:
    metal = bool(rng.random() < 0.6)
    counter = ((0.07, 0.1), (0.3, 0.55), (0.45, 0.75)) if rng.random() < 0.45 else ((0.0, 1.0), (0.0, 0.08), (0.4, 0.9))
    return Kitchen(
        wall_rgb=sample_rgb(rng, (0.0, 1.0), (0.02, 0.28), (0.65, 0.95)),
        grout_rgb=sample_rgb(rng, (0.0, 1.0), (0.0, 0.1), (0.5, 0.9)),
        tile=(float(rng.uniform(16, 34)), float(rng.uniform(9, 16))),
        wall_bottom=float(rng.uniform(14, 22)),
        counter_rgb=sample_rgb(rng, *counter),
        veined=bool(rng.random() < 0.6),
        basin_rgb=sample_rgb(rng, (0.5, 0.65), (0.01, 0.08), (0.56, 0.74) if metal else (0.8, 0.95)),
        metal=metal,
        basin=(float(rng.uniform(68, 80)), float(rng.uniform(52, 57))),
        corner=float(rng.uniform(10, 24)),
        tap_x=float(rng.uniform(-26, 26)),
        bottle_rgb=sample_rgb(rng, (0.0, 1.0), (0.5, 0.9), (0.5, 0.9)),
        cloth_rgb=sample_rgb(rng, (0.0, 1.0), (0.2, 0.7), (0.5, 0.9)),
    )


def _site(rng: np.random.Generator) -> Site:
    return Site(
        sky_rgb=sample_rgb(rng, (0.55, 0.62), (0.05, 0.35), (0.75, 0.95)),
        fence_rgb=sample_rgb(rng, (0.06, 0.3), (0.1, 0.4), (0.4, 0.65)),
        fence_board=float(rng.uniform(9, 18)),
        ground_rgb=sample_rgb(rng, (0.06, 0.11), (0.15, 0.35), (0.4, 0.62)),
        horizon=float(rng.uniform(40, 70)),
        bucket_rgb=sample_rgb(rng, (0.0, 1.0), (0.4, 0.8), (0.3, 0.7)),
        mortar_rgb=sample_rgb(rng, (0.08, 0.13), (0.02, 0.14), (0.66, 0.84)),
    )


def _worker(rng: np.random.Generator, *, tool_hue: Point) -> Worker:
    return Worker(
        glove_rgb=sample_rgb(rng, (0.0, 1.0), (0.35, 0.75), (0.7, 0.95)),
        sleeve_rgb=sample_rgb(rng, (0.0, 1.0), (0.1, 0.5), (0.25, 0.8)),
        tool_rgb=sample_rgb(rng, tool_hue, (0.55, 0.8), (0.75, 0.95)),
        arm_angle=float(rng.uniform(0.65, 1.0)),
    )


def _either(rng: np.random.Generator, low: Point, high: Point) -> float:
    """Uniform in one of two intervals, below and above the usual range."""
    return float(rng.uniform(*(low if rng.random() < 0.5 else high)))


def _change(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a light, a background and a size of work that no usual scene has."""
    warmth, gain = _either(rng, (-2.0, -1.2), (1.2, 2.0)), _either(rng, (0.72, 0.85), (1.17, 1.28))
    light = replace(
        scene.light,
        rgb=_tint(warmth, gain),
        slant=float(rng.uniform(0.2, 0.3)),
    )
    place: Kitchen | Site
    if isinstance(scene.place, Kitchen):
        place = replace(
            scene.place,
            wall_rgb=sample_rgb(rng, (0.0, 1.0), (0.4, 0.7), (0.25, 0.55)),
            grout_rgb=sample_rgb(rng, (0.0, 1.0), (0.0, 0.2), (0.15, 0.4)),
            tile=(float(rng.uniform(40, 56)), float(rng.uniform(19, 26))),
            counter_rgb=sample_rgb(rng, (0.25, 0.9), (0.25, 0.55), (0.3, 0.6)),
            basin_rgb=sample_rgb(rng, (0.0, 1.0), (0.02, 0.15), (0.34, 0.48)),
        )
    else:
        place = replace(
            scene.place,
            sky_rgb=sample_rgb(rng, (0.0, 0.1), (0.25, 0.55), (0.5, 0.7)),
            fence_rgb=sample_rgb(rng, (0.4, 0.9), (0.3, 0.6), (0.3, 0.6)),
            ground_rgb=sample_rgb(rng, (0.3, 0.65), (0.1, 0.3), (0.3, 0.45)),
        )
    return replace(scene, place=place, light=light, work_size=_either(rng, (0.78, 0.88), (1.1, 1.16)))


def sample_scene(renderer: str, rng: np.random.Generator, *, changed: bool = False) -> Scene:
    """A random scene for a video of dishes or bricks.

    changed: with a light, a background and a size of work that no usual scene has.
    """
    place: Kitchen | Site
    if renderer == "dishes":
        place, tool_hue = _kitchen(rng), (0.1, 0.17)
    elif renderer == "bricks":
        place, tool_hue = _site(rng), (0.04, 0.09)
    else:
        raise VtpError(f"renderer {renderer!r} is unknown; use dishes or bricks", code="renderer-unknown")
    scene = Scene(renderer, place, _camera(rng), _light(rng), _worker(rng, tool_hue=tool_hue), int(rng.integers(2**31)))
    return _change(scene, rng) if changed else scene
