"""Which source a folder is: a name takes it over only where the recorded files lie, and roots never overlap."""

import os
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from factories import rows
from watched_site import put, well_image

from marcod.catalog import registration
from marcod.database.engine import Database
from marcod.database.schema import audit, image, source
from marcod.errors import ConfigError
from marcod.health import places
from marcod.health.finding import HealthFinding, Severity
from marcod.health.snapshot import take_snapshot
from marcod.settings import Settings
from marcod.store import sources
from marcod.store.versions import Version
from marcod.watch import status
from marcod.watch.folders import SAMPLE, recorded_twice, require_apart
from marcod.watch.ingest import open_sources
from marcod.watch.scan import scan_once
from marcod.watch.status import SourceStatus

WELLS = range(1, 7)
HAND = "images-3fa2b1"


def settings_for(layout: str = "formulatrix", **roots: Path) -> Settings:
    given = {name.replace("_", "-"): {"root": root, "layout": layout} for name, root in roots.items()}
    return Settings.model_validate({"sources": given})


@pytest.fixture
def folder(db: Database, champion: Version, tmp_path: Path) -> Path:
    """A folder of six images that was scanned by hand."""
    root = tmp_path / "images"
    for well in WELLS:
        put(root, well_image(well))
    scan(db, HAND, root)
    return root


def scan(db: Database, name: str, root: Path, layout: str = "formulatrix") -> int:
    """Open and scan one source as the only configured one; returns how many images are new."""
    given = Settings.model_validate({"sources": {name: {"root": root, "layout": layout}}})
    (opened,) = open_sources(db, given, factories.utc())
    return scan_once(db, opened, 0.0).new


def names(db: Database) -> dict[str, int]:
    """The recorded sources with the number of their images."""
    counted = sa.select(source.c.name, sa.func.count(image.c.id)).outerjoin(image).group_by(source.c.name)
    return {row[0]: row[1] for row in rows(db, counted)}


def test_a_folder_scanned_by_hand_keeps_its_plates_under_its_configured_name(db: Database, folder: Path) -> None:
    assert scan(db, "minstrel", folder) == 0
    assert names(db) == {"minstrel": 6}
    assert scan(db, "minstrel", folder) == 0


@pytest.mark.parametrize("used", [False, True], ids=["for a root that was never there", "for another folder"])
def test_also_under_a_name_that_was_used_before(db: Database, folder: Path, tmp_path: Path, used: bool) -> None:
    """The README's example root is enough: its watcher waits for the share, and the name is recorded."""
    other = tmp_path / "other"
    if used:
        put(other, well_image(7))
        scan(db, "minstrel", other)
    else:
        open_sources(db, settings_for(minstrel=other), factories.utc())
    assert scan(db, "minstrel", folder) == 0
    assert names(db) == {"minstrel": 7 if used else 6}
    actions = rows(db, sa.select(audit.c.actor, audit.c.action).where(audit.c.action.like("source%")))
    assert actions == [("marcod", "source merge")]


def test_a_link_to_the_folder_is_the_folder(db: Database, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert scan(db, "minstrel", tmp_path / "link") == 0
    assert names(db) == {"minstrel": 6}


def test_some_files_may_have_been_removed(db: Database, folder: Path) -> None:
    for well in (1, 2, 3, 4):
        (folder / well_image(well)).unlink()
    assert scan(db, "minstrel", folder) == 0
    assert names(db) == {"minstrel": 6}


def test_another_folder_at_the_same_place_is_another_source(db: Database, folder: Path) -> None:
    """The share of one imager is mounted where that of another one was; a name may even be the same."""
    folder.rename(folder.with_name("before"))
    put(folder, well_image(1), b"of another imager")
    put(folder, well_image(9))
    assert scan(db, "minstrel", folder) == 2
    assert names(db) == {HAND: 6, "minstrel": 2}


def _nothing_there(folder: Path) -> str:
    folder.rename(folder.with_name("unmounted"))
    folder.mkdir()
    return "is not there now"


def _copied_without_times(folder: Path) -> str:
    for well in WELLS:
        os.utime(folder / well_image(well), (10**9, 10**9))
    return "not enough of its files"


def _mostly_rewritten(folder: Path) -> str:
    for well in (1, 2, 3, 4):
        put(folder, well_image(well), b"other")
    return "not enough of its files"


@pytest.mark.parametrize("change", [_nothing_there, _copied_without_times, _mostly_rewritten])
def test_where_nothing_decides_it_a_person_is_given_the_command(
    db: Database, folder: Path, tmp_path: Path, change: Callable[[Path], str]
) -> None:
    why = change(folder)
    with pytest.raises(ConfigError, match=f"{why}.*`marcod source rename {HAND} minstrel`"):
        open_sources(db, settings_for(minstrel=folder), factories.utc())
    assert names(db) == {HAND: 6}
    open_sources(db, settings_for(minstrel=tmp_path / "elsewhere"), factories.utc())
    with pytest.raises(ConfigError, match=f"`marcod source merge {HAND} minstrel`"):
        open_sources(db, settings_for(minstrel=folder), factories.utc())


def test_what_is_configured_or_watched_or_read_otherwise_keeps_its_name(
    db: Database, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{HAND}' with layout formulatrix.*`marcod source forget {HAND}`"):
        open_sources(db, settings_for("rigaku", minstrel=folder), factories.utc())
    state = SourceStatus(HAND, "w", "east", True, True, None, 0, 0, False, 0, 0, None, None, None)
    db.write(lambda c: status.write(c, [state], db.now()))
    with pytest.raises(ConfigError, match="which east watches"):
        open_sources(db, settings_for(minstrel=folder), factories.utc())
    db.write(lambda c: status.leave(c, "w"))
    # It has moved: what is at its former place is another source.
    moved = {HAND: {"root": tmp_path / "new", "layout": "formulatrix"}}
    both = Settings.model_validate({"sources": moved | {"minstrel": {"root": folder, "layout": "formulatrix"}}})
    open_sources(db, both, factories.utc())
    assert names(db) == {HAND: 6, "minstrel": 0}


def test_another_host_with_the_same_path_takes_nothing_over(db: Database, db_url: str, folder: Path) -> None:
    west = Database(db_url, host="west")
    open_sources(west, settings_for(minstrel=folder), factories.utc())
    assert names(db) == {HAND: 6, "minstrel": 0}
    west.close()


def test_a_folder_in_or_around_a_recorded_one_is_refused(db: Database, folder: Path) -> None:
    """The first time; what stands so in a database already goes on, and the doctor tells of it."""
    for root, where in ((folder / "WellImages", "lies inside"), (folder.parent, "holds")):
        with pytest.raises(ConfigError, match=f"{where} {folder}.*'{HAND}'"):
            open_sources(db, settings_for(minstrel=root), factories.utc())
    assert names(db) == {HAND: 6}
    db.write(registration.register_source, "wide", str(folder.parent), "formulatrix", None, factories.utc())
    open_sources(db, settings_for(wide=folder.parent), factories.utc())
    assert recorded_twice(db, "wide", folder.parent) == [HAND]
    assert recorded_twice(db, HAND, folder) == []
    (told,) = findings(db, settings_for(wide=folder.parent), "wide: recorded twice")
    assert (told.verdict, f"marcod source merge {HAND} wide" in told.advice) == (Severity.ATTENTION, True)
    both = Settings.model_validate(
        {"sources": {"wide": {"root": folder.parent, "layout": "rigaku"}, HAND: {"root": folder, "layout": "rigaku"}}}
    )
    (told,) = places.apart(both)
    assert (told.verdict, f"of source '{HAND}' lies inside" in told.text) == (Severity.BROKEN, True)
    assert findings(db, both, "wide: recorded twice") == []


def findings(db: Database, settings: Settings, subject: str) -> list[HealthFinding]:
    """What the doctor says of something."""
    return [one for one in places.sources(db, settings, db.read(take_snapshot, db.now())) if one.subject == subject]


def test_configured_roots_lie_apart(tmp_path: Path) -> None:
    for name in ("share/a", "share/a b", "share2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "share/a")
    require_apart({"a": tmp_path / "share/a", "b": tmp_path / "share/a b", "c": tmp_path / "share2"})
    wide, narrow = tmp_path / "share", tmp_path / "share/a/deep/er"
    for roots, said in (
        ({"x": tmp_path / "share/a", "y": tmp_path / "link"}, "'x' and 'y' have one root"),
        (
            {"x": wide, "b": tmp_path / "share2", "y": narrow},
            f"{narrow} of source 'y' lies inside {wide} of source 'x'",
        ),
        ({"y": tmp_path / "link/deep", "x": wide}, "of source 'y' lies inside"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_apart(roots)


def test_a_sample_is_of_the_latest_and_the_first(db: Database, champion: Version) -> None:
    source_id = factories.register_source(db)
    files = factories.sightings(60)
    factories.record(db, source_id, files)
    found = db.read(lambda c: sources.sample(c, source_id, SAMPLE))
    assert len(found) == SAMPLE
    assert {file.path for file in found} >= {files[0].path, files[-1].path}
    times = {file.path: file.mtime_ns for file in found}
    db.write(lambda c: c.execute(sa.update(image).values(mtime_ns=-image.c.mtime_ns - 1)))
    assert {file.path: file.mtime_ns for file in db.read(lambda c: sources.sample(c, source_id, SAMPLE))} == times
