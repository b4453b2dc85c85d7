"""Errors that a user can act on, and the exit code of each.

Every message gives the value, the rule that it breaks and the remedy, in one line. `code` names the kind of error in
words that do not change when the message is reworded.
"""

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_CORRUPT = 4
EXIT_TRY_AGAIN = 75


class VtpError(Exception):
    """Bad input or configuration: nothing was written."""

    exit_code = EXIT_USAGE
    code = "usage"

    def __init__(self, message: str, *, code: str | None = None):
        """code: small words joined by hyphens, subject first, such as "task-unknown"; by default the class's own."""
        super().__init__(message)
        if code is not None:
            self.code = code


class PartialError(VtpError):
    """The work finished, but some or all inputs failed; each is in `failures.jsonl`."""

    exit_code = EXIT_PARTIAL
    code = "partial"


class CorruptError(VtpError):
    """An input or a checkpoint is damaged, or not to be trusted."""

    exit_code = EXIT_CORRUPT
    code = "corrupt"


class UntrustedError(CorruptError):
    """A file that would run code if it were loaded; it was not."""

    code = "untrusted"


class TryAgainError(VtpError):
    """Interrupted or out of space; the same command goes on from here."""

    exit_code = EXIT_TRY_AGAIN
    code = "try-again"
