"""Size of a scorer's batches: as set or found by its own speed, and smaller while memory is short."""

import statistics
from typing import Final

from marcod import telemetry

log = telemetry.logger(__name__)

CALM_BATCHES: Final = 20
"""Batches without a shortage of memory after which twice as many images are tried."""

FIRST: Final = 4
"""Images of the first batches where speed decides."""

TIMED: Final = 5
"""Batches that are timed at each size."""

BY_PARTS: Final = 16
"""Most images that are tried where threads of a processor take parts of a batch: more take memory alone."""

GAIN: Final = 1.02
"""Rate that more images must reach, against the best size so far, to be worth their memory."""

MISSES: Final = 2
"""Sizes one after the other that reach no such rate, after which no larger one is tried."""


class BatchSize:
    """Size of a batch, at most ``most`` images: halved with every shortage of memory, doubled after a calm time.

    With ``measured`` it begins at ``FIRST`` and doubles until two sizes in a row score no more images a second.
    """

    def __init__(self, most: int, *, measured: bool = False) -> None:
        self._most, self._calm = most, 0
        self._limit = most
        self.images = min(FIRST, most) if measured else most
        self._measured = measured
        self._search = _Search() if measured else None

    def limit(self, most: int | None) -> None:
        """Take no more than ``most`` images where the size is measured; None lifts that."""
        if self._measured:
            self._limit = self._most if most is None else most
            self.images = min(self.images, self._top)

    @property
    def _top(self) -> int:
        return min(self._most, self._limit)

    def note(self, images: int, seconds: float | None, *, short: bool) -> None:
        """Adjust the size after a batch.

        ``seconds`` have passed since the end of the batch before, None where the scorer waited between the two.
        """
        if short:
            self._search, self._calm, self.images = None, 0, max(1, self.images // 2)
            log.warning("memory is short, batches are halved", images=self.images)
        elif self._search is not None:
            if seconds is not None and images == self.images:
                self._measure(self._search, seconds)
        else:
            self._calm += 1
            if self.images < self._top and self._calm >= CALM_BATCHES:
                self._calm, self.images = 0, min(self._top, 2 * self.images)

    def _measure(self, search: "_Search", seconds: float) -> None:
        if not search.add(self.images, seconds):
            return
        if search.misses < MISSES and self.images < self._top:
            self.images = min(self._top, 2 * self.images)
            return
        self._search, self.images, self._most = None, min(search.best, self._top), search.best
        log.info("batch size found", images=search.best)


class _Search:
    """Times of full batches by their size; ``misses`` sizes since the ``best`` one were no better."""

    def __init__(self) -> None:
        self.best, self.misses = FIRST, 0
        self._rate, self._seconds = 0.0, list[float]()

    def add(self, images: int, seconds: float) -> bool:
        """Take one time. Returns True once this size was timed often enough."""
        self._seconds.append(seconds)
        if len(self._seconds) < TIMED:
            return False
        # The first batches of a size are slow where the device compiles for it, so the median speaks.
        rate = images / max(statistics.median(self._seconds), 1e-9)
        self._seconds.clear()
        if rate >= GAIN * self._rate:
            self.best, self.misses, self._rate = images, 0, rate
        else:
            self.misses += 1
        return True
