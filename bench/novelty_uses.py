"""Three uses of novelty on logs, each compared with not using it, as JSON: replay weights, caution, what to log next.

Training logs have few videos of a context and of four looks that are frequent when the policy is deployed. A new
context has its own outcomes; a new look shifts the embeddings of usual contexts. Each random seed has its own logs and
new context. SAC learns from the logs and is judged on the deployed clips by the simulator that made the logs, which has
no other role. Arms of a use are compared within a seed, on the same clips.

`replay`: SAC with weights as from `vtp novelty`, where the score is the clip's distance from the clips of other videos
(the noise gap needs video). `caution`: the deployed policy, and the same policy replaced by a clone of the logging
policy on clips with high novelty as in `vtp act`. `caution_in_rewards`: the best action by the learned outcomes, with
more caution on such clips. `log_next`: more videos, either random or the most novel first, from usual ones and ones of
a new context or of new looks; with `known_contexts`, judged by the best actions in each clip's labelled context instead
of SAC's.

With --embeddings, replay weights and caution are also tested on these videos, with as many trainings, and judged on the
held-out clips that are labelled novel and on the others; with --novelty, the weights come from that file.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import dataset, noise_gap, novelty, train
from pipeline.config import EmbeddingsTrainConfig
from pipeline.noise_gap.channels import MAX_SCORE, robust_z
from pipeline.outcomes import (
    Caution,
    LearnedOutcomes,
    SimulatedLogs,
    SimulatedOutcomes,
    expected_worth,
    logging_policy,
    oracle,
    outcomes_of,
    simulate_logs,
)
from pipeline.outcomes.caution import greedy
from pipeline.outcomes.learned import NO_CAUTION
from pipeline.policy.acting import FAR
from pipeline.policy.training_clips import NOVELTY_NEIGHBOUR, TrainingClips
from pipeline.rl.sac import Agent
from pipeline.runs import load_outcomes, load_policy
from pipeline.stats import interval95
from pipeline.tasks import Task, load_task
from pipeline.training.cloning import clone

sys.path.insert(0, str(Path(__file__).parent))
from logs import STEPS, seen, write

KINDS = ("usual", "new context", "new look")
LOOKS = 4
TRAIN, POOL, DEPLOYED = (88, 4, 4), (32, 16, 16), (32, 16, 16)  # videos of each kind
LEVELS = (0.8, FAR)  # thresholds of novelty
EVALUATIONS = 5  # per training
ADDED = 12  # videos from the pool to log next
NEARLY_FAR = 0.9  # novelty at which the clone's share begins to grow from 0
MORE = Caution(1.0, 0.3)  # caution added on novel clips
EVERY = np.arange(len(KINDS))


class Videos(NamedTuple):
    """V demonstrations of S steps: logs and embeddings."""

    logs: SimulatedLogs
    embeddings: np.ndarray  # [V, S, 128]
    kind: np.ndarray  # [V] number of the kind

    def take(self, which: np.ndarray) -> Videos:
        return Videos(SimulatedLogs(*(column[which] for column in self.logs)), self.embeddings[which], self.kind[which])

    def before(self, others: Videos) -> Videos:
        logs = SimulatedLogs(*(np.concatenate(pair) for pair in zip(self.logs, others.logs, strict=True)))
        return Videos(logs, *(np.concatenate([mine, its]) for mine, its in zip(self[1:], others[1:], strict=True)))

    @property
    def contexts(self) -> np.ndarray:
        """Contexts [V · S] of the clips."""
        return self.logs.context.reshape(-1)

    @property
    def kinds(self) -> np.ndarray:
        return np.repeat(self.kind, self.logs.context.shape[1])

    @property
    def seen(self) -> np.ndarray:
        return self.embeddings.reshape(-1, self.embeddings.shape[-1])


def filmed(task: Task, logger: str, new: str, counts: tuple[int, ...], shift: float, seed: int, part: int) -> Videos:
    """Demonstrations in random order, with each kind spread evenly over it.

    counts: videos of each kind. new: the new context. shift: that of a look, in standard deviations of contexts.
    """
    rng = np.random.default_rng([seed, part])
    usual = [name for name in task.context_names if name != new]
    some = [_of_contexts(task, logger, names, n, rng) for names, n in zip((usual, [new], usual), counts, strict=True)]
    logs = SimulatedLogs(*(np.concatenate(columns) for columns in zip(*some, strict=True)))
    embeddings = seen(task, logs.context, rng)
    looks = shift * np.random.default_rng([seed, 0]).standard_normal((LOOKS, embeddings.shape[-1]))
    embeddings[sum(counts[:2]) :] += looks[np.arange(counts[2]) % LOOKS][:, None].astype(np.float32)
    place = np.concatenate([(rng.permutation(count) + rng.random(count)) / count for count in counts])
    return Videos(logs, embeddings, np.repeat(EVERY, counts)).take(np.argsort(place))


def _of_contexts(task: Task, logger: str, names: list[str], count: int, rng: np.random.Generator) -> SimulatedLogs:
    """Logs with only these contexts, numbered as in the whole task."""
    assert task.simulator is not None
    simulator = task.simulator.model_copy(update={"scenarios": {"some": names}})
    some = task.model_copy(update={"simulator": simulator}).in_scenario("some")
    logs = simulate_logs(some, logging_policy(logger, some), videos=count, steps=STEPS, rng=rng)
    numbers = np.array([task.context_names.index(name) for name in some.context_names])
    return logs._replace(context=numbers[logs.context])


def weights_by_distance(data: dataset.Embeddings) -> np.ndarray:
    """Replay weights [N] from each clip's distance to the clips of the other half of the videos."""
    rows = np.arange(data.num_clips)
    video, distance = dataset.video_of(data, rows), np.empty(data.num_clips)
    for half in (0, 1):
        here, there = (video % 2 == half), (video % 2 != half)
        nearest = TrainingClips(data.embeddings[there], video[there]).nearest(data.embeddings[here])
        distance[here] = nearest.distance[:, NOVELTY_NEIGHBOUR - 1]
    score = robust_z(np.log(distance)[:, None], np.ones(len(rows), bool))[:, 0]
    return noise_gap.weights(np.clip(score, -MAX_SCORE, MAX_SCORE), novelty.clip_visits(data))


def write_weights(path: Path, data: dataset.Embeddings, weights: np.ndarray) -> None:
    attrs = {"content_sha256": data.content_sha256, "model": "distance of embeddings"}
    dataset.write_novelty(path, {"weight": weights}, attrs)


def trained(
    embeddings: Path, out: Path, episodes: int, seed: int, weights: Path | None = None
) -> tuple[Agent, LearnedOutcomes]:
    """SAC's deployed policy, and its learned outcomes with the caution of training."""
    settings = {"embeddings": embeddings, "out": out, "episodes": episodes, "seed": seed, "novelty": weights}
    train.run(EmbeddingsTrainConfig(**settings, evaluations=EVALUATIONS, overwrite=True))
    agent, metadata = load_policy(out)
    model = load_outcomes(metadata)
    assert isinstance(model, LearnedOutcomes)
    return agent, model


def cloned(agent: Agent, data: dataset.Embeddings, rows: np.ndarray, seed: int) -> Agent:
    """A clone of the logging policy, learned from the logs of clips `rows`."""
    assert data.logs is not None
    other = copy.deepcopy(agent)
    with torch.no_grad():
        latents = other.encoder(torch.from_numpy(data.embeddings[rows]))
    noise = EmbeddingsTrainConfig.model_fields["observation_noise"].default
    clone(other, latents, torch.from_numpy(data.logs.actions[rows]).float(), noise=noise, seed=seed)
    return other


def acted(agent: Agent, task: Task, embeddings: np.ndarray) -> np.ndarray:
    return np.clip(agent.act(torch.from_numpy(embeddings)), task.low, task.high)


def novelty_of(data: dataset.Embeddings, rows: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Novelty of clips [n, 128] to a policy trained on `rows`, as in `vtp act`."""
    clips = TrainingClips(data.embeddings[rows], dataset.video_of(data, rows))
    return clips.novelty(clips.nearest(embeddings))


def with_clone(policy: np.ndarray, clone: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
    """Actions [n, A] on clips with novelty `new` [n], for each way of replacing the policy by the clone."""
    say = {f"clone beyond {level}": new > level for level in LEVELS}
    say["clone from 0.9 on"] = np.clip((new - NEARLY_FAR) / (1 - NEARLY_FAR), 0, 1)
    blended = {name: (1 - share[:, None]) * policy + share[:, None] * clone for name, share in say.items()}
    return {"none": policy} | blended | {"clone everywhere": clone}


def best_by_logs(model: LearnedOutcomes, contexts: np.ndarray, more: Caution = NO_CAUTION) -> np.ndarray:
    """The best actions [n, A] by the logs in contexts [n], with `more` added to the model's caution."""
    caution = Caution(*np.add(model.caution, more))
    rows = np.array([np.flatnonzero(model.context == one)[0] for one in range(len(model.task.contexts))])
    return greedy(model, rows, (caution,))[0][contexts]


def one_seed(task: Task, logger: str, shift: float, seed: int, episodes: int, folder: Path) -> dict[str, Any]:
    """Profit in $/h by kind of clip, for each arm of each use."""
    new_context = task.context_names[seed % len(task.contexts)]
    training, pool, deployed = (
        filmed(task, logger, new_context, counts, shift, seed, part)
        for part, counts in enumerate((TRAIN, POOL, DEPLOYED), start=1)
    )
    truth = SimulatedOutcomes(task)

    def judged(actions: np.ndarray) -> list[float]:
        profit = expected_worth(truth, deployed.contexts, actions).profit
        return _by_kind(profit, deployed.kinds)

    def written(videos: Videos) -> dataset.Embeddings:
        return dataset.read_embeddings(write(path, task, videos.logs, seed, embeddings=videos.embeddings))

    path, weights_file = folder / "embeddings.h5", folder / "weights.h5"
    data = written(training)
    rows = dataset.train_rows(data)
    new = novelty_of(data, rows, deployed.seen)
    weights = weights_by_distance(data)
    write_weights(weights_file, data, weights)
    agent, model = trained(path, folder / "run", episodes, seed)
    policy, best = acted(agent, task, deployed.seen), best_by_logs(model, deployed.contexts)
    careful = best_by_logs(model, deployed.contexts, MORE)
    copied = acted(cloned(agent, data, rows, seed), task, deployed.seen)
    weighted, _ = trained(path, folder / "run", episodes, seed, weights_file)
    found: dict[str, Any] = {
        "new_context": new_context,
        "optimum": _by_kind(oracle(truth, deployed.contexts).profit, deployed.kinds),
        "novelty": _by_kind(new, deployed.kinds),
        "beyond": _by_kind(new > FAR, deployed.kinds),
        "weight": _by_kind(weights, training.kinds),
        "replay": {"none": judged(policy), "weighted": judged(acted(weighted, task, deployed.seen))},
        "caution": {name: judged(actions) for name, actions in with_clone(policy, copied, new).items()},
        "caution_in_rewards": {"none": judged(best)}
        | {f"more beyond {level}": judged(np.where((new > level)[:, None], careful, best)) for level in LEVELS},
    }
    for kind in EVERY[1:]:
        some = pool.take(np.isin(pool.kind, (0, kind)))
        order = {
            "random": np.random.default_rng([seed, 9]).permutation(len(some.kind)),
            "novel first": np.argsort(-novelty_of(data, rows, some.seen).reshape(-1, STEPS).mean(1), kind="stable"),
        }
        by_sac, by_context = {"none": judged(policy)}, {"none": judged(best)}
        for arm, videos in order.items():
            added = some.take(videos[:ADDED])
            found[f"{arm}: videos of a {KINDS[kind]}"] = int((added.kind == kind).sum())
            written(added.before(training))
            agent, model = trained(path, folder / "run", episodes, seed)
            by_sac[arm] = judged(acted(agent, task, deployed.seen))
            by_context[arm] = judged(best_by_logs(model, deployed.contexts))
        found |= {f"log_next, {KINDS[kind]}": by_sac, f"log_next, {KINDS[kind]}, known_contexts": by_context}
    return found


def _by_kind(values: np.ndarray, kinds: np.ndarray) -> list[float]:
    """Means over the clips of each kind, and over all."""
    return [float(values[kinds == one].mean()) for one in np.unique(kinds)] + [float(values.mean())]


def rendered(path: Path, weights: Path | None, episodes: int, seed: int, folder: Path) -> dict[str, Any]:
    """Profit in $/h with replay weights and caution on held-out videos, by clips labelled ordinary and novel."""
    data = dataset.read_embeddings(path)
    assert data.logs is not None
    rows, held = dataset.train_rows(data), dataset.split_rows(data)[1]
    truth, kinds = outcomes_of(data, kind="simulator"), data.logs.novel[held].astype(int)

    def judged(actions: np.ndarray) -> list[float]:
        return _by_kind(expected_worth(truth, held, actions).profit, kinds)

    if weights is None:
        weights = folder / "weights.h5"
        write_weights(weights, data, weights_by_distance(data))
    policies = {
        name: trained(path, folder / "run", episodes, seed, file)[0]
        for name, file in {"none": None, "weighted": weights}.items()
    }
    actions = {name: acted(agent, truth.task, data.embeddings[held]) for name, agent in policies.items()}
    copied = acted(cloned(policies["none"], data, rows, seed), truth.task, data.embeddings[held])
    new = novelty_of(data, rows, data.embeddings[held])
    return {
        "optimum": _by_kind(oracle(truth, held).profit, kinds),
        "novelty": _by_kind(new, kinds),
        "beyond": _by_kind(new > FAR, kinds),
        "replay": {name: judged(chosen) for name, chosen in actions.items()},
        "caution": {name: judged(chosen) for name, chosen in with_clone(actions["none"], copied, new).items()},
    }


def summary(runs: list[dict[str, Any]], kinds: tuple[str, ...]) -> dict[str, Any]:
    """For each use: each arm's profit / optimum, and its difference from `none` in $/h, by kind of clip."""
    optimum = np.array([run["optimum"] for run in runs])
    found: dict[str, Any] = {}
    for use in (name for name, arms in runs[0].items() if isinstance(arms, dict) and "none" in arms):
        earned = {arm: np.array([run[use][arm] for run in runs]) for arm in runs[0][use]}
        pairs = {f"{arm} - none": values - earned["none"] for arm, values in earned.items() if arm != "none"}
        if "random" in earned:
            pairs["novel first - random"] = earned["novel first"] - earned["random"]
        found[use] = {
            "of_optimum": {arm: _rounded(kinds, (values / optimum).mean(0)) for arm, values in earned.items()},
            "usd_per_hour": {
                name: {kind: _estimate(values) for kind, values in zip(kinds, difference.T, strict=True)}
                for name, difference in pairs.items()
            },
        }
    return found | {
        name: _rounded(kinds, np.mean([run[name] for run in runs], 0))
        for name in ("novelty", "beyond", "weight")
        if name in runs[0]
    }


def _rounded(names: tuple[str, ...], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=False)}


def _estimate(samples: np.ndarray) -> dict[str, Any]:
    interval = interval95(samples)
    return {
        "mean": round(float(samples.mean()), 2),
        "ci95": None if interval is None else [round(bound, 2) for bound in interval],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="dishwashing")
    parser.add_argument("--scenario", default="mixed")
    parser.add_argument("--loggers", nargs="*", default=["human", "expert"])
    parser.add_argument(
        "--shift",
        type=float,
        default=1.0,
        help="shift of embeddings by a new look, in standard deviations of contexts (default: 1)",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=1500, help="episodes per training (default: 1500)")
    parser.add_argument(
        "--embeddings", type=Path, help="also test on these embeddings, of videos with logs and labels of novel clips"
    )
    parser.add_argument("--novelty", type=Path, help="weights of these videos from vtp novelty")
    args = parser.parse_args()
    task = load_task(args.task).in_scenario(args.scenario)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for logger in args.loggers:
            runs = [one_seed(task, logger, args.shift, seed, args.episodes, folder) for seed in range(args.seeds)]
            found[logger] = {"summary": summary(runs, (*KINDS, "all")), "runs": runs}
        if args.embeddings:
            runs = [rendered(args.embeddings, args.novelty, args.episodes, seed, folder) for seed in range(args.seeds)]
            found["rendered"] = {"summary": summary(runs, ("ordinary", "novel", "all")), "runs": runs}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
