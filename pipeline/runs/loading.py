"""Build policies, load them from runs, and check that they match their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset, encoders, storage
from pipeline.errors import CorruptError, VtpError
from pipeline.outcomes import LearnedOutcomes, SimulatedOutcomes, outcomes_of
from pipeline.rl.envs import SimEnv
from pipeline.rl.sac import Agent
from pipeline.run_directory import RunDirectory, one_of_several_seeds
from pipeline.runs.checkpoint_file import load_checkpoint
from pipeline.runs.metadata import ClipInputs, OutcomesKind, PolicyMetadata
from pipeline.tasks import Task


def build_agent(source: str, task: Task, clip_encoder: encoders.ClipEncoder | None = None, **options: Any) -> Agent:
    """An untrained agent for that source and the task's actions; options are those of `Agent`.

    clip_encoder: for a policy on video.
    """
    low, high = task.low, task.high
    if source == "embeddings":
        return Agent(encoders.Normalizer(), encoders.EMBEDDING_DIM, low=low, high=high, **options)
    encoder = encoders.MLPEncoder(SimEnv.OBSERVATION_SIZE) if clip_encoder is None else clip_encoder
    auxiliary = encoders.AuxiliaryHeads(encoders.EMBEDDING_DIM, task.num_actions)
    return Agent(encoder, encoders.EMBEDDING_DIM, low=low, high=high, auxiliary=auxiliary, **options)


def agent_of(metadata: PolicyMetadata, **options: Any) -> Agent:
    """An untrained agent of the kind that the metadata describe."""
    encoder = clip_encoder_of(metadata) if metadata.source == "video" else None
    return build_agent(metadata.source, metadata.task, encoder, **options)


def clip_encoder_of(metadata: PolicyMetadata) -> encoders.ClipEncoder:
    """The encoder of a policy on video before training; its weights are checked by hash."""
    clips, projector = metadata.of_clips()
    assert clips.encoder_layers is not None and clips.frame_size is not None
    encoder = encoders.ClipEncoder(
        clips.encoding.weights, projector, layers=clips.encoder_layers, frame_size=clips.frame_size
    )
    check_weights(encoder.weights_sha256, clips)
    return encoder


def check_weights(sha256: str, clips: ClipInputs) -> None:
    """VtpError if loaded weights are not those that a policy was trained with."""
    if sha256 != clips.encoding.weights_sha256:
        raise VtpError(
            f"weights {clips.encoding.weights} have sha256 {sha256[:12]}, but the policy was trained with "
            f"{clips.encoding.weights_sha256[:12]}; restore those weights, or extract and train again",
            code="weights-differ",
        )


def load_policy(run: Path) -> tuple[Agent, PolicyMetadata]:
    """A run's best policy, or its last if none was chosen yet, and its metadata."""
    path, checkpoint, metadata = _load(run)
    agent = agent_of(metadata)
    try:
        agent.load_state_dict(checkpoint["agent"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptError(
            f"{path} is not a checkpoint of this version ({type(error).__name__}); train again",
            code="checkpoint-corrupt",
        ) from error
    return agent, metadata


def load_metadata(run: Path) -> PolicyMetadata:
    """The metadata of the policy that `load_policy` loads, without its networks."""
    return _load(run)[2]


def _load(run: Path) -> tuple[Path, dict[str, Any], PolicyMetadata]:
    if not run.is_dir():
        raise VtpError(f"{run} is not a run directory; give the --out of vtp train", code="run-missing")
    files = RunDirectory(run)
    path = files.best if files.best.is_file() else files.last
    if not path.is_file() and files.has_seeds:
        raise one_of_several_seeds(files)
    checkpoint = load_checkpoint(path)
    return path, checkpoint, PolicyMetadata.from_state(checkpoint.get("meta"), str(path))


def check_same_inputs(trained: PolicyMetadata, wanted: PolicyMetadata, run: Path) -> None:
    """VtpError if a policy of `run` has other inputs or actions than wanted."""
    if trained.source != wanted.source:
        raise VtpError(
            f"{run} was trained on {trained.source}, not on {wanted.source}; give another run", code="run-other-source"
        )
    bounds = [(task.action_names, task.low.tolist(), task.high.tolist()) for task in (trained.task, wanted.task)]
    if bounds[0] != bounds[1]:
        raise VtpError(
            f"{run} chooses {', '.join(trained.task.actions)} of task {trained.task.name}, but task {wanted.task.name} "
            f"has {', '.join(wanted.task.actions)}, or other bounds; give another run",
            code="run-other-actions",
        )
    if trained.source == "sim":
        return
    (ours, our_projector), (theirs, their_projector) = trained.of_clips(), wanted.of_clips()
    for name in ("frame_size", "encoder_layers"):
        if getattr(ours, name) != getattr(theirs, name):
            raise VtpError(
                f"{run} was trained with {name} {getattr(ours, name)}, not {getattr(theirs, name)}; "
                f"add --{name.replace('_', '-')} {getattr(ours, name)}",
                code="run-other-encoder",
            )
    our_centre, their_centre = ("corpus" if clips.centre is None else "video" for clips in (ours, theirs))
    if our_centre != their_centre:
        raise VtpError(
            f"{run} was trained with --centre {our_centre}, not with --centre {their_centre}; "
            f"add --centre {our_centre}",
            code="run-other-centre",
        )
    if (other := ours.encoding.difference(theirs.encoding)) is not None:
        raise VtpError(
            f"{run} was trained on embeddings of {other} {getattr(ours.encoding, other)}, "
            f"but these are of {getattr(theirs.encoding, other)}; extract with the same settings",
            code="run-other-encoding",
        )
    if our_projector.sha256 != their_projector.sha256:
        raise VtpError(
            f"{run} was trained on embeddings of another projector; extract with --projector {ours.embeddings}",
            code="run-other-projector",
        )


def load_embeddings(clips: ClipInputs) -> dataset.Embeddings:
    """The embeddings that a policy was trained on; VtpError if the file has changed since."""
    path = storage.path_of(clips.embeddings)
    data = dataset.read_embeddings(path)
    if data.content_sha256 != clips.content_sha256:
        raise VtpError(
            f"{path} has content {data.content_sha256[:12]}, but the policy was trained on "
            f"{clips.content_sha256[:12]}; restore that file, or train again",
            code="embeddings-differ",
        )
    return data


def load_outcomes(metadata: PolicyMetadata) -> LearnedOutcomes | SimulatedOutcomes:
    """The outcome model that a policy was trained with; its rows are clips, or contexts of the simulator.

    A learned model is fitted again to the logs of the same clips, which gives the same model.
    """
    if metadata.source == "sim":
        return SimulatedOutcomes(metadata.task)
    clips, _ = metadata.of_clips()
    model = outcomes_trained_on(load_embeddings(clips), metadata.outcomes, metadata.task)
    return model.with_caution(metadata.caution) if isinstance(model, LearnedOutcomes) else model


def outcomes_trained_on(
    data: dataset.Embeddings, kind: OutcomesKind, task: Task
) -> LearnedOutcomes | SimulatedOutcomes:
    """The outcome model of a policy trained on these clips; its rows are all clips of the file."""
    return outcomes_of(data, kind=kind, rows=dataset.train_rows(data)).with_task(task)


def observed(data: dataset.Embeddings, centre: list[float] | None, scratch: Path | None = None) -> np.ndarray:
    """The observations [N, 128] of a policy in an embeddings file.

    centre: [128] mean embedding of its training clips, if the policy was trained with --centre video; then the mean of
    each video, held-out clips included, is subtracted. scratch: folder in which very many are kept on the disk.
    """
    if centre is None:
        return data.embeddings
    out = dataset.scratch_array(data.embeddings.shape, np.float32, scratch)
    return encoders.centre_videos(data.embeddings, data.offset, np.array(centre), out)
