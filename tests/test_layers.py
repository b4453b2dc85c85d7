"""The table of rooms in the README, held: imports go down the layers, heavy libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
LAYERS = {
    "errors": 0, "config": 0, "processes": 0, "files": 1,
    "econ": 1,
    "video": 2, "encoders": 2, "dataset": 3, "synthetic": 3, "noise_gap": 4, "extraction": 4,
    "rl": 4, "evaluate": 5, "training": 6,
    "extract": 7, "novelty": 7, "train": 7, "policy": 7, "experiments": 7,
    "report": 8, "doctor": 8, "cluster": 9, "demo": 9, "cli": 10,
}  # fmt: skip
WITHIN_LAYER = {("training", "train")}
ONLY_IN = {
    "h5py": {"dataset"}, "decord": {"video"}, "av": {"video", "synthetic"}, "typer": {"cli"}, "submitit": {"cluster"},
    "transformers": {"encoders", "noise_gap"}, "diffusers": {"noise_gap"},
}  # fmt: skip


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
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", module_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    assert here in LAYERS, f"{here} has no layer; add it to the table"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "pipeline" and rest and rest != "__version__":
            there = rest.split(".")[0]
            allowed = there == here or LAYERS[there] < LAYERS[here] or (here, there) in WITHIN_LAYER
            assert allowed, f"{here} (layer {LAYERS[here]}) imports {there} (layer {LAYERS[there]})"
        assert here in ONLY_IN.get(top, {here}), f"{here} imports {top}; only {ONLY_IN[top]} may"
