"""A range of a campaign in the hands of one worker: hundreds of images under one lease, in batches for the device.

Their outcomes are gathered and written together, because a transaction costs nearly the same for a batch as for all of
them. New images never wait for it: the worker asks for those between two batches.
"""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Final

from marcod.scoring.outcomes import Outcome, joined
from marcod.store import queue
from marcod.store.ranges import RangeLease

FEWEST: Final = 256
MOST: Final = 1024
"""Images of a claim, by what the device takes at a time."""

BATCHES: Final = 16
"""Batches of a claim, within those bounds."""

GATHERED_S: Final = 10.0
"""Outcomes are written after this time, so that a worker that dies loses little more; see :attr:`RangeWork.is_due`."""


def claim_size(batch: int) -> int:
    """Return how many images to claim for a device that takes so many at a time."""
    return min(MOST, max(FEWEST, BATCHES * batch))


@dataclass(frozen=True, slots=True)
class GatheredScores:
    """Outcomes to be written, with their images in order; ``keeps`` tells that more of the lease come later."""

    lease: RangeLease
    outcome: Outcome
    keeps: bool


class RangeWork:
    """Work on the lease of a range: images that come next, and outcomes that are to be written."""

    def __init__(self, lease: RangeLease) -> None:
        self.lease: Final = lease
        self._begun = self._passed = 0
        self._claims: list[queue.Claim] = []
        self._outcomes: list[Outcome] = []
        self._written = time.monotonic()
        self._lock = threading.Lock()

    def next(self, images: int) -> "RangeBatch | None":
        """Return the next batch, None where all were taken."""
        with self._lock:
            claims = self.lease.claims[self._begun : self._begun + images]
            self._begun += len(claims)
        return RangeBatch(self.lease.token, self.lease.model_version_id, claims, self) if claims else None

    def gather(self, portion: "RangeBatch", outcome: Outcome) -> None:
        """Add the outcome of a batch."""
        with self._lock:
            self._claims += portion.claims
            self._outcomes.append(outcome)

    def abandon(self) -> None:
        """Begin no more, because the lease was given back."""
        with self._lock:
            self._begun = len(self.lease.claims)
            self._claims, self._outcomes = [], []

    @property
    def is_due(self) -> bool:
        """Tell if it is time to write. Where images wait for no fault of theirs that is at the end, for all of them."""
        if self._is_complete:
            return True
        waited = time.monotonic() - self._written > GATHERED_S
        return waited and all(failure.counts for one in self._outcomes for failure in one.failures)

    @property
    def _is_complete(self) -> bool:
        return self._passed + len(self._claims) == len(self.lease.claims)

    def collect(self, *, last: bool = False) -> GatheredScores | None:
        """Take what is to be written, None where nothing is. After the ``last`` no batch comes."""
        with self._lock:
            if not self._outcomes:
                return None
            complete = self._is_complete
            lease = replace(self.lease, claims=tuple(self._claims), ends=self.lease.ends and complete)
            found = GatheredScores(lease, joined(self._outcomes), keeps=not (last or complete))
            self._passed += len(self._claims)
            self._claims, self._outcomes, self._written = [], [], time.monotonic()
            if last:
                self._begun = len(self.lease.claims)
        return found


@dataclass(frozen=True, slots=True)
class RangeBatch(queue.Lease):
    """A batch of the images of a range's lease."""

    work: RangeWork = field(compare=False)
