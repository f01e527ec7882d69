"""The paper's recipe: the small network on rendered drops, and the first steps of the full-size one."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.tables import Cell, Table
from marcod.domain import CLASSES
from marcod.evaluate import metrics
from marcod.fitting import batches, fit, recipes
from marcod.fitting.fit import FitOptions, Validation
from marcod.model import network, preprocess, registry
from marcod.model.inception import MARCO, MARCO_SMALL
from marcod.model.weights import is_auxiliary
from marcod.settings.environment import child_environment
from marcod.training import shipped_model

IMAGES: Final = 8000
HELD_OUT: Final = 2000
EPOCHS: Final = 32
BATCH: Final = 64
KEPT: Final = round(batches.KEPT_SHARE * MARCO_SMALL.input_size)
"""Side of the images kept for training."""

STEPS: Final = 6


def run(bench: Bench) -> Iterator[Table]:
    """Both tables."""
    images, held_out, epochs = bench.size(IMAGES, 256), bench.size(HELD_OUT, 64), bench.size(EPOCHS, 1)
    bench.say(f"rendering {images + 2 * held_out} drops")
    examples = _rendered(shipped_model.TRAINING, images, KEPT, balanced=True)
    validation = _rendered(shipped_model.VALIDATION, held_out, MARCO_SMALL.input_size, balanced=False)
    test = _rendered(shipped_model.TEST, held_out, MARCO_SMALL.input_size, balanced=False)
    yield small(bench, examples, validation, test, epochs)
    yield full(bench)


@dataclass(frozen=True)
class Examples:
    """Rendered drops: uint8 [n, side, side, 3], and class indices [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.intp]

    def to_train_on(self) -> batches.Images:
        """Wrap them for training."""
        return batches.in_memory(self.images, batches.one_hot(self.labels, len(CLASSES)))


def _rendered(first_seed: int, count: int, side: int, *, balanced: bool, processes: int = 2) -> Examples:
    tasks = [(first_seed + i, CLASSES[i % len(CLASSES)] if balanced else None) for i in range(count)]
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.intp)
    for i, (data, label) in enumerate(shipped_model.draw(tasks, processes)):
        images[i], labels[i] = batches.shrunk(preprocess.decode(data), side), CLASSES.index(label)
    return Examples(images, labels)


def small(bench: Bench, examples: Examples, validation: Examples, test: Examples, epochs: int) -> Table:
    """Train the small network from scratch and compare it with the shipped bundle on the same drops."""
    recipe = recipes.scratch(MARCO_SMALL.input_size, epochs=epochs, batch_size=BATCH, quarter_turns=True)
    start = time.perf_counter()

    def progress(what: str, done: int, total: int) -> None:
        if done % 125 == 0:
            bench.say(f"{what}, step {done} of {total}")

    fitted = fit.fit(
        replace(MARCO_SMALL, auxiliary=True), recipe, examples.to_train_on(),
        seed=1, validation=_judges(validation), options=FitOptions(progress=progress),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    weights = {name: value for name, value in fitted.weights.items() if not is_auxiliary(name)}
    found = _measured(weights, validation, test)
    shipped = json.loads((registry.shipped_folder().joinpath(*registry.SHIPPED) / "metrics.json").read_text())
    rows: list[list[Cell]] = [
        ["the paper's recipe, from scratch", *_cells(found)],
        ["the shipped bundle", *_cells(shipped["test"])],
    ]
    about = (
        f"Test: {len(test.labels)} rendered drops, those of the shipped bundle's test (seeds from "
        f"{shipped_model.TEST}). "
        f"Trained for {len(fitted.curve)} epochs on the {len(examples.labels)} rendered drops that it was trained on: "
        f"RMSProp, rate {recipe.rate:.4f} times 0.94 every two epochs, momentum and decay 0.9, epsilon 0.1, batch "
        f"{BATCH}, all distortions of the paper, auxiliary head, seed 1; {seconds / 60:.0f} minutes."
    )
    return Table(
        "From scratch", about, ["model", "accuracy", "crystal average precision", "crystal AUC", "log loss"], rows
    )


def _judges(drops: Examples) -> Validation:
    ready = drops.images.astype(np.float32) / 127.5 - 1
    return Validation(ready, drops.labels.astype(np.intp), np.ones(len(drops.labels), np.float32))


def _measured(weights: dict[str, Any], validation: Examples, test: Examples) -> dict[str, Any]:
    """The test's numbers, after the natural shares and the temperature were taken from validation."""
    natural = np.bincount(validation.labels, minlength=len(CLASSES)) / len(validation.labels)
    weights = network.shifted(weights, np.log(natural * len(CLASSES)).astype(np.float32))
    score = network.compiled(MARCO_SMALL, weights, BATCH)
    logits = [np.concatenate([score(_judges(part).images) for part in _parts(drops)]) for drops in (validation, test)]
    temperature = metrics.fit_temperature(logits[0], validation.labels)
    return metrics.measure(logits[1], test.labels, temperature, 0.5)


def _parts(drops: Examples) -> Iterator[Examples]:
    for start in range(0, len(drops.labels), BATCH):
        yield Examples(drops.images[start : start + BATCH], drops.labels[start : start + BATCH])


def _cells(found: dict[str, Any]) -> list[Cell]:
    return [found[name] for name in ("accuracy", "crystal_average_precision", "crystal_auc", "log_loss")]


def full(bench: Bench) -> Table:
    """The first steps of the published network on one batch, in a process of its own so that its memory is its own."""
    batch, steps = bench.size(BATCH, 2), bench.size(STEPS, 2)
    bench.say(f"{steps} steps of the published network on {batch} images")
    command = [sys.executable, "-m", "benchmarks.scratch", str(batch), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment())
    found = json.loads(done.stdout.splitlines()[-1])
    rows: list[list[Cell]] = [
        [step, round(loss, 4), round(seconds, 1)]
        for step, (loss, seconds) in enumerate(zip(found["losses"], found["seconds"], strict=True), 1)
    ]
    about = (
        f"The published network at 599 pixels with its auxiliary head and random weights, {batch} rendered drops, the "
        f"paper's recipe (rate 0.045, epsilon 0.1, decay and momentum 0.9), float32, on the CPU; the loss is of both "
        f"heads and the same batch each time. Most memory of the process: {found['memory_gb']:.1f} GB."
    )
    return Table("First steps of the full-size network", about, ["step", "loss", "seconds"], rows)


def _steps(batch: int, steps: int) -> dict[str, Any]:
    examples = _rendered(shipped_model.TRAINING, batch, MARCO.input_size, balanced=True, processes=1)
    losses: list[float] = []
    seconds: list[float] = []
    x = examples.images.astype(np.float32) / 127.5 - 1
    y = batches.one_hot(examples.labels, len(CLASSES))
    training = fit.Training(MARCO, replace(recipes.PAPER, batch_size=batch), examples.to_train_on(), seed=1)
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(float(training.model.train_on_batch(x, (y, y))[0]))
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"losses": losses, "seconds": seconds, "memory_gb": memory}


if __name__ == "__main__":
    print(json.dumps(_steps(int(sys.argv[1]), int(sys.argv[2]))))
