"""The README is one screen, agrees with the tree, and what it tells a newcomer to type works."""

import json
import re
import subprocess

import pytest
from documents import PAGES, README, ROOT, block_commands, blocks

import pipeline

TEXT = README.read_text()
MOST_LINES = 130
# Rendered videos in place of the reader's, no download, and a training too short to learn anything.
IN_SMALL = {
    "extract": ["--weights", "random:0"],
    "train": ["--episodes", "256", "--warmup-steps", "60"],
    "evaluate": ["--episodes", "2", "--steps", "4"],
}


def test_it_is_short():
    assert len(TEXT.splitlines()) <= MOST_LINES


def tree_paths():
    """Paths of the file tree that ends the README: each entry's names under the folders that it is indented below."""
    folders: list[str] = []
    for line in blocks(TEXT)[-1].splitlines():
        depth, names = (len(line) - len(line.lstrip())) // 2, re.split(r"  +", line.strip())[0].split(", ")
        folders = folders[:depth]
        yield from ("".join([*folders, name]) for name in names)
        if names[-1].endswith("/"):
            folders.append(names[-1])


def test_the_file_tree_is_true():
    assert TEXT.endswith("```\n")
    paths = list(tree_paths())
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"in the README but not there: {missing}"
    rooms = {f"pipeline/{p.name}" + ("/" if p.is_dir() else "") for p in (ROOT / "pipeline").iterdir()}
    rooms -= {"pipeline/__init__.py", "pipeline/__pycache__/", "pipeline/py.typed"}
    assert rooms <= set(paths), f"not in the README: {sorted(rooms - set(paths))}"


def test_make_runs_what_the_readme_says():
    """`make` is asked what it would do: all of it takes many minutes, and its parts are tested elsewhere."""
    would = {
        target: subprocess.run(
            ["make", "--no-print-directory", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for target in re.findall(r"^make (\w+)", TEXT, re.M)
    }
    assert would.keys() == {"demo", "test"}
    assert would["demo"].splitlines()[-1] == ".venv/bin/vtp demo"
    assert "-m pytest" in would["test"]


def test_figures_are_those_of_the_benchmarks():
    rows = [row for path in (ROOT / "docs/benchmarks").glob("*.json") for row in json.loads(path.read_text())["rows"]]
    table = re.findall(r"^\| (.+?) \| (.+?) \| `([^|]+)` \|$", TEXT.partition("## Measured")[2], re.M)
    assert len(table) == 6
    for what, figure, command in table:
        of_command = " ".join(row["value"] for row in rows if command in row["commands"])
        numbers = re.findall(r"[\d.]+\d|\d", figure)
        assert numbers, what
        known = set(re.findall(r"[\d.]+\d|\d", of_command))
        assert set(numbers) <= known, f"{what}: {sorted(set(numbers) - known)} not measured by {command}"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_your_own_videos_and_logs(vtp, tmp_path):
    pipeline.simulate(tmp_path / "videos", videos=8, steps=6, logger="human", seed=0)
    section = TEXT.partition("## Your own videos and logs")[2].partition("## ")[0]
    commands = list(block_commands(section))
    names = [command.split()[1] for command in commands]
    assert names == ["extract", "logs", "train", "evaluate", "report", "act", "export"]
    for name, command in zip(names, commands, strict=True):
        code, _, err = vtp(*command.split()[1:], *IN_SMALL.get(name, []))
        assert code == 0, f"{command}: {err}"
    assert (tmp_path / "actions.csv").read_text().count("\n") == 1 + 8 * 6
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "data/embeddings.parquet").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page):
    assert not re.findall(r"@[A-Z]+@|TODO|TBD|[A-Z]+_TABLE", page.read_text())
