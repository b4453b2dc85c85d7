import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from worlds import BUILT_IN, grasping

from pipeline import tasks
from pipeline.errors import CorruptError
from pipeline.tasks import Task, load_task, parse_task, task_from_text, task_to_text

GRASPING = """\
name: grasping
step_s: 30.0
human_wage_usd: 20.0
costs_usd_per_hour: {energy: 0.5, robot: 1.5}
actions:
  force: {low: 1.0, high: 5.0}
contexts:
  egg: {price_usd: 0.5, damage_usd: 2.0}
  nut: {price_usd: 0.1}
simulator:
  attempts_per_minute: rate * (1.2 - 0.1 * force)
  error_probability: max(slip - 0.1 * force, 0.01)
  constants: {rate: 4.0}
  contexts:
    egg: {slip: 0.5}
    nut: {slip: 0.2}
"""


def changed(old, new):
    assert old in GRASPING
    return GRASPING.replace(old, new, 1)


def test_a_file_is_read_as_written():
    task = parse_task(GRASPING, "grasping.yaml")
    assert task == Task.model_validate(grasping())
    assert task.action_names == ("force",)
    assert task.context_names == ("egg", "nut")
    assert (task.price_usd.tolist(), task.damage_usd.tolist()) == ([0.5, 0.1], [2.0, 0.0])
    assert (task.low.tolist(), task.high.tolist()) == ([1.0], [5.0])
    assert task.total_costs_usd_per_hour == 2.0
    assert task.error_target == tasks.ErrorTarget(start=0.10, end=0.06, episodes=600)


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_the_built_in_tasks_are_files_like_any_other(name, tmp_path):
    task = load_task(name)
    assert task.name == name
    assert task.simulator is not None
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task.model_dump(exclude_none=True), sort_keys=False))
    assert load_task("mine.yaml", tmp_path) == task
    assert load_task("mine.yaml", tmp_path).context_names == task.context_names


def test_a_file_beside_a_manifest_is_found_from_there_and_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "grasping.yaml").write_bytes(b"\xef\xbb\xbf" + GRASPING.replace("\n", "\r\n").encode())
    assert load_task("grasping.yaml", tmp_path) == load_task(str(tmp_path / "grasping.yaml"))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        # unknown and missing keys
        (changed("step_s", "step_seconds"), 2, "step_seconds: is not a setting of a task; correct the name or drop it"),
        (changed("price_usd: 0.1", "price: 0.1"), 9, "contexts.nut.price_usd: is missing; add 'price_usd'"),
        (changed("price_usd: 0.1", "price_usd: 0.1, price: 1"), 9, "contexts.nut.price: is not a setting"),
        (changed("human_wage_usd: 20.0\n", ""), None, "human_wage_usd: is missing; add 'human_wage_usd'"),
        ("name: x\n", None, "is missing; add"),
        # wrong types
        (changed("20.0", "much"), 3, "human_wage_usd: should be a number, not 'much'; correct it"),
        (changed("20.0", "'20'"), 3, "human_wage_usd: should be a number, not '20'; correct it"),
        (changed("20.0", "yes"), 3, "human_wage_usd: should be a number, not True; correct it"),
        (changed("20.0", "[20]"), 3, "human_wage_usd: input should be a valid number, not [20]; correct it"),
        (changed("20.0", ""), 3, "human_wage_usd: input should be a valid number, not None; correct it"),
        (changed("{energy: 0.5, robot: 1.5}", "2"), 4, "costs_usd_per_hour: should be `name: value` settings"),
        (changed("grasping", "7"), 1, "name: input should be a valid string, not 7; correct it"),
        (changed("{low: 1.0, high: 5.0}", "[1, 5]"), 6, "actions.force: should be `name: value` settings"),
        # numbers out of range
        (changed("low: 1.0", "low: 5.0"), 6, "actions.force: low (5) is not below high (5); exchange or correct them"),
        (changed("low: 1.0", "low: 6.0"), 6, "actions.force: low (6) is not below high (5)"),
        (changed("low: 1.0", "low: .nan"), 6, "actions.force.low: input should be a finite number, not nan; correct"),
        (changed("high: 5.0", "high: .inf"), 6, "actions.force.high: input should be a finite number, not inf"),
        (changed("low: 1.0", "low: 4.9999"), 6, "actions.force: [4.9999, 5] is too large or too narrow"),
        (changed("high: 5.0", "high: 1.0e+12"), 6, "use another unit"),
        (changed("price_usd: 0.1", "price_usd: -0.1"), 9, "contexts.nut.price_usd: input should be greater than"),
        (changed("damage_usd: 2.0", "damage_usd: -2"), 8, "contexts.egg.damage_usd: input should be greater than or"),
        (changed("robot: 1.5", "robot: -1.5"), 4, "costs_usd_per_hour.robot: input should be greater than or equal to"),
        (changed("step_s: 30.0", "step_s: 0"), 2, "step_s: input should be greater than 0, not 0; correct it"),
        (changed("20.0", "0"), 3, "human_wage_usd: input should be greater than 0, not 0; correct it"),
        (changed("step_s", "error_target: {start: 1.5}\nstep_s"), 2, "error_target.start: input should be less than"),
        (changed("step_s", "error_target: {episodes: 0}\nstep_s"), 2, "error_target.episodes: input should be greater"),
        (changed("step_s", "error_target: {episodes: yes}\nstep_s"), 2, "error_target.episodes: input should be a val"),
        (changed("simulator:", "simulator:\n  min_attempts: 2"), 11, "simulator.min_attempts: input should be 0 or 1"),
        # names
        (changed("grasping", "../x"), 1, "name: '../x' is not a name of up to 64 letters, digits, spaces, . - _"),
        (changed("force:", "errors:"), 5, "actions: 'errors' is reserved for a column or a function; rename the a"),
        (changed("force:", "novelty:"), 5, "actions: 'novelty' is reserved for a column or a function; rename"),
        (changed("force:", "min:"), 5, "actions: 'min' is reserved for a column or a function; rename the action"),
        (changed("force:", "Force:"), 5, "actions: 'Force' is not a name of lower-case letters, digits and _"),
        (changed("force:", "lambda:"), 5, "actions: 'lambda' is not a name of lower-case letters"),
        (changed("  nut: {price", "  ' nut': {price"), 7, "contexts: ' nut' is not a valid name; name each"),
        (changed("actions:\n  force: {low: 1.0, high: 5.0}\n", "actions: {}\n"), 5, "actions: dictionary should have"),
        # the simulator
        (changed("rate * (", "rat * ("), 11, "simulator: attempts_per_minute: 'rat' is unknown; use one of force"),
        (changed("nut: {slip: 0.2}", "nut: {}"), 12, "error_probability: needs 'slip', which context 'nut' lacks"),
        (changed("nut: {slip: 0.2}", "fig: {slip: 0.2}"), 10, "simulator: 'fig' is not a context; use one of egg"),
        (changed("{rate: 4.0}", "{rate: 4.0, force: 1}"), 10, "simulator: 'force' cannot name a parameter; rename it"),
        (changed("{rate: 4.0}", "{rate: 4.0, exp: 1}"), 10, "simulator: 'exp' cannot name a parameter; rename it"),
        (changed("slip: 0.5", "slip: 1.5"), 12, "goes from 1 to 1.4 over the actions in context 'egg'"),
        (changed("1.2 - 0.1 *", "1.2 - 0.3 *"), 11, "attempts_per_minute: goes from -1.2 to 3.6 over"),
        (changed("rate * (1.2", "rate / (1 - 1) * (1.2"), 11, "attempts_per_minute: cannot be computed (float"),
        (changed("rate * (1.2", "log(force - 2) * (1.2"), 11, "outside [0, inf); correct the formula, or limit it"),
        (changed("rate * (1.2", "9**9**9**9 * (1.2"), 11, "attempts_per_minute: cannot be computed"),
        (changed("rate * (1.2", "__import__('os').system('true') * (1.2"), 11, "is not a known function"),
        (changed("rate * (1.2 - 0.1 * force)", "force.__class__"), 11, "attribute is not allowed"),
        (changed("rate * (1.2 - 0.1 * force)", '"[x for x in (1, 2)]"'), 11, "is not allowed"),
        (changed("rate * (1.2 - 0.1 * force)", "\"'a' * 3\""), 11, "'a' is not a finite number"),
        (changed("rate * (1.2 - 0.1 * force)", "yes"), 11, "attempts_per_minute: input should be a valid string"),
        (GRASPING + "  scenarios: {eggs: []}\n", 10, "scenario 'eggs' names no context, or an unknown one; use egg"),
        (GRASPING + "  scenarios: {eggs: [fig]}\n", 10, "scenario 'eggs' names no context, or an unknown one"),
        (GRASPING + "  scenarios: {eggs: [egg, egg]}\n", 10, "scenario 'eggs' names a context twice; drop one"),
        (GRASPING + "  scenarios: {seed: [egg]}\n", 10, "'seed' cannot name a scenario; rename it"),
        (GRASPING + "  renderer: clouds\n", 17, "simulator.renderer: input should be 'dishes' or 'bricks', not"),
        (GRASPING + "scenario: eggs\n", None, "scenario 'eggs' does not consist of exactly these"),
        # YAML itself
        (changed("step_s: 30.0", "step_s: [30.0"), 3, "; correct the YAML"),
        (changed("step_s: 30.0", "\tstep_s: 30.0"), 2, "; correct the YAML"),
        (changed("step_s: 30.0", "step_s: 2024-13-45"), None, "month must be in 1..12; correct the YAML"),
        (changed("step_s: 30.0", "step_s: !!python/object/apply:os.system [true]"), 2, "could not determine a constr"),
        (GRASPING + "---\nname: other\n", 17, "; correct the YAML"),
        (GRASPING + "name: other\n", 17, "name occurs twice; drop one"),
        (changed("price_usd: 0.1", "price_usd: 0.1, price_usd: 0.2"), 9, "contexts.nut.price_usd occurs twice"),
        (changed("  nut:", "  yes:"), 9, "'yes' is not text; quote the name"),
        (changed("  nut:", "  1:"), 9, "'1' is not text; quote the name"),
        (changed("  nut:", "  null:"), 9, "'null' is not text; quote the name"),
        (changed("  nut:", "  [1, 2]:"), 9, "is not text; quote the name"),
        (changed("  egg: {", "  egg: &egg {") + "x: *egg\n", 17, "*egg is an alias; write the value out"),
        ("a: &a [*a]", 1, "*a is an alias; write the value out"),
        ("[" * 1_000_000, 1, "nested more than 20 deep"),
        ("{a: " * 1000, 1, "nested more than 20 deep"),
        ("", None, "has no settings; write one `name: value` per line"),
        ("- 1\n- 2\n", None, "has no settings"),
        ("grasping", None, "has no settings"),
        ("name: a\x00b", None, "; correct the YAML"),
        (GRASPING + '"a\\nb": 1', 17, "'a\\nb': is not a setting of a task"),
        (changed("20.0", "x" * 5000), 3, "x…; correct it"),
    ],
)  # fmt: skip
def test_errors_name_line_key_rule_and_remedy(text, line, says):
    with raises("task-invalid") as caught:
        parse_task(text, "my task.yaml")
    message = str(caught.value)
    place = "task my task.yaml" if line is None else f"task my task.yaml line {line}: "
    assert message.startswith(place)
    assert says in message
    assert ";" in message


def test_scientific_notation_is_a_number_though_yaml_reads_a_string():
    task = parse_task(changed("price_usd: 0.1", "price_usd: 1e-3"), "x")
    assert task.price_usd[1] == 0.001


def test_a_formula_may_be_a_single_number():
    task = parse_task(changed("rate * (1.2 - 0.1 * force)", "4"), "x")
    assert task.simulator.attempts_per_minute == "4"


@pytest.mark.parametrize("name", ["washing", "no/such/file.yaml", "x" * 200])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with raises("task-unknown") as caught:
        load_task(name)
    assert "dishwashing, bricklaying, bin-picking" in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "x" * 5000])
def test_a_path_that_is_not_a_file_is_refused(name):
    with raises("task-unreadable"):
        load_task(name)


@pytest.mark.parametrize("data", [b"name: \xff\xfe", b"#" * (1 << 21)])
def test_a_file_that_is_not_text_or_too_long_is_refused(tmp_path, data):
    (tmp_path / "task.yaml").write_bytes(data)
    with raises("task-unreadable"):
        load_task("task.yaml", tmp_path)


# Tasks as text, as in data sets and checkpoints

name = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).map("x{}".format)
context_name = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)
dollars = st.floats(0, 1e6)


@st.composite
def any_task(draw):
    bounds = draw(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.5, 1e3)), min_size=1, max_size=4))
    names = draw(st.lists(name, min_size=len(bounds), max_size=len(bounds), unique=True))
    contexts = draw(st.dictionaries(context_name, st.tuples(dollars, dollars), min_size=1, max_size=4))
    return Task.model_validate(
        {
            "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,9}", fullmatch=True)),
            "step_s": draw(st.none() | st.floats(0.01, 1e4)),
            "human_wage_usd": draw(st.floats(0.01, 1e3)),
            "costs_usd_per_hour": draw(st.dictionaries(context_name, dollars, max_size=3)),
            "actions": {
                name: {"low": low, "high": low + width, "errors": draw(st.sampled_from([None, "rises", "falls"]))}
                for name, (low, width) in zip(names, bounds, strict=True)
            },
            "contexts": {key: {"price_usd": price, "damage_usd": damage} for key, (price, damage) in contexts.items()},
            "simulator": draw(
                st.none()
                | st.just({"attempts_per_minute": f"abs({names[0]})", "error_probability": "0.1", "min_attempts": 1})
            ),
        }
    )


@settings(max_examples=60)
@given(any_task())
def test_a_task_survives_the_round_trip_through_text(task):
    text = task_to_text(task)
    assert "\n" not in text
    found = task_from_text(text, "data.h5")
    assert found == task
    assert (found.action_names, found.context_names) == (task.action_names, task.context_names), "order counts"
    assert task_to_text(found) == text


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
def test_a_scenario_survives_the_round_trip_through_text(task):
    found = task_from_text(task_to_text(task), "data.h5")
    assert found == task
    assert str(found) == str(task)


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "name: x", '{"name": "x"', json.dumps(grasping(step_s=-1))])
def test_text_that_is_not_a_task_is_a_damaged_file(text):
    with raises("task-corrupt", CorruptError):
        task_from_text(text, "data.h5")
