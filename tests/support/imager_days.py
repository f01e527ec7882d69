"""Days of an imager with scores and measures made up for them, for tests of drift. Synthetic."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta

import factories
from factories import claimed, utc

from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.store import queue, results
from marcod.store.versions import Version

PLATES, WELLS = 8, 7
IMAGES = PLATES * WELLS


def delivered(start: datetime, **more: object) -> list[Sighting]:
    """New plates of one day."""
    plates = (f"{start:%Y%m%d}-{number}" for number in range(PLATES))
    return [file for plate in plates for file in factories.sightings(WELLS, plate, **{"captured_at": start} | more)]


def scored(
    claim: queue.Claim, light: float, rng: random.Random, blur: float = 0.0, sure: float = 0.9
) -> results.Scored:
    """A clear drop, of which the model is ``sure``; ``light`` 1 and ``blur`` 0 are as usual."""
    plate = random.Random(claim.path.split("/")[0]).gauss(0, 0.01)
    brightness = light * (0.4 + plate + rng.gauss(0, 0.03))
    looks = (brightness, light * (0.18 + plate / 2), -2.0 - blur + rng.gauss(0, 0.2))
    return results.Scored(claim, factories.same_hash(claim), (sure + plate, 1 - sure - plate, 0.0, 0.0), None, *looks)


def day(
    db: Database,
    source_id: int,
    version: Version,
    when: datetime,
    light: float = 1.0,
    unreadable: Callable[[int], bool] = lambda number: False,
    error: str = "the image is truncated",
    blur: float = 0.0,
    sure: float = 0.9,
    **more: object,
) -> None:
    """All of one day: its plates arrive, and each image is scored or given up."""
    factories.record(db, source_id, delivered(when, **more), when)
    score_waiting(db, version, when + timedelta(minutes=1), light, unreadable, error, blur, sure)


def score_waiting(
    db: Database,
    version: Version,
    when: datetime,
    light: float = 1.0,
    unreadable: Callable[[int], bool] = lambda number: False,
    error: str = "the image is truncated",
    blur: float = 0.0,
    sure: float = 0.9,
) -> None:
    """Score what waits, as ``version``."""
    lease = claimed(db, when)
    rng = random.Random(str(when))
    failures = [queue.Failure(c, error, retryable=False) for n, c in enumerate(lease.claims) if unreadable(n)]
    failed = {failure.claim.job_id for failure in failures}
    good = [scored(c, light, rng, blur, sure) for c in lease.claims if c.job_id not in failed]
    db.write(
        lambda c: results.finish(
            c, lease.token, version, good, failures, now=when, retry_s=1.0, max_attempts=factories.MAX_ATTEMPTS
        )
    )


def at(number: int, hours: float = 0.0) -> datetime:
    """The number-th day of a test."""
    return utc(days=number, hours=hours)
