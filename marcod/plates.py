"""One plate as people look at it: finds the plate and the inspection meant, and exports what was found.

Hides how a key, a barcode or an inspection number leads to rows; promises plate order and one row a drop.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from marcod.domain import PLATE_FORMATS, DropClass, PlateFormat
from marcod.errors import NotFoundError
from marcod.store import reports, summaries, versions
from marcod.store.engine import Database

COLUMNS: Final = (
    "source",
    "plate_key",
    "barcode",
    "inspection_key",
    "well",
    "drop_number",
    "label",
    "p_clear",
    "p_crystals",
    "p_other",
    "p_precipitate",
    "hit",
    "failed",
    "model",
    "model_synthetic",
    "path",
)
"""Columns of an export, in order; probabilities are between 0 and 1, empty while not scored."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class PlateMap:
    """One inspection of a plate: its summary, the model version that speaks, and every drop in plate order."""

    summary: reports.Summary
    version: versions.Version
    drops: tuple[summaries.Verdict, ...]

    @property
    def format(self) -> PlateFormat:
        """The smallest standard plate that holds every well seen."""
        rows = max((d.well_row for d in self.drops), default=8)
        columns = max((d.well_column for d in self.drops), default=12)
        fitting = (f for f in PLATE_FORMATS.values() if f.wells >= 96 and f.rows >= rows and f.columns >= columns)
        return next(fitting, PlateFormat(rows, columns))

    def records(self) -> Iterator[dict[str, Any]]:
        """One plain record a drop, with the keys of :data:`COLUMNS`."""
        head = {
            "source": self.summary.source,
            "plate_key": self.summary.plate_key,
            "barcode": self.summary.barcode,
            "inspection_key": self.summary.inspection_key,
        }
        for drop in self.drops:
            p = drop.p_crystals
            yield {
                **head,
                "well": drop.well,
                "drop_number": drop.drop_number,
                "label": drop.label,
                "p_clear": drop.p_clear,
                "p_crystals": p,
                "p_other": drop.p_other,
                "p_precipitate": drop.p_precipitate,
                "hit": p is not None and p >= self.version.crystal_threshold,
                "failed": drop.failed,
                "model": str(self.version),
                "model_synthetic": self.version.synthetic,
                "path": drop.path,
            }

    def csv(self) -> str:
        """The records as CSV; text that a spreadsheet would take for a formula is quoted with an apostrophe."""
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for record in self.records():
            writer.writerow({key: _plain(value) for key, value in record.items()})
        return out.getvalue()


def _plain(value: object) -> object:
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def load(
    db: Database,
    plate: str,
    *,
    source: str | None = None,
    inspection: str | None = None,
    model: versions.Version | None = None,
) -> PlateMap:
    """The map of a plate, by key or barcode; the latest inspection and the model of its summary unless told.

    Raises NotFoundError when there is no such plate or inspection, or when several plates answer to the name.
    """
    found = db.read(lambda connection: reports.find_plates(connection, plate, source))
    if len(found) > 1:
        names = ", ".join(f"{p.source} (key {p.key})" for p in found)
        raise NotFoundError(f"several plates answer to {plate!r}: {names}; name one with --source or by its key")
    return db.read(lambda connection: _load(connection, found[0], inspection, model))


def _load(connection: Any, plate: reports.Plate, inspection: str | None, model: versions.Version | None) -> PlateMap:
    rows = reports.summaries(connection, [plate.id], limit=10_000)
    if inspection is not None:
        rows = [r for r in rows if inspection in (r.inspection_key, str(r.inspection_ordinal))]
    if not rows:
        raise NotFoundError(f"plate {plate.key} has no inspection {inspection!r}; `marcod plate list` shows them")
    summary = rows[0]
    version = model or versions.find(connection, summary.model, summary.model_version)
    drops = tuple(summaries.verdicts(connection, summary.inspection_id, version))
    return PlateMap(summary if model is None else _as_seen_by(version, summary, drops), version, drops)


def _as_seen_by(
    version: versions.Version, summary: reports.Summary, drops: tuple[summaries.Verdict, ...]
) -> reports.Summary:
    """The summary with the counts of another model version than the one that speaks for the inspection."""
    counts = Counter(drop.label for drop in drops)
    scored = [drop.p_crystals for drop in drops if drop.p_crystals is not None]
    return replace(
        summary,
        model=version.name,
        model_version=version.version,
        model_synthetic=version.synthetic,
        n_clear=counts[DropClass.CLEAR],
        n_crystals=counts[DropClass.CRYSTALS],
        n_other=counts[DropClass.OTHER],
        n_precipitate=counts[DropClass.PRECIPITATE],
        hits=sum(p >= version.crystal_threshold for p in scored),
        best_wells=summaries.best_wells(drops),
        seen=len(drops),
        scored=len(scored),
        failed=sum(drop.failed for drop in drops if drop.p_crystals is None),
        complete=bool(drops) and len(scored) == len(drops),
        complete_rule=None,
    )
