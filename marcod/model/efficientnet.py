"""EfficientNet-lite: small networks of depthwise convolutions, whose published weights were trained on ImageNet.

Sources: Tan and Le, arXiv 1905.11946; and the "lite" variants published with its code, which have ReLU6, no
squeeze-and-excitation, and a first and a last convolution that do not grow with the width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model.architecture import HEAD, Architecture
from marcod.model.network_layers import NetworkLayers


class _Stage(NamedTuple):
    """Blocks of one width: how many, side of the kernel, stride of the first, expansion, filters."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_STAGES: Final = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)

_POINT: Final = (1, 1)
_STEM: Final = 32
_REDUCTION: Final = 32
_FEATURES: Final = 1280
BLOCKS: Final = sum(stage.blocks for stage in _STAGES)

_LAST_BLOCK: Final = f"Block_{BLOCKS - 1}"

GRID: Final = f"{_LAST_BLOCK}/expand"
"""Layer whose input is the trunk's output, a grid of features."""


@dataclass(frozen=True)
class EfficientNetLite(Architecture):
    """EfficientNet-lite0 at any input size of at least 32 pixels."""

    family: ClassVar[str] = "efficientnet-lite0"
    root: ClassVar[str] = "EfficientNetLite"
    scales: ClassVar[bool] = True
    ceiling: ClassVar[float | None] = 6.0

    def assemble(self, net: NetworkLayers, *, auxiliary: bool = False) -> tuple[Any, Any]:
        """Put the network together; it has no auxiliary head."""
        if self.input_size < _REDUCTION:
            raise ValueError("the last of five halvings would be left without a pixel")
        inputs = net.inputs(self.input_size, 3, "image")
        return inputs, self._head(net, _trunk(net, inputs))

    def assemble_tail(self, net: NetworkLayers) -> tuple[Any, Any]:
        """Put the last block, the last convolution and the head together alone, from a grid to logits."""
        inputs = net.inputs(-(-self.input_size // _REDUCTION), _STAGES[-2].filters, "grid")
        x = _block(net, inputs, _LAST_BLOCK, _STAGES[-1], 1)
        return inputs, self._head(net, net.convolution(x, "Conv_head", _FEATURES, _POINT))

    def _head(self, net: NetworkLayers, x: Any) -> Any:
        return net.logits(net.mean(x), HEAD, self.classes)


LITE0: Final = EfficientNetLite(input_size=224, classes=4)
"""The published network for four classes: 3,376,132 weights, 0.38 GMAC an image."""


def _trunk(net: NetworkLayers, x: Any) -> Any:
    x = net.convolution(x, "Conv_stem", _STEM, (3, 3), 2)
    number = 0
    for stage in _STAGES:
        for position in range(stage.blocks):
            x = _block(net, x, f"Block_{number}", stage, stage.stride if position == 0 else 1)
            number += 1
    return net.convolution(x, "Conv_head", _FEATURES, _POINT)


def _block(net: NetworkLayers, x: Any, name: str, stage: _Stage, stride: int) -> Any:
    """Widen, filter each channel, narrow; and add the input where the shape is the same."""
    filters, inner = net.channels(x), x
    if stage.expansion > 1:
        inner = net.convolution(inner, f"{name}/expand", filters * stage.expansion, _POINT)
    inner = net.depthwise(inner, f"{name}/depthwise", stage.kernel, stride)
    inner = net.convolution(inner, f"{name}/project", stage.filters, _POINT, linear=True)
    return net.added(x, inner) if stride == 1 and filters == stage.filters else inner


_NORMS: Final = {"beta": "bias", "gamma": "weight", "moving_mean": "running_mean", "moving_variance": "running_var"}


def from_published(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Rename and transpose the published arrays, [out, in, height, width] each, to this network's weights.

    The last, linear layer is left out, since its classes are ImageNet's. Raises BundleError naming what is missing.
    """
    convolutions = {"Conv_stem": ("_conv_stem", "_bn0"), "Conv_head": ("_conv_head", "_bn1")}
    for number in range(BLOCKS):
        ours, theirs = f"Block_{number}", f"_blocks.{number}"
        if number:
            convolutions[f"{ours}/expand"] = f"{theirs}._expand_conv", f"{theirs}._bn0"
        convolutions[f"{ours}/depthwise"] = f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        convolutions[f"{ours}/project"] = f"{theirs}._project_conv", f"{theirs}._bn2"
    found: dict[str, NDArray[np.float32]] = {}
    try:
        for name, (kernel, norm) in convolutions.items():
            depthwise = name.endswith("depthwise")
            suffix, axes = ("depthwise_weights", (2, 3, 0, 1)) if depthwise else ("weights", (2, 3, 1, 0))
            values = {suffix: arrays[f"{kernel}.weight"].transpose(axes)}
            values |= {f"BatchNorm/{ours}": arrays[f"{norm}.{theirs}"] for ours, theirs in _NORMS.items()}
            found |= {f"{EfficientNetLite.root}/{name}/{key}": value for key, value in values.items()}
    except KeyError as error:
        raise BundleError(f"the published weights lack {error.args[0]}") from error
    return found
