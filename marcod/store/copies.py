"""Files of the same bytes that show the same drop at the same inspection: one image counts, the others do not.

A folder that is moved within its source gives every image a second path, and a copy gives it two for good. The image
that was read last counts; when it changes, moves or is gone, another of the same bytes takes its place. One that is
gone counts for none that is there.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.rows import parts, select_in
from marcod.database.schema import image, job
from marcod.store import locks, queue, versions

_PLACE: Final = ("source_id", "drop_id", "modality", "content_hash")
_ASPECT: Final = ("profile", "region")
_COMMON: Final = ("inspection_id", *_PLACE, *_ASPECT)
"""Columns that copies have in common. The same bytes in another region or profile, which may be null, are no copy."""

_OTHER: Final = image.alias("other")
_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("image_ids", expanding=True)

_ALIKE: Final = (
    sa.select(
        *(image.c.id, image.c.gone_at, _OTHER.c.id, _OTHER.c.gone_at, _OTHER.c.same_as_id),
        *(image.c[name] for name in _COMMON),
    )
    .join(
        _OTHER,
        sa.and_(
            *(_OTHER.c[name] == image.c[name] for name in _PLACE),
            # A sum has no index: both databases would else read the inspection's images instead of the drop's few.
            _OTHER.c.inspection_id + 0 == image.c.inspection_id,
            *(_OTHER.c[name].is_not_distinct_from(image.c[name]) for name in _ASPECT),
            sa.not_(_OTHER.c.unread),
            _OTHER.c.id != image.c.id,
        ),
    )
    .where(image.c.id.in_(_IDS))
)
"""Pairs of an image and another of the same bytes; put together once, because every batch asks."""

_CONCERNED: Final = (
    sa.select(image.c.same_as_id, image.c.id, image.c.gone_at)
    .where(
        sa.or_(
            sa.and_(image.c.same_as_id.in_(_IDS), image.c.gone_at.is_(None)),
            sa.and_(image.c.id.in_(_IDS), image.c.same_as_id.is_not(None)),
        )
    )
    .order_by(image.c.id)
)
"""Copies that are there of some images, and those of the images that are copies themselves."""


def find(connection: Connection, image_ids: Collection[int]) -> bool:
    """Let these images, whose new bytes were just read, count for all copies of them. Returns whether there are any."""
    return _find(connection, dict.fromkeys(image_ids, 1)) if image_ids else False


def find_again(connection: Connection, image_ids: Collection[int], counted: Collection[int]) -> None:
    """Find the copies of images that came to other places as they were; those that counted before go on counting."""
    known = sa.select(image.c.id).where(image.c.content_hash.is_not(None), sa.not_(image.c.unread))
    for part in parts(row.id for row in select_in(connection, known, image.c.id, image_ids)):
        _find(connection, {image_id: 1 if image_id in counted else -1 for image_id in part})


def _find(connection: Connection, ranks: Mapping[int, int]) -> bool:
    """Let of the copies of some images one count: one that is there, of the highest rank, that came last.

    Of the copies that are not named one that counts has rank 0.
    """
    groups: dict[tuple[Any, ...], dict[int, tuple[bool, int, int]]] = {}
    rows = connection.execute(_ALIKE, {"image_ids": sorted(ranks)})
    for image_id, gone_at, other_id, other_gone_at, other_same_as, *group in rows:
        members = groups.setdefault(tuple(group), {})
        members[image_id] = gone_at is None, ranks[image_id], image_id
        rank = ranks.get(other_id, 0 if other_same_as is None else -2)
        members[other_id] = other_gone_at is None, rank, other_id
    locks.hold_more_images(connection, {image_id for members in groups.values() for image_id in members})
    for members in groups.values():
        _let_count(connection, max(members, key=members.__getitem__), members)
    return bool(groups)


def release(connection: Connection, image_ids: Collection[int], now: datetime) -> list[int]:
    """Let these images stand for no others, because they change, move or are gone. Returns those that count instead."""
    if not image_ids:
        return []
    ids = sorted(image_ids)
    concerned = connection.execute(_CONCERNED, {"image_ids": ids}).all()
    if not concerned:
        return []
    of_each: dict[int, list[int]] = {}
    for counted, copy, gone_at in concerned:
        if gone_at is None and counted in image_ids:
            of_each.setdefault(int(counted), []).append(int(copy))
    locks.hold_more_images(connection, {*ids, *(copy for members in of_each.values() for copy in members)})
    connection.execute(sa.update(image).where(image.c.id.in_(ids)).values(same_as_id=None))
    for members in of_each.values():
        _let_count(connection, members[-1], members)
    released = sorted(members[-1] for members in of_each.values())
    # A version that was promoted meanwhile has not scored what did not count.
    for version in versions.scoring(connection) if released and versions.has_champion(connection) else ():
        queue.enqueue_rescore(connection, version.id, now, image_ids=released)
    return released


def replace_gone(connection: Connection, image_ids: Collection[int], now: datetime) -> None:
    """Let copies that are still there count instead of images whose files are gone."""
    copies = sa.select(image.c.same_as_id, sa.func.max(image.c.id)).where(
        image.c.same_as_id.in_(sorted(image_ids)), image.c.gone_at.is_(None)
    )
    there = connection.execute(copies.group_by(image.c.same_as_id)).all()
    if there:
        locks.hold_more_images(connection, {number for row in there for number in row})
        release(connection, [row[0] for row in there], now)
    for gone, copy in there:
        connection.execute(sa.update(image).where(image.c.id == gone).values(same_as_id=copy))


def _let_count(connection: Connection, counting: int, members: Iterable[int]) -> None:
    others = sorted(set(members) - {counting})
    connection.execute(sa.update(image).where(image.c.id.in_(others)).values(same_as_id=counting))
    # A folder that was moved or copied brings nothing new: what it shows was seen when its first file was.
    first = sa.select(sa.func.min(_OTHER.c.seen_at)).where(_OTHER.c.id.in_([counting, *others])).scalar_subquery()
    connection.execute(sa.update(image).where(image.c.id == counting).values(same_as_id=None, seen_at=first))
    connection.execute(sa.delete(job).where(job.c.image_id.in_(others)))
