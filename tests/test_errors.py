"""Every user error has its own code, written where it is raised."""

import ast
import re
from pathlib import Path

import pytest
from raising import raises

import pipeline
from pipeline import errors
from pipeline.errors import CorruptError, VtpError
from pipeline.video import VideoError

PACKAGE = Path(pipeline.__file__).parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VtpError)}
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")  # subject-problem
VIDEO_CODE = re.compile(r"[a-z]+(_[a-z]+)*")  # also in the failures.jsonl of earlier versions


def constructed(path):
    """The calls that make an error of errors.py or a VideoError, as (name, call)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in KINDS | {"VideoError"}:
                yield name, node


def literals(node):
    """The possible string values of an expression; none if it is computed."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_error_has_a_code(path):
    for name, call in constructed(path):
        given = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
        if name == "VideoError":
            given = call.args[0]
        assert given is not None, f"{path}:{call.lineno}: {name} has no code"
        for code in literals(given):
            pattern = VIDEO_CODE if name == "VideoError" else CODE
            assert pattern.fullmatch(code), f"{path}:{call.lineno}: {code!r} is not subject-problem"


def test_a_code_is_always_or_never_worth_a_retry():
    """The exit code tells a script whether to try again, so a code must not mean both."""
    exits = {}
    for path in SOURCES:
        for name, call in constructed(path):
            for code in (
                code for keyword in call.keywords if keyword.arg == "code" for code in literals(keyword.value)
            ):
                exits.setdefault(code, set()).add(name == "TryAgainError")
    assert {code for code, again in exits.items() if len(again) > 1} == set()


def test_an_error_without_a_code_has_that_of_its_class():
    assert VtpError("x").code == "usage" and VtpError.code == "usage"
    assert CorruptError("x").code == "corrupt"
    assert CorruptError("x", code="a-b").code == "a-b" and CorruptError.code == "corrupt"
    assert VideoError("damaged", "x is damaged", "fetch it again").code == "damaged"


def test_raises_compares_codes():
    with raises("weights-missing") as caught:
        raise VtpError("weights 'x' is not a file; give one", code="weights-missing")
    assert "'x'" in str(caught.value)
    with pytest.raises(AssertionError, match="'weights-missing', not 'weights-wrong'"), raises("weights-wrong"):
        raise VtpError("weights 'x' is not a file; give one", code="weights-missing")
