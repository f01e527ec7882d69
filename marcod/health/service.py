"""Configuration, database, models, workers and work."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from stat import S_IROTH, S_IXOTH
from typing import Final

from marcod.database import migrate, probe
from marcod.database.engine import PERSON, Database
from marcod.deadline import ANSWER_S, SERVER, SilentError, within
from marcod.errors import StoreError
from marcod.health import snapshot
from marcod.health.finding import Finding, Verdict, first_line, judged
from marcod.health.snapshot import Snapshot
from marcod.model.registry import Known, Registry
from marcod.settings import Settings, redacted_url
from marcod.store import backfill, versions
from marcod.text import count

_ADVICE: Final = {
    migrate.SchemaState.EMPTY: "`marcod run` makes the tables",
    migrate.SchemaState.OLDER: "run `marcod db upgrade`",
    migrate.SchemaState.UNKNOWN: "install the marcod that made it",
}

_LET_WRITE: Final = {
    True: "`marcod run` needs the right to write the file and its folder",
    False: "`marcod run` needs an account of the role marcod_app",
}
"""Advice to an account that only reads, on SQLite and elsewhere."""

NEEDED_ROLES: Final = ("watch", "score", "schedule")
LATE: Final = timedelta(hours=1)
"""New images that wait longer than this need attention."""


def configuration(settings: Settings, origins: Mapping[str, str]) -> Iterator[Finding]:
    """Where each value came from that is not a default."""
    for origin in dict.fromkeys(origins.values()):
        keys = sorted(key for key, from_where in origins.items() if from_where == origin)
        yield Finding("configuration", f"from {origin}", Verdict.OK, ", ".join(keys))
    if not origins:
        yield Finding("configuration", "defaults", Verdict.OK, "nothing is configured; every value is its default")
    shown = redacted_url(settings)
    seen = origins.get("store.url") == "the command line" and shown != settings.store.url.get_secret_value()
    text = f"{shown}, its password from the command line, which every user of this host may read" if seen else shown
    yield judged("configuration", "database", not seen, text, "put it into a credential or MARCOD_STORE__URL")


@contextmanager
def connected(settings: Settings) -> Iterator[Database | Finding]:
    """The database, or why it cannot be used; none is made."""
    url = settings.store.url.get_secret_value()
    try:
        within(ANSWER_S, partial(probe.require_file, url))
        db = Database(url, patience=PERSON, read_only=True)
    except StoreError as error:
        yield _unusable(str(error), "correct store.url, or start `marcod run`")
        return
    except SilentError as error:
        yield _unusable(f"the folder of {probe.sqlite_file(url)} {error}", SERVER)
        return
    try:
        db.reach()
    except StoreError as error:
        yield _unusable(str(error), "")
    else:
        yield db
    finally:
        db.close()


def _unusable(text: str, advice: str) -> Finding:
    return Finding("database", "connection", Verdict.BROKEN, text, advice)


def database(db: Database) -> Iterator[Finding]:
    """Version, schema, rights, and who else may read it."""
    yield Finding("database", "version", Verdict.OK, db.read(probe.version))
    if db.is_sqlite and db.url.database and _open_to_all(file := Path(db.url.database).resolve()):
        text = f"every user of this host may read {file}"
        yield Finding("database", "file", Verdict.ATTENTION, text, f"chmod o= {file}")
    found = migrate.state(db)
    text = f"{found}, step {db.read(migrate.revision_of) or 'none'}"
    yield judged("database", "schema", found in migrate.USABLE, text, _ADVICE.get(found, ""), Verdict.BROKEN)
    if found not in migrate.USABLE:
        return
    lacking = db.read(probe.lacking_rights)
    text = "rows may be read and changed" if not lacking else f"no right to {', '.join(lacking)}"
    if lacking == [probe.CHANGE_ANYTHING]:
        yield judged("database", "rights", False, f"{text}, enough for who only looks", _LET_WRITE[db.is_sqlite])
    else:
        yield judged("database", "rights", not lacking, text, "run `marcod db roles` as the owner", Verdict.BROKEN)
    if db.read(backfill.unfinished):
        text = "drops over time are not all worked out"
        yield Finding("database", "filled in", Verdict.ATTENTION, text, "run `marcod db upgrade` to finish")


def _open_to_all(file: Path) -> bool:
    """Whether the modes of a file and of every folder above let everybody read it."""
    return bool(file.stat().st_mode & S_IROTH) and all(above.stat().st_mode & S_IXOTH for above in file.parents)


def models(db: Database, settings: Settings) -> Iterator[Finding]:
    """Every version in use here: checksums and golden images."""
    registry = Registry(db, settings.models.folder)
    serving = [known for known in registry.known() if known.registered is not None and known.registered.aliases]
    if not serving:
        text = "no model is champion yet"
        yield Finding("models", "champion", Verdict.ATTENTION, text, "`marcod run` makes the shipped one champion")
    yield from _synthetic(db)
    for known in serving:
        assert known.registered is not None
        aliases = ", ".join(known.registered.aliases)
        fault = known.problem or _fault(registry, known)
        text = fault or f"{aliases}; checksums and golden images are right"
        yield judged("models", known.name, fault is None, text, "restore its folder", Verdict.BROKEN)


def _synthetic(db: Database) -> Iterator[Finding]:
    """Real images need a model that saw real images."""
    now = db.now()
    found = db.read(snapshot.take_snapshot, now)
    if found.champion is not None and found.scored_by_synthetic:
        text = f"{found.champion.model} was {versions.RENDERED_ALONE}"
        yield Finding("models", "champion", Verdict.ATTENTION, text, versions.REAL_MODEL)


def _fault(registry: Registry, known: Known) -> str | None:
    try:
        return registry.fault(known)
    except Exception as error:  # noqa: BLE001 - it runs on the device, which fails in its own ways
        return first_line(error)


def work(db: Database, now: datetime) -> Iterator[Finding]:
    """Who works, and how the work stands."""
    found = db.read(snapshot.take_snapshot, now)
    yield from _workers(found)
    late = found.new.oldest_at is not None and now - found.new.oldest_at > LATE
    text = (
        f"{count(found.new.waiting, 'new image waits', 'new images wait')}, {found.rescore.waiting} to be scored again"
    )
    if found.new.oldest_at is not None:
        text += f", the oldest for {_span(now - found.new.oldest_at)}"
    yield judged("work", "queue", not late, text, "is a scoring process running? is its device fast enough?")
    for held_up in found.held_up:
        text = f"{count(held_up.images, 'image waits', 'images wait')}: {held_up.error}"
        yield Finding("work", "held up", Verdict.ATTENTION, text, "mend that; the images are tried again by themselves")
    yield judged(
        "work", "quarantine", found.failed == 0, count(found.failed, "image"), "`marcod queue failed` shows why"
    )
    text = f"{count(found.gone, 'image')} went before anything scored them"
    yield judged("work", "gone", found.gone == 0, text, "`marcod queue gone` lists them, `queue accept` accepts that")
    yield judged(
        "work", "drift", not found.alarms, count(len(found.alarms), "open alarm"), "`marcod drift` shows what changed"
    )
    lost = sum(box.given_up for box in found.outbox.values())
    yield judged("work", "notifications", lost == 0, f"{lost} given up", "`marcod notify list` shows why")
    run = found.training
    if run is not None:
        text = f"run {run.id}: {run.state}" + (f", {run.error}" if run.error else "")
        yield judged("work", "training", run.state != "failed", text, f"`marcod train show {run.id}` says more")


def _workers(found: Snapshot) -> Iterator[Finding]:
    for worker in found.workers:
        text = f"{worker.roles}; marcod {worker.marcod_version}, since {worker.started_at:%Y-%m-%d %H:%M} UTC"
        yield Finding("workers", worker.name, Verdict.OK, text)
    there = snapshot.roles(found.workers)
    for role in NEEDED_ROLES:
        if not there.get(role):
            yield Finding("workers", role, Verdict.ATTENTION, "nobody does it", "start `marcod run`, or its unit")


def usable(db: Database) -> bool:
    """Whether this marcod can work with the schema."""
    return migrate.state(db) in migrate.USABLE


def _span(time: timedelta) -> str:
    hours, minutes = divmod(int(time.total_seconds()) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
