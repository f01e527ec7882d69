"""The MARCO network and its smaller relatives as Keras models, and their weights as plain arrays.

The variables of a model carry the names of the published checkpoint, so that weights are a mapping of those names to
arrays and nothing else. With ``keras.layers`` and ``keras.ops`` alone every Keras backend builds the same network.

Sources: Bruno et al., PLOS ONE 2018 (Table 3); Szegedy et al., arXiv 1512.00567; and the graph of the
published SavedModel, which wins where it differs from the paper because the published weights fit it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import keras
import numpy as np
from keras import layers

from marcod.errors import BundleError
from marcod.model import backend

ROOT: Final = "Inception"
GLOBAL_STEP: Final = "global_step"
_AUXILIARY: Final = f"{ROOT}/AuxLogits/"
_HEAD: Final = "Logits/Conv2d_1c_1x1"
_EPSILON: Final = 0.001
_GRAIN: Final = 8
_MOST: Final = 4096
_WIDEST: Final = 2.0
_NEVER: Final = -1e30
"""A logit that no sum of exponentials notices."""


@dataclass(frozen=True)
class Architecture:
    """Member of the network family; everything that shapes the network and nothing else.

    ``entry`` puts the paper's extra stride-2 layer (``Conv2d_0a_3x3``) in front of Inception-v3. ``limits``
    caps the depth of every layer whose name starts with the key; ``depths`` sets single layers and wins over
    a limit. ``width`` scales all depths afterwards, to multiples of 8. ``auxiliary`` decides if the
    training head on ``Mixed_6e`` is part of the weights. The smallest input is 151 pixels, 75 without ``entry``.
    """

    input_size: int
    classes: int
    entry: bool = True
    width: float = 1.0
    auxiliary: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for bundle.toml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """Invert :meth:`to_dict`. Raises BundleError for a wrong key or too large a network."""
        try:
            made = cls(**values)
            depths = [*made.limits.values(), *made.depths.values()]
            small = max(made.input_size, made.classes, *depths, 0) <= _MOST and 0 < made.width <= _WIDEST
        except (TypeError, AttributeError) as error:
            raise BundleError(f"the bundle's [architecture] cannot be used: {error}") from error
        if not small:
            raise BundleError("the bundle's [architecture] is too large for any network here")
        return made

    def depth(self, layer: str, plain: int) -> int:
        """Return the filters of ``layer``, which has ``plain`` filters in Inception-v3."""
        limit = next((n for prefix, n in self.limits.items() if layer.startswith(prefix)), plain)
        depth = self.depths.get(layer, min(plain, limit))
        if self.width == 1.0:
            return depth
        return max(_GRAIN, _GRAIN * round(depth * self.width / _GRAIN))


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

MARCO: Final = Architecture(input_size=599, classes=4, limits=_PAPER_LIMITS, depths=_PUBLISHED_DEPTHS)
"""The published network: 11,476,584 weights, 8,964,068 of them used for scoring; 4.02 GMAC an image."""

MARCO_SMALL: Final = Architecture(
    input_size=160, classes=4, width=0.25, auxiliary=False, limits=_PAPER_LIMITS, depths=_PUBLISHED_DEPTHS
)
"""A quarter of the published depths at 160 pixels: small enough to ship and to train on two cores."""


def build(architecture: Architecture, *, auxiliary: bool = False) -> Any:
    """Build a fresh ``keras.Model`` from float32 [n, size, size, 3] in -1..1 to logits float32 [n, classes].

    With ``auxiliary`` the outputs are ``[logits, auxiliary logits]``, for training. The softmax is left to the
    caller because the temperature belongs in front of it. Raises BundleError when the input is too small.
    """
    if auxiliary and not architecture.auxiliary:
        raise BundleError("this architecture has no auxiliary head; build it without one")
    return _assemble(_Layers(architecture), auxiliary=auxiliary)


def compiled(
    architecture: Architecture, weights: Mapping[str, np.ndarray], batch_size: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile the network with ``weights`` to a function from float32 [n, size, size, 3] to logits [n, classes].

    Compiled as by :func:`backend.scoring`. Batch normalization is folded into the convolutions and averages are
    taken after 1x1 convolutions, which changes no score by more than 1e-6 and saves a fifth of the time. Raises
    BundleError as :func:`build` and :func:`set_variables` do.
    """
    return backend.scoring(_folded_model(architecture, weights), batch_size)


def compiled_features(
    architecture: Architecture, weights: Mapping[str, np.ndarray], batch_size: int
) -> backend.Scoring:
    """Compile the network up to its last layer: float32 [n, size, size, 3] to features [n, features].

    ``features @ head + bias`` are the logits, with :func:`head`. Compiled and raising as :func:`compiled`.
    """
    model = _folded_model(architecture, weights)
    pooled = layers.Flatten()(model.get_layer(_HEAD.replace("/", ".")).input)
    return backend.scoring(keras.Model(model.inputs, pooled), batch_size)


def head(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the last, linear layer: float32 [features, classes] and float32 [classes]."""
    return weights[f"{ROOT}/{_HEAD}/weights"][0, 0], weights[f"{ROOT}/{_HEAD}/biases"]


def with_head(weights: Mapping[str, np.ndarray], kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Replace the last layer by one in the form of :func:`head`."""
    new = {f"{ROOT}/{_HEAD}/weights": kernel[np.newaxis, np.newaxis], f"{ROOT}/{_HEAD}/biases": bias}
    return {**weights, **{name: np.asarray(value, np.float32) for name, value in new.items()}}


def shifted(weights: Mapping[str, np.ndarray], shift: np.ndarray) -> dict[str, np.ndarray]:
    """Add ``shift`` [classes] to every logit."""
    kernel, bias = head(weights)
    return with_head(weights, kernel, bias + shift)


def saliency(
    architecture: Architecture, weights: Mapping[str, np.ndarray], temperature: float = 1.0
) -> backend.Saliency:
    """Return a function of a batch float32 [n, size, size, 3] and members, bool [classes]: the slope of a score.

    It returns the logits [n, classes], and the gradient with respect to the batch, float32 of its shape, of
    ``logsumexp(logits / temperature)`` over the member classes: for a single one, of its logit. Compiled at its first
    call for that n. Raises BundleError as :func:`compiled` does, or for a backend without gradients here.
    """
    model = _folded_model(architecture, weights)

    def score(logits: Any, members: Any) -> Any:
        chosen = keras.ops.where(members, logits / temperature, _NEVER)
        return keras.ops.sum(keras.ops.logsumexp(chosen, axis=1))

    return backend.gradient(model, score)


def _folded_model(architecture: Architecture, weights: Mapping[str, np.ndarray]) -> Any:
    model = _assemble(_Layers(architecture, folded=True), auxiliary=False)
    set_variables(model, _folded(weights))
    return model


def variables(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of ``model`` as float32 arrays under their checkpoint names, in layer order."""
    return {name: np.asarray(keras.ops.convert_to_numpy(v)) for name, v in _named(model).items()}


def variable_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """List checkpoint name and shape of every weight, in layer order, without copying any."""
    return {name: tuple(v.shape) for name, v in _named(model).items()}


def is_auxiliary(name: str) -> bool:
    """Check that a weight belongs to the auxiliary head, which scoring does without."""
    return name.startswith(_AUXILIARY)


def set_variables(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Set every weight of ``model`` from arrays under checkpoint names.

    Weights of the auxiliary head and the step counter may be left over. Raises BundleError naming the
    first weight that is missing, unknown, of another shape, or not finite.
    """
    wanted = _named(model)
    spare = [n for n in values if n not in wanted and n != GLOBAL_STEP and not is_auxiliary(n)]
    if spare:
        raise BundleError(f"the weights hold {spare[0]}, which this architecture does not have")
    for name, variable in wanted.items():
        if name not in values:
            raise BundleError(f"the weights lack {name}")
        value = values[name]
        if value.shape != tuple(variable.shape):
            raise BundleError(f"{name} has shape {value.shape}; this architecture needs {tuple(variable.shape)}")
        if not np.isfinite(value).all():
            raise BundleError(f"{name} holds values that are not finite numbers")
        variable.assign(value)


def _folded(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fold batch norm into the weights of convolutions with bias; the network computes the same."""
    folded = {}
    for name, value in weights.items():
        owner, _, kind = name.rpartition("/")
        if f"{owner}/BatchNorm/beta" in weights and kind == "weights":
            beta, mean, variance = (_batch_norm(weights, owner, k) for k in ("beta", "moving_mean", "moving_variance"))
            with np.errstate(invalid="ignore"):
                scale = 1 / np.sqrt(variance + _EPSILON)
            folded[name] = (value * scale).astype(np.float32)
            folded[f"{owner}/biases"] = (beta - mean * scale).astype(np.float32)
        elif not owner.endswith("/BatchNorm"):
            folded[name] = value
    return folded


def _batch_norm(weights: Mapping[str, np.ndarray], owner: str, kind: str) -> np.ndarray:
    name = f"{owner}/BatchNorm/{kind}"
    if name not in weights:
        raise BundleError(f"the weights lack {name}")
    value, filters = weights[name], weights[f"{owner}/weights"].shape[-1:]
    if value.shape != filters:
        raise BundleError(f"{name} has shape {value.shape}; its convolution has shape {filters}")
    if not np.isfinite(value).all():
        raise BundleError(f"{name} holds values that are not finite numbers")
    return value.astype(np.float64)


_SUFFIXES: Final = {"kernel": "weights", "bias": "biases"}


def _named(model: Any) -> dict[str, Any]:
    """Map checkpoint names to Keras variables. Keras forbids slashes in layer names, so they are dots there."""
    found = {}
    for layer in model.layers:
        for variable in layer.weights:
            suffix = _SUFFIXES.get(variable.name, variable.name)
            found[f"{ROOT}/{layer.name.replace('.', '/')}/{suffix}"] = variable
    return found


# Drawn by NumPy, as JAX compiles a program for every shape that it draws, which takes it most of a minute.
def _he_normal(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Draw from He et al., arXiv 1502.01852, cut off at two standard deviations, by Keras' seed."""
    values = np.random.standard_normal(shape)
    while (far := np.abs(values) > 2).any():
        values[far] = np.random.standard_normal(int(far.sum()))
    return np.asarray(values * np.sqrt(2 / np.prod(shape[:-1])) / _SPREAD, np.float32)


_SPREAD: Final = 0.87962566103423978
"""Standard deviation of a normal distribution cut off at two of its own."""


def _zeros(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Initialize with zeros a network whose weights are about to be set."""
    return np.zeros(shape, np.float32)


class _Layers:
    """Factory of the two kinds of layers, named and sized by the architecture."""

    def __init__(self, architecture: Architecture, *, folded: bool = False) -> None:
        self.architecture = architecture
        self._folded = folded
        self._initial = _zeros if folded else _he_normal

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
        x = layers.BatchNormalization(scale=False, epsilon=_EPSILON, momentum=0.99, name=f"{layer}.BatchNorm")(x)
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
        """Add a 1x1 convolution with bias over a 1x1 grid, to [n, classes]; float32 under mixed precision too."""
        layer = name.replace("/", ".")
        sized = {"filters": self.architecture.classes, "kernel_size": 1, "dtype": "float32"}
        x = layers.Conv2D(**sized, kernel_initializer=self._initial, name=layer)(x)
        return layers.Reshape((self.architecture.classes,), dtype="float32", name=f"{layer}.Squeeze")(x)


def _assemble(net: _Layers, *, auxiliary: bool) -> Any:
    size = net.architecture.input_size
    inputs = keras.Input((size, size, 3), name="image")
    try:
        middle = _middle(net, _stem(net, inputs))
        logits = _head(net, _bottom(net, middle))
    except ValueError as error:
        raise BundleError(f"an input of {size} pixels is too small: {error}") from error
    outputs = [logits, _auxiliary_head(net, middle)] if auxiliary else logits
    return keras.Model(inputs, outputs, name=ROOT)


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
    return net.logits(layers.GlobalAveragePooling2D(keepdims=True)(x), _HEAD)


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
