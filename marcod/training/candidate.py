"""Training of a candidate: weights, temperature and threshold, none of which saw the test side.

Every step leaves its result in the run's folder, so that a run that was killed resumes at the step it was in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS, Split
from marcod.errors import MarcodError
from marcod.evaluate import label_issues
from marcod.evaluate.label_issues import LabelIssues
from marcod.fitting import adapt, checkpoint, fit, jobs, recipes, steps, together
from marcod.fitting import batches as fitting_batches
from marcod.fitting.adapt import Features
from marcod.fitting.checkpoint import Weights
from marcod.fitting.fit import Progress
from marcod.fitting.jobs import FitJob, Judges, Taught
from marcod.fitting.recipes import ADAPT
from marcod.fitting.together import Team
from marcod.model import backend, bundle, families, network, probabilities
from marcod.model.architecture import Architecture
from marcod.model.bundle import BundleRecord
from marcod.model.preprocess import Preprocessing
from marcod.model.weights import is_auxiliary
from marcod.settings import TrainSettings
from marcod.training import calibrate, data, last_layer, out_of_fold
from marcod.training.calibrate import Calibrated
from marcod.training.data import LoadedSet
from marcod.training.rehearsal import RehearsalSet
from marcod.training.snapshot import Snapshot
from marcod.training.tiers import KEEPS_CRYSTALS, Tier

PATCHES: Final = ("all", "scratch")
"""Tiers that cut patches from images. The others look at images exactly as scoring does."""

CHAMPION: Final = "champion"
RENEWED: Final = "renewed"
"""Names of the two trunks: normalization as the champion has it, and re-estimated."""

NORMALIZED: Final = 1024
DRAWN_AGAIN: Final = 8
NORMALIZED_BATCH: Final = 32
"""Images for the statistics of batch normalization, how often each of fewer is drawn, and how many at a time."""

DOUBTED: Final = 4000
"""Training images loaded to find label issues where training itself reads the files."""

BATCH: Final = 16
JUDGES: Final = 1000
"""Validation images of each epoch; at the published network's size they take 4.3 MB of memory each."""

LEAST: Final = np.float32(1e-12)
"""Least probability of which a logarithm is taken."""

_FEWEST_JUDGED: Final = 20
_FEWEST_NATURAL: Final = 50
"""Fewest images from which the lab's natural shares are estimated."""


@dataclass(frozen=True)
class TrainContext:
    """Inputs of a training, and the folder of its results."""

    settings: TrainSettings
    snapshot: Snapshot
    rehearsal_set: RehearsalSet
    folder: Path
    roots: Mapping[str, Path]
    parent: BundleRecord
    parent_folder: Path
    parent_weights: Weights
    threads: int
    stop: Event
    progress: Progress
    tensorboard: Path | None = None
    team: Team = together.ALONE
    seeds: tuple[int, ...] = ()

    def report(self, what: str, done: int, total: int) -> None:
        """Report the progress of a step. Raises InterruptedError when a stop was requested."""
        if self.stop.is_set():
            raise InterruptedError
        self.progress(what, done, total)

    @property
    def architecture(self) -> Architecture:
        """The parent's architecture."""
        return families.architecture(self.parent.architecture)

    @property
    def preprocessing(self) -> Preprocessing:
        """The parent's preprocessing."""
        return Preprocessing.from_dict(self.parent.preprocessing)

    @property
    def own_classes(self) -> bool:
        """True if the parent's classes are exactly the four, in their order."""
        return self.parent.classes == tuple(c.value for c in CLASSES)


@dataclass(frozen=True)
class Candidate:
    """New model, not yet written.

    ``measured`` goes to ``metrics.json``. ``label_issues`` are those of the training and validation sides, by heads
    that had not seen the plate. ``own_issues`` are those of the lab's validation labels by the candidate itself.
    """

    tier: Tier
    architecture: Architecture
    weights: Weights
    calibrated: Calibrated
    measured: dict[str, Any]
    label_issues: LabelIssues | None
    own_issues: LabelIssues | None
    unreadable: tuple[str, ...]


def train_candidate(context: TrainContext, tier: Tier, sample: Callable[[], NDArray[np.uint8]]) -> Candidate:
    """Train and calibrate a candidate. ``sample`` loads random images of the lab, labelled or not.

    Raises InterruptedError or :class:`fit.StoppedError` when the run was stopped; another call resumes it.
    """
    if tier != "recalibrate" and not context.snapshot.side(Split.TRAIN):
        raise MarcodError("no labelled plate is on the training side; label drops on more plates")
    train_rows, validation_rows = (
        data.training_set(context.snapshot, context.rehearsal_set, side, context.roots)
        for side in (Split.TRAIN, Split.VALIDATION)
    )
    # The paper's patches come from any number of files; pixels are loaded for the label issues alone.
    by_patch = tier == "scratch" and context.architecture.input_size > recipes.LARGE
    kept_rows = train_rows.some(DOUBTED, context.settings.seed) if by_patch else train_rows
    how = kept_as(context.preprocessing, tier)
    training, validation = (
        _load(context, rows, side, how)
        for rows, side in ((kept_rows, Split.TRAIN), (validation_rows, Split.VALIDATION))
    )
    evaluator = _Network(context, context.architecture if tier == "recalibrate" else _four(context))
    if tier == "recalibrate":
        learned = _recalibrate(context, evaluator, training, validation)
    elif tier == "scratch":
        rows = train_rows if by_patch else training.rows
        learned = _train_from_scratch(context, evaluator, rows, training, validation)
    elif tier == "all":
        learned = _adapt_all_layers(context, evaluator, training, validation)
    else:
        learned = _take_step(context, training, validation, tier)
    natural = None if learned.trained_with is None else _estimate_natural_shares(learned, sample(), validation.rows)
    unreadable = (*training.unreadable, *validation.unreadable)
    return _calibrate(context, learned, natural, _find_label_issues(context, training, validation), unreadable)


def kept_as(scored: Preprocessing, tier: Tier) -> Preprocessing:
    """Return how a tier keeps the images of a network that scores them as ``scored`` says."""
    return data.for_patches(scored) if tier in PATCHES else scored


def _load(context: TrainContext, rows: data.TrainingSet, side: Split, how: Preprocessing) -> LoadedSet:
    return data.load(
        rows,
        how,
        context.folder / f"{side}.npy",
        threads=context.threads,
        progress=context.progress,
        stopped=context.stop.is_set,
        what=f"reading the {side} side",
        pack=context.settings.pack,
    )


@dataclass(frozen=True)
class _Judged:
    """Labelled images that new weights had not seen, and the logits [n, own classes] that they give them.

    ``champion`` are the champion's probabilities of crystals [n].
    """

    rows: data.TrainingSet
    logits: NDArray[np.float32]
    champion: NDArray[np.float32]


@dataclass(frozen=True)
class _Learned:
    """Trained weights, and what they make of labelled images and of a sample of unlabelled ones, uint8.

    ``trained_with`` [classes] are the class shares seen in training; None for weights that are the parent's.
    """

    tier: Tier
    architecture: Architecture
    weights: Weights
    trained_with: NDArray[np.float64] | None
    measured: dict[str, Any]
    judged: _Judged
    logits_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class _Network:
    """Network whose weights are exchanged, so that it is compiled once for all evaluations of a run."""

    def __init__(self, context: TrainContext, architecture: Architecture) -> None:
        self._context = context
        self._model = network.build(architecture)
        self._model.compile(jit_compile=backend.training_compiler())

    def logits(
        self, weights: Weights, pixels: NDArray[np.uint8], what: str, chosen: NDArray[np.intp] | None = None
    ) -> NDArray[np.float32]:
        """Return logits float32 [n, own classes] of loaded images, or the chosen ones, with these weights."""
        network.set_variables(self._model, weights)
        found = np.zeros((0, self._model.output_shape[1]), np.float32)
        wanted = np.arange(len(pixels)) if chosen is None else chosen
        for start in range(0, len(wanted), BATCH):
            self._context.report(what, start, len(wanted))
            part = fitting_batches.prepared(pixels[wanted[start : start + BATCH]], self._context.preprocessing)
            # Padded, so that there is one shape to compile.
            full = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.float32)])
            found = np.concatenate([found, np.asarray(self._model.predict_on_batch(full))[: len(part)]])
        return found


def _recalibrate(context: TrainContext, evaluator: _Network, training: LoadedSet, validation: LoadedSet) -> _Learned:
    """Leave the weights as they are. Labels that a lab's own model learned from cannot tell how sure it may be."""
    sides = (training, validation) if _is_fresh(context) else (validation,)
    weights = context.parent_weights
    logits = np.concatenate([evaluator.logits(weights, side.pixels, "looking with the champion") for side in sides])
    rows = training.rows.and_(validation.rows) if _is_fresh(context) else validation.rows
    return _as_it_is(context, _Judged(rows, logits, _crystals(context, logits)), {})


def _is_fresh(context: TrainContext) -> bool:
    """Check that the champion was not made in this lab, so that it learned from none of the labels."""
    return context.parent.name != context.settings.name


def _as_it_is(context: TrainContext, judged: _Judged, measured: dict[str, Any]) -> _Learned:
    return _Learned(
        "recalibrate", context.architecture, context.parent_weights, None, measured, judged, lambda _: judged.logits
    )


def _folded(context: TrainContext, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the champion's probabilities of the four classes, from its logits."""
    return np.asarray(probabilities.softmax(logits / context.parent.temperature) @ bundle.folding(context.parent))


def _crystals(context: TrainContext, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(_folded(context, logits)[:, CRYSTALS])


def _take_step(context: TrainContext, training: LoadedSet, validation: LoadedSet, highest: Tier) -> _Learned:
    """Change the last layer as far as labels that it had not seen support it, on both normalizations."""
    rows = training.rows.and_(validation.rows)
    trunks = [(CHAMPION, context.parent_weights), (RENEWED, renewed(context, training))]
    extractors = [data.FeatureExtractor(context.architecture, weights) for _, weights in trunks]
    features = [
        np.concatenate([
            _extract_features(context, extractor, side, f"{side_name}-{name}", data.UPRIGHT).features
            for side, side_name in ((training, "train"), (validation, "validation"))
        ])
        for (name, _), extractor in zip(trunks, extractors, strict=True)
    ]  # fmt: skip
    start = adapt.first_head(context.parent_weights, len(CLASSES), own=context.own_classes)
    own = steps.logits(features[0], network.head(context.parent_weights))
    champion = np.log(np.maximum(_folded(context, own), LEAST)) * np.float32(context.parent.temperature)
    labels = last_layer.LayerLabels(rows, np.arange(len(rows)) < len(training.rows), champion, _is_fresh(context))
    given = [last_layer.TrunkFeatures(name, found, start) for (name, _), found in zip(trunks, features, strict=True)]
    chosen = last_layer.choose(labels, given, highest, context.settings.imager_margin / 2)
    took, judged = chosen.option, rows.only(labels.judges)
    crystals, measured = _crystals(context, own[labels.judges]), {"steps": chosen.measured}
    if took.tier == "recalibrate":
        return _as_it_is(context, _Judged(judged, own[labels.judges], crystals), measured)
    name, trunk = trunks[took.trunk]

    def logits_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        place = context.folder / f"sample-{name}-features.npz"
        found = data.extract(pixels, extractors[took.trunk], context.preprocessing, place, progress=context.report)
        return steps.logits(found, took.layer)

    weights = network.with_head(_without_auxiliary(trunk), *took.layer)
    return _Learned(
        took.tier, _four(context), weights, chosen.trained_with, measured,
        _Judged(judged, took.logits, crystals), logits_of,
    )  # fmt: skip


def _without_auxiliary(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if not is_auxiliary(name)}


def _adapt_all_layers(
    context: TrainContext, evaluator: _Network, training: LoadedSet, validation: LoadedSet
) -> _Learned:
    """Re-estimate batch norm, fit the head on extracted features, then train all layers, and interpolate."""
    adapted = renewed(context, training)
    extractor = data.FeatureExtractor(context.architecture, adapted)
    features = _balance(training, _extract_features(context, extractor, training, "train", data.FLIPS))
    start = adapt.centred(features, adapt.first_head(context.parent_weights, len(CLASSES), own=context.own_classes))
    head = adapt.fit_head(features, start, context.settings.seed)
    old = network.with_head(context.parent_weights, *start)
    fitted, of_seeds = _fit_all_layers(
        context, training, validation, network.with_head(adapted, head.kernel, head.bias)
    )
    chosen = _choose_interpolation(context, evaluator, validation, old, fitted.weights)
    rows = training.rows
    trained_with = adapt.shares(rows.targets, adapt.balanced(rows.targets, rows.weights, rows.is_lab))
    measured = {"mix": {"new": chosen.share, "validation_loss": chosen.losses}, "curve": fitted.curve, **of_seeds}
    weights = adapt.interpolated(old, fitted.weights, chosen.share)
    return _evaluated(context, evaluator, validation, "all", weights, trained_with, measured)


def _evaluated(
    context: TrainContext,
    evaluator: _Network,
    validation: LoadedSet,
    tier: Tier,
    weights: Weights,
    trained_with: NDArray[np.float64],
    measured: dict[str, Any],
) -> _Learned:
    """Look at the validation side with weights of all layers, and with the champion."""
    logits = evaluator.logits(weights, validation.pixels, "looking at the result")
    champion = evaluator if context.own_classes else _Network(context, context.architecture)
    before = champion.logits(context.parent_weights, validation.pixels, "looking with the champion")
    judged = _Judged(validation.rows, logits, _crystals(context, before))
    return _Learned(
        tier, _four(context), weights, trained_with, measured, judged,
        lambda pixels: evaluator.logits(weights, pixels, "looking at a sample"),
    )  # fmt: skip


def renewed(context: TrainContext, training: LoadedSet) -> Weights:
    """Return the parent's weights with batch-norm statistics re-estimated on lab and rehearsal images, half each."""
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
            context.report("normalizing", start, len(drawn))
            chosen = drawn[start : start + NORMALIZED_BATCH]
            yield fitting_batches.prepared(training.pixels[chosen], context.preprocessing)

    found = adapt.recalibrated_bn(context.architecture, context.parent_weights, batches())
    checkpoint.save_arrays(place, found)
    return found


def _balance(side: LoadedSet, found: Features) -> Features:
    views = len(found.targets) // max(1, len(side.rows))
    return replace(found, weights=adapt.balanced(found.targets, found.weights, np.tile(side.rows.is_lab, views)))


def _four(context: TrainContext) -> Architecture:
    """Return the parent's architecture for the four classes, without an auxiliary head."""
    return replace(context.architecture, classes=len(CLASSES), auxiliary=False)


def _extract_features(
    context: TrainContext, extractor: data.FeatureExtractor, side: LoadedSet, name: str, flips: data.Flips
) -> Features:
    return data.extract_features(
        side, extractor, context.preprocessing, context.folder / f"{name}-features.npz",
        flips=flips, progress=context.report,
    )  # fmt: skip


def _fit_all_layers(
    context: TrainContext, training: LoadedSet, validation: LoadedSet, start: Weights
) -> tuple[fit.Fitted, dict[str, Any]]:
    rows = training.rows
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab)
    given = Taught(rows.targets, weights, by_weight=True, place=training.place)
    settings = context.settings
    recipe = ADAPT.of(
        epochs=settings.epochs, batch_size=min(settings.batch_size, 32), quarter_turns=settings.quarter_turns
    )
    return _fit(context, _four(context), recipe, given, validation, start)


def _train_from_scratch(
    context: TrainContext, evaluator: _Network, rows: data.TrainingSet, training: LoadedSet, validation: LoadedSet
) -> _Learned:
    settings, size = context.settings, context.architecture.input_size
    recipe = recipes.scratch(
        size, epochs=settings.scratch_epochs, batch_size=settings.batch_size, quarter_turns=settings.quarter_turns
    )
    weights = rows.weights / rows.weights.mean()
    by_patch = recipe.augmentation.patch is None
    source = {"files": rows.files, "size": size} if by_patch else {"place": training.place}
    given = Taught(rows.targets, weights, **source)
    auxiliary = context.architecture.trains_auxiliary
    recipe = recipe if auxiliary else replace(recipe, auxiliary=0.0)
    architecture = replace(context.architecture, classes=len(CLASSES), auxiliary=auxiliary)
    fitted, of_seeds = _fit(context, architecture, recipe, given, validation)
    weights, shares = _without_auxiliary(fitted.weights), adapt.shares(rows.targets, rows.weights)
    return _evaluated(context, evaluator, validation, "scratch", weights, shares, {"curve": fitted.curve, **of_seeds})


def _fit(
    context: TrainContext,
    architecture: Architecture,
    recipe: recipes.Recipe,
    taught: Taught,
    validation: LoadedSet,
    weights: Weights | None = None,
) -> tuple[fit.Fitted, dict[str, Any]]:
    """Fit, and return also what was measured of every seed, where there are several."""
    job = FitJob(
        architecture, recipe, taught, context.settings.seed, context.folder / "fit.npz",
        begin=weights or {}, judges=_judges(context, validation), tensorboard=context.tensorboard,
        precision=jobs.AUTO if context.settings.precision == "auto" else "float32",
    )  # fmt: skip
    return _fit_each_seed(context, job) if context.seeds else (_fit_once(context, job), {})


def _fit_once(context: TrainContext, job: FitJob) -> fit.Fitted:
    if context.team.size > 1:
        return together.run(job, context.team, context.progress, context.stop)
    return jobs.run(job, context.progress, context.stop)


def _fit_each_seed(context: TrainContext, job: FitJob) -> tuple[fit.Fitted, dict[str, Any]]:
    """Fit with every seed, and take the one with the least loss on the validation side; the test side is not asked."""
    if job.judges is None:
        raise MarcodError("no labelled plate is on the validation side, which chooses between seeds; label more plates")
    given = [
        replace(
            job, seed=seed, place=job.place.with_name(f"fit-{seed}.npz"),
            tensorboard=None if job.tensorboard is None else job.tensorboard / str(seed),
        )
        for seed in context.seeds
    ]  # fmt: skip
    if context.team.size > 1 and context.team.board is None:
        found = together.run_each(given, context.team.size, context.progress, context.stop)
    else:
        found = [_fit_once(context, one) for one in given]
    losses = [min(point["validation_loss"] for point in one.curve) for one in found]
    best = int(np.argmin(losses))
    listed = [
        {"seed": one.seed, "validation_loss": round(loss, 5), "chosen": number == best}
        for number, (one, loss) in enumerate(zip(given, losses, strict=True))
    ]
    return found[best], {"seeds": listed}


def _judges(context: TrainContext, side: LoadedSet) -> Judges | None:
    """Return the validation images of each epoch; lab and rehearsal set have the same total weight."""
    if not len(side.rows):
        return None
    chosen = np.sort(np.random.default_rng(context.settings.seed).permutation(len(side.rows))[:JUDGES])
    rows = side.rows.only(chosen)
    weights = adapt.balanced(rows.targets, rows.weights, rows.is_lab)
    return Judges(side.place, chosen, rows.labels, weights, context.preprocessing)


def _choose_interpolation(
    context: TrainContext, evaluator: _Network, validation: LoadedSet, old: Weights, new: Weights
) -> adapt.Interpolation:
    if not context.own_classes:
        return adapt.Interpolation(1.0, {})
    if not len(validation.rows):
        return adapt.Interpolation(0.5, {})

    def logits_of(share: float) -> NDArray[np.float32]:
        what = f"trying {100 * share:.0f} % of the new weights"
        return evaluator.logits(adapt.interpolated(old, new, share), validation.pixels, what)

    rows, margin = validation.rows, context.settings.imager_margin / 2
    return adapt.choose_interpolation(logits_of, rows.labels, rows.domains, adapt.SHARES, margin)


def _find_label_issues(context: TrainContext, training: LoadedSet, validation: LoadedSet) -> LabelIssues | None:
    """Find label issues on both sides, by heads on the features of the images as they are."""
    if not training.rows.is_lab.any():
        return None
    extractor = data.FeatureExtractor(context.architecture, renewed(context, training))
    parts = [
        _extract_features(context, extractor, side, f"{name}-{RENEWED}", data.UPRIGHT)
        for side, name in ((training, "train"), (validation, "validation"))
    ]
    return out_of_fold.find_issues(training.rows.and_(validation.rows), adapt.joined(parts), context.settings.seed)


def _calibrate(
    context: TrainContext,
    learned: _Learned,
    natural: NDArray[np.float64] | None,
    issues: LabelIssues | None,
    unreadable: tuple[str, ...],
) -> Candidate:
    """Shift the logits to the natural shares, and fit temperature and threshold on images that taught nothing."""
    rows, logits, parent = learned.judged.rows, learned.judged.logits, context.parent
    weights, alarms, own_issues = learned.weights, None, None
    kept = parent if learned.trained_with is None else None
    if learned.trained_with is not None:
        shift = _natural_shift(learned.tier, calibrate.natural_shift(learned.trained_with, natural, rows), logits)
        weights, logits = network.shifted(weights, shift), logits + shift
        alarms = _champion_false_alarms(context, learned.judged)
    found = calibrate.calibrate(logits, rows, natural, kept, parent.threshold, context.settings.recall, alarms)
    if learned.trained_with is not None:
        own_issues = _find_own_issues(rows, probabilities.softmax(logits / found.temperature))
    measured = learned.measured | found.measured
    return Candidate(learned.tier, learned.architecture, weights, found, measured, issues, own_issues, unreadable)


def _natural_shift(tier: Tier, shift: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the shift for what a tier learned with other shares; the rest knows the natural ones from before."""
    if tier == "normalization":
        return np.zeros_like(shift)
    return calibrate.keep_crystals(shift, logits) if tier in KEEPS_CRYSTALS else shift


def _champion_false_alarms(context: TrainContext, judged: _Judged) -> float | None:
    """Return the share of the lab's drops without crystals that the champion flags; None without any."""
    others = judged.champion[judged.rows.is_lab & (judged.rows.labels != CRYSTALS)]
    return float((others >= context.parent.threshold.crystal).mean()) if len(others) else None


def _estimate_natural_shares(
    learned: _Learned, found: NDArray[np.uint8], validation: data.TrainingSet
) -> NDArray[np.float64] | None:
    """Average the shares of the four classes among the lab's images and in the rehearsal set.

    Returns float [4], or None when the sample is too small.
    """
    if len(found) < _FEWEST_NATURAL or learned.trained_with is None:
        return None
    scores = probabilities.softmax(learned.logits_of(found))
    natural = adapt.natural_shares(scores.astype(np.float64), learned.trained_with)
    base = np.flatnonzero(~validation.is_lab)
    if not len(base):
        return natural
    return (natural + adapt.shares(validation.targets[base], validation.weights[base])) / 2


def _find_own_issues(rows: data.TrainingSet, scores: NDArray[np.float32]) -> LabelIssues | None:
    """Find issues in the lab's labels by the candidate, which had not seen them; None where there are few labels."""
    lab = np.flatnonzero(rows.is_lab)
    if len(lab) < _FEWEST_JUDGED:
        return None
    return label_issues.find(scores[lab], rows.labels[lab], [rows.persons[i] for i in lab], rows.weights[lab])
