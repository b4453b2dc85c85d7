"""The command line, nothing else: flags from the config models, progress bars, one-line errors, exit codes."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import experiment_commands, stage_commands  # noqa: F401 (they register their commands)
from pipeline.cli.command import app
from pipeline.cli.show import console
from pipeline.errors import VtpError
from pipeline.files import full_disk_in_threads_is_quiet, out_of_space_is_try_again


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"vtp {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: a VtpError is one line and its exit code, anything else keeps its traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    full_disk_in_threads_is_quiet()
    try:
        with out_of_space_is_try_again():
            app()
    except VtpError as error:
        console.print(f"vtp: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
