"""The watching loop: schedule of walks and settling, and recovery when disks or databases are offline.

One round (:meth:`Watcher.step`) takes a bounded portion of work and never waits, so that tests pass the time in and
a slow share delays nothing but itself. Correctness rests on walks: a full one at the start, short ones over changed
folders every ``rescan_s``, full ones every ``full_rescan_s``; observers only make it quick. Nothing that was
nominated is dropped before it is in the database or gone from the disk.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from marcod import telemetry
from marcod.catalog.deliveries import PORTION, Recorded
from marcod.database.engine import Database
from marcod.domain import path_text
from marcod.errors import MarcodError
from marcod.layouts.findings import SourceFinding
from marcod.settings import WatchSettings
from marcod.watch.census import Census
from marcod.watch.ingest import Ingest, WatchedSource
from marcod.watch.observe import EventBuffer, ObserverSupervisor
from marcod.watch.settle import SettleTracker
from marcod.watch.status import SourceStatus
from marcod.watch.tree import FolderMemory, Found, Identity, MissingRootError, Walk, outermost

TICK_S: Final = 0.5
"""Longest pause between rounds; an event, or the end of a file's settling, ends it."""

GATHER_S: Final = 0.025
"""Shortest pause between rounds that left nothing to do, in which what comes together is gathered."""

GUARD_S: Final = 5.0
"""Pause between looks at the root and the observer's threads."""

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Bounds of the doubling pause after a failure."""

REFUSED_S: Final = 600.0
"""Pause before a single file that the database refused for itself is tried again."""

log = telemetry.logger(__name__)


class Watcher:
    """Watches sources in one thread; give each source a Watcher of its own where one slow share must not delay others.

    ``worker`` names the process in :meth:`status`; ``beat`` is called once a round, for heartbeats. One log line is
    written per admitted portion.
    """

    def __init__(
        self,
        db: Database,
        sources: Sequence[WatchedSource],
        settings: WatchSettings,
        *,
        worker: str = "",
        clock: Callable[[], float] = time.monotonic,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._woken = threading.Event()
        self._watched = [_Watched(db, source, settings, worker, self._woken) for source in sources]
        self._db = db
        self._clock = clock
        self._beat = beat

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set, then stop the observers. What is pending is found again at the next start."""
        try:
            while not stop.is_set():
                busy = self.step(self._clock(), self._db.now())
                self._beat()
                if not busy:
                    self._pause(stop)
        finally:
            self.close()

    def _pause(self, stop: threading.Event) -> None:
        """Wait until an observer reports something or a file's settling ends, at most a tick."""
        due_s = min((watched.due_at for watched in self._watched), default=TICK_S) - self._clock()
        if self._woken.wait(min(TICK_S, max(GATHER_S, due_s))):
            stop.wait(GATHER_S)
            self._woken.clear()

    def step(self, now: float, now_utc: datetime) -> bool:
        """One round over all sources, without waiting. True when there is more to do at once.

        ``now`` is seconds of a monotonic clock, ``now_utc`` the aware time that goes into the database.
        """
        busy = [watched.round(now, now_utc) for watched in self._watched]
        return any(busy)

    def close(self) -> None:
        """Stop every observer."""
        for watched in self._watched:
            watched.observer.close()

    def status(self) -> list[SourceStatus]:
        """Return the state of each source."""
        return [watched.status() for watched in self._watched]


class _Schedule:
    """When the next walks are due; pauses count from the end of a walk, so that slow ones never pile up."""

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._rescan_at = self._full_at = float("-inf")
        self._wanted = False

    def next_walk(self, now: float) -> bool | None:
        """Tell if the walk to start now is a full one; None when no walk is due."""
        full = now >= self._full_at
        if not (full or self._wanted or now >= self._rescan_at):
            return None
        self._wanted = False
        return full

    def ended(self, now: float, *, full: bool) -> None:
        self._rescan_at = now + self._settings.rescan_s
        if full:
            self._full_at = now + self._settings.full_rescan_s

    def full_now(self) -> None:
        self._full_at = float("-inf")

    def rescan_soon(self) -> None:
        """After the walk that may be under way, which began too early to count."""
        self._wanted = True


class _Backoff:
    """The pause after failures in a row, doubling."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._until = float("-inf")

    @property
    def failing(self) -> bool:
        return self._pause_s > 0

    def failed(self, now: float) -> None:
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._until = now + self._pause_s

    def over(self, now: float) -> bool:
        return now >= self._until

    def clear(self) -> None:
        self._pause_s = 0.0


class _Watched:
    """Everything in memory about one source: its tracker, its walks, its observer."""

    def __init__(
        self, db: Database, source: WatchedSource, settings: WatchSettings, worker: str, woken: threading.Event
    ) -> None:
        self._source = source
        self._host, self._worker = db.host, worker
        self._root = source.root
        self._tracker = SettleTracker(settings.settle_s, self._root.stat)
        self._ingest = Ingest(db, source, self._tracker)
        self._census = source.census(db)
        self._counting: Census | None = None
        self._to_conclude = False
        self._attention: set[str] = set()
        self._memory = FolderMemory()
        self._schedule = _Schedule(settings)
        self._walks: deque[Walk] = deque()
        self._portion: list[Found] = []
        self._again: list[Found] = []
        self._identity: Identity | None = None
        self._guard_at = float("-inf")
        self._backoff = _Backoff()
        self._away: bool | None = None
        self._unreadable = 0
        self._observers = 0
        self._walked_files = 0
        self._round_at: datetime | None = None
        self._walked_at: datetime | None = None
        self._walked_whole_at: datetime | None = None
        self.events = EventBuffer(woken)
        self.observer = ObserverSupervisor(source.name, self._root, source.observer, source.poll_s, self.events)

    def round(self, now: float, now_utc: datetime) -> bool:
        """One bounded portion of everything; True when more can be done at once."""
        self._round_at = now_utc
        try:
            if now >= self._guard_at:
                self._guard(now)
            if self._away:
                return False
            self._look_where_nobody_watched()
            self._take_events(now)
            if not self._backoff.over(now):
                return False
            self._walk(now, now_utc)
            self._admit(now, now_utc)
        except MarcodError as error:
            if isinstance(error, MissingRootError):
                self._guard(now)
            if not self._away:
                self._failed(error, now)
            return False
        except Exception:  # the loop's boundary: one source's trouble must not stop the others
            log.exception("watching failed, trying again", source=self._source.name)
            self._backoff.failed(now)
            return False
        self._recovered()
        return bool(self._portion or self._again or self._walks or len(self.events) or self._tracker.ripe(now))

    @property
    def due_at(self) -> float:
        """The time of the next round that has something to do, events apart; infinity while nothing can be done."""
        return float("inf") if self._away or self._backoff.failing else self._tracker.due_at

    def status(self) -> SourceStatus:
        return SourceStatus(
            source=self._source.name,
            worker=self._worker,
            host=self._host,
            root_there=self._away is False,
            observing=self.observer.watching,
            trouble=self.observer.trouble,
            pending=len(self._tracker),
            waiting=self._ingest.waiting_count,
            walking=bool(self._walks or self._again or self._portion),
            walked_files=self._walked_files,
            unreadable=self._unreadable,
            round_at=self._round_at,
            walked_at=self._walked_at,
            walked_whole_at=self._walked_whole_at,
        )

    def _guard(self, now: float) -> None:
        """Look whether the root is still the same folder, and the observer alive."""
        self._guard_at = now + GUARD_S
        identity = self._root.identity()
        if identity is None and self._away is not True:
            log.error("source root is offline", source=self._source.name, root=path_text(self._root.path))
        elif identity is not None and self._away:
            log.info("source root is back", source=self._source.name, root=path_text(self._root.path))
        if identity is None or identity != self._identity:
            self._start_over()
        self._away = identity is None
        self._identity = identity
        self.observer.check(identity, now)

    def _look_where_nobody_watched(self) -> None:
        """Rescan after a new observer: what came between the last walk and its start made no event."""
        if self.observer.started != self._observers:
            self._observers = self.observer.started
            self._schedule.rescan_soon()

    def _start_over(self) -> None:
        """Another folder may stand at the root: everything has to be looked at again."""
        self._memory.forget()
        self._walks.clear()
        self._portion, self._again = [], []
        self._to_conclude = False
        self._schedule.full_now()

    def _take_events(self, now: float) -> None:
        self._ingest.notice(self.events.take_files(PORTION), now)
        if folders := self.events.take_folders():
            self._walks.appendleft(Walk(self._root, folders=outermost(folders)))

    def _walk(self, now: float, now_utc: datetime) -> None:
        walking = self._to_conclude or any(walk.is_rescan for walk in self._walks)
        if not walking and (full := self._schedule.next_walk(now)) is not None:
            self._walks.append(Walk(self._root, self._memory, full=full))
            self._census.begin(whole=full)
            self._again = [Found(path) for path in self._ingest.waiting]
        if not self._portion and not self._to_conclude:
            self._portion = self._next_portion(now)
        self._ingest.nominate(self._portion, now, self._counting)
        self._portion = []
        self._conclude(now_utc)
        if not self._walks:
            self._tell_ignored()

    def _conclude(self, now_utc: datetime) -> None:
        """Write what the walk over the source counted, once its last files are nominated."""
        if self._to_conclude:
            self._tell(self._census.end(self._memory, now_utc))
            self._to_conclude = False
        elif self._counting is not None:
            self._census.write_along(now_utc)

    def _tell(self, found: list[SourceFinding]) -> None:
        """Log what needs attention now and did not after the walk before."""
        before, self._attention = self._attention, {one.reason for one in found if one.attention}
        for one in found:
            if one.reason in self._attention - before:
                log.warning("files need attention", source=self._source.name, found=one.text, example=one.example)

    def _tell_ignored(self) -> None:
        """Also where nothing is recorded: a wrong layout or number of wells leaves out every file."""
        if self._ingest.tally.ignored and not len(self._tracker):
            told = {str(reason): count for reason, count in sorted(self._ingest.take_tally().ignored.items())}
            log.info("files ignored", source=self._source.name, ignored=told)

    def _next_portion(self, now: float) -> list[Found]:
        self._counting = None
        if self._again:
            portion, self._again = self._again[:PORTION], self._again[PORTION:]
            return portion
        if not self._walks:
            return []
        walk = self._walks[0]
        found = walk.more(now, PORTION)
        if walk.is_rescan:
            self._counting = self._census
            self._walked_files = walk.counts.files
        if walk.done:
            self._walks.popleft()
            if walk.is_rescan:
                self._ended(walk, now)
        return found

    def _ended(self, walk: Walk, now: float) -> None:
        self._schedule.ended(now, full=walk.full)
        self._walked_at = self._round_at
        if walk.full:
            self._walked_whole_at = self._round_at
        counts = walk.counts
        # A share that lists empty says nothing of what was there before.
        self._to_conclude = bool(counts.files) or not walk.full
        if counts.unreadable != self._unreadable:
            self._unreadable = counts.unreadable
            examples = [path_text(path) for path in counts.unreadable_examples]
            log.warning("folders not readable", source=self._source.name, n=counts.unreadable, examples=examples)
        if walk.full:
            log.info(
                "folder walked",
                source=self._source.name,
                folders=counts.folders,
                files=counts.files,
                pending=len(self._tracker),
                waiting=self._ingest.waiting_count,
            )

    def _admit(self, now: float, now_utc: datetime) -> None:
        vanished = self._tracker.vanished
        settled = self._tracker.due(now, PORTION)
        if self._tracker.vanished > vanished and self._root.identity() != self._identity:
            # The files did not vanish, their disk did; the full walk after its return finds them again.
            self._tracker.put_back(settled, now)
            raise MissingRootError
        parts = [settled] if settled else []
        while parts:
            part = parts.pop()
            try:
                recorded = self._ingest.admit(part, now_utc)
                self._log(recorded)
                self._warn_of_reuse(recorded, now_utc)
            except MarcodError:
                for unrecorded in (part, *parts):
                    self._tracker.put_back(unrecorded, now)
                raise
            except Exception:  # a bad row must fail alone, whatever the database finds wrong with it
                if len(part) > 1:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    self._tracker.put_back(part, now, wait_s=REFUSED_S)
                    log.exception("file refused", source=self._source.name, path=path_text(part[0].path))

    def _log(self, recorded: Recorded) -> None:
        tally = self._ingest.take_tally()
        log.info(
            "images recorded",
            source=self._source.name,
            new=recorded.new,
            changed=recorded.changed,
            unchanged=recorded.unchanged + tally.unchanged,
            queued=recorded.queued,
            unscored=recorded.unscored,
            ignored={str(reason): count for reason, count in sorted(tally.ignored.items())},
        )

    def _warn_of_reuse(self, recorded: Recorded, now_utc: datetime) -> None:
        if (found := self._census.see_reused(recorded, now_utc)) is None:
            return
        if found.attention and found.reason not in self._attention:
            self._attention.add(found.reason)
            log.warning("files need attention", source=self._source.name, found=found.text, example=found.example)

    def _failed(self, error: MarcodError, now: float) -> None:
        if not self._backoff.failing:
            log.error("watching paused, nothing is lost", source=self._source.name, reason=str(error))
        self._backoff.failed(now)

    def _recovered(self) -> None:
        if self._backoff.failing:
            log.info("watching resumed", source=self._source.name)
            self._backoff.clear()
