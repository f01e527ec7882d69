"""Steps of a last layer from its parent's towards a lab's labels, each with more freedom than the one before.

Few labels carry few parameters. So a layer is held to its parent's, and a step is taken only where labels that it had
not seen show that it helps: of those better than the parent by more than a standard error, the simplest within one
standard error of the best (Breiman et al., Classification and Regression Trees, 1984, 3.4.3). What ranks crystals worse
than the parent, or knows another imager less well, cannot be chosen. The step "classes" keeps crystals as the parent
ranks them: learning without forgetting, arXiv 1606.09282.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from scipy import optimize

from marcod.domain import CLASSES, CRYSTALS
from marcod.evaluate import metrics
from marcod.fitting import adapt
from marcod.fitting.adapt import Features, Floats
from marcod.model import probabilities

LastLayer = tuple[Floats, Floats]
"""Kernel float32 [f, classes] and bias [classes]."""

Kind = Literal["parent", "offsets", "classes", "head"]

ITERATIONS: Final = 100
OFFSET_PULL: Final = 0.003
"""Weight of the penalty on the square of an offset."""

KEEPING: Final = 1.0
"""Weight of the penalty on the square by which the step "classes" moves an image's crystal log-odds."""

FEWEST_PLATES: Final = 8
"""Plates from which they, not drops, say by how much a loss may differ by chance."""

ROUNDING: Final = 1e-9

_OTHERS: Final = [i for i in range(len(CLASSES)) if i != CRYSTALS]

NEGLIGIBLE: Final = 0.005
"""Loss that a simpler step may have more than the best, however sure it is."""

_Loss = tuple[float, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class LayerStep:
    """Freedom of a last layer.

    ``parent`` has none, ``offsets`` shifts classes, ``classes`` changes all but what is a crystal, ``head`` changes
    all. ``pull`` is how strongly the kernel is held to its parent's, on features of mean 0 and deviation 1.
    """

    kind: Kind
    pull: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.pull:g}" if self.pull else self.kind


LADDER: Final = (
    LayerStep("parent"), LayerStep("offsets"),
    LayerStep("classes", 0.3), LayerStep("head", 0.3), LayerStep("classes", 0.03), LayerStep("head", 0.03),
)  # fmt: skip
"""The simplest first."""


def logits(features: Floats, layer: LastLayer) -> Floats:
    """Return logits float32 [n, classes] of features [n, f]."""
    return np.asarray(features @ layer[0] + layer[1], np.float32)


def fit(seen: Features, parent: LastLayer, step: LayerStep, odds: NDArray[np.float64]) -> LastLayer:
    """Fit a last layer by its step to features with soft labels and weights; no seed decides anything.

    ``odds`` are the crystal log-odds [n] that the step "classes" keeps.
    """
    if step.kind == "parent" or not len(seen.targets):
        return parent
    before = logits(seen.features, parent).astype(np.float64)
    # Products this small wait for their threads: 14 times longer on two busy cores.
    with threadpoolctl.threadpool_limits(1, "blas"):
        if step.kind == "offsets":
            return parent[0], np.asarray(parent[1] + _fit_offsets(seen, before), np.float32)
        return _fit_kernel(seen, parent, before, step, odds)


def _fit_offsets(seen: Features, before: NDArray[np.float64]) -> NDArray[np.float64]:
    def loss(shift: NDArray[np.float64]) -> _Loss:
        value, slope = _cross_entropy_of_others(before + shift, seen)
        return value + OFFSET_PULL * float(shift @ shift), slope.sum(axis=0) + 2 * OFFSET_PULL * shift

    return _minimum(loss, before.shape[1])


def _fit_kernel(
    seen: Features, parent: LastLayer, before: NDArray[np.float64], step: LayerStep, odds: NDArray[np.float64]
) -> LastLayer:
    # Each feature counts the same, however large a network makes it.
    mean, spread = seen.features.mean(axis=0), seen.features.std(axis=0) + 1e-3
    given = ((seen.features - mean) / spread).astype(np.float32)
    # The best kernel is a mix of the images' features, so fewer images than features need that many numbers only.
    basis, mixed = np.linalg.qr(given.T) if len(given) < given.shape[1] else (None, given.T)
    given = np.ascontiguousarray(mixed.T)
    shape, keeps = (given.shape[1], parent[0].shape[1]), step.kind == "classes"
    shares = seen.weights / seen.weights.sum(dtype=np.float64)

    def loss(flat: NDArray[np.float64]) -> _Loss:
        kernel, shift = flat[: -shape[1]].reshape(shape), flat[-shape[1] :]
        now = before + given @ kernel.astype(np.float32) + shift
        value, slope = _cross_entropy_of_others(now, seen) if keeps else _cross_entropy(now, seen)
        if keeps:
            kept, kept_slope = _moved(now, odds, shares)
            value, slope = value + KEEPING * kept, slope + KEEPING * kept_slope
        value += step.pull * float((kernel**2).sum()) + OFFSET_PULL * float(shift @ shift)
        by_kernel = (given.T @ slope.astype(np.float32)).astype(np.float64) + 2 * step.pull * kernel
        return value, np.concatenate([by_kernel.ravel(), slope.sum(axis=0) + 2 * OFFSET_PULL * shift])

    found = _minimum(loss, shape[0] * shape[1] + shape[1])
    kernel = found[: -shape[1]].reshape(shape)
    kernel = (kernel if basis is None else basis @ kernel) / spread[:, None]
    bias = parent[1] + found[-shape[1] :] - mean @ kernel
    return np.asarray(parent[0] + kernel, np.float32), np.asarray(bias, np.float32)


def _cross_entropy(logits: NDArray[np.float64], seen: Features) -> _Loss:
    """Return the weighted mean loss, and its slope by the logits."""
    shares = (seen.weights / seen.weights.sum(dtype=np.float64))[:, None]
    log_scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return -float((shares * seen.targets * log_scores).sum()), shares * (np.exp(log_scores) - seen.targets)


def _cross_entropy_of_others(logits: NDArray[np.float64], seen: Features) -> _Loss:
    """Return the weighted mean loss over the other classes of images that are no crystals, and its slope."""
    targets, others = seen.targets.copy(), logits.copy()
    targets[:, CRYSTALS], others[:, CRYSTALS] = 0, -np.inf
    shares = (seen.weights * targets.sum(axis=1) / seen.weights.sum(dtype=np.float64)).astype(np.float64)[:, None]
    scores = np.log(np.maximum(probabilities.softmax(others), np.finfo(np.float32).tiny))
    told = targets / np.maximum(targets.sum(axis=1, keepdims=True), 1e-12)
    slope = shares * (np.exp(scores) - told)
    slope[:, CRYSTALS] = 0
    return -float((shares * told * scores)[:, _OTHERS].sum()), slope


def crystal_odds(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the log-odds of crystals [n], which keep apart what probabilities near 1 do not."""
    others = np.delete(logits, CRYSTALS, axis=1)
    return np.asarray(logits[:, CRYSTALS] - np.logaddexp.reduce(others, axis=1), np.float64)


def _moved(logits: NDArray[np.float64], was: NDArray[np.float64], shares: NDArray[np.float64]) -> _Loss:
    """Return the mean square of what crystal log-odds moved by, and its slope by the logits."""
    moved = crystal_odds(logits) - was
    slope = -probabilities.softmax(np.where(np.arange(logits.shape[1]) == CRYSTALS, -np.inf, logits))
    slope[:, CRYSTALS] = 1.0
    return float(shares @ moved**2), 2 * (shares * moved)[:, None] * slope


def _minimum(loss: Callable[[NDArray[np.float64]], _Loss], size: int) -> NDArray[np.float64]:
    found = optimize.minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return np.asarray(found.x, np.float64)


@dataclass(frozen=True)
class StepJudges:
    """Labelled images that options are compared on, none seen by what judges it.

    Class indices and weights [n], the domain (imager or base set), plate and drop of each, and which are the lab's own.
    """

    labels: NDArray[np.intp]
    weights: Floats
    domains: Sequence[str]
    plates: Sequence[str]
    drops: Sequence[str]
    is_lab: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StepJudgement:
    """Comparison of an option with the parent.

    ``gain`` is what the lab's log loss falls by, every class the same, and ``error`` its standard error. ``harm`` is a
    sentence on what it would cost; None where it costs nothing.
    """

    gain: float
    error: float
    harm: str | None


def choose(
    options: Sequence[NDArray[np.floating[Any]]], judges: StepJudges, margin: float
) -> tuple[int, tuple[StepJudgement, ...]]:
    """Choose one of the ``options``, logits [n, 4] each, the parent's first and the simplest before others.

    ``margin`` is the accuracy, and the crystal AUC, that a domain other than the lab's crystals may lose. Returns the
    index chosen, and what was found about each option.
    """
    losses = [_losses(logits, judges) for logits in options]
    found = []
    for logits, loss in zip(options, losses, strict=True):
        gain, error = _difference(losses[0] - loss, judges)
        found.append(StepJudgement(gain, error, _harm(options[0], logits, judges, margin)))
    better = [i for i, one in enumerate(found) if one.harm is None and one.gain > one.error]
    if not better:
        return 0, tuple(found)
    best = max(better, key=lambda i: found[i].gain)
    for i in better:
        shortfall, error = _difference(losses[i] - losses[best], judges)
        if shortfall <= max(error, NEGLIGIBLE):
            return i, tuple(found)
    return best, tuple(found)


def _losses(logits: NDArray[np.floating[Any]], judges: StepJudges) -> NDArray[np.float64]:
    """Return each of the lab's labels' share in the log loss [lab], at the temperature that fits the option best."""
    lab = judges.is_lab
    counted = _counted(judges)
    temperature = metrics.fit_temperature(logits[lab], judges.labels[lab], None, counted)
    scores = probabilities.softmax(logits[lab] / temperature)
    return -np.log(np.maximum(scores[np.arange(lab.sum()), judges.labels[lab]], 1e-12))


def _counted(judges: StepJudges) -> NDArray[np.float64]:
    """Return the weight of each of the lab's labels: every imager the same, and in it every class; they sum to 1."""
    lab = judges.is_lab
    targets = np.eye(len(CLASSES), dtype=np.float32)[judges.labels[lab]]
    _, domains = np.unique(np.array(judges.domains)[lab], return_inverse=True)
    found = adapt.balanced(targets, judges.weights[lab], domains).astype(np.float64)
    return np.asarray(found / found.sum(), np.float64)


def _difference(values: NDArray[np.float64], judges: StepJudges) -> tuple[float, float]:
    """Return the weighted mean of a difference over the lab's labels, and its standard error over plates or drops."""
    counted, lab = _counted(judges), np.flatnonzero(judges.is_lab).tolist()
    mean = float(counted @ values)
    parts = counted * (values - mean)
    groups = [_summed(parts, [(judges.domains[i], judges.drops[i]) for i in lab])]
    plates = [judges.plates[i] for i in lab]
    if len(set(plates)) >= FEWEST_PLATES:
        groups.append(_summed(parts, plates))
    errors = [float(np.sqrt(len(g) / max(1, len(g) - 1) * (g @ g))) for g in groups]
    return mean, max(errors)


def _summed(parts: NDArray[np.float64], names: Sequence[object]) -> NDArray[np.float64]:
    return np.asarray(np.bincount(metrics.numbered(names), weights=parts), np.float64)


def _harm(
    before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]], judges: StepJudges, margin: float
) -> str | None:
    """Return a sentence on the first domain that loses more than chance explains, and more than the margin.

    No margin holds for the rank of the lab's crystals. Chance is one standard error of the paired difference.
    """
    domains = np.array(judges.domains)
    for name in sorted(set(judges.domains)):
        part, where = domains == name, name or "the rehearsal set"
        labels, allowed = judges.labels[part], 0.0 if judges.is_lab[domains == name].any() else margin
        was, now, error = _areas(before[part], after[part], labels == CRYSTALS)
        if now < was - max(allowed, error) - ROUNDING:
            return f"crystal AUC {now:.3f} after {was:.3f} on {where}"
        right = [(one[part].argmax(axis=1) == labels).astype(np.float64) for one in (before, after)]
        lost, error = float((right[0] - right[1]).mean()), float((right[0] - right[1]).std() / np.sqrt(len(labels)))
        if lost > max(margin, error) + ROUNDING:
            return f"accuracy {right[1].mean():.3f} after {right[0].mean():.3f} on {where}"
    return None


def _areas(
    before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]], positive: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return both crystal AUCs and the standard error of their difference (DeLong et al., Biometrics 44, 1988).

    All are 0 without crystals or without others.
    """
    if not positive.any() or positive.all():
        return 0.0, 0.0, 0.0
    wins = []
    for logits_of in (before, after):
        odds = crystal_odds(logits_of)
        ahead = odds[positive][:, np.newaxis] - odds[~positive]
        wins.append((ahead > 0) + 0.5 * (ahead == 0))
    change = wins[1] - wins[0]
    error = np.sqrt(sum(_squared_error(change.mean(axis=axis)) for axis in (0, 1)))
    return float(wins[0].mean()), float(wins[1].mean()), float(error)


def _squared_error(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
