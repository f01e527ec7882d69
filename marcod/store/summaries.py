"""The verdict on a plate: one summary row per inspection and model version.

Kept current inside the transaction that records images, scores or labels. The cost is bounded by the inspection.
A drop's verdict in an inspection is what people say of it, else that of its picture with the highest crystal
probability, because a lab would rather look twice than miss one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.domain import DropClass
from marcod.store import announce, labels, queue
from marcod.store.engine import insert
from marcod.store.schema import (
    drop,
    image,
    inspection,
    inspection_summary,
    job,
    plate,
    score,
    source,
)
from marcod.store.versions import Version, get

BEST_WELLS: Final = 12
"""How many wells ``best_wells`` names."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one picture, or the best of several, says about a drop; None while it is not scored.

    ``label`` is the model's, ``said`` that of people, which wins.
    """

    drop_id: int
    image_id: int
    path: str
    well: str
    well_row: int
    well_column: int
    drop_number: int
    p_clear: float | None
    p_crystals: float | None
    p_other: float | None
    p_precipitate: float | None
    label: str | None
    failed: bool
    seen_at: datetime
    said: labels.Verdict | None = None

    @property
    def shown_label(self) -> str | None:
        """The class that counts."""
        return self.label if self.said is None else self.said.label

    def hit(self, version: Version) -> bool:
        """Whether people, else the model, see crystals."""
        if self.said is not None:
            return self.said.label == DropClass.CRYSTALS
        return self.p_crystals is not None and self.p_crystals >= version.crystal_threshold


def verdicts(connection: Connection, inspection_id: int, version: Version) -> list[Verdict]:
    """Every drop of an inspection as one model version sees it, in plate order."""
    pictures = _pictures(connection, inspection_id, version)
    best = _verdicts(pictures, labels.of_inspection(connection, inspection_id), version)
    return sorted(best, key=lambda v: (v.well_row, v.well_column, v.drop_number))


def lock(connection: Connection, inspection_ids: Iterable[int]) -> list[int]:
    """Hold these inspections, in one order everywhere, so that two writers never mix their summaries.

    The lock lets others add images meanwhile: two that have both added some would wait for each other for ever.
    """
    rows = connection.execute(
        sa.select(inspection.c.id)
        .where(inspection.c.id.in_(list(inspection_ids)))
        .order_by(inspection.c.id)
        .with_for_update(key_share=True)
    )
    return [int(row[0]) for row in rows]


def refresh(
    connection: Connection,
    inspection_ids: Iterable[int],
    version: Version,
    now: datetime,
    new_hits: Mapping[int, int] = MappingProxyType({}),
) -> dict[int, bool]:
    """Count these inspections anew for one model version. Returns which of them are complete.

    What has become complete is announced, and so are ``new_hits``, the drops newly recorded as hits by inspection.
    """
    held = lock(connection, {*inspection_ids, *new_hits})
    before = _completed(connection, held, version)
    complete = {i: _refresh_one(connection, i, version, now, before.get(i)) for i in held}
    told = [i for i in held if i in new_hits or (complete[i] and i not in before)]
    announce.plates_scored(connection, {i: new_hits.get(i, 0) for i in told}, version.id)
    announce.completed(connection, [i for i in held if complete[i] and i not in before], version.id, now)
    return complete


@dataclass(frozen=True, slots=True)
class _Completed:
    """By which rule an inspection was complete, and with which last image."""

    rule: str
    last_image_at: datetime | None


def _completed(connection: Connection, inspection_ids: list[int], version: Version) -> dict[int, _Completed]:
    summary = inspection_summary.c
    found = sa.select(summary.inspection_id, summary.complete_rule, summary.last_image_at).where(
        summary.inspection_id.in_(inspection_ids), summary.model_version_id == version.id, summary.complete
    )
    return {int(row[0]): _Completed(row[1], row[2]) for row in connection.execute(found)}


def _refresh_one(
    connection: Connection, inspection_id: int, version: Version, now: datetime, before: _Completed | None
) -> bool:
    pictures = _pictures(connection, inspection_id, version)
    if not pictures:
        _remove(connection, inspection_id, version)
        return False
    found = _verdicts(pictures, labels.of_inspection(connection, inspection_id), version)
    scored = [p for p in found if p.p_crystals is not None]
    expected = _expected(connection, inspection_id)
    failed = sum(1 for p in found if p.p_crystals is None and p.failed)
    waiting = any(p.p_crystals is None and not p.failed for p in pictures)
    last_image_at = max(p.seen_at for p in pictures)
    rule = None
    if not waiting and expected is not None and len(found) >= expected:
        rule = "expected"
    elif not waiting and before == _Completed("quiet", last_image_at):
        rule = "quiet"
    counts = Counter(p.shown_label for p in found)
    _write(
        connection,
        {"inspection_id": inspection_id, "model_version_id": version.id},
        {
            "n_clear": counts[DropClass.CLEAR],
            "n_crystals": counts[DropClass.CRYSTALS],
            "n_other": counts[DropClass.OTHER],
            "n_precipitate": counts[DropClass.PRECIPITATE],
            "hits": sum(1 for p in found if p.hit(version)),
            "best_wells": best_wells(scored),
            "labelled": sum(1 for p in found if p.said is not None),
            "expected": expected,
            "seen": len(found),
            "scored": len(scored),
            "failed": failed,
            "complete": rule is not None,
            "complete_rule": rule,
            "first_image_at": min(p.seen_at for p in pictures),
            "last_image_at": last_image_at,
            "updated_at": now,
        },
    )
    return rule is not None


def _pictures(connection: Connection, inspection_id: int, version: Version) -> list[Verdict]:
    of_version = sa.and_(
        score.c.image_id == image.c.id,
        score.c.model_version_id == version.id,
        score.c.content_hash == image.c.content_hash,
    )
    own_job = sa.and_(job.c.image_id == image.c.id, job.c.model_version_id == version.id)
    pictures: sa.Select[Any] = (
        sa.select(
            image.c.drop_id,
            image.c.id,
            image.c.path,
            drop.c.well,
            drop.c.well_row,
            drop.c.well_column,
            drop.c.drop_number,
            score.c.p_clear,
            score.c.p_crystals,
            score.c.p_other,
            score.c.p_precipitate,
            score.c.label,
            job.c.failed_at.is_not(None),
            image.c.seen_at,
        )
        .join(inspection, inspection.c.id == image.c.inspection_id)
        # The plate is said twice so that PostgreSQL looks the drops up instead of reading all there are.
        .join(drop, sa.and_(drop.c.id == image.c.drop_id, drop.c.plate_id == inspection.c.plate_id))
        .outerjoin(score, of_version)
        .outerjoin(job, own_job)
        .where(image.c.inspection_id == inspection_id, image.c.modality == version.modality)
        # Of two pictures that are equally crystalline the same one counts, whichever came first.
        .order_by(image.c.path)
    )
    return [Verdict(*row) for row in connection.execute(pictures)]


def _verdicts(pictures: list[Verdict], said: Mapping[int, labels.Words], version: Version) -> list[Verdict]:
    """For every drop its picture with the highest crystal probability, else one that waits, else a failed one."""
    best: dict[int, Verdict] = {}
    hits: dict[int, dict[int, bool]] = {}
    for picture in pictures:
        hits.setdefault(picture.drop_id, {})[picture.image_id] = picture.hit(version)
        held = best.get(picture.drop_id)
        if held is None or _rank(picture) > _rank(held):
            best[picture.drop_id] = picture
    return [
        replace(picture, said=said.get(drop_id, labels.NOTHING).verdict(hits[drop_id]))
        for drop_id, picture in best.items()
    ]


def _rank(picture: Verdict) -> float:
    if picture.p_crystals is not None:
        return picture.p_crystals
    return -2.0 if picture.failed else -1.0


def best_wells(found: Iterable[Verdict]) -> str:
    """The column ``best_wells``: JSON; drops that people call crystals, then by probability, then what they deny."""
    scored = [d for d in found if d.p_crystals is not None]
    order = sorted(scored, key=lambda d: (-_denied(d), -_rank(d), d.well, d.drop_number))[:BEST_WELLS]
    return json.dumps([{"well": d.well, "drop": d.drop_number, "p_crystals": round(_rank(d), 4)} for d in order])


def _denied(verdict: Verdict) -> int:
    """1 where people say crystals, 0 where they say nothing, -1 where they say another class."""
    if verdict.said is None:
        return 0
    return 1 if verdict.said.label == DropClass.CRYSTALS else -1


def _expected(connection: Connection, inspection_id: int) -> int | None:
    """Expected drops: the plate's own format, else as configured for its source, else as an earlier inspection had."""
    of_format = plate.c.format_rows * plate.c.format_columns * plate.c.format_drops
    configured, plate_id = connection.execute(
        sa.select(sa.func.coalesce(of_format, source.c.expected_drops), plate.c.id)
        .join(plate, plate.c.source_id == source.c.id)
        .join(inspection, inspection.c.plate_id == plate.c.id)
        .where(inspection.c.id == inspection_id)
    ).one()
    if configured is not None:
        return int(configured)
    earlier = connection.execute(
        sa.select(sa.func.max(inspection_summary.c.seen))
        .join(inspection, inspection.c.id == inspection_summary.c.inspection_id)
        .where(
            inspection.c.plate_id == plate_id,
            inspection.c.id < inspection_id,
            inspection_summary.c.complete,
        )
    ).scalar_one()
    return None if earlier is None else int(earlier)


def _write(connection: Connection, key: dict[str, int], values: dict[str, Any]) -> None:
    statement = insert(connection, inspection_summary).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))


def _remove(connection: Connection, inspection_id: int, version: Version) -> None:
    """An inspection without a picture for this version, such as one in UV light alone, has no summary."""
    connection.execute(
        sa.delete(inspection_summary).where(
            inspection_summary.c.inspection_id == inspection_id,
            inspection_summary.c.model_version_id == version.id,
        )
    )


def complete_quiet(connection: Connection, now: datetime, quiet_s: float) -> int:
    """Complete the inspections whose known drops are all done and to which nothing new came. Returns how many."""
    done = inspection_summary.c.scored + inspection_summary.c.failed >= inspection_summary.c.seen
    waiting = sa.exists().where(
        image.c.inspection_id == inspection_summary.c.inspection_id,
        job.c.image_id == image.c.id,
        job.c.model_version_id == inspection_summary.c.model_version_id,
        job.c.failed_at.is_(None),
    )
    quiet = sa.and_(
        sa.not_(inspection_summary.c.complete),
        inspection_summary.c.last_image_at <= now - timedelta(seconds=quiet_s),
        done,
        sa.not_(waiting),
    )
    candidates = connection.execute(sa.select(inspection_summary.c.inspection_id).where(quiet).distinct()).scalars()
    # Held before they change, as everybody does; what changed meanwhile is seen by the same condition again.
    ids = lock(connection, candidates)
    completed = connection.execute(
        sa.update(inspection_summary)
        .where(inspection_summary.c.inspection_id.in_(ids), quiet)
        .values(complete=True, complete_rule="quiet", updated_at=now)
        .returning(inspection_summary.c.inspection_id, inspection_summary.c.model_version_id)
    ).all()
    for version_id, rows in groupby(sorted(completed, key=itemgetter(1)), key=itemgetter(1)):
        its = [row[0] for row in rows]
        announce.plates_scored(connection, dict.fromkeys(its, 0), version_id)
        announce.completed(connection, its, version_id, now)
    return len(completed)


def refresh_all_versions(
    connection: Connection,
    inspection_ids: Iterable[int],
    now: datetime,
    new_hits: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """Refresh every version's existing row of these inspections, after jobs or labels changed outside the scorer.

    ``new_hits`` are the champion's, as :func:`drops.refresh_all_versions` returns them.
    """
    ids = lock(connection, {*inspection_ids, *new_hits})
    rows = connection.execute(
        sa.select(inspection_summary.c.model_version_id, inspection_summary.c.inspection_id)
        .where(inspection_summary.c.inspection_id.in_(ids))
        .order_by(inspection_summary.c.model_version_id, inspection_summary.c.inspection_id)
    ).all()
    for version_id, seen in groupby(rows, key=itemgetter(0)):
        its = [row[1] for row in seen]
        of_these = {where: count for where, count in new_hits.items() if where in its}
        refresh(connection, its, get(connection, version_id), now, of_these)


def retry_failed(connection: Connection, now: datetime, image_ids: Iterable[int] | None = None) -> int:
    """Put quarantined images back into the queue and say so in their summaries. Returns how many."""
    failed = (
        sa.select(image.c.inspection_id).join(job, job.c.image_id == image.c.id).where(job.c.failed_at.is_not(None))
    )
    if image_ids is not None:
        failed = failed.where(image.c.id.in_(list(image_ids)))
    touched = set(connection.execute(failed).scalars())
    count = queue.retry(connection, now, image_ids)
    refresh_all_versions(connection, touched, now)
    return count


def give_up_exhausted(connection: Connection, *, max_attempts: int, now: datetime) -> int:
    """Quarantine what its workers died with, and say so in the summaries. Returns how many."""
    images = queue.quarantine_exhausted(connection, max_attempts=max_attempts, now=now)
    announce.quarantined(connection, images, now)
    touched = set(connection.execute(sa.select(image.c.inspection_id).where(image.c.id.in_(images))).scalars())
    refresh_all_versions(connection, touched, now)
    return len(images)
