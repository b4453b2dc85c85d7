"""The README agrees with the tree and with the command line."""

import re
from pathlib import Path

from typer.main import get_command

from pipeline.cli import app
from pipeline.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree_paths():
    """Paths of the file tree: each entry's name under the folders that it is indented below."""
    block = next(
        b for b in re.findall(r"```\n(.*?)```", README, re.S) if "\npipeline/\n" in f"\n{b}" or "pipeline/ " in b
    )
    folders: list[str] = []
    for line in block.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        yield "".join([*folders, name])
        if name.endswith("/"):
            folders.append(name)


def test_the_file_tree_is_true():
    paths = list(tree_paths())
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"in the README but not there: {missing}"
    rooms = {f"pipeline/{p.name}" + ("/" if p.is_dir() else "") for p in (ROOT / "pipeline").iterdir()}
    rooms -= {"pipeline/__init__.py", "pipeline/__pycache__/", "pipeline/py.typed"}
    assert rooms <= set(paths), f"not in the README: {sorted(rooms - set(paths))}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_commands_and_flags_exist():
    commands = get_command(app).commands
    for line in re.findall(r"`?\bvtp ([a-z]+[^`\n]*)", README):
        words = line.split("#")[0].split()
        assert words[0] in commands, f"vtp {line}"
        known = {option for parameter in commands[words[0]].params for option in parameter.opts}
        flags = {word.rstrip(".,;:)") for word in words if word.startswith("--")}
        assert flags <= known, f"vtp {line}: {sorted(flags - known)}"


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", README)
    assert Config.model_config["frozen"]
