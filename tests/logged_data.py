"""Data sets with logs and without video: written by hand, or simulated."""

import numpy as np

from pipeline.dataset import Clips, Embeddings, Logs, Videos
from pipeline.outcomes import logging_policy, simulate_logs

CLIP_S = 60.0
ATTRS = {
    "backbone": "r3d_18", "weights": "random:0", "weights_sha256": "0" * 64, "transform": "none", "clip_len": 16,
    "clip_stride": 16, "fps": 15.0, "precision": "fp32", "projector": "pca", "tail": "drop", "decoder": "auto",
}  # fmt: skip


def data_set(task, context, actions, attempts, errors, *, videos, splits=None, seed=0, **logs):
    """Clips with these logs, as many in each of `videos` videos. context: names; actions: [N, A]."""
    num_clips, each = len(context), len(context) // videos
    embeddings = np.random.default_rng(seed).standard_normal((num_clips, 128)).astype(np.float32)
    start_s = np.tile(np.arange(each) * CLIP_S, videos)
    clips = Clips(
        embeddings, np.tile(np.arange(each) * 16, videos), start_s, start_s + CLIP_S, np.full(num_clips, 16),
        np.arange(videos + 1) * each,
    )  # fmt: skip
    names = [f"v{number}" for number in range(videos)]
    shown = Videos(
        sha256=[f"{number:064x}" for number in range(videos)], fps=np.full(videos, 15.0),
        num_frames=np.full(videos, each * 16), decoder=["pyav"] * videos, id=names,
        path=[f"{name}.mp4" for name in names], split=splits or ["train"] * videos,
    )  # fmt: skip
    labels = Logs(
        np.array(context, object), np.asarray(actions, float), np.asarray(attempts, float), np.asarray(errors, float),
        np.full(num_clips, np.nan), **logs,
    )  # fmt: skip
    return Embeddings(embeddings, clips, shown, labels, np.zeros(128), np.eye(128), 1.0, dict(ATTRS), task=task)


def simulated_data(task, logger="human", *, videos=20, steps=20, seed=0, **settings):
    """Logs of the task's simulator under a logging policy."""
    logs = simulate_logs(
        task, logging_policy(logger, task), videos=videos, steps=steps, rng=np.random.default_rng(seed)
    )
    names = np.array(task.context_names, object)[logs.context.ravel()]
    return data_set(
        task, names, logs.actions.reshape(-1, task.num_actions), logs.attempts.ravel(), logs.errors.ravel(),
        videos=videos, seed=seed, propensity=logs.propensity.ravel(), **settings,
    )  # fmt: skip
