"""Weights of a network as plain arrays under the names of the published checkpoint, whatever the framework.

Nothing here imports one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model.architecture import EPSILON, Architecture
from marcod.model.inception import Inception
from marcod.model.network_layers import NetworkLayers, Padding

GLOBAL_STEP: Final = "global_step"
_AUXILIARY: Final = f"{Inception.root}/AuxLogits/"

_CHANNELS: Final = {"weights": -1, "depthwise_weights": -2}
"""Axis of a kernel's output channels, by the suffix of its name."""

Weights = Mapping[str, NDArray[np.float32]]


def is_auxiliary(name: str) -> bool:
    """Check that a weight belongs to the auxiliary head, which scoring does without."""
    return name.startswith(_AUXILIARY)


def assembled(architecture: Architecture, net: NetworkLayers, *, auxiliary: bool = False) -> tuple[Any, Any]:
    """Put a network together; return its input and outputs. Raises BundleError when the input is too small."""
    try:
        return architecture.assemble(net, auxiliary=auxiliary)
    except ValueError as error:
        raise BundleError(f"an input of {architecture.input_size} pixels is too small: {error}") from error


def matched(wanted: Mapping[str, tuple[int, ...]], values: Weights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the weights of a network by the shapes that it wants, in that order.

    Weights of the auxiliary head and the step counter may be left over. Raises BundleError naming the
    first weight that is missing, unknown, of another shape, or not finite.
    """
    spare = [n for n in values if n not in wanted and n != GLOBAL_STEP and not is_auxiliary(n)]
    if spare:
        raise BundleError(f"the weights hold {spare[0]}, which this architecture does not have")
    for name, shape in wanted.items():
        if name not in values:
            raise BundleError(f"the weights lack {name}")
        value = values[name]
        if value.shape != shape:
            raise BundleError(f"{name} has shape {value.shape}; this architecture needs {shape}")
        if not np.isfinite(value).all():
            raise BundleError(f"{name} holds values that are not finite numbers")
        yield name, value


def folded(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Fold batch norm into the weights of convolutions with bias; the network computes the same.

    A depthwise kernel has its channels one axis before a plain one's. Not every family scales by ``gamma``.
    """
    found = {}
    for name, value in weights.items():
        owner, _, kind = name.rpartition("/")
        if f"{owner}/BatchNorm/beta" in weights and kind in _CHANNELS:
            beta, mean, variance = (_batch_norm(weights, name, k) for k in ("beta", "moving_mean", "moving_variance"))
            with np.errstate(invalid="ignore"):
                scale = 1 / np.sqrt(variance + EPSILON)
            if f"{owner}/BatchNorm/gamma" in weights:
                scale *= _batch_norm(weights, name, "gamma")
            found[name] = (value * np.expand_dims(scale, tuple(range(_CHANNELS[kind] + 1, 0)))).astype(np.float32)
            found[f"{owner}/biases"] = (beta - mean * scale).astype(np.float32)
        elif not owner.endswith("/BatchNorm"):
            found[name] = value
    return found


def _batch_norm(weights: Weights, kernel: str, kind: str) -> NDArray[np.float64]:
    owner, _, suffix = kernel.rpartition("/")
    name = f"{owner}/BatchNorm/{kind}"
    if name not in weights:
        raise BundleError(f"the weights lack {name}")
    value, filters = weights[name], weights[kernel].shape[_CHANNELS[suffix] :][:1]
    if value.shape != filters:
        raise BundleError(f"{name} has shape {value.shape}; its convolution has shape {filters}")
    if not np.isfinite(value).all():
        raise BundleError(f"{name} holds values that are not finite numbers")
    return value.astype(np.float64)


def shapes(architecture: Architecture, *, is_folded: bool = False) -> dict[str, tuple[int, ...]]:
    """List name and shape of every weight that scoring needs, with or without batch normalization folded.

    Raises BundleError when the input is too small.
    """
    net = _Shapes(architecture, is_folded=is_folded)
    assembled(architecture, net)
    return net.found


class _Grid(NamedTuple):
    """Tensor of which only the size is known."""

    rows: int
    depth: int


class _Shapes(NetworkLayers):
    """Layers that calculate nothing and note the shapes of their weights."""

    def __init__(self, architecture: Architecture, *, is_folded: bool) -> None:
        self._root, self._scales, self._folded = architecture.root, architecture.scales, is_folded
        self.found: dict[str, tuple[int, ...]] = {}

    def inputs(self, side: int, channels: int, name: str) -> Any:
        return _Grid(side, channels)

    def side(self, x: Any) -> int:
        return int(x.rows)

    def channels(self, x: Any) -> int:
        return int(x.depth)

    def convolution(
        self,
        x: Any,
        name: str,
        filters: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: Padding = "same",
        *,
        linear: bool = False,
    ) -> Any:
        self._note(name, "weights", (*kernel, x.depth, filters), filters)
        return _Grid(_rows(x.rows, max(kernel), stride, padding), filters)

    def depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        self._note(name, "depthwise_weights", (kernel, kernel, x.depth, 1), x.depth)
        return _Grid(_rows(x.rows, kernel, stride, "same"), x.depth)

    def averaged_convolution(self, x: Any, name: str, filters: int) -> Any:
        return self.convolution(x, name, filters, (1, 1))

    def largest(self, x: Any) -> Any:
        return self.average(x, 3, 2, "valid")

    def average(self, x: Any, size: int, stride: int, padding: Padding) -> Any:
        return _Grid(_rows(x.rows, size, stride, padding), x.depth)

    def mean(self, x: Any) -> Any:
        return _Grid(1, x.depth)

    def joined(self, parts: Sequence[Any]) -> Any:
        return _Grid(parts[0].rows, sum(part.depth for part in parts))

    def added(self, one: Any, other: Any) -> Any:
        return one

    def logits(self, x: Any, name: str, classes: int) -> Any:
        self.found[f"{self._root}/{name}/weights"] = (1, 1, x.depth, classes)
        self.found[f"{self._root}/{name}/biases"] = (classes,)
        return _Grid(1, classes)

    def _note(self, name: str, suffix: str, kernel: tuple[int, ...], filters: int) -> None:
        owner = f"{self._root}/{name}"
        self.found[f"{owner}/{suffix}"] = kernel
        kinds = [*(["gamma"] if self._scales else []), "beta", "moving_mean", "moving_variance"]
        names = ["biases"] if self._folded else [f"BatchNorm/{kind}" for kind in kinds]
        self.found |= {f"{owner}/{one}": (filters,) for one in names}


def _rows(rows: int, kernel: int, stride: int, padding: Padding) -> int:
    found = -(-rows // stride) if padding == "same" else (rows - kernel) // stride + 1
    if found < 1:
        raise ValueError(f"a layer of {kernel} x {kernel} is left with {rows} x {rows} pixels")
    return found
