"""The watching loop on real folders with real observers. Only the test moves the clock."""

import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
import structlog
from waiting import wait_until
from watched_site import NEVER_S, SETTLE_S, Site, put, set_time, well_image

from marcod.database.engine import Database
from marcod.database.schema import drop, image
from marcod.errors import StoreError
from marcod.watch.loop import GUARD_S, LONGEST_PAUSE_S, REFUSED_S

pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")

EVENTS_ALONE = {"settle_s": SETTLE_S, "rescan_s": NEVER_S, "full_rescan_s": NEVER_S}
"""No walk after the one at the start, so that what is recorded came by an event."""

MakeSite = Callable[..., Site]


def wells(numbers: range) -> list[str]:
    return [well_image(number) for number in numbers]


def placed(db: Database) -> list[tuple[str, int, datetime | None]]:
    """Well, drop number and time of every image."""
    columns = (drop.c.well, drop.c.drop_number, image.c.captured_at)
    return [tuple(row) for row in factories.rows(db, sa.select(*columns).join(drop, drop.c.id == image.c.drop_id))]


# What walks find


def test_files_that_were_there_before_settle_like_all_others(site: Site) -> None:
    growing = site.put(well_image(1))
    site.put(well_image(2))
    site.step()
    assert site.status.pending == 2
    growing.write_bytes(b"still being copied when the daemon started")
    site.step(SETTLE_S)
    assert site.images() == {well_image(2): 9}
    site.step(SETTLE_S)
    assert set(site.images()) == {well_image(1), well_image(2)}
    assert site.jobs() == 2


def test_a_restart_finds_everything_known(site: Site) -> None:
    for path in wells(range(1, 11)):
        site.put(path)
    site.settle()
    site.watcher.close()
    site.watcher = site.new_watcher()
    site.step()
    assert site.status.pending == 0
    assert len(site.images()) == site.jobs() == 10


def test_rescans_find_new_files_without_any_event(make_site: MakeSite) -> None:
    site = make_site(observer="polling", poll_s=NEVER_S)
    site.settle()
    for path in wells(range(1, 4)):
        site.put(path)
    site.step(60.0)
    assert site.status.pending == 3
    site.step(SETTLE_S)
    assert len(site.images()) == 3


def test_a_file_rewritten_in_place_is_found_by_the_full_rescan(make_site: MakeSite) -> None:
    site = make_site(observer="polling", poll_s=NEVER_S)
    file = site.put(well_image(1))
    site.settle()
    for _ in range(3):
        site.step(60.0)
    file.write_bytes(b"rewritten in place")
    site.step(60.0)
    assert site.status.pending == 0
    site.step(86_400.0)
    site.step(SETTLE_S)
    assert site.images() == {well_image(1): 18}


@pytest.mark.slow
def test_more_files_than_one_round_takes(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marcod.watch.loop.PORTION", 7)
    site = make_site()
    for path in wells(range(1, 51)):
        site.put(path)
    assert site.watcher.step(site.now, factories.utc())
    assert site.status.walking
    site.settle()
    assert len(site.images()) == 50


def test_images_are_recorded_once_their_report_comes(make_site: MakeSite) -> None:
    site = make_site(layout="rockmaker-export", observer="polling", poll_s=NEVER_S)
    image = "90j8/Crystals/90j8_D12_ImagerDefaults_9.jpg"
    site.put(image)
    site.settle()
    for _ in range(3):
        site.step(60.0)
    assert (site.status.waiting, site.images()) == (1, {})
    site.put(
        "90j8/report.csv", b'"D:\\90j8\\Crystals\\90j8_D12_ImagerDefaults_9.jpg","Crystals",2,03/17/10 09:00:00\r\n'
    )
    site.step(60.0)
    site.step(SETTLE_S)
    assert (site.status.waiting, list(site.images())) == (0, [image])


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["inotify", "polling"])
def test_a_report_that_comes_late_is_read_for_images_taken_without_it(make_site: MakeSite, observer: str) -> None:
    site = make_site(layout="rockmaker-export", observer=observer, watch=EVENTS_ALONE)
    site.observe()
    path = "90j8/Crystals/Needles/90j8_D12_Visible_9_3552.jpg"
    site.put(path)
    site.recorded_by_events(path)
    assert (site.status.waiting, placed(site.db)) == (0, [("D12", 1, None)])
    site.put(
        "90j8/report.csv", b'"D:\\90j8\\Crystals/Needles\\90j8_D12_Visible_9_3552.jpg","x",2,03/17/10 09:00:00\r\n'
    )
    site.step_until(lambda: placed(site.db) == [("D12", 2, datetime(2010, 3, 17, 9, tzinfo=UTC))], each_s=SETTLE_S)
    assert len(site.images()) == 1


# What events find


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["inotify", "polling"])
def test_new_folders_with_files_written_at_once(make_site: MakeSite, observer: str) -> None:
    site = make_site(observer=observer, watch=EVENTS_ALONE)
    site.observe()
    new = [well_image(well, plate=plate) for plate in range(5) for well in range(1, 13)]
    for path in new:
        site.put(path)
    site.recorded_by_events(*new)


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["inotify", "polling"])
def test_files_and_folders_moved_in(make_site: MakeSite, tmp_path: Path, observer: str) -> None:
    site = make_site(observer=observer, watch=EVENTS_ALONE)
    site.put(well_image(1))
    site.observe()
    put(tmp_path, "elsewhere/one.jpg").rename(site.root / Path(well_image(1)).with_name("d2_r1_ef.jpg"))
    site.recorded_by_events(str(Path(well_image(1)).with_name("d2_r1_ef.jpg")))
    for well in range(1, 6):
        put(tmp_path / "elsewhere", well_image(well, plate=2))
    (tmp_path / "elsewhere/WellImages/70/plateID_2").rename(site.root / "WellImages/70/plateID_2")
    site.recorded_by_events(*(well_image(well, plate=2) for well in range(1, 6)))


def test_a_file_under_a_temporary_name_is_recorded_under_its_final_one(make_site: MakeSite) -> None:
    site = make_site(watch=EVENTS_ALONE)
    part = site.put(f"{well_image(1)}.part")
    site.observe()
    part.rename(site.root / well_image(1))
    site.recorded_by_events(well_image(1))
    assert list(site.images()) == [well_image(1)]


def test_an_empty_file_is_recorded_once_filled(make_site: MakeSite) -> None:
    site = make_site(watch=EVENTS_ALONE)
    site.observe()
    file = site.put(well_image(1), b"")
    site.step_until(lambda: site.status.pending)
    site.step(SETTLE_S * 10)
    assert site.images() == {}
    file.write_bytes(b"filled")
    site.recorded_by_events(well_image(1))
    assert site.images() == {well_image(1): 6}


@pytest.mark.slow
def test_a_rewrite_is_queued_again_and_a_second_look_is_not(make_site: MakeSite) -> None:
    site = make_site(watch=EVENTS_ALONE)
    file = site.put(well_image(1))
    site.observe()
    site.step(SETTLE_S)
    file.chmod(0o600)
    site.step_until(lambda: site.status.pending)
    with structlog.testing.capture_logs() as lines:
        site.step(SETTLE_S)
        file.write_bytes(b"taken again")
        site.step_until(lambda: site.images() == {well_image(1): 11}, each_s=SETTLE_S / 4)
    told = [(line["new"], line["changed"], line["unchanged"]) for line in lines if line["event"] == "images recorded"]
    assert told == [(0, 0, 1), (0, 1, 0)]


def test_names_of_any_bytes_arrive_by_event(make_site: MakeSite) -> None:
    site = make_site(watch=EVENTS_ALONE)
    site.observe()
    odd = "caf\udce9\n/" + well_image(1)
    site.put(odd)
    site.recorded_by_events(odd)


def test_links_that_leave_the_root_are_never_recorded(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site()
    put(tmp_path, f"elsewhere/{well_image(2)}")
    link = site.put(well_image(1)).with_name("d2_r1_ef.jpg")
    link.symlink_to(tmp_path / "elsewhere" / well_image(2))
    (site.root / "WellImages/71").symlink_to(tmp_path / "elsewhere/WellImages/70")
    site.settle()
    assert list(site.images()) == [well_image(1)]


# What goes wrong


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["inotify", "polling"])
def test_a_root_that_vanishes_and_returns(make_site: MakeSite, tmp_path: Path, observer: str) -> None:
    site = make_site(observer=observer, watch=EVENTS_ALONE)
    site.put(well_image(1))
    site.observe()
    assert site.status.pending == 1
    with structlog.testing.capture_logs() as lines:
        site.root.rename(tmp_path / "unplugged")
        for _ in range(5):
            site.step(SETTLE_S)
        assert not site.status.root_there
        put(tmp_path / "unplugged", well_image(2))
        (tmp_path / "unplugged").rename(site.root)
        site.observe_after(GUARD_S)
        site.step(SETTLE_S)
        assert set(site.images()) == {well_image(1), well_image(2)}
        site.put(well_image(3))
        site.recorded_by_events(well_image(3))
    states = [line["event"] for line in lines if line["event"].startswith("source root")]
    assert states == ["source root is offline", "source root is back"]


def test_a_root_that_is_missing_at_the_start(make_site: MakeSite) -> None:
    site = make_site()
    site.root.rmdir()
    site.step(60.0)
    assert (site.status.root_there, site.status.trouble) == (False, None)
    site.put(well_image(1))
    site.step(GUARD_S)
    site.step(SETTLE_S)
    assert list(site.images()) == [well_image(1)]


def test_a_share_that_lists_empty_and_then_full(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site(observer="polling", poll_s=NEVER_S)
    for path in wells(range(1, 4)):
        site.put(path)
    site.step()
    assert site.status.pending == 3
    # Unmounted: the folder below the mount point is empty, and another one.
    site.root.rename(tmp_path / "share")
    site.root.mkdir()
    for _ in range(3):
        site.step(60.0)
    assert site.images() == {}
    site.root.rmdir()
    (tmp_path / "share").rename(site.root)
    site.step(60.0)
    site.step(SETTLE_S)
    assert len(site.images()) == 3


def test_files_whose_disk_was_offline_in_the_moment_of_settling_are_not_lost(
    make_site: MakeSite, tmp_path: Path
) -> None:
    site = make_site(watch=EVENTS_ALONE)
    site.put(well_image(1))
    site.observe()
    site.step(GUARD_S + 1)
    site.root.rename(tmp_path / "unplugged")
    # The next look at the root is still to come when the file is due.
    site.step(SETTLE_S - GUARD_S - 1)
    assert not site.status.root_there
    (tmp_path / "unplugged").rename(site.root)
    site.step(GUARD_S)
    site.settle()
    assert list(site.images()) == [well_image(1)]


class Outage:
    """Puts the SQLite file out of reach and brings it back."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.file = Path(str(site.db.url.database))

    def begin(self) -> None:
        self.site.db.close()
        self.file.rename(self.file.with_suffix(".away"))
        self.file.mkdir()

    def end(self) -> None:
        self.file.rmdir()
        self.file.with_suffix(".away").rename(self.file)


@pytest.mark.slow
def test_nothing_is_lost_while_the_database_is_offline(make_site: MakeSite) -> None:
    site = make_site(watch=EVENTS_ALONE)
    site.observe()
    for path in wells(range(1, 6)):
        site.put(path)
    site.step_until(lambda: site.status.pending == 5)
    outage = Outage(site)
    with structlog.testing.capture_logs() as lines:
        outage.begin()
        for _ in range(5):
            site.step(LONGEST_PAUSE_S)
        for path in wells(range(6, 11)):
            site.put(path)
        site.step_until(lambda: site.status.pending == 10)
        (site.root / well_image(1)).write_bytes(b"rewritten during the outage")
        outage.end()
        site.recorded_by_events(*wells(range(1, 11)))
    assert site.images()[well_image(1)] == 27
    assert site.jobs() == 10
    states = [line["event"] for line in lines if line["event"].startswith("watching")]
    assert states == ["watching paused, nothing is lost", "watching resumed"]


def test_a_walk_waits_for_the_database(make_site: MakeSite) -> None:
    site = make_site(observer="polling", poll_s=NEVER_S)
    for path in wells(range(1, 6)):
        site.put(path)
    outage = Outage(site)
    outage.begin()
    for _ in range(3):
        site.step(LONGEST_PAUSE_S)
    assert site.status.walking
    outage.end()
    site.step(LONGEST_PAUSE_S)
    site.step(SETTLE_S)
    assert len(site.images()) == 5


def test_a_file_that_the_database_refuses_fails_alone(site: Site) -> None:
    def refuse(connection: object, sql: str) -> None:
        connection.exec_driver_sql(sql)  # type: ignore[attr-defined]

    trigger = "create trigger refuse before insert on image when new.path like '%wellNum_4/%' begin "
    site.db.write(lambda connection: refuse(connection, trigger + "select raise(abort, 'refused'); end"))
    for path in wells(range(1, 10)):
        site.put(path)
    with structlog.testing.capture_logs() as lines:
        site.settle()
    assert set(site.images()) == set(wells(range(1, 10))) - {well_image(4)}
    assert [line["path"] for line in lines if line["event"] == "file refused"] == [well_image(4)]
    site.db.write(lambda connection: refuse(connection, "drop trigger refuse"))
    site.step(REFUSED_S)
    assert len(site.images()) == 9


def test_a_missing_champion_is_waited_for(site: Site) -> None:
    def forget_champion(connection: object) -> None:
        connection.exec_driver_sql("delete from model_alias")  # type: ignore[attr-defined]

    site.db.write(forget_champion)
    site.put(well_image(1))
    site.settle()
    assert (site.images(), site.status.pending) == ({}, 1)
    factories.promote(site.db, factories.register(site.db, version="2"))
    site.step(LONGEST_PAUSE_S)
    assert list(site.images()) == [well_image(1)]


# The loop as the daemon runs it


@pytest.mark.slow
def test_the_loop_runs_in_a_thread_and_ends_when_stopped(make_site: MakeSite) -> None:
    site = make_site(watch={"settle_s": 0.05})
    stop = threading.Event()
    thread = threading.Thread(target=site.watcher.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: site.status.observing)
        site.put(well_image(1))
        wait_until(lambda: site.images())
    finally:
        stop.set()
        thread.join()
    assert not site.status.observing


def test_the_instrument_s_files_are_left_as_they_are(site: Site) -> None:
    file = site.put(well_image(1))
    set_time(file, 10**18)
    before = (file.stat(), sorted(site.root.rglob("*")))
    site.observe()
    site.settle()
    assert (file.stat(), sorted(site.root.rglob("*"))) == before
    shutil.rmtree(site.root)
    site.step(60.0)
    assert list(site.images()) == [well_image(1)]


def test_a_file_that_came_between_the_first_walk_and_the_observer_is_found_at_once(make_site: MakeSite) -> None:
    """A polling observer that never polls again stands for one that began to watch just too late."""
    site = make_site(observer="polling", poll_s=NEVER_S, watch=EVENTS_ALONE)
    site.step()
    wait_until(lambda: site.watcher.status()[0].observing, "the observer")
    site.put(well_image(1))
    site.step()
    site.step(SETTLE_S)
    assert set(site.images()) == {well_image(1)}


def test_files_that_no_layout_reads_are_reported_though_nothing_is_recorded(make_site: MakeSite) -> None:
    """A wrong layout leaves out every file, and nobody would know."""
    site = make_site()
    site.put("holiday/beach.jpg")
    with structlog.testing.capture_logs() as lines:
        site.settle()
    (line,) = [line for line in lines if line["event"] == "files ignored"]
    assert sum(line["ignored"].values()) == 1
    assert site.images() == {}


# The running loop


def test_a_running_loop_is_woken_by_events_and_by_the_end_of_settling(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them it would sleep for an hour."""
    monkeypatch.setattr("marcod.watch.loop.TICK_S", 3600.0)
    site = make_site(watch=EVENTS_ALONE | {"settle_s": 0.2})
    site.put(well_image(1))
    stop = threading.Event()
    thread = threading.Thread(target=site.watcher.run, args=(stop,))
    thread.start()
    wait_until(lambda: site.status.observing and len(site.images()) == 1, "the file of the first walk")
    site.put(well_image(2))
    wait_until(lambda: len(site.images()) == 2, "the file of an event")
    stop.set()
    site.put("the event that wakes it to stop")
    thread.join(60.0)
    assert not thread.is_alive()


def test_a_loop_has_nothing_due_while_the_database_is_offline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else files that settled would keep it turning."""

    def failing(*_: object) -> None:
        raise StoreError("the database is offline")

    site.put(well_image(1))
    site.step()
    (watched,) = site.watcher._watched
    assert watched.due_at == site.now + SETTLE_S
    with monkeypatch.context() as patch:
        patch.setattr(site.db, "write", failing)
        site.step(SETTLE_S)
        assert watched.due_at == float("inf")
    site.step(LONGEST_PAUSE_S)
    assert len(site.images()) == 1
    assert watched.due_at == float("inf")
