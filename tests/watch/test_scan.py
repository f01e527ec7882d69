"""One pass over a source, as `marcod scan` does it, on the real clock with short settle times."""

import os
import threading
from pathlib import Path

import factories
import pytest
from watched_site import put, settings_for, well_image

from marcod.database.engine import Database
from marcod.domain import IgnoreReason
from marcod.store.versions import Version
from marcod.watch.ingest import WatchedSource, open_sources
from marcod.watch.scan import ScanProgress, ScanReport, scan_once
from marcod.watch.tree import MissingRootError

SETTLE_S = 0.2


@pytest.fixture
def source(db: Database, champion: Version, tmp_path: Path) -> WatchedSource:
    root = tmp_path / "plates"
    root.mkdir()
    return open_sources(db, settings_for(root), factories.utc())[0]


@pytest.fixture
def root(source: WatchedSource) -> Path:
    return Path(source.root.path)


def total(report: ScanReport) -> int:
    parts = (report.new, report.changed, report.unchanged, report.pending, report.gone, *report.ignored.values())
    return sum(parts)


@pytest.mark.slow
def test_a_second_scan_finds_everything_unchanged(db: Database, source: WatchedSource, root: Path) -> None:
    for well in range(1, 21):
        put(root, well_image(well))
        put(root, well_image(well, kind="th"))
    put(root, "WellImages/70/plateID_1070/batchID_5/wellNum_1/profileID_7/d1_r1_ef.png")
    first = scan_once(db, source, SETTLE_S)
    assert (first.found, first.new, first.changed, first.unchanged, first.unscored) == (41, 21, 0, 0, 1)
    assert first.ignored == {IgnoreReason.THUMBNAIL: 20}
    second = scan_once(db, source, SETTLE_S)
    assert (second.found, second.new, second.changed, second.unchanged, second.unscored) == (41, 0, 0, 21, 0)
    put(root, well_image(3), b"taken again")
    third = scan_once(db, source, SETTLE_S)
    assert (third.new, third.changed, third.unchanged) == (0, 1, 20)
    assert all(total(report) == report.found for report in (first, second, third))


@pytest.mark.slow
def test_files_that_still_change_are_reported_as_pending(db: Database, source: WatchedSource, root: Path) -> None:
    put(root, well_image(1))
    put(root, well_image(2), b"")
    growing = put(root, well_image(3))
    over = threading.Event()

    def grow() -> None:
        with growing.open("ab", buffering=0) as file:
            while not over.wait(0.01):
                file.write(b"more")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        report = scan_once(db, source, SETTLE_S)
    finally:
        over.set()
        writer.join()
    assert (report.found, report.new, report.pending) == (3, 1, 2)
    assert scan_once(db, source, SETTLE_S).new == 1


def test_names_nobody_can_read_are_shown(db: Database, source: WatchedSource, root: Path) -> None:
    folder = "WellImages/70/plateID_1070/batchID_5/wellNum_1/profileID_1"
    for number in range(12):
        put(root, f"{folder}/drop{number}\udce9.jpg")
    report = scan_once(db, source, SETTLE_S)
    assert report.ignored == {IgnoreReason.UNREADABLE_NAME: 12}
    assert len(report.unreadable) == 10
    assert all(name.startswith(folder) and name.endswith(r"\xe9.jpg") for name in report.unreadable)


def test_links_that_leave_the_root_are_gone(db: Database, source: WatchedSource, root: Path, tmp_path: Path) -> None:
    outside = put(tmp_path, "outside.jpg")
    link = root / well_image(1)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    pipe = root / well_image(2)
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    report = scan_once(db, source, SETTLE_S)
    assert (report.found, report.gone, report.new) == (2, 2, 0)


def test_an_empty_root_is_not_an_error_and_waits_for_nothing(db: Database, source: WatchedSource) -> None:
    assert scan_once(db, source, 3600.0).found == 0


def test_a_missing_root_is_an_error(db: Database, source: WatchedSource, root: Path) -> None:
    root.rmdir()
    with pytest.raises(MissingRootError, match="plates cannot be read"):
        scan_once(db, source, SETTLE_S)


@pytest.mark.slow
def test_progress_and_stop(db: Database, source: WatchedSource, root: Path) -> None:
    for well in range(1, 6):
        put(root, well_image(well))
    told: list[ScanProgress] = []
    scan_once(db, source, SETTLE_S, progress=told.append)
    assert told[-1] == ScanProgress(found=5, pending=0, done=5)
    put(root, well_image(6))
    stop = threading.Event()
    report = scan_once(db, source, 3600.0, progress=lambda _: stop.set(), stop=stop)
    assert (report.found, report.pending) == (6, 1)
