"""A policy in closed loop from pixels: state, rendered clip, codec, encoder, policy, action, simulator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import synthetic, video
from pipeline.files import write_json
from pipeline.outcomes import SimulatedOutcomes, oracle
from pipeline.rl.rollouts import StepRecorder
from pipeline.rl.sac import Agent
from pipeline.runs import RunDirectory

PIXEL_STREAM = 0x7069786C  # makes validation scenes differ from the demonstrations of every random seed
THUMBNAILS_PER_CONTEXT = 2

Progress = Callable[[int, int], None]


def from_pixels(
    agent: Agent,
    model: SimulatedOutcomes,
    see: Callable[[list[np.ndarray]], np.ndarray],
    *,
    episodes: int,
    steps: int,
    seed: int,
    out: RunDirectory,
    changed: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Steps of the policy in new rendered scenes; the model's rows are contexts.

    see: raw clips, E of [T, H, W, 3] → the policy's observations [E, 128]. A clip shows the current context, worked on
    with the policy's last action; in `changed` scenes light, background and size differ from all demonstrations.
    Thumbnails of each context are written to the frames of `out`.
    """
    task, renderer = model.task, synthetic.renderer_of(model.task)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([PIXEL_STREAM, seed]).spawn(episodes + 1)]
    rng, scene_rngs = streams[0], streams[1:]
    scenes = [synthetic.sample_scene(renderer, scene_rng, changed=changed) for scene_rng in scene_rngs]
    context = model.initial_rows(episodes, rng)
    actions = task.from_unit(rng.random((episodes, task.num_actions)))
    recorder, gallery = StepRecorder(task), _Gallery(out, model)
    for step in range(steps):
        shown = [dict(zip(task.action_names, action, strict=True)) for action in actions.tolist()]
        clips = [
            synthetic.render_clip(scene, task.context_names[k], action["speed"], action["care"], scene_rng)
            for scene, k, action, scene_rng in zip(scenes, context, shown, scene_rngs, strict=True)
        ]
        actions = agent.act(torch.from_numpy(see(clips)))
        recorder.add(context, actions, model.sample(context, actions, rng))
        gallery.offer(clips, context, actions)
        context = model.next_rows(context, rng)
        if progress:
            progress(step + 1, steps)
    gallery.write_index()
    return recorder.steps()


class _Gallery:
    """The first clips of each context from different episodes, as looping thumbnails with the policy's actions."""

    def __init__(self, out: RunDirectory, model: SimulatedOutcomes):
        self._out, self._task = out, model.task
        self._best = oracle(model, np.arange(len(model.context))).actions
        self._rows: list[dict[str, Any]] = []
        self._taken: set[tuple[int, int]] = set()

    def offer(self, clips: list[np.ndarray], context: np.ndarray, actions: np.ndarray) -> None:
        for episode, k in enumerate(context.tolist()):
            count = sum(taken == k for _, taken in self._taken)
            if count == THUMBNAILS_PER_CONTEXT or (episode, k) in self._taken:
                continue
            self._taken.add((episode, k))
            name = self._task.context_names[k]
            file = f"{name}-{count}.webp"
            synthetic.write_webp(self._out.frames / file, clips[episode], fps=synthetic.FPS)
            self._rows.append(
                {
                    "file": file,
                    "context": name,
                    "actions": self._named(actions[episode]),
                    "oracle_actions": self._named(self._best[k]),
                }
            )

    def _named(self, action: np.ndarray) -> dict[str, float]:
        return dict(zip(self._task.action_names, action.tolist(), strict=True))

    def write_index(self) -> None:
        order = self._task.context_names
        write_json(self._out.frame_index, sorted(self._rows, key=lambda row: order.index(row["context"])))


class PixelObserver:
    """Raw clips to observations [E, 128] by the path of a video: H.264, decord, and `embed` for the encoder."""

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], decoder: video.Decoder):
        self._embed, self._decoder = embed, decoder

    def __call__(self, clips: list[np.ndarray]) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="vtp-validation-") as folder:
            decoded = []
            for index, clip in enumerate(clips):
                path = Path(folder) / f"{index}.mp4"
                synthetic.write_mp4(path, clip, fps=synthetic.FPS)
                (seen,) = self._decoder.clips(
                    path, clip_len=len(clip), clip_stride=len(clip), fps=synthetic.FPS, tail="drop"
                )
                decoded.append(seen.frames)
        return self._embed(np.stack(decoded))
