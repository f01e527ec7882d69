"""How long a tree takes: seen for the first time, looked at again file by file, looked at again by folder."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks import plates
from benchmarks.bench import KINDS, Bench, Kind, open_source, timed
from benchmarks.tables import Spread, Table
from marcod.database.engine import Database
from marcod.watch.ingest import Ingest, WatchedSource
from marcod.watch.scan import scan_once
from marcod.watch.settle import SettleTracker
from marcod.watch.tree import FolderMemory, Walk

PORTION: Final = 1_000
"""Files that the watching loop takes from a walk at a time."""


def run(bench: Bench) -> Iterator[Table]:
    """First scan, full scan, short rescan of one tree."""
    files, repeat = bench.size(100_000, 4_000), bench.size(3, 2)
    with bench.place("tree") as folder:
        bench.say(f"writing {files:,} files")
        folders = write_tree(folder, files)
        rows: list[list[str | int | Spread]] = []
        for kind in KINDS:
            bench.say(f"scanning on {kind}")
            first, full = _scans(bench, kind, folder, repeat)
            rows.append([f"first scan, {files // 2:,} images recorded, {kind}", *_cells(files, first)])
            rows.append([f"full scan, nothing changed, {kind}", *_cells(files, full)])
        with bench.subject("SQLite") as subject:
            source = open_source(subject.db, folder)
            scan_once(subject.db, source, 0.0)
            rows.append(["rescan by folder, nothing changed", *_cells(files, _rescans(subject.db, source, 3 * repeat))])
    about = (
        f"Synthetic Formulatrix store of {files:,} files of 10 bytes in {folders:,} folders, half of them thumbnails; "
        "listings in the page cache; settle time 0. A rescan asks every folder for its time, and no database."
    )
    yield Table("Scanning a tree", about, ["what", "s", "files/s"], rows)


def write_tree(folder: Path, files: int) -> int:
    """Write that many files, every other one a thumbnail. Returns the number of folders."""
    made: set[str] = set()
    for path, _ in islice(plates.composites(), files // 2):
        parent = os.path.dirname(path)  # noqa: PTH120 - a hundred thousand Paths would take longer than the files
        if parent not in made:
            (folder / parent).mkdir(parents=True)
            made.add(parent)
        for name in (path, path.replace("_ef.", "_th.")):
            with open(f"{folder}/{name}", "wb") as file:  # noqa: PTH123
                file.write(b"synthetic\n")
    return sum(1 for _ in os.walk(folder))


def _scans(bench: Bench, kind: Kind, folder: Path, repeat: int) -> tuple[Spread, Spread]:
    first, full = [], []
    for _ in range(repeat):
        with bench.subject(kind) as subject:
            scan = partial(scan_once, subject.db, open_source(subject.db, folder), 0.0)
            first.append(timed(scan)[0])
            full.append(timed(scan)[0])
    return Spread.of(first), Spread.of(full)


def _rescans(db: Database, source: WatchedSource, repeat: int) -> Spread:
    memory = FolderMemory()
    # A folder's time is believed once it was listed again some seconds later: the first two walks only learn.
    times = [timed(partial(_walk, db, source, memory, now))[0] for now in range(0, 60 * (repeat + 2), 60)]
    return Spread.of(times[2:])


def _walk(db: Database, source: WatchedSource, memory: FolderMemory, now: float) -> None:
    """What the watching loop does for one rescan."""
    ingest = Ingest(db, source, SettleTracker(0.0, source.root.stat))
    walk = Walk(source.root, memory, full=False)
    while not walk.done:
        ingest.nominate(walk.more(now, PORTION), now)


def _cells(files: int, took: Spread) -> list[Spread]:
    return [took, Spread(files / took.median, files / took.high, files / took.low)]
