"""Checks of configuration, database, models, workers and work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from stat import S_IROTH, S_IXOTH
from typing import Final

from marcod.database import probe, revisions
from marcod.database.engine import PERSON, Database
from marcod.deadline import ANSWER_S, SERVER, SilentError, within
from marcod.errors import StoreError
from marcod.health import checks, words
from marcod.health.checks import Trouble
from marcod.health.finding import HealthFinding, Severity, first_line, judged
from marcod.health.snapshot import StatusSnapshot
from marcod.model.registry import ModelInfo, Registry
from marcod.settings import Settings
from marcod.settings.loading import redacted_url
from marcod.text import count

_LET_WRITE: Final = {
    True: "`marcod run` needs the right to write the file and its folder",
    False: "`marcod run` needs an account of the role marcod_app",
}
"""Advice to an account that only reads, on SQLite and elsewhere."""


def configuration(settings: Settings, origins: Mapping[str, str]) -> Iterator[HealthFinding]:
    """Yield where each value came from that is not a default."""
    for origin in dict.fromkeys(origins.values()):
        keys = sorted(key for key, from_where in origins.items() if from_where == origin)
        yield HealthFinding("configuration", f"from {origin}", Severity.OK, ", ".join(keys))
    if not origins:
        yield HealthFinding(
            "configuration", "defaults", Severity.OK, "nothing is configured; every value is its default"
        )
    shown = redacted_url(settings)
    seen = origins.get("store.url") == "the command line" and shown != settings.store.url.get_secret_value()
    text = f"{shown}, its password from the command line, which every user of this host may read" if seen else shown
    yield judged("configuration", "database", not seen, text, "put it into a credential or MARCOD_STORE__URL")


@contextmanager
def connected(settings: Settings) -> Iterator[Database | HealthFinding]:
    """Yield the database, or why it cannot be used; none is made."""
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


def _unusable(text: str, advice: str) -> HealthFinding:
    return HealthFinding("database", "connection", Severity.BROKEN, text, advice)


def database(db: Database) -> Iterator[HealthFinding]:
    """Check version, schema, rights, and who else may read it."""
    yield HealthFinding("database", "version", Severity.OK, db.read(probe.version))
    if db.is_sqlite and db.url.database and _open_to_all(file := Path(db.url.database).resolve()):
        text = f"every user of this host may read {file}"
        yield HealthFinding("database", "file", Severity.ATTENTION, text, f"chmod o= {file}")
    found = revisions.state(db)
    text = f"{found}, step {db.read(revisions.revision_of) or 'none'}"
    yield judged(
        "database", "schema", found in revisions.USABLE, text, revisions.ADVICE.get(found, ""), Severity.BROKEN
    )
    if found not in revisions.USABLE:
        return
    lacking = db.read(probe.lacking_rights)
    text = "rows may be read and changed" if not lacking else f"no right to {', '.join(lacking)}"
    if lacking == [probe.CHANGE_ANYTHING]:
        yield judged("database", "rights", False, f"{text}, enough for who only looks", _LET_WRITE[db.is_sqlite])
    else:
        yield judged("database", "rights", not lacking, text, "run `marcod db roles` as the owner", Severity.BROKEN)


def _open_to_all(file: Path) -> bool:
    """Tell if the modes of a file and of every folder above let everybody read it."""
    return bool(file.stat().st_mode & S_IROTH) and all(above.stat().st_mode & S_IXOTH for above in file.parents)


def models(db: Database, settings: Settings) -> Iterator[HealthFinding]:
    """Check checksums and golden images of every version in use."""
    registry = Registry(db, settings.models.folder, settings.score.engine)
    serving = [known for known in registry.known() if known.registered is not None and known.registered.aliases]
    for known in serving:
        assert known.registered is not None
        aliases = ", ".join(known.registered.aliases)
        fault = known.problem or _fault(registry, known)
        text = fault or f"{aliases}; checksums and golden images are right"
        yield judged("models", known.name, fault is None, text, "restore its folder", Severity.BROKEN)


def coming(seen: StatusSnapshot, troubles: Sequence[Trouble]) -> Iterator[HealthFinding]:
    """Yield how far the version is that becomes champion, unless that is a trouble."""
    if seen.coming is not None and not any(trouble.check.name == "promotion_stands" for trouble in troubles):
        yield HealthFinding("models", "becoming champion", Severity.OK, str(seen.coming))


def _fault(registry: Registry, known: ModelInfo) -> str | None:
    try:
        return registry.why_unusable(known)
    except Exception as error:  # noqa: BLE001 - it runs on the device, which fails in its own ways
        return first_line(error)


def work(seen: StatusSnapshot, troubles: Sequence[Trouble]) -> Iterator[HealthFinding]:
    """Yield who works and the state of the work, each trouble in the place of what is well."""
    for worker in seen.workers:
        text = f"{worker.roles}; marcod {worker.marcod_version}, since {worker.started_at:%Y-%m-%d %H:%M} UTC"
        yield HealthFinding("workers", worker.name, Severity.OK, text)
    yield from (trouble.finding for trouble in troubles if trouble.check.area == "workers")
    bad = [trouble for trouble in troubles if trouble.check.area == "work"]
    subjects = {trouble.check.subject for trouble in bad}
    for subject, text in _work_in_order(seen).items():
        if subject not in subjects:
            yield HealthFinding("work", subject, Severity.OK, text)
    yield from (trouble.finding for trouble in bad)


def _work_in_order(seen: StatusSnapshot) -> dict[str, str]:
    """Describe each part of the work as it is while it has no trouble."""
    queue = (
        f"{count(seen.new.waiting, 'new image waits', 'new images wait')}, {seen.rescore.waiting} to be scored again"
    )
    if left := sum(one.left for one in seen.rescores):
        queue += f", {left} of rescores"
    if seen.new.oldest_at is not None:
        queue += f", the oldest for {checks.age(seen.new.oldest_at, seen.taken_at)}"
    described = {
        "queue": queue,
        "quarantine": "0 images",
        "gone": "0 images went before anything scored them",
        "drift": "0 open alarms",
        "notifications": "0 given up",
    }
    if seen.rescores:
        described["rescores"] = "; ".join(words.rescore(one, seen.taken_at) for one in seen.rescores)
    return described | ({} if seen.training is None else {"training": f"run {seen.training.id}: {seen.training.state}"})


def usable(db: Database) -> bool:
    """Tell if this marcod can work with the schema."""
    return revisions.state(db) in revisions.USABLE
