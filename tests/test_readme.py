"""The README agrees with the tree and with the command line."""

import re
from pathlib import Path

from typer.main import get_command

from pipeline.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree_paths():
    """Paths of the file tree: each entry's name under the folders that it is indented below."""
    block = README.partition("## What is where")[2].split("```")[1].strip("\n")
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
    root = get_command(app)
    for line in re.findall(r"(?:^|`)(?:\$ )?vtp ([a-z].*?)(?:`|$)", README, re.M):
        words, command = line.split("#")[0].split(), root
        while words and hasattr(command, "commands"):
            name = words.pop(0)
            assert name in command.commands, f"vtp {line}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        flags = {word.rstrip(".,;:)") for word in words if word.startswith("--")}
        assert flags <= known | {"--help"}, f"vtp {line}: {sorted(flags - known)}"


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", README)
