"""The Markdown of the repository, taken apart: headings, links, and the commands that it tells readers to type."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, ROOT / "manifests/README.md", ROOT / "data/README.md"]
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:time )?(?:vtp|python bench/\S+\.py|pytest|make)(?: |$)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What links may name after #, by the rules of both GitHub and MkDocs."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def block_commands(text: str) -> Iterator[str]:
    """Lines of blocks that are commands, without prompt and comment."""
    for block in blocks(text):
        for line in block.splitlines():
            command = line.removeprefix("$ ").split(" #")[0].strip()
            if COMMAND.match(command):
                yield command


def inline_commands(text: str) -> Iterator[str]:
    for code in re.findall(r"`([^`]+)`", prose(text)):
        command = " ".join(code.split())
        if COMMAND.match(command) and " " in command and "COMMAND" not in command:
            yield command


def alternatives(command: str) -> list[list[str]]:
    """The words of a command; several commands where a word is a choice, such as npy|parquet."""
    words = shlex.split(command.removesuffix(" ..."))
    chosen = next((number for number, word in enumerate(words) if "|" in word), None)
    if chosen is None:
        return [words]
    return [[*words[:chosen], one, *words[chosen + 1 :]] for one in words[chosen].split("|")]
