"""The list of plates: one row a plate with its latest inspection, the plate whose newest one was recorded last first.

A page is found in two steps: the ids of its plates, by the filters, then everything about these. Ids of inspections
grow as they are recorded, so the list is walked along them, and a page begins where the one before ended. Where a
filter leaves few plates, these are put in order by themselves, since a walk would pass over all others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database
from marcod.database.rows import CHUNK, parts
from marcod.database.schema import (
    drop_summary,
    hit,
    inspection,
    inspection_summary,
    plate,
    source,
)
from marcod.web import queries
from marcod.web.people import User
from marcod.web.queries import IS_SHOWN, SHOWN_INSPECTION, are_few, unindexed, visible

PAGE: Final = 50
CSV_PORTION: Final = 1_000
NEW_DAYS: Final = 30
"""Days for which a hit that was seen first at the latest inspection is new."""

FIRST_STEP: Final = 1_000
STEPS_GROW: Final = 4
"""Inspections of the first step of a walk, and by how much each further one is longer."""

UNFINISHED: Final = sa.text("not inspection_summary.complete")
"""Written as in the condition of its index, for SQLite knows it by no other words."""


@dataclass(frozen=True, slots=True)
class PlateFilter:
    """Filters of the list, as its address has them; ``after`` is the last inspection on the page before."""

    source: str = ""
    project: str = ""
    text: str = ""
    since: str = ""
    incomplete: bool = False
    new_hits: bool = False
    after: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "PlateFilter":
        """Read an address; what cannot be read counts as not given."""
        after = query.get("after", "")
        return cls(
            **{name: queries.text_of(query, name) for name in ("source", "project", "text", "since")},
            incomplete=query.get("incomplete") == "1",
            new_hits=query.get("new_hits") == "1",
            after=int(after) if after.isascii() and after.isdigit() and len(after) < 19 else None,
        )

    def query(self, **changed: Any) -> str:
        """Return the end of an address with these filters, without ``?``."""
        values = {field.name: getattr(replace(self, **changed), field.name) for field in fields(self)}
        return urlencode({name: 1 if value is True else value for name, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class PlateRow:
    """One plate with its latest inspection; ``new_hits`` were seen there first, within :data:`NEW_DAYS`.

    ``hits`` are those at the latest inspection, ``unlabelled_hits`` those of them without a label. ``scored`` is None
    where no image is in the model's light.
    """

    source: str
    key: str
    barcode: str | None
    project: str | None
    screen: str | None
    format: str
    inspection_key: str
    inspections: int
    last_image_at: datetime | None
    expected: int | None
    seen: int
    scored: int | None
    failed: int
    complete: bool
    hits: int
    new_hits: int
    unlabelled_hits: int
    newest: int

    @property
    def name(self) -> str:
        """Name by which people know the plate."""
        return self.barcode or self.key


@dataclass(frozen=True, slots=True)
class PlatePage:
    """One page of the list; ``after`` begins the next one, None at the end."""

    rows: list[PlateRow]
    after: int | None


def plates(connection: Connection, user: User, chosen: PlateFilter, now: datetime, limit: int = PAGE) -> PlatePage:
    """Read one page of the list."""
    found = _places(connection, user, chosen, now, limit + 1)
    rows = _rows(connection, found[:limit], now)
    return PlatePage(rows, found[limit - 1][1] if len(found) > limit else None)


def all_plates(db: Database, user: User, chosen: PlateFilter, now: datetime) -> Iterator[list[PlateRow]]:
    """Read the whole list in portions, each in a transaction of its own."""
    chosen = replace(chosen, after=None)
    while True:
        page = db.read(plates, user, chosen, now, CSV_PORTION)
        yield page.rows
        if page.after is None:
            return
        chosen = replace(chosen, after=page.after)


def choices(connection: Connection) -> tuple[list[str], list[str]]:
    """List the sources and the projects that a filter can name."""
    sources = connection.execute(sa.select(source.c.name).order_by(source.c.name)).scalars().all()
    named = sa.select(plate.c.project).where(plate.c.project.is_not(None)).distinct().order_by(plate.c.project)
    return list(sources), list(connection.execute(named.limit(1_000)).scalars())


def _places(
    connection: Connection, user: User, chosen: PlateFilter, now: datetime, limit: int
) -> Sequence[tuple[int, int]]:
    """Find ids of plates and of the inspections that were recorded last of them, the newest first."""
    conditions, of_plate = _of_inspection(chosen, now), _of_plate(connection, chosen)
    driving = next((one for one in _driving(chosen, now) if are_few(connection, one)), None)
    if of_plate and driving is None:
        matching = sa.select(plate.c.id).where(visible(user), *of_plate).limit(queries.FEW + 1)
        ids = [int(found) for found in connection.execute(matching).scalars()]
        if len(ids) <= queries.FEW:
            among = ids if len(ids) <= CHUNK else sa.select(plate.c.id).where(visible(user), *of_plate)
            return _few(connection, among, conditions, chosen.after, limit)
    its = inspection.alias("its")
    newest = sa.select(sa.func.max(its.c.id)).where(its.c.plate_id == inspection.c.plate_id).scalar_subquery()
    statement = (
        sa.select(plate.c.id, inspection.c.id)
        .join(plate, plate.c.id == inspection.c.plate_id)
        .where(visible(user), *of_plate, inspection.c.id == newest, *conditions)
        .order_by(inspection.c.id.desc())
    )
    if driving is None:
        return _walk(connection, statement, chosen.after, limit)
    few = statement.where(inspection.c.id.in_(driving)).limit(limit)
    if chosen.after is not None:
        few = few.where(inspection.c.id < chosen.after)
    return [(int(row[0]), int(row[1])) for row in connection.execute(few)]


def _walk(connection: Connection, statement: sa.Select[Any], after: int | None, limit: int) -> list[tuple[int, int]]:
    """Go down the inspections in steps that grow, so that no database thinks of putting all of them in order first."""
    # Each end by itself, which SQLite looks up; for both at once it would read the whole table.
    least, most = (sa.select(end(inspection.c.id)).scalar_subquery() for end in (sa.func.min, sa.func.max))
    ends = connection.execute(sa.select(least, most)).one()
    low, high = (ends[0] or 0), (ends[1] or 0) + 1
    upper, width = (high if after is None else min(after, high)), FIRST_STEP
    found: list[tuple[int, int]] = []
    while len(found) < limit and upper > low:
        lower = max(low, upper - width)
        step = statement.where(inspection.c.id >= lower, inspection.c.id < upper).limit(limit - len(found))
        found += [(int(row[0]), int(row[1])) for row in connection.execute(step)]
        upper, width = lower, width * STEPS_GROW
    return found


def _few(
    connection: Connection,
    among: list[int] | sa.Select[Any],
    conditions: list[sa.ColumnElement[bool]],
    after: int | None,
    limit: int,
) -> list[tuple[int, int]]:
    """Put these plates in order, and choose the first that meet the conditions on their newest inspection."""
    newest = sa.func.max(inspection.c.id)
    statement: sa.Select[Any] = sa.select(newest, inspection.c.plate_id).where(inspection.c.plate_id.in_(among))
    found = [(int(row[0]), int(row[1])) for row in connection.execute(statement.group_by(inspection.c.plate_id))]
    ordered = sorted((place for place in found if after is None or place[0] < after), reverse=True)
    places = [(plate_id, inspection_id) for inspection_id, plate_id in ordered]
    if not conditions:
        return places[:limit]
    chosen: list[tuple[int, int]] = []
    for part in parts(places):
        wanted = sa.select(inspection.c.id).where(inspection.c.id.in_([place[1] for place in part]), *conditions)
        passing = set(connection.execute(wanted).scalars())
        chosen += [place for place in part if place[1] in passing]
        if len(chosen) >= limit:
            break
    return chosen[:limit]


def _of_plate(connection: Connection, chosen: PlateFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if chosen.source:
        found.append(unindexed(connection, plate.c.source_id) == queries.source_named(connection, chosen.source))
    if chosen.project:
        found.append(plate.c.project == chosen.project)
    if chosen.text:
        folded = (plate.c.key_folded, plate.c.barcode_folded, sa.func.lower(plate.c.project))
        found.append(queries.contains(connection, folded, chosen.text))
    return found


def _driving(chosen: PlateFilter, now: datetime) -> Iterator[sa.Select[Any]]:
    """Select the inspections that pass one filter alone, which may be few of all."""
    summary = inspection_summary.c
    if chosen.incomplete:
        yield sa.select(summary.inspection_id).where(UNFINISHED)
    if (since := queries.since(chosen.since, now)) is not None:
        yield sa.select(summary.inspection_id).where(summary.last_image_at >= since)
    if chosen.new_hits:
        yield sa.select(hit.c.inspection_id).where(hit.c.found_at >= now - timedelta(days=NEW_DAYS))


def _of_inspection(chosen: PlateFilter, now: datetime) -> list[sa.ColumnElement[bool]]:
    """List the conditions of the filters on an inspection."""
    its = inspection_summary.c.inspection_id == inspection.c.id
    found: list[sa.ColumnElement[bool]] = []
    if chosen.incomplete:
        open_one = sa.select(1).select_from(inspection_summary).join(SHOWN_INSPECTION, IS_SHOWN)
        found.append(open_one.where(its, UNFINISHED).exists())
    if (since := queries.since(chosen.since, now)) is not None:
        late = sa.select(1).select_from(inspection_summary)
        found.append(late.where(its, inspection_summary.c.last_image_at >= since).exists())
    if chosen.new_hits:
        new = sa.select(1).select_from(hit).join(SHOWN_INSPECTION, _OF_SHOWN)
        recent = hit.c.found_at >= now - timedelta(days=NEW_DAYS)
        found.append(new.where(hit.c.inspection_id == inspection.c.id, hit.c.ended_at.is_(None), recent).exists())
    return found


_OF_SHOWN: Final = sa.and_(
    SHOWN_INSPECTION.c.inspection_id == hit.c.inspection_id,
    SHOWN_INSPECTION.c.model_version_id == hit.c.model_version_id,
)


_IS_UNLABELLED: Final = sa.and_(drop_summary.c.hit, drop_summary.c.label_person.is_(None)).label("unlabelled")


def _rows(connection: Connection, places: Sequence[tuple[int, int]], now: datetime) -> list[PlateRow]:
    """Read everything about the plates of a page, in their order."""
    of_plates = _latest(connection, [plate_id for plate_id, _ in places])
    ids = list(of_plates.values())
    its = inspection.alias("its")
    count = sa.select(sa.func.count()).where(its.c.plate_id == plate.c.id).scalar_subquery()
    statement: sa.Select[Any] = (
        sa.select(
            plate.c.id, inspection.c.key.label("inspection_key"), source.c.name, plate.c.key, plate.c.barcode,
            plate.c.project, plate.c.screen, plate.c.format_rows, plate.c.format_columns, plate.c.format_drops,
            count.label("inspections"),
        )
        .join(plate, plate.c.id == inspection.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
        .where(inspection.c.id.in_(ids))
    )  # fmt: skip
    found = {row.id: row for row in connection.execute(statement)}
    # Apart from the statement above: SQLite would build the whole view for an outer join.
    shown = sa.select(inspection_summary).join(SHOWN_INSPECTION, IS_SHOWN)
    shown = shown.where(SHOWN_INSPECTION.c.inspection_id.in_(ids))
    summaries = {row.inspection_id: row for row in connection.execute(shown)}
    counted = _counted_hits(connection, of_plates, {i: row.model_version_id for i, row in summaries.items()}, now)
    return [
        _row(found[plate_id], summaries.get(of_plates[plate_id]), *counted.get(plate_id, (0, 0)), newest)
        for plate_id, newest in places
    ]


def _latest(connection: Connection, plate_ids: list[int]) -> dict[int, int]:
    """Find the latest inspection in time of each of these plates."""
    order = (inspection.c.order_key.asc().nulls_first(), inspection.c.id)
    its = sa.select(inspection.c.plate_id, inspection.c.id).where(inspection.c.plate_id.in_(plate_ids)).order_by(*order)
    return {int(row[0]): int(row[1]) for row in connection.execute(its)}


def _counted_hits(
    connection: Connection, of_plates: Mapping[int, int], versions: Mapping[int, int], now: datetime
) -> dict[int, tuple[int, int]]:
    """Count the hits of plates that are new at their latest inspection, and those without a label.

    ``of_plates`` are the latest inspections, ``versions`` those shown at them.
    """
    at = inspection.alias("at")
    statement: sa.Select[Any] = (
        sa.select(at.c.plate_id, hit.c.inspection_id, hit.c.model_version_id, hit.c.found_at, _IS_UNLABELLED)
        .join(at, at.c.id == hit.c.inspection_id)
        .join(
            drop_summary,
            sa.and_(
                drop_summary.c.drop_id == hit.c.drop_id,
                drop_summary.c.model_version_id == hit.c.model_version_id,
                drop_summary.c.first_hit_inspection_id.is_not(None),
            ),
        )
        .where(at.c.plate_id.in_(list(of_plates)))
    )
    found: dict[int, tuple[int, int]] = {}
    for plate_id, inspection_id, version_id, found_at, is_unlabelled in connection.execute(statement):
        newest = of_plates[plate_id]
        if version_id == versions.get(newest):
            new, unlabelled = found.get(plate_id, (0, 0))
            is_new = inspection_id == newest and found_at >= now - timedelta(days=NEW_DAYS)
            found[plate_id] = (new + is_new, unlabelled + bool(is_unlabelled))
    return found


def _row(found: Any, summary: Any, new_hits: int, unlabelled_hits: int, newest: int) -> PlateRow:
    sides = (found.format_rows, found.format_columns, found.format_drops)
    return PlateRow(
        source=found.name,
        key=found.key,
        barcode=found.barcode,
        project=found.project,
        screen=found.screen,
        format="" if None in sides else f"{sides[0] * sides[1]}" + (f" x {sides[2]}" if sides[2] > 1 else ""),
        inspection_key=found.inspection_key,
        inspections=found.inspections,
        last_image_at=summary.last_image_at if summary else None,
        expected=summary.expected if summary else None,
        seen=summary.seen if summary else 0,
        scored=summary.scored if summary else None,
        failed=summary.failed if summary else 0,
        complete=bool(summary and summary.complete),
        hits=summary.hits if summary else 0,
        new_hits=new_hits,
        unlabelled_hits=unlabelled_hits,
        newest=newest,
    )
