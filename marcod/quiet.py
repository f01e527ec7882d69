"""Quiet imports of TensorFlow and Keras: no notes such as that there is no graphics card, and no files in the home.

Hazard: TensorFlow writes to file descriptor 2 from C++ before any of its switches counts, so the descriptor itself is
held back meanwhile. What Python writes goes by a descriptor of its own, see :func:`own_standard_error`.

Keras imports Matplotlib, which makes folders in the user's home, or writes that it cannot. Only Keras's drawing of
images needs it there, which marcod does not use.

OpenVINO's tools for converting models tell their maker of every import, and keep a name for the user in the home.
Nothing here needs them.
"""

import importlib
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any, Final, cast

TENSORFLOW: Final = "tensorflow"
KERAS: Final = "keras"
MATPLOTLIB: Final = "matplotlib"
TELEMETRY: Final = ("openvino_telemetry", "openvino.tools.ovc")
"""Modules that report to OpenVINO's maker; OpenVINO does without both."""

CHATTER: Final = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+:\d+\]"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IW] (tensorflow|external)/"
    rb"|.*Unable to register cu(DNN|FFT|BLAS) factory"
    rb"|To enable the following instructions:"
)
"""Beginnings of lines that are for the makers of TensorFlow; errors do not match."""


def import_tensorflow_quietly() -> None:
    """Make later imports of TensorFlow and Keras quiet; does nothing for what is imported already."""
    # Their warnings are for programmers, such as of a function that is compiled for several models.
    for name in (TENSORFLOW, MATPLOTLIB):
        logging.getLogger(name).setLevel(logging.ERROR)
    for finder in (_Finder(TENSORFLOW, _held_back), _Finder(KERAS, _without_matplotlib)):
        if finder.package not in sys.modules and finder not in sys.meta_path:
            sys.meta_path.insert(0, finder)


def own_standard_error() -> None:
    """Give what Python writes to standard error a descriptor of its own, so that holding the other back delays none."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, io.UnsupportedOperation):
        return
    sys.stderr = os.fdopen(number, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")


def import_openvino() -> Any:
    """Import OpenVINO without what reports to its maker, in this process for good. Raises ImportError."""
    for name in TELEMETRY:
        if name not in sys.modules:
            # None makes its import fail as that of a missing package does.
            cast("dict[str, Any]", sys.modules)[name] = None
    return importlib.import_module("openvino")


def import_nncf() -> Any:
    """Import NNCF without what reports to its maker, and without its progress. Raises ImportError."""
    import_openvino()
    nncf = importlib.import_module("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@dataclass(frozen=True)
class _Finder(MetaPathFinder):
    """Finder of one package, as Python finds it, that runs its first import within ``around``."""

    package: str
    around: Callable[[], AbstractContextManager[None]]

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self.around)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, around: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(name, path)
        self._around = around

    def exec_module(self, module: ModuleType) -> None:
        with self._around():
            super().exec_module(module)


@contextmanager
def _without_matplotlib() -> Iterator[None]:
    """Let Matplotlib look as if it were not installed, unless it is imported already."""
    if MATPLOTLIB in sys.modules:
        yield
        return
    # None makes its import fail as that of a missing package does.
    modules = cast("dict[str, Any]", sys.modules)
    modules[MATPLOTLIB] = None
    try:
        yield
    finally:
        del modules[MATPLOTLIB]


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what comes on descriptor 2, and pass on in the end what is not chatter."""
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
