"""EfficientNet-lite: small networks of depthwise convolutions, whose published weights were trained on ImageNet.

Sources: Tan and Le, arXiv 1905.11946; and the "lite" variants published with its code, which have ReLU6, no
squeeze-and-excitation, and a first and a last convolution that do not grow with the width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model.architecture import EPSILON, HEAD, MOMENTUM, Architecture, add_logits, he_normal, zeros


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

    def assemble(self, *, folded: bool, auxiliary: bool) -> Any:
        """Assemble the network; it has no auxiliary head."""
        if self.input_size < _REDUCTION:
            raise ValueError("the last of five halvings would be left without a pixel")
        inputs = keras.Input((self.input_size, self.input_size, 3), name="image")
        trunk = _assemble_trunk(_Layers(folded), inputs)
        return keras.Model(inputs, self.add_head(trunk, folded=folded), name=self.root)

    def assemble_tail(self) -> Any:
        """Assemble the last block, the last convolution and the head alone, from a grid to logits."""
        side = -(-self.input_size // _REDUCTION)
        inputs = keras.Input((side, side, _STAGES[-2].filters), name="grid")
        net = _Layers(folded=False)
        x = _assemble_block(net, inputs, _LAST_BLOCK, _STAGES[-1], 1)
        return keras.Model(inputs, self.add_head(net.conv(x, "Conv_head", _FEATURES), folded=False), name=self.root)

    def add_head(self, x: Any, *, folded: bool) -> Any:
        """Add the average over the grid and the linear layer."""
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        return add_logits(x, HEAD, self.classes, zeros if folded else he_normal)


LITE0: Final = EfficientNetLite(input_size=224, classes=4)
"""The published network for four classes: 3,376,132 weights, 0.38 GMAC an image."""


class _Layers:
    """Factory of convolutions, batch-normalized or with folded bias, named as they are in the weights."""

    def __init__(self, folded: bool) -> None:
        self._folded = folded
        self._initial = zeros if folded else he_normal

    def conv(self, x: Any, name: str, filters: int, kernel: int = 1, stride: int = 1, *, linear: bool = False) -> Any:
        """Add a plain convolution."""
        layer = layers.Conv2D(
            filters, kernel, strides=stride, padding="same", use_bias=self._folded,
            kernel_initializer=self._initial, name=name.replace("/", "."),
        )  # fmt: skip
        return self._normalize(layer(x), name, linear=linear)

    def depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        """Add a convolution of each channel by itself."""
        layer = layers.DepthwiseConv2D(
            kernel, strides=stride, padding="same", use_bias=self._folded,
            depthwise_initializer=zeros if self._folded else _he_normal_of_each, name=name.replace("/", "."),
        )  # fmt: skip
        return self._normalize(layer(x), name, linear=False)

    def _normalize(self, x: Any, name: str, *, linear: bool) -> Any:
        layer = name.replace("/", ".")
        if not self._folded:
            x = layers.BatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, name=f"{layer}.BatchNorm")(x)
        return x if linear else layers.ReLU(6.0, name=f"{layer}.Relu6")(x)


def _he_normal_of_each(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Draw a depthwise kernel [side, side, channels, 1], whose sums run over one channel."""
    return he_normal((*shape[:2], 1, shape[2])).reshape(shape)


def _assemble_trunk(net: _Layers, x: Any) -> Any:
    x = net.conv(x, "Conv_stem", _STEM, 3, 2)
    number = 0
    for stage in _STAGES:
        for position in range(stage.blocks):
            x = _assemble_block(net, x, f"Block_{number}", stage, stage.stride if position == 0 else 1)
            number += 1
    return net.conv(x, "Conv_head", _FEATURES)


def _assemble_block(net: _Layers, x: Any, name: str, stage: _Stage, stride: int) -> Any:
    """Widen, filter each channel, narrow; and add the input where the shape is the same."""
    filters, inner = int(x.shape[-1]), x
    if stage.expansion > 1:
        inner = net.conv(inner, f"{name}/expand", filters * stage.expansion)
    inner = net.depthwise(inner, f"{name}/depthwise", stage.kernel, stride)
    inner = net.conv(inner, f"{name}/project", stage.filters, linear=True)
    return layers.Add()([x, inner]) if stride == 1 and filters == stage.filters else inner


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
