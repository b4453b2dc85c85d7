"""The most and the least novel clips behind a run, and all their scores."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import dataset, storage, synthetic
from pipeline.dataset.rereading import read_clips
from pipeline.errors import VtpError
from pipeline.report.figures import (
    Axis,
    Chart,
    Download,
    Series,
    Style,
    axis_around,
    axis_from_to,
    csv_download,
    histogram,
    line_chart,
)  # fmt: skip
from pipeline.report.run_files import Missing
from pipeline.report.tables import Cell, Table, cell
from pipeline.report.words import count, number, number_tick

SHOWN = 4  # clips at either end
MAX_FRAMES = 32  # of a looping picture, which limits the size of the page
SCORE_BINS = 30

WHY_NOT = {  # by the code of the error when a clip is read again
    "video-changed": "The video has changed since it was scored.",
    "video-unreadable": "The video can no longer be read.",
}


@dataclass(frozen=True)
class Picture:
    """A looping picture as a data URI, or the reason why there is none."""

    uri: str | None
    why_not: str = ""


@dataclass(frozen=True)
class Tile:
    """A clip: its looping picture, or the reason why there is none; its score, kind and source."""

    uri: str | None
    score: str
    kind: str
    where: str
    why_not: str = ""


@dataclass(frozen=True)
class Gallery:
    """The most and least novel clips, charts of all scores, and the detection of labelled novelty if there is any."""

    answer: str
    says: str
    most: list[Tile]
    least: list[Tile]
    charts: list[Chart]
    download: Download
    detection: Table | None


def read_gallery(config: dict[str, Any]) -> Gallery | Missing | None:
    """The gallery of the run's embeddings, or why it is missing; None for a run without embeddings."""
    if config.get("source") not in ("embeddings", "video") or not config.get("embeddings"):
        return None
    embeddings_path = storage.path_of(str(config["embeddings"]))
    used = config.get("novelty")
    novelty_path = Path(str(used or embeddings_path.with_name("novelty.h5")))
    command = f"vtp novelty --embeddings {shlex.quote(storage.name_of(embeddings_path))}"
    if used:
        command += f" --out {shlex.quote(storage.name_of(novelty_path))}"

    def missing(why: str) -> Missing:
        return Missing(f"There is no gallery of the most novel clips: {why}.", command)

    if absent := [path for path in (embeddings_path, novelty_path) if not path.is_file()]:
        if used:
            return missing(f"the run was trained with {storage.name_of(absent[0])}, which is no longer there")
        return None if embeddings_path in absent else missing("no clip has been scored")
    try:
        data = dataset.read_embeddings(embeddings_path)
        columns, attrs = dataset.read_novelty_scores(novelty_path, data.content_sha256)
    except VtpError as error:
        return missing(str(error))
    if "score" not in columns:
        return missing(f"{novelty_path} has no column score")
    if not np.isfinite(columns["score"]).any():
        return Missing(f"No clip has a novelty score: {attrs.get('model_why', 'too few clips')}.", command)
    try:
        sigmas = [float(sigma) for sigma in json.loads(str(attrs.get("sigmas") or "[]"))]
        judged = json.loads(str(attrs.get("detection") or "{}"))
        detection = _detection(judged) if judged else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return missing(f"the attributes of {novelty_path} are damaged ({type(error).__name__}: {error})")
    shapes = {name: (data.num_clips,) for name in columns} | {"z": (data.num_clips, len(sigmas))}
    shapes |= {"gap": shapes["z"]} if "gap" in columns else {}
    for name, shape in shapes.items():
        if name not in columns or columns[name].shape != shape:
            found = columns[name].shape if name in columns else "missing"
            return missing(f"in {novelty_path}, {name} is {found}, not {shape}")
    ranked = _ranked(columns)
    shown = min(SHOWN, len(ranked) // 2)
    most, least = ranked[:shown], _each_video_first(data, ranked[::-1])[:shown]
    pictures = _pictures(data, np.concatenate([most, least]))
    charts, download = _scores(data, columns, sigmas, ranked)
    return Gallery(
        answer=f"{count(len(ranked), 'clip')} scored, from {number(float(columns['score'][ranked[-1]]))} to "
        f"{number(float(columns['score'][ranked[0]]))}; the training weights go from "
        f"{number(float(columns['weight'].min()))} to {number(float(columns['weight'].max()))}.",
        says=f"Scored by the model {attrs.get('model')} ({attrs.get('model_why')}), against {attrs.get('reference')}. "
        "0 is the middle of the reference, one unit a usual deviation.",
        most=[_tile(data, columns, row, pictures[row]) for row in most],
        least=[_tile(data, columns, row, pictures[row]) for row in least],
        charts=charts,
        download=download,
        detection=detection,
    )


def _ranked(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Rows of the scored clips, the most novel first. Ties, common at the lowest score, go by mean deviation."""
    channels = [values for name, values in columns.items() if name.startswith("channels/")]
    deviation = np.mean(channels or [columns["score"]], axis=0)
    scored = np.flatnonzero(np.isfinite(columns["score"]))
    return scored[np.lexsort([-deviation[scored], -columns["score"][scored]])]


def _video(data: dataset.Embeddings, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(data.offset, rows, side="right") - 1


def _each_video_first(data: dataset.Embeddings, rows: np.ndarray) -> np.ndarray:
    """The first of each video in that order, then the second of each, and so on."""
    turn = pd.Series(_video(data, rows)).groupby(_video(data, rows)).cumcount()
    return rows[np.argsort(turn, kind="stable")]


def _kinds(data: dataset.Embeddings) -> np.ndarray:
    """The label of each clip [N]: a kind of novelty, novel, ordinary, or "" if unknown."""
    if data.logs is None:
        return np.full(data.num_clips, "")
    novel = data.logs.novel
    kind = np.full(data.num_clips, "") if data.logs.novel_kind is None else data.logs.novel_kind.astype(str)
    return np.where(novel == 1, np.where(kind == "", "novel", kind), np.where(novel == 0, "ordinary", ""))


def _tile(data: dataset.Embeddings, columns: dict[str, np.ndarray], row: int, picture: Picture) -> Tile:
    video = int(_video(data, np.array(row)))
    where = f"{data.videos.id[video]}, from {data.clips.start_s[row]:.1f} s"
    return Tile(picture.uri, number(float(columns["score"][row])), _kinds(data)[row], where, picture.why_not)


def _pictures(data: dataset.Embeddings, rows: np.ndarray) -> dict[int, Picture]:
    """Each row's clip as a looping picture, or why it is missing; every video is read once."""
    rows = np.sort(rows)
    pictures: dict[int, Picture] = {}
    for video in np.unique(_video(data, rows)):
        wanted = rows[_video(data, rows) == video]
        try:
            for read, clips in read_clips(data, [video], wanted=wanted):
                pictures |= {int(row): Picture(_looping(data, clip)) for row, clip in zip(read, clips, strict=True)}
        except VtpError as error:
            why_not = WHY_NOT.get(error.code, str(error))
            pictures |= {int(row): Picture(None, why_not) for row in wanted if int(row) not in pictures}
    return pictures


def _looping(data: dataset.Embeddings, frames: np.ndarray) -> str:
    step = -(-len(frames) // MAX_FRAMES)
    image = synthetic.webp(frames[::step], fps=float(data.attrs["fps"]) / step)
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"


def _scores(
    data: dataset.Embeddings, columns: dict[str, np.ndarray], sigmas: list[float], ranked: np.ndarray
) -> tuple[list[Chart], Download]:
    kinds = _kinds(data)
    video = _video(data, np.arange(data.num_clips))
    table = pd.DataFrame(
        {
            "video_id": np.array(data.videos.id)[video], "start_s": data.clips.start_s, "label": kinds,
            "score": columns["score"], "weight": columns["weight"],
            **{name.removeprefix("channels/"): columns[name] for name in columns if name.startswith("channels/")},
            **{f"z at sigma {sigma:g}": columns["z"][:, k] for k, sigma in enumerate(sigmas)},
        }
    )  # fmt: skip
    charts = [_histogram(columns["score"][ranked], ~np.isin(kinds[ranked], ("", "ordinary")))]
    if sigmas:
        charts.append(_profile(columns["z"], sigmas, ranked))
    return charts, csv_download("novelty.csv", table)


def _histogram(score: np.ndarray, is_novel: np.ndarray) -> Chart:
    """Histogram of the clips' scores [n], with a separate one of clips labelled novel, if there are any."""
    groups: list[tuple[Style, np.ndarray]] = [("policy", score[~is_novel])]
    caption = f"{count(len(score), 'clip')}."
    if is_novel.any():
        groups.append(("optimum", score[is_novel]))
        caption = f"{count(int(is_novel.sum()), 'clip')} labelled novel, {len(score) - int(is_novel.sum()):,} others."
    low, high = float(score.min()), float(score.max())
    axis = axis_around("novelty score", [low, high], number_tick)
    return histogram(
        "Scores", groups, axis, y_label="share of clips, %", bins=SCORE_BINS, caption=caption,
        summary=f"Novelty scores of {count(len(score), 'clip')}, {number(low)} to {number(high)}",
    )  # fmt: skip


def _profile(z: np.ndarray, sigmas: list[float], ranked: np.ndarray) -> Chart:
    """The noise gap at each noise level of the most novel tenth and of the rest: medians and quartiles."""
    x, tenth = np.array(sigmas), max(1, len(ranked) // 10)
    groups: tuple[tuple[np.ndarray, str, Style], ...] = (
        (ranked[tenth:], "the rest", "policy"), (ranked[:tenth], "most novel", "optimum"),
    )  # fmt: skip
    series = []
    for rows, label, style in groups:
        if len(rows):
            low, middle, high = np.percentile(z[rows], [25, 50, 75], axis=0)
            series.append(Series(label, x, middle, style, low, high))
    low, high = float(x.min()), float(x.max())
    if low < high and low > 0:
        axis = Axis("noise level σ", low, high, [(sigma, number_tick(sigma)) for sigma in sigmas], scale="log")
    else:
        axis = axis_from_to("noise level σ", low, high)
    return line_chart(
        "Noise gap by noise level", series, x=axis, y_label="z, usual deviations", y_text=number_tick, label_gap=9.0,
        caption="Median and quartiles of the most novel tenth of the clips, and of the rest.",
        summary="Noise gap by noise level of the most novel tenth of the clips and of the rest",
    )  # fmt: skip


def _detection(found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """AUROC by kind: the score with its interval, then its channels and the baseline."""
    others = [name for name in found if name != "score"]
    rows, records = [], []
    for kind, row in found["score"].items():
        low, high = row["auroc_ci95"]
        first = Cell(f"{row['auroc']:.2f} [{low:.2f}, {high:.2f}]", row["auroc"])
        rest = [cell(f"{found[name][kind]['auroc']:.2f}", found[name][kind]["auroc"]) for name in others]
        rows.append([Cell(kind, kind), cell(str(row["clips"]), row["clips"]), first, *rest])
        records.append({"kind": kind, "score": "score", **row})
        records += [{"kind": kind, "score": name, **found[name][kind]} for name in others]
    named = {"knn": "nearest neighbours", "gap": "noise gap"}
    return Table(
        "Detection of labelled novelty by kind: area under the ROC curve with its 95% interval; 0.5 is chance. Beside "
        "the score are its channels, and nearest neighbours in embedding space.",
        [("Kind", "text"), ("Clips", "number"), ("Score", "number")]
        + [(named.get(name, name), "number") for name in others],
        rows,
        csv_download("novelty-found.csv", pd.DataFrame(records)),
    )
