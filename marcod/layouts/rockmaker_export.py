r"""Rock Maker's command-line exporter: ``{barcode}/{score}/{barcode}_{A1}_{profile}_{hotkey}_{batch}.jpg``.

An older form, met in the MARCO data, has no batch (``002s_C6_ImagerDefaults_9.jpg``). Barcodes and profiles may hold
underscores, so a name can be read in several ways; the folder of the barcode tells which one is right. The names have
lost the drop and the date. ``{barcode}/report.csv`` has the date; an image that has a batch is read without it::

    03/16/10 08:36:21                                           when the plate was dispensed
    "D:\export\90j8\Crystals\90j8_D12_Visible_9_3552.jpg","Crystals",Drop,03/17/10 09:00:00

The exporter writes the word ``Drop`` in the third field (roberto-formulatrix/RM_Image_export
ImageAnalyzer/src/ImageExporter.cs); other versions may write the number. With the word, the drop is taken as 1
and the image says so. A report names only what its export copied newly. The exporter copies without overwriting, so of
two drops of one well only one is kept.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final

from marcod import tabular
from marcod.domain import DropImage, IgnoreReason, LayoutWarning, WarningKind, row_letters, row_number
from marcod.errors import LayoutError
from marcod.layouts.base import IMAGE, Aside, Companions, Grammar, disagreement, not_mine, same_name, unreadable
from marcod.layouts.paths import folder_above, normalise, split
from marcod.text import quoted

REPORT: Final = "report.csv"
LONGEST_REPORT: Final = 16 * 2**20
"""Bytes; a thousand inspections of a 288-drop plate."""

_WELL: Final = re.compile(r"([A-Z]{1,2})(\d{1,2})", re.IGNORECASE | re.ASCII)
_OLDER_PROFILE: Final = re.compile(r"[A-Z]", re.IGNORECASE | re.ASCII)
_EXTENSION: Final = re.compile(rf"{IMAGE}\Z", re.IGNORECASE)
_LONGEST_HOTKEY: Final = 2
_LEVELS: Final = 4
"""Folders above an image in which its barcode and its report are looked for; a score may be Crystal/Micro."""

# .NET writes "/" and ":" of MM/dd/yy HH:mm:ss as the separators of the Windows machine's culture.
_DATE: Final = re.compile(r"(\d\d)[/.-](\d\d)[/.-](\d{2}|\d{4})[ T](\d\d)[:.](\d\d)[:.](\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Row:
    drop: str
    date: str


@dataclass(frozen=True, slots=True)
class _Name:
    """One reading of a file name; ``batch`` is None in the older form."""

    barcode: str
    row: int
    column: int
    profile: str
    batch: str | None


class RockMakerExport(Grammar):
    """Only scored composites are ever exported; the batch is the inspection, or the day where there is none."""

    name = "rockmaker-export"
    title = "Rock Maker export tool"
    below_inspection = 1
    revision = 2

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, file = split(path)
        above = list(reversed(folders.split("/")[-_LEVELS:])) if folders else []
        name = _read(file, above)
        where = self.place(name.barcode, name.row, name.column)
        reported = _reported(folders, file, name.barcode, companions)
        drop, warnings = (1, (_MISSING,)) if reported is None else _drop(reported.drop)
        taken, undated = self._date(reported)
        if name.batch is None and taken is None:
            raise _no_report("the name has no batch and report.csv has no date for it that can be read")
        return self.image(
            replace(where, drop=drop, warnings=where.warnings + _contradiction(above, name.barcode)),
            str(int(name.batch)) if name.batch else f"{taken:%Y-%m-%d}",
            self.options.light_named(name.profile),
            barcode=name.barcode,
            captured_at=taken,
            profile=name.profile or None,
            warnings=warnings + undated,
        )

    def _date(self, reported: _Row | None) -> tuple[datetime | None, tuple[LayoutWarning, ...]]:
        """Return the time of a row; another program that saved the report may have made it ambiguous."""
        if reported is None:
            return None, ()
        if (parts := _DATE.fullmatch(reported.date)) is not None:
            with suppress(Aside):
                return self.moment(parts[3], parts[1], parts[2], *parts.groups()[3:]), ()
        text = f"report.csv gives the date {quoted(reported.date)}, which cannot be read"
        return None, (LayoutWarning(WarningKind.DATE_UNREADABLE, text),)

    def write(self, image: DropImage) -> str:
        well = f"{row_letters(image.row)}{image.column}"
        profile = image.profile or image.modality.value.capitalize()
        batch = f"_{image.inspection_key}" if image.inspection_key.isdecimal() else ""
        return f"{image.plate_key}/Scored/{image.plate_key}_{well}_{profile}_0{batch}.jpg"

    def sidecars(self, images: Iterable[DropImage]) -> dict[str, bytes]:
        reports: dict[str, list[str]] = {}
        for image in images:
            lines = reports.setdefault(f"{image.plate_key}/{REPORT}", [self._clock(image)])
            path = self.write(image).replace("/", "\\")
            lines.append(f'"{path}","Scored",{image.drop},{self._clock(image)}')
        return {path: "\r\n".join([*lines, ""]).encode() for path, lines in reports.items()}

    def _clock(self, image: DropImage) -> str:
        if image.captured_at is None:
            raise LayoutError("report.csv carries the date; give the image a captured_at.")
        return f"{image.captured_at.astimezone(self.options.timezone):%m/%d/%y %H:%M:%S}"


_MISSING: Final = LayoutWarning(
    WarningKind.REPORT_MISSING, "no row in report.csv, so the date is not known; taken as drop 1"
)


def _read(file: str, above: Sequence[str]) -> _Name:
    """Return the reading of a name whose barcode a folder above bears, else the likeliest. Raises Aside without one."""
    readings = _readings(file)
    for folder in above:
        for _, name in readings:
            if same_name(name.barcode, folder):
                return name
    if not readings:
        raise not_mine("barcode, well, profile, hotkey and batch, such as 90j8_D12_Visible_9_3552.jpg")
    likeliest = [name for rank, name in readings if rank == readings[0][0]]
    if len(likeliest) > 1:
        barcodes = " or ".join(quoted(name.barcode) for name in likeliest)
        raise unreadable(file, f"a folder of its barcode above it, since that may be {barcodes}")
    return likeliest[0]


def _readings(file: str) -> list[tuple[int, _Name]]:
    """Every way to read a file name with its rank, the likeliest first."""
    extension = _EXTENSION.search(file)
    parts = file[: extension.start()].split("_") if extension else []
    found = []
    for at in range(1, len(parts) - 2):
        if (well := _WELL.fullmatch(parts[at])) is not None and any(parts[:at]):
            for rank, profile, batch in _rest(parts[at + 1 :]):
                name = _Name("_".join(parts[:at]), row_number(well[1]), int(well[2]), profile, batch)
                found.append((rank, name))
    return sorted(found, key=lambda one: one[0])


def _rest(parts: Sequence[str]) -> Iterator[tuple[int, str, str | None]]:
    """Profile and batch of what follows the well, and a rank: hotkeys have two characters at most."""
    *profile, key, last = parts
    if profile and last.isascii() and last.isdigit() and len(last) <= 18:
        yield (0 if len(key) <= _LONGEST_HOTKEY else 2), "_".join(profile), last
    if 1 <= len(last) <= _LONGEST_HOTKEY and _OLDER_PROFILE.match("_".join((*profile, key))):
        yield 1, "_".join((*profile, key)), None


def _reported(folders: str, file: str, barcode: str, companions: Companions) -> _Row | None:
    """Return the image's row in the report of its plate, which lies in the barcode's folder, or near the image."""
    _, score = folder_above(folders)
    for folder in _places(folders, barcode):
        content = companions(f"{folder}/{REPORT}" if folder else REPORT)
        if content is not None and len(content) <= LONGEST_REPORT:
            rows = _rows(content)
            if (row := rows.get(f"{score}/{file}".lower()) or rows.get(file.lower())) is not None:
                return row
    return None


def _places(folders: str, barcode: str) -> list[str]:
    """Folders that may hold the report: the barcode's, the one above the image's, the image's."""
    parts = folders.split("/") if folders else []
    ends = range(len(parts), max(0, len(parts) - _LEVELS), -1)
    named = [end for end in ends if same_name(parts[end - 1], barcode)][:1]
    return list(dict.fromkeys("/".join(parts[:end]) for end in (*named, max(0, len(parts) - 1), len(parts))))


@lru_cache(maxsize=32)
def _rows(content: bytes) -> dict[str, _Row]:
    """Rows by the last two parts and by the last part of their path, in lower case."""
    text = _decoded(content)
    head = text[: text.find("\n", text.find("\n") + 1)] or text
    rows: dict[str, _Row] = {}
    # What cannot be read has no rows; the images say that they miss them.
    with suppress(csv.Error):
        for fields in csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count)):
            if len(fields) >= 4:
                row = _Row(fields[2].strip(), fields[3].strip())
                last_two = normalise(fields[0].strip()).lower().split("/")[-2:]
                rows["/".join(last_two)] = row
                rows.setdefault(last_two[-1], row)
    return rows


def _decoded(content: bytes) -> str:
    """Return the text of a report, which Excel may have saved in another encoding.

    Latin-1 serves where the encoding is unknown: names, scores and dates are ASCII.
    """
    try:
        return tabular.text_of(content)
    except tabular.TableError:
        return content.decode("latin-1")


def _drop(text: str) -> tuple[int, tuple[LayoutWarning, ...]]:
    if text.isascii() and text.isdigit() and len(text) <= 2 and int(text):
        return int(text), ()
    lost = f"report.csv gives {quoted(text)} instead of the drop's number; taken as drop 1"
    return 1, (LayoutWarning(WarningKind.DROP_NUMBER_LOST, lost),)


def _contradiction(above: Sequence[str], barcode: str) -> tuple[LayoutWarning, ...]:
    if len(above) < 2 or any(same_name(folder, barcode) for folder in above):
        return ()
    return (disagreement("barcode", above[1], barcode, "name"),)


def _no_report(what: str) -> Aside:
    return Aside(IgnoreReason.NO_REPORT, what, may_change=True)
