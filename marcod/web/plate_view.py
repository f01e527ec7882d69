"""One inspection of a plate as its page shows it: the map, the gallery and the tabs of the inspections.

Everything is read in a handful of statements whose number does not depend on the plate's size.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import UtcDateTime, drop, drop_summary, image, inspection, plate, source
from marcod.domain import PLATE_FORMATS, PlateFormat, hit_rule, path_text
from marcod.errors import NotFoundError
from marcod.plates import plate_map, reports
from marcod.plates.plate_map import Mark
from marcod.settings import WebSettings
from marcod.settings.well_cells import WellCells, cells_of
from marcod.store import verdicts, versions
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version
from marcod.web import drop_marks
from marcod.web.access import User
from marcod.web.image_address import ImageSize, address, tag_of
from marcod.web.plate_cells import LOOKS, USUAL, MapCell, PlateChoice, ordered, said, shows
from marcod.web.queries import visible


class InspectionTab(TypedDict):
    """One inspection of the plate: ``name`` is its number, else its key; ``at`` when it was taken, in UTC.

    ``new`` counts drops that became hits here first. The counts are 0 where no image is in the model's light.
    """

    id: int
    key: str
    name: str
    at: str | None
    days: float
    seen: int
    scored: int
    expected: int | None
    complete: bool
    hits: int
    new: int
    other_light: bool


class PlateView(TypedDict):
    """The page of a plate.

    ``plate`` has id, source, key (as in an address), name, barcode, project and screen; ``grid`` rows, columns, and
    ``across`` and ``down`` cells of a well; ``model`` name, threshold, rule, synthetic and notice. ``cells`` are in
    plate order; ``gallery`` are the ids of the drops shown, in the chosen order; ``counts`` are drops by mark, and
    ``sentence`` says them. ``choice`` has by, sort and class.
    """

    plate: dict[str, Any]
    grid: dict[str, int]
    inspection: int
    inspections: list[InspectionTab]
    model: dict[str, Any]
    choice: dict[str, str]
    counts: dict[str, int]
    sentence: str
    cells: list[MapCell]
    gallery: list[int]


def find_plate(connection: Connection, user: User, source_name: str, key: str) -> int:
    """Return the id of the plate that an address names. Raises NotFoundError."""
    statement = (
        sa.select(plate.c.id)
        .join(source, source.c.id == plate.c.source_id)
        .where(source.c.name == source_name, plate.c.key.in_({key, path_text(key)}), visible(user))
    )
    found = connection.execute(statement.order_by(plate.c.key != key)).scalars().first()
    if found is None:
        raise NotFoundError("there is no such plate")
    return int(found)


def inspection_named(connection: Connection, plate_id: int, name: str) -> int:
    """Return the id of the plate's inspection of this key, else of this number. Raises NotFoundError."""
    its = sa.select(inspection.c.id, inspection.c.key, inspection.c.ordinal).where(inspection.c.plate_id == plate_id)
    rows = connection.execute(its.order_by(inspection.c.id)).all()
    by_key = [row.id for row in rows if row.key in (name, path_text(name))]
    found = next(iter(by_key or [row.id for row in rows if str(row.ordinal) == name]), None)
    if found is None:
        raise NotFoundError("there is no such inspection of this plate")
    return int(found)


def plate_view(
    connection: Connection,
    user: User,
    settings: WebSettings,
    plate_id: int,
    inspection_id: int | None = None,
    choice: PlateChoice = USUAL,
) -> PlateView:
    """Read the page of a plate, by default at its latest inspection in the model's light.

    Raises NotFoundError for what is not there, or not for this person.
    """
    its = _plate(connection, user, plate_id)
    tabs, models = _inspections(connection, plate_id)
    at = _chosen(tabs, inspection_id)
    version = models.get(at) or versions.champion(connection)
    facts = _facts(connection, user, plate_id, at, version)
    cells, grid = _cells(facts, settings, its, choice)
    firsts = Counter(life.first_hit for life in facts.lives.values())
    for tab in tabs:
        tab["new"] = firsts[tab["id"]]
    counts = Counter(cell["mark"] for cell in cells if cell["state"] not in ("absent", "light"))
    return {
        "plate": _named(its),
        "grid": grid,
        "inspection": at,
        "inspections": tabs,
        "model": model_of(version),
        "choice": {"by": choice.by, "sort": choice.sort, "class": choice.show},
        "counts": dict(counts),
        "sentence": _sentence(counts, version),
        "cells": cells,
        "gallery": [cell["drop"] for cell in ordered(cells, choice.sort) if cell["shown"]],
    }


def model_of(version: Version) -> dict[str, Any]:
    """Describe a model version: ``name``, ``threshold``, ``rule``, ``synthetic`` and its ``notice``."""
    return {
        "name": str(version),
        "threshold": version.crystal_threshold,
        "rule": hit_rule(version.crystal_threshold),
        "synthetic": version.synthetic,
        "notice": versions.SYNTHETIC_NOTICE if version.synthetic else "",
    }


def _plate(connection: Connection, user: User, plate_id: int) -> Any:
    columns = (
        plate.c.id, source.c.name.label("source"), plate.c.key, plate.c.barcode, plate.c.project, plate.c.screen,
        plate.c.format_rows, plate.c.format_columns, plate.c.format_drops, plate.c.reservoirs,
    )  # fmt: skip
    statement = sa.select(*columns).join(source, source.c.id == plate.c.source_id)
    found = connection.execute(statement.where(plate.c.id == plate_id, visible(user))).one_or_none()
    if found is None:
        raise NotFoundError("there is no such plate")
    return found


def _named(its: Any) -> dict[str, Any]:
    """Describe a plate: ``name`` is its barcode, else its key."""
    facts = {name: getattr(its, name) for name in ("id", "source", "key", "barcode", "project", "screen")}
    return facts | {"name": its.barcode or its.key}


def _inspections(connection: Connection, plate_id: int) -> tuple[list[InspectionTab], dict[int, Version]]:
    """List the inspections in their order, and the model version shown for each that has one."""
    taken = (
        sa.select(image.c.captured_at)
        .where(image.c.inspection_id == inspection.c.id, image.c.captured_at.is_not(None))
        .limit(1)
        .scalar_subquery()
    )
    at = sa.func.coalesce(taken, inspection.c.first_seen_at, type_=UtcDateTime())
    columns = (inspection.c.id, inspection.c.key, inspection.c.ordinal, at.label("at"))
    rows = connection.execute(
        sa.select(*columns).where(inspection.c.plate_id == plate_id).order_by(inspection.c.order_key, inspection.c.id)
    ).all()
    found = {s.inspection_id: s for s in reports.summaries(connection, [plate_id], limit=10_000)}
    names = {(s.model, s.model_version) for s in found.values()}
    known = {name: versions.find(connection, *name) for name in names}
    first = rows[0].at if rows else None
    tabs = [_tab(row, found.get(row.id), (row.at - first).total_seconds() / 86_400) for row in rows]
    return tabs, {s.inspection_id: known[s.model, s.model_version] for s in found.values()}


def _tab(row: Any, seen: reports.Summary | None, days: float) -> InspectionTab:
    return {
        "id": row.id,
        "key": row.key,
        "name": row.key if row.ordinal is None else str(row.ordinal),
        "at": row.at.isoformat(),
        "days": round(days, 2),
        "seen": seen.seen if seen else 0,
        "scored": seen.scored if seen else 0,
        "expected": seen.expected if seen else None,
        "complete": bool(seen and seen.complete),
        "hits": seen.hits if seen else 0,
        "new": 0,
        "other_light": seen is None,
    }


def _chosen(tabs: Sequence[InspectionTab], inspection_id: int | None) -> int:
    if inspection_id is not None and all(tab["id"] != inspection_id for tab in tabs):
        raise NotFoundError("there is no such inspection of this plate")
    in_light = [tab["id"] for tab in tabs if not tab["other_light"]]
    last = next(reversed(in_light or [tab["id"] for tab in tabs]), None)
    if (chosen := last if inspection_id is None else inspection_id) is None:
        raise NotFoundError("no image of this plate has arrived yet")
    return chosen


class _Life(NamedTuple):
    """A drop of the plate through its inspections, as one model version and people see it; None while unknown."""

    drop_id: int
    well: str
    row: int
    column: int
    number: int
    best: float | None
    trend: str | None
    first_hit: int | None


class _File(NamedTuple):
    """An image at the inspection shown."""

    image_id: int
    drop_id: int
    modality: str
    tag: str


@dataclass(frozen=True, slots=True)
class _Facts:
    """Everything of one inspection that the cells are made from, by drop."""

    user: User
    inspection_id: int
    version: Version
    lives: dict[int, _Life]
    seen: dict[int, DropVerdict]
    files: dict[int, list[_File]]
    marks: drop_marks.Marks
    audits: frozenset[int]


def _facts(connection: Connection, user: User, plate_id: int, inspection_id: int, version: Version) -> _Facts:
    lives = _lives(connection, plate_id, version)
    return _Facts(
        user,
        inspection_id,
        version,
        lives,
        {v.image.drop_id: v for v in verdicts.drops_at(connection, inspection_id, version)},
        _files(connection, inspection_id),
        drop_marks.of_plate(connection, user, plate_id),
        drop_marks.asked_in_audit(connection, user, inspection_id),
    )


def _lives(connection: Connection, plate_id: int, version: Version) -> dict[int, _Life]:
    of_version = sa.and_(drop_summary.c.drop_id == drop.c.id, drop_summary.c.model_version_id == version.id)
    statement = (
        sa.select(
            drop.c.id, drop.c.well, drop.c.well_row, drop.c.well_column, drop.c.drop_number,
            drop_summary.c.highest_p_crystals, drop_summary.c.trend, drop_summary.c.first_hit_inspection_id,
        )
        .outerjoin(drop_summary, of_version)
        .where(drop.c.plate_id == plate_id)
    )  # fmt: skip
    return {row.id: _Life(*row) for row in connection.execute(statement)}


def _files(connection: Connection, inspection_id: int) -> dict[int, list[_File]]:
    """Read the images of an inspection in any light, without copies, by drop."""
    columns = (
        image.c.id, image.c.drop_id, image.c.modality, image.c.content_hash, image.c.unread, image.c.size,
        image.c.mtime_ns,
    )  # fmt: skip
    its = sa.select(*columns).where(image.c.inspection_id == inspection_id, image.c.same_as_id.is_(None))
    found: dict[int, list[_File]] = {}
    for row in connection.execute(its.order_by(image.c.path)):
        tag = tag_of(row.content_hash, row.size, row.mtime_ns, unread=row.unread)
        found.setdefault(row.drop_id, []).append(_File(row.id, row.drop_id, row.modality, tag))
    return found


def _cells(facts: _Facts, settings: WebSettings, its: Any, choice: PlateChoice) -> tuple[list[MapCell], dict[str, int]]:
    """Make the cells in plate order, and the grid of the plate and of a well."""
    known = [life for life in facts.lives.values() if life.trend or life.drop_id in facts.files]
    reservoirs = {int(number) for number in (its.reservoirs or "").split(",") if number}
    drops = sorted((life for life in known if life.number not in reservoirs), key=lambda one: one[2:5])
    well, places = cells_of((life.number for life in drops), its.format_drops, settings.cells)
    cells = [_cell(facts, life, places.get(life.number, (0, 0)), choice) for life in drops]
    return cells, _grid(drops, its, well)


def _grid(drops: Sequence[_Life], its: Any, well: WellCells) -> dict[str, int]:
    rows = max((life.row for life in drops), default=8)
    columns = max((life.column for life in drops), default=12)
    fitting = (f for f in PLATE_FORMATS.values() if f.wells >= 24 and f.rows >= rows and f.columns >= columns)
    plain = next((f for f in fitting if f.wells >= 96 or its.format_rows), PlateFormat(rows, columns))
    if its.format_rows is not None:
        plain = PlateFormat(max(rows, its.format_rows), max(columns, its.format_columns))
    return {"rows": plain.rows, "columns": plain.columns, "across": well.across, "down": well.down}


def _cell(facts: _Facts, life: _Life, place: tuple[int, int], choice: PlateChoice) -> MapCell:
    verdict, files = facts.seen.get(life.drop_id), facts.files.get(life.drop_id, [])
    hidden = life.drop_id in facts.audits
    own = next((f for f in files if verdict is not None and f.image_id == verdict.image.image_id), None)
    shown = own or next(iter(files), None)
    marks = facts.marks
    cell: MapCell = {
        "drop": life.drop_id, "well": life.well, "row": life.row, "column": life.column, "number": life.number,
        "x": place[0], "y": place[1],
        "image": shown and shown.image_id,
        "thumb": shown and address(shown.image_id, ImageSize.THUMB, shown.tag),
        "view": shown and address(shown.image_id, ImageSize.VIEW, shown.tag),
        **said(verdict, facts.version, facts.user, hidden=hidden),
        "best": None if hidden else life.best,
        "trend": None if hidden else life.trend,
        "new": not hidden and life.first_hit == facts.inspection_id,
        "harvested": life.drop_id in marks.harvested,
        "followed": life.drop_id in marks.followed,
        "notes": marks.notes.get(life.drop_id, 0),
        "letter": "", "style": "", "shown": True,
    }  # fmt: skip
    if verdict is None:
        cell["state"] = "light" if files else "absent"
    cell["letter"], cell["style"] = LOOKS[choice.by](cell)
    cell["shown"] = shows(cell, choice.show)
    return cell


def _sentence(counts: Counter[str], version: Version) -> str:
    """Write the counts as every list of marcod does, each drop once."""
    of_marks = Counter({Mark(name): number for name, number in counts.items()})
    return plate_map.sentence_of(of_marks, version.crystal_threshold)
