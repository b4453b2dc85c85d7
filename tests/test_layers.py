"""The structure, held: imports go down, file names occur once, no file is long, heavy libraries stay in their rooms."""

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
LAYERS = (  # a room imports from rooms above its own line only
    {"errors", "callable_stage"},
    {"storage"},
    {"config", "processes", "stats", "econ", "text_files"},
    {"hf_models", "devices"},
    {"named_weights", "run_directory"},
    {"files", "tasks", "video", "encoders"},
    {"dataset", "synthetic", "writer_lock"},
    {"kept_inputs"},
    {"extraction", "noise_gap", "outcomes"},
    {"simulate", "extract", "exports", "novelty", "rl", "survey"},
    {"runs", "doctor"},
    {"training", "evaluate", "policy"},
    {"train", "experiments"},
    {"report", "cluster"},
    {"demo", "api"},
    {"cli"},
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
ONLY_IN = {
    "h5py": {"dataset", "video"}, "decord": {"video"}, "av": {"video", "synthetic"}, "typer": {"cli"},
    "submitit": {"cluster"}, "transformers": {"encoders", "noise_gap"}, "diffusers": {"noise_gap"},
    "fsspec": {"storage"},
}  # fmt: skip
KNOW_THE_DYNAMICS = {"outcomes/simulated.py"}  # beside the dynamics' own room
MAX_LINES = 450


def module_files():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", module_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    assert here in LAYER_OF, f"{here} has no layer; add it to the table"
    for name in imported(path):
        top, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if top == "pipeline" and there not in ("", "__version__", here):
            assert LAYER_OF[there] < LAYER_OF[here], f"{here} imports {there}, which is not below it"
        assert here in ONLY_IN.get(top, {here}), f"{here} imports {top}; only {ONLY_IN[top]} may"


def test_only_the_simulator_knows_its_dynamics():
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in module_files()
        if any(name.startswith("pipeline.synthetic.dynamics") for name in imported(path))
    }
    assert {name for name in knowing if not name.startswith("synthetic/")} == KNOW_THE_DYNAMICS


def test_file_names_occur_once():
    counts = Counter(path.name for path in module_files() if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in module_files()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
