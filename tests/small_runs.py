"""Short trainings for tests: settings, tasks, and embeddings that show the context."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import dataset, train, training
from pipeline.config import EmbeddingsTrainConfig, SimTrainConfig
from pipeline.outcomes import SimulatedOutcomes
from pipeline.runs import load_checkpoint
from pipeline.tasks import Task, load_task

SMALL = {
    "episodes": 24,
    "num_envs": 8,
    "updates_per_episode": 1,
    "warmup_steps": 64,
    "batch_size": 32,
    "evaluations": 3,
}


def sim_config(folder: Path, **settings) -> SimTrainConfig:
    return SimTrainConfig(**{"out": folder / "run", **SMALL, **settings})


def embeddings_config(folder: Path, path: Path, **settings) -> EmbeddingsTrainConfig:
    """On simulated outcomes by default: a caution is chosen on folds of the logs, which takes seconds."""
    defaults = {"embeddings": path, "out": folder / "run", "outcomes": "simulator", **SMALL}
    return EmbeddingsTrainConfig(**{**defaults, **settings})


# Tasks that are unlike the built-in ones

TASKS = {
    # One action, whose best differs by context.
    "pressing": """
        name: pressing
        step_s: 30.0
        human_wage_usd: 15.0
        costs_usd_per_hour: {power: 1.5, rent: 2.0}
        actions:
          pressure: {low: 2.0, high: 12.0}
        contexts:
          soft: {price_usd: 0.10, damage_usd: 0.50}
          firm: {price_usd: 0.10, damage_usd: 0.50}
          hard: {price_usd: 0.12, damage_usd: 0.60}
        simulator:
          attempts_per_minute: 6.0
          error_probability: min(0.01 + 1.2 * ((pressure - best) / 10)**2, 0.9)
          contexts:
            soft: {best: 3.0}
            firm: {best: 7.0}
            hard: {best: 11.5}
        """,
    # Three actions, none of them within [0, 1].
    "welding": """
        name: welding
        step_s: 20.0
        human_wage_usd: 30.0
        costs_usd_per_hour: {gas: 4.0}
        actions:
          current: {low: 80.0, high: 200.0, attempts: rises}
          feed: {low: -5.0, high: 5.0}
          angle: {low: -60.0, high: -10.0}
        contexts:
          steel: {price_usd: 0.40, damage_usd: 0.50}
          brass: {price_usd: 0.60, damage_usd: 2.00}
        error_target: {start: 0.20, end: 0.10, episodes: 100}
        simulator:
          attempts_per_minute: 0.03 * current
          error_probability: >-
            min(0.02 + heat * ((current - 80) / 120)**2 + 0.2 * ((feed - best) / 10)**2 + 0.3 * ((angle + 35) / 50)**2,
            0.9)
          contexts:
            steel: {heat: 0.05, best: 3.0}
            brass: {heat: 0.60, best: -2.0}
        """,
    # A single price, and clips that stand for as long as they are.
    "watering": """
        name: watering
        human_wage_usd: 12.0
        actions:
          dose: {low: 0.0, high: 5.0, attempts: falls, errors: falls}
          pause: {low: 1.0, high: 10.0}
        contexts: {price_usd: 0.08, damage_usd: 0.20}
        simulator:
          attempts_per_minute: 40.0 / (1.0 + 0.1 * dose + 0.1 * pause)
          error_probability: min(0.3 * exp(-dose) + 0.2 / pause, 0.9)
        """,
}
MANY = 40


def task_text(name: str) -> str:
    """The YAML of one of the tasks above, or of `picking` with its forty contexts."""
    if name != "picking":
        return textwrap.dedent(TASKS[name])
    parts = [f"part {number:02d}" for number in range(MANY)]
    prices = "".join(
        f"  {part}: {{price_usd: 0.1, damage_usd: {0.02 * number:.2f}}}\n" for number, part in enumerate(parts)
    )
    slips = "".join(f"    {part}: {{slip: {0.02 + 0.01 * number:.2f}}}\n" for number, part in enumerate(parts))
    return (
        "name: picking\nstep_s: 12.0\nhuman_wage_usd: 20.0\ncosts_usd_per_hour: {robot: 3.0}\n"
        "actions:\n  reach: {low: 0.2, high: 2.0}\n  grip: {low: 1.0, high: 9.0}\n"
        f"contexts:\n{prices}"
        "simulator:\n  attempts_per_minute: 20.0 * reach\n"
        f"  error_probability: min(slip * reach + 0.1 * ((grip - 5) / 8)**2, 0.9)\n  contexts:\n{slips}"
    )


def write_task(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(task_text(name), encoding="utf-8")
    return path


# Embeddings


def write_embeddings(
    path: Path,
    *,
    task: str | Path = "dishwashing",
    contexts: tuple[str, ...] | None = None,
    labelled: bool = True,
    splits: tuple[str, str] = ("train", "val"),
    clips: int = 12,
    videos: int = 10,
    clip_s: float = 1.0,
) -> Path:
    """An embeddings file in which each context has its own dimension, with a little noise.

    Logged actions are uniform, logged outcomes the simulator's. The last fifth of the videos is of the second split.
    """
    rng = np.random.default_rng(0)
    whole = load_task(str(task))
    names = contexts or whole.context_names
    context = rng.integers(len(names), size=videos * clips)
    features = rng.normal(0, 0.1, (len(context), 512)).astype(np.float32)
    features[np.arange(len(context)), context] += 3
    start_s = np.tile(np.arange(clips) * clip_s, videos)
    data = dataset.Embeddings(
        embeddings=features[:, :128],
        clips=dataset.Clips(
            features=features,
            start_frame=np.tile(np.arange(clips) * 16, videos),
            start_s=start_s,
            end_s=start_s + clip_s,
            valid_frames=np.full(len(context), 16),
            offset=np.arange(videos + 1) * clips,
        ),
        videos=dataset.Videos(
            sha256=[f"{v:064d}" for v in range(videos)],
            fps=np.full(videos, 15.0),
            num_frames=np.full(videos, 16 * clips),
            decoder=["decord"] * videos,
            id=[f"v{v}" for v in range(videos)],
            path=[f"v{v}.mp4" for v in range(videos)],
            split=[splits[int(v >= videos * 4 // 5)] for v in range(videos)],
        ),
        task=whole,
        logs=_logs(whole, np.array(names, object)[context], clip_s, rng) if labelled else None,
        projector_mean=np.zeros(512),
        projector_components=np.eye(128, 512),
        projector_scale=1.0,
        attrs={
            "backbone": "r3d_18", "weights": "random:0", "weights_sha256": "0" * 64, "transform": "none",
            "clip_len": 16, "clip_stride": 16, "fps": 15.0, "precision": "fp32", "projector": "pca", "tail": "drop",
            "decoder": "auto",
        },
    )  # fmt: skip
    dataset.write_embeddings(path, data)
    return path


def _logs(task: Task, context: np.ndarray, clip_s: float, rng: np.random.Generator) -> dataset.Logs:
    index = {name: k for k, name in enumerate(task.context_names)}
    model = SimulatedOutcomes(
        task, np.array([index[name] for name in context.tolist()]), step_s=np.full(len(context), clip_s)
    )
    actions = task.from_unit(rng.random((len(context), task.num_actions)))
    attempts, errors = model.sample(np.arange(len(context)), actions, rng)
    return dataset.Logs(
        context=np.full(len(context), "", object) if task.is_unnamed else context,
        actions=actions,
        attempts=attempts.astype(float),
        errors=errors.astype(float),
        novel=np.full(len(context), np.nan),
    )


def write_novelty(path: Path, weight: np.ndarray, content_sha256: str, *, score: np.ndarray | None = None) -> None:
    columns = {"weight": np.asarray(weight, np.float32)} | ({} if score is None else {"score": score})
    dataset.write_novelty(path, columns, {"content_sha256": content_sha256, "model": "noise"})


# Interruptions


class Killed(BaseException):
    pass


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch, cfg) -> None:
    """Train until that many steps of all environments are done; nothing is written on the way out."""
    step, done = training.Trainer.step, 0

    def counted(self):
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "step", counted)
        with pytest.raises(Killed):
            train.run(cfg)


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs whose newest checkpoint was kept whole are the same, bit for bit."""
    for name in ("metrics.csv", "validations.csv", "validation.csv", "data_value.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.pt", "best.pt"):
        states = [load_checkpoint(run / name) for run in (one, other)]
        assert_equal(*(state | {"meta": _timeless(state["meta"])} for state in states), name)


def _timeless(meta: dict) -> dict:
    """The metadata without the times and paths of the run."""
    described = json.loads(meta["described"])
    for name in ("created", "command"):
        del described["provenance"][name]
    return meta | {"described": described}


def assert_equal(one, other, where: str = "checkpoint") -> None:
    """Assert that two checkpoints are equal bit for bit, except for run times."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one.keys() - {"wall_s"}:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other or one != one, where
