"""Errors that a user can act on, told apart by their code, so that a message can be reworded without a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.errors import VtpError


@contextmanager
def raises(code: str, kind: type[VtpError] = VtpError) -> Iterator[pytest.ExceptionInfo[VtpError]]:
    """Assert that the block raises an error of this kind with exactly this code; it is one line to a user."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code!r}, not {code!r}: {caught.value}"
    assert "\n" not in str(caught.value)
