"""From labelled images to a new model: weights, temperature and threshold, none of which saw the test side.

Hides the tiers and the order of steps. Every step leaves its result in the run's folder, so that a run that was killed
begins at the step it was in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, DropClass, Split
from marcod.errors import MarcodError
from marcod.evaluate import label_issues
from marcod.evaluate.label_issues import LabelIssues
from marcod.fitting import adapt, checkpoint, fit, recipes
from marcod.fitting import batches as fitting_batches
from marcod.fitting.adapt import Features
from marcod.fitting.checkpoint import Weights
from marcod.fitting.fit import FitOptions, Progress, Validation
from marcod.fitting.recipes import ADAPT
from marcod.model import backend, bundle, network, probabilities
from marcod.model.bundle import BundleRecord
from marcod.model.network import Architecture
from marcod.model.preprocess import Preprocessing
from marcod.settings import TrainSettings
from marcod.training import calibrate, data, out_of_fold
from marcod.training.calibrate import Calibrated
from marcod.training.data import LoadedSet
from marcod.training.rehearsal import RehearsalSet
from marcod.training.snapshot import Snapshot

Tier = Literal["recalibrate", "head", "all", "scratch"]
NORMALIZED: Final = 1024
DRAWN_AGAIN: Final = 8
NORMALIZED_BATCH: Final = 32
"""Images from which the normalization's statistics are taken, how often each of fewer, and how many at a time."""

DOUBTED: Final = 4000
"""Training images that are kept for doubting labels where training itself reads the files."""

BATCH: Final = 16
JUDGES: Final = 1000
"""Validation images that judge each epoch; of the published network's size they take 4.3 MB of memory each."""

_CRYSTALS: Final = CLASSES.index(DropClass.CRYSTALS)
_FEWEST_JUDGED: Final = 20
_FEWEST_NATURAL: Final = 50
"""Images below which the lab's own shares are not estimated from them."""


@dataclass(frozen=True)
class TrainContext:
    """What a run starts from and where it leaves its results."""

    settings: TrainSettings
    folder: Path
    roots: Mapping[str, Path]
    parent: BundleRecord
    parent_folder: Path
    parent_weights: Weights
    threads: int
    stop: Event
    progress: Progress
    tensorboard: Path | None = None

    def stopped(self) -> bool:
        """Whether the run was asked to end."""
        return self.stop.is_set()

    def goes_on(self, what: str, done: int, total: int) -> None:
        """Tell how far a step is. Raises InterruptedError when the run was asked to end."""
        if self.stopped():
            raise InterruptedError
        self.progress(what, done, total)

    @property
    def architecture(self) -> Architecture:
        """The parent's."""
        return Architecture.from_dict(self.parent.architecture)

    @property
    def preprocessing(self) -> Preprocessing:
        """The parent's."""
        return Preprocessing.from_dict(self.parent.preprocessing)

    @property
    def own_classes(self) -> bool:
        """Whether the parent tells exactly the four classes, in their order."""
        return self.parent.classes == tuple(c.value for c in CLASSES)

    def options(self, name: str) -> FitOptions:
        """How a training of this run is kept and watched."""
        return FitOptions(self.folder / f"{name}.npz", self.stop, self.progress, tensorboard=self.tensorboard)


@dataclass(frozen=True)
class Candidate:
    """A new model, not yet written.

    ``measured`` goes to ``metrics.json``. ``doubts`` are on the labels of the training and validation sides, by last
    layers that had not seen the plate; ``judged`` are the candidate's own, on the lab's validation labels.
    """

    tier: Tier
    architecture: Architecture
    weights: Weights
    calibrated: Calibrated
    measured: dict[str, Any]
    doubts: LabelIssues | None
    judged: LabelIssues | None
    unreadable: tuple[str, ...]


def tier_for(snapshot: Snapshot, settings: TrainSettings) -> Tier:
    """What the labelled drops carry, by how many with crystals there are beside the test side's."""
    if not snapshot.side(Split.TRAIN):
        return "recalibrate"
    if settings.recipe == "scratch":
        return "scratch"
    own = (*snapshot.side(Split.TRAIN), *snapshot.side(Split.VALIDATION))
    crystals = len({item.drop_id for item in own if item.label is DropClass.CRYSTALS})
    if crystals < settings.head_crystals:
        return "recalibrate"
    return "head" if crystals < settings.all_crystals else "all"


def train_candidate(
    context: TrainContext,
    snapshot: Snapshot,
    rehearsal_set: RehearsalSet,
    tier: Tier,
    sample: Callable[[], NDArray[np.uint8]],
) -> Candidate:
    """A candidate of a tier. ``sample`` gives kept images of the lab as they come, labelled or not.

    Raises InterruptedError or :class:`fitting.StoppedError` when the run was stopped; calling it again goes on.
    """
    if tier != "recalibrate" and not snapshot.side(Split.TRAIN):
        raise MarcodError("no labelled plate stands on the training side; label drops on more plates")
    rows = data.training_set(snapshot, rehearsal_set, Split.TRAIN, context.roots)
    # The paper's patches come from the files themselves, of any number; only as many are kept as doubts need.
    by_patch = tier == "scratch" and context.architecture.input_size > recipes.LARGE
    training = _material(context, rows.some(DOUBTED, context.settings.seed) if by_patch else rows, Split.TRAIN)
    validation = _material(
        context, data.training_set(snapshot, rehearsal_set, Split.VALIDATION, context.roots), Split.VALIDATION
    )
    tried = _Network(context, context.architecture if tier == "recalibrate" else _four(context))
    if tier == "recalibrate":
        learned = _recalibrated(context)
    elif tier == "scratch":
        learned = _from_scratch(context, rows if by_patch else training.rows, training, validation)
    else:
        learned = _learned(context, tried, training, validation, tier)
    doubted = _doubts(context, training, validation)
    # What a lab's own model learned from says nothing about how sure it may be.
    fresh = tier == "recalibrate" and context.parent.name != context.settings.name
    sides = (training, validation) if fresh else (validation,)
    parts = [tried.logits(learned.weights, side.pixels, "looking at the result") for side in sides]
    rows_judged, logits = (training.rows.and_(validation.rows) if fresh else validation.rows), np.concatenate(parts)
    natural = _natural(learned, tried, sample, validation)
    weights = learned.weights
    if learned.trained_with is not None:
        shift = calibrate.natural_shift(learned.trained_with, natural, rows_judged)
        weights, logits = network.shifted(weights, shift), logits + shift
    parent = context.parent if learned.trained_with is None else None
    alarms = None if parent is not None else _champion_false_alarms(context, tried, validation)
    found = calibrate.calibrate(
        logits, rows_judged, natural, parent, context.parent.threshold, context.settings.recall, alarms
    )
    return Candidate(
        tier, learned.architecture, weights, found, learned.measured | found.measured, doubted,
        None if parent is not None else _judged(validation.rows, probabilities.softmax(logits / found.temperature)),
        (*training.unreadable, *validation.unreadable),
    )  # fmt: skip


def _material(context: TrainContext, rows: data.TrainingSet, side: Split) -> LoadedSet:
    return data.load(
        rows,
        context.architecture.input_size,
        context.folder / f"{side}.npy",
        threads=context.threads,
        progress=context.progress,
        stopped=context.stopped,
        what=f"reading the {side} side",
    )


@dataclass(frozen=True)
class _Learned:
    """Weights whose logits are as if the classes had the shares ``trained_with`` [classes]; None if nobody knows."""

    tier: Tier
    architecture: Architecture
    weights: Weights
    trained_with: NDArray[np.float64] | None
    measured: dict[str, Any]


class _Network:
    """One network whose weights are exchanged, so that it is compiled once for all that a run tries."""

    def __init__(self, context: TrainContext, architecture: Architecture) -> None:
        self._work = context
        self._model = network.build(replace(architecture, auxiliary=False))
        self._model.compile(jit_compile=backend.training_compiler())

    def logits(
        self, weights: Weights, pixels: NDArray[np.uint8], what: str, chosen: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        """What the network says with these weights of kept images or the chosen ones, float32 [n, own classes]."""
        network.set_variables(self._model, weights)
        found = np.zeros((0, self._model.output_shape[1]), np.float32)
        wanted = np.arange(len(pixels)) if chosen is None else chosen
        for start in range(0, len(wanted), BATCH):
            self._work.goes_on(what, start, len(wanted))
            part = fitting_batches.prepared(pixels[wanted[start : start + BATCH]], self._work.preprocessing)
            # Filled up, so that there is one shape to compile.
            full = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.float32)])
            found = np.concatenate([found, np.asarray(self._model.predict_on_batch(full))[: len(part)]])
        return found


def _recalibrated(context: TrainContext) -> _Learned:
    return _Learned("recalibrate", context.architecture, context.parent_weights, None, {})


def _learned(
    context: TrainContext, tried: _Network, training: LoadedSet, validation: LoadedSet, tier: Tier
) -> _Learned:
    recalibrated_bn = _recalibrated_bn(context, training)
    extractor = data.FeatureExtractor(context.architecture, recalibrated_bn)
    features = _balanced(training, _seen(context, extractor, training, "train", data.FLIPS), len(data.FLIPS))
    judges = None
    if len(validation.rows):
        judges = _balanced(validation, _seen(context, extractor, validation, "validation", data.UPRIGHT), 1)
    start = adapt.centred(features, adapt.first_head(context.parent_weights, len(CLASSES), own=context.own_classes))
    head = adapt.fit_head(features, start, context.settings.seed, judges)
    old = network.with_head(context.parent_weights, *start)
    new, curve = network.with_head(recalibrated_bn, head.kernel, head.bias), head.curve
    if tier == "all":
        fitted = _fit_all(context, training, validation, new)
        new, curve = fitted.weights, fitted.curve
    mix = _interpolation(context, tried, validation, old, new)
    learned = adapt.interpolated(old, new, mix.share)
    rows = training.rows
    trained_with = adapt.shares(rows.targets, adapt.balanced(rows.targets, rows.weights, rows.is_lab))
    measured = {"mix": {"new": mix.share, "validation_loss": mix.losses}, "curve": curve}
    return _Learned(tier, _four(context), learned, trained_with, measured)


def _recalibrated_bn(context: TrainContext, training: LoadedSet) -> Weights:
    """The parent with its normalization at home in the lab's images and the base set's, both counting the same."""
    place = context.folder / "trunk.npz"
    if place.exists():
        with np.load(place, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    rows = training.rows
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab).astype(np.float64)
    rng = np.random.default_rng(context.settings.seed)
    drawn = rng.choice(len(rows), min(NORMALIZED, DRAWN_AGAIN * len(rows)), p=weights / weights.sum())

    def batches() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(drawn), NORMALIZED_BATCH):
            context.goes_on("normalizing", start, len(drawn))
            chosen = drawn[start : start + NORMALIZED_BATCH]
            yield fitting_batches.prepared(training.pixels[chosen], context.preprocessing)

    found = adapt.recalibrated_bn(context.architecture, context.parent_weights, batches())
    checkpoint.save_arrays(place, found)
    return found


def _balanced(side: LoadedSet, found: Features, views: int) -> Features:
    return replace(found, weights=adapt.balanced(found.targets, found.weights, np.tile(side.rows.is_lab, views)))


def _four(context: TrainContext) -> Architecture:
    """The parent's architecture for the four classes, without a training head."""
    return replace(context.architecture, classes=len(CLASSES), auxiliary=False)


def _seen(
    context: TrainContext, extractor: data.FeatureExtractor, side: LoadedSet, name: str, flips: data.Flips
) -> Features:
    return data.extract_features(
        side, extractor, context.preprocessing, context.folder / f"{name}-features.npz",
        flips=flips, goes_on=context.goes_on,
    )  # fmt: skip


def _fit_all(context: TrainContext, training: LoadedSet, validation: LoadedSet, start: Weights) -> fit.Fitted:
    rows = training.rows
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab)
    given = fitting_batches.Images(rows.targets, weights, lambda chosen, _seed: training.pixels[chosen], by_weight=True)
    settings = context.settings
    recipe = ADAPT.of(
        epochs=settings.epochs, batch_size=min(settings.batch_size, 32), quarter_turns=settings.quarter_turns
    )
    return fit.fit(
        _four(context), recipe, given,
        seed=settings.seed, weights=start, validation=_judges(context, validation), precision=_precision(settings),
        options=context.options("fit"),
    )  # fmt: skip


def _from_scratch(
    context: TrainContext, rows: data.TrainingSet, training: LoadedSet, validation: LoadedSet
) -> _Learned:
    settings, size = context.settings, context.architecture.input_size
    recipe = recipes.scratch(
        size, epochs=settings.scratch_epochs, batch_size=settings.batch_size, quarter_turns=settings.quarter_turns
    )
    by_patch = recipe.augmentation.patch is None
    source = fitting_batches.patches(rows.files, size) if by_patch else lambda chosen, _seed: training.pixels[chosen]
    given = fitting_batches.Images(rows.targets, rows.weights / rows.weights.mean(), source)
    architecture = replace(context.architecture, classes=len(CLASSES), auxiliary=True)
    fitted = fit.fit(
        architecture, recipe, given,
        seed=settings.seed, validation=_judges(context, validation), precision=_precision(settings),
        options=context.options("fit"),
    )  # fmt: skip
    weights = {name: value for name, value in fitted.weights.items() if not network.is_auxiliary(name)}
    trained_with = adapt.shares(rows.targets, rows.weights)
    return _Learned("scratch", _four(context), weights, trained_with, {"curve": fitted.curve})


def _precision(settings: TrainSettings) -> str:
    return backend.half_precision() if settings.precision == "auto" else "float32"


def _judges(context: TrainContext, side: LoadedSet) -> Validation | None:
    """What each epoch is judged on: the lab's images and the base set's, which count the same together."""
    if not len(side.rows):
        return None
    chosen = np.sort(np.random.default_rng(context.settings.seed).permutation(len(side.rows))[:JUDGES])
    rows = side.rows.only(chosen)
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab)
    return Validation(fitting_batches.prepared(side.pixels[chosen], context.preprocessing), rows.labels, weights)


def _interpolation(
    context: TrainContext, tried: _Network, validation: LoadedSet, old: Weights, new: Weights
) -> adapt.Interpolation:
    if not context.own_classes:
        return adapt.Interpolation(1.0, {})
    if not len(validation.rows):
        return adapt.Interpolation(0.5, {})

    def logits_of(share: float) -> NDArray[np.float32]:
        what = f"trying {100 * share:.0f} % of the new weights"
        return tried.logits(adapt.interpolated(old, new, share), validation.pixels, what)

    rows, margin = validation.rows, context.settings.imager_margin / 2
    return adapt.choose_interpolation(logits_of, rows.labels, rows.domains, adapt.SHARES, margin)


def _doubts(context: TrainContext, training: LoadedSet, validation: LoadedSet) -> LabelIssues | None:
    """Doubts about the labels of both sides, by what the network sees of the images as they are."""
    if not training.rows.is_lab.any():
        return None
    extractor = data.FeatureExtractor(context.architecture, _recalibrated_bn(context, training))
    upright = np.arange(len(training.rows))
    parts = [
        _seen(context, extractor, training, "train", data.FLIPS).only(upright),
        _seen(context, extractor, validation, "validation", data.UPRIGHT),
    ]
    return out_of_fold.find_issues(training.rows.and_(validation.rows), adapt.joined(parts), context.settings.seed)


def _judged(rows: data.TrainingSet, scores: NDArray[np.float32]) -> LabelIssues | None:
    """What a candidate doubts of the lab's validation labels, which it did not learn from; None where there are few."""
    lab = np.flatnonzero(rows.is_lab)
    if len(lab) < _FEWEST_JUDGED:
        return None
    return label_issues.find(scores[lab], rows.labels[lab], [rows.persons[i] for i in lab], rows.weights[lab])


def _champion_false_alarms(context: TrainContext, tried: _Network, validation: LoadedSet) -> float | None:
    """The share of the lab's validation drops without crystals that the champion flags; None where there are none."""
    others = np.flatnonzero(validation.rows.is_lab & (validation.rows.labels != _CRYSTALS))
    if not len(others):
        return None
    champion = tried if context.own_classes else _Network(context, context.architecture)
    logits = champion.logits(context.parent_weights, validation.pixels, "looking with the champion", others)
    scores = probabilities.softmax(logits / context.parent.temperature) @ bundle.folding(context.parent)
    return float((scores[:, _CRYSTALS] >= context.parent.threshold.crystal).mean())


def _natural(
    learned: _Learned, tried: _Network, sample: Callable[[], NDArray[np.uint8]], validation: LoadedSet
) -> NDArray[np.float64] | None:
    """The shares of the four classes among the lab's images as they come and in the base set, half each."""
    if learned.trained_with is None:
        return None
    found = sample()
    if len(found) < _FEWEST_NATURAL:
        return None
    scores = probabilities.softmax(tried.logits(learned.weights, found, "looking at a sample"))
    natural = adapt.natural_shares(scores.astype(np.float64), learned.trained_with)
    base = np.flatnonzero(~validation.rows.is_lab)
    if not len(base):
        return natural
    return (natural + adapt.shares(validation.rows.targets[base], validation.rows.weights[base])) / 2
