"""Memory of large things that are no more, given back to the system."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give back what was freed, where the C library can; else a process that loaded a model keeps a third more."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
