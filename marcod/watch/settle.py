"""The settle tracker: the one entry for nominated paths, and the rule when a file has arrived.

A file is settled when it is a regular file of more than zero bytes whose size and modification time did not
change over ``settle_s`` of our own monotonic clock. File times are compared with earlier file times alone, never
with a clock of ours, because imagers and file servers keep their own. Every ``now`` is seconds of one monotonic clock.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 600.0
"""Bounds of the doubling pause between looks at a file that is empty or cannot be looked at."""


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size of a regular file in bytes, and modification time in nanoseconds of the file server's clock."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A file that has arrived: its path relative to the source root, and how it stood still."""

    path: str
    stat: FileStat


StatFn = Callable[[str], FileStat | None]
"""Stat of the file at a relative path; None when it is gone or is not to be recorded. May raise OSError."""


class _Pending:
    """One path under observation. ``queued_at`` is the time of its only valid entry in the heap."""

    __slots__ = ("queued_at", "ready_at", "stat", "wait_s")

    def __init__(self, stat: FileStat | None, ready_at: float) -> None:
        self.stat = stat
        self.ready_at = ready_at
        self.queued_at = ready_at
        self.wait_s = 0.0


class SettleTracker:
    """The paths of one source that are on their way. Not thread-safe: one loop owns it.

    Offering and reporting cost O(log n); a pending path is one heap entry and one small object, so a million of
    them fit. What :meth:`due` reported is forgotten here; hand it to :meth:`put_back` if it could not be recorded.
    """

    def __init__(self, settle_s: float, stat: StatFn) -> None:
        self._settle_s = settle_s
        self._stat = stat
        self._pending: dict[str, _Pending] = {}
        self._heap: list[tuple[float, str]] = []
        self.vanished = 0
        """Pending paths that were found gone so far."""

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, path: object) -> bool:
        return path in self._pending

    def offer(self, path: str, now: float, seen: FileStat | None = None, *, touched: bool = True) -> None:
        """Nominate a path. ``seen`` is how a walk just saw it; without it the file is looked at here.

        ``touched`` says that something happened to the file, which restarts its clock. A walk only saw that it
        exists: it restarts the clock of what changed, or short rescans would keep a file pending for ever.
        """
        entry = self._pending.get(path)
        try:
            stat = seen or self._stat(path)
        except OSError:
            stat = entry.stat if entry else None
        else:
            if stat is None:
                self._drop(path)
                return
        if entry is None:
            self._pending[path] = entry = _Pending(stat, now + self._settle_s)
            heapq.heappush(self._heap, (entry.queued_at, path))
        elif touched or stat != entry.stat:
            entry.stat = stat
            entry.wait_s = 0.0
            self._schedule(path, entry, now + self._settle_s)

    def due(self, now: float, limit: int | None = None) -> list[Settled]:
        """Return the files that have settled, each reported once; at most ``limit`` files are looked at."""
        settled: list[Settled] = []
        later: list[tuple[str, _Pending, float]] = []
        looks = 0
        while self._heap and self._heap[0][0] <= now and (limit is None or looks < limit):
            queued_at, path = heapq.heappop(self._heap)
            entry = self._pending.get(path)
            if entry is None or entry.queued_at != queued_at:
                continue
            if entry.ready_at > now:
                later.append((path, entry, entry.ready_at))
                continue
            looks += 1
            if (ready_at := self._judge(path, entry, now)) is not None:
                later.append((path, entry, ready_at))
            elif path in self._pending and entry.stat is not None:
                del self._pending[path]
                settled.append(Settled(path, entry.stat))
        for path, entry, ready_at in later:
            entry.ready_at = entry.queued_at = ready_at
            heapq.heappush(self._heap, (ready_at, path))
        return settled

    def put_back(self, settled: Iterable[Settled], now: float, wait_s: float = 0.0) -> None:
        """Keep what could not be recorded; it is due again after ``wait_s`` unless it changes before."""
        for file in settled:
            if file.path not in self._pending:
                self._pending[file.path] = entry = _Pending(file.stat, now + wait_s)
                heapq.heappush(self._heap, (entry.queued_at, file.path))

    @property
    def due_at(self) -> float:
        """The time from which :meth:`due` has something to look at; infinity when nothing is pending."""
        return self._heap[0][0] if self._heap else float("inf")

    def ripe(self, now: float) -> bool:
        """Tell if :meth:`due` has anything to look at."""
        return self.due_at <= now

    def _judge(self, path: str, entry: _Pending, now: float) -> float | None:
        """When to look again; None when the path is settled, or gone and no longer pending."""
        try:
            stat = self._stat(path)
        except OSError:
            return now + self._longer(entry)
        if stat is None:
            self._drop(path)
            return None
        before, entry.stat = entry.stat, stat
        if stat.size == 0:
            return now + self._longer(entry)
        entry.wait_s = 0.0
        return None if stat == before else now + self._settle_s

    def _longer(self, entry: _Pending) -> float:
        """Return the next pause for a file that is empty or out of reach, so that a million of them cost little."""
        longest = max(LONGEST_WAIT_S, self._settle_s)
        entry.wait_s = min(max(2 * entry.wait_s, self._settle_s, FIRST_WAIT_S), longest)
        return entry.wait_s

    def _schedule(self, path: str, entry: _Pending, ready_at: float) -> None:
        entry.ready_at = ready_at
        # A later time needs no new heap entry: the old one is pushed on when its time comes.
        if ready_at < entry.queued_at:
            entry.queued_at = ready_at
            heapq.heappush(self._heap, (ready_at, path))

    def _drop(self, path: str) -> None:
        if self._pending.pop(path, None) is not None:
            self.vanished += 1
