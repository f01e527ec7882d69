"""Names of plates, compared without regard to case and in one Unicode form.

A plate answers to its key and to its barcode. The last levels of a key with several, such as ``plate1`` of
``kinase/hit2/plate1``, are enough where no plate answers to the name as it is.
"""

from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod import layouts
from marcod.database.rows import select_in
from marcod.database.schema import plate, source
from marcod.domain import composed, folded, names_stored

NAMED: Final = 10
"""Keys that a sentence lists."""


def forms(names: Iterable[str]) -> set[str]:
    """Fold names as the database compares them; they may be raw or as marcod shows them."""
    return {folded(form) for name in names for form in names_stored(composed(name))}


def select_named(connection: Connection, statement: sa.Select[Any], name: str) -> list[Any]:
    """Select the rows of a statement on plates that answer to a name."""
    wanted = forms([name])
    exact = sa.or_(plate.c.key_folded.in_(wanted), plate.c.barcode_folded.in_(wanted))
    if found := list(connection.execute(statement.where(exact))):
        return found
    levelled = plate.c.source_id.in_(sa.select(source.c.id).where(source.c.layout.in_(layouts.with_levels())))
    ends = [plate.c.key_folded.endswith(f"/{form}", autoescape=True) for form in wanted]
    return list(connection.execute(statement.where(levelled, sa.or_(*ends))))


def by_key(connection: Connection, source_id: int, keys: Iterable[str]) -> dict[str, Any]:
    """Rows of a source's plates by folded key; the first one where a former marcod made several of one key."""
    wanted = sa.select(plate).where(plate.c.source_id == source_id).order_by(plate.c.id.desc())
    rows = select_in(connection, wanted, plate.c.key_folded, {folded(key) for key in keys})
    return {str(row.key_folded): row for row in rows}


def whole_keys(name: str, keys: Iterable[str]) -> str | None:
    """List the keys, for a sentence, of which a name is only the end; None where it is a whole key."""
    known = list(dict.fromkeys(keys))
    wanted = forms([name])
    if not all(folded(key).endswith(tuple(f"/{form}" for form in wanted)) for key in known):
        return None
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return f"{', '.join(known[:NAMED])}{more}"
