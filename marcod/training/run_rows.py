"""Rows of training runs, with state, owner and reasons.

Guarantees:

* Two runs are never active at once.
* Of two processes only one takes over from a dead worker.
* A worker that lost its run cannot write to it: every write names the run's token, which a takeover replaces.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import audit, dataset, label, model_version, training_run
from marcod.errors import NotFoundError, StoreError
from marcod.store.audit_log import AuditEntry

RUNNING: Final = "running"
SHADOW: Final = "shadow"
JUDGED: Final = ("promoted", "recommended", "refused", SHADOW)
"""States of a run whose candidate met the gate."""

FINISHED: Final = (*JUDGED, "unchanged")
"""States of a run that used its labels up; one that failed or was abandoned has not."""

USED_OFTEN: Final = 10
"""After so many looks at one test side more labels help a better model more than further runs do."""

ENDED: Final = (*FINISHED, "failed", "abandoned")


@dataclass(frozen=True, slots=True)
class Run:
    """Attempt to train a better model.

    ``parent`` and ``candidate`` are ``NAME:VERSION``. ``ended_at`` is None while it runs; a run in shadow has ended its
    training and waits for :func:`settle`. ``reasons`` and ``numbers`` are the gate's.
    """

    id: int
    state: str
    cause: str
    actor: str
    recipe: str
    options: dict[str, Any]
    parent: str | None
    dataset_id: int | None
    tier: str | None
    candidate: str | None
    candidate_digest: str | None
    folder: str
    host: str
    pid: int
    token: str
    step: str | None
    reasons: list[str] | None
    numbers: dict[str, Any] | None
    error: str | None
    started_at: datetime
    beat_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class SnapshotCounts:
    """Counts of a frozen set of labels; ``gate_digest`` names its test side."""

    id: int
    digest: str
    gate_digest: str
    images: int
    drops: int
    crystals: int
    missing: int
    changed: int
    counts: dict[str, Any]
    taken_at: datetime


_RUNS: Final = sa.select(*(training_run.c[name] for name in Run.__dataclass_fields__))
_LATEST: Final = _RUNS.order_by(training_run.c.id.desc())


def _read(connection: Connection, runs: sa.Select[Any]) -> list[Run]:
    return [Run(*row) for row in connection.execute(runs)]


def begin(connection: Connection, /, *, now: datetime, **values: Any) -> Run:
    """Insert a new, active run. Raises StoreError naming the one that is active already.

    ``values`` are its cause, actor, recipe, options, parent, folder, host, pid and token.
    """
    row = {**values, "active": True, "state": RUNNING, "started_at": now, "beat_at": now}
    statement = insert(connection, training_run).values(**row).on_conflict_do_nothing(index_elements=["active"])
    run_id = connection.execute(statement.returning(training_run.c.id)).scalar_one_or_none()
    if run_id is None:
        held = active(connection)
        raise StoreError("another training run began at the same moment" if held is None else _held(held))
    return get(connection, run_id)


def _held(run: Run) -> str:
    return (
        f"training run {run.id} is active: {run.cause}, since {run.started_at:%Y-%m-%d %H:%M} UTC on {run.host} "
        f"as process {run.pid}, last seen {run.beat_at:%Y-%m-%d %H:%M:%S} UTC; wait for it, or end that process"
    )


def active(connection: Connection) -> Run | None:
    """Return the active run, if any."""
    return next(iter(_read(connection, _RUNS.where(training_run.c.active.is_(True)))), None)


def take_over(
    connection: Connection,
    *,
    host: str,
    pid: int,
    token: str,
    now: datetime,
    silence_s: float,
    alive: Callable[[int], bool],
) -> Run | None:
    """Take over the active run if its worker is dead; return None when no run is active.

    Dead is a process of this host that is not alive, and any that gave no sign for ``silence_s`` seconds. A run under
    our own process id is a dead namesake's, as in a container, where ids repeat: call this before any run of one's
    own. Raises StoreError when the worker lives, or when another process was quicker.
    """
    run = active(connection)
    if run is None:
        return None
    gone = run.host == host and (run.pid == pid or not alive(run.pid))
    if not gone and run.beat_at > now - timedelta(seconds=silence_s):
        raise StoreError(_held(run))
    _write(connection, run.id, run.token, {"host": host, "pid": pid, "token": token, "beat_at": now})
    return get(connection, run.id)


def beat(connection: Connection, run_id: int, token: str, *, step: str | None, now: datetime) -> None:
    """Record the worker's heartbeat and its step. Raises StoreError when the run was taken over."""
    _write(connection, run_id, token, {"step": step, "beat_at": now})


def note(connection: Connection, /, run_id: int, token: str, **facts: int | str) -> None:
    """Record facts of a run by column, such as ``tier``. Raises StoreError when the run was taken over."""
    if facts:
        _write(connection, run_id, token, facts)


def end(
    connection: Connection,
    run_id: int,
    token: str,
    *,
    state: str,
    reasons: Sequence[str] | None = None,
    numbers: dict[str, Any] | None = None,
    error: str | None = None,
    now: datetime,
) -> None:
    """End a run in one of :data:`ENDED`, so that another may start. Raises StoreError when it was taken over."""
    if state not in ENDED:
        raise ValueError(f"a training run cannot end as {state!r}")
    values = {"state": state, "active": None, "error": error, "beat_at": now, "ended_at": now, "step": None}
    _write(connection, run_id, token, values | _verdict(reasons, numbers))


def settle(
    connection: Connection, run_id: int, *, state: str, reasons: Sequence[str], numbers: dict[str, Any], now: datetime
) -> None:
    """Decide about a run in shadow. Raises StoreError when it is not in shadow (any more)."""
    if state not in JUDGED or state == SHADOW:
        raise ValueError(f"a training run in shadow cannot be settled as {state!r}")
    waiting = sa.and_(training_run.c.id == run_id, training_run.c.state == SHADOW)
    values = {"state": state, "ended_at": now, **_verdict(reasons, numbers)}
    if not connection.execute(sa.update(training_run).where(waiting).values(values)).rowcount:
        raise StoreError(f"training run {run_id} is not in shadow; somebody decided about it meanwhile")


def _verdict(reasons: Sequence[str] | None, numbers: dict[str, Any] | None) -> dict[str, Any]:
    # A plain None would be stored as the JSON text null, which is not null to SQL.
    return {
        "reasons": sa.null() if reasons is None else list(reasons),
        "numbers": sa.null() if numbers is None else numbers,
    }


def _write(connection: Connection, run_id: int, token: str, values: dict[str, Any]) -> None:
    """Change a run that is active and still has this token, in one guarded statement."""
    ours = sa.and_(training_run.c.id == run_id, training_run.c.token == token, training_run.c.active.is_(True))
    if not connection.execute(sa.update(training_run).where(ours).values(values)).rowcount:
        raise StoreError(f"training run {run_id} was taken over by another process, or has ended")


def get(connection: Connection, run_id: int) -> Run:
    """Return a run by its number. Raises NotFoundError."""
    for run in _read(connection, _RUNS.where(training_run.c.id == run_id)):
        return run
    raise NotFoundError(f"there is no training run {run_id}; `marcod train list` shows them")


def listed(connection: Connection, limit: int) -> list[Run]:
    """List runs, the latest first."""
    return _read(connection, _LATEST.limit(limit))


def last(connection: Connection) -> Run | None:
    """Return the latest run that used up a set of labels: it ended and neither failed nor was abandoned."""
    used = sa.and_(training_run.c.dataset_id.is_not(None), training_run.c.state.in_(FINISHED))
    return next(iter(_read(connection, _LATEST.where(used).limit(1))), None)


def shadows(connection: Connection) -> list[Run]:
    """List runs whose candidates score in shadow, the oldest first."""
    return _read(connection, _RUNS.where(training_run.c.state == SHADOW).order_by(training_run.c.id))


def data(connection: Connection, dataset_id: int) -> SnapshotCounts:
    """Return the set of labels of a run. Raises NotFoundError."""
    columns = [dataset.c[name] for name in SnapshotCounts.__dataclass_fields__]
    row = connection.execute(sa.select(*columns).where(dataset.c.id == dataset_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no data set {dataset_id}")
    return SnapshotCounts(*row)


def last_label(connection: Connection, dataset_id: int) -> int | None:
    """Return the newest label row in a data set."""
    found = connection.execute(sa.select(dataset.c.last_label_id).where(dataset.c.id == dataset_id))
    return found.scalar_one_or_none()


def new_labels(connection: Connection, since_label_id: int | None) -> int:
    """Count the subjects (a drop at an inspection, or an image) that were labelled after a label row."""
    subject = sa.select(label.c.drop_id, label.c.inspection_id, label.c.image_id).distinct()
    newer = subject if since_label_id is None else subject.where(label.c.id > since_label_id)
    return int(connection.execute(sa.select(sa.func.count()).select_from(newer.subquery())).scalar_one())


def gate_uses(run: Run) -> int:
    """Return how many candidates the run's test side has judged, its own included; see :mod:`marcod.training.looks`.

    Earlier ones count by what their test sides share with this one; a part of one counts whole here. 0 for a run that
    made no candidate.
    """
    if run.candidate is None or run.state not in JUDGED:
        return 0
    numbers = run.numbers or {}
    before = float(numbers.get("gate", numbers).get("rules", {}).get("looks", 0))
    return math.ceil(before - 1e-6) + 1


def rolled_back(connection: Connection, digest_or_name: str) -> AuditEntry | None:
    """Return the latest rollback from this version, by ``NAME:VERSION`` or digest, or from one of the same digest."""
    run, version = training_run.c, model_version.c
    version_name = version.name + ":" + version.version
    known = sa.union(
        sa.select(run.candidate_digest.label("digest"), run.candidate.label("name")),
        sa.select(version.digest.label("digest"), version_name.label("name")),
    ).subquery()
    digests = sa.select(known.c.digest).where(known.c.name == digest_or_name)
    same = sa.or_(known.c.digest == digest_or_name, known.c.digest.in_(digests))
    names = sa.select(known.c.name).where(same, known.c.name.is_not(None))
    former = audit.c.detail["from"].as_string()
    row = connection.execute(
        sa.select(audit.c.at, audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail)
        .where(audit.c.action == "rollback", sa.or_(former == digest_or_name, former.in_(names)))
        .order_by(audit.c.id.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else AuditEntry(*row)
