"""Snapshot of queue, workers, sources and models, read in one transaction for status, doctor and metrics.

It stays cheap on millions of images, so that it may be read every few seconds: nothing is counted that no index
serves, and of what may be many at most :data:`MOST` rows are read. Left out for that: how many images, scores and hits
there are, in all or of a source (see ``marcod plate list`` and the views), and the age of a job beyond when it could
last have been taken.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.catalog import findings
from marcod.database import workers
from marcod.database.schema import UtcDateTime, delivery, event, image, job, model_alias, model_version, score, source
from marcod.drift import days
from marcod.layouts.findings import SourceFinding
from marcod.store import backlog, campaigns, promotions, queue
from marcod.text import count
from marcod.training import run_rows
from marcod.watch import status

MOST: Final = 100_000
"""Jobs of one kind that are counted one by one; what is beyond is known from the size of the whole table."""

QUARANTINED: Final = 10_000
"""Of so many quarantined images, the latest, the sources are looked up."""

RECENT: Final = 10_000
"""Of so many scores, the latest, the times are looked at."""

HELD_UP: Final = 1_000
"""Of so many waiting jobs of one kind, those due last, the errors are looked at."""

GIVEN_UP_AGE: Final = timedelta(days=7)
"""Notifications of this age or less are asked whether they were given up."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Images of one kind in the queue.

    Those that wait can be taken now, ``oldest_at`` is since when the longest waiting one can, and None when none
    waits; leased ones are in a worker's hands; those of ``retrying`` failed and wait for another try.
    """

    waiting: int
    leased: int
    retrying: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class HeldUp:
    """Images that wait for a cause other than the image, and that cause."""

    error: str
    images: int


@dataclass(frozen=True, slots=True)
class Serving:
    """A model version that scores new images, and since when."""

    model: str
    synthetic: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class Coming:
    """A model version that becomes champion: the plates whose rows are there, of all, and when the latest were done."""

    model: str
    done: int
    plates: int
    since: datetime
    moved_at: datetime

    def __str__(self) -> str:
        """Format it such as ``marco:1, 1,204 of 30,000 plates``."""
        return f"{self.model}, {self.done:,} of {count(self.plates, 'plate')}"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Notifications for one target: those that wait to be sent and since when the oldest does, and given up ones."""

    unsent: int
    oldest_at: datetime | None
    given_up: int


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """State of queue, workers, sources and models at ``taken_at``.

    ``new`` are images that just arrived, ``rescore`` those that are scored again or by a challenger too. ``lapsed`` of
    the waiting ones were held by a worker whose lease ran out. ``failed`` images are quarantined; ``quarantined`` says
    of which sources the latest :data:`QUARANTINED` are. ``gone`` images went before anything scored them.
    ``held_up`` says what images wait for that is not a fault of
    theirs, such as memory or a share that is offline, among the :data:`HELD_UP` jobs due last; most images first.
    ``rescores`` are the campaigns over archives that have not ended, whose images have no jobs.
    ``coming`` is the version that becomes champion.
    ``last_minute`` counts scores written, to at most :data:`RECENT`. ``sources`` are all that ever delivered;
    ``watched`` those that somebody watches or watched lately.
    ``findings`` are the files that layouts do not read or warn of.
    ``outbox`` has every target that something waits for, or was given up for within :data:`GIVEN_UP_AGE`; ``untold``
    events are not handed to targets yet. ``training`` is the latest run.
    """

    taken_at: datetime
    new: Jobs
    rescore: Jobs
    rescores: tuple[campaigns.Campaign, ...]
    lapsed: int
    failed: int
    quarantined: Mapping[str, int]
    gone: int
    held_up: tuple[HeldUp, ...]
    last_scored_at: datetime | None
    last_minute: int
    workers: tuple[workers.Worker, ...]
    champion: Serving | None
    challenger: Serving | None
    coming: Coming | None
    alarms: tuple[days.Alarm, ...]
    sources: tuple[str, ...]
    watched: tuple[status.SourceStatus, ...]
    findings: tuple[SourceFinding, ...]
    outbox: Mapping[str, Outbox]
    untold: int
    training: run_rows.Run | None

    @property
    def scored_by_synthetic(self) -> bool:
        """A model trained on rendered drops alone scores the images of a source."""
        return self.champion is not None and self.champion.synthetic and bool(self.sources)


def take_snapshot(connection: Connection, now: datetime) -> StatusSnapshot:
    """Read the snapshot of this moment."""
    depth = connection.execute(_depth(now)).one()
    new, rescore = _ready(depth)
    serving = _serving(connection)
    return StatusSnapshot(
        taken_at=now,
        new=Jobs(new, depth.new_leased, max(0, depth.new_later - depth.new_leased), depth.new_oldest),
        rescore=Jobs(
            rescore, depth.rescore_leased, max(0, depth.rescore_later - depth.rescore_leased), depth.rescore_oldest
        ),
        rescores=tuple(campaigns.listed(connection, now)),
        lapsed=depth.lapsed,
        failed=depth.failed,
        quarantined=_quarantined(connection),
        gone=_count(sa.select(image.c.id).where(backlog.unseen()), connection),
        held_up=_held_up(connection),
        last_scored_at=connection.execute(
            sa.select(score.c.scored_at).order_by(score.c.id.desc()).limit(1)
        ).scalar_one_or_none(),
        last_minute=_last_minute(connection, now),
        workers=tuple(workers.alive(connection, now)),
        champion=serving.get("champion"),
        challenger=serving.get("challenger"),
        coming=_coming(connection),
        alarms=tuple(days.open_alarms(connection)),
        sources=tuple(connection.execute(sa.select(source.c.name).order_by(source.c.name)).scalars()),
        watched=tuple(status.read(connection)),
        findings=tuple(findings.read(connection)),
        outbox=_outbox(connection, now),
        untold=_count(sa.select(event.c.id).where(event.c.dispatched_at.is_(None)), connection),
        training=next(iter(run_rows.listed(connection, 1)), None),
    )


_ALIVE: Final = job.c.failed_at.is_(None)


def _depth(now: datetime) -> sa.Select[Any]:
    """Count jobs in one statement, because they are subtracted from each other and must be of one moment."""
    held = sa.and_(job.c.lease.is_not(None), job.c.available_at > now)
    columns = [
        sa.select(sa.func.count()).select_from(job).scalar_subquery().label("total"),
        sa.select(sa.func.count()).where(job.c.failed_at.is_not(None)).scalar_subquery().label("failed"),
        _some(job.c.lease.is_not(None), job.c.available_at <= now).label("lapsed"),
    ]
    for name, priority in (("new", queue.NEW), ("rescore", queue.RESCORE)):
        mine = sa.and_(_ALIVE, job.c.priority == priority)
        ready = sa.and_(mine, job.c.available_at <= now)
        oldest = sa.select(sa.func.min(job.c.available_at, type_=UtcDateTime())).where(ready)
        columns += [
            _some(ready).label(f"{name}_ready"),
            _some(mine, job.c.available_at > now).label(f"{name}_later"),
            _some(held, job.c.priority == priority).label(f"{name}_leased"),
            oldest.scalar_subquery().label(f"{name}_oldest"),
        ]
    return sa.select(*columns)


def _some(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Count the jobs of that kind, to at most :data:`MOST`."""
    found = sa.select(job.c.id).where(*conditions).limit(MOST).subquery()
    return sa.select(sa.func.count()).select_from(found).scalar_subquery()


def _ready(depth: Any) -> tuple[int, int]:
    """Count waiting new images and others. Exact, unless :data:`MOST` of both wait: then only their sum is."""
    both = max(0, depth.total - depth.failed - depth.new_later - depth.rescore_later)
    if depth.rescore_ready < MOST:
        return max(depth.new_ready, both - depth.rescore_ready), depth.rescore_ready
    return depth.new_ready, max(depth.rescore_ready, both - depth.new_ready)


def _quarantined(connection: Connection) -> dict[str, int]:
    """Count the latest quarantined images by source; those of no source are left out."""
    latest = (
        sa.select(job.c.image_id)
        .where(job.c.failed_at.is_not(None))
        .order_by(job.c.failed_at.desc())
        .limit(QUARANTINED)
        .subquery()
    )
    found = (
        sa.select(source.c.name, sa.func.count())
        .select_from(latest)
        .join(image, image.c.id == latest.c.image_id)
        .join(source, source.c.id == image.c.source_id)
        .group_by(source.c.name)
        .order_by(source.c.name)
    )
    return {row[0]: int(row[1]) for row in connection.execute(found)}


def _held_up(connection: Connection) -> tuple[HeldUp, ...]:
    """Read errors of jobs that lost no attempt, and of ranges: put off for no fault of their images."""
    found: Counter[str] = Counter(campaigns.held_up(connection))
    for priority in (queue.NEW, queue.RESCORE):
        mine = sa.and_(_ALIVE, job.c.priority == priority)
        columns = (job.c.error, job.c.attempts, job.c.lease)
        latest = sa.select(*columns).where(mine).order_by(job.c.available_at.desc()).limit(HELD_UP)
        waiting = [row for row in connection.execute(latest) if row.lease is None and row.attempts == 0]
        found.update(row.error for row in waiting if row.error is not None)
    return tuple(HeldUp(error, images) for error, images in found.most_common())


def _last_minute(connection: Connection, now: datetime) -> int:
    """Count the scores of the last minute. Ids follow the times of writing, so no index on the time is needed."""
    latest = sa.select(score.c.scored_at).order_by(score.c.id.desc()).limit(RECENT).subquery()
    recent = sa.select(latest.c.scored_at).where(latest.c.scored_at > now - timedelta(minutes=1))
    return _count(recent, connection)


def _serving(connection: Connection) -> dict[str, Serving]:
    """Read the versions that score, by alias."""
    name = model_version.c.name + ":" + model_version.c.version
    columns = (model_alias.c.alias, name, model_version.c.synthetic, model_alias.c.set_at)
    found = sa.select(*columns).join(model_version, model_version.c.id == model_alias.c.model_version_id)
    return {row[0]: Serving(row[1], row[2], row[3]) for row in connection.execute(found)}


def _coming(connection: Connection) -> Coming | None:
    found = promotions.pending(connection)
    if found is None:
        return None
    return Coming(str(found.version), found.done, found.plates, found.begun_at, found.moved_at)


def _outbox(connection: Connection, now: datetime) -> dict[str, Outbox]:
    unsent = sa.and_(delivery.c.sent_at.is_(None), delivery.c.failed_at.is_(None))
    lost = sa.and_(delivery.c.failed_at.is_not(None), event.c.happened_at >= now - GIVEN_UP_AGE)
    waiting, given_up = _by_target(connection, unsent), _by_target(connection, lost)
    none = (0, None)
    return {
        target: Outbox(*waiting.get(target, none), given_up.get(target, none)[0])
        for target in sorted({*waiting, *given_up})
    }


def _by_target(connection: Connection, which: sa.ColumnElement[bool]) -> dict[str, tuple[int, datetime | None]]:
    """Count these deliveries by target, and read when the oldest event among them happened."""
    columns = (delivery.c.target, sa.func.count(), sa.func.min(event.c.happened_at, type_=UtcDateTime()))
    found = sa.select(*columns).join(event, event.c.id == delivery.c.event_id).where(which)
    return {row[0]: (int(row[1]), row[2]) for row in connection.execute(found.group_by(delivery.c.target))}


def _count(found: sa.Select[Any], connection: Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(found.subquery())).scalar_one())


def roles(alive: Iterable[workers.Worker]) -> dict[str, int]:
    """Count these workers by role."""
    return Counter(role for worker in alive for role in worker.roles.split(","))
