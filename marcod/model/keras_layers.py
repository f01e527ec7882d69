"""Layers in Keras, on any of its backends: trainable with batch normalization, or folded for scoring."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from marcod.model.architecture import EPSILON, MOMENTUM, he_normal, zeros
from marcod.model.network_layers import NetworkLayers, Padding


class KerasLayers(NetworkLayers):
    """Factory of Keras layers, named as in the weights, with dots for slashes, which Keras forbids.

    ``scales`` says that batch normalization has a gamma; ``ceiling`` is where ReLU ends, None for nowhere.
    """

    def __init__(self, *, folded: bool, scales: bool, ceiling: float | None) -> None:
        self._folded, self._scales, self._ceiling = folded, scales, ceiling
        self._initial = zeros if folded else he_normal

    def inputs(self, side: int, channels: int, name: str) -> Any:
        return keras.Input((side, side, channels), name=name)

    def side(self, x: Any) -> int:
        return int(x.shape[1])

    def channels(self, x: Any) -> int:
        return int(x.shape[-1])

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
        inside = self._folded and self._ceiling is None and not linear
        layer = layers.Conv2D(
            filters, kernel, strides=stride, padding=padding, use_bias=self._folded,
            activation="relu" if inside else None, kernel_initializer=self._initial, name=_named(name),
        )  # fmt: skip
        return layer(x) if inside else self._finished(layer(x), name, linear=linear)

    def depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        layer = layers.DepthwiseConv2D(
            kernel, strides=stride, padding="same", use_bias=self._folded,
            depthwise_initializer=zeros if self._folded else _he_normal_of_each, name=_named(name),
        )  # fmt: skip
        return self._finished(layer(x), name, linear=False)

    def averaged_convolution(self, x: Any, name: str, filters: int) -> Any:
        if not self._folded:
            return self.convolution(self.average(x, 3, 1, "same"), name, filters, (1, 1))
        x = layers.Conv2D(filters, 1, kernel_initializer=self._initial, name=_named(name))(x)
        # The average leaves the padding out, so the bias may come first; the ReLU may not.
        return self._rectified(self.average(x, 3, 1, "same"), name)

    def largest(self, x: Any) -> Any:
        return layers.MaxPooling2D(3, 2)(x)

    def average(self, x: Any, size: int, stride: int, padding: Padding) -> Any:
        return layers.AveragePooling2D(size, stride, padding)(x)

    def mean(self, x: Any) -> Any:
        return layers.GlobalAveragePooling2D(keepdims=True)(x)

    def joined(self, parts: Sequence[Any]) -> Any:
        return layers.Concatenate()(list(parts))

    def added(self, one: Any, other: Any) -> Any:
        return layers.Add()([one, other])

    def logits(self, x: Any, name: str, classes: int) -> Any:
        sized = {"filters": classes, "kernel_size": 1, "dtype": "float32"}
        x = layers.Conv2D(**sized, kernel_initializer=self._initial, name=_named(name))(x)
        return layers.Reshape((classes,), dtype="float32", name=f"{_named(name)}.Squeeze")(x)

    def _finished(self, x: Any, name: str, *, linear: bool) -> Any:
        if not self._folded:
            given = {"scale": self._scales, "epsilon": EPSILON, "momentum": MOMENTUM}
            x = layers.BatchNormalization(**given, name=f"{_named(name)}.BatchNorm")(x)
        return x if linear else self._rectified(x, name)

    def _rectified(self, x: Any, name: str) -> Any:
        if self._ceiling is None:
            return layers.ReLU(name=f"{_named(name)}.Relu")(x)
        return layers.ReLU(self._ceiling, name=f"{_named(name)}.Relu{self._ceiling:g}")(x)


def _named(name: str) -> str:
    return name.replace("/", ".")


def _he_normal_of_each(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Draw a depthwise kernel [side, side, channels, 1], whose sums run over one channel."""
    return he_normal((*shape[:2], 1, shape[2])).reshape(shape)
