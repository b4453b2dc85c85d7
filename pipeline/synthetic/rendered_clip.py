"""Renders one simulator step as one clip: the scene's backdrop, the work and a moving hand."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pipeline.errors import VtpError
from pipeline.synthetic import bricks, dishes, places, tools
from pipeline.synthetic.bricks import BRICKWORK
from pipeline.synthetic.dishes import DISHES, Area
from pipeline.synthetic.paint import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    RGB,
    SUPERSAMPLE,
    Canvas,
    Pose,
    sample_rgb,
    shadow_mask,
)
from pipeline.synthetic.scene import Scene, Site
from pipeline.tasks import Task

FRAME_SHAPE = (FRAME_HEIGHT, FRAME_WIDTH)
CLIP_LEN = 16
FPS = 15

# Planted novelty, never in an ordinary demonstration: an unusual object or colour, motion three times too fast,
# reversed or stopped, and work that slips and falls.
NOVEL_KINDS = ("object", "colour", "fast", "reversed", "static", "dropped")
TOO_FAST = 3.0

_WORK = {"dishes": DISHES, "bricks": BRICKWORK}
_UNSEEN = {"dishes": dishes.board, "bricks": bricks.rubble}
_UNSEEN_HUES = (0.26, 0.38), (0.76, 0.9)  # greens and violets, which no dish or brick has
_TILT = {"dishes": 0.12, "bricks": 0.03}  # walls are nearly upright
_WORK_CENTRE = {"dishes": (96.0, 76.0), "bricks": (96.0, 72.0)}


def renderer_of(task: Task) -> str:
    """The renderer of the task's clips; VtpError if it cannot draw the task's actions or contexts."""
    if task.simulator is None or task.simulator.renderer is None:
        raise VtpError(
            f"task {task.name} has no renderer, so its videos cannot be made; validate its policies with "
            "--validation clips, or give its simulator `renderer: dishes` or `renderer: bricks`",
            code="task-not-rendered",
        )
    renderer = task.simulator.renderer
    if set(task.actions) != {"speed", "care"} or task.low.min() < 0 or task.high.max() > 1:
        actions = ", ".join(f"{name} [{one.low:g}, {one.high:g}]" for name, one in task.actions.items())
        raise VtpError(
            f"task {task.name} has actions {actions}, but renderer {renderer} draws speed and care within [0, 1]; "
            "give the task these two actions, or no renderer",
            code="renderer-actions",
        )
    if unknown := [name for name in task.contexts if name not in _WORK[renderer]]:
        raise VtpError(
            f"task {task.name} has context {unknown[0]!r}, but renderer {renderer} draws {', '.join(_WORK[renderer])}; "
            "rename the context, or give the task no renderer",
            code="renderer-unknown-context",
        )
    return renderer


def _samples(x: float, y: float) -> tuple[int, int]:
    """Frame pixels converted to samples of the supersampled image."""
    return round(x * SUPERSAMPLE), round(y * SUPERSAMPLE)


def _bubbles(draw: ImageDraw.ImageDraw, centres: np.ndarray, radii: np.ndarray) -> None:
    """Draw suds; each bubble is a grey-blue ball with a white cap."""
    for (x, y), r in zip(centres * SUPERSAMPLE, radii * SUPERSAMPLE, strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(203, 216, 226, 225))
        draw.ellipse((x - r * 0.9, y - r * 0.95, x + r * 0.65, y + r * 0.6), fill=(250, 252, 254, 235))


def _foam(area: Area, care: float, rng: np.random.Generator) -> Image.Image:
    """Suds on and around the dish; careful washing makes more."""
    image = Image.new("RGBA", (FRAME_WIDTH * SUPERSAMPLE, FRAME_HEIGHT * SUPERSAMPLE))
    number = int(8 + 45 * care)
    clusters = rng.normal((area.x, area.y), (area.reach_x, area.reach_y), (5, 2))
    centres = clusters[rng.integers(5, size=number)] + rng.normal(0, 4.5, (number, 2))
    _bubbles(ImageDraw.Draw(image), centres, rng.gamma(4.0, 0.55, number))
    return image


def _water(height: float, frame: int, ripples: np.ndarray) -> Image.Image:
    """A thin stream in the middle of a strip, with falling ripples and a splash `height` below the top."""
    x, bottom = 16.0 * SUPERSAMPLE, max(height, 0) * SUPERSAMPLE
    image = Image.new("RGBA", (round(2 * x), round(bottom + 12 * SUPERSAMPLE)))
    draw = ImageDraw.Draw(image)
    draw.line((x, 0, x, bottom), fill=(205, 228, 240, 130), width=3 * SUPERSAMPLE)
    for y in np.arange(0, bottom, 6):
        sway = ripples[int(y - 14 * frame) % len(ripples)]
        draw.line((x + sway, y, x + sway, y + 5), fill=(250, 254, 255, 170), width=2)
    for k in range(5):
        spread = 3 + 9 * abs(ripples[(7 * frame + 31 * k) % len(ripples)])
        size = 1 + 3 * abs(ripples[(11 * frame + 17 * k) % len(ripples)])
        angle = 1.26 * k + 0.7 * frame
        cx, cy = x + spread * np.cos(angle), bottom + spread * 0.5 * np.sin(angle)
        draw.ellipse((cx - size, cy - size, cx + size, cy + size), fill=(240, 248, 252, 150))
    return image


def stand(scene: Scene, rng: np.random.Generator) -> Pose:
    """The pose of this clip's work: near the middle, because all of it must be in the encoder's crop."""
    x, y = _WORK_CENTRE[scene.renderer] + rng.uniform(-3.5, 3.5, 2)
    tilt = _TILT[scene.renderer] * rng.uniform(-1, 1)
    return Pose(float(x), float(y), scene.work_size * float(rng.uniform(0.92, 1.03)), float(tilt))


def _work(scene: Scene, context: str, novel: str | None, rng: np.random.Generator) -> tuple[Image.Image, Area, Pose]:
    """The work on its own layer, the area to work on, and the pose."""
    canvas, pose = Canvas(), stand(scene, rng)
    paint = _UNSEEN[scene.renderer] if novel == "object" else _WORK[scene.renderer][context]
    area = paint(canvas, pose, scene.light.towards, rng)
    if novel == "colour":
        hues = _UNSEEN_HUES[rng.integers(len(_UNSEEN_HUES))]
        _recolour(canvas, sample_rgb(rng, hues, (0.6, 0.9), (0.75, 0.95)))
    return canvas.image(), area, pose


def _recolour(canvas: Canvas, colour: RGB) -> None:
    """Dye the painted pixels: shading stays, and dark parts become brighter, because black shows no dye."""
    shade = canvas.rgb.mean(axis=-1, keepdims=True)  # premultiplied, like the new colour
    canvas.rgb[:] = (0.35 * canvas.alpha[..., None] + 0.75 * shade) * np.asarray(colour, np.float32)


def _still(scene: Scene, work: Image.Image, foam: Image.Image | None) -> Image.Image:
    """All static parts of a clip, supersampled."""
    towards = scene.light.towards
    still = places.backdrop(scene).copy()
    shadow = shadow_mask(work, (-8 * towards[0], 3 - 8 * towards[1]), blur=5, strength=scene.light.shadow)
    still.paste((12, 14, 20), mask=shadow)
    still.paste(work, mask=work)
    if foam is not None:
        still.paste(foam, mask=foam)
        tap = places.tap(scene)
        still.paste(tap, mask=tap)
    return still


def _fallen(work: Image.Image, pose: Pose, num_frames: float, turn: float) -> Image.Image:
    """The work `num_frames` after it slipped: it turns by `turn` degrees per frame and falls ever faster."""
    fall = 1.1 * num_frames**2
    centre = _samples(pose.x, pose.y)
    return work.rotate(turn * num_frames, center=centre, translate=_samples(0, fall))


def _tool(scene: Scene, rng: np.random.Generator) -> Image.Image:
    towards = scene.light.towards
    if scene.renderer == "dishes":
        return tools.sponge_hand(scene.worker, towards, rng)
    assert isinstance(scene.place, Site)
    return tools.trowel_hand(scene.worker, scene.place.mortar_rgb, towards, rng)


def _exposed(frames: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Frames [T, H, W, 3] in 0 to 255 under the scene's light, which drifts a little, with sensor noise: uint8."""
    drift = rng.uniform(0.95, 1.05) + rng.uniform(-0.02, 0.02) * np.linspace(-1, 1, len(frames))
    noise = rng.standard_normal((2 * FRAME_HEIGHT, FRAME_WIDTH), np.float32) * np.float32(rng.uniform(1.0, 3.0))
    lit = frames.astype(np.float32)
    lit *= places.light_map(scene)
    for frame, gain, start in zip(lit, drift, rng.integers(FRAME_HEIGHT, size=len(lit)), strict=True):
        frame *= np.float32(gain)
        frame += noise[start : start + FRAME_HEIGHT, :, None]
    return np.clip(lit, 0, 255).astype(np.uint8)


def render_clip(
    scene: Scene, context: str, speed: float, care: float, rng: np.random.Generator, *, novel: str | None = None
) -> np.ndarray:
    """A clip [16, 144, 192, 3] uint8 of one step; `rng` varies pose, hue, foam, hand, light drift and noise.

    novel: one of NOVEL_KINDS, or None for an ordinary clip.
    """
    if context not in _WORK[scene.renderer]:
        raise VtpError(
            f"context {context!r} cannot be drawn; renderer {scene.renderer} draws {', '.join(_WORK[scene.renderer])}",
            code="renderer-unknown-context",
        )
    if novel not in (None, *NOVEL_KINDS):
        raise VtpError(f"novel {novel!r} is unknown; use one of {', '.join(NOVEL_KINDS)}", code="novel-unknown")
    work, area, pose = _work(scene, context, novel, rng)
    foam = _foam(area, care, rng) if scene.renderer == "dishes" else None
    tool = _tool(scene, rng)
    shadow = tool.getchannel("A").point(lambda a: round(a * 0.6 * scene.light.shadow))
    fps = FPS / TOO_FAST if novel == "fast" else FPS
    offsets = tools.strokes(speed, care, (area.reach_x, area.reach_y), CLIP_LEN, fps=fps, rng=rng)
    path = offsets + np.array([area.x, area.y])
    if novel == "static":
        path[:] = path[0]
    ripples, start = rng.uniform(-1.2, 1.2, 97), int(rng.integers(97))
    slips_at, turn = (rng.uniform(1, 5), rng.uniform(3, 7)) if novel == "dropped" else (CLIP_LEN, 0.0)

    still = _still(scene, work, foam)
    frames = np.empty((CLIP_LEN, *FRAME_SHAPE, 3), np.uint8)
    for t, (x, y) in enumerate(path):
        image = still.copy() if t <= slips_at else _still(scene, _fallen(work, pose, t - slips_at, turn), foam)
        if scene.renderer == "dishes":
            spout_x, spout_y = places.spout(scene)
            water = _water(area.y - area.reach_y - 4 - spout_y, t + start, ripples)
            image.paste(water, _samples(spout_x - 16, spout_y), water)
        left, top = _samples(x + tools.TOOL_LEFT, y + tools.TOOL_TOP)
        image.paste((10, 10, 16), (left + 4, top + 10), shadow)
        image.paste(tool, (left, top), tool)
        frames[t] = np.asarray(image.reduce(SUPERSAMPLE))
    if novel == "reversed":
        frames = frames[::-1]
    frames = _exposed(frames, scene, rng)
    return np.ascontiguousarray(frames[:, :, ::-1]) if scene.camera.mirrored else frames
