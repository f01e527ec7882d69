"""Layers that networks are made of, whatever the framework: an architecture is written once, in these words.

Layers are named as the variables of the family's published checkpoint. A tensor ``x`` is the framework's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

Padding = Literal["same", "valid"]


class NetworkLayers(ABC):
    """Factory of layers in one framework.

    A convolution is followed by batch normalization and ReLU, or has both folded into it, as the factory decides.
    """

    @abstractmethod
    def inputs(self, side: int, channels: int, name: str) -> Any:
        """Begin a network with float32 [n, side, side, channels]."""

    @abstractmethod
    def side(self, x: Any) -> int:
        """Return the rows of a square tensor."""

    @abstractmethod
    def channels(self, x: Any) -> int:
        """Return the channels of a tensor."""

    @abstractmethod
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
        """Add a convolution; a ``linear`` one is without ReLU."""

    @abstractmethod
    def depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        """Add a convolution of each channel by itself."""

    @abstractmethod
    def averaged_convolution(self, x: Any, name: str, filters: int) -> Any:
        """Add 3x3 average, then a 1x1 convolution; folded, the cheaper other way round, which is the same sum."""

    @abstractmethod
    def largest(self, x: Any) -> Any:
        """Add the 3x3 maximum with stride 2, without padding."""

    @abstractmethod
    def average(self, x: Any, size: int, stride: int, padding: Padding) -> Any:
        """Add an average over squares; padding is left out of it."""

    @abstractmethod
    def mean(self, x: Any) -> Any:
        """Add the average over the whole grid, which leaves one of 1x1."""

    @abstractmethod
    def joined(self, parts: Sequence[Any]) -> Any:
        """Lay the channels of several tensors one after another."""

    @abstractmethod
    def added(self, one: Any, other: Any) -> Any:
        """Add two tensors of one shape."""

    @abstractmethod
    def logits(self, x: Any, name: str, classes: int) -> Any:
        """Add a linear layer with bias over a 1x1 grid, to [n, classes]; float32 in every precision."""
