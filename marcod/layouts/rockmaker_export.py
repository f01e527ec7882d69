r"""Rock Maker's command-line exporter: ``{barcode}/{score}/{barcode}_{A1}_{profile}_{hotkey}_{batch}.jpg``.

An older form, met in the MARCO data, has no batch (``002s_C6_ImagerDefaults_9.jpg``). The names have lost the
drop and the date; ``{barcode}/report.csv`` has the date, so a picture waits for its row there::

    03/16/10 08:36:21                                           when the plate was dispensed
    "D:\export\90j8\Crystals\90j8_D12_Visible_9_3552.jpg","Crystals",Drop,03/17/10 09:00:00

The exporter writes the word ``Drop`` in the third field (roberto-formulatrix/RM_Image_export
ImageAnalyzer/src/ImageExporter.cs); other versions may write the number. With the word, the drop is taken as 1
and the image says so. The exporter copies without overwriting, so of two drops of one well only one is kept.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from marcod.domain import DropImage, LayoutWarning, Reason, WarningKind, row_letters, row_number
from marcod.errors import LayoutError
from marcod.layouts.contract import (
    IMAGE,
    Aside,
    Companions,
    Grammar,
    check_drop,
    check_well,
    disagreement,
    modality_named,
    moment,
    not_mine,
    shown,
)
from marcod.layouts.paths import folder_above, normalise, split

REPORT: Final = "report.csv"
LONGEST_REPORT: Final = 16 * 2**20
"""Bytes; a thousand inspections of a 288-drop plate."""

_NAME: Final = re.compile(
    r"(?P<barcode>[^_/]+)_(?P<row>[A-Z]{1,2})(?P<column>\d{1,2})_"
    r"(?:(?P<profile>[^_/]*)_[^_/]*_(?P<batch>\d{1,18})|(?P<older_profile>[A-Z][^_/]*)_[^_/]{1,2})"
    rf"{IMAGE}",
    re.IGNORECASE | re.ASCII,
)
# .NET writes "/" and ":" of MM/dd/yy HH:mm:ss as the separators of the Windows machine's culture.
_DATE: Final = re.compile(r"(\d\d)[/.-](\d\d)[/.-](\d{2}|\d{4})[ T](\d\d)[:.](\d\d)[:.](\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Row:
    drop: str
    date: str


class RockMakerExport(Grammar):
    """Only scored composites are ever exported; the batch is the inspection, or the day where there is none."""

    name = "rockmaker-export"
    below_inspection = 1

    def read(self, path: str, companions: Companions) -> DropImage:
        folders, name = split(path)
        match = _NAME.fullmatch(name)
        if match is None:
            raise not_mine("barcode, well, profile, hotkey and batch, such as 90j8_D12_Visible_9_3552.jpg")
        row, column = row_number(match["row"]), int(match["column"])
        check_well(self.options.plate_format, row, column)
        reported = _reported(folders, name, companions)
        drop, warnings = _drop(reported.drop)
        parts = _DATE.fullmatch(reported.date)
        taken = parts and moment(self.options.timezone, parts[3], parts[1], parts[2], *parts.groups()[3:])
        if match["batch"] is None and taken is None:
            raise _no_report("the name has no batch and its row in report.csv no date that can be read")
        profile = match["profile"] if match["batch"] else match["older_profile"]
        return DropImage(
            layout=self.name,
            plate_key=match["barcode"],
            inspection_key=str(int(match["batch"])) if match["batch"] else f"{taken:%Y-%m-%d}",
            row=row,
            column=column,
            drop=drop,
            modality=modality_named(profile),
            barcode=match["barcode"],
            captured_at=taken,
            profile=profile or None,
            warnings=warnings + _contradiction(folders, match["barcode"]),
        )

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


def _reported(folders: str, name: str, companions: Companions) -> _Row:
    """The picture's row in the report of its plate, which lies one folder up or beside it."""
    further, score = folder_above(folders)
    missing = "the drop's date is only in report.csv; copy it into the folder of the barcode"
    for place in dict.fromkeys((further, folders)):
        content = companions(f"{place}/{REPORT}" if place else REPORT)
        if content is None:
            continue
        if len(content) > LONGEST_REPORT:
            raise _no_report(f"report.csv is larger than {LONGEST_REPORT >> 20} MiB and was not read")
        rows = _rows(content)
        row = rows.get(f"{score}/{name}".lower()) or rows.get(name.lower())
        if row is not None:
            return row
        missing = "report.csv has no row for this picture; it comes with the next export"
    raise _no_report(missing)


@lru_cache(maxsize=32)
def _rows(content: bytes) -> dict[str, _Row]:
    """Rows by the last two parts and by the last part of their path, in lower case."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows: dict[str, _Row] = {}
    try:
        for fields in csv.reader(text.splitlines()):
            if len(fields) >= 4:
                row = _Row(fields[2].strip(), fields[3].strip())
                last_two = normalise(fields[0].strip()).lower().split("/")[-2:]
                rows["/".join(last_two)] = row
                rows.setdefault(last_two[-1], row)
    except csv.Error as error:
        raise _no_report(f"report.csv cannot be read: {error}") from error
    return rows


def _drop(text: str) -> tuple[int, tuple[LayoutWarning, ...]]:
    if text.isascii() and text.isdigit() and len(text) <= 2:
        check_drop(int(text))
        return int(text), ()
    lost = f"report.csv gives {shown(text)} instead of the drop's number; taken as drop 1"
    return 1, (LayoutWarning(WarningKind.DROP_NUMBER_LOST, lost),)


def _contradiction(folders: str, barcode: str) -> tuple[LayoutWarning, ...]:
    further, last = folder_above(folders)
    plate = folder_above(further)[1]
    if not plate or barcode.casefold() in (plate.casefold(), last.casefold()):
        return ()
    return (disagreement("barcode", plate, barcode, "name"),)


def _no_report(what: str) -> Aside:
    return Aside(Reason.NO_REPORT, what, may_change=True)
