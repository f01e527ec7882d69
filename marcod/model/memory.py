"""Freed memory, given back to the operating system."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give back freed memory where the C library can; a process that loaded a model would keep a third more."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
