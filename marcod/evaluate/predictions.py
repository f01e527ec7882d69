"""Predictions of a model for a labelled set: stored scores where there are any, else files scored now.

Unreadable images are named, never dropped silently.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marcod import images
from marcod.domain import CLASSES, CRYSTALS
from marcod.errors import ImageError, MarcodError
from marcod.evaluate import metrics
from marcod.evaluate.labelled import Labelled
from marcod.model import bundle, probabilities
from marcod.model.bundle import BundleRecord
from marcod.model.predictor import Predictor
from marcod.text import count

_LEAST: Final = 1e-38


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Logits float64 [n, own classes], before any temperature, of ``images``; and the unreadable images."""

    images: tuple[Labelled, ...]
    logits: NDArray[np.float64]
    unreadable: tuple[str, ...]

    def folded(self, record: BundleRecord, temperature: float | None = None) -> NDArray[np.float32]:
        """Return probabilities float32 [n, 4], columns as domain.CLASSES, by default at the record's temperature."""
        own = probabilities.softmax(self.logits / (record.temperature if temperature is None else temperature))
        return np.asarray(own @ bundle.folding(record), np.float32)

    @property
    def labels(self) -> NDArray[np.intp]:
        """The true classes as indices into domain.CLASSES, int [n]."""
        return np.array([CLASSES.index(image.label) for image in self.images], np.intp)

    def counted(self, record: BundleRecord) -> "Predictions":
        """Keep each unit once, by its most crystalline image, as for the verdict on a drop."""
        units = [image.unit for image in self.images]
        return self.only(metrics.highest(units, self.folded(record)[:, CRYSTALS]))

    def only(self, indices: Sequence[int]) -> "Predictions":
        """Select images, in that order."""
        return Predictions(tuple(self.images[i] for i in indices), self.logits[list(indices)], self.unreadable)


def predict(
    images: Sequence[Labelled],
    record: BundleRecord,
    load: Callable[[], Predictor],
    *,
    threads: int,
    done: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Score images; ``load`` is called only when one has no stored score, ``done`` with how many are finished.

    Raises MarcodError when not one of them can be read, and what ``load`` raises.
    """
    logits = {i: _logits_of(p.stored, record.temperature) for i, p in enumerate(images) if p.stored is not None}
    unreadable: dict[int, str] = {}
    done(len(logits))
    if waiting := [i for i in range(len(images)) if i not in logits]:
        predictor = load()
        for batch in prepared([p.file for p in images], waiting, predictor, threads):
            pixels = {i: outcome for i, outcome in batch.items() if not isinstance(outcome, str)}
            unreadable |= {i: f"{images[i].file}: {text}" for i, text in batch.items() if isinstance(text, str)}
            if pixels:
                logits.update(zip(pixels, predictor.logits(list(pixels.values())), strict=True))
            done(len(logits) + len(unreadable))
    if not logits:
        raise MarcodError(f"none of {count(len(images), 'image')} can be read: {next(iter(unreadable.values()), '')}")
    kept = sorted(logits)
    rows = np.array([logits[i] for i in kept], np.float64)
    return Predictions(tuple(images[i] for i in kept), rows, tuple(unreadable.values()))


def _logits_of(probabilities: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Return logits, up to a constant, that give these probabilities at the temperature."""
    return temperature * np.log(np.maximum(np.array(probabilities, np.float64), _LEAST))


Outcome = NDArray[np.float32] | str


def prepared(
    files: Sequence[Path], waiting: Iterable[int], predictor: Predictor, threads: int
) -> Iterator[dict[int, Outcome]]:
    """Yield batches of pixels, or the error of an image, by index; the next batch is decoded meanwhile."""
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:

        def batches() -> Iterator[dict[int, Future[Outcome]]]:
            rest = iter(waiting)
            while part := list(islice(rest, predictor.batch_size)):
                yield {i: pool.submit(_prepare, predictor, files[i]) for i in part}

        coming = batches()
        ahead = next(coming, None)
        while ahead is not None:
            batch, ahead = ahead, next(coming, None)
            yield {i: future.result() for i, future in batch.items()}


def _prepare(predictor: Predictor, file: Path) -> Outcome:
    try:
        return predictor.prepare(images.read(file))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "cannot be read"
