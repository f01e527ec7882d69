"""Ranges of campaigns in the hands of workers: taken under a lease, expanded to images, marked as far as they are done.

A claim takes a range and the next images past its mark that the version owes and no job is there for. The mark moves
in the transaction that writes their scores, so a worker that dies loses what it held and another goes on from the mark.
Every claim makes a new token; a worker that finishes with an old one changes nothing. Images that fail become jobs of
their own; those that wait for no fault of theirs put the range off. A range that two workers died with is given to jobs
for as many images as they held, among which the queue finds the one that kills.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import campaign, campaign_range, image, inspection, plate, source
from marcod.domain import text_path
from marcod.store import campaigns, queue, sources
from marcod.store.campaigns import Archive, State
from marcod.store.versions import Version
from marcod.text import storable

LONGEST_PAUSE_S: Final = 3_600.0
"""Between two tries of a range whose images wait for no fault of theirs, such as a share that is away."""


@dataclass(frozen=True, slots=True)
class RangeLease(queue.Lease):
    """Images of one range of a campaign; ``ends`` tells that none is owed behind them, ``pauses`` how often it waited.

    Without claims: there was nothing to do in this range, and others may have something.
    """

    range_id: int
    ends: bool
    pauses: int = 0


def claim(
    connection: Connection,
    worker: str,
    *,
    limit: int,
    lease_s: float,
    now: datetime,
    due: datetime | None = None,
    without: Collection[int] = (),
    leaving: Collection[str] = (),
) -> RangeLease | None:
    """Take a range and up to ``limit`` of its images, or None when no campaign has a range to take.

    Only ranges that are free at ``due`` (by default now), not of the versions in ``without`` and without an inspection
    of the sources ``leaving``.
    """
    token = f"{worker}/{uuid4()}"
    free = sa.and_(_free(due or now), _may_be_taken(without, leaving))
    taken = _take(connection, token, now + timedelta(seconds=lease_s), free)
    if taken is None:
        return None
    of = connection.execute(sa.select(campaign).where(campaign.c.id == taken.campaign_id)).one()
    claims = _expand(connection, taken, of, limit)
    lease = RangeLease(token, of.model_version_id, claims, taken.id, len(claims) < limit, taken.pauses)
    if claims and taken.lapses < queue.LAPSES_BEFORE_ALONE:
        return lease
    queue.enqueue_rescore(connection, of.model_version_id, now, image_ids=[c.image_id for c in claims])
    advance(connection, lease, claims, 0, now)
    return RangeLease(token, of.model_version_id, (), taken.id, lease.ends)


def _free(now: datetime) -> sa.ColumnElement[bool]:
    own = campaign_range.c
    return sa.or_(own.available_at.is_(None), own.available_at <= now)


def _may_be_taken(without: Collection[int], leaving: Collection[str]) -> sa.ColumnElement[bool]:
    """Choose ranges of campaigns that run, not of these versions, and without an inspection of these sources."""
    runs = sa.and_(campaign.c.state == State.RUNNING.value, campaign.c.ended_at.is_(None))
    if without:
        runs = sa.and_(runs, campaign.c.model_version_id.not_in(list(without)))
    if not leaving:
        return runs
    own = campaign_range.c
    left = sa.exists().where(
        inspection.c.id.between(own.mark_inspection_id, own.last_inspection_id),
        plate.c.id == inspection.c.plate_id,
        plate.c.source_id.in_(sources.named(leaving)),
        sa.or_(campaign.c.source_id.is_(None), campaign.c.source_id == plate.c.source_id),
    )
    return sa.and_(runs, sa.not_(left))


def _take(connection: Connection, token: str, until: datetime, wanted: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    """Lease the first wanted range, of the oldest campaign that has one."""
    own = campaign_range.c
    picked = (
        sa.select(own.id)
        .join(campaign, campaign.c.id == own.campaign_id)
        .where(wanted)
        .order_by(own.campaign_id, own.id)
        .limit(1)
        .with_for_update(of=campaign_range, skip_locked=True)
        .cte("picked")
    )
    lapses = sa.case((own.lease.is_not(None), own.lapses + 1), else_=own.lapses)
    values = {"lease": token, "available_at": until, "lapses": lapses}
    statement = sa.update(campaign_range).where(own.id.in_(sa.select(picked.c.id))).values(values)
    return connection.execute(statement.returning(campaign_range)).one_or_none()


def is_left(
    connection: Connection, now: datetime, *, without: Collection[int] = (), leaving: Collection[str] = ()
) -> bool:
    """Tell if a range can be taken now or is in the hands of a worker that may die, with the limits of a claim."""
    found = (
        sa.select(campaign_range.c.id)
        .join(campaign, campaign.c.id == campaign_range.c.campaign_id)
        .where(_may_be_taken(without, leaving), sa.or_(_free(now), campaign_range.c.lease.is_not(None)))
    )
    return connection.execute(found.limit(1)).first() is not None


def _expand(connection: Connection, taken: Any, of: Any, limit: int) -> tuple[queue.Claim, ...]:
    """Read the next images of a range past its mark that are left to do."""
    place = sa.tuple_(image.c.inspection_id, image.c.id)
    columns = (
        image.c.id, image.c.inspection_id, source.c.name, image.c.path, image.c.size, image.c.mtime_ns, image.c.unread,
    )  # fmt: skip
    wanted = (
        sa.select(*columns)
        .join(source, source.c.id == image.c.source_id)
        .where(
            image.c.inspection_id.between(taken.mark_inspection_id, taken.last_inspection_id),
            place > sa.tuple_(sa.literal(taken.mark_inspection_id), sa.literal(taken.mark_image_id)),
            campaigns.left(of.model_version_id),
            campaigns.of_archive(Archive(of.since, of.source_id)),
        )
        .order_by(image.c.inspection_id, image.c.id)
        .limit(limit)
    )
    roots = sources.roots(connection)
    lapsed = taken.lapses > 0
    return tuple(
        queue.Claim(
            0, row.id, row.inspection_id, row.name, roots[row.name], text_path(row.path), 1, of.created_at,
            queue.RESCORE, lapsed, (row.size, row.mtime_ns, bool(row.unread)),
        )
        for row in connection.execute(wanted)
    )  # fmt: skip


def hold(connection: Connection, lease: RangeLease) -> bool:
    """Lock the range of a lease until the transaction ends. Returns whether it is still held under it."""
    mine = sa.and_(campaign_range.c.id == lease.range_id, campaign_range.c.lease == lease.token)
    return connection.execute(sa.select(campaign_range.c.id).where(mine).with_for_update()).one_or_none() is not None


def is_as_claimed(claim: queue.Claim, row: Any, version: Version) -> bool:
    """Tell if an image, whose locked row is given, is to be scored yet and its file was not seen to change since."""
    if row is None or claim.seen is None:
        return False
    size, mtime_ns, unread = claim.seen
    counts = row.gone_at is None and row.same_as_id is None and row.modality == version.modality
    return counts and (row.size, row.mtime_ns) == (size, mtime_ns) and (unread or not row.unread)


@dataclass(frozen=True, slots=True)
class PutOff:
    """Cause for which the next images of a range cannot be scored now, and the pause before the second try."""

    error: str
    retry_s: float


def advance(
    connection: Connection,
    lease: RangeLease,
    done: Sequence[queue.Claim],
    scored: int,
    now: datetime,
    held_up: PutOff | None = None,
    *,
    keeps: bool = False,
) -> None:
    """Move the mark of a range behind the last of these claims; give it back unless its worker ``keeps`` it.

    After its end it is removed, and with the last one the campaign ends.

    One that is ``held_up`` waits, twice as long with every try at which the mark did not move.
    """
    own = campaign_range.c
    its = own.id == lease.range_id
    if lease.ends and len(done) == len(lease.claims):
        ended = sa.delete(campaign_range).where(its).returning(own.campaign_id, own.images, own.scored)
        row = connection.execute(ended).one()
        campaigns.add(connection, row.campaign_id, row.images, row.scored + scored)
        campaigns.end_if_done(connection, row.campaign_id, now)
        return
    values: dict[str, Any] = {"done": own.done + len(done), "scored": own.scored + scored}
    values |= {"lapses": 0} if keeps else _FREE
    if done:
        values |= {"mark_inspection_id": done[-1].inspection_id, "mark_image_id": done[-1].image_id}
    if held_up is not None:
        pauses = 1 if done else lease.pauses + 1
        wait_s = min(queue.pause_s(pauses, held_up.retry_s), LONGEST_PAUSE_S)
        values |= {"pauses": pauses, "error": storable(held_up.error), "available_at": now + timedelta(seconds=wait_s)}
    connection.execute(sa.update(campaign_range).where(its).values(values))


_FREE: Final[dict[str, Any]] = {"lease": None, "available_at": None, "lapses": 0, "pauses": 0, "error": None}


def renew(connection: Connection, leases: Iterable[RangeLease], *, now: datetime, lease_s: float) -> int:
    """Have these leases end ``lease_s`` from now, because their worker still works. Returns how many images."""
    until, images = now + timedelta(seconds=lease_s), 0
    for lease in sorted(leases, key=lambda one: one.range_id):
        mine = sa.and_(campaign_range.c.id == lease.range_id, campaign_range.c.lease == lease.token)
        renewed = connection.execute(sa.update(campaign_range).where(mine).values(available_at=until))
        images += len(lease.claims) if renewed.rowcount else 0
    return images


def release(connection: Connection, lease: RangeLease, error: str | None = None) -> int:
    """Give back a range as if it had never been taken. Returns how many images were ours.

    ``error`` says what held them up, for people; without one the range keeps its own.
    """
    own = campaign_range.c
    more = {} if error is None else {"error": storable(error)}
    mine = sa.and_(own.id == lease.range_id, own.lease == lease.token)
    given = sa.update(campaign_range).where(mine).values(lease=None, available_at=None, **more)
    return len(lease.claims) if connection.execute(given).rowcount else 0
