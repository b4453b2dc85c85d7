import numpy as np
import pytest
import yaml
from logged_data import simulated_data
from raising import raises
from worlds import grasping

from pipeline.dataset import Clips, Embeddings, Logs, Videos
from pipeline.outcomes import of_dataset, outcomes_of
from pipeline.tasks import Task, load_task

DISHWASHING = load_task("dishwashing")
GRASPING = Task.model_validate(grasping(step_s=None))


def data_of(task, context=None, *, num_clips=4, **logs):
    """A data set of clips that are 2, 4, 6 ... seconds long; context None: without labels."""
    if context is not None:
        num_clips = len(context)
    features = np.zeros((num_clips, 3), np.float32)
    start_s = np.arange(num_clips, dtype=float)
    clips = Clips(
        features, np.arange(num_clips), start_s, start_s + 2 * (start_s + 1), np.full(num_clips, 16),
        np.array([0, num_clips]),
    )  # fmt: skip
    nan = np.full(num_clips, np.nan)
    labels = None
    if context is not None:
        actions = np.full((num_clips, task.num_actions if task else 2), np.nan)
        labels = Logs(np.array(context), actions, nan, nan, nan, **logs)
    videos = Videos(["v"], np.array([15.0]), np.array([16]), ["pyav"])
    return Embeddings(
        np.zeros((num_clips, 128), np.float32), clips, videos, labels, np.zeros(3), np.zeros((128, 3)), 1.0, {},
        task=task,
    )  # fmt: skip


def contexts_of(model):
    return [model.task.context_names[k] for k in model.context]


def test_each_clip_is_of_its_labelled_context_and_lasts_as_long_as_it_does():
    model = outcomes_of(data_of(GRASPING, ["nut", "egg", "nut"]))
    assert contexts_of(model) == ["nut", "egg", "nut"]
    np.testing.assert_allclose(model.terms(np.arange(3)).step_s, [2, 4, 6])
    np.testing.assert_allclose(model.terms(np.arange(3)).price_usd, [0.1, 0.5, 0.1])
    assert model.is_labelled
    assert model.description == "simulator, grasping with each clip's labelled context"


def test_a_price_of_the_log_is_that_of_the_clip():
    price, damage = np.array([np.nan, 9.0]), np.array([7.0, np.nan])
    model = outcomes_of(data_of(GRASPING, ["egg", "egg"], price_usd=price, damage_usd=damage))
    assert model.terms(np.arange(2)).price_usd.tolist() == [0.5, 9.0]
    assert model.terms(np.arange(2)).damage_usd.tolist() == [7.0, 2.0]
    assert model.description.endswith("; 2 of 2 clips have a price or damage of their own")
    part = outcomes_of(data_of(GRASPING, ["egg", "egg"], price_usd=price))
    assert part.description.endswith("; 1 of 2 clips have a price or damage of their own")


@pytest.mark.parametrize(
    ("labels", "scenario"), [(["plate", "plate"], "plates"), (["plate", "pan"], "mixed"), (["pan", ""], "mixed")]
)
def test_the_task_is_in_the_first_scenario_that_has_the_labels(labels, scenario):
    model = outcomes_of(data_of(DISHWASHING, labels))
    assert model.task.scenario == scenario
    assert contexts_of(model) == [label or "plate" for label in labels]


def test_clips_without_a_label_among_others_are_counted():
    model = outcomes_of(data_of(DISHWASHING, ["plate", "", ""]))
    assert model.is_labelled
    assert "(2 of 3 have none and are treated as plate)" in model.description


@pytest.mark.parametrize("context", [None, ["", "", "", ""]])
def test_without_labels_every_clip_is_of_the_first_context(context):
    model = outcomes_of(data_of(DISHWASHING, context))
    assert contexts_of(model) == ["plate"] * 4
    assert not model.is_labelled
    assert "the clips have no labels, so every one is treated as plate" in model.description


def test_a_data_set_without_a_task_is_treated_as_dishwashing():
    model = outcomes_of(data_of(None))
    assert model.task.name == "dishwashing"
    assert "the data set names no task" in model.description


@pytest.mark.parametrize("contexts", [{"price_usd": 0.2}, {"work": {"price_usd": 0.2}}, {"egg": {"price_usd": 0.2}}])
def test_a_task_of_one_context_needs_no_name_of_it_in_labels(contexts):
    task = Task.model_validate(
        grasping(
            contexts=contexts,
            simulator={"attempts_per_minute": "force", "error_probability": "0.1"},
        )
    )
    model = outcomes_of(data_of(task, ["", ""]))
    assert model.is_labelled and contexts_of(model) == 2 * list(task.contexts)
    assert model.description == "simulator, grasping"


def test_prices_of_another_task_replace_the_recorded_ones(tmp_path):
    settings = grasping(contexts={"nut": {"price_usd": 3.0}, "egg": {"price_usd": 4.0, "damage_usd": 5.0}})
    settings |= {"name": "dear", "human_wage_usd": 33.0, "simulator": None, "step_s": None}
    (tmp_path / "dear.yaml").write_text(yaml.safe_dump(settings))
    model = outcomes_of(data_of(GRASPING, ["egg", "nut"]), str(tmp_path / "dear.yaml"))
    assert model.terms(np.arange(2)).price_usd.tolist() == [4.0, 3.0]
    assert (model.task.name, model.task.human_wage_usd) == ("dear", 33.0)
    with raises("task-other-actions"):
        outcomes_of(data_of(GRASPING, ["egg", "nut"]), "dishwashing")


def test_another_task_s_simulator_is_reported_as_ignored(tmp_path, caplog):
    settings = grasping(step_s=None)
    settings["simulator"]["attempts_per_minute"] = "1"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    model = outcomes_of(data_of(GRASPING, ["egg", "nut"]), str(tmp_path / "other.yaml"))
    assert model.task.simulator == GRASPING.simulator
    assert "its simulator" in caplog.text and "ignored" in caplog.text
    caplog.clear()
    outcomes_of(data_of(DISHWASHING, ["plate"]), "dishwashing")
    assert not caplog.text


def test_a_data_set_without_a_task_is_not_said_to_have_been_recorded_with_one():
    with raises("task-other-actions") as caught:
        outcomes_of(data_of(None), "bin-picking")
    assert "vtp extract SOURCE --task bin-picking" in str(caught.value)


def test_an_unknown_label_and_a_task_without_simulator_are_errors():
    with raises("labels-unknown-context") as caught:
        outcomes_of(data_of(GRASPING, ["egg", "fork"]))
    assert "egg, nut" in str(caught.value)
    with raises("outcomes-unknown"):
        outcomes_of(data_of(Task.model_validate(grasping(simulator=None)), ["egg", "nut"]))


# Many steps


@pytest.mark.parametrize("videos", [2, 10])
def test_very_many_steps_are_subsampled_over_all_videos(monkeypatch, videos):
    data = simulated_data(DISHWASHING.in_scenario("mixed"), videos=videos, steps=60 // videos)
    assert outcomes_of(data).steps.rows.tolist() == list(range(60))
    monkeypatch.setattr(of_dataset, "MOST_STEPS", 40)
    model = outcomes_of(data)
    assert (model.steps.num_steps, model.steps.num_videos) == (40, videos)
    assert (np.diff(model.steps.rows) > 0).all()
    assert model.description.startswith(f"learned from 40 logged steps of {videos} videos, drawn from all 60 steps, ")
    assert outcomes_of(data).steps.rows.tolist() == model.steps.rows.tolist()
