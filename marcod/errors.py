"""The errors that marcod raises on purpose.

A class's docstring is its message when none is given. The command line prints the message as one line
and exits with ``exit_code``: 1 for something that failed, 2 for a wrong invocation or configuration. It exits with 0
when all is well, with 3 when the work was done but something was left for people to look at, and with 75 (EX_TEMPFAIL)
when nothing is wrong and the same call goes on with the work, so that a scheduler may make it again.
"""

import errno
from typing import ClassVar, Final

TRY_AGAIN: Final = 75

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk, for everybody or for this user."""


def is_full(error: BaseException) -> bool:
    """Return True for a full disk."""
    return isinstance(error, OSError) and error.errno in FULL


_NO_MEMORY: Final = (
    "RESOURCE_EXHAUSTED", "Dst tensor is not initialized", "CUDNN_STATUS_ALLOC_FAILED", "out of memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return True where this host or its device has too little memory.

    TensorFlow has a class of its own for it; XLA, and so JAX, copies, cuDNN and Pillow only have a message.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return type(error).__name__ == "ResourceExhaustedError" or any(part in str(error) for part in _NO_MEMORY)


def os_reason(error: OSError) -> str:
    """Return a short reason for after "FILE cannot be written: ", such as a full disk."""
    if is_full(error):
        return "the disk is full; free some room there"
    return error.strerror or type(error).__name__


LEFT_OUT: Final = {
    "keras": "TensorFlow", "tensorflow": "TensorFlow", "scipy": "SciPy", "sklearn": "scikit-learn",
    "matplotlib": "Matplotlib", "threadpoolctl": "TensorFlow",
}  # fmt: skip
"""Libraries that ``marcod-light`` is installed without, by module."""


def what_is_left_out(error: ModuleNotFoundError) -> str | None:
    """Return one sentence for work that a light installation cannot do; None for another module that is missing."""
    library = LEFT_OUT.get((error.name or "").split(".")[0])
    return None if library is None else f"this needs {library}, which is not installed here; {ON_A_WHOLE_HOST}"


ON_A_WHOLE_HOST: Final = "run it on a host with the whole marcod, this one only scores"


class MarcodError(Exception):
    """Something went wrong in marcod."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigError(MarcodError):
    """The configuration is wrong."""

    exit_code = 2


class LayoutError(MarcodError):
    """The layout cannot be used as configured."""

    exit_code = 2


class ImageError(MarcodError):
    """The file cannot be read as an image.

    ``retryable`` says if waiting may help: a truncated file may still be arriving, a decompression
    bomb will not get better.
    """

    def __init__(self, message: str | None = None, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class BundleError(MarcodError):
    """The model bundle is damaged or does not fit."""


class HostLacksError(BundleError):
    """The model bundle is whole, but needs what this host lacks; others may have it."""


class FetchError(MarcodError):
    """The published model cannot be had."""


class StoreError(MarcodError):
    """The database cannot be used."""


class SchemaError(StoreError):
    """The database schema does not fit this version of marcod."""


class NotFoundError(MarcodError):
    """There is nothing by that name in the database."""


class LabelError(MarcodError):
    """The label cannot be recorded.

    ``may_come`` says if waiting may help: a plate may not have arrived yet, a wrong well stays wrong.
    """

    def __init__(self, message: str | None = None, *, may_come: bool = False) -> None:
        super().__init__(message)
        self.may_come = may_come


class UnmappedError(LabelError):
    """No vocabulary maps this label to a class."""
