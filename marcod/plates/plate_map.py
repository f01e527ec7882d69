"""Plate map: one inspection of a plate, its drops, counts and exports.

Two terms, the same everywhere: the *class* of a drop is the likeliest of the four, or a person's label, which wins. A
*hit* is a drop to look at: its crystal probability reaches the model's threshold, or a person labelled it Crystals; a
drop that a person labelled otherwise is not one.

Guarantees:
- Drops come in plate order, one record per drop, also where a drop has several images.
- On a map and in a sentence of counts each drop counts once, by its :class:`Mark`: hits first, the others by class.
- In a table the four class columns divide the drops, hits included; ``hits`` says how many of them to look at.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from marcod import text
from marcod.database.engine import Database
from marcod.domain import CLASSES, COLUMN_OF_CLASS, PLATE_FORMATS, PlateFormat, hit_rule
from marcod.errors import NotFoundError
from marcod.plates import history, reports
from marcod.plates.harvest import harvested_on
from marcod.plates.metadata import PlateMetadata, metadata_of
from marcod.store import known_names, summaries, verdicts, versions
from marcod.text import csv_safe

COLUMNS: Final = (
    "source", "plate_key", "barcode", "inspection_key", "well", "drop_number", "label", *COLUMN_OF_CLASS.values(),
    "hit", "failed", "model", "model_synthetic", "path", "model_label", "label_person", "label_disputed", "project",
    "screen", "harvested",
)  # fmt: skip
"""Columns of an export, in order; probabilities are between 0 and 1, empty while not scored.

``label`` and ``hit`` are what counts: what people say, else the model, whose own word is ``model_label``.
"""


class Mark(StrEnum):
    """The one mark of a drop on a map, in the order in which they are counted: a hit, else its class, else why none."""

    HIT = "hit"
    PRECIPITATE = "Precipitate"
    CLEAR = "Clear"
    OTHER = "Other"
    CRYSTALS = "Crystals"
    FAILED = "failed"
    UNSCORED = "not scored"


LETTERS: Final = {
    Mark.HIT: "X",
    Mark.PRECIPITATE: "p",
    Mark.CLEAR: "\N{MIDDLE DOT}",
    Mark.OTHER: "o",
    Mark.CRYSTALS: "x",
    Mark.FAILED: "!",
    Mark.UNSCORED: "?",
}
"""The letter of each mark, on every map and sheet."""

MARKS_OF_CLASS: Final = (Mark.PRECIPITATE, Mark.CLEAR, Mark.OTHER, Mark.CRYSTALS)
"""The marks of drops that are not hits but have a class."""


def mark_of(drop: verdicts.DropVerdict, version: versions.Version) -> Mark:
    """Return the mark by which a drop counts."""
    if drop.hit:
        return Mark.HIT
    if drop.label is None:
        return Mark.FAILED if drop.image.failed or drop.image.gone else Mark.UNSCORED
    return Mark(drop.label)


@dataclass(frozen=True, slots=True)
class PlateMap:
    """One inspection of a plate: its summary, the model version of its verdicts, and every drop in plate order.

    ``harvested`` are the ids of the drops whose crystals were harvested, at whatever inspection. ``others`` are the
    versions, by id, that gave the scores of drops whose files are gone, where that is another one.
    """

    plate_id: int
    summary: reports.Summary
    version: versions.Version
    drops: tuple[verdicts.DropVerdict, ...]
    metadata: PlateMetadata
    harvested: frozenset[int] = frozenset()
    others: Mapping[int, versions.Version] = field(default_factory=dict)

    def version_of(self, drop: verdicts.DropVerdict) -> versions.Version:
        """Return the version that gave a drop's score."""
        return self.others.get(drop.image.score_version_id or 0, self.version)

    @property
    def synthetic(self) -> bool:
        """True if the score of a drop comes from a model trained on rendered drops alone."""
        return any(self.version_of(d).synthetic for d in self.drops if d.image.p_crystals is not None)

    def scored_by_others(self) -> list[str]:
        """Say of how many drops another version's score counts, and under which threshold: a phrase a version."""
        counts = Counter(drop.image.score_version_id for drop in self.drops)
        return [
            f"{text.count(counts[key], 'drop')} by {other} ({hit_rule(other.crystal_threshold)}), "
            "since the files are gone"
            for key, other in self.others.items()
        ]

    @property
    def format(self) -> PlateFormat:
        """The plate's format as given, else the smallest standard plate; it holds every well seen."""
        rows = max((d.image.well_row for d in self.drops), default=8)
        columns = max((d.image.well_column for d in self.drops), default=12)
        if (grid := self.metadata.grid) is not None:
            return PlateFormat(max(rows, grid.rows), max(columns, grid.columns))
        fitting = (f for f in PLATE_FORMATS.values() if f.wells >= 96 and f.rows >= rows and f.columns >= columns)
        return next(fitting, PlateFormat(rows, columns))

    def counts(self) -> Counter[Mark]:
        """Count the drops of each mark."""
        return Counter(mark_of(drop, self.version) for drop in self.drops)

    def counted(self) -> str:
        """Write the counts as :func:`sentence_of` does, and which drops another version scored."""
        return "; ".join([sentence_of(self.counts(), self.version.crystal_threshold), *self.scored_by_others()])

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one plain record per drop, with the keys of :data:`COLUMNS`."""
        head = {
            "source": self.summary.source,
            "plate_key": self.summary.plate_key,
            "barcode": self.summary.barcode,
            "inspection_key": self.summary.inspection_key,
        }
        for drop in self.drops:
            yield {
                **head,
                "well": drop.image.well,
                "drop_number": drop.image.drop_number,
                "model": str(self.version_of(drop)),
                "model_synthetic": self.version_of(drop).synthetic,
                **_verdict(drop, self.version),
                "project": self.metadata.project,
                "screen": self.metadata.screen,
                "harvested": drop.image.drop_id in self.harvested,
            }

    def csv(self) -> str:
        """Write the records as CSV; see :func:`csv_text`."""
        return csv_text(COLUMNS, self.records())


def sentence_of(counts: Counter[Mark], threshold: float) -> str:
    """Write counts of drops in a sentence, each drop once, such as ``3 drops: 1 hit (crystals >= 0.25); ...``."""
    hits = f"{text.count(counts[Mark.HIT], 'hit')} ({hit_rule(threshold)})"
    others = ", ".join(f"{counts[mark]} {mark}" for mark in MARKS_OF_CLASS if counts[mark])
    rest = [f"{counts[mark]} {mark}" for mark in (Mark.FAILED, Mark.UNSCORED) if counts[mark]]
    parts = [hits, *([f"others by likeliest class: {others}"] if others else []), *rest]
    return f"{text.count(counts.total(), 'drop')}: {'; '.join(parts)}"


def _verdict(drop: verdicts.DropVerdict, version: versions.Version) -> dict[str, Any]:
    return {
        "label": drop.label,
        **{name: getattr(drop.image, name) for name in COLUMN_OF_CLASS.values()},
        "hit": drop.hit,
        "failed": drop.image.failed,
        "path": drop.image.path,
        "model_label": drop.image.label,
        "label_person": None if drop.majority is None else drop.majority.person,
        "label_disputed": drop.majority is not None and drop.majority.disputed,
    }


def csv_text(columns: Sequence[str], records: Iterable[Mapping[str, object]]) -> str:
    """Write records as CSV; text that a spreadsheet would take for a formula is quoted with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _one_cell(csv_safe(value)) for key, value in record.items()})
    return out.getvalue()


def _one_cell(value: object) -> object:
    """Quote a carriage return, which Python 3.11 does not and after which a spreadsheet starts a row."""
    return value.replace("\r", " ") if isinstance(value, str) else value


def load(
    db: Database,
    plate: str,
    *,
    source: str | None = None,
    inspection: str | None = None,
    model: versions.Version | None = None,
) -> PlateMap:
    """Load the map of a plate by key or barcode; by default its latest inspection and the model of its summary.

    Raises NotFoundError when there is no such plate or inspection, or when several plates answer to the name.
    """
    found = _find(db, plate, source)
    return db.read(_load, found, inspection, model)


def history_of(db: Database, shown: PlateMap) -> history.PlateHistory:
    """Read the plate's drops through all its inspections, for the map's model version."""
    return db.read(history.of_plate, shown.plate_id, shown.version)


def history_records(past: history.PlateHistory) -> Iterator[dict[str, Any]]:
    """Make one plain record per drop, with one record per inspection that has an image of it."""
    for drop in past.drops:
        looks = zip(past.inspections, drop.looks, strict=True)
        yield {
            "well": drop.last.image.well,
            "drop_number": drop.last.image.drop_number,
            "hit": drop.hit,
            "trend": drop.trend,
            "first_hit_inspection_key": drop.first_hit,
            "highest_p_crystals": drop.highest_p_crystals,
            "inspections": [
                {"inspection_key": seen.key, **_verdict(look, past.version)} for seen, look in looks if look is not None
            ],
        }


def _find(db: Database, plate: str, source: str | None) -> reports.Plate:
    found = db.read(reports.find_plates, plate, source)
    if len(found) > 1:
        raise NotFoundError(f"several plates answer to {plate!r}: {_described(found)}")
    return found[0]


def _described(found: list[reports.Plate]) -> str:
    """Describe plates of one name, and the options that choose one; the end of a sentence."""
    names = ", ".join(f"{p.source} (key {p.key})" for p in found)
    first, second = found[0], found[1]
    if len({p.key for p in found}) == len(found):
        return f"{names}; give its key, such as {first.key}"
    if first.key != second.key:
        return f"{names}; give its key and --source"
    return (
        f"{names}; name one with --source {first.source}. If the sources are one folder under two names, "
        f"`marcod source merge {first.source} {second.source}` makes them one"
    )


def _load(connection: Any, plate: reports.Plate, inspection: str | None, model: versions.Version | None) -> PlateMap:
    rows = reports.summaries(connection, [plate.id], limit=10_000)
    if not rows:
        raise NotFoundError(f"no image of plate {plate.key} has been recorded that a model can score")
    if inspection is not None:
        rows = [r for r in rows if inspection in (r.inspection_key, str(r.inspection_ordinal))]
    if not rows:
        offered = known_names.inspections(connection, plate.id, inspection or "")
        raise NotFoundError(f"plate {plate.key} has no inspection {inspection!r}; {offered}")
    summary = rows[0]
    version = model or versions.find(connection, summary.model, summary.model_version)
    drops = tuple(verdicts.drops_at(connection, summary.inspection_id, version))
    given = metadata_of(connection, plate.id)
    seen = summary if model is None else _as_seen_by(version, summary, drops)
    kept = sorted({d.image.score_version_id for d in drops if d.image.score_version_id is not None})
    others = {key: versions.get(connection, key) for key in kept}
    return PlateMap(plate.id, seen, version, drops, given, harvested_on(connection, plate.id), others)


def _as_seen_by(
    version: versions.Version, summary: reports.Summary, drops: tuple[verdicts.DropVerdict, ...]
) -> reports.Summary:
    """Recount a summary for another model version than its own."""
    counts = Counter(drop.label for drop in drops)
    by_class: dict[str, Any] = {f"n_{each.lower()}": counts[each] for each in CLASSES}
    scored = sum(drop.image.p_crystals is not None for drop in drops)
    return replace(
        summary,
        model=version.name,
        model_version=version.version,
        model_synthetic=version.synthetic,
        crystal_threshold=version.crystal_threshold,
        **by_class,
        hits=sum(drop.hit for drop in drops),
        best_wells=summaries.best_wells(drops),
        seen=len(drops),
        scored=scored,
        failed=sum(drop.image.failed for drop in drops if drop.image.p_crystals is None),
        complete=bool(drops) and scored == len(drops),
        complete_rule=None,
    )
