"""Which source a folder on this host is: one folder is one source, and no source lies inside another.

A folder that was scanned by hand and is configured later keeps its plates under the new name. It does so only where
the files that were recorded lie there, because the same path may be another folder on another day.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from marcod import telemetry
from marcod.database.engine import Database
from marcod.errors import ConfigError
from marcod.store import sources
from marcod.store.sources import RecordedFile, RootHere
from marcod.watch.tree import Root

SAMPLE: Final = 20
"""Recorded files that are looked for."""

COARSE_NS: Final = 2 * 10**9
"""Two mounts of one share may tell times of modification that differ by this, in nanoseconds."""

log = telemetry.logger(__name__)


def resolved(root: Path) -> Path:
    """Return the folder without links, as far as its share lets us see."""
    try:
        return root.resolve()
    except (OSError, RuntimeError):
        return root.absolute()


def require_apart(roots: Mapping[str, Path]) -> None:
    """Check that no source's folder is, or lies inside, that of another, links followed.

    Raises:
        ConfigError: the first two that do.
    """
    for _, reason in not_apart(roots):
        raise ConfigError(reason)


def not_apart(roots: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield each source whose folder is, or lies inside, that of another, and a sentence about both."""
    found = {name: resolved(root) for name, root in roots.items()}
    # In the order of paths a folder is followed by what is in it.
    taken: list[tuple[Path, str]] = []
    for root, name in sorted((root, name) for name, root in found.items()):
        around = next(((outer, other) for outer, other in taken if root.is_relative_to(outer)), None)
        if around is not None:
            outer, other = around
            same = f"sources {other!r} and {name!r} have one root, {root}; remove one"
            yield name, same if root == outer else _inside(name, root, other, outer)
        taken.append((root, name))


def _inside(inner: str, inner_root: Path, outer: str, outer_root: Path) -> str:
    return (
        f"the root {inner_root} of source {inner!r} lies inside {outer_root} of source {outer!r}, so every image in it "
        "would be there twice; remove one of them, or give folders that lie apart"
    )


def recorded_names(db: Database, root: Path) -> list[str]:
    """Return the sources as which this host recorded a folder."""
    here = resolved(root)
    return [one.name for one in db.read(sources.roots_here) if resolved(Path(one.root)) == here]


def recorded_twice(db: Database, name: str, root: Path) -> list[str]:
    """Other sources with images that this host recorded from the folder of a source, or from one around or in it."""
    here = resolved(root)
    return [
        one.name
        for one in db.read(sources.roots_here)
        if one.name != name and one.has_images and _overlaps(here, resolved(Path(one.root)))
    ]


def _overlaps(here: Path, there: Path) -> bool:
    return here.is_relative_to(there) or there.is_relative_to(here)


def former(
    db: Database, name: str, root: str, layout: str, configured: Collection[str], now: datetime
) -> RootHere | None:
    """Return the source that the folder was on this host until now, whose plates the name takes over.

    None where this host knows the folder by this name already, or by none. ``configured`` are the names that stand in
    this host's configuration.

    Raises:
        ConfigError: the folder belongs to another source, or nobody can tell; says what a person can do.
    """
    known = db.read(sources.roots_here)
    here = resolved(Path(root))
    if any(one.name == name and resolved(Path(one.root)) == here for one in known):
        return None
    others = [one for one in known if one.name != name and one.name not in configured]
    taken = None
    for other in others:
        there = resolved(Path(other.root))
        if there == here:
            taken = _judge(db, other, name, root, layout, now) or taken
        elif other.has_images and _overlaps(here, there):
            raise ConfigError(_overlap(name, here, other, there))
    return taken


def _overlap(name: str, here: Path, other: RootHere, there: Path) -> str:
    if here.is_relative_to(there):
        where, instead = "lies inside", f"look at {there} instead"
    else:
        where, instead = "holds", f"remove what was recorded there first: `marcod source forget {other.name}`"
    return (
        f"the root {here} of source {name!r} {where} {there}, which this host recorded as source {other.name!r}, so "
        f"images would be there twice; {instead}"
    )


def _judge(db: Database, other: RootHere, name: str, root: str, layout: str, now: datetime) -> RootHere | None:
    """Return the other source where the folder is still the one it was recorded from, else None."""
    if watcher := db.read(sources.watcher, other.id, now):
        raise ConfigError(
            f"{root} is source {other.name!r}, which {watcher.host} watches; configure it under that name, or stop "
            f"marcod there and give it this one: {_mend(db, other.name, name)}"
        )
    if not other.has_images:
        return other
    if other.layout != layout:
        raise ConfigError(
            f"{root} was recorded on this host as source {other.name!r} with layout {other.layout}; read it so under "
            f"that name, or remove what was recorded: `marcod source forget {other.name}`"
        )
    evidence = look_for(db.read(sources.sample, other.id, SAMPLE), root)
    if evidence is SampleEvidence.OTHER:
        log.warning(
            "folder holds other files than recorded", root=root, recorded_as=other.name, source=name,
            if_it_is_the_same=f"marcod source merge {other.name} {name}",
        )  # fmt: skip
        return None
    if evidence is not SampleEvidence.SAME:
        raise ConfigError(
            f"{root} was recorded on this host as source {other.name!r}, and {evidence}; if it is that folder: "
            f"{_mend(db, other.name, name)}"
        )
    return other


def _mend(db: Database, old: str, new: str) -> str:
    """Return the command that gives the old source the new name, or puts it into the one that has it."""
    exists = new in db.read(sources.roots)
    return f"`marcod source {'merge' if exists else 'rename'} {old} {new}`"


class SampleEvidence(StrEnum):
    """Evidence of a sample of recorded files about a folder; read as the end of a sentence."""

    SAME = "its files lie there"
    OTHER = "other files lie there"
    OFFLINE = "it is not there now (mount it)"
    UNSURE = "not enough of its files lie there unchanged"


def look_for(files: Collection[RecordedFile], root: str) -> SampleEvidence:
    """Look for recorded files below a root."""
    folder = Root(root)
    if not files:
        return SampleEvidence.SAME
    if folder.identity() is None or not any(Path(root).iterdir()):
        return SampleEvidence.OFFLINE
    found = _Counts()
    for file in files:
        stat = folder.stat(file.path)
        if stat is None:
            found.gone += 1
        elif stat.size != file.size:
            found.changed += 1
        elif abs(stat.mtime_ns - file.mtime_ns) > COARSE_NS:
            found.touched += 1
        else:
            found.there += 1
    if found.there > found.changed:
        return SampleEvidence.SAME
    return SampleEvidence.UNSURE if found.there or found.touched else SampleEvidence.OTHER


@dataclass(slots=True)
class _Counts:
    there: int = 0
    touched: int = 0
    changed: int = 0
    gone: int = 0
