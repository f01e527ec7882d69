"""Review queue: items proposed, shown to a person, and answered.

Guarantees:
- One statement claims an item, so two people never get the same one.
- People are not asked about a drop at an inspection that they labelled or skipped.
- A label that came any other way closes its items as soon as they are read again.

The database orders and limits; no table is read whole into memory. Random draws are in :mod:`marcod.review.sampling`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.rows import parts, select_in
from marcod.database.schema import drop, image, inspection, label, model_version, plate, review_item, score, source
from marcod.domain import DropClass, text_path
from marcod.errors import NotFoundError
from marcod.labels.recorder import LabelTarget
from marcod.store import sources
from marcod.store.selects import current_score
from marcod.store.versions import Version
from marcod.store.votes import given_singly

PATIENCE: Final = timedelta(minutes=30)
"""An item that was shown and not answered for so long is offered to others."""

SKIPPED: Final = "skipped"
"""The answer of an item on which a person would not say anything."""


class Stream(StrEnum):
    """Reason for which a drop is proposed."""

    THRESHOLD = "threshold"
    DISAGREEMENT = "disagreement"
    AUDIT = "audit"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class ReviewCandidate:
    """A drop at an inspection to look at, its image, and the reason in one sentence.

    Lower ranks come first within a stream. An audit gives ``round_id``, ``stratum`` and ``inclusion``, the
    probability with which the drop was drawn.
    """

    drop_id: int
    inspection_id: int
    image_id: int
    p_crystals: float | None
    reason: str
    rank: float
    round_id: int | None = None
    stratum: int | None = None
    inclusion: float | None = None


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """An item as shown to people. ``root`` and ``path`` are as on disk, keys as stored.

    The probabilities are the present ones of the model that proposed it; None where there is no score, and in an
    audit until it is answered, so that the model does not sway the person.
    """

    item_id: int
    stream: Stream
    reason: str
    source: str
    root: str
    path: str
    plate_key: str
    barcode: str | None
    inspection_key: str
    inspection_ordinal: int | None
    well: str
    drop_number: int
    drop_id: int
    inspection_id: int
    image_id: int
    model: str
    p_clear: float | None
    p_crystals: float | None
    p_other: float | None
    p_precipitate: float | None
    proposed_at: datetime
    person: str | None
    shown_at: datetime | None
    answer: str | None
    answered_at: datetime | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of one stream: open ones, those of them that are shown to somebody, and closed ones."""

    open: int
    shown: int
    answered: int
    skipped: int


def same_subject(one: Any, other: Any) -> sa.ColumnElement[bool]:
    """Match rows of two tables that are of the same drop at the same inspection."""
    return sa.and_(one.c.drop_id == other.c.drop_id, one.c.inspection_id == other.c.inspection_id)


def add(
    connection: Connection, stream: Stream, version: Version, candidates: Iterable[ReviewCandidate], now: datetime
) -> set[tuple[int, int]]:
    """Keep candidates; one whose drop and inspection the stream has already had changes nothing. Returns what is new.

    New are pairs of drop and inspection.
    """
    rows = [_row(stream, version, candidate, now) for candidate in candidates]
    keys = ["drop_id", "inspection_id", "stream"]
    statement = insert(connection, review_item).on_conflict_do_nothing(index_elements=keys)
    statement = statement.returning(review_item.c.drop_id, review_item.c.inspection_id)
    return {(int(row[0]), int(row[1])) for part in parts(rows) for row in connection.execute(statement, part)}


def _row(stream: Stream, version: Version, candidate: ReviewCandidate, now: datetime) -> dict[str, Any]:
    return {**asdict(candidate), "stream": str(stream), "model_version_id": version.id, "proposed_at": now}


def propose_again(
    connection: Connection, version: Version, candidates: Iterable[ReviewCandidate], stream: Stream, now: datetime
) -> None:
    """Make the open items of a stream with these drops and inspections this version's, as if proposed now."""
    for candidate in candidates:
        same = sa.and_(
            review_item.c.drop_id == candidate.drop_id,
            review_item.c.inspection_id == candidate.inspection_id,
            review_item.c.stream == str(stream),
            review_item.c.answered_at.is_(None),
        )
        connection.execute(sa.update(review_item).where(same).values(_row(stream, version, candidate, now)))


def ask(connection: Connection, subject: LabelTarget, version: Version, reason: str, now: datetime) -> bool:
    """Put a drop at an inspection into the queue by hand; one that was answered is asked again. True if it is new.

    Raises NotFoundError where the drop has no image there.
    """
    of_version = current_score(version.id)
    chosen = [image.c.drop_id == subject.drop_id, image.c.inspection_id == subject.inspection_id]
    if subject.image_id is not None:
        chosen.append(image.c.id == subject.image_id)
    found = connection.execute(
        sa.select(image.c.id, score.c.p_crystals)
        .outerjoin(score, of_version)
        .where(*chosen)
        .order_by(
            sa.func.coalesce(score.c.p_crystals, -1.0).desc(), (image.c.modality == version.modality).desc(), image.c.id
        )
        .limit(1)
    ).one_or_none()
    if found is None:
        raise NotFoundError("there is no image of this drop at this inspection")
    candidate = ReviewCandidate(subject.drop_id, subject.inspection_id, found[0], found[1], reason, 0.0)
    statement = insert(connection, review_item).values(_row(Stream.MANUAL, version, candidate, now))
    again = {name: statement.excluded[name] for name in ("image_id", "reason", "p_crystals", "proposed_at")}
    again |= dict.fromkeys(("person", "shown_at", "answer", "answered_at"))
    statement = statement.on_conflict_do_update(
        index_elements=["drop_id", "inspection_id", "stream"], set_=again, where=review_item.c.answered_at.is_not(None)
    )
    return connection.execute(statement.returning(review_item.c.id)).first() is not None


def retire(connection: Connection, version: Version) -> int:
    """Remove items of other versions that nobody was shown; they do not concern the present champion."""
    return connection.execute(
        sa.delete(review_item).where(
            review_item.c.answered_at.is_(None),
            review_item.c.shown_at.is_(None),
            review_item.c.stream != str(Stream.MANUAL),
            review_item.c.model_version_id != version.id,
        )
    ).rowcount


def reconcile(connection: Connection) -> int:
    """Close the open items that people have labelled by any way. Returns how many.

    A label recorded after the item was proposed closes it; in an audit an older one does too, because the draw did
    not look at it, but none that was given to several drops at once. A label of another image of the drop closes it
    only where it is Crystals; a copy of the item's image, as a moved file is, is the same image.
    """
    own, later = label.alias("own"), label.alias("later")
    item, asked, judged = review_item.c, image.alias("asked"), image.alias("judged")
    same_image = sa.exists().where(
        asked.c.id == item.image_id,
        judged.c.id == own.c.image_id,
        sa.func.coalesce(asked.c.same_as_id, asked.c.id) == sa.func.coalesce(judged.c.same_as_id, judged.c.id),
    )
    rows = connection.execute(
        sa.select(item.id, own.c.label, own.c.person, own.c.recorded_at)
        .join(own, same_subject(own, review_item))
        .where(
            item.answered_at.is_(None),
            own.c.label.is_not(None),
            sa.or_(own.c.recorded_at > item.proposed_at, item.stream == str(Stream.AUDIT)),
            sa.or_(own.c.image_id.is_(None), same_image, own.c.label == DropClass.CRYSTALS),
            _stands(own, later),
        )
        .order_by(item.id, own.c.labelled_at, own.c.id)
    ).all()
    latest = {row[0]: row for row in rows}
    return sum(close(connection, i, person=row[2], answer=row[1], now=row[3]) for i, row in sorted(latest.items()))


def close(connection: Connection, item_id: int, *, person: str, answer: str, now: datetime) -> bool:
    """Answer an open item. False where it was answered before, which stays as it is."""
    values = {"person": person, "answer": answer, "answered_at": now}
    of_item = sa.and_(review_item.c.id == item_id, review_item.c.answered_at.is_(None))
    return connection.execute(sa.update(review_item).where(of_item).values(values)).rowcount > 0


def reopen(connection: Connection, item: ReviewItem, answer: str, person: str, now: datetime) -> bool:
    """Ask a person again. False where the item has another answer by now.

    The item is theirs from now on. Others of the same drop and inspection that the answer closed are open again too.
    """
    theirs = sa.and_(review_item.c.person == person, review_item.c.answer == answer)
    again = sa.update(review_item).values(answer=None, answered_at=None)
    mine = again.where(review_item.c.id == item.item_id, theirs).values(shown_at=now)
    if not connection.execute(mine).rowcount:
        return False
    same = sa.and_(review_item.c.drop_id == item.drop_id, review_item.c.inspection_id == item.inspection_id)
    if answer != SKIPPED:
        connection.execute(again.where(same, theirs).values(person=None, shown_at=None))
    return True


def release(connection: Connection, item_ids: Sequence[int], person: str) -> int:
    """Give items back that a person was shown and has not answered. Returns how many."""
    held = sa.and_(
        review_item.c.id.in_(list(item_ids)), review_item.c.person == person, review_item.c.answered_at.is_(None)
    )
    return connection.execute(sa.update(review_item).where(held).values(person=None, shown_at=None)).rowcount


def claim(
    connection: Connection,
    person: str,
    streams: Sequence[Stream],
    now: datetime,
    *,
    hold: timedelta = PATIENCE,
    besides: Sequence[int] = (),
) -> list[int]:
    """Claim the next item of the first of the streams that has one for this person. Returns its id, if any.

    What the person was shown before and has not answered comes first, unless it was exported, but none of ``besides``.
    The item is the person's for ``hold``: ``shown_at`` is dated so that ``PATIENCE`` after it that time is over.
    """
    values = {"person": person, "shown_at": now + (hold - PATIENCE)}
    mine = sa.and_(review_item.c.person == person, review_item.c.shown_at.between(now - PATIENCE, now))
    free = sa.or_(review_item.c.shown_at.is_(None), review_item.c.shown_at < now - PATIENCE)
    turns = [mine, *(sa.and_(review_item.c.stream == str(stream), free) for stream in streams)]
    for turn in turns:
        picked = (
            sa.select(review_item.c.id)
            .where(
                turn,
                review_item.c.answered_at.is_(None),
                review_item.c.id.not_in(list(besides)),
                *_askable(person, now),
            )
            .order_by(review_item.c.rank, review_item.c.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=review_item)
            .cte("picked")
        )
        statement = sa.update(review_item).where(review_item.c.id.in_(sa.select(picked.c.id))).values(values)
        if taken := connection.execute(statement.returning(review_item.c.id)).scalars().all():
            return list(taken)
    return []


def _askable(person: str, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Select items a person may be asked: without their label or skip, and not shown from another stream."""
    other = review_item.alias("other")
    same = sa.and_(same_subject(other, review_item), other.c.id != review_item.c.id)
    skipped = sa.exists().where(same, other.c.person == person, other.c.answer == SKIPPED)
    held = sa.exists().where(same, other.c.answered_at.is_(None), other.c.shown_at >= now - PATIENCE)
    return sa.not_(has_label(person)), sa.not_(skipped), sa.not_(held)


def has_label(person: str) -> sa.ColumnElement[bool]:
    """Select items whose drop at its inspection has a label of this person that is not withdrawn."""
    own, later = label.alias("own"), label.alias("own_later")
    labelled = sa.and_(same_subject(own, review_item), own.c.person == person, own.c.label.is_not(None))
    return sa.exists().where(labelled, _stands(own, later))


def _stands(own: Any, later: Any) -> sa.ColumnElement[bool]:
    """Select labels that their person has not replaced or withdrawn since; in an audit, those given singly."""
    audit = review_item.c.stream == str(Stream.AUDIT)
    singly = sa.and_(given_singly(own), sa.not_(_superseded(own, later, given_singly(later))))
    return sa.or_(sa.and_(audit, singly), sa.and_(sa.not_(audit), sa.not_(_superseded(own, later))))


def _superseded(own: Any, later: Any, *among: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Select labels whose person has replaced or withdrawn them since, by a label ``among`` some."""
    return sa.exists().where(
        *among,
        same_subject(later, own),
        later.c.person == own.c.person,
        sa.func.coalesce(later.c.image_id, 0) == sa.func.coalesce(own.c.image_id, 0),
        sa.or_(
            later.c.labelled_at > own.c.labelled_at,
            sa.and_(later.c.labelled_at == own.c.labelled_at, later.c.id > own.c.id),
        ),
    )


_MODEL: Final = model_version.c.name + ":" + model_version.c.version
_PLACE: Final = (review_item.c.id, review_item.c.stream, review_item.c.reason, source.c.name)
_SHOWN: Final = (
    image.c.path,
    plate.c.key, plate.c.barcode, inspection.c.key, inspection.c.ordinal, drop.c.well, drop.c.drop_number,
    review_item.c.drop_id, review_item.c.inspection_id, review_item.c.image_id, _MODEL,
    score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate,
    review_item.c.proposed_at, review_item.c.person, review_item.c.shown_at, review_item.c.answer,
    review_item.c.answered_at,
)  # fmt: skip
_PROBABILITIES: Final = slice(16, 20)


def _items(connection: Connection, *chosen: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return (
        sa.select(*_PLACE, sources.root_of(connection), *_SHOWN)
        .select_from(review_item)
        .join(image, image.c.id == review_item.c.image_id)
        .join(source, source.c.id == image.c.source_id)
        .join(drop, drop.c.id == review_item.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .join(inspection, inspection.c.id == review_item.c.inspection_id)
        .join(model_version, model_version.c.id == review_item.c.model_version_id)
        .outerjoin(score, current_score(review_item.c.model_version_id))
        .where(*chosen)
    )


def _item(row: Any) -> ReviewItem:
    values = list(row)
    stream = Stream(values[1])
    values[1], values[4], values[5] = stream, text_path(values[4]), text_path(values[5])
    if stream is Stream.AUDIT and values[-1] is None:
        values[_PROBABILITIES] = [None] * 4
    return ReviewItem(*values)


def items(connection: Connection, item_ids: Sequence[int]) -> list[ReviewItem]:
    """Read items, in this order; one that does not exist is left out."""
    rows = select_in(connection, _items(connection), review_item.c.id, item_ids)
    found = {row[0]: _item(row) for row in rows}
    return [found[i] for i in item_ids if i in found]


def waiting(connection: Connection, streams: Sequence[Stream], limit: int) -> list[ReviewItem]:
    """List open items of these streams, stream by stream in the order in which they are offered."""
    chosen = (review_item.c.answered_at.is_(None), review_item.c.stream.in_([str(s) for s in streams]))
    order = (review_item.c.stream, review_item.c.rank, review_item.c.id)
    return [_item(row) for row in connection.execute(_items(connection, *chosen).order_by(*order).limit(limit))]


def counts(connection: Connection, now: datetime) -> dict[Stream, Counts]:
    """Count the items of each stream."""
    item = review_item.c
    is_open, skipped = item.answered_at.is_(None), item.answer == SKIPPED
    held = sa.and_(is_open, item.shown_at >= now - PATIENCE)
    given = sa.and_(sa.not_(is_open), sa.not_(skipped))
    sums = [sa.func.sum(sa.case((what, 1), else_=0)) for what in (is_open, held, given, skipped)]
    rows = connection.execute(sa.select(item.stream, *sums).group_by(item.stream))
    found = {Stream(row[0]): Counts(*(int(n) for n in row[1:])) for row in rows}
    return {stream: found.get(stream, Counts(0, 0, 0, 0)) for stream in Stream}


def open_disagreements(connection: Connection) -> tuple[int, int]:
    """Count the open disagreements of drops that people had labelled there, and of others."""
    labelled = sa.exists().where(same_subject(label, review_item))
    is_open = sa.and_(review_item.c.stream == str(Stream.DISAGREEMENT), review_item.c.answered_at.is_(None))
    rows = connection.execute(sa.select(sa.case((labelled, 1), else_=0)).where(is_open)).scalars().all()
    return sum(rows), len(rows) - sum(rows)


def seen(connection: Connection, version: Version) -> dict[Stream, int]:
    """Count the items of a version that each stream has shown or closed so far, for the mixing."""
    looked = sa.or_(review_item.c.shown_at.is_not(None), review_item.c.answered_at.is_not(None))
    of_version = review_item.c.model_version_id == version.id
    rows = connection.execute(
        sa.select(review_item.c.stream, sa.func.count()).where(looked, of_version).group_by(review_item.c.stream)
    )
    return {Stream(row[0]): int(row[1]) for row in rows}
