"""A few threads for each source, so that a share that hangs holds up its own images and no others.

Nothing interrupts a call that waits for a file server. A thread that waits stays in its lane; while all of a lane do,
further work is refused at once.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, TypeVar

from marcod.deadline import SilentError

T = TypeVar("T")

THREADS: Final = 3
LIMIT_S: Final = 10.0
"""Longest wait for an image, in the queue and on its way."""

STUCK_S: Final = 5.0
"""A thread that works on one image for so long waits for its file server; none takes a second to decode."""


class Lane:
    """The threads of one source. Thread-safe."""

    def __init__(self, name: str, limit_s: float = LIMIT_S, stuck_s: float = STUCK_S) -> None:
        self._name, self._limit_s, self._stuck_s = name, limit_s, stuck_s
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._since: list[float | None] = []
        self._lock = Lock()

    async def run(self, work: Callable[[], T]) -> T:
        """Return or raise what ``work`` does. Raises SilentError where the source does not answer in time."""
        if self._is_stuck():
            raise SilentError(self._stuck_s)
        future: Future[T] = Future()
        self._queue.put((future, work))
        self._start_thread()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit_s)
        except TimeoutError as error:
            raise SilentError(self._limit_s) from error

    def _is_stuck(self) -> bool:
        with self._lock:
            latest = time.monotonic() - self._stuck_s
            return len(self._since) == THREADS and all(s is not None and s < latest for s in self._since)

    def _start_thread(self) -> None:
        with self._lock:
            if len(self._since) == THREADS or (None in self._since and self._queue.qsize() <= 1):
                return
            self._since.append(time.monotonic())
            number = len(self._since) - 1
        # A daemon, because the interpreter would wait at its end for one on a dead share.
        Thread(target=self._work, args=(number,), name=f"images {self._name}", daemon=True).start()

    def _work(self, number: int) -> None:
        while True:
            self._since[number] = None
            future, work = self._queue.get()
            self._since[number] = time.monotonic()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                future.set_exception(error)


class Lanes:
    """A lane for each source."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def of(self, source: str) -> Lane:
        """Return the lane of a source; to be called from the event loop alone."""
        return self._lanes.setdefault(source, Lane(source))
