"""Merge of one source into another, as where one folder was recorded under two names.

No image file is touched.

Guarantees:
* An image is the same in both sources when its path is, a plate when its key is. Scores, labels, hits and questions of
  the same image or drop are kept once by their natural keys, and none is lost.
* Nothing is scored again that one of the two had scored, and no hit or completed plate is notified a second time.
* Memory is bounded by one plate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.catalog import plate_setups
from marcod.catalog.merging_rows import (
    JoinedPlate,
    RowSubject,
    join_hits,
    join_images,
    join_labels,
    join_marks,
    join_questions,
)
from marcod.catalog.source_changes import MergePlan, Report, hold, plan, silent
from marcod.database.rows import delete_in, parts, select_in
from marcod.database.schema import (
    campaign,
    drift_alarm,
    drift_day,
    drift_reference,
    drop,
    drop_mark,
    drop_summary,
    event,
    follow,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    label,
    model_version,
    plate,
    review_item,
    source,
    source_finding,
    source_root,
    watch_state,
)
from marcod.domain import Split as Side
from marcod.domain import split_of, text_path
from marcod.store import audit_log, derived, sources, versions


def merge(
    connection: Connection, source_id: int, target_id: int, *, actor: str, now: datetime, report: Report = silent
) -> MergePlan:
    """Put everything of one source into another and remove the first.

    Returns what :func:`plan` had counted. Raises ConfigError when the two have different layouts.
    """
    hold(connection, source_id, target_id)
    planned = plan(connection, source_id, target_id)
    merging = _Merge(connection, source_id, target_id, now)
    merging.run(report)
    detail: dict[str, object] = {"into": merging.target_name, **asdict(planned)}
    audit_log.write(connection, actor, "source merge", merging.name, detail, now)
    return planned


class _Merge:
    """One merge under way."""

    def __init__(self, connection: Connection, source_id: int, target_id: int, now: datetime) -> None:
        self._connection, self._source, self._target, self._now = connection, source_id, target_id, now
        rows = {row.id: row for row in connection.execute(sa.select(source))}
        self.name, self.target_name = str(rows[source_id].name), str(rows[target_id].name)
        self._reads_alike = rows[source_id].reading == rows[target_id].reading
        self._expects_alike = rows[source_id].expected_drops == rows[target_id].expected_drops

    def run(self, report: Report) -> None:
        shared = self._shared()
        for done, (plate_id, target) in enumerate(shared, start=1):
            self._join(JoinedPlate(plate_id, target))
            report(done, len(shared))
        self._move_rest()
        self._move_satellites()
        self._connection.execute(sa.delete(source).where(source.c.id == self._source))

    def _shared(self) -> list[tuple[int, int | None]]:
        """Plates that both sources have, by key or by an image, each with the target's of that key."""
        theirs, other = plate.alias(), image.alias()
        same_path = (
            sa.select(image.c.id)
            .join(drop, drop.c.id == image.c.drop_id)
            .join(other, sa.and_(other.c.source_id == self._target, other.c.path == image.c.path))
            .where(drop.c.plate_id == plate.c.id)
            .exists()
        )
        rows = self._connection.execute(
            sa.select(plate.c.id, sa.func.min(theirs.c.id))
            .outerjoin(theirs, sa.and_(theirs.c.key_folded == plate.c.key_folded, theirs.c.source_id == self._target))
            .where(plate.c.source_id == self._source, sa.or_(theirs.c.id.is_not(None), same_path))
            .group_by(plate.c.id)
            .order_by(plate.c.id)
        )
        return [(int(row[0]), None if row[1] is None else int(row[1])) for row in rows]

    def _join(self, one: JoinedPlate) -> None:
        """Put one plate into the target's plate of its key, and its images into the same images there."""
        self._hold_plate(one)
        self._find_places(one)
        places = [one.place(row.drop_id, row.inspection_id, row.id) for row in one.images] + [*one.placed.values()]
        drop_ids = {*one.drops.values(), *(place.drop_id for place in places)}
        inspection_ids = {*one.inspections.values(), *(place.inspection_id for place in places)}
        self._take_summaries(one)
        for part in parts({row.id for row in one.images} - one.pairs.keys()):
            self._connection.execute(sa.update(image).where(image.c.id.in_(part)).values(self._image_values()))
        join_images(self._connection, one, self._now)
        join_labels(self._connection, one)
        join_hits(self._connection, one)
        join_questions(self._connection, one)
        join_marks(self._connection, one)
        self._remove(one)
        if versions.has_champion(self._connection):
            self._keep_complete(inspection_ids)
            derived.refresh(self._connection, drop_ids, inspection_ids, self._now)

    def _hold_plate(self, one: JoinedPlate) -> None:
        """Lock its jobs, inspections and drops and those of the target's plate, in the order of those who score."""
        plates = [one.id] if one.target is None else [one.id, one.target]
        of_plates = sa.select(image.c.id).join(drop, drop.c.id == image.c.drop_id).where(drop.c.plate_id.in_(plates))
        held = sa.select(job.c.id).where(job.c.image_id.in_(of_plates)).order_by(job.c.id)
        self._connection.execute(held.with_for_update()).all()
        spoken_of = sa.select(drop.c.plate_id).join(label, label.c.drop_id == drop.c.id)
        one.labelled = set(self._connection.execute(spoken_of.where(drop.c.plate_id.in_(plates)).distinct()).scalars())
        for table in (inspection, drop):
            held = sa.select(table.c.id).where(table.c.plate_id.in_(plates)).order_by(table.c.id)
            self._connection.execute(held.with_for_update()).all()

    def _find_places(self, one: JoinedPlate) -> None:
        if one.target is not None:
            keys = (drop.c.well_row, drop.c.well_column, drop.c.drop_number)
            one.drops = self._move_children(one, drop, keys)
            one.inspections = self._move_children(one, inspection, (inspection.c.key,))
        in_plate = sa.select(drop.c.id).where(drop.c.plate_id == one.id)
        moved = [new for old, new in one.drops.items() if old == new]
        mine = sa.select(image).where(image.c.source_id == self._source)
        found = list(self._connection.execute(mine.where(image.c.drop_id.in_(in_plate))))
        found += select_in(self._connection, mine, image.c.drop_id, moved)
        one.images = sorted(found, key=lambda row: row.path)
        theirs = sa.select(image).where(image.c.source_id == self._target)
        by_path = {row.path: row for row in select_in(self._connection, theirs, image.c.path, [r.path for r in found])}
        for row in one.images:
            if (same := by_path.get(row.path)) is not None:
                one.pairs[row.id] = same
                place = RowSubject(same.drop_id, same.inspection_id)
                one.placed.setdefault((row.drop_id, row.inspection_id), place)

    def _move_children(self, one: JoinedPlate, table: sa.Table, keys: Sequence[sa.Column[Any]]) -> dict[int, int]:
        """Lead each drop or inspection to the one of its key in the target's plate; those without one move there."""
        rows = self._connection.execute(
            sa.select(table.c.id, table.c.plate_id, *keys).where(table.c.plate_id.in_((one.id, one.target)))
        ).all()
        theirs = {tuple(row[2:]): int(row[0]) for row in rows if row[1] == one.target}
        mine = {int(row[0]): tuple(row[2:]) for row in rows if row[1] == one.id}
        alone = [number for number, key in mine.items() if key not in theirs]
        for part in parts(alone):
            self._connection.execute(sa.update(table).where(table.c.id.in_(part)).values(plate_id=one.target))
        return {number: theirs.get(key, number) for number, key in mine.items()}

    def _take_summaries(self, one: JoinedPlate) -> None:
        """Move the rows of drops over time and of inspections to where their images go.

        A hit counts as notified where the row of its drop has one, so of two rows the one with a hit is kept.
        """
        for old, new in one.drops.items():
            if old != new:
                self._take_drop_summaries(old, new)
        staying = {row.inspection_id for row in one.images if row.id not in one.pairs}
        leads = {
            row.inspection_id: one.pairs[row.id].inspection_id for row in one.images if row.inspection_id not in staying
        }
        for old, new in (leads | one.inspections).items():
            if old != new:
                self._take_inspection_summary(old, new)

    def _take_drop_summaries(self, old: int, new: int) -> None:
        other = drop_summary.alias()
        same_version = other.c.model_version_id == drop_summary.c.model_version_id
        hit_there = sa.exists().where(
            other.c.drop_id == old, same_version, other.c.first_hit_inspection_id.is_not(None)
        )
        poorer = sa.and_(drop_summary.c.drop_id == new, drop_summary.c.first_hit_inspection_id.is_(None), hit_there)
        self._connection.execute(sa.delete(drop_summary).where(poorer))
        alone = sa.and_(drop_summary.c.drop_id == old, ~sa.exists().where(other.c.drop_id == new, same_version))
        self._connection.execute(sa.update(drop_summary).where(alone).values(drop_id=new))
        self._connection.execute(sa.delete(drop_summary).where(drop_summary.c.drop_id == old))

    def _take_inspection_summary(self, old: int, new: int) -> None:
        """Let the target's inspection have the rows of versions that had not seen it there."""
        theirs = sa.select(inspection_summary.c.model_version_id).where(inspection_summary.c.inspection_id == new)
        mine = inspection_summary.c.inspection_id == old
        absent = sa.and_(mine, inspection_summary.c.model_version_id.not_in(theirs))
        # An inspection that was complete in one source has been notified.
        completed = sa.select(inspection_summary.c.model_version_id).where(mine, inspection_summary.c.complete)
        unfinished = sa.and_(
            inspection_summary.c.inspection_id == new,
            sa.not_(inspection_summary.c.complete),
            inspection_summary.c.model_version_id.in_(list(self._connection.execute(completed).scalars())),
        )
        self._connection.execute(sa.delete(inspection_summary).where(unfinished))
        self._connection.execute(sa.update(inspection_summary).where(absent).values(inspection_id=new))
        self._connection.execute(sa.delete(inspection_summary).where(mine))

    def _remove(self, one: JoinedPlate) -> None:
        """Remove what the target has already; where nothing of the plate is left, the plate as well."""
        delete_in(self._connection, image, image.c.id, one.pairs)
        delete_in(self._connection, drop, drop.c.id, [old for old, new in one.drops.items() if old != new])
        delete_in(self._connection, inspection, inspection.c.id, [o for o, n in one.inspections.items() if o != n])
        if one.target is not None:
            self._join_plate_rows(one, one.target)
        else:
            self._remove_empty(one)

    def _join_plate_rows(self, one: JoinedPlate, target: int) -> None:
        """Keep what is known of the plate in either source, the target's first, and the side on which it must stand."""
        both = sa.select(plate).where(plate.c.id.in_((one.id, target)))
        rows = {row.id: row for row in self._connection.execute(both)}
        mine, theirs = rows[one.id], rows[target]
        papers = ("barcode", "barcode_folded", "project", "screen")
        values = {name: getattr(mine, name) for name in papers if getattr(theirs, name) is None}
        values |= plate_setups.joined(mine, theirs)
        values["first_seen_at"] = min(mine.first_seen_at, theirs.first_seen_at)
        values["split_source"] = self._side(mine, theirs) if one.id in one.labelled else theirs.split_source
        if target not in one.labelled and one.id in one.labelled:
            values["split_source"] = mine.split_source or self.name
        self._connection.execute(sa.update(plate).where(plate.c.id == target).values(values))
        self._connection.execute(sa.delete(plate).where(plate.c.id == one.id))

    def _side(self, mine: Any, theirs: Any) -> str | None:
        """Choose the name that decides a plate's side: a plate that a model learned from never becomes a test plate."""
        names = [row.split_source or name for row, name in ((mine, self.name), (theirs, self.target_name))]
        sides = [split_of(name, text_path(theirs.key)) for name in names]
        order = (Side.TEST, Side.VALIDATION, Side.TRAIN)
        return names[0] if order.index(sides[0]) > order.index(sides[1]) else theirs.split_source

    def _remove_empty(self, one: JoinedPlate) -> None:
        """Remove drops and inspections of which the target has every image and nobody said anything else."""
        for table, column, used_by in (
            (drop, "drop_id", (image, label, hit, review_item, drop_mark, follow)),
            (inspection, "inspection_id", (image, label, hit, review_item, drop_mark)),
        ):
            used = [sa.exists().where(other.c[column] == table.c.id) for other in used_by]
            empty = sa.and_(table.c.plate_id == one.id, *(sa.not_(each) for each in used))
            ids = list(self._connection.execute(sa.select(table.c.id).where(empty)).scalars())
            summary = drop_summary if table is drop else inspection_summary
            delete_in(self._connection, summary, summary.c[column], ids)
            delete_in(self._connection, table, table.c.id, ids)
        left = [sa.exists().where(table.c.plate_id == plate.c.id) for table in (drop, inspection)]
        empty = sa.and_(plate.c.id == one.id, plate.c.project.is_(None), *(sa.not_(each) for each in left))
        self._connection.execute(sa.delete(plate).where(empty))

    def _keep_complete(self, inspection_ids: Iterable[int]) -> None:
        """Keep inspections complete and notified that were so; their last image may have another time now."""
        last = (
            sa.select(sa.func.max(image.c.seen_at))
            .join(model_version, model_version.c.modality == image.c.modality)
            .where(
                image.c.inspection_id == inspection_summary.c.inspection_id,
                model_version.c.id == inspection_summary.c.model_version_id,
            )
            .scalar_subquery()
        )
        for part in parts(inspection_ids):
            complete = sa.and_(inspection_summary.c.inspection_id.in_(part), inspection_summary.c.complete)
            self._connection.execute(sa.update(inspection_summary).where(complete).values(last_image_at=last))

    def _move_rest(self) -> None:
        """Move what the target has nothing of; it is read again where the target reads its paths differently."""
        rest = plate.c.source_id == self._source
        sources.keep_sides(self._connection, rest, self.name)
        its = sa.select(plate.c.id).where(rest)
        moved = [] if self._expects_alike else list(self._connection.execute(its).scalars())
        self._connection.execute(sa.update(plate).where(rest).values(source_id=self._target))
        self._connection.execute(sa.update(image).where(image.c.source_id == self._source).values(self._image_values()))
        for part in parts(moved):
            found = sa.select(inspection.c.id).where(inspection.c.plate_id.in_(part))
            derived.refresh(self._connection, (), self._connection.execute(found).scalars().all(), self._now)

    def _image_values(self) -> dict[str, Any]:
        """Build the columns of an image that moves to the target."""
        again = {"mtime_ns": sa.case((image.c.mtime_ns < 0, image.c.mtime_ns), else_=-image.c.mtime_ns - 1)}
        return {"source_id": self._target, **({} if self._reads_alike else again)}

    def _move_satellites(self) -> None:
        """Drift, events, campaigns, roots and the inbox follow; what the watcher wrote is gone with the source."""
        mine, connection = self._source, self._connection
        for table, keys in (
            (drift_reference, ("modality", "model_version_id")),
            (drift_day, ("modality", "model_version_id", "day")),
            (drift_alarm, ("modality", "model_version_id", "signal", "day")),
            (source_root, ("host",)),
        ):
            theirs = table.alias()
            same = [theirs.c[key] == table.c[key] for key in keys]
            known = sa.exists().where(theirs.c.source_id == self._target, *same)
            connection.execute(
                sa.update(table).where(table.c.source_id == mine, sa.not_(known)).values(source_id=self._target)
            )
            connection.execute(sa.delete(table).where(table.c.source_id == mine))
        for table in (event, campaign):
            connection.execute(sa.update(table).where(table.c.source_id == mine).values(source_id=self._target))
        for table in (watch_state, source_finding):
            connection.execute(sa.delete(table).where(table.c.source_id == mine))
        sources.follow_in_inbox(connection, self.name, self.target_name)
