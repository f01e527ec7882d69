"""Plain functions that make what tests need: times, versions, sightings of a plate, whole scored batches.

Everything they make is synthetic. Fixtures of the same things live in ``conftest.py``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection

from marcod.catalog import deliveries, registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS, DropImage, Modality
from marcod.store import queue, results, serving, versions
from marcod.store.versions import Version

LEASE_S = 60.0
RETRY_S = 10.0
MAX_ATTEMPTS = 4
CLEAR = (0.9, 0.05, 0.03, 0.02)
CRYSTALS = (0.05, 0.9, 0.03, 0.02)


def utc(seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> datetime:
    """A time after the moment at which every test begins, 2026-01-01 12:00 UTC."""
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    return start + timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)


def register(db: Database, name: str = "small", version: str = "1", **more: Any) -> Version:
    """A version row."""
    values: dict[str, Any] = {
        "digest": f"digest of {name}:{version}",
        "modality": "visible",
        "crystal_threshold": 0.5,
        "synthetic": True,
        "now": utc(),
    }
    return db.write(lambda c: versions.register(c, name=name, version=version, **(values | more)))


def promote(db: Database, version: Version, now: datetime | None = None) -> Version | None:
    """Make a version champion, with its rows of what it scored before."""
    former = db.write(lambda c: serving.promote(c, version, actor="test", now=now or utc()))
    assert serving.advance(db, lambda: now or utc()) is None
    return former


def register_source(db: Database, name: str = "imager", expected_drops: int | None = None) -> int:
    """A source row; returns its id."""
    return db.write(lambda c: registration.register_source(c, name, f"/plates/{name}", "rigaku", expected_drops, utc()))


def sightings(
    wells: int, plate: str = "P1", inspection: str = "1", modality: Modality = Modality.VISIBLE, **more: Any
) -> list[Sighting]:
    """One settled file for each of the first wells of a 96 or 1536 well plate; ``more`` goes to DropImage."""
    grid = PLATE_FORMATS[96 if wells <= 96 else 1536]
    files = []
    for number in range(1, wells + 1):
        row, column = grid.position(number)
        ordinal = int(inspection) if inspection.isdigit() else None
        values = {"inspection_ordinal": ordinal} | more
        seen = DropImage("rigaku", plate, inspection, row, column, 1, modality, **values)
        suffix = f"_{seen.region}" if seen.region is not None else ""
        path = f"{plate}/{inspection}/{modality}/{seen.well}{suffix}.jpg"
        files.append(Sighting(path, 1000 + number, 1_700_000_000_000_000_000 + number, seen))
    return files


def rewritten(sighting: Sighting, by: int = 1) -> Sighting:
    """The same path with another size and time."""
    return replace(sighting, size=sighting.size + by, mtime_ns=sighting.mtime_ns + by)


def record(db: Database, source_id: int, files: Iterable[Sighting], now: datetime | None = None) -> deliveries.Recorded:
    """Take sightings in."""
    found, total = list(files), deliveries.Recorded()
    for start in range(0, len(found), deliveries.PORTION):
        part = found[start : start + deliveries.PORTION]
        total += db.write(deliveries.record, source_id, part, now or utc())
    return total


def claim(
    db: Database, now: datetime | None = None, *, limit: int = 1000, worker: str = "w", max_attempts: int = MAX_ATTEMPTS
) -> queue.Lease | None:
    """Claim for ``LEASE_S``."""

    def work(connection: Connection) -> queue.Lease | None:
        return queue.claim(
            connection, worker, limit=limit, lease_s=LEASE_S, max_attempts=max_attempts, now=now or utc()
        )

    return db.write(work)


def claimed(db: Database, now: datetime | None = None, **more: Any) -> queue.Lease:
    """Like :func:`claim`, where something must be waiting."""
    lease = claim(db, now, **more)
    assert lease is not None
    return lease


def same_hash(claim: queue.Claim) -> str:
    """A content hash that stays while the path stays."""
    return f"hash of {claim.path}"


def as_clear(claim: queue.Claim) -> tuple[float, float, float, float]:
    """Every drop is clear."""
    return CLEAR


def finish(
    db: Database,
    lease: queue.Lease,
    version: Version,
    now: datetime | None = None,
    *,
    hashes: Callable[[queue.Claim], str] = same_hash,
    scores: Callable[[queue.Claim], tuple[float, float, float, float]] = as_clear,
    failures: Iterable[queue.Failure] = (),
) -> results.Finished:
    """Finish a lease: what is not in ``failures`` is scored."""
    failed = list(failures)
    bad = {f.claim.image_id for f in failed}
    good = [results.Scored(c, hashes(c), scores(c), engine="tensorflow") for c in lease.claims if c.image_id not in bad]

    def work(connection: Connection) -> results.Finished:
        return results.finish(
            connection,
            lease.token,
            version,
            good,
            failed,
            now=now or utc(),
            retry_s=RETRY_S,
            max_attempts=MAX_ATTEMPTS,
        )

    return db.write(work)


def drain(db: Database, version: Version, now: datetime | None = None, *, limit: int = 1000, **more: Any) -> int:
    """Claim and finish until nothing waits; returns how many were scored."""
    return sum(finish(db, lease, version, now, **more).scored for lease in leases(db, now, limit=limit))


def leases(db: Database, now: datetime | None = None, **more: Any) -> Iterator[queue.Lease]:
    """Claims until nothing waits."""
    while (lease := claim(db, now, **more)) is not None:
        yield lease


def rows(db: Database, statement: Any) -> list[Any]:
    """All rows of a select."""
    return db.read(lambda c: list(c.execute(statement).all()))
