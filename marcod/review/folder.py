"""Review folder: exported images with a CSV to fill in, and the import of its answers.

Guarantees:
- A folder is there whole or not at all.
- A CSV is imported whole, or refused with a sentence for every wrong line.
- A second import of a CSV changes nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from marcod import files, images, tabular
from marcod.database.engine import Database
from marcod.domain import DropClass
from marcod.errors import ConfigError, ImageError, LabelError, MarcodError, UnmappedError, os_reason
from marcod.labels import recorder
from marcod.labels.recorder import person_named, plain
from marcod.labels.vocabularies import Vocabularies
from marcod.plates.plate_map import csv_text
from marcod.review import desk
from marcod.review import queue as store
from marcod.review.queue import ReviewItem
from marcod.settings import ReviewSettings
from marcod.store.votes import NewLabel
from marcod.text import count, quoted

NAME: Final = "review.csv"
COLUMNS: Final = ("item", "image", "plate", "well", "drop", "inspection", "label", "person", "comment")
"""Columns of the CSV; people fill in ``label``, and ``person`` where it is not who imports. ``comment`` is theirs."""

HOLD: Final = timedelta(days=7)
"""How long exported items are kept for the person for whom they were exported."""

LARGEST: Final = 16 * 2**20
LISTED: Final = 20
_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".webp"))


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export: the CSV, how many items it has, and the sentences on images that could not be copied."""

    csv: Path
    items: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportedAnswers:
    """Counts of the lines of an import; ``known`` were imported before, ``empty`` have no label yet."""

    new: int
    skipped: int
    known: int
    empty: int


def export(
    db: Database,
    settings: ReviewSettings,
    folder: Path,
    person: str,
    now: datetime,
    *,
    limit: int,
    roots: Mapping[str, Path],
    done: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Make a folder of up to ``limit`` items for a person. Raises ConfigError where the folder is there already.

    ``roots`` says where each source is now. Items whose images cannot be read go back into the queue.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name a new folder")
    if not folder.parent.is_dir():
        raise ConfigError(f"{folder.parent} is no folder; make it first")
    desk.fill(db, settings, now)
    taken = _take(db, settings, person, now, limit)
    try:
        copied, problems = _write(folder, taken, person, roots, done)
    except BaseException as error:
        desk.release(db, taken, person)
        if isinstance(error, OSError):
            raise MarcodError(f"{folder} cannot be written: {os_reason(error)}") from error
        raise
    desk.release(db, [item for item in taken if item.item_id not in copied], person)
    return Exported(folder / NAME, len(copied), tuple(problems))


def _take(db: Database, settings: ReviewSettings, person: str, now: datetime, limit: int) -> list[ReviewItem]:
    """Claim items one after the other, so that the streams are mixed as they are on the screen."""
    taken: dict[int, ReviewItem] = {}
    while len(taken) < limit and (found := desk.take(db, settings, person, now, hold=HOLD)):
        taken |= {item.item_id: item for item in found}
    return list(taken.values())


def _write(
    folder: Path, taken: Sequence[ReviewItem], person: str, roots: Mapping[str, Path], done: Callable[[int], None]
) -> tuple[set[int], list[str]]:
    """Write the folder and name it when it is whole. Returns its items, and a sentence for each other one."""
    records, problems = [], []
    # Only its owner can enter a temporary folder; their group may fill in the answers.
    with files.new_folder(folder, mode=0o750) as scratch:
        for count, item in enumerate(taken, 1):
            name = file_name(item)
            try:
                image = _image(item, roots)
            except (ImageError, OSError) as error:
                problems.append(f"item {item.item_id}: {item.path} of {item.source} cannot be read: {_why(error)}")
            else:
                (scratch / name).write_bytes(image)
                records.append(_record(item, name, person))
            done(count)
        (scratch / NAME).write_text(csv_text(COLUMNS, records), encoding="utf-8")
    return {int(record["item"]) for record in records}, problems


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def image_file(item: ReviewItem, roots: Mapping[str, Path]) -> Path:
    """Return the file of an item's image, below its source's root of now, else below the recorded one."""
    return roots.get(item.source, Path(item.root)) / item.path


def _image(item: ReviewItem, roots: Mapping[str, Path]) -> bytes:
    """Read the bytes of an item's image. Raises ImageError for a path that leads out of its source, and OSError."""
    return images.read(image_file(item, roots), roots.get(item.source, Path(item.root)))


def file_name(item: ReviewItem) -> str:
    """Return a name for a copy that any file system takes, such as ``12-P1-A01.1-3.jpg``."""
    parts = (item.barcode or item.plate_key, f"{item.well}.{item.drop_number}", item.inspection_key)
    safe = [re.sub(r"[^A-Za-z0-9._]+", "_", part)[:40].strip("._") or "_" for part in parts]
    suffix = Path(item.path).suffix.lower()
    return "-".join((str(item.item_id), *safe)) + (suffix if suffix in _SUFFIXES else ".img")


def _record(item: ReviewItem, name: str, person: str) -> dict[str, Any]:
    return {
        "item": item.item_id,
        "image": name,
        "plate": item.barcode or item.plate_key,
        "well": item.well,
        "drop": item.drop_number,
        "inspection": item.inspection_key,
        "label": "",
        "person": person,
        "comment": "",
    }


@dataclass(frozen=True, slots=True)
class _Line:
    """An answer as written; ``label`` None is a skip."""

    number: int
    item: ReviewItem
    label: DropClass | None
    person: str


def import_answers(
    db: Database, place: Path, tables: Vocabularies, person: str, now: datetime, *, vocabulary: str
) -> ImportedAnswers:
    """Import the answers of a filled CSV, or of a folder with one, as labels of its persons.

    An empty label is not answered yet. Raises LabelError with a sentence for every wrong line; then nothing is stored.
    """
    path = place / NAME if place.is_dir() else place
    rows, saved = _rows(path, now)
    named = {number for _, cells in rows if (number := _number(cells)) is not None}
    known = {item.item_id: item for item in db.read(store.items, sorted(named))}
    lines: dict[tuple[int, str], _Line] = {}
    problems, empty = [], 0
    for number, cells in rows:
        try:
            line = _line(number, cells, known, tables, person, vocabulary)
            if line is None:
                empty += 1
            elif (first := lines.setdefault((line.item.item_id, line.person), line)).label is not line.label:
                raise LabelError(f"item {line.item.item_id} has another label in line {first.number}")
        except LabelError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = [f"and {count(len(problems) - LISTED, 'more line')}"] if len(problems) > LISTED else []
        listed = "\n  ".join([*problems[:LISTED], *more])
        raise LabelError(f"{path}: nothing was taken, because of\n  {listed}")
    return replace(db.write(_keep, list(lines.values()), saved, now), empty=empty)


def _rows(path: Path, now: datetime) -> tuple[list[tuple[int, dict[str, str]]], datetime]:
    """Read the rows, and the time at which they were saved: labels given later by another way are newer."""
    try:
        text = tabular.read_text(path, LARGEST)
        rows = list(tabular.rows_of(text, ("item", "label"), "fill in the CSV of the export"))
        return rows, min(datetime.fromtimestamp(path.stat().st_mtime, UTC), now)
    except tabular.TableError as error:
        raise LabelError(error.of(path)) from error


def _number(cells: dict[str, str]) -> int | None:
    text = cells.get("item", "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else None


def _line(
    number: int, cells: dict[str, str], known: dict[int, ReviewItem], tables: Vocabularies, person: str, vocabulary: str
) -> _Line | None:
    """Parse a line's answer, None where the label is empty. Raises LabelError."""
    item = known.get(_number(cells) or 0)
    if item is None:
        raise LabelError(f"there is no item {quoted(cells.get('item', ''))} in this database")
    _check_subject(cells, item)
    written = cells.get("label", "").removeprefix("'")
    if not written:
        return None
    who = person_named(cells.get("person", "").removeprefix("'") or person)
    if written.lower() in ("skip", store.SKIPPED):
        return _Line(number, item, None, who)
    try:
        table, code = tables.split(plain("label", written), vocabulary)
        label = table.read(code)
    except UnmappedError as error:
        raise LabelError(str(error)) from error
    if label is None:
        raise LabelError(f"{quoted(written)} takes a label back; `marcod label withdraw` does that")
    return _Line(number, item, label, who)


def _check_subject(cells: dict[str, str], item: ReviewItem) -> None:
    """Check that a line is of this database and keeps its number. Raises LabelError."""
    own = {"well": item.well, "plate": item.barcode or item.plate_key}
    written = {column: cells.get(column, text) for column, text in own.items()}
    # A spreadsheet may take a barcode for a number; the image's name holds it as well.
    same_plate = written["plate"].lstrip("'0") == own["plate"].lstrip("'0") or cells.get("image") == file_name(item)
    if written["well"] != own["well"] or not same_plate:
        raise LabelError(
            f"item {item.item_id} is well {own['well']} of plate {quoted(own['plate'])}, "
            f"not {quoted(written['well'])} of {quoted(written['plate'])}"
        )


def _keep(connection: Any, lines: list[_Line], saved: datetime, now: datetime) -> ImportedAnswers:
    before = recorder.labels_of(connection, {line.item.drop_id for line in lines})
    givens = [
        NewLabel(line.item.drop_id, line.item.inspection_id, line.label, line.person, saved, desk.ORIGIN)
        for line in lines
        if line.label is not None
    ]
    fresh = [given for given in givens if _is_new(given, before.get(recorder.voter(given), []))]
    recorder.add(connection, fresh, now)
    skipped = 0
    for line in lines:
        answer = store.SKIPPED if line.label is None else str(line.label)
        closed = store.close(connection, line.item.item_id, person=line.person, answer=answer, now=now)
        skipped += closed and line.label is None
    return ImportedAnswers(len(fresh), skipped, len(lines) - len(fresh) - skipped, 0)


def _is_new(given: NewLabel, before: Sequence[NewLabel]) -> bool:
    """Return whether a person's label changes; not if it is theirs now, or was given here and replaced since."""
    if not before:
        return True
    here = any(each.origin == desk.ORIGIN and each.label == given.label for each in before)
    return before[-1].label != given.label and not (here and before[-1].labelled_at >= given.labelled_at)
