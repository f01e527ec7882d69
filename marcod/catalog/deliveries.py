"""Recording of deliveries: plates, drops, inspections and images by their natural keys.

A path seen twice changes nothing; a path whose size or time changed is queued again. Everything one call
records, jobs and summaries included, is one transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.catalog import barcode_reuse
from marcod.database.engine import insert
from marcod.database.rows import select_in
from marcod.database.schema import drop, image, inspection, inspection_summary, label, model_version, plate
from marcod.domain import RECORDED_WARNINGS, DropImage, folded, path_text
from marcod.store import copies, derived, drops, locks, plate_names, queue, results, versions
from marcod.store.selects import WAS_CHAMPION

PORTION: Final = 1_000
"""Images that one transaction records at most; it locks plates, then images, each in one order."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One settled file: its path relative to the source's root, its stat, and what the path says."""

    path: str
    size: int
    mtime_ns: int
    image: DropImage


@dataclass(frozen=True, slots=True)
class Recorded:
    """Counts of the changes of one call of :func:`record`.

    ``unscored`` are new images of another modality, ``reused`` those whose barcode may be that of another plate by now.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    queued: int = 0
    unscored: int = 0
    reused: int = 0
    reused_example: str | None = None

    def __add__(self, other: "Recorded") -> "Recorded":
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        return Recorded(**sums, reused_example=self.reused_example or other.reused_example)


_SUMMED: Final = ("new", "changed", "unchanged", "queued", "unscored", "reused")


class Known(NamedTuple):
    """A recorded file as it stood; ``warnings`` are kinds of warning, parted by commas."""

    size: int
    mtime_ns: int
    warnings: str | None = None


def known(connection: Connection, source_id: int, paths: Sequence[str]) -> dict[str, Known]:
    """Look up which paths are recorded, and their stat then, to leave unchanged files alone cheaply.

    An image whose file was gone has an impossible stat, so that a file that came back is recorded again.
    """
    size = sa.case((image.c.gone_at.is_not(None), -1), else_=image.c.size)
    recorded = sa.select(image.c.path, size, image.c.mtime_ns, image.c.warnings).where(image.c.source_id == source_id)
    original = {path_text(path): path for path in paths}
    rows = select_in(connection, recorded, image.c.path, original)
    return {original[path]: Known(*stat) for path, *stat in rows}


@dataclass(frozen=True, slots=True)
class _Serving:
    """Versions that score new images: the champion, and ``behind`` it the challenger and who becomes champion."""

    champion: versions.Version
    behind: tuple[versions.Version, ...]

    def __iter__(self) -> Iterator[versions.Version]:
        yield self.champion
        yield from self.behind


def record(connection: Connection, source_id: int, sightings: Sequence[Sighting], now: datetime) -> Recorded:
    """Insert what is new, queue what must be scored, refresh every row that follows. Counts the champion's work.

    At most :data:`PORTION` images; raises ValueError for more.
    """
    seen, serving = _portion(sightings), _serving(connection)
    before = known(connection, source_id, [s.path for s in seen])
    fresh = [s for s in seen if s.path not in before]
    changed = [s for s in seen if s.path in before and _is_changed(s, before[s.path])]
    places = _places(connection, source_id, fresh + changed, now)
    _hold_behind(connection, source_id, changed, places, serving)
    inserted = _insert_images(connection, source_id, fresh, places, now)
    former = _former(connection, source_id, changed)
    altered = [_update_image(connection, s, former[path_text(s.path)], places[s.path], now) for s in changed]
    return _follow(connection, len(seen), inserted, former, altered, serving, now)


def reread(connection: Connection, source_id: int, sightings: Sequence[Sighting], now: datetime) -> Recorded:
    """Let recorded images show what their paths are read as now, with every row that follows.

    Nobody looked at the files: images that are gone stay gone, and the others are as they were.
    """
    seen, serving = _portion(sightings), _serving(connection)
    recorded = known(connection, source_id, [s.path for s in seen])
    there = [s for s in seen if s.path in recorded]
    places = _places(connection, source_id, there, now)
    _hold_behind(connection, source_id, there, places, serving)
    former = _former(connection, source_id, there)
    there = [s for s in there if path_text(s.path) in former]
    changed = [s for s in there if _reads_otherwise(s, former[path_text(s.path)], places[s.path])]
    former = {path_text(s.path): former[path_text(s.path)] for s in changed}
    altered = [_reread_image(connection, s, former[path_text(s.path)], places[s.path]) for s in changed]
    relit = [new.image_id for old, new in _pairs(former, altered) if old.modality != new.modality]
    results.keep_score(connection, relit)
    return _follow(connection, len(seen), [], former, altered, serving, now)


def _serving(connection: Connection) -> _Serving:
    """Lock the champion and look up who serves."""
    champion = versions.champion(connection, lock=True)
    return _Serving(champion, tuple(v for v in versions.scoring(connection) if v != champion))


def _portion(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Sort by path, so that two who record the same files insert them in one order. The last of a path counts."""
    if len(sightings) > PORTION:
        raise ValueError(f"{len(sightings)} images for one transaction; {PORTION} are allowed")
    return list({path_text(s.path): s for s in sorted(sightings, key=lambda s: s.path)}.values())


def _behind(connection: Connection, touched: set[int], serving: _Serving) -> set[int]:
    """Plates of these inspections that a former champion saw in part; held, since their other images get jobs too.

    Two who record the same plate would otherwise wait for each other's jobs in a ring.
    """
    plates_touched = sa.select(inspection.c.plate_id).where(inspection.c.id.in_(touched))
    former = sa.and_(
        inspection.c.plate_id.in_(plates_touched),
        inspection_summary.c.model_version_id.not_in([version.id for version in serving]),
        WAS_CHAMPION,
    )
    plates = connection.execute(
        sa.select(inspection.c.plate_id)
        .join(inspection_summary, inspection_summary.c.inspection_id == inspection.c.id)
        .join(model_version, model_version.c.id == inspection_summary.c.model_version_id)
        .where(former)
        .distinct()
    ).scalars()
    found = {int(plate_id) for plate_id in plates}
    locks.hold(connection, plates=found)
    return found


def _hold_behind(
    connection: Connection,
    source_id: int,
    changed: Sequence[Sighting],
    places: "Mapping[str, _Place]",
    serving: _Serving,
) -> None:
    """Lock the plates that are caught up later, before any image, as the order of locks demands."""
    paths = [path_text(s.path) for s in changed]
    former = sa.select(image.c.inspection_id).where(image.c.source_id == source_id, image.c.path.in_(paths))
    touched = {place.inspection_id for place in places.values()} | set(connection.execute(former).scalars())
    if touched:
        _behind(connection, touched, serving)


def _is_changed(sighting: Sighting, before: Known) -> bool:
    said = _warned(kind for kind in _kinds(before.warnings) if kind not in RECORDED_WARNINGS)
    return (before.size, before.mtime_ns, said) != (sighting.size, sighting.mtime_ns, _doubts(sighting))


def _reads_otherwise(sighting: Sighting, former: Any, place: "_Place") -> bool:
    new = _values(sighting, place, former)
    return any(getattr(former, name) != value for name, value in new.items())


def _follow(
    connection: Connection,
    seen: int,
    inserted: list["_Row"],
    former: dict[str, Any],
    altered: list["_Row"],
    serving: _Serving,
    now: datetime,
) -> Recorded:
    """Bring labels, copies, the queue and derived rows after images that are new or differ from their former rows."""
    other = [new for old, new in _pairs(former, altered) if new.content != "same" or _shows_other(old, new)]
    copies.release(connection, [row.image_id for row in other], now)
    # Bytes that are known may have a copy where the image is now.
    copies.find_again(
        connection, [row.image_id for row in other], {r.id for r in former.values() if r.same_as_id is None}
    )
    _move_labels(connection, former.values(), altered)
    touched = {row.inspection_id for row in (*former.values(), *inserted, *altered)}
    behind = _behind(connection, touched, serving) if touched else set()
    queued = _queue(connection, inserted, altered, serving, now)
    unscored = sum(1 for row in inserted if row.modality != serving.champion.modality)
    moved = {
        drop_id
        for old, new in _pairs(former, altered)
        if _elsewhere(old, new) or old.gone_at is not None or old.same_as_id is not None or new in other
        for drop_id in (old.drop_id, new.drop_id)
    }
    # A drop that is known from before has one inspection more.
    moved |= drops.with_rows(connection, {row.drop_id for row in inserted})
    here = {row.image_id: row.inspection_id for row in inserted}
    reused = barcode_reuse.warn(connection, here, _pairs(former, altered))
    unchanged = seen - len(inserted) - len(altered)
    counts = len(inserted), len(altered), unchanged, queued, unscored
    if behind:
        # The champion sees what a former one did: the rest of the plate, and so its drops over time.
        queue.enqueue_rescore(connection, serving.champion.id, now, behind)
    if touched:
        derived.refresh(connection, moved, touched, now, serving=list(serving))
    return Recorded(*counts, *reused)


def _pairs(former: Mapping[str, Any], altered: list["_Row"]) -> list[tuple[Any, "_Row"]]:
    """Each altered image as it was and as it is."""
    before = {row.id: row for row in former.values()}
    return [(before[row.image_id], row) for row in altered]


def _shows_other(old: Any, new: "_Row") -> bool:
    """Tell if an image is read as another than it was, in anything that its copies have in common with it."""
    return _elsewhere(old, new) or (old.profile, old.region) != (new.profile, new.region)


def _elsewhere(old: Any, new: "_Row") -> bool:
    """Tell if an image shows another drop, inspection or light than it was recorded with."""
    return (old.drop_id, old.inspection_id, old.modality) != (new.drop_id, new.inspection_id, new.modality)


def _move_labels(connection: Connection, former: Iterable[Any], altered: list["_Row"]) -> None:
    """Labels given to an image go with it when it turns out to show another drop or inspection."""
    before = {row.id: (row.drop_id, row.inspection_id) for row in former}
    moved = [
        {"image_key": row.image_id, "new_drop": row.drop_id, "new_inspection": row.inspection_id}
        for row in altered
        if before[row.image_id] != (row.drop_id, row.inspection_id)
    ]
    if moved:
        statement = sa.update(label).where(label.c.image_id == sa.bindparam("image_key"))
        there: dict[str, Any] = {"drop_id": sa.bindparam("new_drop"), "inspection_id": sa.bindparam("new_inspection")}
        connection.execute(statement.values(there), moved)


Content = Literal["new", "touched", "same"]


@dataclass(frozen=True, slots=True)
class _Row:
    """An image that was inserted or updated. ``content`` tells whether its bytes may be others than those scored."""

    image_id: int
    drop_id: int
    inspection_id: int
    modality: str
    profile: str | None
    region: int | None
    captured_at: datetime | None
    content: Content


def _queue(connection: Connection, inserted: list[_Row], altered: list[_Row], serving: _Serving, now: datetime) -> int:
    """Queue what may have to be scored; a file that was only touched waits behind everything new, as shadows do."""
    queue.reset(connection, [row.image_id for row in altered if row.content != "same"], now)
    queue.cancel_misfits(connection, [row.image_id for row in altered])
    reread = [row.image_id for row in altered if row.content == "same"]
    fresh, touched = (
        {
            v: [r.image_id for r in inserted + altered if (r.content, r.modality) == (content, v.modality)]
            for v in serving
        }
        for content in ("new", "touched")
    )
    queued = queue.enqueue(connection, fresh[serving.champion], serving.champion.id, now)
    queued += queue.enqueue(connection, touched[serving.champion], serving.champion.id, now, priority=queue.RESCORE)
    for shadow in serving.behind:
        queue.enqueue(connection, fresh[shadow] + touched[shadow], shadow.id, now, priority=queue.RESCORE)
    # Read again in another light, an image may be owed that no version had to score before.
    owed = [queue.enqueue_rescore(connection, version.id, now, image_ids=reread) for version in serving if reread]
    return queued + sum(owed[:1])


def _text(found: str | None) -> str | None:
    """Encode a part of a path, which may hold any bytes."""
    return None if found is None else path_text(found)


@dataclass(frozen=True, slots=True)
class _Place:
    drop_id: int
    inspection_id: int


def _places(connection: Connection, source_id: int, seen: list[Sighting], now: datetime) -> dict[str, _Place]:
    """Drop and inspection of every sighting, by its path; plates, inspections and drops are made where new."""
    if not seen:
        return {}
    plates = _plates(connection, source_id, seen, now)
    inspections = _inspections(connection, plates, seen, now)
    drops = _drops(connection, plates, seen)
    places = {}
    for sighting in seen:
        found = sighting.image
        plate_id = plates[path_text(found.plate_key)]
        places[sighting.path] = _Place(
            drops[plate_id, found.row, found.column, found.drop],
            inspections[plate_id, path_text(found.inspection_key)],
        )
    return places


def _values(sighting: Sighting, place: _Place, former: Any = None) -> dict[str, Any]:
    """Build the columns that a path and a stat decide; warnings that no path gives stay."""
    kept = [] if former is None else [kind for kind in _kinds(former.warnings) if kind in RECORDED_WARNINGS]
    return {
        "drop_id": place.drop_id,
        "inspection_id": place.inspection_id,
        "modality": str(sighting.image.modality),
        "profile": _text(sighting.image.profile),
        "region": sighting.image.region,
        "captured_at": sighting.image.captured_at,
        "size": sighting.size,
        "mtime_ns": sighting.mtime_ns,
        "warnings": _warned([*_kinds(_doubts(sighting)), *kept]),
    }


def _doubts(sighting: Sighting) -> str | None:
    """List the kinds of warning that an image's path gives, separated by commas."""
    return _warned(dict.fromkeys(warning.kind for warning in sighting.image.warnings))


def _kinds(warnings: str | None) -> list[str]:
    return warnings.split(",") if warnings else []


def _warned(kinds: Iterable[str]) -> str | None:
    return ",".join(kinds) or None


def _insert_images(
    connection: Connection, source_id: int, fresh: list[Sighting], places: dict[str, _Place], now: datetime
) -> list[_Row]:
    if not fresh:
        return []
    rows = [
        {"source_id": source_id, "path": path_text(s.path), "seen_at": now, **_values(s, places[s.path])} for s in fresh
    ]
    statement = (
        insert(connection, image).on_conflict_do_nothing().returning(image.c.id, *(image.c[name] for name in _SHOWN))
    )
    return [_row(row.id, row._mapping, "new") for row in connection.execute(statement, rows)]


def _former(connection: Connection, source_id: int, changed: list[Sighting]) -> dict[str, Any]:
    """Lock the rows of these images before they change. Returns them by path as stored."""
    if not changed:
        return {}
    paths = [path_text(s.path) for s in changed]
    wanted = sa.select(image).where(image.c.source_id == source_id, image.c.path.in_(paths)).order_by(image.c.id)
    return {row.path: row for row in connection.execute(wanted.with_for_update(key_share=True))}


def _update_image(connection: Connection, sighting: Sighting, former: Any, place: _Place, now: datetime) -> _Row:
    content = _content(sighting, former)
    arrived = {} if former.size == sighting.size and former.gone_at is None else {"seen_at": now}
    unread = former.unread or content != "same"
    here = {"gone_at": None, "gone_score_id": None, "gone_accepted": None}
    values = _values(sighting, place, former)
    changes = {**values, **arrived, **here, "unread": unread}
    connection.execute(sa.update(image).where(image.c.id == former.id).values(changes))
    return _row(former.id, values, content)


def _reread_image(connection: Connection, sighting: Sighting, former: Any, place: _Place) -> _Row:
    """Update an image whose file nobody looked at."""
    content: Content = "same" if former.gone_at is not None else _content(sighting, former)
    values = _values(sighting, place, former)
    connection.execute(sa.update(image).where(image.c.id == former.id).values(values))
    return _row(former.id, values, content)


def _row(image_id: int, values: Mapping[Any, Any], content: Content) -> _Row:
    return _Row(image_id=image_id, content=content, **{name: values[name] for name in _SHOWN})


_SHOWN: Final = ("drop_id", "inspection_id", "modality", "profile", "region", "captured_at")


def _content(sighting: Sighting, former: Any) -> Content:
    """Compare a file's present stat with the recorded row; a negative time stands for an image to be read again."""
    if former.content_hash is None or former.gone_at is not None or former.size != sighting.size:
        return "new"
    if sighting.mtime_ns not in (former.mtime_ns, -former.mtime_ns - 1):
        return "touched"
    # It changed while nobody had to score it, so its bytes are still to be read.
    return "touched" if former.unread else "same"


def _plates(connection: Connection, source_id: int, seen: Iterable[Sighting], now: datetime) -> dict[str, int]:
    """Plates by their keys as read; keys that differ in case alone are one plate, under the spelling it came with."""
    barcodes = {path_text(s.image.plate_key): _text(s.image.barcode) for s in seen}
    there = plate_names.by_key(connection, source_id, barcodes)
    new = {folded(key): key for key in sorted(barcodes, reverse=True) if folded(key) not in there}
    rows = [
        {"source_id": source_id, "key": key, "barcode": barcodes[key], "first_seen_at": now} for key in new.values()
    ]
    if rows:
        made = insert(connection, plate).on_conflict_do_nothing()
        connection.execute(made, sorted(rows, key=lambda row: str(row["key"])))
        there = plate_names.by_key(connection, source_id, barcodes)
    # Plate metadata that came first may lack the barcode; where it has one, it wins. An upsert would do both,
    # but it holds every plate it meets against those who record the same plate at the same time.
    silent = sa.update(plate).where(plate.c.id == sa.bindparam("plate_id"), plate.c.barcode.is_(None))
    missing = [
        {"plate_id": there[folded(key)].id, "new": barcode, "new_folded": folded(barcode)}
        for key, barcode in sorted(barcodes.items(), key=lambda item: int(there[folded(item[0])].id))
        if barcode is not None and there[folded(key)].barcode is None
    ]
    if missing:
        names: dict[str, Any] = {"barcode": sa.bindparam("new"), "barcode_folded": sa.bindparam("new_folded")}
        connection.execute(silent.values(names), missing)
    return {key: int(there[folded(key)].id) for key in barcodes}


def _inspections(
    connection: Connection, plates: dict[str, int], fresh: Iterable[Sighting], now: datetime
) -> dict[tuple[int, str], int]:
    wanted = {
        (plates[path_text(s.image.plate_key)], path_text(s.image.inspection_key)): s.image.inspection_ordinal
        for s in fresh
    }
    rows = [
        {
            "plate_id": plate_id,
            "key": key,
            "ordinal": ordinal,
            "order_key": drops.order_key(key, ordinal),
            "first_seen_at": now,
        }
        for (plate_id, key), ordinal in sorted(wanted.items(), key=lambda item: item[0])
    ]
    connection.execute(insert(connection, inspection).on_conflict_do_nothing(), rows)
    found = connection.execute(
        sa.select(inspection.c.plate_id, inspection.c.key, inspection.c.id).where(
            inspection.c.plate_id.in_({plate_id for plate_id, _ in wanted}),
            inspection.c.key.in_({key for _, key in wanted}),
        )
    )
    return {(int(r[0]), str(r[1])): int(r[2]) for r in found}


def _drops(
    connection: Connection, plates: dict[str, int], fresh: Iterable[Sighting]
) -> dict[tuple[int, int, int, int], int]:
    wanted: dict[tuple[int, int, int, int], dict[str, Any]] = {}
    for sighting in fresh:
        seen = sighting.image
        plate_id = plates[path_text(seen.plate_key)]
        wanted[plate_id, seen.row, seen.column, seen.drop] = {
            "plate_id": plate_id,
            "well": seen.well,
            "well_row": seen.row,
            "well_column": seen.column,
            "drop_number": seen.drop,
        }
    connection.execute(insert(connection, drop).on_conflict_do_nothing(), [wanted[key] for key in sorted(wanted)])
    found = connection.execute(
        sa.select(drop.c.plate_id, drop.c.well_row, drop.c.well_column, drop.c.drop_number, drop.c.id).where(
            drop.c.plate_id.in_({key[0] for key in wanted}),
            drop.c.well.in_({row["well"] for row in wanted.values()}),
        )
    )
    return {(int(r[0]), int(r[1]), int(r[2]), int(r[3])): int(r[4]) for r in found}
