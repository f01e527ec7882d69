"""Plate summaries: one row per inspection and model version, counted from the verdicts on its drops.

Refreshed by ``derived`` inside the transaction that changes images, scores or labels. The cost is bounded by the
inspection.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.rows import CHUNK, parts, select_in
from marcod.database.schema import inspection, inspection_summary, model_version, plate, source
from marcod.domain import DropClass
from marcod.store import events, locks, votes
from marcod.store.verdicts import DropVerdict, ImageState, by_drop, of_inspection
from marcod.store.versions import Version

BEST_WELLS: Final = 12
"""Number of wells that ``best_wells`` names."""


def refresh(
    connection: Connection,
    inspection_ids: Iterable[int],
    version: Version,
    now: datetime,
    new_hits: Mapping[int, int] = MappingProxyType({}),
    *,
    as_others: bool = False,
) -> dict[int, bool]:
    """Count these inspections again for one model version. Returns which of them are complete.

    For callers that hold the inspections. What has become complete is announced, and so are ``new_hits``, the drops
    newly recorded as hits by inspection. With ``as_others`` an inspection that was complete for a version that spoke
    is so for this one too, as soon as nothing waits for it.
    """
    held = sorted(set(inspection_ids))
    before = _completed(connection, held, version, as_others=as_others)
    complete = {i: _refresh_one(connection, i, version, now, before.get(i)) for i in held}
    finished = [i for i in held if complete[i] and i not in before]
    events.plates_scored(connection, {i: new_hits.get(i, 0) for i in sorted({*finished, *new_hits})}, version.id)
    events.completed(connection, finished, version.id, now)
    return complete


def existing(connection: Connection, inspection_ids: Iterable[int]) -> dict[int, list[int]]:
    """Inspections that have a row, by model version; for callers that hold the inspections."""
    found: dict[int, list[int]] = {}
    columns = (inspection_summary.c.model_version_id, inspection_summary.c.inspection_id)
    for ids in parts(sorted(set(inspection_ids))):
        rows = sa.select(*columns).where(inspection_summary.c.inspection_id.in_(ids)).order_by(*columns)
        for version_id, inspection_id in connection.execute(rows):
            found.setdefault(int(version_id), []).append(int(inspection_id))
    return found


def existing_of(connection: Connection, inspection_ids: Iterable[int], version: Version) -> list[int]:
    """Choose the inspections that have a row of one version."""
    rows = sa.select(inspection_summary.c.inspection_id).where(inspection_summary.c.model_version_id == version.id)
    found = select_in(connection, rows, inspection_summary.c.inspection_id, sorted(set(inspection_ids)))
    return sorted(int(row[0]) for row in found)


@dataclass(frozen=True, slots=True)
class _Completed:
    """By which rule an inspection was complete, and with which last image."""

    rule: str
    last_image_at: datetime | None

    def holds(self, last_image_at: datetime) -> bool:
        """Tell if nothing came since; the last image may be an earlier one now, where the last is gone or moved."""
        return self.last_image_at is not None and last_image_at <= self.last_image_at


def _completed(
    connection: Connection, inspection_ids: list[int], version: Version, *, as_others: bool
) -> dict[int, _Completed]:
    found: dict[int, _Completed] = {}
    summary = inspection_summary.c
    columns = (summary.inspection_id, summary.complete_rule, summary.last_image_at)
    spoke = sa.select(model_version.c.id).where(model_version.c.promoted_at.is_not(None))
    said = summary.model_version_id == version.id
    if as_others:
        said = sa.or_(said, summary.model_version_id.in_(spoke))
    for ids in parts(inspection_ids):
        part = sa.select(*columns).where(summary.inspection_id.in_(ids), said, summary.complete)
        # Of several the one with the latest image, and the version's own last.
        part = part.order_by(summary.model_version_id == version.id, summary.last_image_at)
        found |= {int(row[0]): _Completed(row[1], row[2]) for row in connection.execute(part)}
    return found


def _refresh_one(
    connection: Connection, inspection_id: int, version: Version, now: datetime, before: _Completed | None
) -> bool:
    images = of_inspection(connection, inspection_id, version)
    if not images:
        _remove(connection, inspection_id, version)
        return False
    found = by_drop(images, votes.of_inspection(connection, inspection_id))
    states = Counter(image.state for image in images)
    unscored = Counter(d.image.state for d in found)
    expected = _expected(connection, inspection_id)
    times = [image.seen_at for image in images if image.seen_at is not None]
    last_image_at = max(times)
    rule = None
    if states[ImageState.WAITING] == 0 and expected is not None and len(found) >= expected:
        rule = "expected"
    elif states[ImageState.WAITING] == 0 and before is not None and before.holds(last_image_at):
        # An inspection that was notified as complete stays so until a new image, whatever is expected by now.
        rule = "quiet"
    counts = Counter(d.label for d in found)
    _write(
        connection,
        {"inspection_id": inspection_id, "model_version_id": version.id},
        {
            "n_clear": counts[DropClass.CLEAR],
            "n_crystals": counts[DropClass.CRYSTALS],
            "n_other": counts[DropClass.OTHER],
            "n_precipitate": counts[DropClass.PRECIPITATE],
            "hits": sum(d.hit for d in found),
            "best_wells": best_wells(found),
            "labelled": sum(d.majority is not None for d in found),
            "expected": expected,
            "seen": len(found),
            "scored": unscored[ImageState.SCORED],
            "failed": unscored[ImageState.FAILED],
            "gone": unscored[ImageState.GONE],
            "waiting": states[ImageState.WAITING],
            "complete": rule is not None,
            "complete_rule": rule,
            "first_image_at": min(times),
            "last_image_at": last_image_at,
            "updated_at": now,
        },
    )
    return rule is not None


def best_wells(found: Iterable[DropVerdict]) -> str:
    """Write the column ``best_wells``: JSON; what people call crystals, then by probability, then what they deny."""
    scored = [(d, d.image, d.image.p_crystals) for d in found if d.image.p_crystals is not None]
    scored.sort(key=lambda one: (-_denied(one[0]), -one[2], one[1].well, one[1].drop_number))
    shown = [{"well": at.well, "drop": at.drop_number, "p_crystals": round(p, 4)} for _, at, p in scored[:BEST_WELLS]]
    return json.dumps(shown)


def _denied(verdict: DropVerdict) -> int:
    """Rank a drop: 1 where people say crystals, 0 where they say nothing, -1 where they say another class."""
    if verdict.majority is None:
        return 0
    return 1 if verdict.majority.label == DropClass.CRYSTALS else -1


def _expected(connection: Connection, inspection_id: int) -> int | None:
    """Read the expected drops: of the plate's own format, else as configured for its source, else unknown.

    What another inspection of the plate had says nothing: a lab images 8 wells one day and 96 the next.
    """
    return connection.execute(
        sa.select(expected_drops())
        .select_from(inspection)
        .join(plate, inspection.c.plate_id == plate.c.id)
        .join(source, plate.c.source_id == source.c.id)
        .where(inspection.c.id == inspection_id)
    ).scalar_one()


def expected_drops() -> sa.ColumnElement[int | None]:
    """Select the drops that an inspection of a plate must have, from the rows of ``plate`` and ``source``."""
    of_format = plate.c.format_rows * plate.c.format_columns * plate.c.format_drops
    return sa.func.coalesce(of_format, source.c.expected_drops)


def _write(connection: Connection, key: dict[str, int], values: dict[str, Any]) -> None:
    statement = insert(connection, inspection_summary).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))


def _remove(connection: Connection, inspection_id: int, version: Version) -> None:
    """Delete the summary of an inspection without an image for this version, such as one in UV light alone."""
    connection.execute(
        sa.delete(inspection_summary).where(
            inspection_summary.c.inspection_id == inspection_id,
            inspection_summary.c.model_version_id == version.id,
        )
    )


def complete_quiet(connection: Connection, now: datetime, quiet_s: float, limit: int = CHUNK) -> int:
    """Complete inspections whose images are all done and to which nothing new came. Returns how many.

    At most ``limit`` rows, so that the transaction stays short; call it again until it returns 0.
    """
    summary = inspection_summary.c
    quiet = sa.and_(
        sa.not_(summary.complete), summary.waiting == 0, summary.last_image_at <= now - timedelta(seconds=quiet_s)
    )
    due = sa.select(summary.inspection_id, summary.model_version_id).where(quiet)
    rows = connection.execute(due.order_by(summary.last_image_at).limit(limit)).all()
    # Held before they change, as everybody does; what changed meanwhile is seen by the same condition again.
    locks.hold(connection, inspections={row[0] for row in rows})
    completed = 0
    for version_id, found in groupby(sorted(rows, key=itemgetter(1, 0)), key=itemgetter(1)):
        ids = [row[0] for row in found]
        changed = (
            sa.update(inspection_summary)
            .where(summary.inspection_id.in_(ids), summary.model_version_id == version_id, quiet)
            .values(complete=True, complete_rule="quiet", updated_at=now)
            .returning(summary.inspection_id)
        )
        its = sorted(int(row[0]) for row in connection.execute(changed))
        events.plates_scored(connection, dict.fromkeys(its, 0), version_id)
        events.completed(connection, its, version_id, now)
        completed += len(its)
    return completed
