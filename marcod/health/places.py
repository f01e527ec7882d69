"""Checks of folders, shares and disks: present, readable, watched in a way that works, with room."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from marcod import layouts
from marcod.app import roots
from marcod.catalog import registration
from marcod.database import probe
from marcod.database.engine import Database
from marcod.deadline import ANSWER_S, SERVER, SilentError, within
from marcod.domain import path_text
from marcod.errors import MarcodError
from marcod.health import checks
from marcod.health.finding import HealthFinding, Severity, judged
from marcod.health.snapshot import StatusSnapshot
from marcod.layouts.findings import SourceFinding
from marcod.scoring import source_roots
from marcod.settings import Settings, SourceSettings
from marcod.store import sources as recorded_sources
from marcod.survey.mounts import NETWORKED, file_system, nearest
from marcod.text import count
from marcod.watch.folders import recorded_twice, require_apart
from marcod.watch.ingest import layout_of
from marcod.watch.status import SourceStatus

T = TypeVar("T")

LITTLE_ROOM: Final = 2 * 2**30
"""Bytes free below which a disk needs attention."""

NO_ROOM: Final = 64 * 2**20


Seen = tuple[bool, str]
"""True where a root lists anything, and the type of its file system."""


def look_at(root: Path) -> Seen:
    """Look at a root. Raises OSError when it cannot be listed; never returns while its file server is gone."""
    with os.scandir(root) as entries:
        return next(entries, None) is not None, file_system(root)


def sources(
    db: Database,
    settings: Settings,
    seen: StatusSnapshot,
    *,
    limit_s: float = ANSWER_S,
    look: Callable[[Path], Seen] = look_at,
) -> Iterator[HealthFinding]:
    """Yield findings on every configured source, and the troubles of the others.

    ``look`` does what :func:`look_at` does, and is given up after ``limit_s`` seconds.
    """
    if not settings.sources:
        yield HealthFinding(
            "sources", "none", Severity.ATTENTION, "no source is configured",
            "`marcod setup FOLDER` adds the folder that an imager writes to",
        )  # fmt: skip
    troubles = [trouble for trouble in checks.troubles(seen) if trouble.check.area == "sources"]
    for name, source in settings.sources.items():
        yield from _once(db, settings, name, limit_s)
        root = list(_root(name, source, partial(within, limit_s, partial(look, source.root))))
        yield from root
        if root[0].verdict is Severity.OK:
            yield from _recorded(db, name, source)
        yield from _layout(db, name, source)
        found = [trouble for trouble in troubles if trouble.source == name]
        if all(trouble.check.subject != "watching" for trouble in found):
            yield _watching(name, seen)
        yield from (trouble.finding for trouble in found)
        yield from (_reading(one) for one in seen.findings if one.source == name and not one.attention)
        last = db.read(probe.last_file, name)
        text = "no file was ever recorded" if last is None else f"{last[1]:%Y-%m-%d %H:%M} UTC, {last[0]}"
        yield judged(
            "sources", f"{name}: last file", last is not None, text, "see `marcod explain` with one of its files"
        )
    # Scanned by hand, or watched by another host.
    yield from (trouble.finding for trouble in troubles if trouble.source not in settings.sources)
    yield from (_reading(one) for one in seen.findings if one.source not in settings.sources and not one.attention)


def _root(name: str, source: SourceSettings, look: Callable[[], Seen]) -> Iterator[HealthFinding]:
    """Check that a root is there, and watched in a way that works."""
    subject, root = f"{name}: root", path_text(os.fspath(source.root))
    try:
        lists, kind = look()
    except SilentError as error:
        yield HealthFinding("sources", subject, Severity.BROKEN, f"{root} {error}", SERVER)
        return
    except OSError as error:
        text = f"{root} cannot be listed: {error.strerror}"
        yield HealthFinding("sources", subject, Severity.BROKEN, text, "mount it, or let this user read it")
        return
    yield judged(
        "sources", subject, lists, f"{root} on {kind}" + ("" if lists else ", lists nothing"),
        "an unmounted share looks like this; check the mount",
    )  # fmt: skip
    yield _observer(name, source, kind)


def _recorded(db: Database, name: str, source: SourceSettings) -> Iterator[HealthFinding]:
    """Check that a root that this host did not record from holds recorded images."""
    for known in db.read(recorded_sources.known):
        if known.name == name and (reason := source_roots.why_not(db, known, source.root)) is not None:
            yield HealthFinding(
                "sources", f"{name}: recorded images", Severity.ATTENTION, reason,
                "mount the share of this source, or give its root on this host in [hosts]",
            )  # fmt: skip


def apart(settings: Settings) -> Iterator[HealthFinding]:
    """Check that no source's root lies inside another's; this needs no database."""
    try:
        require_apart(roots(settings))
    except MarcodError as error:
        yield HealthFinding("sources", "roots", Severity.BROKEN, str(error), "`marcod run` refuses to start with them")


def _once(db: Database, settings: Settings, name: str, limit_s: float) -> Iterator[HealthFinding]:
    """Yield other sources under which this host recorded the same files."""
    try:
        others = within(limit_s, partial(recorded_twice, db, name, settings.sources[name].root))
    except SilentError:
        return
    for other in others:
        if other not in settings.sources:
            text = f"this host recorded the same folder, or one in or around it, as source {other!r} too"
            yield HealthFinding(
                "sources", f"{name}: recorded twice", Severity.ATTENTION, text,
                f"for the same folder `marcod source merge {other} {name}`, else `marcod source forget {other}`",
            )  # fmt: skip


def _layout(db: Database, name: str, source: SourceSettings) -> Iterator[HealthFinding]:
    subject = f"{name}: layout"
    try:
        layout_of(name, source)
    except MarcodError as error:
        yield HealthFinding("sources", subject, Severity.BROKEN, str(error), f"one of {', '.join(layouts.NAMES)}")
        return
    try:
        db.read(registration.require_layout, name, source.layout)
    except MarcodError as error:
        yield HealthFinding("sources", subject, Severity.BROKEN, str(error), "`marcod run` refuses to start with it")


def _observer(name: str, source: SourceSettings, kind: str) -> HealthFinding:
    deaf = kind in NETWORKED and source.observer == "inotify"
    text = f"{source.observer} on {kind}"
    return judged(
        "sources", f"{name}: observer", not deaf, text,
        'inotify does not hear what others write to a share; set observer = "polling"',
    )  # fmt: skip


def _watching(name: str, seen: StatusSnapshot) -> HealthFinding:
    """Describe the watching of a source that has no trouble."""
    subject = f"{name}: watching"
    if name in checks.awaited(seen):
        text = "a process just started, which has not reported it yet"
        return HealthFinding("sources", subject, Severity.ATTENTION, text, "ask again in a minute")
    state = next((state for state in seen.watched if state.source == name), None)
    if state is None:
        return HealthFinding("sources", subject, Severity.ATTENTION, checks.UNWATCHED, checks.START)
    return HealthFinding("sources", subject, Severity.OK, _progress(state))


def _reading(one: SourceFinding) -> HealthFinding:
    return HealthFinding("sources", f"{one.source}: {one.reason}", Severity.OK, one.text)


def _progress(state: SourceStatus) -> str:
    if state.walked_whole_at is None:
        walk = f"first full scan under way, {count(state.walked_files, 'file')} so far"
    else:
        walk = f"fully scanned {state.walked_whole_at:%Y-%m-%d %H:%M} UTC"
        walk += f", scanning again ({count(state.walked_files, 'file')} so far)" if state.walking else ""
    settling = count(state.pending, "file settles", "files settle")
    return f"{walk}; {settling}, {count(state.waiting, 'waits', 'wait')} for another"


def disks(settings: Settings) -> Iterator[HealthFinding]:
    """Check the room for what marcod writes."""
    places = {"models": settings.models.folder, "training": settings.train.folder}
    if (file := probe.sqlite_file(settings.store.url.get_secret_value())) is not None:
        places = {"database": file.parent, **places}
        yield _looked("disk", "database: file system", file.parent, partial(_local, file.parent))
    for name, folder in places.items():
        yield _looked("disk", name, folder, partial(_room, name, folder))
    if (file := settings.metrics.textfile) is not None:
        yield _looked("disk", "metrics.textfile", file.parent, partial(_textfile, file.parent))


def _textfile(folder: Path) -> HealthFinding:
    well = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
    text = f"{folder} can be written" if well else f"{folder} is not there, or not for this user to write"
    advice = "make it, give it to the service's user, and name it in ReadWritePaths= of the unit"
    return judged("disk", "metrics.textfile", well, text, advice)


def closed(area: str, subject: str, folder: Path) -> HealthFinding | None:
    """Return why nothing in a folder can be looked at, unless it is well or not there at all."""

    def search() -> None:
        (folder / "anything").exists()

    return _looked(area, subject, folder, search)


def _looked(area: str, subject: str, folder: Path, look: Callable[[], T]) -> T | HealthFinding:
    """Return what ``look`` finds, or why it could not look."""
    try:
        return within(ANSWER_S, look)
    except SilentError as error:
        return HealthFinding(area, subject, Severity.BROKEN, f"{folder} {error}", SERVER)
    except OSError as error:
        text = f"{folder} cannot be looked at: {error.strerror}"
        return HealthFinding(area, subject, Severity.BROKEN, text, "let this user read and search it")


def _local(folder: Path) -> HealthFinding:
    kind = file_system(folder)
    return judged(
        "disk", "database: file system", kind not in NETWORKED, f"SQLite on {kind}",
        "SQLite loses rows on a share; move it to a local disk, or use PostgreSQL", Severity.BROKEN,
    )  # fmt: skip


def _room(name: str, folder: Path) -> HealthFinding:
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    text = f"{free / 2**30:.1f} GiB free for {folder}"
    if free < NO_ROOM:
        text = f"the disk of {folder} is full: {free / 2**20:.0f} MiB free"
        return HealthFinding("disk", name, Severity.BROKEN, text, "free some room, or move it")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        return HealthFinding(
            "disk", name, Severity.BROKEN, f"{there} cannot be written by this user", "change its owner"
        )
    return judged("disk", name, free >= LITTLE_ROOM, text, "free some room, or move it")
