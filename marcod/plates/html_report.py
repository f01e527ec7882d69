"""HTML report of a plate or of hits: one file for screen and print, without scripts and external files.

A plate of any format fits on a landscape A4 page. A drop whose image is gone or broken keeps its place and verdict.
The template escapes all foreign text. Letters, frames and brightness repeat the colours, for grey printers and
colour-blind people.
"""

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

import jinja2

from marcod import __version__, images, text
from marcod.domain import hit_rule, row_letters, text_path
from marcod.errors import ImageError
from marcod.plates.plate_map import LETTERS, MARKS_OF_CLASS, Mark, PlateMap, mark_of
from marcod.plates.reports import Hit
from marcod.store.drops import Trend
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import SYNTHETIC_NOTICE
from marcod.text import csv_safe, printable

BEST: Final = 24
"""Hits that a plate's sheet shows large; two printed rows of six make a page with the map of a small plate."""

CARD_PX: Final = 320

SAID: Final = "\N{PENCIL}"
PAGE_MM: Final = (275.0, 150.0)
"""Width and height that a landscape A4 page leaves for the wells, below the heading."""

DENSE_MM: Final = 7.0
"""A drop that is given less than this width has no room for its probability."""

Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class MarkStyle:
    """Display of a mark on a sheet: its letter, and the style of its colours."""

    letter: str
    style: str


_STYLES: Final = {
    Mark.HIT: "crystals hit",
    Mark.PRECIPITATE: "precipitate",
    Mark.CLEAR: "clear",
    Mark.OTHER: "other",
    Mark.CRYSTALS: "crystals",
    Mark.FAILED: "failed",
    Mark.UNSCORED: "waiting",
}
SHOWN: Final = {mark: MarkStyle(LETTERS[mark], style) for mark, style in _STYLES.items()}


@dataclass(frozen=True, slots=True)
class ImageRoots:
    """Where the images of each source lie on this host."""

    roots: Mapping[str, Path]

    def thumbnail(self, source: str, path: str | None, longest_px: int) -> str | None:
        """Encode a small image as a ``data:`` address, or None when the file is gone or cannot be read as an image.

        ``path`` is as the database keeps it.
        """
        root = self.roots.get(source)
        if root is None or path is None:
            return None
        try:
            small = images.thumbnail(images.read(root / text_path(path), root), longest_px)
        except (OSError, ValueError, ImageError):
            return None
        return "data:image/jpeg;base64," + base64.b64encode(small).decode("ascii")


@dataclass(frozen=True, slots=True)
class MapGeometry:
    """Sizes of a plate's map; ``across`` drops of a well are side by side.

    On a ``dense`` plate there is no room for probabilities, and the letter stands on the image.
    """

    across: int
    slot_mm: float
    image_mm: float
    well_mm: float
    font_pt: float
    dense: bool

    @property
    def gap_mm(self) -> float:
        """The gap between two wells."""
        return _gap_mm(dense=self.dense)

    @property
    def thumbnail_px(self) -> int:
        return max(48, min(200, round(self.slot_mm * 9)))

    @property
    def font_px(self) -> int:
        return 8 if self.dense else 11

    @property
    def screen_px(self) -> int:
        """The width below which the map scrolls sideways."""
        return round(PAGE_MM[0] / self.slot_mm * (24 if self.dense else 44))

    @property
    def frame_mm(self) -> float:
        """The frame around a hit."""
        return 0.4 if self.dense else 0.7


def look(rows: int, columns: int, drops: int) -> MapGeometry:
    """Choose the sizes by which a plate of these rows and columns, with this many drops per well, fits on a page."""
    width, height = PAGE_MM[0] / columns, PAGE_MM[1] / rows
    choices = [_look(width, height, across, math.ceil(drops / across)) for across in range(1, drops + 1)]
    return max(choices, key=lambda choice: min(choice.slot_mm, choice.image_mm * 4 / 3))


def _look(width: float, height: float, across: int, down: int) -> MapGeometry:
    dense = width / across < DENSE_MM
    gap = _gap_mm(dense=dense)
    slot = (width - gap) / across - 0.3
    font_pt = max(3.0, min(7.0, slot / 1.6))
    caption_mm = 0.0 if dense else font_pt * 0.43
    # Never higher than the image is: four to three is what every imager known here takes.
    image = max(1.0, min((height - gap) / down - caption_mm - 0.3, slot * 0.75))
    well = down * (image + caption_mm + 0.3)
    return MapGeometry(across, round(slot, 2), round(image, 2), round(well, 2), round(font_pt, 1), dense)


def _gap_mm(*, dense: bool) -> float:
    return 0.3 if dense else 0.9


@dataclass(frozen=True, slots=True)
class DropCell:
    """A drop as shown on a sheet."""

    mark: MarkStyle
    hit: bool
    said: str
    p_crystals: float | None
    uri: str | None
    place: str
    words: str
    title: str


@dataclass(frozen=True, slots=True)
class WellRow:
    """One row of wells; a well has a place for every drop of the plate, None where it has none."""

    letters: str
    wells: tuple[tuple[DropCell | None, ...], ...]


def plate_sheet(shown: PlateMap, images: ImageRoots, made_at: datetime, done: Done = lambda _: None) -> str:
    """Render the sheet of one inspection: its facts, a map of thumbnails, and its hits in large.

    ``done`` is called with the number of images read.
    """
    size = shown.format
    numbers = sorted({d.image.drop_number for d in shown.drops})
    sizes = look(size.rows, size.columns, max(len(numbers), 1))
    drops = {}
    for count, verdict in enumerate(shown.drops, 1):
        uri = images.thumbnail(shown.summary.source, verdict.image.path, sizes.thumbnail_px)
        drops[verdict.image.place] = _drop(shown, verdict, uri)
        done(count)
    rows = [
        WellRow(row_letters(row), tuple(_well(drops, row, c, numbers) for c in range(1, size.columns + 1)))
        for row in range(1, size.rows + 1)
    ]
    found = [d for d in shown.drops if d.hit]
    best = sorted(found, key=lambda d: -(d.image.p_crystals or 0.0))[:BEST]
    summary = shown.summary
    return _render(
        "plate.html.j2",
        made_at,
        name=summary.barcode or summary.plate_key,
        summary=summary,
        facts=_facts(shown),
        marks=_marks(shown),
        state=_state(shown),
        synthetic=shown.synthetic,
        look=sizes,
        columns=range(1, size.columns + 1),
        numbers=numbers,
        rows=rows,
        best=[_drop(shown, d, images.thumbnail(summary.source, d.image.path, CARD_PX)) for d in best],
        more=len(found) - len(best),
        disputed=any(d.majority is not None and d.majority.disputed for d in shown.drops),
    )


def hits_sheet(
    found: Sequence[Hit], images: ImageRoots, chosen: str, made_at: datetime, done: Done = lambda _: None
) -> str:
    """Render the sheet of hits over all plates; ``chosen`` describes the selection."""
    cards = []
    for count, hit in enumerate(found, 1):
        cards.append(_card(hit, images.thumbnail(hit.source, hit.best_path, CARD_PX)))
        done(count)
    synthetic = any(hit.model_synthetic for hit in found)
    rules = {hit_rule(hit.threshold) for hit in found}
    counted = text.count(len(found), "hit") + (f" ({rules.pop()})" if len(rules) == 1 else "")
    return _render(
        "hits.html.j2", made_at, hits=cards, counted=counted, chosen=chosen, synthetic=synthetic, disputed=False
    )


def _drop(shown: PlateMap, verdict: DropVerdict, uri: str | None) -> DropCell:
    hit = verdict.hit
    mark = SHOWN[mark_of(verdict, shown.version)]
    said = verdict.majority
    flag = "" if said is None else SAID + ("?" if said.disputed else "")
    place = f"{verdict.image.well}.{verdict.image.drop_number}"
    words = ", ".join(_words(shown, verdict))
    scores = (
        ("crystals", verdict.image.p_crystals),
        ("clear", verdict.image.p_clear),
        ("precipitate", verdict.image.p_precipitate),
        ("other", verdict.image.p_other),
    )
    numbers = ", ".join(f"{name} {p:.2f}" for name, p in scores if p is not None)
    title = "; ".join(part for part in (f"{place} {mark.letter}", words, numbers) if part)
    return DropCell(mark, hit, flag, verdict.image.p_crystals, uri, place, words, title)


def _words(shown: PlateMap, verdict: DropVerdict) -> Iterator[str]:
    """Yield what people say of a drop."""
    if verdict.majority is not None:
        yield f"{verdict.majority.label} says {verdict.majority.person}"
    if verdict.image.drop_id in shown.harvested:
        yield "harvested"


def _well(
    drops: Mapping[tuple[int, int, int], DropCell], row: int, column: int, numbers: Iterable[int]
) -> tuple[DropCell | None, ...]:
    """Place the drops of a well by their numbers on the whole plate; empty for an empty well."""
    slots = tuple(drops.get((row, column, number)) for number in numbers)
    return slots if any(slots) else ()


def _facts(shown: PlateMap) -> list[tuple[str, str | None]]:
    summary = shown.summary
    times = [t for t in (summary.first_image_at, summary.last_image_at) if t is not None]
    days = sorted({f"{time:%Y-%m-%d %H:%M} UTC" for time in times})
    return [
        ("key", summary.plate_key if summary.barcode not in (None, summary.plate_key) else None),
        ("project", shown.metadata.project),
        ("screen", shown.metadata.screen),
        ("source", summary.source),
        ("inspection", summary.inspection_key),
        ("arrived", " to ".join(days) or None),
        ("model", str(shown.version)),
        ("model digest", shown.version.digest[:16]),
        ("hits", f"{hit_rule(shown.version.crystal_threshold)}, or labelled Crystals by a person"),
        ("other models", "; ".join(shown.scored_by_others()) or None),
    ]


@dataclass(frozen=True, slots=True)
class LegendLine:
    """A line of the legend; ``before`` is printed once before the classes."""

    letter: str
    style: str
    meaning: str
    count: int
    before: str


def _marks(shown: PlateMap) -> list[LegendLine]:
    """Make the legend with the count of each mark; each drop has one."""
    counts = shown.counts()
    kept = [mark for mark in Mark if mark in (Mark.HIT, *MARKS_OF_CLASS) or counts[mark]]
    words = {Mark.HIT: f"hits ({hit_rule(shown.version.crystal_threshold)})"}
    before = {MARKS_OF_CLASS[0]: "others by likeliest class:"}
    return [
        LegendLine(SHOWN[mark].letter, SHOWN[mark].style, words.get(mark, mark), counts[mark], before.get(mark, ""))
        for mark in kept
    ]


def _state(shown: PlateMap) -> str:
    summary = shown.summary
    labelled = sum(d.majority is not None for d in shown.drops)
    words = [f"{summary.scored} of {summary.expected or summary.seen} drops scored"]
    if labelled:
        words.append(f"{labelled} labelled by people")
    if not summary.complete:
        words.append("still arriving")
    return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Card:
    """A hit as shown on a sheet."""

    hit: Hit
    mark: MarkStyle
    said: str
    uri: str | None
    place: str
    words: str
    title: str


def _card(hit: Hit, uri: str | None) -> Card:
    # One that dissolved is not a hit now and has the mark of its class; any other is one, whatever its class.
    now = MarkStyle(LETTERS[Mark.HIT], "crystals")
    if hit.trend == Trend.DISSOLVING and hit.label is not None:
        now = SHOWN[Mark(hit.label)]
    words = [
        f"inspection {hit.first_hit_inspection_key}",
        "" if hit.cause == "new" else hit.cause,
        hit.trend,
        _class_of(hit),
        hit.project or "",
        hit.source,
    ]
    flag = "" if hit.label_person is None else SAID
    plate = hit.barcode or hit.plate_key
    crystals = "" if hit.p_crystals is None else f"crystals {hit.p_crystals:.2f}"
    drop = f"plate {plate}, {hit.well}.{hit.drop_number} {now.letter}"
    title = "; ".join(part for part in (drop, _class_of(hit), crystals) if part)
    return Card(hit, now, flag, uri, plate, ", ".join(word for word in words if word), title)


def _class_of(hit: Hit) -> str:
    """Name the class of a hit's drop and who gave it; empty where there is none."""
    if hit.label_person is not None:
        return f"{hit.label} says {hit.label_person}"
    return "" if hit.label is None else f"likeliest {hit.label}"


def file_name(shown: PlateMap) -> str:
    """Return a name for the sheet's file that any file system takes, such as ``P1-3.html``."""
    summary = shown.summary
    parts = (summary.barcode or summary.plate_key, summary.inspection_key)
    safe = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part)[:60].strip(".-") or "plate" for part in parts)
    return f"{safe}.html"


def _text(value: object) -> str:
    """Make foreign text safe: no control characters, and nothing a spreadsheet takes for a formula."""
    return str(csv_safe(printable(str(value))))


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters["text"] = _text
    return made


def _render(template: str, made_at: datetime, **values: object) -> str:
    made_from = _templates().get_template(template)
    time = f"{made_at:%Y-%m-%d %H:%M} UTC"
    return made_from.render(version=__version__, made_at=time, mark=SAID, notice=SYNTHETIC_NOTICE, **values)
