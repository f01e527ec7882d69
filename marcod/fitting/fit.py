"""Training loop with averaged weights, early stopping, half precision, devices and checkpoints.

Guarantees:

* A training killed at any point resumes from its last checkpoint with the batches it would have had.
* The result is the running average of the weights.
* The progress of the loss is kept.
* Several processes that joined train as one would with their batches together; the first alone writes.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray

from marcod.domain import CLASSES, CRYSTALS
from marcod.errors import TRY_AGAIN, MarcodError
from marcod.evaluate import metrics
from marcod.fitting import checkpoint
from marcod.fitting.batches import Images, batches
from marcod.fitting.checkpoint import TrainingState, Weights
from marcod.fitting.recipes import Recipe
from marcod.model import backend, network, probabilities
from marcod.model.architecture import Architecture
from marcod.model.weights import is_auxiliary

Progress = Callable[[str, int, int], None]
SAVE_EVERY_S: Final = 120.0


class StoppedError(Exception):
    """The stop event was set; the checkpoint holds what was done so far."""


class LostProcessError(MarcodError):
    """Another process of the training is gone; the next `marcod retrain` goes on from the checkpoint."""

    exit_code = TRY_AGAIN


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit: ``place`` is the checkpoint's file, None keeps nothing.

    ``progress`` is called after every step with what is done, steps done and steps in all.
    """

    place: Path | None = None
    stop: Event | None = None
    progress: Progress = lambda what, done, total: None
    tensorboard: Path | None = None
    save_every_s: float = SAVE_EVERY_S


@dataclass(frozen=True)
class Validation:
    """Validation images float32 [n, size, size, 3] in -1..1, class indices int [n], a weight each [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.intp]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Fitted:
    """New weights, and the measurements at the end of each epoch."""

    weights: Weights
    curve: list[dict[str, float]]


def fit(
    architecture: Architecture,
    recipe: Recipe,
    images: Images,
    *,
    seed: int,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    validation: Validation | None = None,
    precision: str = "float32",
    options: FitOptions | None = None,
) -> Fitted:
    """Train from ``weights``, or from random ones, as the recipe says.

    ``precision`` is a Keras dtype policy. Raises :class:`StoppedError` when the options's event was set, BundleError
    when weights and architecture do not fit, MarcodError for a damaged checkpoint, and :class:`LostProcessError`.
    """
    keras.utils.set_random_seed(seed)
    with backend.dtype_policy(precision), backend.data_parallel():
        training = Training(architecture, recipe, images, seed=seed, validation=validation, options=options)
        if weights:
            # Weights may lack the auxiliary head; the model keeps its own.
            own = {n: v for n, v in network.variables(training.model).items() if is_auxiliary(n)}
            network.set_variables(training.model, {**own, **weights})
        try:
            return training.run()
        except Exception as error:
            if backend.is_lost_process(error):
                raise LostProcessError from error
            raise


class Training:
    """State of a training, epoch by epoch; ``model`` is the compiled network."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        images: Images,
        *,
        seed: int,
        validation: Validation | None = None,
        options: FitOptions | None = None,
    ) -> None:
        self._recipe, self._images, self._seed = recipe, images, seed
        self._validation, self._options = validation, options or FitOptions()
        self._size, self._heads = architecture.input_size, 2 if recipe.auxiliary else 1
        self._share = backend.share()
        self._writes = self._share.number == 0
        if recipe.batch_size % self._share.of:
            raise MarcodError(
                f"a batch of {recipe.batch_size} images cannot be shared out evenly among {self._share.of} processes; "
                "choose train.batch_size or the number of processes so that it can"
            )
        self.steps = max(1, len(images) // recipe.batch_size)
        self.model = network.build(architecture, auxiliary=recipe.auxiliary > 0)
        self._compile()
        self._judge = self.model
        if self._share.of > 1:
            # What only one process looks at must not wait for the others.
            with backend.alone():
                self._judge = network.build(architecture, auxiliary=recipe.auxiliary > 0)
                self._judge.compile(jit_compile=True)
        self.average: Weights = {}
        self._best: Weights = {}
        self._best_loss: float | None = None
        self._curve: list[dict[str, float]] = []
        self._saved_at = time.monotonic()

    def _compile(self) -> None:
        trained = self.model.trainable_variables
        optimizer = self._recipe.make_optimizer(self.steps, trained)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        losses: dict[str, Any] = {"loss": loss}
        if self._heads == 2:
            losses = {"loss": [loss, loss], "loss_weights": [1.0, self._recipe.auxiliary]}
        self.model.compile(optimizer=optimizer, jit_compile=backend.training_compiler(), **losses)
        # With float16 Keras wraps it in one that scales the loss, whose variables a checkpoint holds too.
        self.model.optimizer.build(trained)
        # The loss makes variables at its first call; within the first step, TensorFlow would trace that step twice.
        blank = np.zeros((1, len(CLASSES)), np.float32)
        blanks = blank if self._heads == 1 else [blank] * self._heads
        self.model.compute_loss(y=blanks, y_pred=blanks)

    def run(self) -> Fitted:
        """Train all remaining epochs."""
        epoch, step = self._restore()
        self._require_same_start(epoch, step)
        while epoch < self._recipe.epochs and not self._patience_is_over():
            self._epoch(epoch, step)
            epoch, step = epoch + 1, 0
            self._save(epoch, step)
        return Fitted(self._best or self.average, self._curve)

    def _restore(self) -> tuple[int, int]:
        place = self._options.place
        state = None if place is None else checkpoint.load(place)
        if state is None:
            return 0, 0
        if len(state.optimizer) != len(self.model.optimizer.variables):
            raise MarcodError(f"the checkpoint {place} is of another kind of training; remove it to start again")
        self.average, self._best = state.average, state.best
        network.set_variables(self.model, state.weights)
        for variable, value in zip(self.model.optimizer.variables, state.optimizer, strict=True):
            variable.assign(value)
        self._best_loss, self._curve = state.best_loss, list(state.curve)
        return state.epoch, state.step

    def _require_same_start(self, epoch: int, step: int) -> None:
        """Raise MarcodError where this process would begin elsewhere than the first one."""
        if self._share.of == 1:
            return
        mine = f"{epoch}, {step}, {checkpoint.digest(network.variables(self.model))}"
        if backend.agreed(mine) != mine:
            raise MarcodError(
                f"process {self._share.number} read another checkpoint than process 0; "
                "train.folder must be one folder for all of them"
            )

    def _save(self, epoch: int, step: int) -> None:
        if self._options.place is None or not self._writes:
            return
        optimizer = [np.asarray(keras.ops.convert_to_numpy(v)) for v in self.model.optimizer.variables]
        now = network.variables(self.model)
        state = TrainingState(epoch, step, now, self.average, self._best, optimizer, self._best_loss, self._curve)
        checkpoint.save(self._options.place, state)
        self._saved_at = time.monotonic()

    def _patience_is_over(self) -> bool:
        if self._recipe.patience is None or not self._curve:
            return False
        losses = [point["validation_loss"] for point in self._curve if "validation_loss" in point]
        return len(losses) - 1 - int(np.argmin(losses)) >= self._recipe.patience if losses else False

    def _epoch(self, epoch: int, skip: int) -> None:
        data, left = batches(
            self._images, self._recipe.augmentation, self._size,
            batch_size=self._recipe.batch_size, heads=self._heads, seed=self._seed, epoch=epoch, skip=skip,
            share=self._share,
        )  # fmt: skip
        start, losses = time.perf_counter(), _Losses(self, epoch, skip)
        if left:
            self.model.fit(data, steps_per_epoch=left, epochs=1, shuffle=False, verbose=0, callbacks=[losses])
            if not np.isfinite(losses.mean):
                raise MarcodError(
                    f"the training failed: its loss is no number any more in pass {epoch + 1}; "
                    "try another train.seed or train.batch_size"
                )
        point = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - start, 2)}
        # Unknown where the training was stopped between the last step of a pass and its end.
        point |= {"loss": losses.mean} if left else {}
        point["rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._curve.append(point | self._validate())
        self._options.progress(_words(self._curve[-1]), (epoch + 1) * self.steps, self._recipe.epochs * self.steps)
        if self._options.tensorboard is not None and self._writes:
            _log_scalars(self._options.tensorboard, epoch + 1, self._curve[-1])

    def _validate(self) -> dict[str, float]:
        """Measure the averaged weights on validation images, and keep the best."""
        if self._validation is None:
            return {}
        found: dict[str, float] = json.loads(backend.agreed(json.dumps(self._measure() if self._writes else {})))
        if self._best_loss is None or found["validation_loss"] < self._best_loss:
            self._best_loss, self._best = found["validation_loss"], self.average
        return found

    def _measure(self) -> dict[str, float]:
        assert self._validation is not None
        now = network.variables(self._judge)
        with backend.alone():
            network.set_variables(self._judge, self.average)
            found = measured(self._logits(self._validation.images), self._validation)
            network.set_variables(self._judge, now)
        return found

    def _logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        size = self._recipe.batch_size
        parts = [self._judge.predict_on_batch(images[i : i + size]) for i in range(0, len(images), size)]
        return np.concatenate([part[0] if self._heads == 2 else part for part in parts])

    def after_step(self, epoch: int, step: int) -> None:
        """Average the weights, save now and then, and stop when requested."""
        options, done = self._options, epoch * self.steps + step
        if not self.average or done % self._recipe.average_every == 0:
            self._average(done)
        options.progress(_words(self._curve[-1] if self._curve else {}), done, self._recipe.epochs * self.steps)
        stopped = options.stop is not None and options.stop.is_set()
        if stopped or time.monotonic() - self._saved_at >= options.save_every_s:
            self._save(epoch, step)
        if stopped:
            raise StoppedError

    def _average(self, done: int) -> None:
        """Move the average; while it is young to the plain mean, or a short training would stay near its start."""
        now, old = network.variables(self.model), self.average
        share = np.float32(max(self._recipe.average_share, 1 / (1 + done // self._recipe.average_every)))
        self.average = {name: old[name] + share * (now[name] - old[name]) for name in old} or now


class _Losses(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that reports each step to the training and keeps the mean loss."""

    def __init__(self, training: Training, epoch: int, skip: int) -> None:
        super().__init__()
        self._training, self._epoch, self._skip = training, epoch, skip
        self.mean = float("nan")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.mean = float((logs or {}).get("loss", self.mean))
        # With JAX the weights come back into the model when a callback asks for it, and not before.
        assert self.model is self._training.model
        self._training.after_step(self._epoch, self._skip + batch + 1)


def measured(logits: NDArray[Any], validation: Validation) -> dict[str, float]:
    """Return weighted log loss and accuracy, and the crystals' average precision where that is defined."""
    scores, labels, weights = probabilities.softmax(logits), validation.labels, validation.weights
    found = {
        "validation_loss": metrics.log_loss(scores, labels, weights),
        "validation_accuracy": float(np.average(scores.argmax(axis=1) == labels, weights=weights)),
    }
    precision = metrics.average_precision(scores[:, CRYSTALS], labels == CRYSTALS)
    return found if precision is None else found | {"validation_crystal_average_precision": precision}


def _words(point: Mapping[str, float]) -> str:
    shown = {"loss": "loss", "validation_loss": "validation"}
    return ", ".join(["training", *(f"{word} {point[name]:.3f}" for name, word in shown.items() if name in point)])


def _log_scalars(folder: Path, epoch: int, point: Mapping[str, float]) -> None:
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=epoch):
        for name, value in point.items():
            tf.summary.scalar(name, value)
    writer.close()
