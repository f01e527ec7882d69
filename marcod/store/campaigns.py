"""Campaigns: archives that are scored again in ranges of inspections, without a job for every image.

A campaign is made from what :func:`survey` counts, in some hundred rows for a million images. Workers take its ranges,
see ``ranges``; people pause, resume and cancel it. A range that ended is added to its campaign and is gone, so that no
table grows by an archive that was scored.

Lock order: a campaign comes last, after its ranges; who holds its row waits for nothing more.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database import notices
from marcod.database.schema import (
    UtcDateTime,
    campaign,
    campaign_range,
    image,
    inspection,
    job,
    model_version,
    plate,
    score,
    source,
)
from marcod.errors import MarcodError, NotFoundError, StoreError
from marcod.store import audit_log, queue, versions
from marcod.store.selects import IS_COUNTED, count_where

SURVEY_PART: Final = 2_000
"""Inspections that one look counts: half a million images, a second at most."""

RANGE_IMAGES: Final = 4_000
"""Images of a range, more where one inspection has more."""

RECENT: Final = 10_000
"""Scores of a version, the latest, whose times tell its rate."""

RECENT_S: Final = 300.0
"""Scores of this age or less tell the rate."""


class State(StrEnum):
    """State of a campaign; the last two are its end."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Archive:
    """Choice of images: first seen since a time, of one source, or with None all."""

    since: datetime | None = None
    source_id: int | None = None


@dataclass(frozen=True, slots=True)
class Owed:
    """Images that a version owes in one inspection."""

    inspection_id: int
    images: int


@dataclass(frozen=True, slots=True)
class Surveyed:
    """Result of one call of :func:`survey`; the next one continues after the inspection ``last``."""

    inspections: int
    owed: tuple[Owed, ...]
    last: int


def survey(
    connection: Connection, version_id: int, archive: Archive, after: int, limit: int = SURVEY_PART
) -> Surveyed | None:
    """Count what a version owes in the next ``limit`` inspections after this id, and no job waits for; None at the end.

    Of a version without scores and jobs nothing is looked up, which takes seconds for ten million images.
    """
    following = _inspections(archive).where(inspection.c.id > after).order_by(inspection.c.id).limit(limit)
    ids = [int(number) for number in connection.execute(following).scalars()]
    if not ids:
        return None
    counted = sa.select(image.c.inspection_id, sa.func.count()).where(
        image.c.inspection_id.between(ids[0], ids[-1]), of_archive(archive), _owed(connection, version_id)
    )
    rows = connection.execute(counted.group_by(image.c.inspection_id).order_by(image.c.inspection_id))
    return Surveyed(len(ids), tuple(Owed(int(row[0]), int(row[1])) for row in rows), ids[-1])


def _owed(connection: Connection, version_id: int) -> sa.ColumnElement[bool]:
    """Choose the images that a version owes; all in its light where it has no score and no job yet."""
    began = (sa.exists().where(table.c.model_version_id == version_id) for table in (score, job))
    if connection.execute(sa.select(sa.or_(*began))).scalar_one():
        return left(version_id)
    modality = sa.select(model_version.c.modality).where(model_version.c.id == version_id).scalar_subquery()
    return sa.and_(image.c.modality == modality, image.c.gone_at.is_(None), IS_COUNTED)


def left(version_id: int) -> sa.ColumnElement[bool]:
    """Choose the images that a version owes and no job is there for."""
    queued = sa.exists().where(job.c.image_id == image.c.id, job.c.model_version_id == version_id)
    return sa.and_(queue.owed(version_id), sa.not_(queued))


def retries() -> sa.ColumnElement[bool]:
    """Select jobs of images that a campaign failed at, which bear the time at which it began; not of cancelled ones."""
    its = sa.and_(campaign.c.model_version_id == job.c.model_version_id, campaign.c.created_at == job.c.enqueued_at)
    return sa.exists().where(its, campaign.c.state != State.CANCELLED.value).correlate(job)


def of_archive(archive: Archive) -> sa.ColumnElement[bool]:
    """Choose the images of an archive."""
    since = sa.true() if archive.since is None else image.c.seen_at >= archive.since
    return sa.and_(since, sa.true() if archive.source_id is None else image.c.source_id == archive.source_id)


def begin(
    connection: Connection, version_id: int, archive: Archive, owed: Sequence[Owed], actor: str, now: datetime
) -> int:
    """Begin a campaign over what was counted, unless one alike goes on. Returns its number.

    Raises NotFoundError when the version was removed.
    """
    versions.champion(connection, lock=True)
    # Stronger than what keeps the version, so that two who counted the same begin one after the other.
    connection.execute(
        sa.select(model_version.c.id).where(model_version.c.id == version_id).with_for_update(key_share=True)
    )
    versions.lock_version(connection, version_id)
    if (there := alike(connection, version_id, archive)) is not None:
        return there
    images = sum(one.images for one in owed)
    made = sa.insert(campaign).values(
        model_version_id=version_id, source_id=archive.source_id, since=archive.since, state=State.RUNNING.value,
        actor=actor, created_at=now, images=images, done=0, scored=0,
    )  # fmt: skip
    number = int(connection.execute(made.returning(campaign.c.id)).scalar_one())
    rows = [
        {
            "campaign_id": number,
            "first_inspection_id": part[0].inspection_id,
            "last_inspection_id": part[-1].inspection_id,
            "mark_inspection_id": part[0].inspection_id,
            "mark_image_id": 0,
            "images": sum(one.images for one in part),
            **dict.fromkeys(("done", "scored", "lapses", "pauses"), 0),
        }
        for part in _ranges(owed)
    ]
    connection.execute(sa.insert(campaign_range), rows)
    notices.announce(connection, queue.CHANNEL)
    return number


def _ranges(owed: Iterable[Owed]) -> Iterable[list[Owed]]:
    """Divide inspections into lists of about :data:`RANGE_IMAGES` images."""
    part: list[Owed] = []
    images = 0
    for one in owed:
        if part and images + one.images > RANGE_IMAGES:
            yield part
            part, images = [], 0
        part.append(one)
        images += one.images
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as people see it.

    ``left`` images are to be scored yet, at most; of ``images`` at its beginning ``done`` are scored, became jobs of
    their own, or had been scored by others. ``scored`` counts those that it scored. ``error`` is what holds it up.
    ``images_per_s`` is the rate of the last minutes, and None without one.
    """

    id: int
    model: str
    source: str | None
    since: datetime | None
    state: State
    actor: str
    created_at: datetime
    ended_at: datetime | None
    images: int
    done: int
    scored: int
    ranges: int
    held: int
    error: str | None
    images_per_s: float | None = None

    @property
    def left(self) -> int:
        """Images that are to be scored yet, at most; never 0 before the end."""
        return 0 if self.ended_at is not None else max(self.images - self.done, 1)

    @property
    def left_s(self) -> float | None:
        """Seconds that it takes yet at this rate."""
        return None if not self.images_per_s else self.left / self.images_per_s


def _sums(now: datetime) -> sa.Subquery:
    """Sum the ranges of each campaign; those are held whose lease lasts."""
    own = campaign_range.c
    held = sa.and_(own.lease.is_not(None), own.available_at > now)
    columns = (
        own.campaign_id,
        sa.func.sum(own.done).label("done"),
        sa.func.sum(own.scored).label("scored"),
        sa.func.count().label("ranges"),
        count_where(held).label("held"),
        sa.func.max(own.error).label("error"),
    )
    return sa.select(*columns).group_by(own.campaign_id).subquery()


def held_up(connection: Connection) -> dict[str, int]:
    """Count by cause the images of ranges that were put off or given back for it, of campaigns that go on."""
    own = campaign_range.c
    counted = sa.select(own.error, sa.func.sum(own.images - own.done)).join(campaign, campaign.c.id == own.campaign_id)
    found = counted.where(own.error.is_not(None), campaign.c.state == State.RUNNING.value).group_by(own.error)
    return {row[0]: max(1, int(row[1])) for row in connection.execute(found)}


def unfinished(connection: Connection) -> int:
    """Count the images that campaigns have to score yet, at most; also those of paused ones."""
    own = campaign.c
    done = sa.select(sa.func.sum(campaign_range.c.done)).where(campaign_range.c.campaign_id == own.id).scalar_subquery()
    rows = connection.execute(
        sa.select(own.images - own.done - sa.func.coalesce(done, 0)).where(own.ended_at.is_(None))
    )
    return sum(max(1, int(row[0])) for row in rows)


def listed(
    connection: Connection, now: datetime, *, every: bool = False, version_id: int | None = None
) -> list[Campaign]:
    """List the campaigns that have not ended, with ``every`` all, of one version or all; the oldest first."""
    name = model_version.c.name + ":" + model_version.c.version
    own, sums = campaign.c, _sums(now)

    def counted(column: str) -> sa.ColumnElement[int]:
        return own[column] + sa.func.coalesce(sums.c[column], 0)

    wanted = (
        sa.select(
            own.id, own.model_version_id, name, source.c.name, own.since, own.state, own.actor, own.created_at,
            own.ended_at, own.images, counted("done"), counted("scored"), sa.func.coalesce(sums.c.ranges, 0),
            sa.func.coalesce(sums.c.held, 0), sums.c.error,
        )
        .join(model_version, model_version.c.id == own.model_version_id)
        .outerjoin(source, source.c.id == own.source_id)
        .outerjoin(sums, sums.c.campaign_id == own.id)
        .order_by(own.id)
    )  # fmt: skip
    if not every:
        wanted = wanted.where(own.ended_at.is_(None))
    if version_id is not None:
        wanted = wanted.where(own.model_version_id == version_id)
    rows = connection.execute(wanted).all()
    return [_campaign(connection, row, now) for row in rows]


def _campaign(connection: Connection, row: Any, now: datetime) -> Campaign:
    number, version_id, model, of, since, state, actor, created_at, ended_at, *counts, error = row
    images, done, scored, ranges, held = map(int, counts)
    pace = rate(connection, int(version_id), now) if state == State.RUNNING else None
    return Campaign(
        int(number), model, of, since, State(state), actor, created_at, ended_at,
        images, done, scored, ranges, held, error, pace,
    )  # fmt: skip


def rate(connection: Connection, version_id: int, now: datetime) -> float | None:
    """Return the images that a version scored in a second lately; None where it scored none."""
    latest = sa.select(score.c.scored_at).where(score.c.model_version_id == version_id)
    some = latest.order_by(score.c.id.desc()).limit(RECENT).subquery()
    columns = sa.func.count(), sa.func.min(some.c.scored_at, type_=UtcDateTime())
    recent = sa.select(*columns).where(some.c.scored_at > now - timedelta(seconds=RECENT_S))
    images, first_at = connection.execute(recent).one()
    return None if not images else int(images) / max(1.0, (now - first_at).total_seconds())


def alike(connection: Connection, version_id: int, archive: Archive) -> int | None:
    """Find the campaign of this version over this archive that has not ended."""
    same = (
        campaign.c.model_version_id == version_id,
        campaign.c.source_id.is_not_distinct_from(archive.source_id),
        campaign.c.since.is_not_distinct_from(sa.literal(archive.since, campaign.c.since.type)),
    )
    its = sa.select(campaign.c.id).where(*same, campaign.c.ended_at.is_(None)).order_by(campaign.c.id).limit(1)
    return connection.execute(its).scalar_one_or_none()


def count_inspections(connection: Connection, archive: Archive) -> int:
    """Count the inspections that :func:`survey` will look at."""
    return connection.execute(sa.select(sa.func.count()).select_from(_inspections(archive).subquery())).scalar_one()


def _inspections(archive: Archive) -> sa.Select[Any]:
    chosen = sa.select(inspection.c.id)
    if archive.source_id is None:
        return chosen
    return chosen.join(plate, plate.c.id == inspection.c.plate_id).where(plate.c.source_id == archive.source_id)


def has_images(connection: Connection, archive: Archive | None, plate_ids: Collection[int]) -> bool:
    """Tell if there is any image of an archive, or where that is None, of these plates."""
    found = sa.select(image.c.id)
    if archive is None:
        of_these = inspection.c.plate_id.in_(list(plate_ids))
        found = found.join(inspection, inspection.c.id == image.c.inspection_id).where(of_these)
    else:
        found = found.where(of_archive(archive))
    return connection.execute(found.limit(1)).first() is not None


def pause(connection: Connection, number: int, actor: str, now: datetime) -> None:
    """Let no worker take more of a campaign; what they hold they finish. Raises StoreError where it has ended."""
    _change(connection, number, State.PAUSED, "pause rescore", actor, now)


def resume(connection: Connection, number: int, actor: str, now: datetime) -> None:
    """Let workers go on with a campaign. Raises StoreError where it has ended."""
    _change(connection, number, State.RUNNING, "resume rescore", actor, now)
    notices.announce(connection, queue.CHANNEL)


def cancel(connection: Connection, number: int, actor: str, now: datetime) -> None:
    """End a campaign; its scores stay, and what workers hold of it counts for nothing. Raises StoreError when over."""
    _add_up(connection, number)
    _change(connection, number, State.CANCELLED, "cancel rescore", actor, now)


def _change(connection: Connection, number: int, state: State, act: str, actor: str, now: datetime) -> None:
    ended_at = now if state is State.CANCELLED else None
    still = sa.and_(campaign.c.id == number, campaign.c.ended_at.is_(None))
    changed = connection.execute(sa.update(campaign).where(still).values(state=state.value, ended_at=ended_at))
    if not changed.rowcount:
        raise _missing(connection, number)
    audit_log.write(connection, actor, act, f"campaign {number}", {}, now)


def _missing(connection: Connection, number: int) -> MarcodError:
    state = connection.execute(sa.select(campaign.c.state).where(campaign.c.id == number)).scalar_one_or_none()
    if state is None:
        return NotFoundError(f"there is no rescore {number}; `marcod rescore list` shows them")
    return StoreError(f"rescore {number} is {state} already")


def _add_up(connection: Connection, number: int) -> None:
    """Add the ranges of a campaign to it and remove them, which shuts out the workers that hold one."""
    its = campaign_range.c.campaign_id == number
    columns = (campaign_range.c.done, campaign_range.c.scored)
    rows = connection.execute(sa.select(*columns).where(its).order_by(campaign_range.c.id).with_for_update()).all()
    connection.execute(sa.delete(campaign_range).where(its))
    add(connection, number, sum(row.done for row in rows), sum(row.scored for row in rows))


def add(connection: Connection, number: int, done: int, scored: int) -> None:
    """Add what ranges did to their campaign."""
    own = campaign.c
    more = {"done": own.done + done, "scored": own.scored + scored}
    connection.execute(sa.update(campaign).where(own.id == number).values(more))


def end_if_done(connection: Connection, number: int, now: datetime) -> bool:
    """End a campaign without ranges; for callers that hold it. Returns whether it ended."""
    left_over = sa.exists().where(campaign_range.c.campaign_id == number)
    over = sa.and_(campaign.c.id == number, campaign.c.ended_at.is_(None), sa.not_(left_over))
    ended = sa.update(campaign).where(over).values(state=State.FINISHED.value, ended_at=now)
    return bool(connection.execute(ended).rowcount)


def forget(connection: Connection, version_id: int, now: datetime, *, keep: bool) -> int:
    """End the campaigns of a version that is removed, and forget them unless its row stays. Returns how many ended."""
    its = campaign.c.model_version_id == version_id
    running = sa.select(campaign.c.id).where(its, campaign.c.ended_at.is_(None)).order_by(campaign.c.id)
    numbers = connection.execute(running).scalars().all()
    for number in numbers:
        _add_up(connection, number)
    ended = {"state": State.CANCELLED.value, "ended_at": now}
    connection.execute(sa.update(campaign).where(campaign.c.id.in_(numbers)).values(ended))
    if not keep:
        connection.execute(sa.delete(campaign).where(its))
    return len(numbers)
