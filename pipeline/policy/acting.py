"""What a policy does in the clips of an embeddings file."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline import dataset, evaluate
from pipeline.config import ActConfig
from pipeline.errors import CorruptError, VtpError
from pipeline.files import atomic_path
from pipeline.policy.card import Card, projector_sha256
from pipeline.policy.policy_file import load
from pipeline.rl.sac import ACTION_SIZE

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
    """What the policy does in each clip: video_id, clip (from 0 in its video), start_s, end_s, speed, care."""
    policy = load(cfg.policy)
    if policy.card.encoding is None:
        raise VtpError(
            f"{cfg.policy} observes the simulator's state, not embeddings; train one that does: "
            "vtp train --source embeddings"
        )
    data = dataset.read_embeddings(cfg.embeddings)
    check_encoding(policy.card, data, cfg)
    observations = evaluate.observed(data, policy.card.centre)
    blocks = [policy.act(observations[start : start + BLOCK_ROWS]) for start in range(0, data.num_clips, BLOCK_ROWS)]
    actions = np.concatenate(blocks)
    if not (actions.shape == (data.num_clips, ACTION_SIZE) and ((actions >= 0) & (actions <= 1)).all()):
        raise CorruptError(f"{cfg.policy} gives something other than actions in [0, 1]; export it again")
    rows = np.arange(data.num_clips)
    video = evaluate.video_of(data, rows)
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "clip": rows - data.offset[video],
            "start_s": data.clips.start_s, "end_s": data.clips.end_s, "speed": actions[:, 0], "care": actions[:, 1],
        }
    )  # fmt: skip
    if cfg.out is not None:
        with atomic_path(cfg.out) as temporary:
            table.to_csv(temporary, index=False)
    return table


def check_encoding(card: Card, data: dataset.Embeddings, cfg: ActConfig) -> None:
    """VtpError where the embeddings come from another encoder or projector than the policy was trained with."""
    projector = projector_sha256(
        data.projector_mean, data.projector_components, data.projector_scale, data.projector_norm
    )
    found, trained = data.attrs | {"projector_sha256": projector}, card.encoding.model_dump()
    for name, remedy in REMEDIES.items():
        if found.get(name) != trained[name]:
            shown = [
                str(value)[:12] if name.endswith("sha256") else value for value in (found.get(name), trained[name])
            ]
            embeddings = card.provenance.get("embeddings", "the embeddings that it was trained on")
            remedy = remedy.format(trained=trained[name], weights=trained["weights"], embeddings=embeddings)
            raise VtpError(
                f"{cfg.embeddings} has {name} {shown[0]}, but {cfg.policy} was trained with {shown[1]}; {remedy}"
            )
