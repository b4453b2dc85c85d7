"""A policy in closed loop: on the simulator's state, on stored clips, or on fresh rendered clips."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import synthetic, video
from pipeline.evaluate.reference import oracle
from pipeline.files import write_json
from pipeline.rl.envs import SimEnv
from pipeline.rl.sac import Agent
from pipeline.synthetic import dynamics

PIXEL_STREAM = 0x7069786C  # keeps validation scenes apart from the demos of any seed
THUMBNAILS_PER_CONTEXT = 2

Progress = Callable[[int, int], None]


class _Recorder:
    """Validation steps of E episodes side by side."""

    def __init__(self) -> None:
        self._rows: list[pd.DataFrame] = []

    def add(
        self,
        context: np.ndarray,
        actions: np.ndarray,
        outcomes: tuple[np.ndarray, np.ndarray],
        episode: np.ndarray | None = None,
    ) -> None:
        """One step of every episode: context [E], actions [E, 2], sampled (attempts, errors) [E]."""
        episode = np.arange(len(context)) if episode is None else episode
        columns = {"episode": episode, "step": len(self._rows), "context": context}
        columns |= {"speed": actions[:, 0], "care": actions[:, 1], "attempts": outcomes[0], "errors": outcomes[1]}
        self._rows.append(pd.DataFrame(columns))

    def steps(self) -> pd.DataFrame:
        """One row a step: episode, step, context (its index), speed, care, attempts, errors."""
        return pd.concat(self._rows, ignore_index=True)


def in_simulator(
    agent: Agent, scenario: dynamics.Scenario, *, episodes: int, steps: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The deterministic policy on the simulator's state."""
    env, recorder = SimEnv(scenario, episodes, rng=rng), _Recorder()
    observations = env.reset()
    for _ in range(steps):
        actions = agent.act(torch.from_numpy(observations))
        context = env.context
        observations, _, _ = env.step(actions)
        recorder.add(context, actions, env.workplace.outcomes)
    return recorder.steps()


def on_clips(
    agent: Agent,
    scenario: dynamics.Scenario,
    embeddings: np.ndarray,
    context: np.ndarray,
    *,
    video: np.ndarray,
    draws: int = 1,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The deterministic policy on stored clips [n, 128] of known or assumed context [n].

    The clips of one video [n] are one episode, for they are alike; each action's outcome is drawn `draws` times.
    """
    recorder = _Recorder()
    actions = np.repeat(agent.act(torch.from_numpy(embeddings)), draws, axis=0)
    context, video = np.repeat(context, draws), np.repeat(video, draws)
    recorder.add(context, actions, _sample(scenario, context, actions, rng), video)
    return recorder.steps()


def from_pixels(
    agent: Agent,
    scenario: dynamics.Scenario,
    see: Callable[[list[np.ndarray]], np.ndarray],
    *,
    episodes: int,
    steps: int,
    seed: int,
    frames: Path,
    changed: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Closed loop: state, rendered clip, codec, encoder, projector, policy, action, simulator; in scenes of its own.

    see: raw clips, E of [T, H, W, 3] → what the policy observes, [E, 128]. A clip shows the present context, worked on
    in the way of the policy's last action; in `changed` scenes light, background and size of the work are such as no
    demo has. Thumbnails of each context go to the folder `frames`.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([PIXEL_STREAM, seed]).spawn(episodes + 1)]
    rng, scene_rngs = streams[0], streams[1:]
    scenes = [synthetic.sample_scene(scenario.task, scene_rng, changed=changed) for scene_rng in scene_rngs]
    context, actions = dynamics.initial_context(scenario, episodes, rng), rng.random((episodes, 2))
    recorder, gallery = _Recorder(), _Gallery(frames, scenario)
    for step in range(steps):
        clips = [
            synthetic.render_clip(scene, scenario.context_names[k], speed, care, scene_rng)
            for scene, k, (speed, care), scene_rng in zip(scenes, context, actions.tolist(), scene_rngs, strict=True)
        ]
        actions = agent.act(torch.from_numpy(see(clips)))
        recorder.add(context, actions, _sample(scenario, context, actions, rng))
        gallery.offer(clips, context, actions)
        context = dynamics.next_context(scenario, context, rng)
        if progress:
            progress(step + 1, steps)
    gallery.write_index()
    return recorder.steps()


def _sample(
    scenario: dynamics.Scenario, context: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    return dynamics.sample_outcomes(*dynamics.dynamics(scenario, context, actions[:, 0], actions[:, 1]), rng)


class _Gallery:
    """The first clips of each context from different episodes, as looping thumbnails with what the policy did."""

    def __init__(self, folder: Path, scenario: dynamics.Scenario):
        self.folder, self.names, self.best = folder, scenario.context_names, oracle(scenario).actions
        self.rows: list[dict[str, Any]] = []
        self._taken: set[tuple[int, int]] = set()

    def offer(self, clips: list[np.ndarray], context: np.ndarray, action: np.ndarray) -> None:
        for episode, k in enumerate(context.tolist()):
            count = sum(taken == k for _, taken in self._taken)
            if count == THUMBNAILS_PER_CONTEXT or (episode, k) in self._taken:
                continue
            self._taken.add((episode, k))
            file = f"{self.names[k]}-{count}.webp"
            synthetic.write_webp(self.folder / file, clips[episode], fps=synthetic.FPS)
            row = {"file": file, "context": self.names[k]}
            row |= {"speed": float(action[episode, 0]), "care": float(action[episode, 1])}
            row |= {"oracle_speed": float(self.best[k, 0]), "oracle_care": float(self.best[k, 1])}
            self.rows.append(row)

    def write_index(self) -> None:
        write_json(self.folder / "frames.json", sorted(self.rows, key=lambda row: self.names.index(row["context"])))


class PixelObserver:
    """Raw clips to observations [E, 128] along a video's own path: H.264, decord, and `embed`, the encoder's part."""

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], decoder: video.Decoder):
        self.embed, self.decoder = embed, decoder

    def __call__(self, clips: list[np.ndarray]) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="vtp-validation-") as folder:
            decoded = []
            for index, clip in enumerate(clips):
                path = Path(folder) / f"{index}.mp4"
                synthetic.write_mp4(path, clip, fps=synthetic.FPS)
                (seen,) = self.decoder.clips(
                    path, clip_len=len(clip), clip_stride=len(clip), fps=synthetic.FPS, tail="drop"
                )
                decoded.append(seen.frames)
        return self.embed(np.stack(decoded))
