"""Silence for what TensorFlow writes by itself when it is imported, such as that there is no graphics card.

Hazard: it writes to file descriptor 2 from C++ before any of its switches counts, so the descriptor itself is held
back meanwhile. What Python writes goes by a descriptor of its own, see :func:`own_standard_error`.
"""

import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Final

PACKAGE: Final = "tensorflow"
CHATTER: Final = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+:\d+\]"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] (tensorflow|external)/"
    rb"|.*Unable to register cu(DNN|FFT|BLAS) factory"
    rb"|To enable the following instructions:"
)
"""Beginnings of lines that are for the makers of TensorFlow; errors do not match."""


def import_tensorflow_quietly() -> None:
    """Have TensorFlow imported without its chatter, by whoever imports it first; does nothing once it is there."""
    if PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def own_standard_error() -> None:
    """Give what Python writes to standard error a descriptor of its own, so that holding the other back delays none."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, io.UnsupportedOperation):
        return
    sys.stderr = os.fdopen(number, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")


class _Finder(MetaPathFinder):
    """Finds the package as Python does, and has it imported quietly, whoever imports it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _held_back():
            super().exec_module(module)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what comes on descriptor 2, and pass on in the end what is no chatter."""
    import tempfile

    with ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            kept = os.dup(2)
        except OSError:
            # Without a place to hold it, it is only noise.
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not CHATTER.match(line):
                    os.write(2, line)
