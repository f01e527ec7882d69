"""Ingest of paths as rows; what was recorded before costs one look-up.

A path is read by the source's layout twice, when it is nominated and when it has settled, because nothing that
could go stale is kept between. Other files than drop images are counted by reason. Paths that a file still to come can
turn into drop images (an image before its report.csv) wait here to be offered again.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final
from zoneinfo import ZoneInfo

from marcod import telemetry
from marcod.catalog import deliveries, registration, rereading
from marcod.catalog.deliveries import Known, Recorded, Sighting
from marcod.catalog.plate_setups import Lookup
from marcod.database.engine import Database
from marcod.domain import (
    MAY_END,
    RECORDED_WARNINGS,
    DropImage,
    IgnoreReason,
    NotADrop,
    WarningKind,
    path_text,
    why_not_scored,
)
from marcod.errors import ConfigError, LayoutError, StoreError
from marcod.layouts import (
    Companions,
    Layout,
    LayoutOptions,
    Plates,
    any_plates,
    has_image_extension,
    make,
    no_plates,
)
from marcod.settings import Settings, SourceSettings
from marcod.watch import folders
from marcod.watch.census import Census
from marcod.watch.observe import ObserverKind
from marcod.watch.settle import FileStat, Settled, SettleTracker
from marcod.watch.tree import Found, Root

WAITING_LIMIT: Final = 100_000
"""Paths kept for a file still to come; the full rescan finds what is beyond."""

COUNTED_LIMIT: Final = 50_000
"""Ignored paths remembered, so that several events of one file count once."""

EXAMPLES: Final = 10

ATTEMPTS: Final = 20
"""Readings of settled files before they are left for later, where their plates' setups keep changing."""

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class WatchedSource:
    """One imager's folder, registered in the database.

    ``layout`` reads by what ``plates`` knows of each plate; ``nominating`` reads every path that any plate can have.
    """

    id: int
    name: str
    root: Root
    layout: Layout
    nominating: Layout
    plates: Lookup
    observer: ObserverKind
    poll_s: float
    accepted: frozenset[str] = frozenset()

    def census(self, db: Database) -> Census:
        """Return counts of what this source's layout does not read or warns of, none so far."""
        return Census(db, self.id, self.name, self.layout.name, self.accepted)


def require_roots(settings: Settings, names: Iterable[str] | None = None) -> None:
    """Raise ConfigError with one sentence for the first source whose root is not a readable folder.

    Touches neither database nor disk, so that it can stand before everything that writes.
    """
    for name in settings.sources if names is None else names:
        root = settings.sources[name].root
        if Root(root).identity() is None:
            what = "cannot be read" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
            raise ConfigError(f"the root {root} of source {name!r} {what}; mount it or correct sources.{name}.root")


def layout_of(name: str, settings: SourceSettings, plates: Plates = no_plates) -> Layout:
    """Return the path grammar of a configured source. Raises LayoutError naming the source."""
    options = LayoutOptions(
        plate_format=settings.plate_format,
        profiles=settings.profiles,
        light=settings.light,
        reservoir_subwells=frozenset(settings.reservoir_subwells),
        pattern=settings.pattern,
        date_format=settings.date_format,
        timezone=ZoneInfo(settings.timezone),
        plates=plates,
    )
    try:
        return make(settings.layout, options)
    except LayoutError as error:
        raise LayoutError(f"source {name!r}: {error}") from error


def open_sources(
    db: Database, settings: Settings, now: datetime, configured: Collection[str] | None = None
) -> list[WatchedSource]:
    """Every source of the settings, its row made or brought up to date; all of them or none.

    ``configured`` are the names in this host's configuration where ``settings`` hold only some of them.
    Raises LayoutError or ConfigError for a source that cannot be used as configured.
    """
    names = settings.sources.keys() if configured is None else configured
    opened = [(name, given, Root(given.root), layout_of(name, given)) for name, given in settings.sources.items()]

    rows = []
    for name, given, root, layout in opened:
        known = folders.former(db, name, root.path, given.layout, names, db.now())
        if known is not None:
            log.info("source taken over", former=known.name, source=name, root=path_text(root.path))
        former = None if known is None else known.id
        rows.append((name, root.path, given.layout, given.expected_drops, now, _reading(given, layout), former))
    ids = db.write(lambda connection: [registration.register_source(connection, *row) for row in rows])
    return [
        _opened(db, source_id, name, given, root) for source_id, (name, given, root, _) in zip(ids, opened, strict=True)
    ]


def _opened(db: Database, source_id: int, name: str, given: SourceSettings, root: Root) -> WatchedSource:
    plates = Lookup(db, source_id)
    return WatchedSource(
        id=source_id,
        name=name,
        root=root,
        layout=layout_of(name, given, plates),
        nominating=layout_of(name, given, any_plates),
        plates=plates,
        observer=given.observer,
        poll_s=given.poll_s,
        accepted=frozenset(given.accept),
    )


def _reading(given: SourceSettings, layout: Layout) -> str:
    """Everything of a source that decides what its paths mean, in one comparable text."""
    options = {"wells", "profiles", "reservoir_subwells", "pattern", "date_format", "timezone"}
    options |= given.model_fields_set & {"grid", "light"}
    text = given.model_dump_json(include=options)
    # What a source without the newer settings was read with has no other text, or every image would be read again.
    return text if layout.revision == 1 else f'{text[:-1]},"revision":{layout.revision}}}'


@dataclass(slots=True)
class IngestCounts:
    """Counts on the way: unchanged files by walks, ignored ones by reason, some names that cannot be read."""

    unchanged: int = 0
    ignored: Counter[IgnoreReason] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _SeenFile:
    """A file as a walk saw it. ``open`` ones may be drop images; ``unsure`` ones only their companions can tell."""

    file: Found
    verdict: DropImage | NotADrop
    stat: FileStat | None = None
    open: bool = True
    unsure: bool = False


class Ingest:
    """Recorder of the files of one source. Not thread-safe: the loop that owns the tracker owns this too."""

    def __init__(self, db: Database, source: WatchedSource, tracker: SettleTracker) -> None:
        self._db = db
        self._source = source
        self._tracker = tracker
        self._counted: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        self._unreported = _Unreported()
        self.tally = IngestCounts()

    @property
    def waiting(self) -> list[str]:
        """Paths that another file can still turn into drop images."""
        return list(self._waiting)

    @property
    def waiting_count(self) -> int:
        """The number of waiting paths; may be asked from any thread."""
        return len(self._waiting)

    def take_tally(self) -> IngestCounts:
        """Return and reset what was counted since the last call."""
        taken, self.tally = self.tally, IngestCounts()
        return taken

    def notice(self, paths: Iterable[str], now: float) -> None:
        """Nominate paths that something happened to. Asks no database, so nothing is lost without one."""
        companions = self._source.root.companions()
        for path in paths:
            if self._judge(path, self._source.nominating.parse(path, companions)) is not None:
                self._tracker.offer(path, now)
            self._offer_below(path, now)

    def _offer_below(self, path: str, now: float) -> None:
        """Nominate images that miss a report, where this path is a file that lies next to or above them."""
        if len(self._unreported) and not has_image_extension(path):
            for image in self._unreported.below(path.rpartition("/")[0]):
                self._tracker.offer(image, now)

    def nominate(self, found: Sequence[Found], now: float, census: Census | None = None) -> None:
        """Nominate files that a walk came across, but those recorded as they stand.

        ``census`` counts them by how they are read. Raises StoreError; then nothing was offered or counted, and the
        same files can be nominated again.
        """
        self._source.plates.forget()
        looks = self._stat_each(found)
        paths = [look.file.path for look in looks if look.stat is not None]
        before = self._db.read(deliveries.known, self._source.id, paths) if paths else {}
        companions = self._source.root.companions()
        for look in looks:
            path, stat = look.file.path, look.stat
            if census is None or not census.whole:
                self._offer_below(path, now)
            recorded = before.get(path)
            if stat is not None and recorded is not None and self._stands(look, recorded, companions):
                self.tally.unchanged += 1
                if census is not None:
                    census.see_recorded(look.file, _warnings(look, recorded))
                continue
            verdict = self._source.layout.parse(path, companions) if look.unsure else look.verdict
            if census is not None:
                census.see(look.file, verdict)
            if look.open and self._judge(path, verdict) is not None:
                self._tracker.offer(path, now, stat, touched=False)

    def _stands(self, look: _SeenFile, recorded: Known, companions: Companions) -> bool:
        """Tell if a file is as it was recorded, and no newer report adds to it."""
        if look.stat is None or recorded[:2] != (look.stat.size, look.stat.mtime_ns):
            return False
        missed = MAY_END & set((recorded.warnings or "").split(","))
        if not missed:
            return True
        self._unreported.put(look.file.path, missed=True)
        verdict = self._source.layout.parse(look.file.path, companions)
        return not isinstance(verdict, DropImage) or missed <= {warning.kind for warning in verdict.warnings}

    def admit(self, settled: Sequence[Settled], now: datetime) -> Recorded:
        """Record settled files in one transaction. Raises StoreError; then nothing was recorded.

        A plate whose wells ask for another grid gets it first, and its earlier images are read again.
        """
        plates = self._source.plates
        for attempt in range(ATTEMPTS):
            plates.forget()
            work = partial(rereading.record, plates=plates, sightings=self._sightings(settled), now=now)
            recorded = self._db.write(work)
            if recorded is None:
                continue
            if attempt:
                self._db.write_portions(partial(rereading.catch_up, now=now, source_id=self._source.id))
            return recorded
        raise StoreError(f"what the database knows of the plates of source {self._source.name} changes again and again")

    def _sightings(self, settled: Sequence[Settled]) -> list[Sighting]:
        companions = self._source.root.companions()
        return [
            Sighting(file.path, file.stat.size, file.stat.mtime_ns, image)
            for file in settled
            if (image := self._judge(file.path, self._source.layout.parse(file.path, companions))) is not None
        ]

    def _stat_each(self, found: Sequence[Found]) -> list[_SeenFile]:
        """Read each file from its path alone and, where it may be a drop image, take its stat."""
        probe = _Probe()
        looks: list[_SeenFile] = []
        for file in found:
            probe.asked = False
            verdict = self._source.layout.parse(file.path, probe)
            if not probe.asked and self._judge(file.path, verdict) is None:
                looks.append(_SeenFile(file, verdict, open=False))
                continue
            try:
                stat = file.stat(self._source.root)
            except OSError:
                # Offered without a stat, it stays on the list until the file system answers again.
                looks.append(_SeenFile(file, verdict, unsure=probe.asked))
            else:
                if stat is not None:
                    looks.append(_SeenFile(file, verdict, stat, unsure=probe.asked))
                else:
                    self._waiting.pop(file.path, None)
        return looks

    def _judge(self, path: str, verdict: DropImage | NotADrop) -> DropImage | None:
        """Return the drop image that a path names; None for everything else, which is counted."""
        if isinstance(verdict, DropImage):
            reason = why_not_scored(verdict)
            if reason is None:
                self._waiting.pop(path, None)
                self._counted.pop(path, None)
                self._unreported.put(path, missed=any(warning.kind in MAY_END for warning in verdict.warnings))
                return verdict
        else:
            reason = verdict.reason
            self._keep(path, verdict)
        self._count(path, reason)
        return None

    def _keep(self, path: str, verdict: NotADrop) -> None:
        if verdict.may_change:
            _remember(self._waiting, path, WAITING_LIMIT)
        else:
            self._waiting.pop(path, None)

    def _count(self, path: str, reason: IgnoreReason) -> None:
        if path in self._counted:
            return
        _remember(self._counted, path, COUNTED_LIMIT)
        self.tally.ignored[reason] += 1
        if reason is IgnoreReason.UNREADABLE_NAME and len(self.tally.unreadable) < EXAMPLES:
            self.tally.unreadable.append(path_text(path))


def _warnings(look: _SeenFile, recorded: Known) -> Iterable[WarningKind]:
    """Kinds of warning of an image that stands as it was recorded.

    Where a companion decides, they are those it was recorded with, since companions are not read again; others of those
    are what no path tells.
    """
    before = [WarningKind(kind) for kind in recorded.warnings.split(",")] if recorded.warnings else []
    if look.unsure:
        return before
    now = look.verdict.warnings if isinstance(look.verdict, DropImage) else ()
    if not (now or before):
        return ()
    kept = (kind for kind in before if kind in RECORDED_WARNINGS)
    return dict.fromkeys((*(warning.kind for warning in now), *kept))


class _Unreported:
    """Paths of images that miss a row of a report, by folder, so that those next to a new report are found."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, path: str, *, missed: bool) -> None:
        """Note whether an image misses its row; beyond the limit the full walk finds it."""
        folder = path.rpartition("/")[0]
        there = path in self._folders.get(folder, ())
        if missed and not there and self._count < WAITING_LIMIT:
            self._folders.setdefault(folder, set()).add(path)
            self._count += 1
        elif there and not missed:
            self._folders[folder].discard(path)
            self._count -= 1

    def below(self, folder: str) -> list[str]:
        """Return the images in a folder and in the folders below it."""
        inside = f"{folder}/" if folder else ""
        found = [paths for name, paths in self._folders.items() if name == folder or name.startswith(inside)]
        return sorted(path for paths in found for path in paths)


class _Probe:
    """Stands for no companions and notes whether a layout asked for one.

    Companions are read over a share, one or more an image, so a walk reads them only for what is not recorded yet.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, path: str) -> bytes | None:
        self.asked = True
        return None


def _remember(paths: dict[str, None], path: str, limit: int) -> None:
    """Add a path, and let the oldest go beyond the limit."""
    paths[path] = None
    if len(paths) > limit:
        del paths[next(iter(paths))]
