"""What a policy does in the clips of an embeddings file."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline import dataset, encoders, runs
from pipeline.config import ActConfig
from pipeline.errors import CorruptError, VtpError
from pipeline.files import atomic_path
from pipeline.policy.card import Card
from pipeline.policy.policy_file import load

BLOCK_ROWS = 8192

# What embeddings must have in common with those that a policy was trained on, and how they are made so.
REMEDIES = {
    "backbone": "extract them with --backbone {trained}",
    "weights_sha256": "extract them with --weights {weights}, of that sha256",
    "transform": "extract them with the version of vtp that the policy was trained with",
    "clip_len": "extract them with --clip-len {trained}",
    "fps": "extract them with --fps {trained}",
    "projector_sha256": "extract them with --projector {embeddings}",
}


def act(cfg: ActConfig) -> pd.DataFrame:
    """The policy's action for each clip: video_id, clip (from 0 in its video), start_s, end_s, the task's actions."""
    policy = load(cfg.policy)
    if policy.card.encoding is None:
        raise VtpError(
            f"{cfg.policy} observes the simulator's state, not embeddings; train one that does: "
            "vtp train --source embeddings",
            code="policy-on-states",
        )
    data = dataset.read_embeddings(cfg.embeddings)
    check_encoding(policy.card, data, cfg)
    observations = runs.observed(data, policy.card.centre)
    task = policy.card.task
    blocks = [policy.act(observations[start : start + BLOCK_ROWS]) for start in range(0, data.num_clips, BLOCK_ROWS)]
    actions = np.concatenate(blocks)
    slack = 1e-6 * (task.high - task.low)  # float32 bounds need not be the task's
    fits = actions.shape == (data.num_clips, task.num_actions)
    if not (fits and ((actions >= task.low - slack) & (actions <= task.high + slack)).all()):
        raise CorruptError(
            f"{cfg.policy} gives something other than {', '.join(task.actions)} within their bounds; export it again",
            code="policy-corrupt",
        )
    actions = np.clip(actions, task.low, task.high)
    rows = np.arange(data.num_clips)
    video = dataset.video_of(data, rows)
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "clip": rows - data.offset[video],
            "start_s": data.clips.start_s, "end_s": data.clips.end_s,
            **{name: actions[:, index] for index, name in enumerate(task.action_names)},
        }
    )  # fmt: skip
    if cfg.out is not None:
        with atomic_path(cfg.out) as temporary:
            table.to_csv(temporary, index=False)
    return table


def check_encoding(card: Card, data: dataset.Embeddings, cfg: ActConfig) -> None:
    """VtpError where the embeddings come from another encoder or projector than the policy was trained with."""
    assert card.encoding is not None
    projector = encoders.Projector(
        data.projector_mean, data.projector_components, data.projector_scale, "", data.projector_norm
    )
    found = data.attrs | {"projector_sha256": projector.sha256}
    trained = card.encoding.model_dump() | {"projector_sha256": card.projector_sha256}
    for name, remedy in REMEDIES.items():
        if found.get(name) != trained[name]:
            shown = [
                str(value)[:12] if name.endswith("sha256") else value for value in (found.get(name), trained[name])
            ]
            embeddings = card.provenance.get("embeddings", "the embeddings that it was trained on")
            remedy = remedy.format(trained=trained[name], weights=trained["weights"], embeddings=embeddings)
            raise VtpError(
                f"{cfg.embeddings} has {name} {shown[0]}, but {cfg.policy} was trained with {shown[1]}; {remedy}",
                code="embeddings-of-other-encoder",
            )
