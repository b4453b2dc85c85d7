"""vtp: demonstration videos in, a validated policy and its dollars out."""

__version__ = "0.1.0"
