"""The published MARCO network and its smaller relatives: Inception-v3 with an extra layer in front and capped depths.

Sources: Bruno et al., PLOS ONE 2018 (Table 3); Szegedy et al., arXiv 1512.00567; and the graph of the
published SavedModel, which wins where it differs from the paper because the published weights fit it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import keras
from keras import layers

from marcod.model.architecture import EPSILON, HEAD, MOMENTUM, MOST, Architecture, add_logits, he_normal, zeros

_GRAIN: Final = 8
_WIDEST: Final = 2.0


@dataclass(frozen=True)
class Inception(Architecture):
    """Member of the Inception family.

    ``entry`` puts the paper's extra stride-2 layer (``Conv2d_0a_3x3``) in front of Inception-v3. ``limits``
    caps the depth of every layer whose name starts with the key; ``depths`` sets single layers and wins over
    a limit. ``width`` scales all depths afterwards, to multiples of 8. ``auxiliary`` decides if the
    training head on ``Mixed_6e`` is part of the weights. The smallest input is 151 pixels, 75 without ``entry``.
    """

    auxiliary: bool = True
    entry: bool = True
    width: float = 1.0
    limits: Mapping[str, int] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)

    family: ClassVar[str] = "inception"
    root: ClassVar[str] = "Inception"
    trains_auxiliary: ClassVar[bool] = True

    def is_usable(self) -> bool:
        """Check the depths as well."""
        deepest = max([*self.limits.values(), *self.depths.values()], default=0)
        return super().is_usable() and deepest <= MOST and 0 < self.width <= _WIDEST

    def depth(self, layer: str, plain: int) -> int:
        """Return the filters of ``layer``, which has ``plain`` filters in Inception-v3."""
        limit = next((n for prefix, n in self.limits.items() if layer.startswith(prefix)), plain)
        depth = self.depths.get(layer, min(plain, limit))
        if self.width == 1.0:
            return depth
        return max(_GRAIN, _GRAIN * round(depth * self.width / _GRAIN))

    def assemble(self, *, folded: bool, auxiliary: bool) -> Any:
        """Assemble as the published graph has its layers."""
        net = _Layers(self, folded=folded)
        inputs = keras.Input((self.input_size, self.input_size, 3), name="image")
        middle = _middle(net, _stem(net, inputs))
        logits = _head(net, _bottom(net, middle))
        outputs = [logits, _auxiliary_head(net, middle)] if auxiliary else logits
        return keras.Model(inputs, outputs, name=self.root)


# The paper's Table 3. The three groups under `depths` are what the published weights have instead of it:
# a layer the table does not list, two where the limit was not applied, and two pooling branches.
_PAPER_LIMITS: Final = {
    "Conv2d_4a_3x3": 144,
    "Mixed_6b": 128,
    "Mixed_6c": 144,
    "Mixed_6d": 144,
    "Mixed_6e": 96,
    "Mixed_7a": 96,
    "Mixed_7b": 192,
    "Mixed_7c": 192,
}
_PUBLISHED_DEPTHS: Final = {
    "Mixed_6a/Branch_0/Conv2d_1a_1x1": 256,
    "Mixed_6c/Branch_2/Conv2d_0b_7x1": 160,
    "Mixed_6e/Branch_2/Conv2d_0a_1x1": 192,
    "Mixed_7b/Branch_3/Conv2d_0b_1x1": 96,
    "Mixed_7c/Branch_3/Conv2d_0b_1x1": 96,
}

MARCO: Final = Inception(input_size=599, classes=4, limits=_PAPER_LIMITS, depths=_PUBLISHED_DEPTHS)
"""The published network: 11,476,584 weights, 8,964,068 of them used for scoring; 4.02 GMAC an image."""

MARCO_SMALL: Final = Inception(
    input_size=160, classes=4, width=0.25, auxiliary=False, limits=_PAPER_LIMITS, depths=_PUBLISHED_DEPTHS
)
"""A quarter of the published depths at 160 pixels: small enough to ship and to train on two cores."""


class _Layers:
    """Factory of the two kinds of layers, named and sized by the architecture."""

    def __init__(self, architecture: Inception, *, folded: bool) -> None:
        self.architecture = architecture
        self._folded = folded
        self._initial = zeros if folded else he_normal

    def conv(
        self, x: Any, name: str, plain: int, kernel: tuple[int, int], stride: int = 1, padding: str = "same"
    ) -> Any:
        """Add convolution without bias, batch norm without scale, ReLU; folded, a convolution with bias and ReLU."""
        layer = name.replace("/", ".")
        x = layers.Conv2D(
            self.architecture.depth(name, plain), kernel, strides=stride, padding=padding,
            use_bias=self._folded, activation="relu" if self._folded else None,
            kernel_initializer=self._initial, name=layer,
        )(x)  # fmt: skip
        if self._folded:
            return x
        x = layers.BatchNormalization(scale=False, epsilon=EPSILON, momentum=MOMENTUM, name=f"{layer}.BatchNorm")(x)
        return layers.ReLU(name=f"{layer}.Relu")(x)

    def pooled(self, x: Any, name: str, plain: int) -> Any:
        """Add 3x3 average, then a 1x1 convolution; folded, the cheaper other way round, which is the same sum."""
        if not self._folded:
            return self.conv(layers.AveragePooling2D(3, 1, "same")(x), name, plain, (1, 1))
        layer = name.replace("/", ".")
        x = layers.Conv2D(self.architecture.depth(name, plain), 1, kernel_initializer=self._initial, name=layer)(x)
        # The average leaves the padding out, so the bias may come first; the ReLU may not.
        return layers.ReLU(name=f"{layer}.Relu")(layers.AveragePooling2D(3, 1, "same")(x))

    def logits(self, x: Any, name: str) -> Any:
        """Add a linear layer over a 1x1 grid."""
        return add_logits(x, name, self.architecture.classes, self._initial)


def _stem(net: _Layers, x: Any) -> Any:
    if net.architecture.entry:
        x = net.conv(x, "Conv2d_0a_3x3", 16, (3, 3), 2, "valid")
    x = net.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "valid")
    x = net.conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "valid")
    x = net.conv(x, "Conv2d_2b_3x3", 64, (3, 3))
    x = layers.MaxPooling2D(3, 2)(x)
    x = net.conv(x, "Conv2d_3b_1x1", 80, (1, 1), 1, "valid")
    x = net.conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "valid")
    return layers.MaxPooling2D(3, 2)(x)


def _middle(net: _Layers, x: Any) -> Any:
    x = _mixed_5(net, x, "Mixed_5b", 32, "Conv2d_0a_1x1", "Conv2d_0b_5x5")
    x = _mixed_5(net, x, "Mixed_5c", 64, "Conv2d_0b_1x1", "Conv_1_0c_5x5")
    x = _mixed_5(net, x, "Mixed_5d", 64, "Conv2d_0a_1x1", "Conv2d_0b_5x5")
    x = _mixed_6a(net, x)
    for block, plain in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _mixed_6(net, x, block, plain)
    return x


def _bottom(net: _Layers, x: Any) -> Any:
    x = _mixed_7a(net, x)
    x = _mixed_7(net, x, "Mixed_7b", "Conv2d_0b_3x1")
    return _mixed_7(net, x, "Mixed_7c", "Conv2d_0c_3x1")


def _mixed_5(net: _Layers, x: Any, block: str, pooled: int, first: str, second: str) -> Any:
    """Build a 35x35 block. ``first`` and ``second`` are the published names in Branch_1, odd in Mixed_5c."""
    conv = _in_block(net, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 64, (1, 1))
    b = conv(x, f"Branch_1/{first}", 48, (1, 1))
    b = conv(b, f"Branch_1/{second}", 64, (5, 5))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", 64, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_3x3", 96, (3, 3))
    c = conv(c, "Branch_2/Conv2d_0c_3x3", 96, (3, 3))
    d = net.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", pooled)
    return layers.Concatenate()([a, b, c, d])


def _mixed_6a(net: _Layers, x: Any) -> Any:
    """Reduce 35x35 to 17x17. Two layers are named 1x1 and are 3x3, in the checkpoint as here."""
    conv = _in_block(net, "Mixed_6a")
    a = conv(x, "Branch_0/Conv2d_1a_1x1", 384, (3, 3), 2, "valid")
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 64, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_3x3", 96, (3, 3))
    b = conv(b, "Branch_1/Conv2d_1a_1x1", 96, (3, 3), 2, "valid")
    return layers.Concatenate()([a, b, layers.MaxPooling2D(3, 2)(x)])


def _mixed_6(net: _Layers, x: Any, block: str, plain: int) -> Any:
    """Build a 17x17 block, its convolutions split into rows and columns."""
    conv = _in_block(net, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 192, (1, 1))
    b = conv(x, "Branch_1/Conv2d_0a_1x1", plain, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_1x7", plain, (1, 7))
    b = conv(b, "Branch_1/Conv2d_0c_7x1", 192, (7, 1))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", plain, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_7x1", plain, (7, 1))
    c = conv(c, "Branch_2/Conv2d_0c_1x7", plain, (1, 7))
    c = conv(c, "Branch_2/Conv2d_0d_7x1", plain, (7, 1))
    c = conv(c, "Branch_2/Conv2d_0e_1x7", 192, (1, 7))
    d = net.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", 192)
    return layers.Concatenate()([a, b, c, d])


def _mixed_7a(net: _Layers, x: Any) -> Any:
    """Reduce 17x17 to 8x8."""
    conv = _in_block(net, "Mixed_7a")
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 192, (1, 1))
    a = conv(a, "Branch_0/Conv2d_1a_3x3", 320, (3, 3), 2, "valid")
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 192, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_1x7", 192, (1, 7))
    b = conv(b, "Branch_1/Conv2d_0c_7x1", 192, (7, 1))
    b = conv(b, "Branch_1/Conv2d_1a_3x3", 192, (3, 3), 2, "valid")
    return layers.Concatenate()([a, b, layers.MaxPooling2D(3, 2)(x)])


def _mixed_7(net: _Layers, x: Any, block: str, column: str) -> Any:
    """Build an 8x8 block; ``column`` is the published name of Branch_1's 3x1 layer, different in the two blocks."""
    conv = _in_block(net, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 320, (1, 1))
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 384, (1, 1))
    b1 = conv(b, "Branch_1/Conv2d_0b_1x3", 384, (1, 3))
    b2 = conv(b, f"Branch_1/{column}", 384, (3, 1))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", 448, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_3x3", 384, (3, 3))
    c1 = conv(c, "Branch_2/Conv2d_0c_1x3", 384, (1, 3))
    c2 = conv(c, "Branch_2/Conv2d_0d_3x1", 384, (3, 1))
    d = net.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", 192)
    return layers.Concatenate()([a, b1, b2, c1, c2, d])


def _head(net: _Layers, x: Any) -> Any:
    """Average over the whole grid, 8x8 in the published graph, then apply one linear layer."""
    return net.logits(layers.GlobalAveragePooling2D(keepdims=True)(x), HEAD)


def _auxiliary_head(net: _Layers, x: Any) -> Any:
    """Build the second classifier on Mixed_6e. Its 5x5 layer shrinks with the grid and, like slim's, in name too."""
    x = layers.AveragePooling2D(min(5, x.shape[1]), 3)(x)
    x = net.conv(x, "AuxLogits/Conv2d_1b_1x1", 128, (1, 1))
    side = min(5, x.shape[1])
    x = net.conv(x, f"AuxLogits/Conv2d_2a_{side}x{side}", 768, (side, side), 1, "valid")
    return net.logits(layers.GlobalAveragePooling2D(keepdims=True)(x), "AuxLogits/Conv2d_2b_1x1")


def _in_block(net: _Layers, block: str) -> Callable[..., Any]:
    def conv(x: Any, name: str, *args: Any) -> Any:
        return net.conv(x, f"{block}/{name}", *args)

    return conv
