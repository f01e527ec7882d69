"""Label files and their import: CSV with any columns, Rock Maker's ``report.csv``, ``.mso``, CrystalTrak, ISPyB, PiMS.

Guarantees:
- Importing twice changes nothing.
- Lines that cannot be imported are listed by file and number; the rest is imported.
- A file of another format than its own is refused whole. In a folder the other files are imported.
- Of two equal claims on one drop neither overrides the other.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

from marcod import layouts, tabular
from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS, DropClass, DropImage, parse_well, well_name
from marcod.errors import LabelError, UnmappedError
from marcod.labels import inbox, recorder, vocabularies
from marcod.labels.recorder import DropReference, LabelTarget, person_named, plain
from marcod.labels.vocabularies import Vocabularies
from marcod.settings import Settings
from marcod.store import known_names
from marcod.store.votes import NewLabel
from marcod.text import count, quoted, without_guard

FORMATS: Final = ("auto", "csv", "rockmaker", "hwi", "sgc", "ispyb", "pims")
FIELDS: Final = (
    "source", "plate", "well", "row", "column", "drop", "inspection", "path", "label", "person", "time",
)  # fmt: skip
"""Fields that a CSV column can hold; ``row`` and ``column`` are numbers from 1 and stand for a well."""

REPORT: Final = "report.csv"
DATED_BY_IMAGE: Final = ("rockmaker", "hwi")
"""Formats whose times are the images', not the labels'."""

LARGEST: Final = 64 * 2**20
CHUNK: Final = 500
INBOX_ROWS: Final = 500
INBOX_TRANSACTIONS: Final = 8

_ALIASES: Final = {
    "plate": ("plate", "barcode", "platekey", "plateid", "platebarcode"),
    "well": ("well", "wellname", "welllocation", "position", "wellnum", "wellnumber", "wellno"),
    "row": ("row", "rownumber"),
    "column": ("column", "col", "columnnumber"),
    "drop": ("drop", "dropnumber", "dropnum", "dropno", "subwell", "subwellnumber"),
    "inspection": ("inspection", "inspectionkey", "inspectionnumber", "inspectionid", "batch", "batchid"),
    "path": ("path", "imagepath", "image", "imagename"),
    "label": (
        "label", "score", "class", "scorename", "classification", "call", "annotation",
        *(f"{who}{what}" for who in ("manual", "human", "user") for what in ("call", "score", "class", "label")),
        "manualclassification", "humanclassification", "userclassification",
    ),
    "person": (
        "person", "user", "who", "scoredby", "labelledby", "login", "username", "disputedby",
        "annotator", "annotatedby", "scorer", "labelperson",
    ),
    "time": ("time", "labelledat", "scoredat", "date", "scoredate", "timestamp"),
    "source": ("source",),
}  # fmt: skip
_OWN_NAME_FIRST: Final = frozenset(FIELDS) - {"label", "person", "time"}
"""Fields whose own name goes before other headings that could mean it."""

_CLASS_HEADING: Final = "(?:label|class|classification|score|call|prediction|confidence|version)"
_MACHINES: Final = re.compile(
    rf"(?:marco|model|classifier){_CLASS_HEADING}?|(?:auto|automatic|machine|computer){_CLASS_HEADING}|predict[a-z]*"
)
"""Headings of columns of a model's classes, as :func:`tabular.spelled` writes them."""

_ANY_PLATE: Final = layouts.LayoutOptions(plate_format=PLATE_FORMATS[1536])
_RUN: Final = re.compile(r"([A-Z0-9]{10})(\d{12})-([A-Z0-9]+)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of a file: the drop, its label, the person and the time, where the file has them; ``time`` is aware.

    ``standing``: the time is the image's, and no later line of the import is of the same image.
    """

    line: int
    named: DropReference
    label: str
    person: str | None = None
    time: datetime | None = None
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One line that was not imported, or a file of several of which nothing was.

    ``may_come``: its plate or images may still arrive.
    """

    file: str
    line: int
    reason: str
    may_come: bool = False
    whole_file: bool = False


class LabelFileError(LabelError):
    """A file that is not of its format. ``line`` counts from 1, and is 0 where no line is wrong."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        where = f"{path}, line {line}: " if line else f"{path} "
        super().__init__(f"{where}{reason}")
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Choices:
    """Options of reading. ``columns`` maps a CSV's columns to FIELDS; None leaves a choice to the file."""

    format: str = "auto"
    person: str = "unknown"
    source: str | None = None
    vocabulary: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class ImportedLabels:
    """Counts of an import. ``known`` labels were stored before; ``unmapped`` counts each sentence on a label."""

    files: int = 0
    rows: int = 0
    new: int = 0
    known: int = 0
    unmapped: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def __add__(self, other: "ImportedLabels") -> "ImportedLabels":
        return ImportedLabels(
            self.files + other.files,
            self.rows + other.rows,
            self.new + other.new,
            self.known + other.known,
            dict(Counter(self.unmapped) + Counter(other.unmapped)),
            self.problems + other.problems,
        )


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file that was read whole; its labels are in ``vocabulary`` unless they name another."""

    path: Path
    format: str
    vocabulary: str
    rows: list[LabelRow]
    problems: list[Problem]


def import_labels(
    db: Database,
    place: Path,
    tables: Vocabularies,
    choices: Choices,
    *,
    default: str,
    now: datetime,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportedLabels:
    """Import a file or every label file of a folder. ``default`` is the vocabulary of a CSV that names none.

    A file of a folder that is not of its format is a problem, and the others are imported. Raises LabelError where
    ``place`` is such a file, and ConfigError for an unknown vocabulary, before anything is stored. ``progress``
    gets the rows done and their total.
    """
    readable, refused = _read_all(place, choices, default)
    found = _standing(readable)
    for file in found:
        tables.named(file.vocabulary)
    total, passed, done = sum(len(file.rows) for file in found), 0, ImportedLabels(problems=tuple(refused))
    for file in found:
        done += ImportedLabels(files=1, rows=len(file.rows) + len(file.problems), problems=tuple(file.problems))
        for rows in _portions(file.rows):
            done += _keep(db, replace(file, rows=rows), tables, choices, now, dry_run=dry_run)
            passed += len(rows)
            progress(passed, total)
    order = sorted(done.problems, key=lambda problem: (not problem.whole_file, problem.file, problem.line))
    return replace(done, problems=tuple(order))


def _read_all(place: Path, choices: Choices, default: str) -> tuple[list[LabelFile], list[Problem]]:
    """Read every file; in a folder a file that is not of its format is a problem."""
    found, refused = [], []
    for path, kind in files(place, choices.format):
        try:
            found.append(read(path, kind, choices, default))
        except LabelFileError as error:
            if not place.is_dir():
                raise
            reason = f"nothing of this file was taken: {error.reason}"
            refused.append(Problem(str(path), error.line, reason, whole_file=True))
    return found, refused


def _portions(rows: list[LabelRow]) -> Iterator[list[LabelRow]]:
    """Split rows into portions of about CHUNK, by well, so that contradicting lines meet in one transaction."""
    portion: list[LabelRow] = []
    before = None
    for row in sorted(rows, key=lambda row: _well_of(row.named)):
        if len(portion) >= CHUNK and _well_of(row.named) != before:
            yield portion
            portion = []
        portion.append(row)
        before = _well_of(row.named)
    if portion:
        yield portion


def _well_of(named: DropReference) -> tuple[str, str, str]:
    try:
        well = well_name(*parse_well(named.well or ""))
    except ValueError:
        well = (named.well or "").strip().lstrip("0")
    return (named.plate or "").casefold(), well, named.path or ""


def _standing(found: list[LabelFile]) -> list[LabelFile]:
    """Mark the last label of each image, or old and new exports in one folder would take turns."""
    dated = [(place, file) for place, file in enumerate(found) if file.format in DATED_BY_IMAGE]
    last = {(row.named, row.person): (place, row.line) for place, file in dated for row in file.rows if row.time}
    return [
        replace(file, rows=[replace(r, standing=last.get((r.named, r.person)) == (place, r.line)) for r in file.rows])
        for place, file in enumerate(found)
    ]


def _keep(
    db: Database, file: LabelFile, tables: Vocabularies, choices: Choices, now: datetime, *, dry_run: bool
) -> ImportedLabels:
    def work(connection: Any) -> ImportedLabels:
        finder = recorder.Finder(connection)
        unmapped: Counter[str] = Counter()
        problems, resolved = [], []
        for row in file.rows:
            try:
                resolved.append((row, _given(finder, file, row, tables, choices, now)))
            except UnmappedError as error:
                unmapped[str(error)] += 1
            except LabelError as error:
                problems.append(Problem(str(file.path), row.line, str(error), error.may_come))
        clear, unclear = _without_contradictions(file.path, resolved)
        problems += unclear
        # Of equal labels the last line counts.
        givens = {given.key: given for _, given in reversed(clear)}
        undated = {given.key for row, given in clear if row.time is None}
        standing = {given.key for row, given in clear if row.standing}
        fresh = recorder.fresh(connection, list(reversed(givens.values())), undated, standing)
        if not dry_run:
            recorder.add(connection, fresh, now)
        return ImportedLabels(
            new=len(fresh), known=len(givens) - len(fresh), unmapped=dict(unmapped), problems=tuple(problems)
        )

    return db.read(work) if dry_run else db.write(work)


def _without_contradictions(
    path: Path, resolved: list[tuple[LabelRow, NewLabel]]
) -> tuple[list[tuple[LabelRow, NewLabel]], list[Problem]]:
    """Leave out lines that give one drop different labels of one person at one time; Crystals among them stays."""
    groups: dict[tuple[object, ...], list[tuple[LabelRow, NewLabel]]] = {}
    for row, given in resolved:
        target = given.drop_id, given.inspection_id, given.image_id
        groups.setdefault((*target, given.person, given.labelled_at), []).append((row, given))
    clear, problems = [], []
    for group in groups.values():
        if len({given.label for _, given in group}) > 1:
            problems.append(_unclear(path, group))
            group = [(row, given) for row, given in group if given.label is DropClass.CRYSTALS]
        clear += group
    return sorted(clear, key=lambda each: each[0].line), problems


def _unclear(path: Path, group: list[tuple[LabelRow, NewLabel]]) -> Problem:
    lines = sorted(row.line for row, _ in group)
    classes = sorted({str(given.label or vocabularies.WITHDRAWN) for _, given in group})
    kept = "Crystals is kept" if str(DropClass.CRYSTALS) in classes else "none is kept"
    by = f"by {quoted(group[0][1].person)}, at one time"
    reason = f"lines {_enumerated(map(str, lines))} give one drop {_enumerated(classes)} {by}"
    return Problem(str(path), lines[0], f"{reason}; {kept}; name the drop, the inspection or the time of each")


def _enumerated(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}"


def _given(
    finder: recorder.Finder, file: LabelFile, row: LabelRow, tables: Vocabularies, choices: Choices, now: datetime
) -> NewLabel:
    written = plain("label", row.label)
    vocabulary, code = tables.split(written, file.vocabulary)
    drop_class = vocabulary.read(code)
    person = person_named(row.person or choices.person)
    at = row.time or min(datetime.fromtimestamp(file.path.stat().st_mtime, UTC), now)
    if at > now + timedelta(days=1):
        raise LabelError(f"the time {at:%Y-%m-%d %H:%M} lies in the future; correct it")
    named = replace(row.named, source=row.named.source or choices.source, at=row.time)
    target = finder.find(named)
    # Without either, the same line would label each new inspection in turn.
    if row.time is None and named.inspection is None and named.path is None and finder.inspections(named) > 1:
        raise LabelError("it names no inspection and no time, and its plate has several inspections; give one of them")
    origin, where = f"{file.format} {ascii(file.path.name)[1:-1]}", (target.drop_id, target.inspection_id)
    return NewLabel(*where, drop_class, person, at, origin, written, vocabulary.name, target.image_id)


def files(place: Path, wanted: str) -> list[tuple[Path, str]]:
    """Find the label files, each with its format. Raises LabelError where there is none."""
    if not place.exists():
        raise LabelError(f"{place} does not exist; name a file or a folder of label files")
    if place.is_file():
        return [(place, _kind(place) or "csv" if wanted == "auto" else wanted)]
    found = [(path, _kind(path)) for path in sorted(place.rglob("*")) if path.is_file()]
    kinds = {"auto": ("csv", "rockmaker", "hwi"), "rockmaker": ("rockmaker",), "hwi": ("hwi",)}.get(wanted, ("csv",))
    files = [(path, kind if wanted == "auto" else wanted) for path, kind in found if kind in kinds]
    if not files:
        raise LabelError(f"{place} holds no label file; those are {REPORT}, *.mso and *.csv, of --format {wanted}")
    return [(path, str(kind)) for path, kind in files]


def _kind(path: Path) -> str | None:
    if path.name.lower() == REPORT:
        return "rockmaker"
    return {".mso": "hwi", ".csv": "csv"}.get(path.suffix.lower())


def read(path: Path, kind: str, choices: Choices, default: str) -> LabelFile:
    """Read a file's lines. Raises LabelFileError where the whole cannot be read as its format."""
    file = LabelFile(path, kind, choices.vocabulary or (default if kind == "csv" else kind), [], [])
    reader = {"rockmaker": _rockmaker, "hwi": _mso}.get(kind, _table)
    try:
        for found in reader(file, tabular.read_text(path, LARGEST), choices):
            (file.problems if isinstance(found, Problem) else file.rows).append(found)  # type: ignore[arg-type]
    except tabular.TableError as error:
        raise LabelFileError(path, error.line, error.reason) from error
    except csv.Error as error:
        raise LabelFileError(path, 0, f"cannot be read as text with columns: {error}") from error
    return file


def _table(file: LabelFile, text: str, choices: Choices) -> Iterator[LabelRow | Problem]:
    """Read a CSV of any vocabulary: comma, semicolon or tab, with a heading line."""
    lines = tabular.lines_of(text)
    first, heading = next(lines, (1, []))
    places = _places(first, heading, choices.columns)
    machine = next((column for column in heading if _MACHINES.fullmatch(tabular.spelled(column))), None)
    unsigned: list[int] = []
    for line, cells in lines:
        values = {n: without_guard(cells[at]) for n, at in places.items() if at < len(cells) and cells[at]}
        if machine is not None and "person" in places and "person" not in values:
            unsigned.append(line)
            continue
        try:
            yield _row(line, values, file.format, choices.zone)
        except LabelError as error:
            yield Problem(str(file.path), line, str(error))
    if machine is not None and unsigned:
        yield Problem(str(file.path), unsigned[0], _unsigned(len(unsigned), machine))


def _unsigned(number: int, machine: str) -> str:
    lines = "this line names" if number == 1 else f"this and {count(number - 1, 'further line')} name"
    reason = f"{lines} no person, and beside the column {quoted(machine)} the label may be a model's"
    return f"{reason}; fill in who labelled the drop"


def _places(line: int, headings: list[str], chosen: Mapping[str, str]) -> dict[str, int]:
    """Find which column holds which field.

    Raises TableError where no column can be the label or name the drop, and where two columns can be the same.
    """
    places = tabular.match_headings(line, headings, _ALIASES, chosen, own_name_first=_OWN_NAME_FIRST)
    named = "path" in places or {"plate", "well"} <= places.keys() or {"plate", "row", "column"} <= places.keys()
    if "label" not in places or not named:
        raise tabular.TableError(
            line,
            f"needs columns label, plate and well, or label and path; there are {tabular.listed(headings)}. "
            "Name others with --map COLUMN=FIELD",
        )
    return places


def _row(line: int, values: dict[str, str], kind: str, zone: tzinfo) -> LabelRow:
    if "label" not in values:
        raise LabelError("the label is empty; fill it in or remove the line")
    time = _time(values["time"], zone) if "time" in values else None
    well = values.get("well")
    if well is None and "row" in values and "column" in values:
        well = well_name(_number("row", values["row"]), _number("column", values["column"]))
    drop = _number("drop", values["drop"]) if "drop" in values else None
    named = DropReference(
        values.get("plate"), well, drop, values.get("inspection"), values.get("source"), path=values.get("path")
    )
    if kind == "sgc" and named.path is not None:
        named = _of_minstrel_name(named)
    return LabelRow(line, named, values["label"], values.get("person"), time)


def _of_minstrel_name(named: DropReference) -> DropReference:
    """Resolve a CrystalTrak image name, which holds plate, inspection, well and subwell without any folder."""
    image = layouts.make("rigaku", _ANY_PLATE).parse(named.path or "")
    if not isinstance(image, DropImage):
        raise LabelError(f"{quoted(named.path or '')} is no Minstrel image name: {image.detail}")
    found = DropReference(image.barcode, image.well, image.drop, image.inspection_key, named.source)
    return replace(found, plate=named.plate or found.plate)


def _number(what: str, text: str) -> int:
    number = re.fullmatch(r"0*([1-9]\d{0,2})(?:\.0+)?", text, re.ASCII)
    if number is None:
        raise LabelError(f"{what} {quoted(text)} is no number from 1; correct it")
    return int(number[1])


def _time(text: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise LabelError(f"{quoted(text)} is no time; write it like 2026-03-09 14:30") from error
    if moment.year < 1980:
        raise LabelError(f"{quoted(text)} is before 1980; correct it")
    return moment


def _rockmaker(file: LabelFile, text: str, choices: Choices) -> Iterator[LabelRow | Problem]:
    """Read ``report.csv`` of Rock Maker's exporter: barcode, well and batch in the path, the score in the second field.

    The date is the image's. Source: roberto-formulatrix/RM_Image_export ImageAnalyzer/src/ImageExporter.cs.
    """
    layout = layouts.make("rockmaker-export", replace(_ANY_PLATE, timezone=choices.zone))
    content = text.encode()
    reader = csv.reader(io.StringIO(text))
    next(reader, None)
    for cells in reader:
        if not any(cells):
            continue
        parts = re.split(r"[\\/]+", cells[0].strip())[-3:]
        image = layout.parse("/".join(parts), {f"{parts[0]}/{REPORT}": content}.get)
        if len(cells) < 4 or not isinstance(image, DropImage):
            expected = "path, score, drop and date of an image such as 90j8\\Crystals\\90j8_D12_Visible_9_3552.jpg"
            yield Problem(str(file.path), reader.line_num, f"{quoted(cells[0])}: expected {expected}")
            continue
        drop = int(cells[2]) if re.fullmatch(r"[1-9]\d?", cells[2].strip(), re.ASCII) else None
        named = DropReference(image.barcode, image.well, drop, image.inspection_key)
        taken = image.captured_at and image.captured_at.astimezone(UTC)
        yield LabelRow(reader.line_num, named, cells[1], time=taken)


def _mso(file: LabelFile, text: str, choices: Choices) -> Iterator[LabelRow | Problem]:
    """Read a Hauptman-Woodward file: the run's folder in line 1, headings, then a well number first and a code last.

    The run's date counts as the label's, which has none. Source: Hauptman-Woodward/Marco_Polo
    src/polo/utils/io_utils.py.
    """
    lines = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    run = _RUN.search(lines[0][0] if lines and lines[0] else "") or _RUN.search(file.path.stem)
    if run is None or len(lines) < 2:
        raise LabelFileError(
            file.path,
            1,
            "expected the run, such as X000015862202008111512-jpg.rar, and msoversion2; name the file after its run",
        )
    mode = run[3].lower()
    key = run[2] if mode == "jpg" else f"{run[2]}-{mode}"
    try:
        taken = _time(f"{run[2][:8]}T{run[2][8:]}", choices.zone)
    except LabelError as error:
        raise LabelFileError(file.path, 1, str(error)) from error
    width = max(map(len, lines[2:]), default=0)
    for number, cells in enumerate(lines[2:], start=3):
        # A line without a code ends with its cocktail, which may look like a code.
        if len(cells) < width or not cells[-1].strip():
            continue
        try:
            row, column = PLATE_FORMATS[1536].position(int(float(cells[0])))
        except (ValueError, OverflowError):
            yield Problem(str(file.path), number, f"{quoted(cells[0])} is no well; expected a number from 1 to 1536")
            continue
        yield LabelRow(number, DropReference(run[1], well_name(row, column), None, key), cells[-1], time=taken)


def find(connection: Any, named: DropReference) -> LabelTarget:
    """Find the drop that a person names by hand. Raises LabelError, which offers the names there are."""
    try:
        return recorder.Finder(connection).find(named)
    except LabelError as error:
        offered = known_names.meant(connection, named) if error.may_come else None
        raise LabelError(f"{error}; {offered}" if offered else str(error), may_come=error.may_come) from error


def add(
    db: Database, tables: Vocabularies, named: DropReference, text: str, person: str, now: datetime, *, vocabulary: str
) -> NewLabel:
    """Store one person's label of now. Raises LabelError."""
    written = plain("label", text)
    table, code = tables.split(written, vocabulary)
    drop_class = table.read(code)

    def work(connection: Any) -> NewLabel:
        target = find(connection, named)
        where = (target.drop_id, target.inspection_id)
        given = NewLabel(*where, drop_class, person_named(person), now, "cli", written, table.name, target.image_id)
        recorder.add(connection, [given], now)
        return given

    return db.write(work)


def withdraw(db: Database, named: DropReference, person: str, now: datetime) -> int:
    """Withdraw a person's labels of a drop at an inspection. Returns how many. Raises LabelError."""
    return db.write(
        lambda c: recorder.withdraw(c, find(c, named), person=plain("person", person), origin="cli", now=now)
    )


def tables_of(settings: Settings) -> Vocabularies:
    """Load the vocabularies of a configuration. Raises ConfigError where they cannot be used."""
    tables = vocabularies.load(settings.labels.vocabularies)
    tables.named(settings.labels.vocabulary)
    return tables


def resolve_inbox(db: Database, settings: Settings, now: datetime) -> inbox.InboxCounts:
    """Resolve a bounded number of rows that the LIMS wrote, in short transactions."""
    tables, done = tables_of(settings), inbox.InboxCounts()
    for _ in range(INBOX_TRANSACTIONS):
        turn = db.write(inbox.resolve, tables, settings.labels.vocabulary, now, limit=INBOX_ROWS)
        done += turn
        if turn.looked < INBOX_ROWS:
            break
    return done
