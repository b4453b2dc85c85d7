"""Every command that a page tells its readers to type is one that the program takes, flags and values included.

The real parsers take them: nothing is read or run.
"""

import argparse
import ast
import functools
import importlib.util
import re
import sys

import pytest
from documents import PAGES, ROOT, alternatives, block_commands, inline_commands, prose
from typer.main import get_command

from pipeline.cli import app, command
from pipeline.errors import VtpError

NEEDS = {"sac": "stable_baselines3"}  # what is no dependency of the package or of its tests


def current(page):
    """What a page says of the program as it is; the older part of the changelog says how it was."""
    return page.read_text().partition("## [0.1.0]")[0]


@functools.cache
def script(path):
    """A script of bench/, imported and not run."""
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Taken(BaseException):
    """The command's parser has taken all of its words."""


@pytest.fixture
def take(monkeypatch, tmp_path):
    """Give words to the parser that they are for; is_part: whether what is required may be missing."""

    def taken(*_):
        raise Taken

    def parse_args(parser, *_):
        real(parser)
        raise Taken

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(command, "check_given", taken)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setenv("VTP_CACHE", str(tmp_path))

    def take(words, *, is_part=False):
        while "=" in words[0] or words[0] == "time":
            words = words[1:]
        {"vtp": of_vtp, "python": of_bench, "pytest": of_pytest, "make": of_make}[words[0]](words[1:], is_part)

    def of_vtp(words, is_part):
        try:
            get_command(app).main(words, standalone_mode=False)  # ends by itself after --help
        except Taken:
            return
        except VtpError as error:
            assert is_part and error.code == "setting-missing", error
            return
        except Exception as error:  # typer's, which it keeps to itself
            if is_part and type(error).__name__ == "NoArgsIsHelpError":  # a group of commands
                return
            raise
        assert {"--help", "--version"} & set(words), words

    def of_bench(words, _):
        name = ROOT / words[0]
        if not (needs := NEEDS.get(name.stem)) or importlib.util.find_spec(needs) is not None:
            monkeypatch.setattr(sys, "path", list(sys.path))
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(Taken):
                script(name).main()

    def of_pytest(words, _):
        path, *rest = words
        names = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert not rest or rest[:-1] == ["-k"], rest
        assert not rest or any(rest[-1] in name for name in names), f"no test of {path} is called {rest[-1]}"

    def of_make(words, _):
        assert len(words) == 1 and re.search(rf"^{re.escape(words[0])}:", (ROOT / "Makefile").read_text(), re.M), words

    return take


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken(page, take):
    text = current(page)
    for is_part, found in ((False, block_commands(text)), (True, inline_commands(text))):
        for line in found:
            for words in alternatives(line):
                try:
                    take(words, is_part=is_part)
                except Exception as error:
                    pytest.fail(f"{line}: {error or type(error).__name__}")


@pytest.mark.parametrize(
    "line",
    ["vtp extrct videos/", "vtp extract videos/ --clip-length 8", "vtp export data/e.h5 --to excel", "make nothing",
     "vtp train --source sim --centre video", "python bench/logs.py --film 96", "pytest tests/test_econ.py -k no_such"],
)  # fmt: skip
def test_wrong_commands_are_noticed(line, take):
    with pytest.raises((Exception, SystemExit)):
        take(line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_exist(page):
    known = {"--help", "--version"}
    groups = [get_command(app)]
    for group in groups:
        for one in (group, *group.commands.values()):
            groups += [one] if hasattr(one, "commands") and one not in groups else []
            known |= {flag for parameter in one.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    named = {re.split(r"[\s=/]", code)[0] for code in re.findall(r"`(--[^`]+)`", prose(current(page)))}
    assert named - known == set()
