"""The doctor: examination of everything that marcod needs on this host, with the next step for each trouble.

``places`` looks at folders, shares and disks, ``machine`` at clock, limits and the device, ``service`` at the database,
models, workers and work. Nothing is changed or made. Everything becomes a finding, also what may not be read, fails or
never answers; only a database that goes offline in the middle raises StoreError.
"""

from collections.abc import Iterator, Mapping

from marcod.database.engine import Database
from marcod.health import checks, machine, places, service
from marcod.health.finding import HealthFinding, Severity
from marcod.health.snapshot import StatusSnapshot, take_snapshot
from marcod.settings import Settings

__all__ = ["HealthFinding", "Severity", "examine"]


def examine(settings: Settings, origins: Mapping[str, str], *, device: bool = True) -> Iterator[HealthFinding]:
    """Yield every finding, in the order in which a person would look; ``origins`` tells where values came from.

    With ``device`` the model is loaded, proves its golden images and scores a batch, which takes seconds.
    """
    yield from service.configuration(settings, origins)
    yield from places.apart(settings)
    with service.connected(settings) as db:
        if isinstance(db, HealthFinding):
            yield db
        else:
            yield from service.database(db)
            yield from machine.database_clock(db)
            if service.usable(db):
                # Once: loading the model takes so long on a busy host that a heartbeat would look old afterwards.
                yield from work_at(db, settings, db.read(take_snapshot, db.now()), device=device)
    yield from places.disks(settings)
    yield from machine.limits(settings)
    yield from machine.clock()


def work_at(db: Database, settings: Settings, seen: StatusSnapshot, *, device: bool) -> Iterator[HealthFinding]:
    """Yield what only a database with its tables can tell: sources, models and work at the moment of a snapshot."""
    found = checks.troubles(seen)
    yield from places.sources(db, settings, seen)
    if (closed := places.closed("models", "folder", settings.models.folder)) is not None:
        yield closed
    else:
        yield from (trouble.finding for trouble in found if trouble.check.area == "models")
        yield from service.models(db, settings)
        yield from service.coming(seen, found)
        if device:
            yield from machine.device(db, settings)
    yield from service.work(seen, found)
