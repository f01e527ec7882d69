"""Networks of every family as Keras models, and their weights as plain arrays.

The variables of a model carry the names of the published checkpoint, so that weights are a mapping of those names to
arrays and nothing else. With ``keras.layers`` and ``keras.ops`` alone every Keras backend builds the same network.
"""

from collections.abc import Mapping
from typing import Any, Final

import keras
import numpy as np
from keras import layers

from marcod.domain import Precision
from marcod.errors import BundleError
from marcod.model import backend
from marcod.model.architecture import HEAD, Architecture
from marcod.model.efficientnet import EfficientNetLite
from marcod.model.families import FAMILIES
from marcod.model.keras_layers import KerasLayers
from marcod.model.parts import Scoring
from marcod.model.weights import assembled, folded, matched

_HEADS: Final = tuple(f"{family.root}/{HEAD}" for family in FAMILIES.values())
_NEVER: Final = -1e30
"""A logit that no sum of exponentials notices."""


def build(architecture: Architecture, *, auxiliary: bool = False) -> Any:
    """Build a fresh ``keras.Model`` from float32 [n, size, size, 3] in -1..1 to logits float32 [n, classes].

    With ``auxiliary`` the outputs are ``[logits, auxiliary logits]``, for training. The softmax is left to the
    caller because the temperature belongs in front of it. Raises BundleError when the input is too small.
    """
    if auxiliary and not (architecture.auxiliary and architecture.trains_auxiliary):
        raise BundleError("this architecture has no auxiliary head; build it without one")
    return _assemble(architecture, auxiliary=auxiliary)


def _assemble(architecture: Architecture, *, folded: bool = False, auxiliary: bool = False) -> Any:
    net = _layers(architecture, folded=folded)
    return keras.Model(*assembled(architecture, net, auxiliary=auxiliary), name=architecture.root)


def build_tail(architecture: EfficientNetLite) -> Any:
    """Build the last layers of a network alone, from a grid of features to logits."""
    return keras.Model(*architecture.assemble_tail(_layers(architecture)), name=architecture.root)


def _layers(architecture: Architecture, *, folded: bool = False) -> KerasLayers:
    return KerasLayers(folded=folded, scales=architecture.scales, ceiling=architecture.ceiling)


def compiled(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    batch_size: int | None = None,
    precision: Precision = Precision.FLOAT32,
) -> Scoring:
    """Compile the network with ``weights`` to a function from float32 [n, size, size, 3] to logits [n, classes].

    Compiled as by :func:`backend.scoring`. Batch normalization is folded into the convolutions and averages are
    taken after 1x1 convolutions, which changes no score by more than 1e-6 and saves a fifth of the time. The last
    layer is float32 in every precision. Raises BundleError as :func:`build` and :func:`set_variables` do, and
    HostLacksError where this host has not that precision.
    """
    with backend.dtype_policy(backend.policy_of(precision)):
        model = _folded_model(architecture, weights)
    return backend.scoring(model, batch_size)


def compiled_features(architecture: Architecture, weights: Mapping[str, np.ndarray], batch_size: int) -> Scoring:
    """Compile the network up to its last layer: float32 [n, size, size, 3] to features [n, features].

    ``features @ head + bias`` are the logits, with :func:`head`. Compiled and raising as :func:`compiled`.
    """
    score = compiled_until(architecture, weights, HEAD, batch_size)
    return lambda batch: score(batch).reshape(len(batch), -1)


def compiled_until(
    architecture: Architecture, weights: Mapping[str, np.ndarray], layer: str, batch_size: int
) -> Scoring:
    """Compile the network up to the input of a layer: float32 [n, size, size, 3] to [n, side, side, channels].

    Compiled and raising as :func:`compiled`.
    """
    model = _folded_model(architecture, weights)
    return backend.scoring(keras.Model(model.inputs, model.get_layer(layer.replace("/", ".")).input), batch_size)


def head(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the last, linear layer: float32 [features, classes] and float32 [classes]."""
    name = _head_name(weights)
    return weights[f"{name}/weights"][0, 0], weights[f"{name}/biases"]


def with_head(weights: Mapping[str, np.ndarray], kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Replace the last layer by one in the form of :func:`head`."""
    name = _head_name(weights)
    new = {f"{name}/weights": kernel[np.newaxis, np.newaxis], f"{name}/biases": bias}
    return {**weights, **{name: np.asarray(value, np.float32) for name, value in new.items()}}


def _head_name(weights: Mapping[str, np.ndarray]) -> str:
    return next(name for name in _HEADS if f"{name}/biases" in weights)


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
    model = _assemble(architecture, folded=True)
    set_variables(model, folded(weights))
    return model


def variables(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of ``model`` as float32 arrays under their checkpoint names, in layer order."""
    return {name: np.asarray(keras.ops.convert_to_numpy(v)) for name, v in _named(model).items()}


def variable_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """List checkpoint name and shape of every weight, in layer order, without copying any."""
    return {name: tuple(v.shape) for name, v in _named(model).items()}


def set_variables(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Set every weight of ``model`` from arrays under checkpoint names.

    Weights of the auxiliary head and the step counter may be left over. Raises BundleError naming the
    first weight that is missing, unknown, of another shape, or not finite.
    """
    found = _named(model)
    for name, value in matched({name: tuple(variable.shape) for name, variable in found.items()}, values):
        found[name].assign(value)


_SUFFIXES: Final = {"kernel": "weights", "bias": "biases"}


def _named(model: Any) -> dict[str, Any]:
    """Map checkpoint names to Keras variables. Keras forbids slashes in layer names, so they are dots there."""
    found = {}
    for layer in model.layers:
        depthwise = "depthwise_" if isinstance(layer, layers.DepthwiseConv2D) else ""
        for variable in layer.weights:
            suffix = _SUFFIXES.get(variable.name, variable.name)
            suffix = f"{depthwise}{suffix}" if suffix == "weights" else suffix
            found[f"{model.name}/{layer.name.replace('.', '/')}/{suffix}"] = variable
    return found
