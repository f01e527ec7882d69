"""Drops over time: one row a drop and model version, worked out anew from all its inspections.

Hides the order of inspections and how people's labels and a model's scores become one verdict. Promises that the
row follows from what is known and not from the order in which files, scores and labels came; the cost of a
refresh is bounded by the inspections of the drops touched.

In one inspection a person's label wins over the score; a later inspection speaks for itself, so that crystals that
grow in a drop somebody once called clear are not missed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import DropClass
from marcod.store import announce, labels, versions
from marcod.store.engine import insert
from marcod.store.schema import drop, drop_summary, hit, image, inspection, model_version, score
from marcod.store.versions import Version

CHUNK: Final = 500
"""Drops a statement looks at."""


class Trend(StrEnum):
    """How a drop went over its inspections."""

    NONE = "none"
    STEADY = "steady"
    APPEARING = "appearing"
    DISSOLVING = "dissolving"


class Cause(StrEnum):
    """Why a hit was recorded: a new picture, another model on a picture known before, or the same said once more."""

    NEW = "new"
    MODEL = "model"
    CONFIRMED = "confirmed"


def order_key(key: str, ordinal: int | None) -> str:
    """Text by which a plate's inspections sort in time: their number, else their key with numbers read as numbers."""
    text = key if ordinal is None else str(ordinal)
    return re.sub(r"\d+", lambda found: found[0].zfill(20), text)


@dataclass(frozen=True, slots=True)
class _Picture:
    drop_id: int
    inspection_id: int
    image_id: int
    p_clear: float | None
    p_crystals: float | None
    p_other: float | None
    p_precipitate: float | None
    label: str | None
    in_light: bool


@dataclass(frozen=True, slots=True)
class _Look:
    """A drop at one inspection: its most crystalline picture, and what people say of it."""

    picture: _Picture
    said: labels.Verdict | None
    hit: bool

    @property
    def known(self) -> bool:
        return self.said is not None or self.picture.p_crystals is not None


def refresh(connection: Connection, drop_ids: Iterable[int], version: Version, now: datetime) -> Counter[int]:
    """Work these drops out anew for one version, and record the hits among them that were none before.

    Returns how many of those each inspection has, without the ones that only confirm a former champion.
    """
    wanted = sorted(set(drop_ids))
    new: Counter[int] = Counter()
    for start in range(0, len(wanted), CHUNK):
        new += _refresh_chunk(connection, wanted[start : start + CHUNK], version, now)
    return new


def _refresh_chunk(connection: Connection, drop_ids: list[int], version: Version, now: datetime) -> Counter[int]:
    _lock(connection, drop_ids)
    said = labels.words(connection, drop_ids)
    shown = _pictures(connection, drop_ids, version, {where for _, where in said})
    pictures = [p for p in shown if p.in_light or (p.drop_id, p.inspection_id) in said]
    rows = []
    for drop_id, pictures_of_drop in groupby(pictures, key=attrgetter("drop_id")):
        looks = _looks(list(pictures_of_drop), said, version.crystal_threshold)
        if any(look.known for look in looks):
            rows.append({"drop_id": drop_id, "model_version_id": version.id, "updated_at": now, **_summary(looks)})
    hits = [row for row in rows if row["first_hit_inspection_id"] is not None]
    new = _record_hits(connection, hits, version, now)
    _remove(connection, set(drop_ids) - {row["drop_id"] for row in rows}, version)
    if rows:
        _write(connection, rows)
    return new


def _lock(connection: Connection, drop_ids: list[int]) -> None:
    """Hold these drops, or of two who score two inspections of one drop the later would not see what the other saw."""
    held = sa.select(drop.c.id).where(drop.c.id.in_(drop_ids)).order_by(drop.c.id)
    connection.execute(held.with_for_update(key_share=True)).all()


def _pictures(connection: Connection, drop_ids: list[int], version: Version, labelled: set[int]) -> list[_Picture]:
    """The pictures in the version's light, and at ``labelled`` inspections any, since people may judge by another."""
    of_version = sa.and_(
        score.c.image_id == image.c.id,
        score.c.model_version_id == version.id,
        score.c.content_hash == image.c.content_hash,
    )
    rows = connection.execute(
        sa.select(
            image.c.drop_id,
            image.c.inspection_id,
            image.c.id,
            score.c.p_clear,
            score.c.p_crystals,
            score.c.p_other,
            score.c.p_precipitate,
            score.c.label,
            image.c.modality == version.modality,
        )
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .outerjoin(score, of_version)
        .where(
            image.c.drop_id.in_(drop_ids),
            sa.or_(image.c.modality == version.modality, image.c.inspection_id.in_(sorted(labelled))),
        )
        .order_by(image.c.drop_id, inspection.c.order_key, inspection.c.id, image.c.path)
    )
    return [_Picture(*row) for row in rows]


def _looks(pictures: list[_Picture], said: dict[tuple[int, int], labels.Words], threshold: float) -> list[_Look]:
    """The inspections of one drop in order of time."""
    looks = []
    for subject, group in groupby(pictures, key=lambda p: (p.drop_id, p.inspection_id)):
        shown = list(group)
        best = max(shown, key=lambda p: (p.in_light, -1.0 if p.p_crystals is None else p.p_crystals))
        hits = {p.image_id: p.p_crystals is not None and p.p_crystals >= threshold for p in shown}
        verdict = said.get(subject, labels.NOTHING).verdict(hits)
        is_hit = any(hits.values()) if verdict is None else verdict.label is DropClass.CRYSTALS
        looks.append(_Look(best, verdict, is_hit))
    return looks


def _summary(looks: list[_Look]) -> dict[str, Any]:
    known = [look for look in looks if look.known]
    current, said = known[-1], known[-1].said
    scored = [look for look in known if look.picture.p_crystals is not None]
    best = max(scored, key=lambda look: look.picture.p_crystals or 0.0, default=None)
    first = next((look for look in known if look.hit), None)
    shown = current.picture
    return {
        "inspections": len(looks),
        "scored_inspections": len(scored),
        "inspection_id": shown.inspection_id,
        "image_id": shown.image_id,
        "p_clear": shown.p_clear,
        "p_crystals": shown.p_crystals,
        "p_other": shown.p_other,
        "p_precipitate": shown.p_precipitate,
        "label": shown.label if said is None else said.label,
        "label_person": None if said is None else said.person,
        "label_disputed": said is not None and said.disputed,
        "highest_p_crystals": None if best is None else best.picture.p_crystals,
        "best_image_id": None if best is None else best.picture.image_id,
        "hit": current.hit,
        "first_hit_inspection_id": None if first is None else first.picture.inspection_id,
        "first_hit_image_id": None if first is None else first.picture.image_id,
        "trend": str(_trend([look.hit for look in known])),
    }


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
    """A drop without a current score or label has no row."""
    if drop_ids:
        connection.execute(
            sa.delete(drop_summary).where(
                drop_summary.c.model_version_id == version.id, drop_summary.c.drop_id.in_(sorted(drop_ids))
            )
        )


def _record_hits(connection: Connection, rows: list[dict[str, Any]], version: Version, now: datetime) -> Counter[int]:
    """One hit a drop and version, with what is new about it; one that ended and is there again is found anew."""
    ids = [row["drop_id"] for row in rows]
    if not ids:
        return Counter()
    before = _recorded(connection, ids, version)
    fresh = [row for row in rows if row["drop_id"] not in before.own]
    values = [
        {
            "drop_id": row["drop_id"],
            "inspection_id": row["first_hit_inspection_id"],
            "image_id": row["first_hit_image_id"],
            "model_version_id": version.id,
            "p_crystals": row["highest_p_crystals"] or 0.0,
            "threshold": version.crystal_threshold,
            "found_at": now,
            "cause": str(before.cause(row["drop_id"], row["first_hit_inspection_id"])),
        }
        for row in fresh
    ]
    if not values:
        return Counter()
    statement = insert(connection, hit)
    anew = {name: statement.excluded[name] for name in values[0] if name not in ("drop_id", "model_version_id")}
    statement = statement.on_conflict_do_update(index_elements=["drop_id", "model_version_id"], set_=anew)
    recorded = connection.execute(statement.returning(hit.c.inspection_id, hit.c.cause, hit.c.id), values).all()
    announce.hits_found(connection, [row.id for row in recorded if row.cause == Cause.NEW], now)
    return Counter(int(row.inspection_id) for row in recorded if row.cause != Cause.CONFIRMED)


@dataclass(frozen=True, slots=True)
class _Before:
    """What was said of some drops: hits of this version, hits of former champions, and where those saw none."""

    own: set[int]
    former: set[int]
    looked: set[tuple[int, int]]

    def cause(self, drop_id: int, inspection_id: int) -> Cause:
        if drop_id in self.former:
            return Cause.CONFIRMED
        return Cause.MODEL if (drop_id, inspection_id) in self.looked else Cause.NEW


def _recorded(connection: Connection, drop_ids: list[int], version: Version) -> _Before:
    found = connection.execute(
        sa.select(hit.c.drop_id, hit.c.model_version_id, model_version.c.promoted_at.is_not(None))
        .join(model_version, model_version.c.id == hit.c.model_version_id)
        .where(hit.c.drop_id.in_(drop_ids))
    ).all()
    # A hit that was taken back, by a label or a rewritten file, and is one again, is news again.
    ended = sa.select(drop_summary.c.drop_id).where(
        drop_summary.c.drop_id.in_(drop_ids),
        drop_summary.c.model_version_id == version.id,
        drop_summary.c.first_hit_inspection_id.is_(None),
    )
    own = {row[0] for row in found if row[1] == version.id} - set(connection.execute(ended).scalars())
    former = {row[0] for row in found if row[1] != version.id and row[2]}
    others = (
        sa.select(image.c.drop_id, image.c.inspection_id)
        .join(score, sa.and_(score.c.image_id == image.c.id, score.c.content_hash == image.c.content_hash))
        .join(model_version, model_version.c.id == score.c.model_version_id)
        .where(
            image.c.drop_id.in_(sorted(set(drop_ids) - own)),
            score.c.model_version_id != version.id,
            model_version.c.promoted_at.is_not(None),
        )
        .distinct()
    )
    looked = {(int(r[0]), int(r[1])) for r in connection.execute(others)}
    return _Before(own, former, looked)


def refresh_all_versions(connection: Connection, drop_ids: Iterable[int], now: datetime) -> Counter[int]:
    """Refresh every version that has a row of one of these drops, and the champion, after labels changed.

    Returns the champion's new hits, as :func:`refresh` does.
    """
    ids = sorted(set(drop_ids))
    if not ids:
        return Counter()
    rows = connection.execute(
        sa.select(drop_summary.c.model_version_id).where(drop_summary.c.drop_id.in_(ids)).distinct()
    )
    champion = versions.champion(connection)
    wanted = {int(row[0]) for row in rows} | {champion.id}
    new = {v: refresh(connection, ids, versions.get(connection, v), now) for v in sorted(wanted)}
    return new[champion.id]


def refresh_missing(connection: Connection, version: Version, now: datetime, *, after: int, limit: int) -> int | None:
    """Make the rows of drops from before there were any: the next ``limit`` drops after an id.

    Returns the last drop looked at, or None when there are no more.
    """
    following = sa.select(drop.c.id).where(drop.c.id > after).order_by(drop.c.id).limit(limit)
    ids = list(connection.execute(following).scalars())
    if not ids:
        return None
    have = sa.select(drop_summary.c.drop_id).where(
        drop_summary.c.drop_id.in_(ids), drop_summary.c.model_version_id == version.id
    )
    refresh(connection, set(ids) - set(connection.execute(have).scalars()), version, now)
    return int(ids[-1])
