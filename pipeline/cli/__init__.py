"""The command line: flags from the config models, progress bars, one-line errors, exit codes."""

from __future__ import annotations

import logging
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import experiment_commands, stage_commands  # noqa: F401 (they register their commands)
from pipeline.cli.command import app
from pipeline.cli.help_pages import NEWCOMER
from pipeline.cli.show import console
from pipeline.errors import EXIT_USAGE, VtpError
from pipeline.files import full_disk_in_threads_is_quiet, out_of_space_is_try_again
from pipeline.storage import with_urls


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"vtp {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(NEWCOMER, err=True)
        raise typer.Exit(EXIT_USAGE)


NO_MEMORY_TEXT = re.compile(r"failed to map segment|annot allocate memory|an't start new thread|can't allocate memory")


@contextmanager
def memory_limit_is_named() -> Iterator[None]:
    """Turn a lack of memory under `ulimit -v`, also while libraries load, into a VtpError that names the limit."""
    try:
        yield
    except (MemoryError, ImportError, OSError, RuntimeError) as error:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY or not (isinstance(error, MemoryError) or NO_MEMORY_TEXT.search(str(error))):
            raise
        raise VtpError(
            f"the limit on memory (ulimit -v) is {limit >> 20} MiB, which is too little for this command "
            f"({str(error) or 'MemoryError'}); raise it",
            code="memory-limit",
        ) from error


def _names_urls(record: logging.LogRecord) -> bool:
    """Let a log name files of object storage by their URLs."""
    record.msg, record.args = with_urls(record.getMessage()), None
    return True


def main() -> None:
    """Run the command line: a VtpError is one line and its exit code, anything else keeps its traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler stops a job so; treated as Ctrl-C
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("aiobotocore", "botocore", "gcsfs"):  # they log each credential that they find
        logging.getLogger(library).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_names_urls)
    full_disk_in_threads_is_quiet()
    try:
        with out_of_space_is_try_again(), memory_limit_is_named():
            app()
    except VtpError as error:
        console.print(f"vtp: {with_urls(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
