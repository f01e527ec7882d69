"""Telling a LIMS at once: ``NOTIFY marcod_plate_scored`` on PostgreSQL, nothing on SQLite.

Sent inside the transaction that makes the fact, so that a LIMS hears of what is committed and of nothing else.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.store.schema import inspection, inspection_summary, model_alias, model_version, plate, source

CHANNEL: Final = "marcod_plate_scored"
LONGEST: Final = 7999
"""Bytes of a payload; PostgreSQL refuses 8000."""


def plates_scored(connection: Connection, new_hits: Mapping[int, int], version_id: int) -> None:
    """Announce these inspections, each with the number of drops newly recorded as hits, from their summary rows.

    Only what the champion says is announced, because only that is what the views show.
    """
    if connection.dialect.name != "postgresql" or not new_hits:
        return
    for row in connection.execute(_facts(list(new_hits), version_id)):
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, _payload(row, new_hits[row.inspection_id]))))


def _facts(inspection_ids: list[int], version_id: int) -> sa.Select[Any]:
    return (
        sa.select(
            inspection_summary.c.inspection_id,
            source.c.name.label("source"),
            plate.c.key.label("plate"),
            plate.c.barcode,
            inspection.c.key.label("inspection"),
            inspection_summary.c.hits,
            inspection_summary.c.complete,
            (model_version.c.name + ":" + model_version.c.version).label("model"),
        )
        .join(inspection, inspection.c.id == inspection_summary.c.inspection_id)
        .join(plate, plate.c.id == inspection.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
        .join(model_version, model_version.c.id == inspection_summary.c.model_version_id)
        .join(model_alias, model_alias.c.model_version_id == model_version.c.id)
        .where(
            model_alias.c.alias == "champion",
            inspection_summary.c.model_version_id == version_id,
            inspection_summary.c.inspection_id.in_(inspection_ids),
        )
        .order_by(inspection_summary.c.inspection_id)
    )


def _payload(row: sa.Row[Any], new_hits: int) -> str:
    """JSON. Names too long for a notification are null; ``inspection_id`` leads to them in the views."""
    fact = {**row._mapping, "new_hits": new_hits}
    text = json.dumps(fact, ensure_ascii=False)
    if len(text.encode()) <= LONGEST:
        return text
    names = dict.fromkeys(("source", "plate", "barcode", "inspection", "model"))
    return json.dumps(fact | names, ensure_ascii=False)
