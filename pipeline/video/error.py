"""Errors of one video, while the others continue."""

from pipeline.errors import VtpError


class VideoError(VtpError):
    """The failure of one video: a code for programs, a reason and a remedy for people."""

    def __init__(self, code: str, reason: str, fix: str):
        super().__init__(f"{reason}; {fix}")
        self.code = code
        self.reason = reason
        self.fix = fix


def damaged(reason: str) -> VideoError:
    return VideoError("damaged", reason, "fetch the file again or re-encode it")


def out_of_memory() -> VideoError:
    return VideoError("memory", "needs too much memory to decode", "re-encode it with smaller frames")


def unreadable(error: OSError) -> VideoError:
    return VideoError("unreadable", f"cannot be read: {error.strerror or error}", "check the disk and run again")
