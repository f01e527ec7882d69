"""Drift monitor: alarms per imager and champion when images or predictions differ from the reference.

Any number of processes may call :func:`run` at any time: it writes the same days again, opens an alarm once, and costs
as much as the images since the last whole day.

The *reference* of a plate age are the first ``reference_images`` new images of that age, and of
REFERENCE_PLATES plates, in whole days; then it is frozen. There is one for each kind of signal:

* of the images: whatever champion scored them, so that decay is found that is slower than models change;
* of their focus: the same, as long as champions take images of as many pixels;
* of the scores: a new champion starts a new one, because the predictions of another model cannot be compared; after a
  rollback the old one counts again.

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
from marcod.drift.comparison import FOCUS, IMAGES, KINDS, REFERENCE_PLATES, SCORES, DriftFinding, kind_of
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
class ImagerDrift:
    """State of one imager with the champion; ``note`` says what a state waits for."""

    source: str
    modality: str
    model: str
    state: str
    note: str
    findings: list[DriftFinding]
    alarms: list[Alarm]


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Result of :func:`run`; ``new`` are the alarms that it opened."""

    model: str
    imagers: list[ImagerDrift]
    new: list[Alarm]


@dataclass(slots=True)
class _Reference:
    """Frozen reference: cells by age, the last day of each, and the first day that counts.

    ``view`` names the pixels that the model takes, "" where it is not known.
    """

    cells: Ages = field(default_factory=dict)
    until: dict[int, date] = field(default_factory=dict)
    since: date = date.min
    view: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "since": self.since.isoformat(),
            "until": {str(age): day.isoformat() for age, day in self.until.items()},
            "ages": statistics.to_json(self.cells),
            "view": self.view,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "_Reference":
        until = {int(age): date.fromisoformat(day) for age, day in values["until"].items()}
        cells = statistics.from_json(values["ages"])
        return cls(cells, until, date.fromisoformat(values["since"]), values.get("view", ""))


Days = list[tuple[date, Ages]]


@dataclass(frozen=True, slots=True)
class _Part:
    """One kind of signals of an imager: the reference, and the days that may be compared with it, in order."""

    reference: _Reference
    days: Days


@dataclass(frozen=True, slots=True)
class _Case:
    """One imager and champion: each kind of signals, and when the alarms of its signals were last cleared."""

    version: Version
    source_id: int
    source: str
    parts: dict[str, _Part]
    cleared: dict[str, date]


def run(db: Database, settings: DriftSettings, now: datetime, view: str = "") -> DriftReport:
    """Count new days, today included; open and close alarms; report every imager.

    ``view`` names the pixels that the champion takes; where it is known and changes, focus has a new reference.
    Raises StoreError when there is no champion.
    """
    now, version = now.astimezone(UTC), db.read(versions.champion)
    rows = db.read(_counted, version, now, view)
    if rows:
        db.write(store.put_days, version, rows, now)
    db.write(store.clear_others, version, now)
    found: list[tuple[_Case, list[DriftFinding]]] = []
    opened: set[int] = set()
    for source_id, name in db.read(store.imagers, version, now.date() - COLLECTED):
        case = db.read(_case, version, source_id, name, now, view)
        if _freeze(case, settings, now):
            db.write(_keep_reference, case, now)
        findings = _findings(case, settings, now.date())
        opened |= _sound(db, case, findings, settings, now)
        found.append((case, findings))
    alarms = db.read(store.open_alarms)
    new = [alarm for alarm in alarms if alarm.id in opened]
    for alarm in new:
        log.warning("drift", source=alarm.source, signal=alarm.signal, day=str(alarm.day), detail=alarm.detail)
    return DriftReport(str(version), [_imager(case, findings, alarms, settings) for case, findings in found], new)


def look(db: Database, settings: DriftSettings, now: datetime, view: str = "") -> DriftReport:
    """Report as :func:`run` would, and write nothing; an alarm that it would open has the id 0.

    Raises StoreError when there is no champion.
    """
    now = now.astimezone(UTC)

    version, cases, alarms = db.read(_current, now, view)
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
    return DriftReport(str(version), imagers, new)


def _current(connection: Any, now: datetime, view: str) -> tuple[Version, list[_Case], list[Alarm]]:
    """Read the champion, its imagers by name with the days counted up to now, and its open alarms."""
    version = versions.champion(connection)
    fresh = _counted(connection, version, now, view)
    names = dict(store.imagers(connection, version, now.date() - COLLECTED))
    names |= store.names(connection, {row.source_id for row in fresh} - names.keys())
    by_name = sorted(names.items(), key=lambda item: item[1])
    cases = [_case(connection, version, source_id, name, now, view, fresh) for source_id, name in by_name]
    return version, cases, [alarm for alarm in store.open_alarms(connection) if _lasts(alarm, version)]


def _lasts(alarm: Alarm, version: Version) -> bool:
    """Return whether an open alarm concerns this champion."""
    lasting = alarm.signal in store.LASTING and alarm.modality == version.modality
    return lasting or alarm.model == str(version)


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
            stored = _stored(dict.fromkeys(KINDS, fresh))
            empty = {"images": 0, "statistics": stored, "first_at": now, "last_at": now}
            store.put_reference(connection, version, source_id, now, **empty)
        detail = {"signals": sorted(alarm.signal for alarm in mine), "new_reference": new_reference}
        audit_log.write(connection, actor, "drift-clear", source, detail, now)
        return count

    return db.write(work)


def history(db: Database, source: str, days: int, now: datetime) -> list[DayLine]:
    """List the last days of an imager, under whatever champion. Raises NotFoundError."""
    since = now.astimezone(UTC).date() - timedelta(days=days - 1)

    def work(connection: Any) -> list[store.Day]:
        version, source_id = versions.champion(connection), find_source(connection, source)
        return _days(connection, version, source_id, since, _counted(connection, version, now.astimezone(UTC), ""))

    return [_line(day, ages) for day, ages in _by_day(db.read(work))]


def _line(day: date, ages: Ages) -> DayLine:
    cells = ages.values()
    images, failures = sum(cell.images for cell in cells), sum(cell.failed for cell in cells)
    plates = [plate for cell in cells for plate in cell.plates.values()]
    sums = sum((plate.measures for plate in plates), np.zeros(len(statistics.MEASURES))).tolist()
    brightness, contrast, focus, confidence, _ = (round(s / images, 4) if images else None for s in sums)
    by_class = sum((plate.classes for plate in plates), np.zeros(len(CLASSES), np.int64))
    classes = dict(zip(map(str, CLASSES), by_class.tolist(), strict=True))
    names = {plate_id for cell in cells for plate_id in cell.plates}
    return DayLine(day, images, failures, len(names), brightness, contrast, focus, confidence, classes)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _whole(day: date, at: datetime) -> bool:
    """Return whether no more images can come to a day."""
    return at >= _midnight(day + timedelta(days=1)) + LATE


def _counted(connection: Any, version: Version, now: datetime, view: str) -> list[store.Day]:
    """Count the days that are not known whole, also those that have no images left."""
    today = now.date()
    promoted = store.promoted_at(connection, version).date()
    start = _first_open(store.counted(connection, version, today - CATCH_UP), max(today - CATCH_UP, promoted), today)
    found: dict[tuple[int, date], Ages] = {key: {} for key in store.written(connection, version, start)}
    for seen in store.observations(connection, version, _midnight(start), _midnight(today + timedelta(days=1))):
        statistics.add_observation(found.setdefault((seen.source_id, seen.at.date()), {}), seen)
    return [_row(version, source_id, day, ages, view) for (source_id, day), ages in found.items()]


def _first_open(counted: dict[date, datetime], first: date, today: date) -> date:
    """Find the first day to count, or to count again because it was not over then."""
    unfinished = [day for day, made_at in counted.items() if not _whole(day, made_at)]
    following = max(counted) + timedelta(days=1) if counted else first
    return max(first, min([*unfinished, following, today]))


def _row(version: Version, source_id: int, day: date, ages: Ages, view: str) -> store.Day:
    images, failures = sum(c.images for c in ages.values()), sum(c.failed for c in ages.values())
    kept = statistics.to_json(ages) | ({_VIEW: view} if view else {})
    return store.Day(source_id, version.id, day, images, failures, kept)


_VIEW: Final = "view"
"""Key of a day's statistics, beside the ages."""


def _case(
    connection: Any,
    version: Version,
    source_id: int,
    source: str,
    now: datetime,
    view: str,
    fresh: Iterable[store.Day] = (),
) -> _Case:
    rows = _days(connection, version, source_id, now.date() - COLLECTED, fresh)
    references = _references(connection, version, source_id, view)
    own = [row for row in rows if row.version_id == version.id]
    alike = [row for row in rows if _alike(row.statistics.get(_VIEW, ""), view)]
    days = {IMAGES: rows, FOCUS: alike, SCORES: own}
    parts = {kind: _Part(references[kind], _by_day(days[kind])) for kind in KINDS}
    return _Case(version, source_id, source, parts, store.last_cleared(connection, version, source_id))


def _alike(one: str, other: str) -> bool:
    """Return whether two models take images alike, as far as is known."""
    return not one or not other or one == other


def _references(connection: Any, version: Version, source_id: int, view: str) -> dict[str, _Reference]:
    """Read the champion's own reference of its scores, and the latest of the images and of their focus."""
    stored = store.references(connection, version, source_id)
    own = next((values for version_id, values in stored if version_id == version.id), None)
    found = {SCORES: _Reference(view=view) if own is None else _Reference.from_json(own)}
    for kind in (IMAGES, FOCUS):
        # An older marcod kept one for all signals, which the last champion that has one brings along.
        latest = next((values.get(kind, values) for _, values in stored), None)
        found[kind] = _Reference(view=view) if latest is None else _Reference.from_json(latest)
    if not _alike(found[FOCUS].view, view):
        found[FOCUS] = _Reference(view=view)
    found[FOCUS].view = view or found[FOCUS].view
    return found


def _stored(references: dict[str, _Reference]) -> dict[str, Any]:
    """Return an imager's references for JSON: the scores' at the top, each other one under its kind."""
    others = {kind: references[kind].to_json() for kind in (IMAGES, FOCUS)}
    return references[SCORES].to_json() | others


def _days(
    connection: Any, version: Version, source_id: int, since: date, fresh: Iterable[store.Day]
) -> list[store.Day]:
    """List days of an imager in order, under every champion; a day counted just now replaces the stored one."""
    kept = {(row.day, row.version_id): row for row in store.days(connection, version.modality, source_id, since)}
    kept |= {(row.day, row.version_id): row for row in fresh if row.source_id == source_id and row.day >= since}
    return [kept[key] for key in sorted(kept)]


def _by_day(rows: Iterable[store.Day]) -> Days:
    """Sum the rows of each day, which has several when the champion changed."""
    found: dict[date, list[Ages]] = {}
    for row in rows:
        ages = {key: cell for key, cell in row.statistics.items() if key != _VIEW}
        found.setdefault(row.day, []).append(statistics.from_json(ages))
    return [(day, statistics.total(parts)) for day, parts in sorted(found.items())]


def _freeze(case: _Case, settings: DriftSettings, now: datetime) -> bool:
    """Freeze the reference of each kind and age with enough images. Returns whether there are such."""
    return True in [_freeze_part(part, settings, now) for part in case.parts.values()]


def _freeze_part(part: _Part, settings: DriftSettings, now: datetime) -> bool:
    reference = part.reference
    missing = [age for age in range(len(AGE_NAMES)) if age not in reference.cells]
    grown = False
    for age in missing:
        cell = Cell()
        for day, ages in part.days:
            if day < reference.since or age not in ages or not _whole(day, now):
                continue
            cell.add(ages[age])
            if _enough(cell, settings):
                reference.cells[age], reference.until[age], grown = cell, day, True
                break
    return grown


def _keep_reference(connection: Any, case: _Case, now: datetime) -> None:
    references = {kind: part.reference for kind, part in case.parts.items()}
    until = [day for reference in references.values() for day in reference.until.values()]
    first = min(part.days[0][0] for part in case.parts.values() if part.days)
    values = {
        "images": sum(cell.images for cell in references[IMAGES].cells.values()),
        "statistics": _stored(references),
        "first_at": _midnight(max(references[IMAGES].since, first)),
        "last_at": _midnight(max(until) + timedelta(days=1)),
    }
    store.put_reference(connection, case.version, case.source_id, now, **values)


def _enough(cell: Cell, settings: DriftSettings) -> bool:
    return cell.images >= settings.reference_images and len(cell.plates) >= REFERENCE_PLATES


def _window(part: _Part, first: date, last: date) -> Ages:
    """Sum the images from one day to another, without those of the reference."""
    later = (
        {age: cell for age, cell in ages.items() if day > part.reference.until.get(age, day)}
        for day, ages in part.days
        if first <= day <= last
    )
    return statistics.total(later)


def _findings(case: _Case, settings: DriftSettings, today: date) -> list[DriftFinding]:
    """Choose one finding per signal: of the span that raises an alarm, or else of the whole window."""
    found: dict[str, DriftFinding] = {}
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


def _judged(case: _Case, settings: DriftSettings, first: date, last: date, days: int) -> list[DriftFinding]:
    return [
        finding
        for kind, part in case.parts.items()
        if part.reference.cells
        for finding in comparison.judge(
            part.reference.cells,
            _window(part, first, last),
            source=case.source,
            days=days,
            tests=len(_spans(settings)),
            least_images=settings.min_images,
            level=settings.p_value,
            kinds=(kind,),
        )
    ]


def _sound(db: Database, case: _Case, findings: list[DriftFinding], settings: DriftSettings, now: datetime) -> set[int]:
    """Open and close alarms. Returns the ids of those opened."""
    loud = [finding for finding in findings if finding.alarm]
    calm = _calm(case, findings, settings, now.date())

    def write(connection: Any) -> set[int]:
        store.hold(connection, case.source_id)
        over = _over(case, calm, settings, now, store.open_alarms(connection))
        store.clear(connection, over, now)
        ids = (_opened(connection, case, finding, now) for finding in loud)
        return {alarm_id for alarm_id in ids if alarm_id is not None}

    return db.write(write) if loud or calm or not case.parts[FOCUS].reference.cells else set()


def _over(case: _Case, calm: set[str], settings: DriftSettings, now: datetime, alarms: list[Alarm]) -> list[int]:
    """List ids of the imager's alarms to close.

    They are of signals that are calm again and were raised before the window, or were raised under a former champion
    and can no longer be compared.
    """
    since = now.date() - timedelta(days=settings.window_days)
    mine = [alarm for alarm in alarms if alarm.source == case.source]
    calmed = {alarm.id for alarm in mine if alarm.signal in calm and alarm.day <= since}
    former = [alarm for alarm in mine if alarm.model != str(case.version)]
    lost = {alarm.id for alarm in former if not case.parts[kind_of(alarm.signal)].reference.cells}
    return sorted(calmed | lost)


def _alarm(case: _Case, finding: DriftFinding, now: datetime) -> Alarm:
    """Make the alarm that a finding would open."""
    return Alarm(
        0, case.source, case.version.modality, str(case.version), finding.signal, now.date(),
        finding.value, finding.reference, finding.p_value, finding.detail, now,
    )  # fmt: skip


def _calm(case: _Case, findings: list[DriftFinding], settings: DriftSettings, today: date) -> set[str]:
    """Find signals that are as before again: no window and no day of the longest one raises an alarm."""
    calm = {f.signal for f in findings if not f.alarm and (f.p_value >= CALM or f.shift < f.least / 2)}
    for back in range(1, settings.window_days):
        day = today - timedelta(days=back)
        calm -= {finding.signal for finding in _judged(case, settings, day, day, 1) if finding.alarm}
    return calm


def _opened(connection: Any, case: _Case, finding: DriftFinding, now: datetime) -> int | None:
    columns = {name: getattr(finding, name) for name in ("signal", "value", "reference", "p_value", "detail")}
    return store.raise_alarm(connection, case.version, case.source_id, day=now.date(), now=now, **columns)


def _imager(case: _Case, findings: list[DriftFinding], alarms: list[Alarm], settings: DriftSettings) -> ImagerDrift:
    mine = [alarm for alarm in alarms if alarm.source == case.source]
    state, note = _state(case, findings, settings)
    return ImagerDrift(
        case.source, case.version.modality, str(case.version), ALARM if mine else state, note, findings, mine
    )


def _state(case: _Case, findings: list[DriftFinding], settings: DriftSettings) -> tuple[str, str]:
    images = case.parts[IMAGES]
    if not images.reference.cells:
        return COLLECTING, _collected(images, settings)
    ages = ", ".join(AGE_NAMES[age] for age in sorted(images.reference.cells))
    compared = f"plates of {ages} days are compared"
    for kind, what in ((FOCUS, "focus"), (SCORES, "the champion's scores")):
        if not case.parts[kind].reference.cells:
            compared += f"; {what} not yet: {_collected(case.parts[kind], settings)}"
    return (QUIET, compared) if findings else (TOO_FEW, f"{compared}; {settings.min_images} images are needed")


def _collected(part: _Part, settings: DriftSettings) -> str:
    """Write how far the reference has grown that has most."""
    seen = statistics.total(ages for day, ages in part.days if day >= part.reference.since).values()
    images = max((cell.images for cell in seen), default=0)
    plates = max((len(cell.plates) for cell in seen), default=0)
    return f"{images} of {count(settings.reference_images, 'image')}, {plates} of {REFERENCE_PLATES} plates of one age"
