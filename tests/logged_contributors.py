"""Data sets with logs of known truth: contributors' simulated demonstrations, without video."""

import numpy as np

from pipeline import dataset
from pipeline.outcomes import SimulatedOutcomes, logging_policy
from pipeline.tasks import load_task

DISHES = load_task("dishwashing")
MIXED = DISHES.in_scenario("mixed")
STEPS = 30  # per video
LOGGED = ("embeddings", "actions", "attempts", "errors")


def demonstrations(contributor, contexts, *, videos, rng, task=MIXED, logger="uniform", split="train"):
    """Videos of steps in contexts drawn from those named, as dictionaries."""
    policy, model = logging_policy(logger, task), SimulatedOutcomes(task)
    choices = np.array([task.context_names.index(name) for name in contexts])
    found = []
    for _ in range(videos):
        context = rng.choice(choices, STEPS)
        actions = policy.draw(context, rng)
        attempts, errors = model.sample(context, actions, rng)
        embeddings = rng.normal(0, 0.2, (STEPS, 128)).astype(np.float32)
        embeddings[np.arange(STEPS), context] += 4
        found.append(
            {"contributor": contributor, "split": split, "context": context, "actions": actions, "attempts": attempts,
             "errors": errors, "embeddings": embeddings}
        )  # fmt: skip
    return found


def shuffled(videos, rng):
    """The same videos with outcomes unrelated to actions."""
    order = rng.permutation(len(videos) * STEPS)
    mixed = {name: np.concatenate([video[name] for video in videos])[order] for name in ("attempts", "errors")}
    return [
        video | {name: values[STEPS * i : STEPS * (i + 1)] for name, values in mixed.items()}
        for i, video in enumerate(videos)
    ]


def copied(videos, contributor):
    return [video | {"contributor": contributor} for video in videos]


def data_of(videos, task=MIXED, whole=DISHES):
    n, ids = len(videos) * STEPS, [f"v{i}" for i in range(len(videos))]
    column = {name: np.concatenate([video[name] for video in videos]) for name in LOGGED}
    context = np.concatenate([video["context"] for video in videos])
    zeros, ones = np.zeros(n), np.ones(len(ids))
    logs = dataset.Logs(
        context=np.array(task.context_names, object)[context], actions=column["actions"],
        attempts=column["attempts"].astype(float), errors=column["errors"].astype(float), novel=np.full(n, np.nan),
    )  # fmt: skip
    clips = dataset.Clips(
        column["embeddings"], zeros.astype(int), zeros, zeros + 60, zeros.astype(int), np.arange(len(ids) + 1) * STEPS
    )
    return dataset.Embeddings(
        embeddings=column["embeddings"], clips=clips,
        videos=dataset.Videos(
            sha256=ids, fps=ones, num_frames=ones.astype(int), decoder=ids, id=ids, path=ids,
            split=[video["split"] for video in videos], contributor=[video["contributor"] for video in videos],
        ),
        task=whole, logs=logs, projector_mean=np.zeros(128), projector_components=np.eye(128), projector_scale=1.0,
        attrs={},
    )  # fmt: skip


def planted(seed, *, common=4, with_copy=False):
    """The only contributor with a glass, which must be handled slowly; common ones; one with shuffled outcomes."""
    rng = np.random.default_rng(seed)
    videos = demonstrations("", MIXED.context_names, videos=12, rng=rng, split="val")
    for number in range(common):
        videos += demonstrations(f"common-{number}", ("plate", "mug", "pan"), videos=4, rng=rng)
    unique = demonstrations("unique", ("glass",), videos=4, rng=rng)
    videos += unique + shuffled(demonstrations("shuffled", MIXED.context_names, videos=4, rng=rng), rng)
    return data_of(videos + (copied(unique, "copy") if with_copy else []))
