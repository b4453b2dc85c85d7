"""Evaluation of scores against labelled novelty, and their correlation with motion and texture."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pipeline import dataset

BOOTSTRAPS = 1000


def judge(data: dataset.Embeddings, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Evaluate the score, its channels and the baseline against labelled novelty, and the score against busyness.

    Labels only evaluate the score; they are not used in it. Empty if there are no labels of novelty.
    """
    scored = np.isfinite(columns["score"])
    if data.logs is None or "knn" not in columns:
        return {}
    novel = np.where(scored, data.logs.novel, np.nan)
    ordinary = novel == 0
    result: dict[str, Any] = {
        "rho_motion": rank_correlation(columns["score"][ordinary], columns["motion_energy"][ordinary]),
        "rho_texture": rank_correlation(columns["score"][ordinary], columns["texture_energy"][ordinary]),
    }
    if not ((novel == 1).any() and ordinary.any()):
        return result if ordinary.any() else {}
    scores = {"score": columns["score"], "knn": columns["knn"]}
    scores |= {
        name.removeprefix("channels/"): column for name, column in columns.items() if name.startswith("channels/")
    }
    kinds = np.full(data.num_clips, "") if data.logs.novel_kind is None else data.logs.novel_kind.astype(str)
    found = detection(scores, kinds, novel, np.random.default_rng(0))
    auroc = {kind: row["auroc"] for kind, row in found["score"].items()}
    return result | {
        "auroc": auroc,
        "auroc_mean": float(np.mean(list(auroc.values()))),
        "auroc_knn_mean": float(np.mean([row["auroc"] for row in found["knn"].values()])),
        "detection": found,
    }


def detection(
    scores: dict[str, np.ndarray], kinds: np.ndarray, novel: np.ndarray, rng: np.random.Generator
) -> dict[str, dict[str, dict[str, object]]]:
    """How well each score distinguishes each kind of novelty from the ordinary clips.

    scores: name → [N]. novel [N]: 1, 0, or NaN where unknown. kinds [N]: the kind of novelty, "" if it has no name.
    Returns name → kind → {auroc, auroc_ci95, average_precision, average_precision_ci95, clips}.
    """
    ordinary = np.flatnonzero(novel == 0)
    names = np.where(kinds == "", "novel", kinds)
    found: dict[str, dict[str, dict[str, object]]] = {name: {} for name in scores}
    for kind in sorted(set(names[novel == 1])):
        planted = np.flatnonzero((novel == 1) & (names == kind))
        # Row 0 is the data itself, the others are resampled; all scores use the same samples.
        draws = [
            np.vstack(
                [np.ones(len(rows), int), rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), BOOTSTRAPS)]
            )
            for rows in (ordinary, planted)
        ]
        for name, score in scores.items():
            row: dict[str, object] = {"clips": len(planted)}
            metrics = ranking_metrics(score[ordinary], score[planted], *draws)
            for metric, values in zip(("auroc", "average_precision"), metrics, strict=True):
                row[metric] = float(values[0])
                row[f"{metric}_ci95"] = [float(bound) for bound in np.percentile(values[1:], [2.5, 97.5])]
            found[name][kind] = row
    return found


def ranking_metrics(
    ordinary: np.ndarray, planted: np.ndarray, ordinary_counts: np.ndarray, planted_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision [R] of scores [n] and [m], weighted by counts [R, n] and [R, m].

    Equal to scikit-learn's, ties included, but for all R at once.
    """
    levels, level = np.unique(-np.concatenate([ordinary, planted]), return_inverse=True)
    misses, hits = (
        np.stack([np.bincount(at, counts, len(levels)) for counts in table])
        for at, table in ((level[: len(ordinary)], ordinary_counts), (level[len(ordinary) :], planted_counts))
    )
    misses_above, hits_above = np.cumsum(misses, axis=1), np.cumsum(hits, axis=1)
    num_misses, num_hits = misses_above[:, -1], hits_above[:, -1]
    auroc = (misses * (hits_above - hits / 2)).sum(axis=1) / (num_misses * num_hits)
    precision = hits_above / np.maximum(hits_above + misses_above, 1)
    return auroc, (hits * precision).sum(axis=1) / num_hits


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation; None if one of them does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
