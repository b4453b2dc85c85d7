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
        """code: words joined by hyphens, subject first, such as "task-unknown"; default: the class's code."""
        super().__init__(message)
        if code is not None:
            self.code = code


class PartialError(VtpError):
    """The work finished, but some or all inputs failed; each is in `failures.jsonl`."""

    exit_code = EXIT_PARTIAL
    code = "partial"


class CorruptError(VtpError):
    """An input or a checkpoint is damaged or not trusted."""

    exit_code = EXIT_CORRUPT
    code = "corrupt"


class UntrustedError(CorruptError):
    """Refused to load a file because loading it would run code."""

    code = "untrusted"


class TryAgainError(VtpError):
    """Interrupted or out of disk space; the same command resumes the work."""

    exit_code = EXIT_TRY_AGAIN
    code = "try-again"
