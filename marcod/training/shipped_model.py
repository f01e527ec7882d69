"""Training of the shipped bundle from scratch on rendered drops.

Every image comes from a seed; training, validation and test seeds never meet. The bundle's notice warns that it has
never seen a photograph. Temperature scaling is Guo et al., arXiv 1706.04599.
"""

import multiprocessing
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod import synthetic
from marcod.domain import CLASSES, CRYSTALS, DropClass, TrainedOn
from marcod.evaluate import metrics
from marcod.fitting import batches, fit
from marcod.fitting.fit import FitOptions, Progress
from marcod.fitting.recipes import SHIPPED, Recipe
from marcod.model import backend, bundle, network, preprocess, probabilities
from marcod.model.inception import MARCO_SMALL
from marcod.model.preprocess import Preprocessing

PREPROCESSING: Final = Preprocessing(MARCO_SMALL.input_size, "area")
KEPT: Final = round(batches.KEPT_SHARE * MARCO_SMALL.input_size)
"""Side of the images kept for training."""

TARGET_RECALL: Final = 0.95
NOTICE: Final = (
    "Trained on rendered drops only: this model has never seen a photograph.\n"
    "It is for trying the program. Do not decide about crystals with it."
)

# A million seeds for each purpose, so that no image is ever in two sets.
TRAINING, VALIDATION, TEST, GOLDEN = 1_000_000, 2_000_000, 3_000_000, 4_000_000

_PART: Final = 16


@dataclass(frozen=True)
class Examples:
    """Rendered drops: uint8 [n, size, size, 3], and class indices int32 [n] in the order of domain.CLASSES."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]


def render_examples(
    first_seed: int, count: int, side: int, *, balanced: bool, processes: int = 2, progress: Progress | None = None
) -> Examples:
    """Render ``count`` drops from the seeds following ``first_seed``, balanced or in natural shares.

    More than one process are spawned, since a fork of a process that runs TensorFlow may hang.
    """
    tasks = [(first_seed + i, CLASSES[i % len(CLASSES)] if balanced else None) for i in range(count)]
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int32)
    with ExitStack() as stack:
        drawn: Iterable[tuple[bytes, DropClass]] = map(synthetic.drop_jpeg_of, tasks)
        if processes > 1:
            # They only draw; TensorFlow, which decodes, would take each of them seconds to load.
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            drawn = pool.imap(synthetic.drop_jpeg_of, tasks, chunksize=8)
        for i, (data, label) in enumerate(drawn):
            images[i], labels[i] = _prepared(data, side), CLASSES.index(label)
            if progress is not None:
                progress("rendering", i + 1, count)
    return Examples(images, labels)


def _prepared(data: bytes, side: int) -> NDArray[np.uint8]:
    ready = preprocess.prepare(preprocess.decode(data), replace(PREPROCESSING, size=side))
    return np.asarray(np.rint((ready + 1) * 127.5), np.uint8)


def phases(epochs: int) -> list[Recipe]:
    """Return the recipes of the shipped bundle: the rate falls and starts again after two thirds of the epochs."""
    first = epochs * 2 // 3
    parts = (replace(SHIPPED, epochs=first), replace(SHIPPED, epochs=epochs - first, rate=1.5e-3))
    return [part for part in parts if part.epochs > 0]


def as_images(examples: Examples) -> batches.Images:
    """Wrap examples for training."""
    return batches.in_memory(examples.images, batches.one_hot(examples.labels, len(CLASSES)))


def train_synthetic(
    models: Path,
    *,
    version: int = 1,
    seed: int = 1,
    images: int = 8000,
    epochs: int = 18,
    held_out: int = 2000,
    processes: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Render, train, calibrate and measure a small network, and write it as bundle ``marco-small-synthetic``.

    ``images`` are rendered for training and ``held_out`` each for validation and for the test. Takes the
    better part of an hour on two cores with the defaults. Raises BundleError when the version exists.
    """
    render = partial(render_examples, processes=processes, progress=progress)
    examples = render(TRAINING, images, KEPT, balanced=True)
    validation = render(VALIDATION, held_out, PREPROCESSING.size, balanced=False)
    test = render(TEST, held_out, PREPROCESSING.size, balanced=False)
    weights: dict[str, NDArray[np.float32]] = {}
    options, given = FitOptions() if progress is None else FitOptions(progress=progress), as_images(examples)
    for number, phase in enumerate(phases(epochs)):
        weights = fit.fit(MARCO_SMALL, phase, given, seed=seed + number, weights=weights, options=options).weights
    recipe = f"seed {seed}, {epochs} epochs over {images} rendered drops"
    return finish(models, weights, validation, test, version=version, recipe=recipe)


def finish(
    models: Path,
    weights: Mapping[str, NDArray[np.float32]],
    validation: Examples,
    test: Examples,
    *,
    version: int,
    recipe: str,
) -> Path:
    """Calibrate ``weights`` on validation drops, measure them on test drops, and write the bundle.

    ``recipe`` describes how the weights were trained.
    """
    weights = _with_natural_shares(weights, validation.labels)
    score = network.compiled(MARCO_SMALL, weights, batch_size=_PART)
    logits = {"validation": _logits(score, validation), "test": _logits(score, test)}
    temperature = metrics.fit_temperature(logits["validation"], validation.labels)
    crystals = probabilities.softmax(logits["validation"] / temperature)[:, CRYSTALS]
    threshold = metrics.recall_threshold(crystals[validation.labels == CRYSTALS], TARGET_RECALL)
    record = _record(version, temperature, threshold, recipe, len(validation.labels))
    measured = {
        "notice": NOTICE,
        "synthetic": True,
        "recipe": recipe,
        "first_seeds": {"training": TRAINING, "validation": VALIDATION, "test": TEST, "golden": GOLDEN},
        "validation": metrics.measure(logits["validation"], validation.labels, temperature, threshold),
        "test": metrics.measure(logits["test"], test.labels, temperature, threshold),
    }
    return bundle.write(models, record, weights, measured, _golden(score, temperature))


def _record(version: int, temperature: float, threshold: float, recipe: str, held_out: int) -> bundle.BundleRecord:
    measured_on = f"{held_out} synthetic validation drops, seeds from {VALIDATION}; not photographs"
    return bundle.new_record(
        name="marco-small-synthetic",
        version=version,
        classes=[c.value for c in CLASSES],
        folding={c.value: c for c in CLASSES},
        temperature=temperature,
        threshold=bundle.Threshold(crystal=threshold, recall=TARGET_RECALL, measured_on=measured_on),
        training_data=f"synthetic: {recipe}, drops from seed {TRAINING} on",
        licence="Apache-2.0",
        trained_on=(TrainedOn.RENDERED,),
        notice=NOTICE,
        architecture=MARCO_SMALL.to_dict(),
        preprocessing=PREPROCESSING.to_dict(),
    )


def _with_natural_shares(
    weights: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int32]
) -> dict[str, NDArray[np.float32]]:
    """Shift the last bias from the equal shares of training to the shares of ``labels``, so scores are calibrated."""
    shares = np.maximum(np.bincount(labels, minlength=len(CLASSES)), 1) / len(labels)
    return network.shifted(weights, np.log(shares * len(CLASSES)).astype(np.float32))


def _logits(score: backend.Scoring, examples: Examples) -> NDArray[np.float32]:
    parts = (examples.images[i : i + 32] for i in range(0, len(examples.images), 32))
    return np.concatenate([score(part.astype(np.float32) / np.float32(127.5) - 1) for part in parts])


def _golden(score: backend.Scoring, temperature: float) -> list[bundle.Golden]:
    """Return one synthetic drop of each class with its present scores."""
    found = []
    for index, label in enumerate(CLASSES):
        data, _ = synthetic.drop_jpeg(GOLDEN + len(synthetic.SIZES) * index, label)
        image = preprocess.prepare(preprocess.decode(data), PREPROCESSING)
        scores = probabilities.softmax(score(image[np.newaxis]) / temperature)[0]
        found.append(bundle.Golden(f"synthetic-{label.value.lower()}.jpg", data, scores.tolist()))
    return found
