"""Derived rows compared with a recount from the facts, portion by portion, and put right where they differ.

Each portion is one transaction that refreshes the rows of one inspection, or of some drops, as a change of them would,
and looks at what changed. Without a mend it is rolled back, so that no event is sent and nothing stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import (
    drop,
    drop_summary,
    hit,
    image,
    inspection,
    inspection_summary,
    model_version,
    plate,
    score,
    source,
)
from marcod.store import audit_log, derived, queue, versions
from marcod.store.selects import OF_PRESENT_BYTES, WAS_CHAMPION

DROPS: Final = 200
"""Drops in one portion; an inspection is one, too."""

SHOWN: Final = 20
"""Differences of a plate that are named in the audit."""

_ASIDE: Final = frozenset({"updated_at", "named_model", "named_version", "named_key", "named_well", "named_drop"})
"""Columns that are not compared: when a row was written, and the names that a difference prints."""


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a plate that one transaction recounts: inspections, drops, or with neither the work that is owed."""

    plate_id: int
    inspection_ids: tuple[int, ...] = ()
    drop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RecountDifference:
    """One value that is kept and another that a recount gives; a row that is missing or too much has no column."""

    plate: str
    row: str
    model: str
    column: str | None
    kept: Any
    counted: Any

    def __str__(self) -> str:
        """Format a line such as ``plate P1, drop A01 1 by marco:1: hit is 0, counted 1``."""
        place = f"plate {self.plate}, {self.row} by {self.model}"
        if self.column is None:
            return f"{place}: {'is missing' if self.kept is None else 'should not be there'}"
        return f"{place}: {self.column} is {self.kept}, counted {self.counted}"


def plate_ids(connection: Connection, source_name: str | None = None) -> list[int]:
    """All plates, or those of one source, by id."""
    wanted = sa.select(plate.c.id).join(source, source.c.id == plate.c.source_id).order_by(plate.c.id)
    if source_name is not None:
        wanted = wanted.where(source.c.name == source_name)
    return [int(row[0]) for row in connection.execute(wanted)]


def portions(connection: Connection, plate_id: int) -> list[Portion]:
    """Divide a plate into portions: each inspection, its drops in hundreds, and the work that it is owed."""
    of_plate = sa.select(inspection.c.id).where(inspection.c.plate_id == plate_id).order_by(inspection.c.id)
    inspections = [Portion(plate_id, inspection_ids=(int(row[0]),)) for row in connection.execute(of_plate)]
    ids = [int(row[0]) for row in connection.execute(sa.select(drop.c.id).where(drop.c.plate_id == plate_id))]
    drops = [Portion(plate_id, drop_ids=tuple(sorted(ids)[n : n + DROPS])) for n in range(0, len(ids), DROPS)]
    return [*inspections, *drops, Portion(plate_id)]


def recount(
    connection: Connection, portion: Portion, now: datetime, *, fix: bool, actor: str
) -> list[RecountDifference]:
    """Recount a portion in this transaction and return what differs; with ``fix`` keep the recount and note it."""
    name = str(connection.execute(sa.select(plate.c.key).where(plate.c.id == portion.plate_id)).scalar_one())
    trial = connection.begin_nested()
    try:
        found, due = _recounted(connection, portion, name, now)
    except BaseException:
        trial.rollback()
        raise
    if not (fix and found):
        trial.rollback()
        return found
    if portion.drop_ids:
        # The trial recounted what may be missing, too; a thinned version's hits would have ended with it.
        trial.rollback()
        champion_id = versions.champion(connection).id
        # The champion first: it confirms a former champion's hit, which is not notified again.
        in_turn = sorted(due, key=lambda pair: (pair[1] != champion_id, pair[1], pair[0]))
        for version_id, pairs in groupby(in_turn, key=itemgetter(1)):
            version = versions.get(connection, version_id)
            derived.refresh_version(connection, version, [drop_id for drop_id, _ in pairs], (), now)
    else:
        trial.commit()
    detail: dict[str, object] = {"differences": len(found), "first": [str(difference) for difference in found[:SHOWN]]}
    audit_log.write(connection, actor, "recount", name, detail, now)
    return found


def _recounted(
    connection: Connection, portion: Portion, name: str, now: datetime
) -> tuple[list[RecountDifference], set[tuple[int, int]]]:
    """Return what differs after a recount, and the drops and versions that have a row or must have one."""
    if not portion.inspection_ids and not portion.drop_ids:
        return _owed(connection, portion.plate_id, name, now), set()
    before = _rows(connection, portion)
    serving = [versions.get(connection, v) for v in _spoke(connection, portion.inspection_ids)]
    derived.refresh(connection, portion.drop_ids, portion.inspection_ids, now, serving=serving)
    after = _rows(connection, portion)
    due = set[tuple[int, int]]()
    if portion.drop_ids:
        due = _due(connection, portion.drop_ids, before, after)
        before, after = ({key: row for key, row in rows.items() if _subject(row) in due} for rows in (before, after))
    return list(_differences(name, before, after)), due


def _due(
    connection: Connection, drop_ids: Sequence[int], before: "dict[Key, Row]", after: "dict[Key, Row]"
) -> set[tuple[int, int]]:
    """Find the drops and versions that have a row or must have one, because the version spoke and scored the drop.

    A drop with labels alone must have one row of a version that was champion. Others may lack it: a version
    that knows but the score kept with a file that is gone, or one that was thinned, whose hits stay as its history.
    """
    scored = (
        sa.select(image.c.drop_id, score.c.model_version_id)
        .join(score, OF_PRESENT_BYTES)
        .where(image.c.drop_id.in_(drop_ids))
    )
    by_all = {(int(drop_id), int(version_id)) for drop_id, version_id in connection.execute(scored.distinct())}
    kept = {_subject(row) for row in before.values() if "label_person" in row}
    spoke = set(connection.execute(sa.select(model_version.c.id).where(WAS_CHAMPION)).scalars())
    pairs = {pair for pair in by_all if pair[1] in spoke}
    known = {drop_id for drop_id, version_id in kept if version_id in spoke}
    labelled = {_subject(row) for row in after.values() if row.get("label_person") is not None}
    champion_id = versions.champion(connection).id
    return pairs | kept | {pair for pair in labelled if pair[0] not in known and pair[1] == champion_id}


def _subject(row: "Row") -> tuple[int, int]:
    return int(row["drop_id"]), int(row["model_version_id"])


def _owed(connection: Connection, plate_id: int, name: str, now: datetime) -> list[RecountDifference]:
    """Queue the images that the champion owes a plate which it has started. Returns the difference."""
    champion = versions.champion(connection)
    started = (
        sa.select(inspection.c.id)
        .join(inspection_summary, inspection_summary.c.inspection_id == inspection.c.id)
        .where(inspection.c.plate_id == plate_id, inspection_summary.c.model_version_id == champion.id)
    )
    if connection.execute(started.limit(1)).first() is None:
        return []
    queued = queue.enqueue_rescore(connection, champion.id, now, [plate_id])
    return [RecountDifference(name, f"work for {queued} images", str(champion), None, None, queued)] if queued else []


def _spoke(connection: Connection, inspection_ids: Sequence[int]) -> list[int]:
    """Versions that are or were champion and have a score of the present bytes in these inspections."""
    if not inspection_ids:
        return []
    wanted = (
        sa.select(score.c.model_version_id)
        .join(image, OF_PRESENT_BYTES)
        .join(model_version, model_version.c.id == score.c.model_version_id)
        .where(image.c.inspection_id.in_(inspection_ids), WAS_CHAMPION)
    )
    return sorted(connection.execute(wanted.distinct()).scalars())


Row = dict[str, Any]
Key = tuple[str, str]
"""The row in words and the model version's name."""


def _rows(connection: Connection, portion: Portion) -> dict[Key, Row]:
    """Read the derived rows of a portion, without the times of writing."""
    found: dict[Key, Row] = {}
    for wanted, words in _selections(portion):
        for row in connection.execute(wanted).mappings():
            kept = {name: value for name, value in row.items() if name not in _ASIDE}
            found[words.format(**row), f"{row['named_model']}:{row['named_version']}"] = kept
    return found


def _selections(portion: Portion) -> Iterator[tuple[sa.Select[Any], str]]:
    named = (model_version.c.name.label("named_model"), model_version.c.version.label("named_version"))
    if portion.inspection_ids:
        counts = sa.select(inspection_summary, inspection.c.key.label("named_key"), *named)
        counts = counts.join(inspection, inspection.c.id == inspection_summary.c.inspection_id)
        counts = counts.join(model_version, model_version.c.id == inspection_summary.c.model_version_id)
        yield counts.where(inspection.c.id.in_(portion.inspection_ids)), "inspection {named_key}"
    for table, words in ((drop_summary, "drop {named_well} {named_drop}"), (hit, "hit {named_well} {named_drop}")):
        if portion.drop_ids:
            columns = [c for c in table.c if table is drop_summary or c.name in _OF_HIT]
            place = (drop.c.well.label("named_well"), drop.c.drop_number.label("named_drop"))
            rows = sa.select(*columns, *place, *named).join(drop, drop.c.id == table.c.drop_id)
            rows = rows.join(model_version, model_version.c.id == table.c.model_version_id)
            if table is hit:
                rows = rows.where(hit.c.ended_at.is_(None))
            yield rows.where(drop.c.id.in_(portion.drop_ids)), words


_OF_HIT: Final = frozenset({"drop_id", "model_version_id"})
"""A hit keeps what was seen when it was found, so only that it stands is compared."""


def _differences(name: str, before: dict[Key, Row], after: dict[Key, Row]) -> Iterator[RecountDifference]:
    for row, model in sorted(before.keys() | after.keys()):
        kept, counted = before.get((row, model)), after.get((row, model))
        if kept is None or counted is None:
            yield RecountDifference(name, row, model, None, kept, counted)
            continue
        for column in kept:
            if kept[column] != counted[column]:
                yield RecountDifference(name, row, model, column, kept[column], counted[column])
