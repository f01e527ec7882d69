"""One pass over a source, for people who do not want to wait for the daemon: `marcod scan`."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from marcod.catalog import rereading
from marcod.catalog.deliveries import PORTION, Recorded
from marcod.database.engine import Database
from marcod.domain import IgnoreReason, path_text
from marcod.layouts.findings import SourceFinding
from marcod.watch.ingest import Ingest, WatchedSource
from marcod.watch.settle import SettleTracker
from marcod.watch.tree import Walk

TICK_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """Progress of a scan: files found, files waiting to stand still, images recorded or found unchanged."""

    found: int
    pending: int
    done: int


@dataclass(frozen=True, slots=True)
class ScanReport:
    """Result of one pass. ``found`` is the sum of new, changed, unchanged, ignored, pending and gone.

    ``pending`` files were still changing or empty when the pass ended, ``gone`` ones vanished or are links that
    leave the root or no regular files. ``unscored`` are those of the new that no model here scores. ``unreadable``
    are examples of names that look like this imager's and cannot be read; ``folders_unreadable`` examples of
    folders that could not be listed. ``findings`` are the files that the layout does not read or warns of; a pass that
    was ended early has none.
    """

    found: int
    new: int
    changed: int
    unchanged: int
    unscored: int
    pending: int
    gone: int
    ignored: dict[IgnoreReason, int]
    unreadable: tuple[str, ...]
    folders_unreadable: tuple[str, ...]
    findings: tuple[SourceFinding, ...]


def scan_once(
    db: Database,
    source: WatchedSource,
    settle_s: float,
    *,
    progress: Callable[[ScanProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> ScanReport:
    """Walk the source's root, wait until what is new stood still, record it, report.

    Files that still change are reported as pending and not waited for. Raises StoreError or MissingRootError; what
    was recorded until then stays. ``stop`` ends the pass early.
    """
    # What an import of plates or other settings left to be done.
    db.write_portions(partial(rereading.catch_up, now=db.now(), source_id=source.id))
    scan = _Scan(db, source, settle_s, progress)
    stop = stop or threading.Event()
    while not scan.walk.done and not stop.is_set():
        scan.step(time.monotonic())
    if scan.walk.done:
        scan.conclude()
    end = time.monotonic() + settle_s
    while not stop.is_set():
        # Asked before the step, so that the last step comes after the time in which everything could settle.
        over = time.monotonic() >= end
        scan.step(time.monotonic())
        if scan.tracker.ripe(time.monotonic()):
            continue
        if over or not scan.tracker:
            break
        stop.wait(min(TICK_S, max(end - time.monotonic(), 0)))
    return scan.report()


class _Scan:
    def __init__(
        self, db: Database, source: WatchedSource, settle_s: float, progress: Callable[[ScanProgress], None] | None
    ) -> None:
        self.walk = Walk(source.root)
        self._db = db
        self.tracker = SettleTracker(settle_s, source.root.stat)
        self._ingest = Ingest(db, source, self.tracker)
        self._progress = progress
        self._recorded = Recorded()
        self._census = source.census(db)
        self._findings: list[SourceFinding] = []

    def step(self, now: float) -> None:
        self._ingest.nominate(self.walk.more(now, PORTION), now, self._census)
        if settled := self.tracker.due(now, PORTION):
            recorded = self._ingest.admit(settled, self._db.now())
            self._recorded += recorded
            self._warn_of_reuse(recorded)
        if self._progress is not None:
            done = self._recorded.new + self._recorded.changed + self._recorded.unchanged
            done += self._ingest.tally.unchanged
            self._progress(ScanProgress(self.walk.counts.files, len(self.tracker), done))

    def _warn_of_reuse(self, recorded: Recorded) -> None:
        if (found := self._census.see_reused(recorded, self._db.now())) is not None:
            self._findings = [*(one for one in self._findings if one.reason != found.reason), found]

    def conclude(self) -> None:
        """Write what the walk counted. A share that lists empty says nothing of what was there before."""
        if self.walk.counts.files:
            self._findings = self._census.end(None, self._db.now())

    def report(self) -> ScanReport:
        tally, recorded = self._ingest.tally, self._recorded
        unchanged = recorded.unchanged + tally.unchanged
        accounted = recorded.new + recorded.changed + unchanged + tally.ignored.total() + len(self.tracker)
        return ScanReport(
            found=self.walk.counts.files,
            new=recorded.new,
            changed=recorded.changed,
            unchanged=unchanged,
            unscored=recorded.unscored,
            pending=len(self.tracker),
            gone=max(self.walk.counts.files - accounted, 0),
            ignored=dict(tally.ignored),
            unreadable=tuple(tally.unreadable),
            folders_unreadable=tuple(path_text(path) for path in self.walk.counts.unreadable_examples),
            findings=tuple(self._findings),
        )
