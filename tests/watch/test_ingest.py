"""Opening sources, and turning paths into rows or into counted reasons."""

from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from watched_site import put, set_time, settings_for, well_image

from marcod.database.engine import Database
from marcod.database.schema import image, source
from marcod.domain import IgnoreReason, text_path
from marcod.errors import ConfigError, LayoutError
from marcod.settings import Settings
from marcod.store import sources
from marcod.store.versions import Version
from marcod.watch.ingest import Ingest, open_sources, require_roots
from marcod.watch.settle import SettleTracker
from marcod.watch.tree import Walk


class Bench:
    """An ingest with its tracker, without loop and observer."""

    def __init__(self, db: Database, root: Path, settle_s: float = 10.0, **more: object) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.source = open_sources(db, settings_for(root, **more), factories.utc())[0]
        self.tracker = SettleTracker(settle_s, self.source.root.stat)
        self.ingest = Ingest(db, self.source, self.tracker)

    def walk(self, now: float) -> None:
        begun = Walk(self.source.root)
        while not begun.done:
            self.ingest.nominate(begun.more(now, 100), now)


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def bench(db: Database, champion: Version, tmp_path: Path) -> Bench:
    return Bench(db, tmp_path / "plates")


def test_sources_are_registered_once(db: Database, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, wells=384, expected_drops=288)
    first, again = (open_sources(db, settings, factories.utc())[0] for _ in range(2))
    assert first.id == again.id
    assert (first.name, first.observer, first.layout.name) == ("imager", "inotify", "formulatrix")
    (row,) = factories.rows(db, sa.select(source))
    assert (row.layout, row.expected_drops) == ("formulatrix", 288)
    assert db.read(sources.roots) == {"imager": str(tmp_path)}


def test_options_of_the_settings_reach_the_layout(db: Database, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, wells=24, profiles={1: "uv"})
    (opened,) = open_sources(db, settings, factories.utc())
    assert opened.layout.parse(well_image(24)).well == "D06"  # type: ignore[union-attr]
    assert opened.layout.parse(well_image(24)).modality == "uv"  # type: ignore[union-attr]


def test_a_source_that_cannot_be_used_registers_none(db: Database, tmp_path: Path) -> None:
    good = {"root": tmp_path, "layout": "formulatrix"}
    settings = Settings.model_validate({"sources": {"good": good, "bad": {"root": tmp_path, "layout": "formulatix"}}})
    with pytest.raises(
        LayoutError, match=r"source 'bad': There is no layout 'formulatix'; the layouts are formulatrix, "
    ):
        open_sources(db, settings, factories.utc())
    assert factories.rows(db, sa.select(source)) == []


@pytest.mark.parametrize(
    ("name", "what"), [("gone", "does not exist"), ("file", "is not a folder"), ("file/below", "does not exist")]
)
def test_missing_roots_are_named_in_one_sentence(tmp_path: Path, name: str, what: str) -> None:
    put(tmp_path, "file")
    require_roots(settings_for(tmp_path))
    with pytest.raises(ConfigError) as caught:
        require_roots(settings_for(tmp_path / name))
    expected = f"the root {tmp_path / name} of source 'imager' {what}; mount it or correct sources.imager.root"
    assert str(caught.value) == expected
    require_roots(settings_for(tmp_path / name), names=[])


def test_what_is_not_a_drop_is_counted_by_reason_and_not_offered(bench: Bench) -> None:
    for path in (well_image(1), well_image(1, kind="th"), well_image(2, kind="th"), well_image(1, kind="dl")):
        put(bench.root, path)
    put(bench.root, "WellImages/70/plateID_1070/batchID_5/wellNum_3/profileID_1/drop.jpg")
    put(bench.root, "WellImages/70/plateID_1070/batchID_5/wellNum_1537/profileID_1/d1_r1_ef.jpg")
    put(bench.root, "notes.txt")
    bench.walk(0.0)
    assert bench.ingest.tally.ignored == {
        IgnoreReason.THUMBNAIL: 2,
        IgnoreReason.DROP_LOCATION: 1,
        IgnoreReason.UNREADABLE_NAME: 1,
        IgnoreReason.OUT_OF_RANGE: 1,
        IgnoreReason.SIDECAR: 1,
    }
    assert bench.ingest.tally.unreadable == ["WellImages/70/plateID_1070/batchID_5/wellNum_3/profileID_1/drop.jpg"]
    assert [file.path for file in bench.tracker.due(10.0)] == [well_image(1)]


def test_several_events_of_one_ignored_file_count_once(bench: Bench) -> None:
    for _ in range(3):
        bench.ingest.notice([well_image(1, kind="th")], 0.0)
        bench.walk(0.0)
    assert bench.ingest.take_tally().ignored == {IgnoreReason.THUMBNAIL: 1}
    assert bench.ingest.take_tally().ignored == {}


def test_recorded_files_are_offered_again_only_when_they_changed(bench: Bench) -> None:
    for well in range(1, 4):
        put(bench.root, well_image(well))
    bench.walk(0.0)
    recorded = bench.ingest.admit(bench.tracker.due(10.0), factories.utc())
    assert (recorded.new, recorded.queued) == (3, 3)
    set_time(bench.root / well_image(2), 10**18)
    bench.walk(20.0)
    assert bench.ingest.tally.unchanged == 2
    recorded = bench.ingest.admit(bench.tracker.due(30.0), factories.utc())
    assert (recorded.new, recorded.changed, recorded.unchanged) == (0, 1, 0)


def test_names_that_are_no_text_are_recorded(bench: Bench, db: Database) -> None:
    odd = "caf\udce9/" + well_image(1)
    put(bench.root, odd)
    bench.walk(0.0)
    assert bench.ingest.admit(bench.tracker.due(10.0), factories.utc()).new == 1
    (row,) = factories.rows(db, sa.select(image.c.path))
    assert text_path(row.path) == odd
    bench.walk(20.0)
    assert (bench.ingest.tally.unchanged, len(bench.tracker)) == (1, 0)


IMAGE = "90j8/Crystals/90j8_D12_ImagerDefaults_9.jpg"
REPORT = b'"D:\\90j8\\Crystals\\90j8_D12_ImagerDefaults_9.jpg","Crystals",2,03/17/10 09:00:00\r\n'


def test_an_image_without_a_batch_waits_for_its_report(db: Database, champion: Version, tmp_path: Path) -> None:
    bench = Bench(db, tmp_path / "plates", layout="rockmaker-export")
    put(bench.root, IMAGE)
    bench.walk(0.0)
    assert bench.ingest.waiting == [IMAGE]
    assert bench.ingest.tally.ignored == {IgnoreReason.NO_REPORT: 1}
    assert len(bench.tracker) == 0
    put(bench.root, "90j8/report.csv", REPORT)
    bench.walk(1.0)
    assert bench.ingest.waiting == []
    assert bench.ingest.admit(bench.tracker.due(11.0), factories.utc()).new == 1
    # Recorded as it stands, it needs no report any more.
    (bench.root / "90j8/report.csv").unlink()
    bench.walk(20.0)
    assert (bench.ingest.tally.unchanged, bench.ingest.waiting, len(bench.tracker)) == (1, [], 0)


def test_a_waiting_image_that_vanishes_is_forgotten(db: Database, champion: Version, tmp_path: Path) -> None:
    bench = Bench(db, tmp_path / "plates", layout="rockmaker-export")
    file = put(bench.root, IMAGE)
    bench.walk(0.0)
    begun = Walk(bench.source.root)
    found = begun.more(1.0, 100)
    file.unlink()
    bench.ingest.nominate(found, 1.0)
    assert bench.ingest.waiting == []
