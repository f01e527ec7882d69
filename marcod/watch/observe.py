"""Supervision of the operating-system observer of one source root.

A :class:`ObserverSupervisor` puts paths into an :class:`EventBuffer` and does nothing else. Its ``check`` repairs each
known way in which an observer goes deaf: its emitter stops when the root vanishes, its reading thread dies of an
error, another file system is mounted at the root. What happened meanwhile is found by the rescans.
Starting and stopping can take as long as a walk, so both happen in threads of their own.
"""

import contextlib
import errno
import os
import threading
import warnings
from typing import Final, Literal

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver, InotifyWatchGroup
from watchdog.observers.polling import PollingObserverVFS

from marcod import telemetry
from marcod.watch.tree import Identity, Root

ObserverKind = Literal["inotify", "polling"]

RETRY_S: Final = 30.0
LIMIT_RETRY_S: Final = 3_600.0
"""Pauses before an observer that could not start is tried again: in general, and after an inotify limit."""

CLOSE_S: Final = 5.0

# Opening and closing without writing are left out: scoring opens every file once.
_EVENTS: Final[list[type[FileSystemEvent]]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]

# watchdog 7.1.0 warns whenever a folder is made inside one that is new itself, which is how plates arrive, and writes
# its table of all watches into the text: megabytes a folder on a large store, kept for ever by Python's warnings.
InotifyWatchGroup.__repr__ = object.__repr__  # type: ignore[method-assign]
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)

log = telemetry.logger(__name__)


class EventBuffer:
    """Nominations on their way from the observer's thread to the loop, each path once. Thread-safe.

    ``filled`` is set whenever one comes, so that the loop may wait for it.
    """

    def __init__(self, filled: threading.Event | None = None) -> None:
        self._lock = threading.Lock()
        self._filled = filled or threading.Event()
        self._files: dict[str, None] = {}
        self._folders: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._folders)

    def put(self, path: str, *, is_folder: bool) -> None:
        """Nominate a path relative to the root; of a folder, everything below it."""
        with self._lock:
            (self._folders if is_folder else self._files)[path] = None
        self._filled.set()

    def take_files(self, limit: int) -> list[str]:
        """Take the oldest nominated files out of the buffer."""
        with self._lock:
            taken = [path for path, _ in zip(self._files, range(limit), strict=False)]
            for path in taken:
                del self._files[path]
        return taken

    def take_folders(self) -> list[str]:
        """All nominated folders, which leave the buffer."""
        with self._lock:
            taken, self._folders = list(self._folders), {}
        return taken


class _Handler(FileSystemEventHandler):
    """Turns events of one watched folder into nominations below the source root."""

    def __init__(self, watched: str, events: EventBuffer) -> None:
        self._prefix = os.path.join(watched, "")  # noqa: PTH118 - the string has to fit the events' strings
        self._events = events

    def on_any_event(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.dest_path or event.src_path)
        if path.startswith(self._prefix):
            self._events.put(path.removeprefix(self._prefix), is_folder=event.is_directory)


class ObserverSupervisor:
    """The observer of one source, rebuilt whenever it is found dead or looking at the wrong folder."""

    def __init__(self, name: str, root: Root, kind: ObserverKind, poll_s: float, events: EventBuffer) -> None:
        self._name = name
        self._root = root
        self._kind = kind
        self._poll_s = poll_s
        self._events = events
        self._observer: BaseObserver | None = None
        self._identity: Identity | None = None
        self._starting: threading.Thread | None = None
        self._started_at = 0.0
        self._pause_s = 0.0
        self._closed = False
        self.started = 0
        """Number of observers started so far; each saw nothing of what came before it."""
        self.trouble: str | None = None
        """Why there is no observer although the root is there; None while all is well."""

    @property
    def watching(self) -> bool:
        """True while every thread of the observer is alive."""
        return self._observer is not None and _is_alive(self._observer)

    @property
    def threads(self) -> list[threading.Thread]:
        """The observer's threads, for diagnosis."""
        return _threads(self._observer) if self._observer else []

    def check(self, identity: Identity | None, now: float) -> None:
        """Make the observer fit the folder that stands at the root now; ``identity`` None means that none does."""
        if self._closed or (self._starting is not None and self._starting.is_alive()):
            return
        if self._observer is not None:
            if identity == self._identity and _is_alive(self._observer):
                return
            log.warning("observer lost", source=self._name, root_there=identity is not None)
            self._retire()
        if identity is None or (identity == self._identity and now < self._started_at + self._pause_s):
            return
        self._identity, self._started_at = identity, now
        self._starting = threading.Thread(target=self._start, name=f"observe-{self._name}", daemon=True)
        self._starting.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Stop the observer; a thread stuck in a slow file system is left behind after the timeout."""
        self._closed = True
        if self._starting is not None:
            self._starting.join(timeout_s)
        if (closing := self._retire()) is not None:
            closing.join(timeout_s)

    def _start(self) -> None:
        observer: BaseObserver | None = None
        try:
            watched = os.path.realpath(self._root.path)
            observer = _make(self._kind, self._poll_s)
            observer.schedule(_Handler(watched, self._events), watched, recursive=True, event_filter=_EVENTS)
            observer.start()
            if self._kind == "inotify":
                _probe_limit(watched)
        except OSError as error:
            if observer is not None:
                _stop(observer)
            self._refused(error)
            return
        if self._closed:
            _stop(observer)
            return
        # Counted first: who sees it watching must also see that nobody watched before.
        self.started += 1
        self._observer = observer
        self._pause_s = 0.0
        self._tell(None)
        log.info("observer started", source=self._name, observer=self._kind)

    def _refused(self, error: OSError) -> None:
        self._pause_s = RETRY_S
        if error.errno in (errno.ENOSPC, errno.EMFILE):
            self._pause_s = LIMIT_RETRY_S
            # One error stands for the user's limit and for the process's own, which is used up first where files leak.
            name = "max_user_watches" if error.errno == errno.ENOSPC else "max_user_instances"
            own = "" if error.errno == errno.ENOSPC else " (or LimitNOFILE of the service)"
            self._tell(
                f"the inotify limit is reached; raise fs.inotify.{name} with sysctl{own}, or set observer = "
                '"polling" for this source; until then the rescans alone find new files'
            )
        elif self._root.identity() is not None:
            self._tell(f"the observer cannot start: {error.strerror or error}; the rescans find new files")

    def _tell(self, trouble: str | None) -> None:
        if trouble and trouble != self.trouble:
            log.error("no observer", source=self._name, reason=trouble)
        self.trouble = trouble

    def _retire(self) -> threading.Thread | None:
        observer, self._observer = self._observer, None
        if observer is None:
            return None
        closing = threading.Thread(target=_stop, args=(observer,), name=f"unobserve-{self._name}", daemon=True)
        closing.start()
        return closing


def _make(kind: ObserverKind, poll_s: float) -> BaseObserver:
    if kind == "inotify":
        return InotifyObserver()
    # Links are not followed: a link to a folder above it would be polled for ever.
    return PollingObserverVFS(stat=os.lstat, listdir=os.scandir, polling_interval=poll_s)


def _probe_limit(watched: str) -> None:
    """Raise OSError when the limit of inotify watches is used up.

    watchdog passes over sub-folders that it could not watch without a word, so one watch more is tried here.
    """
    probe = InotifyObserver()
    try:
        probe.schedule(FileSystemEventHandler(), watched, recursive=False, event_filter=[DirMovedEvent])
        probe.start()
    finally:
        _stop(probe)


def _stop(observer: BaseObserver) -> None:
    observer.stop()
    with contextlib.suppress(RuntimeError):
        observer.join(CLOSE_S)


def _threads(observer: BaseObserver) -> list[threading.Thread]:
    # The inotify observer reads in a third thread, which watchdog shows nowhere; deaf without it, it looks healthy.
    reader = getattr(observer, "_inotify_fd", None)
    readers = [reader] if isinstance(reader, threading.Thread) else []
    return [observer, *observer.emitters, *readers]


def _is_alive(observer: BaseObserver) -> bool:
    return bool(observer.emitters) and all(thread.is_alive() for thread in _threads(observer))
