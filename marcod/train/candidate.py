"""From labelled pictures to a new model: weights, temperature and threshold, none of which saw the test side.

Hides the tiers and the order of steps. Every step leaves its result in the run's folder, so that a run that was killed
begins at the step it was in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from marcod import backend, metrics, network
from marcod.bundle import BundleRecord
from marcod.dataset import Snapshot
from marcod.domain import CLASSES, DropClass, Split
from marcod.evaluate.suspects import Suspicion
from marcod.network import Architecture
from marcod.preprocess import Preprocessing
from marcod.settings import TrainSettings
from marcod.train import adapt, calibrated, doubts, fitting, material, pictures, recipes
from marcod.train.adapt import Seen
from marcod.train.base import Base
from marcod.train.calibrated import Calibrated
from marcod.train.checkpoint import Weights
from marcod.train.fitting import Course, Progress, Validation
from marcod.train.material import Material
from marcod.train.recipes import ADAPT

Tier = Literal["recalibrate", "head", "all", "scratch"]
TIERS: Final[tuple[Tier, ...]] = ("recalibrate", "head", "all", "scratch")
_FEWEST_NATURAL: Final = 50
"""Pictures below which the lab's own shares are not estimated from them."""


@dataclass(frozen=True)
class Work:
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

    def course(self, name: str) -> Course:
        """How a training of this run is kept and watched."""
        return Course(self.folder / f"{name}.npz", self.stop, self.progress, tensorboard=self.tensorboard)


@dataclass(frozen=True)
class Candidate:
    """A new model, not yet written.

    ``measured`` goes to ``metrics.json``, ``suspicion`` is on the labels of the training and validation sides.
    """

    tier: Tier
    architecture: Architecture
    weights: Weights
    calibrated: Calibrated
    measured: dict[str, Any]
    suspicion: Suspicion | None
    unreadable: tuple[str, ...]


def tier_for(crystals: int, settings: TrainSettings) -> Tier:
    """What so many labelled drops with crystals carry."""
    if settings.recipe == "scratch":
        return "scratch"
    if crystals < settings.head_crystals:
        return "recalibrate"
    return "head" if crystals < settings.all_crystals else "all"


def crystals_to_learn_from(snapshot: Snapshot) -> int:
    """Labelled drops with crystals that are not on the test side."""
    own = (*snapshot.side(Split.TRAIN), *snapshot.side(Split.VALIDATION))
    return len({item.drop_id for item in own if item.label is DropClass.CRYSTALS})


def make(
    work: Work,
    snapshot: Snapshot,
    base: Base,
    tier: Tier,
    sample: Callable[[], NDArray[np.uint8]],
) -> Candidate:
    """A candidate of a tier. ``sample`` gives kept pictures of the lab as they come, labelled or not.

    Raises InterruptedError or :class:`fitting.StoppedError` when the run was stopped; calling it again goes on.
    """
    training, validation = (_material(work, snapshot, base, side) for side in (Split.TRAIN, Split.VALIDATION))
    learned = _recalibrated(work) if tier == "recalibrate" else _learned(work, training, validation, tier)
    suspicion = _suspicion(work, training, validation)
    judged = training.and_(validation) if tier == "recalibrate" else validation
    logits = _logits(work, learned, judged.pixels)
    natural = _natural(work, learned, sample)
    weights = learned.weights
    if learned.trained_with is not None:
        shift = calibrated.natural_shift(learned.trained_with, natural, judged.rows)
        weights, logits = network.shifted(weights, shift), logits + shift
    parent = work.parent if learned.trained_with is None else None
    found = calibrated.calibrate(logits, judged.rows, natural, parent, work.parent.threshold, work.settings.recall)
    return Candidate(
        tier, learned.architecture, weights, found, learned.measured | found.measured, suspicion,
        (*training.unreadable, *validation.unreadable),
    )  # fmt: skip


def _material(work: Work, snapshot: Snapshot, base: Base, side: Split) -> Material:
    return material.gathered(
        material.rows(snapshot, base, side, work.roots),
        work.architecture.input_size,
        work.folder / f"{side}.npy",
        threads=work.threads,
        progress=work.progress,
        stopped=work.stopped,
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


def _recalibrated(work: Work) -> _Learned:
    return _Learned("recalibrate", work.architecture, work.parent_weights, None, {})


def _learned(work: Work, training: Material, validation: Material, tier: Tier) -> _Learned:
    if tier == "scratch":
        return _from_scratch(work, training, validation)
    features, judges = _balanced_views(work, training, "train"), _balanced_views(work, validation, "validation")
    start = adapt.centred(features, adapt.first_head(work.parent_weights, len(CLASSES)))
    head = adapt.fit_head(features, start, work.settings.seed, judges if len(judges.weights) else None)
    old = network.with_head(work.parent_weights, *start)
    new, curve = network.with_head(work.parent_weights, head.kernel, head.bias), head.curve
    if tier == "all":
        fitted = _fit_all(work, training, validation, new)
        new, curve = fitted.weights, fitted.curve
    mix = _mix(work, validation, old, new, tier)
    learned = adapt.mixed(old, new, mix.share)
    uniform = np.full(len(CLASSES), 1 / len(CLASSES))
    measured = {"mix": {"new": mix.share, "validation_loss": mix.losses}, "curve": curve}
    return _Learned(tier, _four(work), learned, uniform, measured)


def _balanced_views(work: Work, side: Material, name: str) -> Seen:
    flips = material.FLIPS if name == "train" else material.UPRIGHT
    found = _seen(work, side, name, flips)
    if not len(found.weights):
        return found
    return replace(found, weights=adapt.balanced(found.targets, found.weights, np.tile(side.rows.own, len(flips))))


def _four(work: Work) -> Architecture:
    """The parent's architecture for the four classes, without a training head."""
    return replace(work.architecture, classes=len(CLASSES), auxiliary=False)


def _seen(work: Work, side: Material, name: str, flips: tuple[tuple[int, int], ...]) -> Seen:
    return material.seen(
        side, work.architecture, work.parent_weights, work.preprocessing, work.folder / f"{name}-features.npz",
        flips=flips, progress=work.progress, stopped=work.stopped,
    )  # fmt: skip


def _fit_all(work: Work, training: Material, validation: Material, start: Weights) -> fitting.Fitted:
    rows = training.rows
    weights = adapt.balanced(rows.targets, rows.weights, rows.own)
    given = pictures.Pictures(rows.targets, weights, lambda chosen, _seed: training.pixels[chosen], by_weight=True)
    settings = work.settings
    recipe = ADAPT.of(
        epochs=settings.epochs, batch_size=min(settings.batch_size, 32), quarter_turns=settings.quarter_turns
    )
    return fitting.fit(
        _four(work), recipe, given,
        seed=settings.seed, weights=start, validation=_judges(work, validation), precision=_precision(settings),
        course=work.course("fit"),
    )  # fmt: skip


def _from_scratch(work: Work, training: Material, validation: Material) -> _Learned:
    rows, settings, size = training.rows, work.settings, work.architecture.input_size
    recipe = recipes.scratch(
        size, epochs=settings.scratch_epochs, batch_size=settings.batch_size, quarter_turns=settings.quarter_turns
    )
    by_patch = recipe.augmentation.patch is None
    source = pictures.patches(rows.files, size) if by_patch else lambda chosen, _seed: training.pixels[chosen]
    given = pictures.Pictures(rows.targets, rows.weights / rows.weights.mean(), source)
    architecture = replace(work.architecture, classes=len(CLASSES), auxiliary=True)
    fitted = fitting.fit(
        architecture, recipe, given,
        seed=settings.seed, validation=_judges(work, validation), precision=_precision(settings),
        course=work.course("fit"),
    )  # fmt: skip
    weights = {name: value for name, value in fitted.weights.items() if not network.is_auxiliary(name)}
    trained_with = adapt.shares(rows.targets, rows.weights)
    return _Learned("scratch", _four(work), weights, trained_with, {"curve": fitted.curve})


def _precision(settings: TrainSettings) -> str:
    return backend.half_precision() if settings.precision == "auto" else "float32"


def _judges(work: Work, side: Material) -> Validation | None:
    """A side as what each epoch is judged on: the lab's and the base set's pictures count the same together."""
    if not len(side.rows):
        return None
    weights = adapt.balanced(side.rows.targets, side.rows.weights, side.rows.own)
    return Validation(pictures.prepared(side.pixels, work.preprocessing), side.rows.labels, weights)


def _mix(work: Work, validation: Material, old: Weights, new: Weights, tier: Tier) -> adapt.Mix:
    tried = adapt.MIXES if work.own_classes else (1.0,)
    if not len(validation.rows) or len(tried) == 1:
        return adapt.Mix(0.5 if len(tried) > 1 else 1.0, {})
    if tier == "head":
        features = _seen(work, validation, "validation", material.UPRIGHT).features

        def logits_of(share: float) -> NDArray[np.float32]:
            kernel, bias = network.head(adapt.mixed(old, new, share))
            return np.asarray(features @ kernel + bias, np.float32)
    else:

        def logits_of(share: float) -> NDArray[np.float32]:
            learned = _Learned(tier, _four(work), adapt.mixed(old, new, share), None, {})
            return _logits(work, learned, validation.pixels)

    rows = validation.rows
    return adapt.choose_mix(logits_of, rows.labels, rows.domains, tried, work.settings.imager_margin / 2)


def _logits(work: Work, learned: _Learned, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a network says of kept pictures, float32 [n, own classes]."""
    batch = 16
    score = network.compiled(learned.architecture, learned.weights, batch)
    found = []
    for start in range(0, len(pixels), batch):
        if work.stopped():
            raise InterruptedError
        found.append(score(pictures.prepared(pixels[start : start + batch], work.preprocessing)))
    return np.concatenate(found) if found else np.zeros((0, learned.architecture.classes), np.float32)


def _suspicion(work: Work, training: Material, validation: Material) -> Suspicion | None:
    """Doubts about the labels of both sides, by what the parent sees of the pictures as they are."""
    upright = np.arange(len(training.rows))
    seen = adapt.joined(
        [
            _seen(work, training, "train", material.FLIPS).only(upright),
            _seen(work, validation, "validation", material.UPRIGHT),
        ]
    )
    return doubts.about(training.rows.and_(validation.rows), seen, work.settings.seed)


def _natural(work: Work, learned: _Learned, sample: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float64] | None:
    """The shares of the four classes among the lab's pictures as they come."""
    if learned.trained_with is None:
        return None
    found = sample()
    if len(found) < _FEWEST_NATURAL:
        return None
    scores = metrics.softmax(_logits(work, learned, found))
    return adapt.natural_shares(scores.astype(np.float64), learned.trained_with)
