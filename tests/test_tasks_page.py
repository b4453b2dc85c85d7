"""The page on tasks: its examples are tasks, and it names every key, function and code."""

import re
from importlib import resources

import pytest
from raising import raises

from pipeline.synthetic import bricks, dishes
from pipeline.tasks import Action, Context, ErrorTarget, FrameColumn, Simulator, Task, load_task, parse_task
from pipeline.tasks.formula import FUNCTIONS


@pytest.fixture(scope="module")
def page(request):
    return (request.config.rootpath / "docs/tasks.md").read_text()


def test_the_examples_are_tasks(page):
    first, second = (parse_task(text, "docs/tasks.md") for text in re.findall(r"```yaml\n(.*?)```", page, re.S))
    assert first == load_task("bin-picking")
    assert (second.is_unnamed, second.step_s, second.simulator) == (True, None, None)


def test_every_key_function_and_context_is_named(page):
    keys = {key for model in (Task, Action, Context, ErrorTarget, FrameColumn, Simulator) for key in model.model_fields}
    named = set(re.findall(r"`(\w+)`", page))
    assert keys - {"scenario"} - named == set()  # which scenario a task is in is no key of a file
    assert {*FUNCTIONS, *dishes.DISHES, *bricks.BRICKWORK} - named == set()


def test_the_example_of_an_error_is_real(page):
    text = resources.files("pipeline.tasks").joinpath("bin-picking.yaml").read_text()
    with raises("task-invalid") as caught:
        parse_task(text.replace("low: 0.1, high: 1.5", "low: 2, high: 1"), "mine.yaml")
    said = re.search(r"^vtp: (task mine.yaml.*)$", page, re.M).group(1)
    assert re.sub(r"line \d+", "", str(caught.value)) == re.sub(r"line \d+", "", said)
