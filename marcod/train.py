"""Training from scratch on rendered drops: the recipe behind the bundle that ships with the project.

Hides rendering, augmentation, fitting, calibration and the measuring of the result. Promises that every
picture comes from a seed, that training, validation and test seeds never meet, and that the bundle says
loudly that it has never seen a photograph. Sources: the augmentation and the running average of weights
are the paper's (Bruno et al., PLOS ONE 2018); temperature scaling is Guo et al., arXiv 1706.04599.
"""

import io
import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from marcod import bundle, metrics, network, preprocess, synthetic
from marcod.domain import CLASSES, DropClass
from marcod.network import MARCO_SMALL
from marcod.preprocess import Preprocessing

PREPROCESSING: Final = Preprocessing(MARCO_SMALL.input_size, "area")
_KEPT: Final = 256
"""Side of the pictures kept for training, larger than the network's input to leave patches their detail."""

TARGET_RECALL: Final = 0.95
NOTICE: Final = (
    "Trained on rendered drops only: this model has never seen a photograph.\n"
    "It is for trying the program. Do not decide about crystals with it."
)

# A million seeds for each purpose, so that no picture is ever in two sets.
TRAINING, VALIDATION, TEST, GOLDEN = 1_000_000, 2_000_000, 3_000_000, 4_000_000

_SIZES: Final = ((330, 270), (330, 270), (330, 270), (330, 270), (660, 540))

_CRYSTALS: Final = CLASSES.index(DropClass.CRYSTALS)
_LAST_BIAS: Final = f"{network.ROOT}/Logits/Conv2d_1c_1x1/biases"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examples:
    """Rendered drops: uint8 [n, size, size, 3], and class indices int32 [n] in the order of domain.CLASSES."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int32]


def render_examples(
    first_seed: int, count: int, side: int, *, balanced: bool, processes: int = 2, progress: Progress | None = None
) -> Examples:
    """``count`` drops from the seeds following ``first_seed``, each class equally often or as often as in nature.

    More than one process are spawned, since a fork of a process that runs TensorFlow may hang.
    """
    tasks = [(first_seed + i, CLASSES[i % len(CLASSES)] if balanced else None, side) for i in range(count)]
    pictures, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int32)
    with ExitStack() as stack:
        drawn: Iterable[tuple[NDArray[np.uint8], int]] = map(_example, tasks)
        if processes > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            drawn = pool.imap(_example, tasks, chunksize=8)
        for i, (picture, label) in enumerate(drawn):
            pictures[i], labels[i] = picture, label
            if progress is not None:
                progress("rendering", i + 1, count)
    return Examples(pictures, labels)


def rendered_jpeg(seed: int, label: DropClass | None = None) -> tuple[bytes, DropClass]:
    """One synthetic drop as an imager would write it, and its true class."""
    scene = synthetic.random_scene(seed, label)
    pixels = synthetic.render(scene, _SIZES[seed % len(_SIZES)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), synthetic.scene_label(scene)


def _example(task: tuple[int, DropClass | None, int]) -> tuple[NDArray[np.uint8], int]:
    seed, wanted, side = task
    data, label = rendered_jpeg(seed, wanted)
    ready = preprocess.prepare(preprocess.decode(data), replace(PREPROCESSING, size=side))
    return np.rint((ready + 1) * 127.5).astype(np.uint8), CLASSES.index(label)


@dataclass(frozen=True)
class Phase:
    """So many epochs, in which the learning rate falls from ``peak_rate`` to nothing."""

    epochs: int
    peak_rate: float


def phases(epochs: int) -> list[Phase]:
    """The rate falls and starts again after two thirds of the epochs."""
    first = epochs * 2 // 3
    return [p for p in (Phase(first, 2e-3), Phase(epochs - first, 1.5e-3)) if p.epochs > 0]


def fit(
    examples: Examples,
    phase: Phase,
    *,
    seed: int,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """One phase of training on ``examples``, from ``weights`` or from scratch; returns the new weights.

    Adam with a short warm-up and cosine decay; what is returned is the running average of the weights.
    """
    keras.utils.set_random_seed(seed)
    model = network.build(MARCO_SMALL)
    if weights:
        network.set_variables(model, weights)
    steps = len(examples.labels) // batch_size
    optimizer = keras.optimizers.Adam(_schedule(phase, steps))
    # Variables made inside the first step would make TensorFlow trace the step twice, half a minute each.
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)
    callbacks = [_RunningAverage(), *([] if progress is None else [_report(progress, phase.epochs)])]
    batches = _augmented(examples, MARCO_SMALL.input_size, seed, batch_size)
    model.fit(batches, epochs=phase.epochs, steps_per_epoch=steps, callbacks=callbacks, shuffle=False, verbose=0)
    return network.variables(model)


class _RunningAverage(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the training with the average of the last two hundred steps, batch norm's statistics included."""

    def __init__(self) -> None:
        super().__init__()
        self._average: list[NDArray[np.float32]] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if self._average and batch % 10:
            return
        now = self.model.get_weights()
        self._average = [a + 0.05 * (n - a) for a, n in zip(self._average or now, now, strict=True)]

    def on_train_end(self, logs: object = None) -> None:
        self.model.set_weights(self._average)


def _schedule(phase: Phase, steps: int) -> Any:
    total = phase.epochs * steps
    return keras.optimizers.schedules.CosineDecay(
        phase.peak_rate / 20, total, warmup_target=phase.peak_rate, warmup_steps=min(300, total // 10), alpha=0.01
    )


def _report(progress: Progress, epochs: int) -> Any:
    return keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: progress(
            f"training, loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.3f}", epoch + 1, epochs
        )
    )


def _augmented(examples: Examples, side: int, seed: int, batch_size: int) -> Any:
    """Endless shuffled batches of float32 pictures in -1..1 and labels, the same ones for the same seed."""
    pictures, labels = tf.constant(examples.pictures), tf.constant(examples.labels)

    def batch(step: Any, chosen: Any) -> tuple[Any, Any]:
        seeds = tf.stack([tf.cast(seed, tf.int64), step])
        return _augment(tf.gather(pictures, chosen), side, seeds), tf.gather(labels, chosen)

    order = tf.data.Dataset.range(len(examples.labels)).shuffle(len(examples.labels), seed=seed).repeat()
    numbered = order.batch(batch_size, drop_remainder=True).enumerate()
    as_it_is = tf.autograph.experimental.do_not_convert(batch)
    return numbered.map(as_it_is, num_parallel_calls=2, deterministic=True).prefetch(2)


def _augment(pictures: Any, side: int, seed: Any) -> Any:
    """Augment a batch, uint8 to float32 in -1..1: patch, flips, turns, light and colour.

    The kinds are the paper's, plus quarter turns; the ranges are half as wide or less, since so short a
    training does not learn its pictures by heart.
    """
    count = tf.shape(pictures)[0]
    seeds = iter(tf.unstack(tf.random.split(seed, 10)))

    def draw(low: float, high: float, *shape: int) -> Any:
        return tf.random.stateless_uniform([count, *shape], next(seeds), low, high)

    x = tf.image.crop_and_resize(tf.cast(pictures, tf.float32) / 255.0, _boxes(draw), tf.range(count), (side, side))
    x = tf.where(draw(0, 1, 1, 1, 1) < 0.5, tf.transpose(x, [0, 2, 1, 3]), x)
    x = tf.image.adjust_hue(x, tf.random.stateless_uniform([], next(seeds), -0.03, 0.03))
    grey = tf.reduce_mean(x, axis=3, keepdims=True)
    x = grey + (x - grey) * draw(0.7, 1.3, 1, 1, 1)
    level = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
    x = level + (x - level) * draw(0.8, 1.2, 1, 1, 1) + draw(-16 / 255, 16 / 255, 1, 1, 1)
    return tf.clip_by_value(x, 0.0, 1.0) * 2.0 - 1.0


def _boxes(draw: Callable[..., Any]) -> Any:
    """Random square patches of 0.85 to 1 of the side, half of them flipped up-down, half left-right."""
    side = draw(0.85, 1.0)
    top, left = draw(0.0, 1.0) * (1.0 - side), draw(0.0, 1.0) * (1.0 - side)
    y, x = tf.stack([top, top + side], 1), tf.stack([left, left + side], 1)
    y = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(y, [1]), y)
    x = tf.where(draw(0.0, 1.0, 1) < 0.5, tf.reverse(x, [1]), x)
    return tf.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1)


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
    examples = render(TRAINING, images, _KEPT, balanced=True)
    validation = render(VALIDATION, held_out, PREPROCESSING.size, balanced=False)
    test = render(TEST, held_out, PREPROCESSING.size, balanced=False)
    weights: dict[str, NDArray[np.float32]] = {}
    for number, phase in enumerate(phases(epochs)):
        weights = fit(examples, phase, seed=seed + number, weights=weights, progress=progress)
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

    ``recipe`` says in words how the weights came to be.
    """
    weights = _with_natural_shares(weights, validation.labels)
    score = network.compiled(MARCO_SMALL, weights)
    logits = {"validation": _logits(score, validation), "test": _logits(score, test)}
    temperature = metrics.fit_temperature(logits["validation"], validation.labels)
    crystals = metrics.softmax(logits["validation"] / temperature)[:, _CRYSTALS]
    threshold = metrics.recall_threshold(crystals[validation.labels == _CRYSTALS], TARGET_RECALL)
    record = _record(version, temperature, threshold, recipe, len(validation.labels))
    measured = {
        "notice": NOTICE,
        "synthetic": True,
        "recipe": recipe,
        "first_seeds": {"training": TRAINING, "validation": VALIDATION, "test": TEST, "golden": GOLDEN},
        "validation": metrics.measure(logits["validation"], validation.labels, temperature, threshold),
        "test": metrics.measure(logits["test"], test.labels, temperature, threshold),
    }
    predictor = bundle.Predictor(record, weights, batch_size=len(CLASSES))
    return bundle.write(models, record, weights, measured, _golden(predictor))


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
        synthetic=True,
        notice=NOTICE,
        architecture=MARCO_SMALL.to_dict(),
        preprocessing=PREPROCESSING.to_dict(),
    )


def _with_natural_shares(
    weights: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int32]
) -> dict[str, NDArray[np.float32]]:
    """Shift the last bias from the equal shares of training to the shares of ``labels``, so scores are calibrated."""
    shares = np.maximum(np.bincount(labels, minlength=len(CLASSES)), 1) / len(labels)
    shift = np.log(shares * len(CLASSES)).astype(np.float32)
    return {**weights, _LAST_BIAS: weights[_LAST_BIAS] + shift}


def _logits(score: Callable[[NDArray[np.float32]], NDArray[np.float32]], examples: Examples) -> NDArray[np.float32]:
    parts = [score(part.astype(np.float32) / np.float32(127.5) - 1) for part in _split(examples.pictures, 32)]
    return np.concatenate(parts)


def _split(pictures: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    return [pictures[i : i + size] for i in range(0, len(pictures), size)]


def _golden(predictor: bundle.Predictor) -> list[bundle.Golden]:
    """One synthetic drop of each class with the scores it gets now."""
    found = []
    for index, label in enumerate(CLASSES):
        data, _ = rendered_jpeg(GOLDEN + len(_SIZES) * index, label)
        scores = predictor.predict(predictor.prepare(data)[np.newaxis])[0]
        found.append(bundle.Golden(f"synthetic-{label.value.lower()}.jpg", data, scores.tolist()))
    return found
