"""A run directory's policy: how it is built, loaded, validated and summed up."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline import dataset, encoders, synthetic, video
from pipeline.config import EvaluateConfig
from pipeline.dataset import rereading
from pipeline.errors import CorruptError, VtpError
from pipeline.evaluate.loops import PIXEL_STREAM, PixelObserver, Progress, from_pixels, in_simulator, on_clips
from pipeline.evaluate.reference import summarise
from pipeline.files import atomic_path, write_json
from pipeline.rl.envs import SimEnv, expected_work
from pipeline.rl.sac import ACTION_SIZE, Agent, load_checkpoint
from pipeline.synthetic import dynamics

SIM_EPISODES = 200
PIXEL_EPISODES = 8
CHANGED = "changed"  # folder of a run for its validation in changed scenes


class OutcomeModel(NamedTuple):
    """What the env and held-out validation take an action's outcome from: a scenario and each clip's context [N]."""

    scenario: dynamics.Scenario
    context: np.ndarray
    labelled: bool
    description: str


def outcome_model(data: dataset.Embeddings) -> OutcomeModel:
    """The simulator with each clip's labelled context, or with the seed's parameters where there are no labels."""
    tasks = sorted({str(task) for task in data.videos.task if task}) or ["dishwashing"]
    if len(tasks) > 1:
        raise VtpError(f"the embeddings mix tasks ({', '.join(tasks)}); extract each task to a file of its own")
    seed = dynamics.scenario(tasks[0], "seed")
    labels = data.labels.get("context") if data.labels else None
    if labels is None or not any(labels):
        description = f"simulator, {tasks[0]} with the seed's parameters (the clips have no labels)"
        return OutcomeModel(seed, np.zeros(len(data.embeddings), np.int64), False, description)
    default = seed.context_names[0]
    names = np.array([str(name) or default for name in labels])
    scenario = seed if set(names) == {default} else dynamics.scenario(tasks[0], "mixed")
    unknown = sorted(set(names) - set(scenario.context_names))
    if unknown:
        raise VtpError(
            f"label context {str(unknown[0])!r} is unknown in {tasks[0]}; "
            f"use one of {', '.join(scenario.context_names)}"
        )
    unlabelled = sum(not name for name in labels)
    description = f"simulator, {tasks[0]} with each clip's labelled context"
    if unlabelled:
        description += f" ({unlabelled} of {len(names)} clips have none and count as {default})"
    index = {name: k for k, name in enumerate(scenario.context_names)}
    return OutcomeModel(scenario, np.array([index[name] for name in names]), True, description)


def split_rows(data: dataset.Embeddings) -> tuple[np.ndarray, np.ndarray, str]:
    """Row ranges [V, 2] of training videos, held-out rows [n], and how they were held out.

    The val split's videos are held out; where there is none, the last fifth of each video, and of the clips before it
    those that share frames with it are left out.
    """
    ranges = np.stack([data.clips.offset[:-1], data.clips.offset[1:]], 1)
    ranges, splits = ranges[ranges[:, 1] > ranges[:, 0]], np.array(data.videos.split)[ranges[:, 1] > ranges[:, 0]]
    train, val = ranges[splits == "train"], ranges[splits == "val"]
    if len(train) and len(val):
        rows = np.concatenate([np.arange(start, end) for start, end in val])
        return train, rows, f"{len(val)} videos of the val split"
    ranges = ranges[splits != "test"]
    held = np.maximum(ranges[:, 1] - np.maximum((ranges[:, 1] - ranges[:, 0]) // 5, 1), ranges[:, 0])
    rows = np.concatenate([np.arange(cut, end) for cut, (_, end) in zip(held, ranges, strict=True)])
    clips = data.clips
    overlap = [
        (clips.end_s[start:cut] > clips.start_s[cut] + 1e-6).sum() for (start, _), cut in zip(ranges, held, strict=True)
    ]
    train = np.stack([ranges[:, 0], held - np.array(overlap, int)], 1)
    train = train[train[:, 1] > train[:, 0]]
    if len(train) == 0:
        raise VtpError("no clip is left to train on after holding out a fifth of each video; extract longer videos")
    return train, rows, "the last fifth of each video (there are not both train and val videos)"


def video_of(data: dataset.Embeddings, rows: np.ndarray) -> np.ndarray:
    """The video [n] of each clip."""
    return np.searchsorted(data.offset, rows, side="right") - 1


def observed(data: dataset.Embeddings, centre: list[float] | None) -> np.ndarray:
    """What a policy with that `centre` of its `meta` observes of an embeddings file: [N, 128].

    centre: [128], the mean embedding of its training clips, where it sees each clip from the mean of its video; that is
    the mean of all clips there, also of those held out.
    """
    return data.embeddings if centre is None else encoders.centre_videos(data.embeddings, data.offset, np.array(centre))


def build_agent(source: str, meta: Mapping[str, Any] | None = None, **options: Any) -> Agent:
    """An untrained agent for that source; options are those of `Agent`. meta: a checkpoint's; of video alone needed."""
    if source == "embeddings":
        return Agent(encoders.Normalizer(), encoders.EMBEDDING_DIM, **options)
    encoder: nn.Module = _clip_encoder(meta) if source == "video" else encoders.MLPEncoder(SimEnv.OBSERVATION_SIZE)
    auxiliary = encoders.AuxiliaryHeads(encoders.EMBEDDING_DIM, ACTION_SIZE)
    return Agent(encoder, encoders.EMBEDDING_DIM, auxiliary=auxiliary, **options)


def _clip_encoder(meta: Mapping[str, Any]) -> encoders.ClipEncoder:
    """The encoder of a run on video as it is before training."""
    encoder = encoders.ClipEncoder(
        meta["encoding"]["weights"], _projector(meta), layers=meta["encoder_layers"], frame_size=meta["frame_size"]
    )
    _check_weights(encoder.weights_sha256, meta["encoding"])
    return encoder


def _check_weights(sha256: str, encoding: Mapping[str, Any]) -> None:
    if sha256 != encoding["weights_sha256"]:
        raise VtpError(
            f"weights {encoding['weights']} have sha256 {sha256[:12]}, but the policy was trained with "
            f"{encoding['weights_sha256'][:12]}; restore those weights, or extract and train again"
        )


def _projector(meta: Mapping[str, Any]) -> encoders.Projector:
    norm = meta["projector"].get("norm")
    return encoders.Projector(
        meta["projector"]["mean"].numpy(), meta["projector"]["components"].numpy(),
        meta["projector"]["scale"], meta["encoding"]["projector"], None if norm is None else norm.numpy(),
    )  # fmt: skip


def load_run(run_dir: Path) -> tuple[Agent, dict[str, Any]]:
    """A run's best policy, or its last where a run ended before any was chosen, and its checkpoint's `meta`."""
    if not run_dir.is_dir():
        raise VtpError(f"{run_dir} is no run directory; name the --out of a vtp train")
    path = run_dir / "best.pt" if (run_dir / "best.pt").is_file() else run_dir / "last.pt"
    checkpoint = load_checkpoint(path)
    try:
        agent = build_agent(checkpoint["meta"]["source"], checkpoint["meta"])
        agent.load_state_dict(checkpoint["agent"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptError(f"{path} is no checkpoint of this version ({type(error).__name__}); train again") from error
    return agent, checkpoint["meta"]


def check_same_inputs(trained: dict[str, Any], wanted: dict[str, Any], run_dir: Path) -> None:
    """VtpError where a policy does not see what it was trained to see; both are a checkpoint's `meta`."""
    if trained["source"] != wanted["source"]:
        raise VtpError(f"{run_dir} was trained on {trained['source']}, not on {wanted['source']}; name another run")
    if trained["source"] == "sim":
        return
    for name in ("frame_size", "encoder_layers"):
        if trained.get(name) != wanted.get(name):
            raise VtpError(
                f"{run_dir} was trained with {name} {trained[name]}, not {wanted[name]}; "
                f"add --{name.replace('_', '-')} {trained[name]}"
            )
    trained_centre, wanted_centre = ("corpus" if meta.get("centre") is None else "video" for meta in (trained, wanted))
    if trained_centre != wanted_centre:
        raise VtpError(
            f"{run_dir} was trained with --centre {trained_centre}, not with --centre {wanted_centre}; "
            f"add --centre {trained_centre}"
        )
    for name in ("backbone", "weights_sha256", "transform", "clip_len", "fps"):
        if trained["encoding"][name] != wanted["encoding"][name]:
            raise VtpError(
                f"{run_dir} was trained on embeddings of {name} {trained['encoding'][name]}, "
                f"these are of {wanted['encoding'][name]}; extract with the same settings"
            )
    trained_projector, wanted_projector = trained["projector"], wanted["projector"]
    if any(not _same(trained_projector[name], wanted_projector[name]) for name in trained_projector):
        raise VtpError(
            f"{run_dir} was trained on embeddings of another projection; extract with --projector "
            f"{trained['embeddings']}, whose projector it reads"
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def run(cfg: EvaluateConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Validate the run's best policy; writes and returns its summary, and writes `validation.csv`.

    In changed scenes both go to a folder of their own, RUN/changed.
    """
    started = time.monotonic()
    agent, meta = load_run(cfg.run)
    from_scenes = meta["source"] != "sim" and (
        cfg.validation == "pixels" or (cfg.validation == "auto" and meta["labelled"])
    )
    if cfg.scenes == "changed" and not from_scenes:
        raise VtpError("--scenes changed needs a validation from pixels, which this run's is not; leave it out")
    out = cfg.run / CHANGED if cfg.scenes == "changed" else cfg.run
    rng = np.random.default_rng([PIXEL_STREAM, cfg.seed])
    scenario = dynamics.scenario(meta["task"], meta["scenario"])
    if meta["source"] == "sim":
        validation = "simulator"
        steps = in_simulator(agent, scenario, episodes=cfg.episodes or SIM_EPISODES, steps=cfg.steps, rng=rng)
    elif from_scenes:
        validation = "closed loop from pixels"
        with _observer(agent, meta) as see:
            steps = from_pixels(
                agent, scenario, see, episodes=cfg.episodes or PIXEL_EPISODES, steps=cfg.steps, seed=cfg.seed,
                frames=out / "frames", changed=cfg.scenes == "changed", progress=progress,
            )  # fmt: skip
    else:
        validation = "held-out clips"
        data = load_embeddings(meta)
        _, rows, _ = split_rows(data)
        model = outcome_model(data)
        from_file = meta["source"] == "embeddings"
        embeddings = observed(data, meta.get("centre"))[rows] if from_file else _see_again(agent, data, rows)
        steps = on_clips(agent, model.scenario, embeddings, model.context[rows], video=video_of(data, rows), rng=rng)
    return write_summary(
        cfg.run, scenario, steps, out=out, meta=meta, validation=validation, evaluation=_settings(cfg, validation),
        stage="evaluate", wall_s=time.monotonic() - started,
    )  # fmt: skip


def _settings(cfg: EvaluateConfig, validation: str) -> dict[str, Any]:
    """What the validation depends on, and the command that repeats it; stored clips have their own steps and episodes.

    The command names every flag, so that it repeats this validation whatever the defaults become.
    """
    settings: dict[str, Any] = {"seed": cfg.seed}
    if validation != "held-out clips":
        default = SIM_EPISODES if validation == "simulator" else PIXEL_EPISODES
        settings |= {"episodes": cfg.episodes or default, "steps": cfg.steps}
    for name in ("validation", "scenes"):
        if getattr(cfg, name) != EvaluateConfig.model_fields[name].default:
            settings[name] = getattr(cfg, name)
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return settings | {"command": shlex.join(["vtp", "evaluate", str(cfg.run), *flags])}


@contextlib.contextmanager
def _observer(agent: Agent, meta: dict[str, Any]) -> Iterator[PixelObserver]:
    """What the policy was trained to see through, its encoder checked by hash, behind a decoder."""
    encoding = meta["encoding"]
    if (encoding["clip_len"], encoding["fps"]) != (synthetic.CLIP_LEN, synthetic.FPS):
        raise VtpError(
            f"the policy was trained on clips of {encoding['clip_len']} frames at {encoding['fps']:g} fps, rendered "
            f"ones have {synthetic.CLIP_LEN} at {synthetic.FPS}; "
            f"extract with --clip-len {synthetic.CLIP_LEN} --fps {synthetic.FPS}"
        )
    if meta["source"] == "video":
        with video.Decoder(frame_size=encoders.resized(agent.encoder.frame_size)) as decoder:
            yield PixelObserver(agent.encoder.see, decoder)
        return
    encoder = encoders.load_encoder(encoding["backbone"], encoding["weights"], encoding["precision"])
    projector = _projector(meta)
    _check_weights(encoder.weights_sha256, encoding)
    centre = None if meta.get("centre") is None else encoders.RunningCentre(np.array(meta["centre"]))

    def embed(clips: np.ndarray) -> np.ndarray:
        embeddings = projector.project(encoder.features(clips))
        return embeddings if centre is None else centre(embeddings)

    with video.Decoder(frame_size=encoder.frame_size) as decoder:
        yield PixelObserver(embed, decoder)


def _see_again(agent: Agent, data: dataset.Embeddings, rows: np.ndarray) -> np.ndarray:
    """Embeddings [n, 128] of clips `rows` [n], in rising order, by the encoder that a run on video has trained."""
    size = encoders.resized(agent.encoder.frame_size)
    clips = rereading.read_clips(data, range(data.num_videos), frame_size=size, wanted=rows)
    return np.concatenate([agent.encoder.see(frames) for _, frames in clips])


def load_embeddings(meta: dict[str, Any]) -> dataset.Embeddings:
    """The embeddings that a policy was trained on; VtpError where the file has changed since."""
    path = Path(meta["embeddings"])
    data = dataset.read_embeddings(path)
    if data.attrs["content_sha256"] != meta["content_sha256"]:
        raise VtpError(
            f"{path} has content {data.attrs['content_sha256'][:12]}, but the policy was trained on "
            f"{meta['content_sha256'][:12]}; restore that file, or train again"
        )
    return data


def write_summary(
    run_dir: Path,
    scenario: dynamics.Scenario,
    steps: pd.DataFrame,
    *,
    meta: dict[str, Any],
    validation: str,
    evaluation: dict[str, Any],
    stage: str,
    wall_s: float,
    out: Path | None = None,
) -> dict[str, Any]:
    """Write `validation.csv` and `summary.json` into the run, or another folder `out`; returns the summary.

    evaluation: settings of this validation. `wall_s` of the summary is that of all the run's stages so far; training
    is the first, and a stage that is repeated counts once.
    """
    out = out or run_dir
    _, _, profit = expected_work(
        scenario, steps["context"].to_numpy(), steps["speed"].to_numpy(), steps["care"].to_numpy()
    )
    rows = steps.assign(context=np.array(scenario.context_names)[steps["context"]], profit_usd_per_hour=profit)
    with atomic_path(out / "validation.csv") as temporary:
        rows.to_csv(temporary, index=False)
    stages = ({} if stage == "train" else _stages_so_far(out / "summary.json")) | {stage: wall_s}
    summary = {
        "source": meta["source"],
        "seeds": [meta["seed"]],
        **summarise(scenario, steps, s_cust=_customer_share(run_dir / "metrics.csv")),
        "estimator": _estimator_skill(run_dir / "data_value.json"),
        "validation": validation,
        "outcome_model": meta["outcome_model"],
        "labelled": meta.get("labelled"),
        "evaluation": evaluation,
        "wall_s": sum(stages.values()),
        "stages_wall_s": stages,
        "provenance": meta["provenance"],
    }
    write_json(out / "summary.json", summary)
    return summary


def _stages_so_far(path: Path) -> dict[str, float]:
    """Seconds of the stages that an earlier summary knows; none where it cannot be read, for it is replaced anyway."""
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages_wall_s"]
        return {str(name): float(seconds) for name, seconds in stages.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _estimator_skill(path: Path) -> dict[str, Any] | None:
    """The skill of the estimator that the customer's share rests on; None where training left no record of it."""
    return json.loads(path.read_text(encoding="utf-8"))["estimator"] if path.is_file() else None


def _customer_share(metrics: Path) -> float:
    """The customer's mean share of the spread over the last 100 training episodes; 0 with no record of them."""
    if not metrics.is_file():
        return 0.0
    shares = pd.read_csv(metrics, usecols=["s_cust"])["s_cust"].tail(100)
    return float(shares.mean()) if len(shares) else 0.0
