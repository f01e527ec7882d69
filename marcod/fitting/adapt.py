"""Adaptation of a network to a lab's own images, in small steps.

Batch-norm statistics are re-estimated on the lab's images, the head is trained on the features, new weights are
interpolated with the old ones as validation drops decide, and probabilities are shifted to the lab's natural shares.
Adaptive batch normalization: arXiv 1603.04779. Head first, then all: LP-FT, arXiv 2202.10054. Averaging: WiSE-FT,
arXiv 2109.01903. Shares: Saerens, Latinne and Decaestecker, Neural Computation 14 (2002).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES
from marcod.fitting.checkpoint import Weights
from marcod.model import network, probabilities
from marcod.model.architecture import Architecture
from marcod.model.weights import is_auxiliary

Floats = NDArray[np.float32]
_Given = tuple[Floats, Floats, Floats]

SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the new weights that are tried."""

HEAD_EPOCHS: Final = 60
HEAD_BATCH: Final = 256
HEAD_RATE: Final = 2e-3
HEAD_DECAY: Final = 1e-3
"""How strongly the last layer is held to where it began."""

LARGEST_BOOST: Final = 20.0
"""A rare class counts at most so many times as much as its share would have it."""

FEWEST_OF_DOMAIN: Final = 8
"""Validation images from which a source is a domain of its own when weights are mixed."""

FEWEST_TO_GUARD: Final = 50
"""Validation images from which a loss of accuracy on a domain rules a mix out."""

LEAST_SHARE: Final = 0.02
"""Least natural share of a class; a few hundred images show no less, and it would never be predicted."""


@dataclass(frozen=True)
class Features:
    """Features float32 [n, f] of images by the parent, with soft labels [n, 4] and weights [n]."""

    features: Floats
    targets: Floats
    weights: Floats

    def only(self, chosen: NDArray[Any]) -> "Features":
        """Select rows."""
        return Features(self.features[chosen], self.targets[chosen], self.weights[chosen])


def joined(parts: Sequence[Features]) -> Features:
    """Concatenate several."""
    return Features(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("features", "targets", "weights")))


def balanced(targets: Floats, weights: Floats, groups: NDArray[Any]) -> Floats:
    """Weigh rows so that each group counts the same, and in a group each class; the mean is 1.

    ``groups`` [n] separates the lab's own images from the rehearsal set. Inverse frequency, at most
    :data:`LARGEST_BOOST`.
    """
    found = np.zeros(len(targets), np.float64)
    labels = targets.argmax(axis=1)
    for group in np.unique(groups):
        of_group = groups == group
        total = weights[of_group].sum()
        for index in range(targets.shape[1]):
            chosen = of_group & (labels == index)
            share = weights[chosen].sum() / total if chosen.any() else 0.0
            if share > 0:
                found[chosen] = weights[chosen] / total * min(1 / share, LARGEST_BOOST)
        found[of_group] /= found[of_group].sum()
    return np.asarray(found * len(found) / found.sum(), np.float32)


def shares(targets: Floats, weights: Floats) -> NDArray[np.float64]:
    """Return the share of each class by weight [classes], none of them zero."""
    found = (targets.astype(np.float64) * weights[:, None]).sum(axis=0) + 1e-3
    return np.asarray(found / found.sum())


@dataclass(frozen=True)
class Head:
    """Last layer, float32 [f, classes] and [classes], and its loss after each epoch."""

    kernel: Floats
    bias: Floats
    curve: list[dict[str, float]]

    def logits(self, features: Floats) -> Floats:
        """Return logits float32 [n, classes] of features [n, f]."""
        return np.asarray(features @ self.kernel + self.bias, np.float32)


def fit_head(seen: Features, start: tuple[Floats, Floats], seed: int, validation: Features | None = None) -> Head:
    """Fit a last layer to features, regularized towards ``start``, a kernel and a bias."""
    # Each feature counts the same, however large a network makes it.
    mean, spread = seen.features.mean(axis=0), seen.features.std(axis=0) + 1e-3
    kernel, bias = start[0] * spread[:, None], start[1] + mean @ start[0]
    held = keras.ops.convert_to_tensor(kernel)
    layer = keras.layers.Dense(
        len(bias), kernel_regularizer=lambda k: HEAD_DECAY * keras.ops.sum(keras.ops.square(k - held)), dtype="float32"
    )
    model = keras.Sequential([keras.Input((len(kernel),)), layer])
    layer.set_weights([kernel, bias])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(HEAD_RATE), loss=loss, weighted_metrics=[])

    def given(side: Features) -> _Given:
        return (side.features - mean) / spread, side.targets, side.weights

    judges = None if validation is None else given(validation)
    learned, rng = given(seen), np.random.default_rng(seed)
    curve = [{"epoch": i + 1, **_pass(model, learned, judges, rng)} for i in range(HEAD_EPOCHS)]
    found = np.asarray(layer.get_weights()[0], np.float32) / spread[:, None]
    return Head(found, np.asarray(layer.get_weights()[1] - mean @ found, np.float32), curve)


def _pass(model: Any, learned: _Given, judges: _Given | None, rng: np.random.Generator) -> dict[str, float]:
    """Train one epoch with `train_on_batch`; `model.fit` has more start-up cost than the epoch itself."""
    order = rng.permutation(len(learned[0]))
    parts = [order[start : start + HEAD_BATCH] for start in range(0, len(order), HEAD_BATCH)]
    losses = [model.train_on_batch(*(values[part] for values in learned), return_dict=True)["loss"] for part in parts]
    found = {"loss": float(np.average(losses, weights=[len(part) for part in parts]))}
    if judges is not None:
        found["validation_loss"] = float(model.test_on_batch(*judges, return_dict=True)["loss"])
    return found


def first_head(weights: Mapping[str, Floats], classes: int, *, own: bool) -> tuple[Floats, Floats]:
    """Return the initial last layer: the network's ``own``, or zeros where its classes are not the four."""
    kernel, bias = network.head(weights)
    if own:
        return kernel, bias
    return np.zeros((len(kernel), classes), np.float32), np.zeros(classes, np.float32)


def centred(seen: Features, head: tuple[Floats, Floats], rounds: int = 30) -> tuple[Floats, Floats]:
    """Shift the bias so that each class is predicted as often as it weighs in ``seen``."""
    kernel, bias = head
    logits, wanted = seen.features @ kernel, shares(seen.targets, seen.weights)
    shift = bias.astype(np.float64)
    for _ in range(rounds):
        predicted = np.average(probabilities.softmax(logits + shift), axis=0, weights=seen.weights)
        shift += np.log(wanted / np.maximum(predicted, 1e-9))
    return kernel, np.asarray(shift, np.float32)


def out_of_fold(
    seen: Features, of_fold: NDArray[np.intp], start: tuple[Floats, Floats], seed: int
) -> NDArray[np.float32]:
    """Predict probabilities float32 [n, classes] with last layers that had not seen the row's fold.

    Rows of fold -1, the base set's, are in every training and get none (zeros).
    """
    found = np.zeros(seen.targets.shape, np.float32)
    for fold in sorted(set(of_fold.tolist()) - {-1}):
        inside = of_fold == fold
        head = fit_head(seen.only(~inside), start, seed)
        found[inside] = probabilities.softmax(head.logits(seen.features[inside]))
    return found


def recalibrated_bn(architecture: Architecture, weights: Mapping[str, Floats], batches: Iterable[Floats]) -> Weights:
    """Return the weights with batch-norm means and variances of other images; needs no labels.

    ``batches`` are float32 [n, size, size, 3] of about one size; each counts the same. Raises BundleError when weights
    and architecture do not fit.
    """
    model = network.build(architecture)
    network.set_variables(model, weights)
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for number, batch in enumerate(batches):
        for layer in normalizations:
            # With these the moving average is the mean over all batches so far.
            layer.momentum = number / (number + 1)
        model(batch, training=True)
    return network.variables(model)


def interpolated(old: Mapping[str, Floats], new: Mapping[str, Floats], share: float) -> Weights:
    """Interpolate between the weights of two networks of one shape: ``share`` of the new ones."""
    return {n: np.asarray(old[n] + share * (new[n] - old[n]), np.float32) for n in new if not is_auxiliary(n)}


@dataclass(frozen=True)
class Interpolation:
    """Chosen share of the new weights, and the mean log loss of each share over the validation domains."""

    share: float
    losses: dict[str, float]


def choose_interpolation(
    logits_of: Callable[[float], Floats],
    labels: NDArray[np.intp],
    domains: Sequence[str],
    tried: Sequence[float],
    margin: float,
) -> Interpolation:
    """Choose the share with the least log loss, averaged over domains and in each over classes.

    Shares that lose more than ``margin`` of the accuracy on a domain are left out; the first of ``tried`` is what they
    are compared with. ``logits_of(share)`` are the logits [n, classes] of the validation images.
    """
    names, counts = np.unique(domains, return_counts=True)
    of_name = {str(name): np.array(domains) == name for name in names}
    large = [of_name[name] for name, n in zip(names, counts, strict=True) if n >= FEWEST_OF_DOMAIN]
    guarded = [of_name[name] for name, n in zip(names, counts, strict=True) if n >= FEWEST_TO_GUARD]
    losses, right = {}, {}
    for share in tried:
        scores = probabilities.softmax(logits_of(share))
        loss = -np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12))
        losses[share] = _mean(loss, labels, large or [np.ones(len(labels), bool)])
        right[share] = [_mean(scores.argmax(axis=1) == labels, labels, [part]) for part in guarded]
    first = right[tried[0]]
    allowed = [s for s in tried if all(now >= was - margin for now, was in zip(right[s], first, strict=True))]
    best = min(allowed, key=lambda share: losses[share])
    return Interpolation(best, {f"{share:g}": round(loss, 5) for share, loss in losses.items()})


def _mean(values: NDArray[Any], labels: NDArray[np.intp], parts: Sequence[NDArray[np.bool_]]) -> float:
    """Return the mean over parts of the mean over classes."""
    means = []
    for part in parts:
        of_class = [values[part & (labels == c)] for c in range(len(CLASSES))]
        means.append(np.mean([found.mean() for found in of_class if len(found)]))
    return float(np.mean(means))


def standardized(features: Floats, domains: Sequence[str]) -> Floats:
    """Standardize features [n, f] to mean 0 and deviation 1 per domain, so that lamps do not differ."""
    found, names = np.empty_like(features), np.array(domains)
    for name in np.unique(names):
        chosen = names == name
        part = features[chosen]
        found[chosen] = (part - part.mean(axis=0)) / (part.std(axis=0) + 1e-3)
    return found


def natural_shares(scores: Floats, trained_with: NDArray[np.float64], rounds: int = 200) -> NDArray[np.float64]:
    """Estimate the shares of the classes [classes] from a model's probabilities [n, classes].

    ``trained_with`` are the shares that the model was trained with. Saerens' EM; at least :data:`LEAST_SHARE` each.
    """
    found = trained_with.copy()
    for _ in range(rounds):
        adjusted = scores * (found / trained_with)
        adjusted /= adjusted.sum(axis=1, keepdims=True)
        found = np.maximum(adjusted.mean(axis=0), LEAST_SHARE)
        found /= found.sum()
    return found
