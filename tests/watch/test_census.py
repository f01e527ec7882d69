"""Counts of what a layout does not read: right after every walk, however often a file is seen. Synthetic files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from watched_site import SETTLE_S, Site, put, settings_for, well_image

from marcod.catalog import findings
from marcod.database.engine import Database
from marcod.database.schema import drop, image
from marcod.domain import IgnoreReason, WarningKind
from marcod.layouts import make
from marcod.layouts.findings import SourceFinding
from marcod.store.versions import Version
from marcod.watch.census import CONFIRMED, Census
from marcod.watch.ingest import open_sources
from marcod.watch.scan import scan_once
from marcod.watch.tree import Folder, Found

MINSTREL = "CI022987/{}/RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_00{}_121121_{:02d}_03_03_HF_99_030_001_RDI.jpg"
DROPS = "WellImages/70/plateID_1070/batchID_5/wellNum_{}/profileID_1/"
UNMAPPED = "WellImages/70/plateID_1070/batchID_5/wellNum_{}/profileID_7/d1_r1_ef.png"
EXPORTED = "90j8/Crystals/90j8_{}_Visible_9_3552.jpg"
OLDER = "90j8/Crystals/90j8_{}_ImagerDefaults_9.jpg"


def found(db: Database) -> dict[str, SourceFinding]:
    return {one.reason: one for one in db.read(findings.read)}


def counted(db: Database) -> dict[str, int]:
    return {reason: one.files for reason, one in found(db).items()}


def placed(db: Database) -> list[dict[str, object]]:
    """Path and drop number of every image."""
    joined = sa.select(image.c.path, drop.c.drop_number).join(drop, drop.c.id == image.c.drop_id)
    return [dict(row._mapping) for row in factories.rows(db, joined)]


@pytest.fixture
def quiet(make_site: Callable[..., Site]) -> Site:
    """A site whose new files are found by walks alone."""
    return make_site(observer="polling", poll_s=3600.0)


def minstrel(site: Site, inspection: int, files: int) -> None:
    for column in range(1, files + 1):
        site.put(MINSTREL.format(inspection, inspection, column))


def test_a_wrong_layout_is_counted_and_the_right_one_named(quiet: Site) -> None:
    minstrel(quiet, 3, 12)
    minstrel(quiet, 4, 12)
    quiet.put("CI022987/notes.txt")
    quiet.step()
    (one,) = quiet.db.read(findings.read)
    assert (one.source, one.layout, one.kind, one.reason) == ("imager", "formulatrix", "ignored", "not_this_layout")
    assert (one.files, one.of_files, one.hint, one.hint_files, one.asked) == (24, 24, "rigaku", 24, 24)
    assert one.example.startswith("CI022987/")
    assert one.attention


def test_walks_over_changed_folders_add_and_subtract(quiet: Site) -> None:
    odd = [quiet.put(DROPS.format(1) + f"drop{number}.jpg") for number in range(3)]
    quiet.put(well_image(2))
    quiet.step()
    (before,) = quiet.db.read(findings.read)
    assert (before.reason, before.files, before.of_files) == ("unreadable_name", 3, 4)
    # Walks over folders that did not change, and one over one that did, count nothing twice.
    for _ in range(4):
        quiet.put(well_image(3), b"again")
        quiet.step(61.0)
    assert counted(quiet.db) == {"unreadable_name": 3}
    more = quiet.put(DROPS.format(4) + "drop.jpg")
    quiet.put(UNMAPPED.format(5))
    quiet.step(61.0)
    assert counted(quiet.db) == {"unreadable_name": 4, "unmapped_profile": 1}
    assert found(quiet.db)["unreadable_name"].example == before.example
    # Renamed as the imager should have, removed, and gone with its folder.
    odd[0].rename(odd[0].with_name("d1_r1_ef.jpg"))
    odd[1].unlink()
    more.unlink()
    more.parent.rmdir()
    quiet.step(61.0)
    assert counted(quiet.db) == {"unreadable_name": 1, "unmapped_profile": 1}
    assert found(quiet.db)["unmapped_profile"].of_files == 5
    odd[2].unlink()
    quiet.step(61.0)
    assert counted(quiet.db) == {"unmapped_profile": 1}


def test_events_of_one_file_count_once(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.observe()
    file = site.put(DROPS.format(1) + "drop.jpg")
    site.put(well_image(2))
    site.recorded_by_events(well_image(2))
    for number in range(3):
        file.write_bytes(b"again" * number)
        site.step(SETTLE_S)
    site.step(61.0)
    site.step(61.0)
    assert counted(site.db) == {"unreadable_name": 1}


def test_a_new_watcher_counts_the_same(quiet: Site) -> None:
    for well in range(1, 4):
        quiet.put(UNMAPPED.format(well))
    quiet.settle()
    assert counted(quiet.db) == {"unmapped_profile": 3}
    # A restart walks over everything, which is recorded and unchanged now.
    quiet.watcher.close()
    quiet.watcher = quiet.new_watcher()
    quiet.settle()
    assert counted(quiet.db) == {"unmapped_profile": 3}
    assert len(quiet.images()) == 3


def test_a_share_that_lists_empty_mends_nothing(quiet: Site, tmp_path: Path) -> None:
    minstrel(quiet, 3, 2)
    quiet.step()
    folder = quiet.root / "CI022987"
    folder.rename(tmp_path / "elsewhere")
    quiet.watcher.close()
    quiet.watcher = quiet.new_watcher()
    quiet.step()
    assert counted(quiet.db) == {"not_this_layout": 2}


def test_what_does_not_change_is_confirmed_now_and_then(quiet: Site) -> None:
    minstrel(quiet, 3, 2)
    quiet.step()
    first = quiet.db.read(findings.read)[0].updated_at
    quiet.step(61.0)
    assert quiet.db.read(findings.read)[0].updated_at == first
    quiet.step(CONFIRMED.total_seconds())
    assert quiet.db.read(findings.read)[0].updated_at == factories.utc(quiet.now)


def test_images_that_wait_for_a_report_are_counted_by_whole_walks(make_site: Callable[..., Site]) -> None:
    site = make_site(observer="polling", poll_s=3600.0, layout="rockmaker-export", watch={"full_rescan_s": 1000.0})
    site.put(OLDER.format("A1"))
    site.step()
    assert counted(site.db) == {"no_report": 1}
    assert found(site.db)["no_report"].hint is None
    # A delivery half way: its images come before their report.
    site.put(OLDER.format("A2"))
    site.step(61.0)
    assert counted(site.db) == {"no_report": 1}
    site.step(1000.0)
    assert counted(site.db) == {"no_report": 2}
    lines = "".join(
        f'"D:\\90j8\\Crystals\\90j8_{well}_ImagerDefaults_9.jpg","Crystals",Drop,03/17/10 09:00:00\r\n'
        for well in ("A1", "A2")
    )
    site.put("90j8/report.csv", lines.encode())
    site.put(OLDER.format("A3"))
    site.step(61.0)
    site.step(SETTLE_S)
    site.step(1000.0)
    assert counted(site.db) == {"no_report": 1, "drop_number_lost": 2}
    assert len(site.images()) == 2
    # Recorded as they stand, the report is not read again; what it could not tell is known all the same.
    (site.root / "90j8/report.csv").unlink()
    site.step(1000.0)
    assert counted(site.db) == {"no_report": 1, "drop_number_lost": 2}


def test_images_that_miss_a_report_are_counted_by_whole_walks_until_it_comes(make_site: Callable[..., Site]) -> None:
    site = make_site(observer="polling", poll_s=3600.0, layout="rockmaker-export", watch={"full_rescan_s": 1000.0})
    site.put(EXPORTED.format("A1"))
    site.settle()
    assert counted(site.db) == {"report_missing": 1}
    site.put(EXPORTED.format("A2"))
    site.step(61.0)
    site.step(SETTLE_S)
    # A delivery half way: the new image was taken, and its report may be on its way.
    assert (counted(site.db), len(site.images())) == ({"report_missing": 1}, 2)
    site.put("90j8/report.csv", f'"D:\\{EXPORTED.format("A2")}","Crystals",2,03/17/10 09:00:00\r\n'.encode())
    site.step(61.0)
    site.step(SETTLE_S)
    site.step(1000.0)
    assert counted(site.db) == {"report_missing": 1}
    assert {row["path"]: row["drop_number"] for row in placed(site.db)} == {
        EXPORTED.format("A1"): 1,
        EXPORTED.format("A2"): 2,
    }


def test_nothing_is_counted_twice_while_the_database_is_offline(quiet: Site) -> None:
    minstrel(quiet, 3, 2)
    quiet.put(well_image(1))
    quiet.db.close()
    file = Path(quiet.db.url.database or "")
    file.rename(file.with_suffix(".away"))
    quiet.step()
    file.with_suffix(".away").rename(file)
    quiet.step_until(lambda: counted(quiet.db), each_s=1.0)
    assert counted(quiet.db) == {"not_this_layout": 2}


def test_a_long_first_walk_tells_what_it_has_so_far(db: Database, champion: Version, tmp_path: Path) -> None:
    source = open_sources(db, settings_for(tmp_path), factories.utc())[0]
    census = source.census(db)
    census.begin(whole=True)
    odd = source.layout.parse("odd.jpg")
    for number in range(3):
        census.see(Found(f"{number}/odd.jpg", None, Folder()), odd)
    census.write_along(factories.utc(1))
    assert counted(db) == {"not_this_layout": 2}
    for number in range(3, 9):
        census.see(Found(f"{number}/odd.jpg", None, Folder()), odd)
    census.write_along(factories.utc(2))
    assert counted(db) == {"not_this_layout": 2}
    census.write_along(factories.utc(12))
    assert counted(db) == {"not_this_layout": 8}
    assert [one.files for one in census.end(None, factories.utc(13))] == [9]
    assert counted(db) == {"not_this_layout": 9}


def test_the_sample_is_bounded(db: Database, champion: Version) -> None:
    source_id = factories.register_source(db)
    census = Census(db, source_id, "imager", "formulatrix", ["not_this_layout"])
    folder = Folder()
    path = MINSTREL.format(3, 3, 1)
    verdict = make("formulatrix").parse(path)
    for _ in range(1500):
        census.see(Found(path, None, folder), verdict)
    (one,) = census.end(None, factories.utc())
    assert (one.files, one.asked, one.hint_files) == (1500, 1000, 1000)
    assert one.accepted
    assert not one.attention
    assert folder.counts == ((IgnoreReason.NOT_THIS_LAYOUT, 1500),)


def test_scans_by_hand_count_again(db: Database, champion: Version, tmp_path: Path) -> None:
    source = open_sources(db, settings_for(tmp_path, accept=["unmapped_profile"]), factories.utc())[0]
    for well in range(1, 4):
        put(tmp_path, UNMAPPED.format(well))
        put(tmp_path, DROPS.format(well) + "drop.jpg")
    for _ in range(2):
        report = scan_once(db, source, 0.0)
        assert [(one.reason, one.files, one.attention) for one in report.findings] == [
            ("unreadable_name", 3, True),
            ("unmapped_profile", 3, False),
        ]
        assert tuple(replace(one, updated_at=None) for one in db.read(findings.read)) == report.findings
    for file in tmp_path.glob("**/drop.jpg"):
        file.unlink()
    assert [one.reason for one in scan_once(db, source, 0.0).findings] == [WarningKind.UNMAPPED_PROFILE]
    assert counted(db) == {"unmapped_profile": 3}
