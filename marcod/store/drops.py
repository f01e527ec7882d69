"""Drops over time: one row per drop and model version, computed from the verdicts at all its inspections.

Guarantees that the row follows from what is known and not from the order in which files, scores and labels came. The
cost of a refresh is bounded by the inspections of the drops touched.

In one inspection a person's label wins over the score; a later inspection counts on its own, so that crystals that
grow in a drop somebody once called clear are not missed.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.rows import parts, select_in
from marcod.database.schema import drop_summary, hit, image, model_version, score
from marcod.store import events, votes
from marcod.store.selects import OF_PRESENT_BYTES, WAS_CHAMPION
from marcod.store.verdicts import DropVerdict, ImageVerdict, of_drop, of_drops
from marcod.store.versions import Version


class Trend(StrEnum):
    """Trend of a drop over its inspections."""

    NONE = "none"
    STEADY = "steady"
    APPEARING = "appearing"
    DISSOLVING = "dissolving"


class Cause(StrEnum):
    """Reason of a hit: a new image, another model on a known image, or a former champion's hit confirmed."""

    NEW = "new"
    MODEL = "model"
    CONFIRMED = "confirmed"


def order_key(key: str, ordinal: int | None) -> str:
    """Text by which a plate's inspections sort in time: their number, else their key with numbers read as numbers."""
    text = key if ordinal is None else str(ordinal)
    return re.sub(r"\d+", lambda found: found[0].zfill(20), text)


def refresh(connection: Connection, drop_ids: Iterable[int], version: Version, now: datetime) -> Counter[int]:
    """Work these drops out again for one version, and record the hits among them that were none before.

    For callers that hold the drops. Returns how many of those each inspection has, without the ones that only confirm
    a former champion.
    """
    new: Counter[int] = Counter()
    for part in parts(sorted(set(drop_ids))):
        new += _refresh_chunk(connection, part, version, now)
    return new


def _refresh_chunk(connection: Connection, drop_ids: list[int], version: Version, now: datetime) -> Counter[int]:
    rows, first_hits = [], {}
    for drop_id, row, first in _worked_out(connection, drop_ids, version):
        rows.append({"drop_id": drop_id, "model_version_id": version.id, "updated_at": now, **row})
        if first is not None:
            first_hits[drop_id] = first
    before = _recorded(connection, drop_ids, first_hits, version)
    _end_hits(connection, before.own - first_hits.keys(), version, now)
    new = _record_hits(connection, before, first_hits, {row["drop_id"]: row for row in rows}, version, now)
    _remove(connection, set(drop_ids) - {row["drop_id"] for row in rows}, version)
    if rows:
        _write(connection, rows)
    return new


def worked_out(connection: Connection, drop_ids: Iterable[int], version: Version) -> dict[int, dict[str, Any]]:
    """Work out the rows of these drops for one version without keeping them, as for a silent one, which has none.

    By drop, with the columns of ``drop_summary`` but its keys; a drop of which nothing is known is left out.
    """
    found = (_worked_out(connection, part, version) for part in parts(sorted(set(drop_ids))))
    return {drop_id: row for each in found for drop_id, row, _ in each}


def _worked_out(
    connection: Connection, drop_ids: list[int], version: Version
) -> Iterator[tuple[int, dict[str, Any], DropVerdict | None]]:
    """Yield each known drop with its row and its first hit."""
    labels = votes.of_drops(connection, drop_ids)
    images = of_drops(connection, drop_ids, version, labels.keys())
    for drop_id, its in groupby(images, key=attrgetter("drop_id")):
        course = _course(its, labels)
        if any(verdict.known for verdict in course):
            yield drop_id, *_summary(course)


def existing(connection: Connection, drop_ids: Iterable[int]) -> set[int]:
    """List the model versions that have a row of one of these drops; for callers that hold the drops."""
    return _distinct(connection, sa.select(drop_summary.c.model_version_id), drop_summary.c.drop_id, drop_ids)


def existing_of(connection: Connection, drop_ids: Iterable[int], version: Version) -> set[int]:
    """Choose the drops that have a row of one version."""
    of_version = sa.select(drop_summary.c.drop_id).where(drop_summary.c.model_version_id == version.id)
    return _distinct(connection, of_version, drop_summary.c.drop_id, drop_ids)


def with_rows(connection: Connection, drop_ids: Iterable[int]) -> set[int]:
    """Choose the drops that have a row of any version."""
    return _distinct(connection, sa.select(drop_summary.c.drop_id), drop_summary.c.drop_id, drop_ids)


def scored_by(connection: Connection, drop_ids: Iterable[int]) -> set[int]:
    """List the model versions that have a score of the present bytes of an image of these drops."""
    by_version = sa.select(score.c.model_version_id).join(image, OF_PRESENT_BYTES)
    return _distinct(connection, by_version, image.c.drop_id, drop_ids)


def _distinct(
    connection: Connection, wanted: sa.Select[Any], column: sa.Column[Any], drop_ids: Iterable[int]
) -> set[int]:
    return {int(row[0]) for row in select_in(connection, wanted.distinct(), column, sorted(set(drop_ids)))}


def _course(images: Iterable[ImageVerdict], labels: dict[tuple[int, int], votes.DropVotes]) -> list[DropVerdict]:
    """Decide the verdicts on one drop, one per inspection, in order of time."""
    at_each = groupby(images, key=lambda i: (i.drop_id, i.inspection_id))
    return [of_drop(shown, labels.get(subject, votes.NO_VOTES)) for subject, shown in at_each]


def _summary(course: list[DropVerdict]) -> tuple[dict[str, Any], DropVerdict | None]:
    """Compute the columns of a drop's row, and its first hit."""
    known = [verdict for verdict in course if verdict.known]
    current, majority = known[-1], known[-1].majority
    scored = [verdict for verdict in known if verdict.image.p_crystals is not None]
    best = max(scored, key=lambda verdict: verdict.image.p_crystals or 0.0, default=None)
    first = next((verdict for verdict in known if verdict.hit), None)
    shown = current.image
    row = {
        "inspections": len(course),
        "scored_inspections": len(scored),
        "inspection_id": shown.inspection_id,
        "image_id": shown.image_id,
        "p_clear": shown.p_clear,
        "p_crystals": shown.p_crystals,
        "p_other": shown.p_other,
        "p_precipitate": shown.p_precipitate,
        "label": current.label,
        "label_person": None if majority is None else majority.person,
        "label_disputed": majority is not None and majority.disputed,
        "highest_p_crystals": None if best is None else best.image.p_crystals,
        "best_image_id": None if best is None else best.image.image_id,
        "hit": current.hit,
        "first_hit_inspection_id": None if first is None else first.image.inspection_id,
        "first_hit_image_id": None if first is None else first.image.image_id,
        "trend": str(_trend([verdict.hit for verdict in known])),
        "score_version_id": shown.score_version_id,
    }
    return row, first


def _trend(hits: Sequence[bool]) -> Trend:
    if not any(hits):
        return Trend.NONE
    if not hits[-1]:
        return Trend.DISSOLVING
    return Trend.STEADY if all(hits) else Trend.APPEARING


def _write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    statement = insert(connection, drop_summary)
    keys = ["drop_id", "model_version_id"]
    values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)


def _remove(connection: Connection, drop_ids: set[int], version: Version) -> None:
    """Delete the rows of drops without a current score or label."""
    if drop_ids:
        connection.execute(
            sa.delete(drop_summary).where(
                drop_summary.c.model_version_id == version.id, drop_summary.c.drop_id.in_(sorted(drop_ids))
            )
        )


def _end_hits(connection: Connection, drop_ids: set[int], version: Version, now: datetime) -> None:
    """Say of the version's hits in these drops, in which it sees none any more, that they ended."""
    if drop_ids:
        ended = sa.update(hit).where(hit.c.model_version_id == version.id, hit.c.drop_id.in_(sorted(drop_ids)))
        connection.execute(ended.values(ended_at=now))


def _record_hits(
    connection: Connection,
    before: "_Before",
    first_hits: Mapping[int, DropVerdict],
    rows: Mapping[int, dict[str, Any]],
    version: Version,
    now: datetime,
) -> Counter[int]:
    """Record one hit per drop and version, with what is new about it. A hit that ended and returned is new again."""
    values = [
        {
            "drop_id": drop_id,
            "inspection_id": first.image.inspection_id,
            "image_id": first.image.image_id,
            "model_version_id": version.id,
            "p_crystals": rows[drop_id]["highest_p_crystals"] or 0.0,
            "threshold": version.crystal_threshold if first.image.score_version_id is None else first.image.threshold,
            "found_at": now,
            "cause": str(before.cause(drop_id, first.image.inspection_id)),
            "score_version_id": first.image.score_version_id,
            "ended_at": None,
        }
        for drop_id, first in first_hits.items()
        if drop_id not in before.own
    ]
    if not values:
        return Counter()
    statement = insert(connection, hit)
    again = {name: statement.excluded[name] for name in values[0] if name not in ("drop_id", "model_version_id")}
    statement = statement.on_conflict_do_update(index_elements=["drop_id", "model_version_id"], set_=again)
    recorded = connection.execute(statement.returning(hit.c.inspection_id, hit.c.cause, hit.c.id), values).all()
    events.hits_found(connection, [row.id for row in recorded if row.cause == Cause.NEW], now)
    return Counter(int(row.inspection_id) for row in recorded if row.cause != Cause.CONFIRMED)


@dataclass(frozen=True, slots=True)
class _Before:
    """State before: hits of this version, hits of former champions, and inspections where those saw none."""

    own: set[int]
    former: set[int]
    looked: set[tuple[int, int]]

    def cause(self, drop_id: int, inspection_id: int) -> Cause:
        if drop_id in self.former:
            return Cause.CONFIRMED
        return Cause.MODEL if (drop_id, inspection_id) in self.looked else Cause.NEW


def _recorded(connection: Connection, drop_ids: list[int], hits: Collection[int], version: Version) -> _Before:
    """Hits that have not ended: one that was taken back, by a label or a rewritten file, is news when it returns.

    ``hits`` are the drops that are hits now; the question who looked before is asked for those alone.
    """
    still_says = sa.exists().where(
        drop_summary.c.drop_id == hit.c.drop_id, drop_summary.c.model_version_id == hit.c.model_version_id
    )
    found = connection.execute(
        sa.select(
            hit.c.drop_id,
            hit.c.model_version_id.label("version_id"),
            hit.c.ended_at,
            model_version.c.promoted_at,
            still_says.label("still_says"),
        )
        .join(model_version, model_version.c.id == hit.c.model_version_id)
        .where(hit.c.drop_id.in_(drop_ids))
    ).all()
    standing = [row for row in found if row.ended_at is None]
    own = {row.drop_id for row in standing if row.version_id == version.id}
    # A version that was thinned has hits alone, which do not end; they confirm until one of another version ends.
    ended = {row.drop_id for row in found if row.ended_at is not None and row.promoted_at is not None}
    spoke = [row for row in standing if row.version_id != version.id and row.promoted_at is not None]
    former = {row.drop_id for row in spoke if row.still_says or row.drop_id not in ended}
    unheard = sorted(set(hits) - own)
    if not unheard:
        return _Before(own, former, set())
    others = (
        sa.select(image.c.drop_id, image.c.inspection_id)
        .join(score, OF_PRESENT_BYTES)
        .join(model_version, model_version.c.id == score.c.model_version_id)
        .where(
            image.c.drop_id.in_(unheard),
            score.c.model_version_id != version.id,
            WAS_CHAMPION,
        )
        .group_by(image.c.drop_id, image.c.inspection_id, model_version.c.id)
        # A version above its threshold has a hit that people's labels or a lost file ended, and that returns now.
        .having(sa.func.max(score.c.p_crystals) < sa.func.coalesce(model_version.c.crystal_threshold, 1.0))
    )
    looked = {(int(r[0]), int(r[1])) for r in connection.execute(others)}
    return _Before(own, former, looked)
