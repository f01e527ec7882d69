"""Label files as people have them, and the way of their rows into the database.

Hides the formats: CSV with any columns, Rock Maker's ``report.csv``, Hauptman-Woodward's ``.mso``, CrystalTrak, ISPyB
and PiMS scores. Promises that importing twice changes nothing, that what cannot be taken is told by file and line while
the rest is taken, and that a file which is not of its format is refused before anything of it is kept.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

from marcod import layouts, vocabularies
from marcod.domain import PLATE_FORMATS, DropImage, well_name
from marcod.errors import LabelError, UnmappedError
from marcod.settings import Settings
from marcod.store import inbox, labelling, offers
from marcod.store.engine import Database
from marcod.store.labelling import Named, Subject, plain, shown
from marcod.store.labels import Given
from marcod.vocabularies import Vocabularies

FORMATS: Final = ("auto", "csv", "rockmaker", "hwi", "sgc", "ispyb", "pims")
FIELDS: Final = (
    "source", "plate", "well", "row", "column", "drop", "inspection", "path", "label", "person", "time",
)  # fmt: skip
"""What a column of a CSV can be; ``row`` and ``column`` are numbers from 1 and stand for a well."""

REPORT: Final = "report.csv"
DATED_BY_PICTURE: Final = ("rockmaker", "hwi")
"""Formats whose times are the pictures', not the labels'."""

LARGEST: Final = 64 * 2**20
CHUNK: Final = 500
INBOX_ROWS: Final = 500
INBOX_TRANSACTIONS: Final = 8

_ALIASES: Final = {
    "plate": ("plate", "barcode", "platekey", "plateid", "platebarcode"),
    "well": ("well", "wellname", "welllocation", "position"),
    "row": ("row", "rownumber"),
    "column": ("column", "col", "columnnumber"),
    "drop": ("drop", "dropnumber", "subwell", "subwellnumber"),
    "inspection": ("inspection", "inspectionkey", "inspectionnumber", "inspectionid", "batch", "batchid"),
    "path": ("path", "imagepath", "image", "imagename"),
    "label": ("label", "score", "class", "scorename", "classification"),
    "person": ("person", "user", "who", "scoredby", "labelledby", "login", "username"),
    "time": ("time", "labelledat", "scoredat", "date", "scoredate", "timestamp"),
    "source": ("source",),
}
_ANY_PLATE: Final = layouts.LayoutOptions(plate_format=PLATE_FORMATS[1536])
_RUN: Final = re.compile(r"([A-Z0-9]{10})(\d{12})-([A-Z0-9]+)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file: what is labelled, how, by whom and when, as far as the file says; ``time`` is aware.

    ``standing`` tells that the time is the picture's, and that no later line of the import is of the same picture.
    """

    line: int
    named: Named
    word: str
    person: str | None = None
    time: datetime | None = None
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that was not taken. ``may_come`` tells that its plate or images may still arrive."""

    file: str
    line: int
    reason: str
    may_come: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """How files are read. ``columns`` maps a CSV's columns to FIELDS; None leaves a choice to the file."""

    format: str = "auto"
    person: str = "unknown"
    source: str | None = None
    vocabulary: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. ``known`` labels had been kept before; ``unmapped`` counts each sentence on a word."""

    files: int = 0
    rows: int = 0
    new: int = 0
    known: int = 0
    unmapped: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def __add__(self, other: "Imported") -> "Imported":
        return Imported(
            self.files + other.files,
            self.rows + other.rows,
            self.new + other.new,
            self.known + other.known,
            dict(Counter(self.unmapped) + Counter(other.unmapped)),
            self.problems + other.problems,
        )


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file that was read whole; its words are in ``vocabulary`` unless they name another."""

    path: Path
    format: str
    vocabulary: str
    rows: list[Row]
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
) -> Imported:
    """Take in a file or every label file of a folder. ``default`` is the vocabulary of a CSV that names none.

    Raises LabelError for a file that is not of its format, and ConfigError for an unknown vocabulary, before anything
    is kept. ``progress`` is told the rows done and their total.
    """
    found = _standing([read(path, kind, choices, default) for path, kind in files(place, choices.format)])
    total, passed, done = sum(len(file.rows) for file in found), 0, Imported()
    for file in found:
        tables.named(file.vocabulary)
        done += Imported(files=1, rows=len(file.rows) + len(file.problems), problems=tuple(file.problems))
        rows = sorted(file.rows, key=lambda row: (row.named.plate or "", row.named.path or ""))
        for start in range(0, len(rows), CHUNK):
            chunk = replace(file, rows=rows[start : start + CHUNK])
            done += _keep(db, chunk, tables, choices, now, dry_run=dry_run)
            passed += len(chunk.rows)
            progress(passed, total)
    return replace(done, problems=tuple(sorted(done.problems, key=lambda problem: (problem.file, problem.line))))


def _standing(found: list[LabelFile]) -> list[LabelFile]:
    """With the last word on each picture marked, or old and new exports in one folder would take turns."""
    dated = [(place, file) for place, file in enumerate(found) if file.format in DATED_BY_PICTURE]
    last = {(row.named, row.person): (place, row.line) for place, file in dated for row in file.rows if row.time}
    return [
        replace(file, rows=[replace(r, standing=last.get((r.named, r.person)) == (place, r.line)) for r in file.rows])
        for place, file in enumerate(found)
    ]


def _keep(
    db: Database, file: LabelFile, tables: Vocabularies, choices: Choices, now: datetime, *, dry_run: bool
) -> Imported:
    def work(connection: Any) -> Imported:
        finder = labelling.Finder(connection)
        givens: dict[str, Given] = {}
        undated, standing = set(), set()
        unmapped: Counter[str] = Counter()
        problems = []
        for row in file.rows:
            try:
                given = _given(finder, file, row, tables, choices, now)
                # What is said twice counts where it is said last.
                givens.pop(given.key, None)
                givens[given.key] = given
                undated |= {given.key} if row.time is None else set()
                standing |= {given.key} if row.standing else set()
            except UnmappedError as error:
                unmapped[str(error)] += 1
            except LabelError as error:
                problems.append(Problem(str(file.path), row.line, str(error), error.may_come))
        fresh = labelling.fresh(connection, list(givens.values()), undated, standing)
        if not dry_run:
            labelling.add(connection, fresh, now)
        return Imported(
            new=len(fresh), known=len(givens) - len(fresh), unmapped=dict(unmapped), problems=tuple(problems)
        )

    return db.read(work) if dry_run else db.write(work)


def _given(
    finder: labelling.Finder, file: LabelFile, row: Row, tables: Vocabularies, choices: Choices, now: datetime
) -> Given:
    word = plain("label", row.word)
    vocabulary, bare = tables.split(word, file.vocabulary)
    meant = vocabulary.read(bare)
    person = plain("person", row.person or choices.person)
    at = row.time or min(datetime.fromtimestamp(file.path.stat().st_mtime, UTC), now)
    if at > now + timedelta(days=1):
        raise LabelError(f"the time {at:%Y-%m-%d %H:%M} lies in the future; correct it")
    named = replace(row.named, source=row.named.source or choices.source, at=row.time)
    subject = finder.find(named)
    # Without either, the same line would be said of each new inspection in turn.
    if row.time is None and named.inspection is None and named.path is None and finder.inspections(named) > 1:
        raise LabelError("it names no inspection and no time, and its plate has several inspections; give one of them")
    origin, where = f"{file.format} {ascii(file.path.name)[1:-1]}", (subject.drop_id, subject.inspection_id)
    return Given(*where, meant, person, at, origin, word, vocabulary.name, subject.image_id)


def files(place: Path, wanted: str) -> list[tuple[Path, str]]:
    """The label files meant, each with its format. Raises LabelError where there is none."""
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
    """A file's lines. Raises LabelError where the whole cannot be read as its format."""
    own = {"csv": default}.get(kind, kind)
    file = LabelFile(path, kind, choices.vocabulary or own, [], [])
    reader = {"rockmaker": _rockmaker, "hwi": _mso}.get(kind, _table)
    try:
        for found in reader(file, _content(path), choices):
            (file.problems if isinstance(found, Problem) else file.rows).append(found)  # type: ignore[arg-type]
    except csv.Error as error:
        raise LabelError(f"{path} cannot be read as text with columns: {error}") from error
    return file


def _content(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise LabelError(f"{path} is larger than {LARGEST >> 20} MiB; split it")
        content = path.read_bytes()
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _table(file: LabelFile, text: str, choices: Choices) -> Iterator[Row | Problem]:
    """CSV, whatever its vocabulary: comma, semicolon or tab, with a heading line."""
    heading = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=heading.count))
    places = _places(file.path, next(reader, []), choices.columns)
    for cells in reader:
        values = {name: cells[at].strip() for name, at in places.items() if at < len(cells) and cells[at].strip()}
        if not any(cell.strip() for cell in cells):
            continue
        try:
            yield _row(reader.line_num, values, file.format, choices.zone)
        except LabelError as error:
            yield Problem(str(file.path), reader.line_num, str(error))


def _places(path: Path, heading: list[str], chosen: Mapping[str, str]) -> dict[str, int]:
    """Which column holds which field. Raises LabelError where no column can be the label or name the drop."""
    columns = [cell.strip() for cell in heading]
    if lost := sorted(set(chosen) - set(columns)):
        raise LabelError(f"{path}, line 1: there is no column {shown(lost[0])}; there are {_listed(columns)}")
    places = {name: columns.index(column) for column, name in chosen.items()}
    for place, column in enumerate(columns):
        spelled = re.sub(r"[^a-z]", "", column.lower())
        name = next((name for name, aliases in _ALIASES.items() if spelled in aliases), None)
        if name is not None and column not in chosen:
            places.setdefault(name, place)
    named = "path" in places or {"plate", "well"} <= places.keys() or {"plate", "row", "column"} <= places.keys()
    if "label" not in places or not named:
        raise LabelError(
            f"{path}, line 1: needs columns label, plate and well, or label and path; there are {_listed(columns)}. "
            "Name others with --map COLUMN=FIELD"
        )
    return places


def _listed(columns: list[str]) -> str:
    return ", ".join(shown(column) for column in columns[:20]) or "none"


def _row(line: int, values: dict[str, str], kind: str, zone: tzinfo) -> Row:
    if "label" not in values:
        raise LabelError("the label is empty; fill it in or remove the line")
    time = _time(values["time"], zone) if "time" in values else None
    well = values.get("well")
    if well is None and "row" in values and "column" in values:
        well = well_name(_number("row", values["row"]), _number("column", values["column"]))
    drop = _number("drop", values["drop"]) if "drop" in values else None
    named = Named(
        values.get("plate"), well, drop, values.get("inspection"), values.get("source"), path=values.get("path")
    )
    if kind == "sgc" and named.path is not None:
        named = _of_minstrel_name(named)
    return Row(line, named, values["label"], values.get("person"), time)


def _of_minstrel_name(named: Named) -> Named:
    """CrystalTrak names images; the name holds plate, inspection, well and subwell, so no folder is needed."""
    image = layouts.make("rigaku", _ANY_PLATE).parse(named.path or "")
    if not isinstance(image, DropImage):
        raise LabelError(f"{shown(named.path or '')} is no Minstrel image name: {image.detail}")
    found = Named(image.barcode, image.well, image.drop, image.inspection_key, named.source)
    return replace(found, plate=named.plate or found.plate)


def _number(what: str, text: str) -> int:
    number = re.fullmatch(r"0*([1-9]\d{0,2})(?:\.0+)?", text, re.ASCII)
    if number is None:
        raise LabelError(f"{what} {shown(text)} is no number from 1; correct it")
    return int(number[1])


def _time(text: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise LabelError(f"{shown(text)} is no time; write it like 2026-03-09 14:30") from error
    if moment.year < 1980:
        raise LabelError(f"{shown(text)} is before 1980; correct it")
    return moment


def _rockmaker(file: LabelFile, text: str, choices: Choices) -> Iterator[Row | Problem]:
    """``report.csv`` of Rock Maker's exporter: the path holds barcode, well and batch, the second field the score.

    The date is the picture's. Source: roberto-formulatrix/RM_Image_export ImageAnalyzer/src/ImageExporter.cs.
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
            expected = "path, score, drop and date of a picture such as 90j8\\Crystals\\90j8_D12_Visible_9_3552.jpg"
            yield Problem(str(file.path), reader.line_num, f"{shown(cells[0])}: expected {expected}")
            continue
        drop = int(cells[2]) if re.fullmatch(r"[1-9]\d?", cells[2].strip(), re.ASCII) else None
        named = Named(image.barcode, image.well, drop, image.inspection_key)
        taken = image.captured_at and image.captured_at.astimezone(UTC)
        yield Row(reader.line_num, named, cells[1], time=taken)


def _mso(file: LabelFile, text: str, choices: Choices) -> Iterator[Row | Problem]:
    """Hauptman-Woodward: the run's folder in line 1, headings, then a well number first and a code last.

    The run's date is taken as the label's, which has none. Source: Hauptman-Woodward/Marco_Polo
    src/polo/utils/io_utils.py.
    """
    lines = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    run = _RUN.search(lines[0][0] if lines and lines[0] else "") or _RUN.search(file.path.stem)
    if run is None or len(lines) < 2:
        raise LabelError(
            f"{file.path}, line 1: expected the run, such as X000015862202008111512-jpg.rar, and msoversion2; "
            "name the file after its run"
        )
    mode = run[3].lower()
    key = run[2] if mode == "jpg" else f"{run[2]}-{mode}"
    try:
        taken = _time(f"{run[2][:8]}T{run[2][8:]}", choices.zone)
    except LabelError as error:
        raise LabelError(f"{file.path}, line 1: {error}") from error
    width = max(map(len, lines[2:]), default=0)
    for number, cells in enumerate(lines[2:], start=3):
        # A line without a code ends with its cocktail, which may look like a code.
        if len(cells) < width or not cells[-1].strip():
            continue
        try:
            row, column = PLATE_FORMATS[1536].position(int(float(cells[0])))
        except (ValueError, OverflowError):
            yield Problem(str(file.path), number, f"{shown(cells[0])} is no well; expected a number from 1 to 1536")
            continue
        yield Row(number, Named(run[1], well_name(row, column), None, key), cells[-1], time=taken)


def find(connection: Any, named: Named) -> Subject:
    """The drop that a person names by hand. Raises LabelError, which offers the names there are."""
    try:
        return labelling.Finder(connection).find(named)
    except LabelError as error:
        offered = offers.meant(connection, named) if error.may_come else None
        raise LabelError(f"{error}; {offered}" if offered else str(error), may_come=error.may_come) from error


def add(
    db: Database, tables: Vocabularies, named: Named, word: str, person: str, now: datetime, *, vocabulary: str
) -> Given:
    """Keep what one person says now. Raises LabelError."""
    spoken = plain("label", word)
    table, bare = tables.split(spoken, vocabulary)
    meant = table.read(bare)

    def work(connection: Any) -> Given:
        subject = find(connection, named)
        where = (subject.drop_id, subject.inspection_id)
        given = Given(*where, meant, plain("person", person), now, "cli", spoken, table.name, subject.image_id)
        labelling.add(connection, [given], now)
        return given

    return db.write(work)


def withdraw(db: Database, named: Named, person: str, now: datetime) -> int:
    """Take back what a person says of a drop at an inspection. Returns how many words. Raises LabelError."""

    def work(connection: Any) -> int:
        subject = find(connection, named)
        return labelling.withdraw(connection, subject, person=plain("person", person), origin="cli", now=now)

    return db.write(work)


def tables_of(settings: Settings) -> Vocabularies:
    """The vocabularies of a configuration. Raises ConfigError where they cannot be used."""
    tables = vocabularies.load(settings.labels.vocabularies)
    tables.named(settings.labels.vocabulary)
    return tables


def resolve_inbox(db: Database, settings: Settings, now: datetime) -> inbox.Turn:
    """One turn over what the LIMS wrote, in short transactions, of a bounded number of rows."""
    tables, done = tables_of(settings), inbox.Turn()
    for _ in range(INBOX_TRANSACTIONS):
        turn = db.write(
            lambda connection: inbox.resolve(connection, tables, settings.labels.vocabulary, now, limit=INBOX_ROWS)
        )
        done += turn
        if turn.looked < INBOX_ROWS:
            break
    return done
