"""The queue: the only place where the state of a job changes, one statement a change.

A job is one image to be scored by one model version. It waits until ``available_at``; claiming it moves that
time behind the lease, so a worker that dies gives its jobs back by doing nothing. A worker that is slow renews its
lease. Every claim makes a new token: a worker that finishes with an old token finds no job and changes
nothing. Attempts are counted at the claim, so an image that kills its worker is counted too; from its second lapse on
such a job is claimed alone, and its neighbours in the batch go free.

Whatever makes jobs ready to be claimed announces it on :data:`CHANNEL`, which wakes idle workers on every host.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database import notices
from marcod.database.engine import insert
from marcod.database.schema import image, inspection, job, model_version, source
from marcod.domain import text_path
from marcod.store import locks, sources
from marcod.store.selects import IS_COUNTED, current_score, unforeseen
from marcod.text import storable

CHANNEL: Final = "marcod_jobs"
"""PostgreSQL's channel on which idle workers are woken; the payload is empty."""

NEW: Final = 0
"""Priority of images that just arrived."""

RESCORE: Final = 10
"""Priority of images that are scored again: always behind new ones."""

GONE: Final = "the file is gone"
"""Error of a job whose file vanished; when the file is seen again, the job starts over."""

LAPSES_BEFORE_ALONE: Final = 2

LONGEST_PAUSE_S: Final = 86_400.0
"""Between two tries of an image, however often it failed."""

ASTRAY_S: Final = 3_600.0
"""Margin beyond any lease or pause, in seconds, after which a job's time counts as a mistake."""

_JOB_COLUMNS: Final = ("image_id", "model_version_id", "priority", "available_at", "attempts", "enqueued_at")


@dataclass(frozen=True, slots=True)
class Claim:
    """One image in the hands of a worker; ``path`` is relative to the source's root.

    ``lapsed`` tells that another worker had it before and its lease ran out. An image of a campaign has no job, so its
    ``job_id`` is 0, and ``seen`` is as recorded at the claim: size, time, and if its bytes were to be read.
    """

    job_id: int
    image_id: int
    inspection_id: int
    source: str
    root: str
    path: str
    attempts: int
    enqueued_at: datetime
    priority: int = NEW
    lapsed: bool = False
    seen: tuple[int, int, bool] | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch of claims for one model version, held under one token."""

    token: str
    model_version_id: int
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Failure of one claim; a retryable one is tried again later.

    One that does not count (source offline, host out of memory) is tried again for ever. ``content_hash`` is
    that of the bytes that could not be scored, where they could be read.
    """

    claim: Claim
    error: str
    retryable: bool
    counts: bool = True
    content_hash: str | None = None


def claim(
    connection: Connection,
    worker: str,
    *,
    limit: int,
    lease_s: float,
    max_attempts: int,
    now: datetime,
    due: datetime | None = None,
    without: Collection[int] = (),
    leaving: Collection[str] = (),
) -> Lease | None:
    """Take up to ``limit`` jobs of one model version, most urgent first, or None when nothing waits.

    Only jobs available at ``due`` (by default now), not of the versions in ``without`` nor of the sources ``leaving``.

    Jobs to be claimed alone come between new images and rescoring, so that neither has to wait for the other.

    A job whose last attempt ended in order waits for another, so it is taken however many it had: where
    ``max_attempts`` was lowered meanwhile, its next failure is its last.
    """
    allowed = sa.or_(job.c.attempts < max_attempts, job.c.lease.is_(None))
    ready = sa.and_(job.c.failed_at.is_(None), job.c.available_at <= (due or now), allowed)
    if without:
        ready = sa.and_(ready, job.c.model_version_id.not_in(list(without)))
    if leaving:
        ready = sa.and_(ready, not_of(leaving))
    lapsed = sa.and_(job.c.lease.is_not(None), job.c.attempts >= LAPSES_BEFORE_ALONE)
    token = f"{worker}/{uuid4()}"
    values = {
        "lease": token,
        "available_at": now + timedelta(seconds=lease_s),
        "attempts": job.c.attempts + 1,
        "lapsed": job.c.lease.is_not(None),
    }
    steady = sa.and_(ready, sa.not_(lapsed))
    urgency, age = (job.c.priority, job.c.available_at, job.c.id), (job.c.available_at, job.c.id)
    turns = (
        # One priority at a time: only an equality lets the index skip the jobs that wait for their time.
        (sa.and_(steady, job.c.priority == NEW), urgency, limit),
        # By age alone, so that the small index of leased jobs serves and a backlog of a million is not searched.
        (sa.and_(ready, lapsed), age, 1),
        (sa.and_(steady, job.c.priority == RESCORE), urgency, limit),
    )
    taken = next(filter(None, (_take(connection, jobs, order, most, values) for jobs, order, most in turns)), None)
    if taken is None:
        return None
    claims = _describe(connection, [row.id for row in taken])
    return Lease(token, taken[0].model_version_id, claims)


def not_of(names: Collection[str]) -> sa.ColumnElement[bool]:
    """Choose the jobs whose images are not of the sources of these names."""
    theirs = sa.exists().where(image.c.id == job.c.image_id, image.c.source_id.in_(sources.named(names)))
    return sa.not_(theirs)


def _take(
    connection: Connection,
    waiting: sa.ColumnElement[bool],
    order: tuple[sa.Column[Any], ...],
    limit: int,
    values: dict[str, object],
) -> list[sa.Row[tuple[int, int]]]:
    version = sa.select(job.c.model_version_id).where(waiting).order_by(*order).limit(1).scalar_subquery()
    picked = (
        sa.select(job.c.id)
        .where(waiting, job.c.model_version_id == version)
        .order_by(*order)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    statement = sa.update(job).where(job.c.id.in_(sa.select(picked.c.id))).values(values)
    return list(connection.execute(statement.returning(job.c.id, job.c.model_version_id)))


def _describe(connection: Connection, job_ids: list[int]) -> tuple[Claim, ...]:
    columns = (
        job.c.id, job.c.image_id, image.c.inspection_id, source.c.name, sources.root_of(connection), image.c.path,
        job.c.attempts, job.c.enqueued_at, job.c.priority, job.c.lapsed,
    )  # fmt: skip
    rows = connection.execute(
        sa.select(*columns)
        .join(image, image.c.id == job.c.image_id)
        .join(source, source.c.id == image.c.source_id)
        .where(job.c.id.in_(job_ids))
        .order_by(job.c.id)
    )
    return tuple(_claim(row) for row in rows)


def _claim(row: Any) -> Claim:
    values: list[Any] = list(row)
    values[4], values[5], values[9] = text_path(values[4]), text_path(values[5]), bool(values[9])
    return Claim(*values)


def lock_held(connection: Connection, token: str, job_ids: Iterable[int]) -> set[int]:
    """Lock the jobs still held under the token until the transaction ends. Returns their ids."""
    rows = connection.execute(
        sa.select(job.c.id)
        .where(job.c.id.in_(list(job_ids)), job.c.lease == token)
        .order_by(job.c.id)
        .with_for_update()
    )
    return {row[0] for row in rows}


def delete(connection: Connection, job_ids: Iterable[int]) -> None:
    """Remove finished jobs; called by ``results.finish`` in the transaction that writes their scores."""
    connection.execute(sa.delete(job).where(job.c.id.in_(list(job_ids))))


def adopt(
    connection: Connection, token: str, version_id: int, failures: Iterable[Failure], now: datetime
) -> list[Failure]:
    """Make jobs of images of a campaign that failed, in this worker's hands. Returns the failures with their jobs.

    Where there is a job already, the image is left to that one.
    """
    of_image = {failure.claim.image_id: failure for failure in failures}
    rows = [
        {
            "image_id": image_id,
            "model_version_id": version_id,
            "priority": RESCORE,
            "available_at": now,
            "attempts": failure.claim.attempts,
            "lease": token,
            "enqueued_at": failure.claim.enqueued_at,
        }
        for image_id, failure in sorted(of_image.items())
    ]
    if not rows:
        return []
    statement = insert(connection, job).on_conflict_do_nothing().returning(job.c.image_id, job.c.id)
    made = [(of_image[row.image_id], row.id) for row in connection.execute(statement, rows)]
    return [replace(failure, claim=replace(failure.claim, job_id=int(job_id))) for failure, job_id in made]


def delete_waiting(connection: Connection, version_id: int, image_ids: Collection[int]) -> None:
    """Remove a version's jobs of images that it has scored meanwhile; those in a worker's hands are left to it.

    Jobs that another transaction holds are left too: waiting for them with other jobs held could be a deadlock.
    """
    waiting = sa.and_(job.c.model_version_id == version_id, job.c.image_id.in_(list(image_ids)), job.c.lease.is_(None))
    free = sa.select(job.c.id).where(waiting).order_by(job.c.id).with_for_update(skip_locked=True)
    delete(connection, connection.execute(free).scalars().all())


def fail(
    connection: Connection,
    token: str,
    failure: Failure,
    *,
    now: datetime,
    retry_s: float,
    max_attempts: int,
) -> bool:
    """Return a failed job to wait, twice as long with every attempt, or quarantine it. True if quarantined."""
    attempts = failure.claim.attempts
    final = failure.counts and (not failure.retryable or attempts >= max_attempts)
    wait_s = pause_s(attempts, retry_s)
    connection.execute(
        sa.update(job)
        .where(job.c.id == failure.claim.job_id, job.c.lease == token)
        .values(
            lease=None,
            error=storable(failure.error),
            failed_at=now if final else None,
            available_at=now + timedelta(seconds=wait_s),
            attempts=attempts if failure.counts else attempts - 1,
        )
    )
    return final


def pause_s(attempts: int, retry_s: float) -> float:
    """Return the seconds before another try: twice as long with every attempt, up to a day."""
    return min(retry_s * 2.0 ** min(attempts - 1, 30), LONGEST_PAUSE_S)


def repair_schedule(connection: Connection, *, now: datetime, lease_s: float, retry_s: float, max_attempts: int) -> int:
    """Reset jobs scheduled later than any lease or back-off allows (left by a wrong clock). Returns how many.

    Such times are written while a clock is ahead; after it was set right, the jobs would wait for years. A worker that
    still holds one of them loses nothing: it may finish as long as nobody else has claimed it.
    """
    longest_s = max(lease_s, pause_s(max_attempts, retry_s)) + ASTRAY_S
    # With the priority named, the index of waiting jobs leads straight to the few that are this late.
    astray = sa.and_(
        job.c.priority.in_((NEW, RESCORE)),
        job.c.available_at > now + timedelta(seconds=longest_s),
        job.c.failed_at.is_(None),
    )
    return _announced(connection, connection.execute(sa.update(job).where(astray).values(available_at=now)).rowcount)


def renew(connection: Connection, leases: Iterable[Lease], *, now: datetime, lease_s: float) -> int:
    """Have these leases end ``lease_s`` from now, because their worker still works. Returns how many jobs are ours.

    The jobs are locked in order first, as by a worker that finishes them at the same time.
    """
    until = now + timedelta(seconds=lease_s)
    ours = sorted(i for lease in leases for i in lock_held(connection, lease.token, [c.job_id for c in lease.claims]))
    connection.execute(sa.update(job).where(job.c.id.in_(ours)).values(available_at=until))
    return len(ours)


def release(connection: Connection, lease: Lease, now: datetime, error: str | None = None) -> int:
    """Give back claims, as if they had never been taken. Returns how many were ours.

    ``error`` says what held them up, for people; without one the jobs keep theirs.
    """
    more = {} if error is None else {"error": storable(error)}
    ours = sorted(lock_held(connection, lease.token, (c.job_id for c in lease.claims)))
    given = (
        sa.update(job)
        .where(job.c.id.in_(ours))
        .values(lease=None, available_at=now, attempts=job.c.attempts - 1, **more)
    )
    return _announced(connection, connection.execute(given).rowcount)


def exhausted(connection: Connection, *, max_attempts: int, now: datetime, limit: int) -> list[int]:
    """Up to ``limit`` images with a job whose worker died with it on the last allowed attempt, by id."""
    found = sa.select(job.c.image_id).where(_exhausted(max_attempts, now)).order_by(job.c.available_at).limit(limit)
    return sorted(set(connection.execute(found).scalars()))


def quarantine_exhausted(
    connection: Connection, image_ids: Iterable[int], *, max_attempts: int, now: datetime
) -> list[int]:
    """Quarantine the exhausted jobs of these images. Returns the images that had one."""
    rows = connection.execute(
        sa.update(job)
        .where(job.c.image_id.in_(list(image_ids)), _exhausted(max_attempts, now))
        .values(lease=None, failed_at=now, error="every worker that took this image stopped before it had finished")
        .returning(job.c.image_id)
    )
    return sorted({int(row[0]) for row in rows})


def _exhausted(max_attempts: int, now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        job.c.lease.is_not(None),
        job.c.available_at <= now,
        job.c.attempts >= max_attempts,
        job.c.failed_at.is_(None),
    )


def retry(connection: Connection, now: datetime, image_ids: Iterable[int] | None = None) -> int:
    """Put quarantined jobs back into the queue as if they came now, all or those of these images. Returns how many."""
    of_these = sa.true() if image_ids is None else job.c.image_id.in_(list(image_ids))
    statement = sa.update(job).where(locked(sa.and_(job.c.failed_at.is_not(None), of_these)))
    values = {"failed_at": None, "lease": None, "attempts": 0, "available_at": now, "enqueued_at": now}
    return _announced(connection, connection.execute(statement.values(values)).rowcount)


def locked(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Choose the jobs that meet a condition, locked by id; an update or a deletion alone locks them as they lie."""
    return job.c.id.in_(sa.select(job.c.id).where(condition).order_by(job.c.id).with_for_update())


def reset(connection: Connection, image_ids: Iterable[int], now: datetime) -> None:
    """Reset every job of these images, of any version and in any state, because their files changed.

    A worker that still has the old bytes is shut out; finishing last it would make an old score the current one.
    """
    of_these = locked(job.c.image_id.in_(list(image_ids)))
    connection.execute(sa.update(job).where(of_these).values(_started_over(now)))


def _started_over(now: datetime) -> dict[str, Any]:
    """Return the columns of a job that waits as if it came now."""
    return {"available_at": now, "attempts": 0, "lease": None, "error": None, "failed_at": None, "enqueued_at": now}


def cancel_misfits(connection: Connection, image_ids: Iterable[int]) -> None:
    """Remove jobs of these images whose modality, read again, is not that of the job's model."""
    fitting = sa.exists().where(
        image.c.id == job.c.image_id,
        model_version.c.id == job.c.model_version_id,
        model_version.c.modality == image.c.modality,
    )
    misfits = sa.and_(job.c.image_id.in_(list(image_ids)), sa.not_(fitting))
    connection.execute(sa.delete(job).where(locked(misfits)))


def cancel_rescore(connection: Connection, version_id: int, since: datetime, kept: sa.ColumnElement[bool]) -> int:
    """Delete this version's unclaimed rescore jobs enqueued since then. Returns how many.

    A challenger's jobs and those of a rescore with it cannot be distinguished, so both go; a rescore can be repeated.
    Quarantined ones stay, as their summaries count them, and those that are ``kept``.
    """
    waiting = sa.and_(job.c.model_version_id == version_id, job.c.priority == RESCORE, job.c.failed_at.is_(None))
    mine = sa.and_(waiting, job.c.lease.is_(None), job.c.enqueued_at >= since, sa.not_(kept))
    return connection.execute(sa.delete(job).where(locked(mine))).rowcount


def enqueue(
    connection: Connection, image_ids: Iterable[int], version_id: int, now: datetime, priority: int = NEW
) -> int:
    """Queue images that are new or whose file changed; a job already there starts over. Returns how many."""
    rows = [
        {
            "image_id": image_id,
            "model_version_id": version_id,
            "priority": priority,
            "available_at": now,
            "attempts": 0,
            "enqueued_at": now,
        }
        for image_id in image_ids
    ]
    if not rows:
        return 0
    statement = insert(connection, job)
    again = {**_started_over(now), "priority": priority}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["image_id", "model_version_id"], set_=again), rows
    )
    return _announced(connection, len(rows))


def enqueue_rescore(
    connection: Connection,
    version_id: int,
    now: datetime,
    plate_ids: Iterable[int] | None = None,
    *,
    inspection_ids: Iterable[int] | None = None,
    image_ids: Iterable[int] | None = None,
    since: datetime | None = None,
) -> int:
    """Queue, behind new images, what this version owes. Safe to repeat. Returns how many.

    Of these plates, of these inspections, of these images, seen since then: None means no restriction.
    """
    wanted = (
        sa.select(
            image.c.id,
            sa.literal(version_id),
            sa.literal(RESCORE),
            sa.literal(now, job.c.available_at.type),
            sa.literal(0),
            sa.literal(now, job.c.enqueued_at.type),
        )
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .where(owed(version_id))
        # A batch of one inspection refreshes one summary, a batch of forty inspections forty.
        .order_by(image.c.inspection_id, image.c.id)
    )
    if plate_ids is not None:
        of_these = sorted(set(plate_ids))
        # The images are not locked, so two that queue one plate wait here instead of in a ring of jobs.
        locks.hold(connection, plates=of_these)
        wanted = wanted.where(inspection.c.plate_id.in_(of_these))
    if inspection_ids is not None:
        wanted = wanted.where(inspection.c.id.in_(list(inspection_ids)))
    if image_ids is not None:
        wanted = wanted.where(image.c.id.in_(list(image_ids)))
    if since is not None:
        wanted = wanted.where(image.c.seen_at >= since)
    statement = insert(connection, job).from_select(_JOB_COLUMNS, wanted).on_conflict_do_nothing()
    return _announced(connection, connection.execute(statement).rowcount)


def _announced(connection: Connection, count: int) -> int:
    """Wake idle workers for so many jobs that can be claimed now. Returns the number."""
    if count:
        notices.announce(connection, CHANNEL)
    return count


def owed(version_id: int) -> sa.ColumnElement[bool]:
    """Images that a version should score: in its light, not gone, no copy, without its score of the present bytes."""
    scored = sa.exists().where(current_score(unforeseen(sa.literal(version_id))))
    modality = sa.select(model_version.c.modality).where(model_version.c.id == version_id).scalar_subquery()
    there = sa.and_(image.c.gone_at.is_(None), IS_COUNTED)
    return sa.and_(image.c.modality == modality, there, sa.or_(image.c.unread, sa.not_(scored)))


def transfer_new(connection: Connection, old_id: int, new_id: int, now: datetime) -> list[int]:
    """Give a new champion every unscored new image of the old one, the quarantined ones as if they came now.

    Returns the images that the old one had failed at.

    Jobs in a worker's hands run on for the old version too, which stays a true score of that version.
    """
    fitting = sa.exists().where(
        image.c.id == job.c.image_id, model_version.c.id == new_id, model_version.c.modality == image.c.modality
    )
    unfinished = sa.and_(job.c.model_version_id == old_id, job.c.priority == NEW, fitting)
    # Of both versions in one order by id: a worker may hold jobs of the new one, a person retry failed ones of the old.
    of_old = sa.select(job.c.image_id).where(unfinished)
    already = sa.and_(job.c.model_version_id == new_id, job.c.image_id.in_(of_old))
    free = sa.and_(unfinished, job.c.lease.is_(None))
    connection.execute(sa.select(job.c.id).where(sa.or_(already, free)).order_by(job.c.id).with_for_update())
    moved = sa.select(
        job.c.image_id,
        sa.literal(new_id),
        job.c.priority,
        sa.literal(now, job.c.available_at.type),
        sa.literal(0),
        sa.case((job.c.failed_at.is_(None), job.c.enqueued_at), else_=sa.literal(now, job.c.enqueued_at.type)),
    ).where(unfinished)
    statement = insert(connection, job).from_select(_JOB_COLUMNS, moved)
    # What the new champion was to score again already waits for it, but behind everything.
    urgent = statement.on_conflict_do_update(
        index_elements=["image_id", "model_version_id"], set_={"priority": statement.excluded.priority}
    )
    connection.execute(urgent)
    notices.announce(connection, CHANNEL)
    left = sa.delete(job).where(unfinished, job.c.lease.is_(None)).returning(job.c.image_id, job.c.failed_at)
    return [int(row.image_id) for row in connection.execute(left) if row.failed_at is not None]


def count_unfinished(connection: Connection, version_id: int) -> int:
    """Count the images that wait behind new ones for this version; quarantined ones do not count.

    A million of them are counted through one index, in some 0.3 s on SQLite and 0.1 s on PostgreSQL.
    """
    waiting = sa.and_(job.c.model_version_id == version_id, job.c.priority == RESCORE, job.c.failed_at.is_(None))
    return connection.execute(sa.select(sa.func.count()).select_from(job).where(waiting)).scalar_one()
