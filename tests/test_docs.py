"""The pages say all that there is to say: flags, public names, error codes, files and their columns."""

import ast
import dataclasses
import importlib.util
import json
import re
from datetime import date

import h5py
import pytest
from documents import ROOT, blocks, prose
from small_runs import write_embeddings

import pipeline
from pipeline import errors
from pipeline.dataset.labels import read_labels
from pipeline.dataset.manifest import COLUMNS
from pipeline.errors import VtpError
from pipeline.policy import Card
from pipeline.run_directory import RunDirectory
from pipeline.tasks import load_task, parse_task
from pipeline.training.record import metric_columns

PAGE = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Pages made from the program


@pytest.mark.parametrize("name", ["cli.md", "api.md", "benchmarks.md"])
def test_generated_pages_are_up_to_date(name, generate):
    assert generate.PAGES.keys() == {"cli.md", "api.md", "benchmarks.md"}
    assert PAGE[name] == generate.PAGES[name](), f"write docs/{name} anew: python docs/generate.py"


def test_every_flag_is_documented(generate):
    for name, command in generate.commands():
        section = PAGE["cli.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert command.help, name
        for parameter in command.params:
            assert parameter.help and f"- {generate.spelling(parameter)}: {parameter.help}" in section, (
                name,
                parameter,
            )


def test_every_public_name_is_documented(generate):
    results = [thing.__name__ for thing in generate.RESULTS]
    headings = re.findall(r"^#+ (\w+)$", PAGE["api.md"], re.M)
    assert headings == [*pipeline.__all__, *results]
    with pytest.raises(ValueError, match="has no docstring"):
        generate.documentation(lambda: None)


def test_benchmarks_are_complete():
    for path in sorted((ROOT / "docs/benchmarks").glob("*.json")):
        group = json.loads(path.read_text())
        for row in group["rows"]:
            assert row.keys() == {"what", "value", "wanted", "commands", "processor", "date"}, row
            assert row["what"] and row["value"] and row["commands"] and row["processor"], row
            assert date.fromisoformat(row["date"]) <= date.today()


# Error codes

OF_OTHER_CODES = {  # codes that are put together as the program runs
    "embeddings-missing", "novelty-missing", "reference-missing", "manifest-repeated-id", "manifest-segment-empty",
    "manifest-segment-not-seconds", "model-damaged", "model-unavailable", "denied", "unreachable",
}  # fmt: skip


def codes_in_the_source():
    """code → exit codes, of every error that the package raises by a literal code, and of the classes themselves."""
    exits = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)} | {"VideoError": 3}
    found = {kind.code: {kind.exit_code} for kind in vars(errors).values() if isinstance(kind, type)}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if name == "VideoError" and node.args:
                given = [node.args[0]]
            for value in given:
                for literal in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
                    if isinstance(literal, ast.Constant) and re.fullmatch(
                        r"[a-z]\w*([-_][a-z0-9]+)*", str(literal.value)
                    ):
                        found.setdefault(literal.value, set()).add(exits.get(name, errors.EXIT_USAGE))
    return found


def test_every_error_code_is_explained():
    rows = re.findall(r"^\| (`.+?`) \| ([\d, a-z]+) \| (.+) \|$", PAGE["troubleshooting.md"], re.M)
    explained = {code: exits for codes, exits, _ in rows for code in re.findall(r"`([\w-]+)`", codes)}
    found = codes_in_the_source()
    assert found.keys() - explained.keys() == set(), "not in docs/troubleshooting.md"
    assert explained.keys() - found.keys() - OF_OTHER_CODES == set(), "in docs/troubleshooting.md, but never raised"
    for code, exits in found.items():
        assert exits <= {int(number) for number in re.findall(r"\d+", explained[code])}, code


def test_exit_codes_are_listed():
    numbers = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    listed = PAGE["troubleshooting.md"].partition("## Exit codes")[2].partition("##")[0]
    assert {int(number) for number in re.findall(r"^\| (\d+) \|", listed, re.M)} == numbers


def test_the_example_of_an_error_code_is_real(tmp_path):
    with pytest.raises(VtpError) as caught:
        pipeline.read_dataset(tmp_path / "nothing.h5")
    assert f"`{caught.value.code}`" in PAGE["troubleshooting.md"]


# Files


def named(text):
    return {
        name.rstrip("/") for code in re.findall(r"`([^`]+)`", prose(text)) for name in [code, *re.split(r"[, ]+", code)]
    }


def test_every_dataset_and_attribute_of_an_embeddings_file_is_named(tmp_path):
    page, found = named(PAGE["files.md"]), []
    write_embeddings(tmp_path / "embeddings.h5")
    with h5py.File(tmp_path / "embeddings.h5") as file:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        attributes = set(file.attrs)
    assert len(found) > 10
    assert {re.sub(r"labels/actions/.*", "labels/actions/NAME", name) for name in found} - page == set()
    assert attributes - page == set()


def test_the_python_of_the_page_on_files_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_embeddings(tmp_path / "data/embeddings.h5")
    (code,) = blocks(PAGE["files.md"], "python")
    names = {}
    exec(code, names)
    assert names["data"].num_clips == len(names["data"].embeddings) > 0


def test_the_examples_of_the_start_are_a_task_and_its_labels(tmp_path):
    text = PAGE["start.md"]
    (task,) = blocks(text, "yaml")
    manifest, labels = blocks(text, "csv")
    (tmp_path / "labels.csv").write_text(labels)
    found = read_labels(tmp_path / "labels.csv", parse_task(task, "docs/start.md"))
    assert found.actions.tolist() == [[0.8, 25], [0.9, 25]]
    assert found.attempts.tolist() == [4, 5]
    assert set(manifest.splitlines()[0].split(",")) <= set(COLUMNS)


def test_every_file_of_a_run_is_named(tmp_path):
    page, run = named(PAGE["files.md"]), RunDirectory(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in [*run.written, *run.read, run.lock] if path.suffix != ".pt"}
    own = {name for name in files if not name.startswith(("evaluation/", "changed/"))}
    assert {"metrics.csv", "frames/frames.json", ".lock"} <= own
    assert own - page == set()


def test_every_column_of_metrics_and_field_of_the_card_is_named():
    page, task = named(PAGE["files.md"]), load_task("bin-picking")
    columns = {"mean_NAME" if name in {f"mean_{a}" for a in task.actions} else name for name in metric_columns(task)}
    assert columns - page == set()
    assert set(Card.model_fields) - page == set()


def test_every_key_of_a_summary_is_named():
    """The keys that `summarise` and `write_summary` write as literals."""
    tree = ast.parse((ROOT / "pipeline/runs/summary.py").read_text())
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name in ("summarise", "write_summary")]
    keys = {
        key.value
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    assert len(keys) > 30
    assert keys - named(PAGE["files.md"]) == set()


def test_terms_of_the_glossary_occur_once_and_in_order():
    terms = re.findall(r"^\| ([^|]+?) \| ", PAGE["glossary.md"].partition("|---|---|")[2], re.M)
    assert len(terms) > 80
    assert terms == sorted(set(terms), key=str.casefold)
    said = {name for term in terms for name in re.split(r", ", term)}
    for term in re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", PAGE["glossary.md"]):
        assert term == "italics" or {term.casefold(), term.casefold().removesuffix("s")} & {
            s.casefold() for s in said
        }, term


def test_a_result_of_each_function_is_documented(generate):
    assert all(dataclasses.is_dataclass(thing) for thing in generate.RESULTS)
