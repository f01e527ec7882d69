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

GAIN: Final = 1.05
"""Rate that twice as many images must reach, against the size before, to be worth their memory."""


class BatchSize:
    """Size of a batch, at most ``most`` images: halved with every shortage of memory, doubled after a calm time.

    With ``measured`` it begins at ``FIRST`` and doubles for as long as that scores more images a second.
    """

    def __init__(self, most: int, *, measured: bool = False) -> None:
        self._most, self._calm = most, 0
        self.images = min(FIRST, most) if measured else most
        self._search = _Search() if measured else None

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
            if self.images < self._most and self._calm >= CALM_BATCHES:
                self._calm, self.images = 0, min(self._most, 2 * self.images)

    def _measure(self, search: "_Search", seconds: float) -> None:
        best = search.add(self.images, seconds)
        if best is None:
            return
        if best == self.images < self._most:
            self.images = min(self._most, 2 * self.images)
            return
        self._search, self.images, self._most = None, best, best
        log.info("batch size found", images=best)


class _Search:
    """Times of full batches by their size, until twice as many images score no faster."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._before: tuple[int, float] | None = None

    def add(self, images: int, seconds: float) -> int | None:
        """Take one time. Returns the best size so far once this one was timed often enough, else None."""
        self._seconds.append(seconds)
        if len(self._seconds) < TIMED:
            return None
        # The first batches of a size are slow where the device compiles for it, so the median speaks.
        rate = images / max(statistics.median(self._seconds), 1e-9)
        before, self._before, self._seconds = self._before, (images, rate), []
        return before[0] if before is not None and rate < GAIN * before[1] else images
