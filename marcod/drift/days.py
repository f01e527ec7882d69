"""Observations of a day for drift, and the stored days, references and alarms.

Score ids follow the time at which their rows were written, so the start of a day is found among millions of scores by
bisection of the ids, without an index. Only new images count (see :func:`observations`), so scoring an archive again
causes no drift.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import (
    UtcDateTime,
    drift_alarm,
    drift_day,
    drift_reference,
    image,
    inspection,
    job,
    model_version,
    score,
    source,
)
from marcod.store import queue
from marcod.store.selects import IS_COUNTED, OF_PRESENT_BYTES
from marcod.store.versions import Version

SKEW: Final = timedelta(hours=1)
"""Largest difference between the clocks of two scoring hosts."""

ARCHIVED: Final = timedelta(days=14)
"""Images that arrive this long after they were taken are an imported archive, and not today's work.

Where an imager's names carry no date, an image is as old as its file.
"""

LASTING: Final = ("brightness", "contrast", "focus", "empty", "failures")
"""Signals of the images themselves. Their references and alarms outlast a champion."""

PART: Final = 5000
PLATES: Final = 50


@dataclass(frozen=True, slots=True)
class Observation:
    """An image that the champion scored, or with ``label`` None one that it could not read.

    ``age_d`` are the days since the plate was first photographed; ``probabilities`` are as domain.CLASSES.
    """

    source_id: int
    plate_id: int
    at: datetime
    age_d: float
    label: str | None = None
    probabilities: tuple[float, ...] = ()
    brightness: float = 0.0
    contrast: float = 0.0
    focus: float = 0.0


@dataclass(frozen=True, slots=True)
class Day:
    """The row of one imager and UTC day under one champion; ``marcod.drift.monitor`` makes the ``statistics``.

    ``version_id`` is the champion's.
    """

    source_id: int
    version_id: int
    day: date
    images: int
    failures: int
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Alarm of an imager from ``day`` on, with the ``reference`` and the ``value`` then; open until it is cleared."""

    id: int
    source: str
    modality: str
    model: str
    signal: str
    day: date
    value: float | None
    reference: float | None
    p_value: float
    detail: str
    raised_at: datetime


def promoted_at(connection: Connection, version: Version) -> datetime:
    """Return the time from which a champion is champion."""
    since = sa.func.coalesce(model_version.c.promoted_at, model_version.c.registered_at, type_=UtcDateTime())
    found: datetime = connection.execute(sa.select(since).where(model_version.c.id == version.id)).scalar_one()
    return found


def observations(connection: Connection, version: Version, since: datetime, until: datetime) -> Iterator[Observation]:
    """Yield the new images that this champion scored, or gave up as unreadable, from ``since`` to before ``until``.

    New is what arrived after the version became champion and not long after it was photographed. An image whose
    file changed counts with its present content; a file that vanished is not unreadable. Images that an older marcod
    scored were not measured and do not count, nor do those that could not be read before the first measured one.
    """
    yield from _scored(connection, version, since, until)
    yield from _given_up(connection, version, since, until)


def _scored(connection: Connection, version: Version, since: datetime, until: datetime) -> Iterator[Observation]:
    probabilities = (score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate)
    measures = (score.c.brightness, score.c.contrast, score.c.focus)
    found = (
        sa.select(*_PLACE, score.c.scored_at, score.c.label, *probabilities, *measures)
        .join(image, OF_PRESENT_BYTES)
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .where(
            score.c.id >= _first_since(connection, since - SKEW),
            score.c.model_version_id == version.id,
            score.c.scored_at >= since,
            score.c.scored_at < until,
            score.c.focus.is_not(None),
            image.c.seen_at >= promoted_at(connection, version),
            IS_COUNTED,
        )
    )
    for row, age_d in _with_ages(connection, found):
        yield Observation(row[0], row[1], row[5], age_d, row[6], tuple(row[7:11]), *row[11:14])


def _given_up(connection: Connection, version: Version, since: datetime, until: datetime) -> Iterator[Observation]:
    promoted = promoted_at(connection, version)
    start = _first_measured(connection, version, promoted)
    if start is None:
        return
    found = (
        sa.select(*_PLACE, job.c.failed_at)
        .join(image, image.c.id == job.c.image_id)
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .where(
            job.c.failed_at >= max(since, start),
            job.c.failed_at < until,
            job.c.model_version_id == version.id,
            job.c.error != queue.GONE,
            image.c.seen_at >= promoted,
        )
    )
    for row, age_d in _with_ages(connection, found):
        yield Observation(row[0], row[1], row[5], age_d)


def _first_measured(connection: Connection, version: Version, promoted: datetime) -> datetime | None:
    """Find when a champion first scored an image that was measured as well."""
    found = sa.select(score.c.scored_at).where(
        score.c.model_version_id == version.id,
        score.c.id >= _first_since(connection, promoted - SKEW),
        score.c.scored_at >= promoted,
        score.c.focus.is_not(None),
    )
    return connection.execute(found.order_by(score.c.id).limit(1)).scalar_one_or_none()


# A source that is to be read again has all its files' times below zero: see catalog.
_FILE_TIME: Final = sa.case((image.c.mtime_ns < 0, -image.c.mtime_ns - 1), else_=image.c.mtime_ns)
_PLACE: Final = (
    image.c.source_id, inspection.c.plate_id, image.c.captured_at, image.c.seen_at, _FILE_TIME.label("file_ns"),
)  # fmt: skip


def _with_ages(connection: Connection, found: sa.Select[Any]) -> Iterator[tuple[Any, float]]:
    """Yield the rows, whose first columns are ``_PLACE``, with the ages of their plates, without archives."""
    starts: dict[int, datetime] = {}
    streamed = connection.execution_options(stream_results=True).execute(found)
    for part in streamed.partitions(PART):
        _find_starts(connection, {row[1] for row in part} - starts.keys(), starts)
        for row in part:
            taken = row[2] or min(_file_time(row[4]), row[3])
            if row[3] - taken <= ARCHIVED:
                yield row, max(0.0, (taken - starts[row[1]]) / timedelta(days=1))


def _find_starts(connection: Connection, plate_ids: Iterable[int], starts: dict[int, datetime]) -> None:
    """Find when each plate was first photographed, into ``starts``."""
    ids = list(plate_ids)
    undated = sa.case((image.c.captured_at.is_(None), _FILE_TIME))
    captured, seen = (sa.func.min(time, type_=UtcDateTime()) for time in (image.c.captured_at, image.c.seen_at))
    for place in range(0, len(ids), PLATES):
        found = (
            sa.select(inspection.c.plate_id, captured, sa.func.min(undated), seen)
            .join(image, image.c.inspection_id == inspection.c.id)
            .where(inspection.c.plate_id.in_(ids[place : place + PLATES]))
            .group_by(inspection.c.plate_id)
        )
        for plate_id, captured_at, file_ns, seen_at in connection.execute(found):
            undated_at = None if file_ns is None else min(_file_time(file_ns), seen_at)
            starts[int(plate_id)] = min(time for time in (captured_at, undated_at) if time is not None)


def _file_time(file_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=file_ns // 1000)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _first_since(connection: Connection, since: datetime) -> int:
    """Find the lowest id of a score of that time or later, or one above all ids."""
    low, high = connection.execute(
        sa.select(sa.func.coalesce(sa.func.min(score.c.id), 0), sa.func.coalesce(sa.func.max(score.c.id), 0))
    ).one()
    high += 1
    while low < high:
        middle = (low + high) // 2
        following = sa.select(score.c.id, score.c.scored_at).where(score.c.id >= middle).order_by(score.c.id).limit(1)
        row = connection.execute(following).one_or_none()
        if row is None or row.scored_at >= since:
            high = middle
        else:
            low = int(row.id) + 1
    return int(low)


def counted(connection: Connection, version: Version, since: date) -> dict[date, datetime]:
    """List the days from then on that have rows, with the time at which their oldest row was written."""
    made = sa.func.min(drift_day.c.made_at, type_=UtcDateTime())
    found = sa.select(drift_day.c.day, made).where(drift_day.c.model_version_id == version.id, drift_day.c.day >= since)
    return {row[0]: row[1] for row in connection.execute(found.group_by(drift_day.c.day))}


def written(connection: Connection, version: Version, since: date) -> set[tuple[int, date]]:
    """List sources and days from then on that have rows."""
    found = sa.select(drift_day.c.source_id, drift_day.c.day)
    found = found.where(drift_day.c.model_version_id == version.id, drift_day.c.day >= since)
    return {(int(row[0]), row[1]) for row in connection.execute(found)}


def put_days(connection: Connection, version: Version, days: Iterable[Day], now: datetime) -> None:
    """Write days, over former rows of them."""
    for row in sorted(days, key=lambda d: (d.source_id, d.day)):
        key = _key(row.source_id, version) | {"day": row.day}
        values = {"images": row.images, "failures": row.failures, "statistics": row.statistics, "made_at": now}
        _upsert(connection, drift_day, key, values)


def days(connection: Connection, modality: str, source_id: int, since: date) -> list[Day]:
    """List the rows of an imager from a day on, in order, under every champion for this modality."""
    columns = [drift_day.c[name] for name in _OF_DAY]
    mine = sa.and_(drift_day.c.source_id == source_id, drift_day.c.modality == modality)
    order = (drift_day.c.day, drift_day.c.model_version_id)
    return [
        Day(*row)
        for row in connection.execute(sa.select(*columns).where(mine, drift_day.c.day >= since).order_by(*order))
    ]


_OF_DAY: Final = ("source_id", "model_version_id", "day", "images", "failures", "statistics")


def imagers(connection: Connection, version: Version, since: date) -> list[tuple[int, str]]:
    """List ids and names, by name, of the sources of which this version has days, or another one has since then."""
    mine = sa.or_(drift_day.c.model_version_id == version.id, drift_day.c.day >= since)
    seen = sa.exists().where(drift_day.c.source_id == source.c.id, drift_day.c.modality == version.modality, mine)
    return [(int(row[0]), row[1]) for row in connection.execute(_SOURCES.where(seen).order_by(source.c.name))]


_SOURCES: Final = sa.select(source.c.id, source.c.name)


def names(connection: Connection, source_ids: Iterable[int]) -> dict[int, str]:
    """Return the names of these sources."""
    return {int(row[0]): row[1] for row in connection.execute(_SOURCES.where(source.c.id.in_(list(source_ids))))}


def references(connection: Connection, version: Version, source_id: int) -> list[tuple[int, dict[str, Any]]]:
    """List what :func:`put_reference` stored of an imager, by version id, the latest first."""
    table = drift_reference
    mine = sa.and_(table.c.source_id == source_id, table.c.modality == version.modality)
    found = sa.select(table.c.model_version_id, table.c.statistics).where(mine)
    return [
        (int(row[0]), row[1]) for row in connection.execute(found.order_by(table.c.made_at.desc(), table.c.id.desc()))
    ]


def put_reference(connection: Connection, version: Version, source_id: int, now: datetime, **values: Any) -> None:
    """Store a reference over a former one.

    ``values`` are its images, its statistics, and first_at and last_at, between which its images were scored.
    """
    _upsert(connection, drift_reference, _key(source_id, version), {**values, "made_at": now})


def hold(connection: Connection, source_id: int) -> None:
    """Lock the alarms of this imager until the transaction ends."""
    connection.execute(sa.select(source.c.id).where(source.c.id == source_id).with_for_update(key_share=True))


def raise_alarm(
    connection: Connection, version: Version, source_id: int, *, signal: str, day: date, now: datetime, **values: Any
) -> int | None:
    """Open an alarm unless one is open or was raised that day; call :func:`hold` first. Returns the id of a new one.

    An alarm of the images counts under whatever champion it was raised. ``values`` are its value, reference, p_value
    and detail.
    """
    same = sa.and_(_concerned(version, source_id, signal), drift_alarm.c.signal == signal)
    known = sa.or_(drift_alarm.c.cleared_at.is_(None), drift_alarm.c.day == day)
    if connection.execute(sa.select(sa.exists().where(same, known))).scalar_one():
        return None
    row = _key(source_id, version) | {"signal": signal, "day": day, "raised_at": now, **values}
    made = insert(connection, drift_alarm).values(row).on_conflict_do_nothing().returning(drift_alarm.c.id)
    alarm_id: int | None = connection.execute(made).scalar_one_or_none()
    if alarm_id is not None:
        from marcod.store import events  # here, so that reading alarms does not import the outbox

        events.drift_raised(connection, alarm_id, now)
    return alarm_id


def _concerned(version: Version, source_id: int, signal: str) -> sa.ColumnElement[bool]:
    """Alarms of an imager that concern a signal under this champion: of any one where the model plays no part."""
    if signal not in LASTING:
        return _mine(drift_alarm, source_id, version)
    return sa.and_(drift_alarm.c.source_id == source_id, drift_alarm.c.modality == version.modality)


def clear(connection: Connection, alarm_ids: Iterable[int], now: datetime) -> int:
    """Close these alarms. Returns how many were open."""
    still = sa.and_(drift_alarm.c.id.in_(list(alarm_ids)), drift_alarm.c.cleared_at.is_(None))
    return connection.execute(sa.update(drift_alarm).where(still).values(cleared_at=now)).rowcount


def clear_others(connection: Connection, version: Version, now: datetime) -> None:
    """Close alarms of versions that are no longer champion, but not those of the images of the same modality."""
    lasts = sa.and_(drift_alarm.c.signal.in_(LASTING), drift_alarm.c.modality == version.modality)
    others = sa.and_(drift_alarm.c.model_version_id != version.id, drift_alarm.c.cleared_at.is_(None), sa.not_(lasts))
    connection.execute(sa.update(drift_alarm).where(others).values(cleared_at=now))


def last_cleared(connection: Connection, version: Version, source_id: int) -> dict[str, date]:
    """Return the UTC day on which each signal's alarm was last cleared."""
    latest = sa.func.max(drift_alarm.c.cleared_at, type_=UtcDateTime())
    lasts = sa.and_(_concerned(version, source_id, LASTING[0]), drift_alarm.c.signal.in_(LASTING))
    mine = sa.or_(_mine(drift_alarm, source_id, version), lasts)
    found = sa.select(drift_alarm.c.signal, latest).where(mine, drift_alarm.c.cleared_at.is_not(None))
    return {row[0]: row[1].date() for row in connection.execute(found.group_by(drift_alarm.c.signal))}


def open_alarms(connection: Connection) -> list[Alarm]:
    """List every open alarm, by imager and age."""
    model = model_version.c.name + ":" + model_version.c.version
    columns = (
        drift_alarm.c.id, source.c.name, drift_alarm.c.modality, model, drift_alarm.c.signal, drift_alarm.c.day,
        drift_alarm.c.value, drift_alarm.c.reference, drift_alarm.c.p_value, drift_alarm.c.detail,
        drift_alarm.c.raised_at,
    )  # fmt: skip
    found = (
        sa.select(*columns)
        .join(source, source.c.id == drift_alarm.c.source_id)
        .join(model_version, model_version.c.id == drift_alarm.c.model_version_id)
        .where(drift_alarm.c.cleared_at.is_(None))
        .order_by(source.c.name, drift_alarm.c.id)
    )
    return [Alarm(*row) for row in connection.execute(found)]


def _key(source_id: int, version: Version) -> dict[str, Any]:
    return {"source_id": source_id, "modality": version.modality, "model_version_id": version.id}


def _mine(table: sa.Table, source_id: int, version: Version) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == value for name, value in _key(source_id, version).items()))


def _upsert(connection: Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    statement = insert(connection, table).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))
