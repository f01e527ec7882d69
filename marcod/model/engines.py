"""Engines: what calculates a network here, TensorFlow by way of Keras (or its other backends), or OpenVINO.

A host that only scores does without TensorFlow and Keras; the distribution ``marcod-light`` requires OpenVINO instead.
Nothing here imports one of them.
"""

import socket
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marcod.domain import Precision
from marcod.errors import ON_A_WHOLE_HOST, BundleError, ConfigError, HostLacksError
from marcod.model import processors
from marcod.model.architecture import Architecture
from marcod.model.parts import Scoring
from marcod.model.resize import Bilinear, bilinear

Setting = Literal["auto", "tensorflow", "openvino"]
"""Value of ``score.engine``; ``auto`` is TensorFlow where it is installed, else OpenVINO."""

_NEEDS: Final[Mapping[Setting, tuple[str, ...]]] = {"tensorflow": ("keras", "tensorflow"), "openvino": ("openvino",)}
_CALLED: Final[Mapping[Setting, str]] = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}


class Engine(NamedTuple):
    """Network compiled by an engine: ``name`` goes with its scores, ``resize`` prepares its images.

    ``by_parts`` tells that each thread of a processor takes a part of a batch, not a device all of it.
    """

    name: str
    scoring: Scoring
    resize: Bilinear
    by_parts: bool


class QuantizedNetwork(NamedTuple):
    """Network of 8-bit integers in the files of OpenVINO's format: its graph, and its numbers."""

    graph: bytes
    numbers: bytes


def installed(engine: Setting) -> bool:
    """Check that an engine is installed here, without importing it."""
    return all(map(_is_there, _NEEDS[engine]))


def _is_there(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    # Not `importlib.util.find_spec`: asking is no import, for which finders of ours wait.
    return PathFinder.find_spec(module) is not None


def chosen(setting: Setting = "auto") -> Setting:
    """Return the engine of this host. Raises ConfigError for one that is not installed."""
    if setting == "auto":
        return "tensorflow" if installed("tensorflow") or not installed("openvino") else "openvino"
    if not installed(setting):
        other = "auto" if any(installed(one) for one in _NEEDS) else setting
        raise ConfigError(
            f"score.engine is {setting}, but {_CALLED[setting]} is not installed here; install it, or say {other!r}"
        )
    return setting


def require_keras(work: str) -> None:
    """Raise HostLacksError with one sentence where ``work`` is asked of a host without TensorFlow and Keras."""
    if not installed("tensorflow"):
        raise HostLacksError(f"{work} needs TensorFlow, which is not installed here; {ON_A_WHOLE_HOST}")


def compiled(
    setting: Setting,
    architecture: Architecture,
    weights: Mapping[str, NDArray[np.float32]],
    batch_size: int,
    precision: Precision,
    quantized: QuantizedNetwork | None = None,
) -> Engine:
    """Compile a network by the engine of this host; a quantized one by OpenVINO, on every host that has it.

    Raises BundleError when the weights do not fit, HostLacksError for a precision that this host lacks, ConfigError
    for an engine that is not installed.
    """
    if precision is Precision.INT8:
        return _quantized(architecture, batch_size, quantized)
    return _COMPILED[chosen(setting)](architecture, weights, batch_size, precision)


def _quantized(architecture: Architecture, batch_size: int, quantized: QuantizedNetwork | None) -> Engine:
    if not installed("openvino"):
        raise HostLacksError("a version of precision int8 needs OpenVINO, which is not installed here; install it")
    if quantized is None:
        raise BundleError("a version of precision int8 has no quantized network")
    from marcod.model import openvino_network

    scoring = openvino_network.quantized(quantized, architecture, batch_size)
    return Engine("openvino", scoring, _resize(), by_parts=True)


def _resize() -> Bilinear:
    """Return TensorFlow's resize where it is installed, which takes half as long for the same bits."""
    if not installed("tensorflow"):
        return bilinear
    from marcod.model import backend

    return backend.bilinear() or bilinear


def _by_keras(
    architecture: Architecture, weights: Mapping[str, NDArray[np.float32]], batch_size: int, precision: Precision
) -> Engine:
    require_keras("a network")
    from marcod.model import backend, network

    scoring = network.compiled(architecture, weights, batch_size, precision)
    return Engine(backend.name(), scoring, backend.bilinear() or bilinear, backend.takes_parts())


def _by_openvino(
    architecture: Architecture, weights: Mapping[str, NDArray[np.float32]], batch_size: int, precision: Precision
) -> Engine:
    if precision is Precision.FLOAT16:
        raise HostLacksError(f"a version of precision {precision} needs TensorFlow, which does not score on this host")
    if lacking := processors.lacks(precision):
        raise HostLacksError(f"{socket.gethostname()} cannot calculate in {precision}: {lacking}")
    from marcod.model import openvino_network

    scoring = openvino_network.compiled(architecture, weights, batch_size, precision)
    return Engine("openvino", scoring, bilinear, by_parts=True)


_COMPILED: Final[Mapping[Setting, Callable[..., Engine]]] = {"tensorflow": _by_keras, "openvino": _by_openvino}


def libraries() -> tuple[str, ...]:
    """Return the distributions that calculate here."""
    if chosen() == "openvino":
        return ("openvino",)
    require_keras("a network")
    from marcod.model import backend

    return ("keras", "tensorflow", backend.name())


def facts(setting: Setting) -> tuple[str, str]:
    """Return the engine of this host and its version, as `marcod doctor` shows them. Raises as :func:`compiled`."""
    if chosen(setting) == "openvino":
        return "openvino", metadata.version("openvino")
    require_keras("a network")
    from marcod.model import backend

    return backend.name(), metadata.version(backend.name())


def devices(setting: Setting) -> list[tuple[str, int | None]]:
    """List the devices of this host's engine: each name, and its memory in bytes where that is known."""
    if chosen(setting) == "openvino":
        from marcod.model import openvino_network

        return [(openvino_network.processor(), None)]
    from marcod.model import backend

    return backend.devices()
