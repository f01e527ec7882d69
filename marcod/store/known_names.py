"""Known names, offered in the answer to an unknown one. Nothing here writes.

The nearest come first and the lists are bounded, so that an answer stays a sentence in an archive of any size.
"""

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import text
from marcod.database.schema import drop, image, inspection, model_version, plate, source
from marcod.domain import parse_well
from marcod.errors import NotFoundError
from marcod.store import plate_names

if TYPE_CHECKING:
    from marcod.labels.recorder import DropReference

LOOKED_AT: Final = 2000
"""The latest plates, inspections or wells among which the nearest name is looked for."""


def sources(connection: Connection, name: str) -> str:
    """Offer the recorded sources."""
    return text.offer(name, _texts(connection, sa.select(source.c.name).order_by(source.c.name)), "sources")


def find_source(connection: Connection, name: str) -> int:
    """Look up the id of a source by name. Raises NotFoundError naming the recorded ones."""
    found = connection.execute(sa.select(source.c.id).where(source.c.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFoundError(f"no source is recorded as {name!r}; {sources(connection, name)}")
    return int(found)


def is_source(connection: Connection, name: str) -> bool:
    """Tell if a source of this name is recorded."""
    return connection.execute(sa.select(source.c.id).where(source.c.name == name)).first() is not None


def projects(connection: Connection, name: str) -> str | None:
    """Offer the projects of plates, or None where one has this name."""
    found = _texts(connection, sa.select(plate.c.project).where(plate.c.project.is_not(None)).distinct())
    return None if name in found else text.offer(name, sorted(found), "projects")


def plates(connection: Connection, name: str, source_name: str | None = None) -> str:
    """Offer the plates of all sources or of one, by the name that lists show; for an unknown source the sources."""
    if source_name is not None and not is_source(connection, source_name):
        return f"no source is recorded as {source_name!r}, {sources(connection, source_name)}"
    shown = sa.func.coalesce(plate.c.barcode, plate.c.key)
    statement = sa.select(shown).join(source, source.c.id == plate.c.source_id).order_by(plate.c.id.desc())
    if source_name is not None:
        statement = statement.where(source.c.name == source_name)
    return text.offer(name, _texts(connection, statement), "plates")


def inspections(connection: Connection, plate_id: int, name: str) -> str:
    """Offer the inspections of a plate."""
    statement = sa.select(inspection.c.key).where(inspection.c.plate_id == plate_id)
    return text.offer(name, _texts(connection, statement.order_by(inspection.c.order_key)), "inspections")


def models(connection: Connection, name: str) -> str:
    """Offer the model versions that are registered and were not removed."""
    statement = sa.select(model_version.c.name + ":" + model_version.c.version)
    kept = statement.where(model_version.c.removed_at.is_(None)).order_by(model_version.c.id)
    return text.offer(name, _texts(connection, kept), "models")


def meant(connection: Connection, named: "DropReference") -> str | None:
    """Offer names for the first unknown part of a drop's name; None where all are known."""
    found = _plate_id(connection, named)
    if named.plate is None or named.well is None:
        return None
    if found is None:
        return plates(connection, named.plate, named.source)
    drops = _drops(connection, found, named.well)
    if not drops:
        wells = sa.select(drop.c.well).where(drop.c.plate_id == found).distinct().order_by(drop.c.well)
        return text.offer(named.well, _texts(connection, wells), "wells with drops")
    if named.drop is not None and named.drop not in drops:
        return text.offer(str(named.drop), map(str, sorted(drops)), "drops of that well")
    return None if named.inspection is None else inspections(connection, found, named.inspection)


def _plate_id(connection: Connection, named: "DropReference") -> int | None:
    statement = sa.select(plate.c.id).join(source, source.c.id == plate.c.source_id)
    if named.source is not None:
        statement = statement.where(source.c.name == named.source)
    found = plate_names.select_named(connection, statement.order_by(plate.c.id).limit(1), named.plate or "")
    return int(found[0].id) if found else None


def _drops(connection: Connection, plate_id: int, well: str) -> set[int]:
    row, column = parse_well(well)
    at = (drop.c.plate_id == plate_id, drop.c.well_row == row, drop.c.well_column == column)
    seen = sa.select(drop.c.drop_number).join(image, image.c.drop_id == drop.c.id).where(*at)
    return set(connection.execute(seen).scalars())


def _texts(connection: Connection, statement: sa.Select[Any]) -> list[str]:
    return [str(found) for found in connection.execute(statement.limit(LOOKED_AT)).scalars()]
