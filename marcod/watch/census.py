"""Counts of what a source's layout does not read or warns of, taken along by the walks over its folder.

A walk that lists a folder counts its files again, and the new count replaces the folder's former one. So no file
counts twice however often it is seen, and files that were mended or removed count no more. Memory is one small tuple
per folder, most of them shared; the database gets a few rows per walk, and only when they changed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from marcod import layouts
from marcod.catalog import findings
from marcod.catalog.deliveries import Recorded
from marcod.database.engine import Database
from marcod.domain import MAY_END, DropImage, IgnoreReason, NotADrop, WarningKind, path_text
from marcod.layouts.findings import Cause, SourceFinding, causes
from marcod.watch.tree import Counts, Folder, FolderMemory, Found

ASKED: Final = 1_000
"""Files per walk and cause of which other families are asked whether they read them."""

EVERY: Final = timedelta(seconds=10)
"""Pause between two writes while a whole walk is under way."""

CONFIRMED: Final = timedelta(hours=1)
"""Unchanged counts are written again after this long, so that they are not forgotten."""

_COMING: Final[frozenset[Cause]] = frozenset({IgnoreReason.NO_REPORT, *MAY_END})
"""Causes that a file still to come takes away; only a whole walk adds such files, or every delivery would."""


@dataclass(slots=True)
class _Sample:
    """One file of a cause as the example, and how many of the first files each other family reads."""

    example: str
    asked: int = 0
    families: Counter[str] = field(default_factory=Counter)

    def ask(self, path: str, layout: str) -> None:
        self.asked += 1
        self.families.update(name for name in layouts.readers(path) if name != layout)

    def hint(self) -> tuple[str | None, int]:
        """Return the family that reads at least half of the sample, and how many of it."""
        for name, files in self.families.most_common(1):
            if 2 * files >= self.asked:
                return name, files
        return None, 0


class Census:
    """The counts of one source. Not thread-safe: the loop that walks owns it."""

    def __init__(self, db: Database, source_id: int, name: str, layout: str, accepted: Iterable[str] = ()) -> None:
        self._db = db
        self._id, self._name, self._layout = source_id, name, layout
        self._accepted = frozenset(accepted)
        self.whole = True
        self._seen: Counter[Cause | None] = Counter()
        self._totals = self._seen
        self._samples: dict[Cause, _Sample] = {}
        self._former: dict[Cause, _Sample] = {}
        self._reused: Counter[str] = Counter()
        self._folder: Folder | None = None
        self._in_folder: Counter[Cause | None] = Counter()
        self._written: tuple[list[SourceFinding], datetime] | None = None
        self._along_at: datetime | None = None

    def begin(self, *, whole: bool) -> None:
        """Start to count what a walk finds; a walk that is not ``whole`` lists only folders that changed."""
        self.whole = whole
        if whole:
            self._reused.clear()
        self._seen.clear()
        self._samples = {}
        self._folder = None
        self._in_folder.clear()

    def see(self, file: Found, verdict: DropImage | NotADrop) -> None:
        """Count a file that the walk found, by how the layout reads it."""
        self._count(file, causes(file.path, verdict))

    def see_recorded(self, file: Found, warnings: Iterable[Cause]) -> None:
        """Count an image that stands as it was recorded, with the kinds of warning it was recorded with."""
        self._count(file, (None, *warnings))

    def see_reused(self, recorded: Recorded, now: datetime) -> SourceFinding | None:
        """Count new images under a barcode that may be another plate's by now, until a whole walk sees them again.

        Raises StoreError.
        """
        if not recorded.reused:
            return None
        self._reused[recorded.reused_example or ""] += recorded.reused
        (found,) = [one for one in self._findings(self._totals) if one.reason == WarningKind.BARCODE_REUSED]
        self._db.write(findings.add, self._id, [found], now)
        return found

    def _count(self, file: Found, found: tuple[Cause | None, ...]) -> None:
        if not found:
            return
        if file.folder is not self._folder:
            self._leave_folder()
            self._folder = file.folder
        for cause in found:
            self._in_folder[cause] += 1
            if cause is not None:
                self._take_sample(cause, file.path)

    def _take_sample(self, cause: Cause, path: str) -> None:
        sample = self._samples.get(cause)
        if sample is None:
            self._samples[cause] = sample = _Sample(path_text(path))
        if sample.asked < ASKED and isinstance(cause, IgnoreReason):
            sample.ask(path, self._layout)

    def _leave_folder(self) -> None:
        counts = self._in_folder
        if self._folder is not None:
            if not self.whole:
                before = dict(self._folder.before)
                for cause in _COMING & counts.keys():
                    counts[cause] = min(counts[cause], before.get(cause, 0))
            self._folder.counts = _shared(tuple(sorted(counts.items(), key=str)))
        self._seen.update(counts)
        self._folder = None
        counts.clear()

    def write_along(self, now: datetime) -> None:
        """Write higher counts now and then while a first walk is under way, which may take hours. Raises StoreError."""
        if self._written is not None or (self._along_at is not None and now - self._along_at < EVERY):
            return
        self._along_at = now
        if found := self._findings(self._seen):
            self._db.write(findings.add, self._id, found, now)

    def end(self, memory: FolderMemory | None, now: datetime) -> list[SourceFinding]:
        """Return the findings after a walk, which replace those in the database. Raises StoreError; then call it again.

        ``memory`` has the folders that this walk did not list; without one, the walk has to be whole.
        """
        self._leave_folder()
        self._totals = self._seen if memory is None else memory.counts()
        found = self._findings(self._totals)
        former = self._written
        if former is None or former[0] != found or now - former[1] >= CONFIRMED:
            self._db.write(findings.replace, self._id, found, now)
            self._written = found, now
        self._former = self._best_samples()
        return found

    def _findings(self, totals: Counter[Cause | None]) -> list[SourceFinding]:
        if self._reused:
            totals = totals.copy()
            totals[WarningKind.BARCODE_REUSED] += self._reused.total()
            self._samples.setdefault(WarningKind.BARCODE_REUSED, _Sample(min(self._reused)))
        of_files = totals[None] + sum(files for cause, files in totals.items() if isinstance(cause, IgnoreReason))
        counted = [(cause, files) for cause, files in totals.items() if cause is not None and files]
        samples = self._best_samples()
        found = [self._finding(cause, files, of_files, samples[cause]) for cause, files in counted]
        return sorted(found, key=lambda one: (one.kind, one.reason))

    def _best_samples(self) -> dict[Cause, _Sample]:
        """Rank the sample of a whole walk above that of a short one."""
        return self._former | self._samples if self.whole else self._samples | self._former

    def _finding(self, cause: Cause, files: int, of_files: int, sample: _Sample) -> SourceFinding:
        hint, hint_files = sample.hint()
        return SourceFinding(
            source=self._name,
            layout=self._layout,
            kind="ignored" if isinstance(cause, IgnoreReason) else "warning",
            reason=str(cause),
            files=files,
            of_files=of_files,
            example=sample.example,
            hint=hint,
            hint_files=hint_files,
            asked=sample.asked,
            accepted=str(cause) in self._accepted,
        )


@lru_cache(maxsize=4096)
def _shared(counts: Counts) -> Counts:
    """Return the same tuple for equal counts, since most folders of a source hold the same."""
    return counts
