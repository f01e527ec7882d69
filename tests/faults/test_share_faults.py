"""Shares and files as badly as they come: nothing is lost, nothing is stuck, and one path never stops the others."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
import structlog
from fault_tools import no_file_left_to_open, ordinary_user
from waiting import wait_until
from watched_site import SETTLE_S, Site, well_image

from marcod import images
from marcod.database.schema import image
from marcod.watch.loop import LONGEST_PAUSE_S
from marcod.watch.observe import EventBuffer, ObserverSupervisor
from marcod.watch.tree import Root, Walk

MakeSite = Callable[..., Site]
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def everything_below(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


@on_sqlite
def test_a_share_that_is_read_only(site: Site) -> None:
    paths = [well_image(well) for well in range(1, 4)]
    for path in paths:
        site.put(path)
    below = everything_below(site.root)
    database = Path(str(site.db.url.database))
    beside = list(database.parent.glob(f"{database.name}*"))
    for one in below:
        one.chmod(0o555 if one.is_dir() else 0o444)
    before = {one: one.stat().st_mtime_ns for one in below}
    with ordinary_user(database, *beside, database.parent):
        site.settle()
        assert sorted(site.images()) == paths
        assert images.read(site.root / paths[0]) == b"synthetic"
    assert {one: one.stat().st_mtime_ns for one in everything_below(site.root)} == before
    for one in below:
        one.chmod(0o755)


def test_a_folder_that_cannot_be_read_for_a_while(tmp_path: Path) -> None:
    """The rest is found meanwhile, and what is in it afterwards, although no folder's time changed."""
    for name in ("closed/a.jpg", "open/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"synthetic")
    root, closed = Root(tmp_path), tmp_path / "closed"
    with ordinary_user(tmp_path, closed):
        memory_walk = Walk(root)
        closed.chmod(0)
        found = [file.path for file in memory_walk.more(0.0, 99)]
        closed.chmod(0o755)
        assert (found, memory_walk.counts.unreadable) == (["open/b.jpg"], 1)
        assert [file.path for file in Walk(root).more(0.0, 99)] == ["closed/a.jpg", "open/b.jpg"]


@on_sqlite
def test_no_file_left_to_open_loses_nothing(site: Site) -> None:
    """Every listing fails as it does on a share with a stale handle; the loop says so once and waits."""
    site.observe()
    paths = [well_image(well) for well in range(1, 4)]
    for path in paths:
        site.put(path)
    with structlog.testing.capture_logs() as lines, no_file_left_to_open():
        for _ in range(4):
            site.step(60.0)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["watching paused, nothing is lost"]
    site.step(LONGEST_PAUSE_S)
    site.step(SETTLE_S)
    assert sorted(site.images()) == paths


def test_an_observer_that_finds_no_file_descriptor_names_the_limit(tmp_path: Path) -> None:
    observer = ObserverSupervisor("imager", Root(tmp_path), "inotify", 1.0, EventBuffer())
    identity = Root(tmp_path).identity()
    with no_file_left_to_open():
        observer.check(identity, 0.0)
        wait_until(lambda: observer.trouble)
    assert observer.trouble is not None
    assert "LimitNOFILE" in observer.trouble
    assert "rescans" in observer.trouble
    observer.close()


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("to", ["a", "z"])
def test_a_folder_renamed_while_it_is_walked(site: Site, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """To a name that the walk has passed, and to one that it comes to."""
    monkeypatch.setattr("marcod.watch.loop.PORTION", 3)
    for folder in ("b", "c", "d"):
        for well in range(1, 6):
            site.put(f"{folder}/{well_image(well)}")
    site.watcher.step(site.now, factories.utc())
    assert site.status.walking
    (site.root / "d").rename(site.root / to)
    site.settle()
    site.step(60.0)
    site.step(SETTLE_S)
    assert {path.split("/")[0] for path in site.images()} == {"b", "c", to}
    assert len(site.images()) == 15


@on_sqlite
def test_files_that_vanish_between_settling_and_recording(site: Site) -> None:
    """A job for a file that is gone is the scorer's to give up; here it only must not stop the others."""
    for well in range(1, 4):
        site.put(well_image(well))
    site.step()
    shutil.rmtree((site.root / well_image(1)).parent)
    site.step(SETTLE_S)
    assert sorted(site.images()) == [well_image(2), well_image(3)]
    assert site.status.pending == 0


def test_names_of_any_bytes_and_of_any_length(site: Site) -> None:
    """One path that the database cannot take must not hold up the others of its portion."""
    anything = [bytes(range(1, 47)), bytes(range(48, 129)), bytes(range(129, 256)), b"\n\r\t\x1b[2J", b"x" * 255]
    prefixes = [os.fsdecode(name) for name in anything] + ["a..b", "=cmd|' /C calc'!A0", "%s{0}$HOME`"]
    rng = random.Random(1)
    # Beyond 2.7 kB no index of PostgreSQL takes a path that does not compress.
    long = "/".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200)) for _ in range(15))
    paths = [f"{prefix}/{well_image(1)}" for prefix in [*prefixes, long]]
    for path in paths:
        site.put(path)
    with structlog.testing.capture_logs() as lines:
        site.settle()
    refused = [long] if not site.db.is_sqlite else []
    assert sorted(site.images()) == sorted(path for path in paths if path.rsplit("/WellImages", 1)[0] not in refused)
    assert [line["path"][:200] for line in lines if line["event"] == "file refused"] == [one[:200] for one in refused]
    assert site.jobs() == len(paths) - len(refused)
    lease = factories.claimed(site.db, factories.utc(hours=9))
    assert all(images.read(site.root / claim.path) == b"synthetic" for claim in lease.claims)


@on_sqlite
def test_loops_of_links_are_walked_once(site: Site, tmp_path: Path) -> None:
    site.put(well_image(1))
    for number, target in enumerate((".", "..", "WellImages", str(site.root), str(tmp_path))):
        (site.root / f"loop{number}").symlink_to(target)
        (site.root / "WellImages" / f"loop{number}").symlink_to(target)
    site.settle()
    assert list(site.images()) == [well_image(1)]
    assert factories.rows(site.db, sa.select(sa.func.count()).select_from(image)) == [(1,)]
