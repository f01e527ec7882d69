"""An archive of many plates with summaries, drops and hits, and no more images than hits: all that lists are made of.

A tenth of the plates, the oldest, belong to an imager that is gone; every plate has four inspections and three drops
with crystals. 100,000 plates take a few minutes.
"""

from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.bench import Subject, utc_now
from marcod.catalog import registration
from marcod.database.schema import drop, drop_summary, hit, image, inspection, inspection_summary, plate

INSPECTIONS: Final = 4
HITS: Final = 3
OPEN_EVERY: Final = 997
"""The latest inspection of one plate in so many is not complete."""

DAYS: Final = 1_000
RARE: Final = range(5_000, 5_040)
"""Plates of a project of its own, long ago."""

PORTION: Final = 2_000
Rows = dict[sa.Table, list[dict[str, Any]]]


def fill(subject: Subject, plates: int) -> None:
    """Fill an empty database, whose source becomes the usual one of three."""
    db, now = subject.db, utc_now()
    old, second = (
        db.write(registration.register_source, name, f"/{name}", "formulatrix", None, now) for name in ("old", "second")
    )
    for first in range(0, plates, PORTION):
        rows: Rows = {t: [] for t in (plate, inspection, inspection_summary, drop, image, drop_summary, hit)}
        for number in range(first, min(first + PORTION, plates)):
            source = old if number < plates // 10 else second if number % 3 == 0 else subject.source_id
            at = now - timedelta(days=DAYS * (1 - number / plates))
            _add_plate(rows, number, source, at)
            _add_inspections(rows, number, subject.champion.id, at, is_last=number % OPEN_EVERY == 0)
            _add_hits(rows, number, source, subject.champion.id, at)
        db.write(partial(_insert, rows=rows))
    _finish(subject)


def _insert(connection: Connection, rows: Rows) -> None:
    for table, its in rows.items():
        connection.execute(sa.insert(table), its)


def _add_plate(rows: Rows, number: int, source: int, at: datetime) -> None:
    project = "rare" if number in RARE else None if number % 10 == 0 else f"project {number % 200}"
    key, barcode = f"CI{number:06d}", f"B{number}"
    rows[plate].append(
        {
            "id": number + 1, "source_id": source, "key": key, "barcode": barcode, "first_seen_at": at,
            "project": project, "screen": "JCSG+", "format_rows": 8, "format_columns": 12, "format_drops": 3,
            "key_folded": key.lower(), "barcode_folded": barcode.lower(),
        }
    )  # fmt: skip


def _add_inspections(rows: Rows, number: int, version: int, at: datetime, *, is_last: bool) -> None:
    for ordinal in range(1, INSPECTIONS + 1):
        name = _inspection(number, ordinal)
        seen = at + timedelta(hours=ordinal)
        rows[inspection].append(
            {
                "id": name, "plate_id": number + 1, "key": str(ordinal), "ordinal": ordinal, "first_seen_at": seen,
                "order_key": f"{ordinal:020d}",
            }
        )  # fmt: skip
        is_open = is_last and ordinal == INSPECTIONS
        rows[inspection_summary].append(
            {
                "inspection_id": name, "model_version_id": version, "n_clear": 200, "n_crystals": HITS, "n_other": 5,
                "n_precipitate": 80, "hits": min(ordinal, HITS), "best_wells": "[]", "expected": 288,
                "seen": 100 if is_open else 288, "scored": 90 if is_open else 288, "failed": 0,
                "complete": not is_open, "complete_rule": None if is_open else "expected", "first_image_at": seen,
                "last_image_at": seen, "updated_at": seen, "labelled": 0, "waiting": 10 if is_open else 0, "gone": 0,
            }
        )  # fmt: skip


def _inspection(number: int, ordinal: int) -> int:
    """Return an id that grows with time."""
    return number * INSPECTIONS + ordinal


def _add_hits(rows: Rows, number: int, source: int, version: int, at: datetime) -> None:
    for place in range(HITS):
        name, seen_in = number * HITS + place + 1, _inspection(number, place + 1)
        p, found = 0.5 + (name * 7919 % 5000) / 10_000, at + timedelta(hours=place + 1)
        rows[drop].append(
            {
                "id": name,
                "plate_id": number + 1,
                "well": f"A{place + 1:02d}",
                "well_row": 0,
                "well_column": place,
                "drop_number": 1,
            }
        )
        rows[image].append(
            {
                "id": name, "source_id": source, "path": f"{number}/{place}.jpg", "drop_id": name,
                "inspection_id": seen_in, "modality": "visible", "size": 100, "mtime_ns": 1,
                "content_hash": f"{name:064x}", "seen_at": found, "unread": False,
            }
        )  # fmt: skip
        labelled = name % 10 == 0
        rows[drop_summary].append(
            {
                "drop_id": name, "model_version_id": version, "inspections": INSPECTIONS, "scored_inspections": 4,
                "inspection_id": _inspection(number, INSPECTIONS), "image_id": name, "p_clear": 0.0, "p_crystals": p,
                "p_other": 0.0, "p_precipitate": 1 - p, "label": "Crystals",
                "label_person": "ann" if labelled else None, "label_disputed": False,
                "highest_p_crystals": p, "best_image_id": name, "hit": True,
                "first_hit_inspection_id": seen_in, "first_hit_image_id": name, "trend": "steady", "updated_at": found,
            }
        )  # fmt: skip
        rows[hit].append(
            {
                "id": name, "drop_id": name, "inspection_id": seen_in, "image_id": name, "model_version_id": version,
                "p_crystals": p, "threshold": 0.5, "found_at": found, "cause": "new",
            }
        )  # fmt: skip


def _finish(subject: Subject) -> None:
    """Let the database go on counting after these ids, and look at what it has."""
    db = subject.db
    db.refresh_statistics()
    if db.is_sqlite:
        return
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in (plate, inspection, drop, image, hit):
            counter = f"pg_get_serial_sequence('\"{table.name}\"', 'id')"
            connection.exec_driver_sql(f'select setval({counter}, (select max(id) from "{table.name}"))')
        connection.exec_driver_sql("vacuum analyze")
