"""The published MARCO network and its smaller relatives: Inception-v3 with an extra layer in front and capped depths.

Sources: Bruno et al., PLOS ONE 2018 (Table 3); Szegedy et al., arXiv 1512.00567; and the graph of the
published SavedModel, which wins where it differs from the paper because the published weights fit it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from marcod.model.architecture import HEAD, MOST, Architecture
from marcod.model.network_layers import NetworkLayers, Padding

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
    scales: ClassVar[bool] = False
    ceiling: ClassVar[float | None] = None
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

    def assemble(self, net: NetworkLayers, *, auxiliary: bool = False) -> tuple[Any, Any]:
        """Put the network together as the published graph has its layers."""
        sized = _Sized(self, net)
        inputs = net.inputs(self.input_size, 3, "image")
        middle = _middle(sized, _stem(sized, inputs))
        logits = _head(sized, _bottom(sized, middle))
        return inputs, [logits, _auxiliary_head(sized, middle)] if auxiliary else logits


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


class _Sized:
    """Layers of this family: a convolution is as deep as the architecture says."""

    def __init__(self, architecture: Inception, net: NetworkLayers) -> None:
        self.architecture, self.net = architecture, net

    def conv(
        self, x: Any, name: str, plain: int, kernel: tuple[int, int], stride: int = 1, padding: Padding = "same"
    ) -> Any:
        """Add a convolution that has ``plain`` filters in Inception-v3."""
        return self.net.convolution(x, name, self.architecture.depth(name, plain), kernel, stride, padding)

    def pooled(self, x: Any, name: str, plain: int) -> Any:
        """Add 3x3 average and a 1x1 convolution."""
        return self.net.averaged_convolution(x, name, self.architecture.depth(name, plain))

    def logits(self, x: Any, name: str) -> Any:
        """Add the average over the grid and a linear layer."""
        return self.net.logits(self.net.mean(x), name, self.architecture.classes)


def _stem(made: _Sized, x: Any) -> Any:
    if made.architecture.entry:
        x = made.conv(x, "Conv2d_0a_3x3", 16, (3, 3), 2, "valid")
    x = made.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "valid")
    x = made.conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "valid")
    x = made.conv(x, "Conv2d_2b_3x3", 64, (3, 3))
    x = made.net.largest(x)
    x = made.conv(x, "Conv2d_3b_1x1", 80, (1, 1), 1, "valid")
    x = made.conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "valid")
    return made.net.largest(x)


def _middle(made: _Sized, x: Any) -> Any:
    x = _mixed_5(made, x, "Mixed_5b", 32, "Conv2d_0a_1x1", "Conv2d_0b_5x5")
    x = _mixed_5(made, x, "Mixed_5c", 64, "Conv2d_0b_1x1", "Conv_1_0c_5x5")
    x = _mixed_5(made, x, "Mixed_5d", 64, "Conv2d_0a_1x1", "Conv2d_0b_5x5")
    x = _mixed_6a(made, x)
    for block, plain in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _mixed_6(made, x, block, plain)
    return x


def _bottom(made: _Sized, x: Any) -> Any:
    x = _mixed_7a(made, x)
    x = _mixed_7(made, x, "Mixed_7b", "Conv2d_0b_3x1")
    return _mixed_7(made, x, "Mixed_7c", "Conv2d_0c_3x1")


def _mixed_5(made: _Sized, x: Any, block: str, pooled: int, first: str, second: str) -> Any:
    """Build a 35x35 block. ``first`` and ``second`` are the published names in Branch_1, odd in Mixed_5c."""
    conv = _in_block(made, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 64, (1, 1))
    b = conv(x, f"Branch_1/{first}", 48, (1, 1))
    b = conv(b, f"Branch_1/{second}", 64, (5, 5))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", 64, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_3x3", 96, (3, 3))
    c = conv(c, "Branch_2/Conv2d_0c_3x3", 96, (3, 3))
    d = made.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", pooled)
    return made.net.joined([a, b, c, d])


def _mixed_6a(made: _Sized, x: Any) -> Any:
    """Reduce 35x35 to 17x17. Two layers are named 1x1 and are 3x3, in the checkpoint as here."""
    conv = _in_block(made, "Mixed_6a")
    a = conv(x, "Branch_0/Conv2d_1a_1x1", 384, (3, 3), 2, "valid")
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 64, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_3x3", 96, (3, 3))
    b = conv(b, "Branch_1/Conv2d_1a_1x1", 96, (3, 3), 2, "valid")
    return made.net.joined([a, b, made.net.largest(x)])


def _mixed_6(made: _Sized, x: Any, block: str, plain: int) -> Any:
    """Build a 17x17 block, its convolutions split into rows and columns."""
    conv = _in_block(made, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 192, (1, 1))
    b = conv(x, "Branch_1/Conv2d_0a_1x1", plain, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_1x7", plain, (1, 7))
    b = conv(b, "Branch_1/Conv2d_0c_7x1", 192, (7, 1))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", plain, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_7x1", plain, (7, 1))
    c = conv(c, "Branch_2/Conv2d_0c_1x7", plain, (1, 7))
    c = conv(c, "Branch_2/Conv2d_0d_7x1", plain, (7, 1))
    c = conv(c, "Branch_2/Conv2d_0e_1x7", 192, (1, 7))
    d = made.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", 192)
    return made.net.joined([a, b, c, d])


def _mixed_7a(made: _Sized, x: Any) -> Any:
    """Reduce 17x17 to 8x8."""
    conv = _in_block(made, "Mixed_7a")
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 192, (1, 1))
    a = conv(a, "Branch_0/Conv2d_1a_3x3", 320, (3, 3), 2, "valid")
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 192, (1, 1))
    b = conv(b, "Branch_1/Conv2d_0b_1x7", 192, (1, 7))
    b = conv(b, "Branch_1/Conv2d_0c_7x1", 192, (7, 1))
    b = conv(b, "Branch_1/Conv2d_1a_3x3", 192, (3, 3), 2, "valid")
    return made.net.joined([a, b, made.net.largest(x)])


def _mixed_7(made: _Sized, x: Any, block: str, column: str) -> Any:
    """Build an 8x8 block; ``column`` is the published name of Branch_1's 3x1 layer, different in the two blocks."""
    conv = _in_block(made, block)
    a = conv(x, "Branch_0/Conv2d_0a_1x1", 320, (1, 1))
    b = conv(x, "Branch_1/Conv2d_0a_1x1", 384, (1, 1))
    b1 = conv(b, "Branch_1/Conv2d_0b_1x3", 384, (1, 3))
    b2 = conv(b, f"Branch_1/{column}", 384, (3, 1))
    c = conv(x, "Branch_2/Conv2d_0a_1x1", 448, (1, 1))
    c = conv(c, "Branch_2/Conv2d_0b_3x3", 384, (3, 3))
    c1 = conv(c, "Branch_2/Conv2d_0c_1x3", 384, (1, 3))
    c2 = conv(c, "Branch_2/Conv2d_0d_3x1", 384, (3, 1))
    d = made.pooled(x, f"{block}/Branch_3/Conv2d_0b_1x1", 192)
    return made.net.joined([a, b1, b2, c1, c2, d])


def _head(made: _Sized, x: Any) -> Any:
    """Average over the whole grid, 8x8 in the published graph, then apply one linear layer."""
    return made.logits(x, HEAD)


def _auxiliary_head(made: _Sized, x: Any) -> Any:
    """Build the second classifier on Mixed_6e. Its 5x5 layer shrinks with the grid and, like slim's, in name too."""
    x = made.net.average(x, min(5, made.net.side(x)), 3, "valid")
    x = made.conv(x, "AuxLogits/Conv2d_1b_1x1", 128, (1, 1))
    side = min(5, made.net.side(x))
    x = made.conv(x, f"AuxLogits/Conv2d_2a_{side}x{side}", 768, (side, side), 1, "valid")
    return made.logits(x, "AuxLogits/Conv2d_2b_1x1")


def _in_block(made: _Sized, block: str) -> Callable[..., Any]:
    def conv(x: Any, name: str, *args: Any) -> Any:
        return made.conv(x, f"{block}/{name}", *args)

    return conv
