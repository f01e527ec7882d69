"""Drift monitor: alarms per imager and champion when images or predictions differ from the reference.

Any number of processes may call :func:`run` at any time: it writes the same days again, opens an alarm once, and costs
as much as the images since the last whole day.

The *reference* of a plate age are the first ``reference_images`` new images of that age, and of
REFERENCE_PLATES plates, that a champion scored, in whole days; then it is frozen. A new champion starts a new one,
because the predictions of another model cannot be compared; after a rollback the old one counts again.
The *window* is the last ``window_days`` days and, so that a sudden fault is seen at once, the last one and three.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import numpy as np

from marcod import telemetry
from marcod.database.engine import Database
from marcod.domain import CLASSES
from marcod.drift import comparison, statistics
from marcod.drift import days as store
from marcod.drift.comparison import REFERENCE_PLATES, Finding
from marcod.drift.days import Alarm
from marcod.drift.statistics import AGE_NAMES, Ages, Cell
from marcod.settings import DriftSettings
from marcod.store import audit_log, versions
from marcod.store.known_names import find_source
from marcod.store.versions import Version
from marcod.text import count

log = telemetry.logger(__name__)

CATCH_UP: Final = timedelta(days=30)
"""Days missed longer ago than this are not counted."""

COLLECTED: Final = timedelta(days=90)
"""Longest time from which a reference takes its images."""

LATE: Final = timedelta(hours=1)
"""Time after which a day is whole: every batch of it has been written."""

RECENT_DAYS: Final = (1, 3)
"""Windows in addition to the configured one, whose many days from before a fault would long hide it."""

CALM: Final = 0.01
"""Least p-value that ends an alarm; half of the alarm's shift ends it too."""

COLLECTING: Final = "collecting"
TOO_FEW: Final = "too few images"
QUIET: Final = "quiet"
ALARM: Final = "ALARM"


@dataclass(frozen=True, slots=True)
class DayLine:
    """One day of an imager; means over its images, None where nothing was measured. ``failures`` were unreadable."""

    day: date
    images: int
    failures: int
    plates: int
    brightness: float | None
    contrast: float | None
    focus: float | None
    confidence: float | None
    classes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Imager:
    """State of one imager with the champion; ``note`` says what a state waits for."""

    source: str
    modality: str
    model: str
    state: str
    note: str
    findings: list[Finding]
    alarms: list[Alarm]


@dataclass(frozen=True, slots=True)
class Report:
    """Result of :func:`run`; ``new`` are the alarms that it opened."""

    model: str
    imagers: list[Imager]
    new: list[Alarm]


@dataclass(slots=True)
class _Reference:
    """Frozen reference: cells by age, the last day of each, and the first day that counts."""

    cells: Ages = field(default_factory=dict)
    until: dict[int, date] = field(default_factory=dict)
    since: date = date.min

    def to_json(self) -> dict[str, Any]:
        return {
            "since": self.since.isoformat(),
            "until": {str(age): day.isoformat() for age, day in self.until.items()},
            "ages": statistics.to_json(self.cells),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> "_Reference":
        if values is None:
            return cls()
        until = {int(age): date.fromisoformat(day) for age, day in values["until"].items()}
        return cls(statistics.from_json(values["ages"]), until, date.fromisoformat(values["since"]))


@dataclass(frozen=True, slots=True)
class _Case:
    """One imager and champion: its days in order, and when the alarms of its signals were last cleared."""

    version: Version
    source_id: int
    source: str
    reference: _Reference
    days: list[tuple[date, Ages]]
    cleared: dict[str, date]


def run(db: Database, settings: DriftSettings, now: datetime) -> Report:
    """Count new days, today included; open and close alarms; report every imager.

    Raises StoreError when there is no champion.
    """
    now, version = now.astimezone(UTC), db.read(versions.champion)
    rows = db.read(_counted, version, now)
    if rows:
        db.write(store.put_days, version, rows, now)
    db.write(store.clear_others, version, now)
    found: list[tuple[_Case, list[Finding]]] = []
    opened: set[int] = set()
    for source_id, name in db.read(store.imagers, version):
        case = db.read(_case, version, source_id, name, now)
        if _freeze(case, settings, now):
            db.write(_keep_reference, case, now)
        findings = _findings(case, settings, now.date())
        opened |= _sound(db, case, findings, settings, now)
        found.append((case, findings))
    alarms = db.read(store.open_alarms)
    new = [alarm for alarm in alarms if alarm.id in opened]
    for alarm in new:
        log.warning("drift", source=alarm.source, signal=alarm.signal, day=str(alarm.day), detail=alarm.detail)
    return Report(str(version), [_imager(case, findings, alarms, settings) for case, findings in found], new)


def look(db: Database, settings: DriftSettings, now: datetime) -> Report:
    """Report as :func:`run` would, and write nothing; an alarm that it would open has the id 0.

    Raises StoreError when there is no champion.
    """
    now = now.astimezone(UTC)

    version, cases, alarms = db.read(_current, now)
    imagers, new = [], []
    for case in cases:
        _freeze(case, settings, now)
        findings = _findings(case, settings, now.date())
        over = _over(case, _calm(case, findings, settings, now.date()), settings, now, alarms)
        mine = [alarm for alarm in alarms if alarm.source == case.source and alarm.id not in over]
        known = {alarm.signal for alarm in mine}
        sounding = [_alarm(case, finding, now) for finding in findings if finding.alarm and finding.signal not in known]
        imagers.append(_imager(case, findings, [*mine, *sounding], settings))
        new += sounding
    return Report(str(version), imagers, new)


def _current(connection: Any, now: datetime) -> tuple[Version, list[_Case], list[Alarm]]:
    """Read the champion, its imagers by name with the days counted up to now, and its open alarms."""
    version = versions.champion(connection)
    fresh = _counted(connection, version, now)
    names = dict(store.imagers(connection, version))
    names |= store.names(connection, {row.source_id for row in fresh} - names.keys())
    by_name = sorted(names.items(), key=lambda item: item[1])
    cases = [_case(connection, version, source_id, name, now, fresh) for source_id, name in by_name]
    return version, cases, [alarm for alarm in store.open_alarms(connection) if alarm.model == str(version)]


def clear(db: Database, source: str, *, new_reference: bool, actor: str, now: datetime) -> int:
    """Close an imager's alarms; images of today and before raise no more of them. Returns how many were open.

    With ``new_reference`` a new reference starts with tomorrow's images. Raises NotFoundError.
    """
    now, version = now.astimezone(UTC), db.read(versions.champion)
    source_id = db.read(find_source, source)

    def work(connection: Any) -> int:
        store.hold(connection, source_id)
        mine = [alarm for alarm in store.open_alarms(connection) if alarm.source == source]
        count = store.clear(connection, [alarm.id for alarm in mine], now)
        if new_reference:
            fresh = _Reference(since=now.date() + timedelta(days=1))
            empty = {"images": 0, "statistics": fresh.to_json(), "first_at": now, "last_at": now}
            store.put_reference(connection, version, source_id, now, **empty)
        detail = {"signals": sorted(alarm.signal for alarm in mine), "new_reference": new_reference}
        audit_log.write(connection, actor, "drift-clear", source, detail, now)
        return count

    return db.write(work)


def history(db: Database, source: str, days: int, now: datetime) -> list[DayLine]:
    """List the last days of an imager with the champion. Raises NotFoundError."""
    since = now.astimezone(UTC).date() - timedelta(days=days - 1)

    def work(connection: Any) -> list[store.Day]:
        version, source_id = versions.champion(connection), find_source(connection, source)
        return _days(connection, version, source_id, since, _counted(connection, version, now.astimezone(UTC)))

    return [_line(row) for row in db.read(work)]


def _line(row: store.Day) -> DayLine:
    cells = statistics.from_json(row.statistics).values()
    plates = [plate for cell in cells for plate in cell.plates.values()]
    sums = sum((plate.measures for plate in plates), np.zeros(len(statistics.MEASURES))).tolist()
    brightness, contrast, focus, confidence, _ = (round(s / row.images, 4) if row.images else None for s in sums)
    by_class = sum((plate.classes for plate in plates), np.zeros(len(CLASSES), np.int64))
    classes = dict(zip(map(str, CLASSES), by_class.tolist(), strict=True))
    names = {plate_id for cell in cells for plate_id in cell.plates}
    return DayLine(row.day, row.images, row.failures, len(names), brightness, contrast, focus, confidence, classes)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _whole(day: date, at: datetime) -> bool:
    """Return whether no more images can come to a day."""
    return at >= _midnight(day + timedelta(days=1)) + LATE


def _counted(connection: Any, version: Version, now: datetime) -> list[store.Day]:
    """Count the days that are not known whole, also those that have no images left."""
    today = now.date()
    promoted = store.promoted_at(connection, version).date()
    start = _first_open(store.counted(connection, version, today - CATCH_UP), max(today - CATCH_UP, promoted), today)
    found: dict[tuple[int, date], Ages] = {key: {} for key in store.written(connection, version, start)}
    for seen in store.observations(connection, version, _midnight(start), _midnight(today + timedelta(days=1))):
        statistics.add_observation(found.setdefault((seen.source_id, seen.at.date()), {}), seen)
    return [_row(source_id, day, ages) for (source_id, day), ages in found.items()]


def _first_open(counted: dict[date, datetime], first: date, today: date) -> date:
    """Find the first day to count, or to count again because it was not over then."""
    unfinished = [day for day, made_at in counted.items() if not _whole(day, made_at)]
    following = max(counted) + timedelta(days=1) if counted else first
    return max(first, min([*unfinished, following, today]))


def _row(source_id: int, day: date, ages: Ages) -> store.Day:
    images, failures = sum(c.images for c in ages.values()), sum(c.failed for c in ages.values())
    return store.Day(source_id, day, images, failures, statistics.to_json(ages))


def _case(
    connection: Any, version: Version, source_id: int, source: str, now: datetime, fresh: Iterable[store.Day] = ()
) -> _Case:
    rows = _days(connection, version, source_id, now.date() - COLLECTED, fresh)
    days = [(row.day, statistics.from_json(row.statistics)) for row in rows]
    reference = _Reference.from_json(store.reference(connection, version, source_id))
    cleared = store.last_cleared(connection, version, source_id)
    return _Case(version, source_id, source, reference, days, cleared)


def _days(
    connection: Any, version: Version, source_id: int, since: date, fresh: Iterable[store.Day]
) -> list[store.Day]:
    """List days of an imager in order; a day counted just now replaces the stored one."""
    kept = {row.day: row for row in store.days(connection, version, source_id, since)}
    kept |= {row.day: row for row in fresh if row.source_id == source_id and row.day >= since}
    return [kept[day] for day in sorted(kept)]


def _freeze(case: _Case, settings: DriftSettings, now: datetime) -> bool:
    """Freeze the reference of each age with enough images. Returns whether there are such."""
    reference = case.reference
    missing = [age for age in range(len(AGE_NAMES)) if age not in reference.cells]
    grown = False
    for age in missing:
        cell = Cell()
        for day, ages in case.days:
            if day < reference.since or age not in ages or not _whole(day, now):
                continue
            cell.add(ages[age])
            if _enough(cell, settings):
                reference.cells[age], reference.until[age], grown = cell, day, True
                break
    return grown


def _keep_reference(connection: Any, case: _Case, now: datetime) -> None:
    reference = case.reference
    values = {
        "images": sum(cell.images for cell in reference.cells.values()),
        "statistics": reference.to_json(),
        "first_at": _midnight(max(reference.since, case.days[0][0])),
        "last_at": _midnight(max(reference.until.values()) + timedelta(days=1)),
    }
    store.put_reference(connection, case.version, case.source_id, now, **values)


def _enough(cell: Cell, settings: DriftSettings) -> bool:
    return cell.images >= settings.reference_images and len(cell.plates) >= REFERENCE_PLATES


def _window(case: _Case, first: date, last: date) -> Ages:
    """Sum the images from one day to another, without those of the reference."""
    later = (
        {age: cell for age, cell in ages.items() if day > case.reference.until.get(age, day)}
        for day, ages in case.days
        if first <= day <= last
    )
    return statistics.total(later)


def _findings(case: _Case, settings: DriftSettings, today: date) -> list[Finding]:
    """Choose one finding per signal: of the span that raises an alarm, or else of the whole window."""
    if not case.reference.cells:
        return []
    found: dict[str, Finding] = {}
    for days in _spans(settings):
        first = today - timedelta(days=days - 1)
        for start in {first} | {max(first, day + timedelta(days=1)) for day in case.cleared.values()}:
            for finding in _judged(case, settings, start, today, days):
                mine = _start(case, finding.signal, first) == start
                if mine and (finding.alarm or not (finding.signal in found and found[finding.signal].alarm)):
                    found[finding.signal] = finding
    return list(found.values())


def _spans(settings: DriftSettings) -> list[int]:
    return sorted({min(days, settings.window_days) for days in (*RECENT_DAYS, settings.window_days)})


def _start(case: _Case, signal: str, first: date) -> date:
    """Where a window begins: what was there when an alarm was cleared raises none again."""
    return max(first, case.cleared[signal] + timedelta(days=1)) if signal in case.cleared else first


def _judged(case: _Case, settings: DriftSettings, first: date, last: date, days: int) -> list[Finding]:
    return comparison.judge(
        case.reference.cells,
        _window(case, first, last),
        source=case.source,
        days=days,
        tests=len(_spans(settings)),
        least_images=settings.min_images,
        level=settings.p_value,
    )


def _sound(db: Database, case: _Case, findings: list[Finding], settings: DriftSettings, now: datetime) -> set[int]:
    """Open and close alarms. Returns the ids of those opened."""
    loud = [finding for finding in findings if finding.alarm]
    calm = _calm(case, findings, settings, now.date())

    def write(connection: Any) -> set[int]:
        store.hold(connection, case.source_id)
        over = _over(case, calm, settings, now, store.open_alarms(connection))
        store.clear(connection, over, now)
        ids = (_opened(connection, case, finding, now) for finding in loud)
        return {alarm_id for alarm_id in ids if alarm_id is not None}

    return db.write(write) if loud or calm else set()


def _over(case: _Case, calm: set[str], settings: DriftSettings, now: datetime, alarms: list[Alarm]) -> list[int]:
    """List ids of the imager's alarms to close: of signals that are calm again, and raised before the window."""
    since = now.date() - timedelta(days=settings.window_days)
    return [a.id for a in alarms if a.source == case.source and a.signal in calm and a.day <= since]


def _alarm(case: _Case, finding: Finding, now: datetime) -> Alarm:
    """Make the alarm that a finding would open."""
    return Alarm(
        0, case.source, case.version.modality, str(case.version), finding.signal, now.date(),
        finding.value, finding.reference, finding.p_value, finding.detail, now,
    )  # fmt: skip


def _calm(case: _Case, findings: list[Finding], settings: DriftSettings, today: date) -> set[str]:
    """Find signals that are as before again: no window and no day of the longest one raises an alarm."""
    calm = {f.signal for f in findings if not f.alarm and (f.p_value >= CALM or f.shift < f.least / 2)}
    for back in range(1, settings.window_days):
        day = today - timedelta(days=back)
        calm -= {finding.signal for finding in _judged(case, settings, day, day, 1) if finding.alarm}
    return calm


def _opened(connection: Any, case: _Case, finding: Finding, now: datetime) -> int | None:
    columns = {name: getattr(finding, name) for name in ("signal", "value", "reference", "p_value", "detail")}
    return store.raise_alarm(connection, case.version, case.source_id, day=now.date(), now=now, **columns)


def _imager(case: _Case, findings: list[Finding], alarms: list[Alarm], settings: DriftSettings) -> Imager:
    mine = [alarm for alarm in alarms if alarm.source == case.source]
    state, note = _state(case, findings, settings)
    return Imager(case.source, case.version.modality, str(case.version), ALARM if mine else state, note, findings, mine)


def _state(case: _Case, findings: list[Finding], settings: DriftSettings) -> tuple[str, str]:
    cells = case.reference.cells
    if not cells:
        seen = statistics.total(ages for day, ages in case.days if day >= case.reference.since).values()
        images = max((cell.images for cell in seen), default=0)
        plates = max((len(cell.plates) for cell in seen), default=0)
        wanted = (
            f"{images} of {count(settings.reference_images, 'image')}, {plates} of {REFERENCE_PLATES} plates of one age"
        )
        return COLLECTING, wanted
    ages = ", ".join(AGE_NAMES[age] for age in sorted(cells))
    compared = f"plates of {ages} days are compared"
    return (QUIET, compared) if findings else (TOO_FEW, f"{compared}; {settings.min_images} images are needed")
