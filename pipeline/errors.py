"""Errors that a user can act on, and the exit code of each.

Every message gives the value, the rule that it breaks and the remedy, in one line.
"""

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_CORRUPT = 4
EXIT_TRY_AGAIN = 75


class VtpError(Exception):
    """Bad input or configuration: nothing was written."""

    exit_code = EXIT_USAGE


class PartialError(VtpError):
    """The work finished, but some or all inputs failed; each is in `failures.jsonl`."""

    exit_code = EXIT_PARTIAL


class CorruptError(VtpError):
    """An input or a checkpoint is damaged, or not to be trusted."""

    exit_code = EXIT_CORRUPT


class UntrustedError(CorruptError):
    """A file that would run code if it were loaded; it was not."""


class TryAgainError(VtpError):
    """Interrupted or out of space; the same command goes on from here."""

    exit_code = EXIT_TRY_AGAIN
