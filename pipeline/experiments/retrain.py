"""Continues training a run's policy with changed outcomes or prices, and judges it on data held out of training.

Training continues from the run's policy rather than from scratch, because its perception stays valid when prices
change. It uses the training's own loop and settings, with fresh optimisers, an empty replay buffer and the second half
of the annealing. As in training, the policy learns from sampled outcomes only.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline import devices
from pipeline.config import TrainConfig
from pipeline.errors import VtpError
from pipeline.outcomes import OutcomeModel
from pipeline.rl.sac import Agent
from pipeline.runs import PolicyMetadata, RunDirectory, load_policy
from pipeline.tasks import EPISODE_STEPS
from pipeline.training import Trainer, open_source, seeds

NUM_ENVS = 256
UPDATES_PER_STEP = 4  # per step of all environments
WARMUP_STEPS = 8  # steps of all environments before the first update


def _refuse_other_data(run: RunDirectory, trained: PolicyMetadata, found: PolicyMetadata) -> None:
    """VtpError if the run's task or data have changed since its training, which would change the judge."""
    if trained.task != found.task:
        raise VtpError(
            f"{run} was trained on task {trained.task}, which has changed since; restore its file, or train again",
            code="run-other-data",
        )
    if trained.clips is not None and found.clips is not None:
        ours, theirs = trained.clips.content_sha256, found.clips.content_sha256
        if ours != theirs:
            raise VtpError(
                f"{found.clips.embeddings} has content {theirs[:12]}, but {run} was trained on {ours[:12]}; restore "
                "that file, or train again",
                code="embeddings-differ",
            )


class Retrainer:
    """A run's policy and its source of observations: the embeddings of its training or the simulator's state.

    model: the outcome model of training, over the rows that `judge` plays. held_out: a description of those rows.
    device: the name of where it trains, the first GPU or the processor.
    """

    def __init__(self, run: RunDirectory):
        settings = seeds.read_config(run.path)
        if settings.source == "video":
            raise VtpError(
                f"{run} was trained on video, which --retrain does not support; drop --retrain",
                code="retrain-on-video",
            )
        self._agent, trained = load_policy(run.path)
        self._settings = settings.model_copy(
            update={
                "init": run.path, "device": "auto", "num_envs": NUM_ENVS, "warmup_steps": NUM_ENVS * WARMUP_STEPS,
                "updates_per_episode": UPDATES_PER_STEP * EPISODE_STEPS / NUM_ENVS, "dual_lr": 0.0,
            }
        )  # fmt: skip
        self._source = open_source(self._settings, np.random.default_rng(0))
        _refuse_other_data(run, trained, self._source.metadata)
        self.model, self.held_out = self._source.model, self._source.held_out
        self.device = devices.name_of(self._source.device)

    def retrain(self, model: OutcomeModel, *, updates: int, lambda_dual: float = 0.0, seed: int) -> Agent:
        """Continue training with this outcome model, at a price of `lambda_dual` human wages per unit of error rate."""
        steps = WARMUP_STEPS + -(-updates // UPDATES_PER_STEP)
        cfg: TrainConfig = self._settings.model_copy(update={"seed": seed, "buffer_size": NUM_ENVS * steps})
        rng = np.random.default_rng(seed)
        source = open_source(cfg, rng, model)
        source.env.workplace.lambda_dual = lambda_dual
        trainer = Trainer(cfg, source, rng=rng, num_steps=steps)
        for _ in range(steps):
            trainer.step()
        trainer.learner.losses()  # an error if one was not finite: a GPU's are read now
        return trainer.agent

    def judge(self, model: OutcomeModel, agent: Agent | None = None) -> pd.DataFrame:
        """Steps of a policy, by default the run's own; an episode is a held-out video or a simulated one."""
        return self._source.judge(agent or self._agent, model, 1, np.random.default_rng(0))
