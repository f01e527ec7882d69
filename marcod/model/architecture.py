"""Architecture of a network: a record of everything that shapes it.

A family is a subclass of :class:`Architecture` that puts its network together of
:class:`marcod.model.network_layers.NetworkLayers`, so that one description serves Keras and OpenVINO.
Nothing here imports either.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy as np

from marcod.model.network_layers import NetworkLayers

MOST: Final = 4096
"""Largest input size, in pixels, and largest depth of a layer."""

EPSILON: Final = 0.001
"""Added to the variance by every batch normalization here."""

HEAD: Final = "Logits/Conv2d_1c_1x1"
"""Name of the last, linear layer in every family."""

MOMENTUM: Final = 0.99


@dataclass(frozen=True)
class Architecture(ABC):
    """Member of a family of networks, which take float32 [n, input_size, input_size, 3] in -1..1.

    ``auxiliary`` decides if a training head is part of the weights; only families with ``trains_auxiliary`` have one.
    ``scales`` says that a family's batch normalization has a gamma, ``ceiling`` where its ReLU ends, None for nowhere.
    """

    input_size: int
    classes: int
    auxiliary: bool = False

    family: ClassVar[str]
    root: ClassVar[str]
    scales: ClassVar[bool]
    ceiling: ClassVar[float | None]
    trains_auxiliary: ClassVar[bool] = False

    @abstractmethod
    def assemble(self, net: NetworkLayers, *, auxiliary: bool = False) -> tuple[Any, Any]:
        """Put the network together; return its input and its logits [n, classes], with ``auxiliary`` a list of two.

        Raises ValueError when the input is too small.
        """

    def is_usable(self) -> bool:
        """Check that no number of this record asks for a network that is too large. Raises TypeError for no number."""
        return max(self.input_size, self.classes, 0) <= MOST

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for bundle.toml."""
        return {"family": self.family, **asdict(self)}


# Drawn by NumPy, as JAX compiles a program for every shape that it draws, which takes it most of a minute.
def he_normal(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Draw from He et al., arXiv 1502.01852, cut off at two standard deviations, by Keras' seed."""
    values = np.random.standard_normal(shape)
    while (far := np.abs(values) > 2).any():
        values[far] = np.random.standard_normal(int(far.sum()))
    return np.asarray(values * np.sqrt(2 / np.prod(shape[:-1])) / _SPREAD, np.float32)


_SPREAD: Final = 0.87962566103423978
"""Standard deviation of a normal distribution cut off at two of its own."""


def zeros(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Initialize with zeros a network whose weights are about to be set."""
    return np.zeros(shape, np.float32)
