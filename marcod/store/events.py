"""Events of scoring: ``NOTIFY marcod_plate_scored`` for a LIMS on PostgreSQL, and outbox events for people.

Both are written in the transaction of their fact, so exactly what is committed is notified. Events are written of a
champion's results, once per fact, whichever champion found it: no model that scores old plates again repeats one.
"""

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import (
    drift_alarm,
    drop,
    hit,
    image,
    inspection,
    inspection_summary,
    job,
    model_alias,
    model_version,
    plate,
    source,
)
from marcod.store import outbox
from marcod.store.outbox import NewEvent
from marcod.store.selects import WAS_CHAMPION, at_inspection

CHANNEL: Final = "marcod_plate_scored"
LONGEST: Final = 7999
"""Bytes of a payload; PostgreSQL refuses 8000."""

WELLS: Final = 100
"""Drops that one event names; it counts all."""

_MODEL: Final = (model_version.c.name + ":" + model_version.c.version).label("model")
_PLACE: Final = (
    source.c.id.label("source_id"), source.c.name.label("source"), plate.c.project, plate.c.key.label("plate"),
    plate.c.barcode, inspection.c.id.label("inspection_id"), inspection.c.key.label("inspection"), _MODEL,
    model_version.c.synthetic, model_version.c.crystal_threshold,
)  # fmt: skip


def _placed(
    statement: sa.Select[Any], inspection_id: sa.ColumnElement[Any], version_id: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """Join the place of an inspection, and a model version."""
    return at_inspection(statement, inspection_id).join(model_version, model_version.c.id == version_id)


def plates_scored(connection: Connection, new_hits: Mapping[int, int], version_id: int) -> None:
    """Announce these inspections, each with the number of drops newly recorded as hits, from their summary rows.

    Only what the champion says is announced, because only that is what the views show.
    """
    if connection.dialect.name != "postgresql" or not new_hits:
        return
    for row in connection.execute(_facts(list(new_hits), version_id)):
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, _payload(row, new_hits[row.inspection_id]))))


def _facts(inspection_ids: list[int], version_id: int) -> sa.Select[Any]:
    summary = inspection_summary.c
    columns = (
        summary.inspection_id, source.c.name.label("source"), plate.c.key.label("plate"), plate.c.barcode,
        inspection.c.key.label("inspection"), summary.hits, summary.complete, model_version.c.crystal_threshold, _MODEL,
    )  # fmt: skip
    facts = sa.select(*columns).select_from(inspection_summary)
    return (
        _placed(facts, summary.inspection_id, summary.model_version_id)
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


def completed(connection: Connection, inspection_ids: Collection[int], version_id: int, now: datetime) -> None:
    """Write an event of each of these inspections that this version completed and no champion had before."""
    if inspection_ids:
        its = inspection_summary.c.inspection_id.in_(list(inspection_ids))
        rows = connection.execute(_completions(version_id).where(its))
        outbox.put(connection, [_completion(row) for row in rows], now)


def completed_in_silence(connection: Connection, version_id: int, now: datetime) -> None:
    """Write the events of what a version that speaks from now on completed before, and no champion had."""
    rows = connection.execute(_completions(version_id))
    outbox.put(connection, [_completion(row) for row in rows], now)


def _completions(version_id: int) -> sa.Select[Any]:
    mine, other, its_version = inspection_summary, inspection_summary.alias(), model_version.alias()
    said = sa.exists().where(
        other.c.inspection_id == mine.c.inspection_id,
        other.c.model_version_id != mine.c.model_version_id,
        other.c.complete,
        # A later one, where the last image is gone or turned out to show another inspection.
        other.c.last_image_at >= mine.c.last_image_at,
        its_version.c.id == other.c.model_version_id,
        its_version.c.modality == model_version.c.modality,
        its_version.c.promoted_at.is_not(None),
    )
    columns = (*_PLACE, *(mine.c[name] for name in _COUNTS), mine.c.best_wells, mine.c.last_image_at)
    return (
        _placed(sa.select(*columns).select_from(mine), mine.c.inspection_id, mine.c.model_version_id)
        .where(
            mine.c.model_version_id == version_id,
            mine.c.complete,
            WAS_CHAMPION,
            sa.not_(said),
        )
        .order_by(mine.c.inspection_id)
    )


_COUNTS: Final = (
    "complete_rule", "expected", "seen", "scored", "failed", "labelled", "hits", "n_clear", "n_crystals", "n_other",
    "n_precipitate",
)  # fmt: skip


def _completion(row: Any) -> NewEvent:
    counts = {name.removeprefix("n_"): getattr(row, name) for name in _COUNTS}
    subject = f"complete:{row.inspection_id}:{_moment(row.last_image_at)}"
    return _new_event("complete", subject, row, counts | {"best_wells": json.loads(row.best_wells or "[]")})


def _new_event(kind: str, subject: str, row: Any, more: dict[str, Any]) -> NewEvent:
    place = {column.key: getattr(row, column.key) for column in _PLACE if column.key != "source_id"}
    return NewEvent(kind, subject, row.source_id, row.project, place | more)


def hits_found(connection: Connection, hit_ids: Collection[int], now: datetime) -> None:
    """Write an event an inspection of hits that one transaction recorded as new, if by a version that was champion."""
    if not hit_ids:
        return
    columns = (*_PLACE, hit.c.id, hit.c.p_crystals, drop.c.well, drop.c.drop_number)
    hits = sa.select(*columns).select_from(hit).join(drop, drop.c.id == hit.c.drop_id)
    found = (
        _placed(hits, hit.c.inspection_id, hit.c.model_version_id)
        .where(hit.c.id.in_(list(hit_ids)), WAS_CHAMPION)
        .order_by(inspection.c.id, hit.c.p_crystals.desc(), hit.c.id)
    )
    rows = connection.execute(found).all()
    outbox.put(connection, [_hits(list(its), now) for _, its in groupby(rows, attrgetter("inspection_id"))], now)


def _hits(rows: list[Any], now: datetime) -> NewEvent:
    wells = [
        {"well": row.well, "drop": row.drop_number, "p_crystals": round(row.p_crystals, 4)} for row in rows[:WELLS]
    ]
    subject = f"hits:{rows[0].inspection_id}:{min(row.id for row in rows)}:{_moment(now)}"
    return _new_event("hits", subject, rows[0], {"new_hits": len(rows), "wells": wells})


def quarantined(connection: Connection, image_ids: Collection[int], now: datetime) -> None:
    """Write an event of each of these images that is given up since ``now`` for the champion."""
    if not image_ids:
        return
    columns = (image.c.id, image.c.path, drop.c.well, drop.c.drop_number, job.c.error, job.c.attempts)
    jobs = sa.select(*_PLACE, *columns).select_from(job).join(image, image.c.id == job.c.image_id)
    found = (
        _placed(jobs.join(drop, drop.c.id == image.c.drop_id), image.c.inspection_id, job.c.model_version_id)
        .join(model_alias, model_alias.c.model_version_id == model_version.c.id)
        .where(model_alias.c.alias == "champion", job.c.image_id.in_(list(image_ids)), job.c.failed_at == now)
        .order_by(image.c.id)
    )
    outbox.put(connection, [_quarantine(row, now) for row in connection.execute(found)], now)


def _quarantine(row: Any, now: datetime) -> NewEvent:
    drop_of = {"image_id": row.id, "path": row.path, "well": row.well, "drop": row.drop_number}
    why = {"reason": row.error, "attempts": row.attempts}
    return _new_event("quarantine", f"quarantine:{row.id}:{_moment(now)}", row, drop_of | why)


def drift_raised(connection: Connection, alarm_id: int, now: datetime) -> None:
    """Write the event of an alarm that was opened just now."""
    columns = ("modality", "signal", "value", "reference", "p_value")
    found = (
        sa.select(
            source.c.id, source.c.name, _MODEL, drift_alarm.c.day, drift_alarm.c.detail,
            *(drift_alarm.c[name] for name in columns),
        )
        .join(source, source.c.id == drift_alarm.c.source_id)
        .join(model_version, model_version.c.id == drift_alarm.c.model_version_id)
        .where(drift_alarm.c.id == alarm_id)
    )  # fmt: skip
    row = connection.execute(found).one()
    detail = {"source": row.name, "model": row.model, "day": row.day.isoformat(), "reason": row.detail}
    measured = {name: getattr(row, name) for name in columns}
    subject = f"drift:{alarm_id}:{_moment(now)}"
    outbox.put(connection, [NewEvent("drift", subject, row.id, None, detail | measured)], now)


def _moment(time: datetime) -> str:
    """Format a time for subjects: ids alone may be used again after rows were removed."""
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}"
