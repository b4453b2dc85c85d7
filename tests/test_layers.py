"""The table of rooms in the README, held: imports go down the layers, heavy libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
LAYERS = {
    "errors": 0, "config": 0, "rundir": 0, "processes": 0,
    "econ": 1, "sim": 1, "manifest": 1, "replay": 1,
    "store": 2, "video": 2, "render": 2, "encoders": 2, "diffusion": 2, "sac": 2, "envs": 2, "shards": 2,
    "evaluate": 3, "footage": 3, "ledger": 3, "parts": 3, "scoring": 3, "training": 3,
    "simulate": 4, "extract": 4, "novelty": 4, "train": 4, "experiments": 4,
    "policy": 4,
    "report": 5, "demo": 5, "doctor": 5, "seeds": 5, "cluster": 5,
    "cli": 6,
}  # fmt: skip
WITHIN_LAYER = {
    ("demo", "report"), ("cluster", "seeds"), ("training", "evaluate"), ("training", "ledger"), ("rundir", "config"),
    ("rundir", "errors"), ("evaluate", "footage"), ("scoring", "footage"), ("training", "footage"),
}  # fmt: skip
ONLY_IN = {
    "h5py": {"store"}, "decord": {"video"}, "av": {"video", "render"}, "typer": {"cli"}, "submitit": {"cluster"},
    "transformers": {"encoders", "diffusion"}, "diffusers": {"diffusion"},
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
