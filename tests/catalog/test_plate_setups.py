"""Each plate's own grid and reservoirs, told or inferred, and its images read again when they change."""

import json
from functools import partial
from threading import Thread
from typing import Any

import oracle
import pytest
import sqlalchemy as sa
from factories import CRYSTALS, claim, drain, finish, rows, utc
from waiting import wait_until

from marcod import layouts
from marcod.catalog import deliveries, plate_setups, registration, rereading
from marcod.catalog.deliveries import Sighting
from marcod.catalog.plate_setups import Lookup
from marcod.database.engine import Database
from marcod.database.schema import drop, image, job, plate
from marcod.domain import DropImage, Modality, PlateFormat, PlateSetup, WarningKind
from marcod.plates import metadata
from marcod.plates.metadata import MetadataError
from marcod.plates.metadata_csv import read
from marcod.store import locks, summaries
from marcod.store.queue import Failure
from marcod.store.versions import Version

MINSTREL = "CI022987/3/RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_01_01_{:02}_HF_99_030_001_RDI.jpg"


class Store:
    """A source of one layout whose paths are recorded as the watcher records them."""

    def __init__(self, db: Database, layout: str, **reading: Any) -> None:
        self.db = db
        text = json.dumps({"wells": 96, **reading})
        register = partial(registration.register_source, layout=layout, expected_drops=None, now=utc(), reading=text)
        self.id = db.write(lambda c: register(c, "imager", "/plates"))
        self.plates = Lookup(db, self.id)
        self.layout = layouts.make(layout, layouts.options_of(text, self.plates))

    def take(self, *paths: str) -> deliveries.Recorded:
        """Record what the layout reads, as long as the setups change."""
        self.plates.forget()
        for _ in range(5):
            seen = [Sighting(path, 1000, 5, image) for path in paths if (image := self.parse(path)) is not None]
            done = self.db.write(partial(rereading.record, plates=self.plates, sightings=seen, now=utc()))
            if done is not None:
                return done
            self.plates.forget()
        raise AssertionError("never recorded")

    def read(self, path: str) -> DropImage | None:
        """Read a path by the setups as they are now."""
        self.plates.forget()
        return self.parse(path)

    def parse(self, path: str) -> DropImage | None:
        found = self.layout.parse(path)
        return found if isinstance(found, DropImage) else None

    def tell(self, text: str, limit: int = 2) -> None:
        """Import a table of plates and read again what it changes, in small portions."""
        table = read(text.encode(), {}, "imager")
        self.db.write(lambda c: metadata.import_metadata(c, table.records, "ann", utc()))
        self.db.write_portions(partial(rereading.catch_up, now=utc(), limit=limit))

    def wells(self) -> dict[str, str]:
        """The wells of all images, by the number or the end of their path."""
        found = rows(self.db, sa.select(image.c.path, drop.c.well).join(drop, drop.c.id == image.c.drop_id))
        return {path.split("/")[4] if "wellNum" in path else path: well for path, well in found}

    def setup(self) -> PlateSetup:
        (row,) = rows(self.db, sa.select(plate))
        return plate_setups.setup_of(row)


def well(number: int, plate_id: int = 2001) -> str:
    return f"WellImages/1/plateID_{plate_id}/batchID_10/wellNum_{number}/profileID_1/d1_r7_ef.jpg"


def faults(db: Database) -> list[str]:
    """List all that is not as a plain recomputation has it, long after the last image."""
    db.write_portions(lambda c: metadata.catch_up(c, utc(days=2)))
    db.write_portions(lambda c: summaries.complete_quiet(c, utc(days=2), 60.0))
    return oracle.faults(db)


@pytest.fixture
def store(db: Database, champion: Version) -> Store:
    return Store(db, "formulatrix")


def test_a_table_before_the_first_image_decides_its_wells(store: Store) -> None:
    store.tell("plate,format\n2001,8x6x1\n2002,384x1\n")
    store.take(well(7), well(48), well(97, 2002))
    assert store.wells() == {"wellNum_7": "B01", "wellNum_48": "H06", "wellNum_97": "E01"}
    assert store.read(well(49)) is None
    assert rows(store.db, sa.select(image.c.warnings).distinct()) == [(None,)]


@pytest.mark.slow
def test_a_table_after_the_images_has_them_read_again_with_all_that_follows(store: Store, champion: Version) -> None:
    store.take(well(1), well(7), well(48))
    drain(store.db, champion, scores=lambda claimed: CRYSTALS)
    assert store.wells()["wellNum_7"] == "A07"
    store.tell("plate,format\n2001,8x6x1\n")
    assert store.wells() == {"wellNum_1": "A01", "wellNum_7": "B01", "wellNum_48": "H06"}
    seen = rows(store.db, sa.text("select well, hit from lims_drop_v1 order by well"))
    assert [name for name, is_hit in seen if is_hit] == ["A01", "B01", "H06"]
    assert rows(store.db, sa.text("select seen, scored, expected from lims_plate_summary_v1")) == [(3, 3, 48)]
    assert rows(store.db, sa.select(job)) == []
    assert rows(store.db, sa.select(plate.c.reread_after)) == [(None,)]
    assert faults(store.db) == []


@pytest.mark.slow
def test_a_number_beyond_the_grid_makes_the_plate_a_larger_one(store: Store, champion: Version) -> None:
    store.take(well(13), well(96))
    assert store.wells() == {"wellNum_13": "B01", "wellNum_96": "H12"}
    store.take(well(97), well(14))
    assert store.setup() == PlateSetup(PlateFormat(16, 24), inferred=True)
    store.db.write_portions(partial(rereading.catch_up, now=utc(), limit=1))
    assert store.wells() == {"wellNum_13": "A13", "wellNum_96": "D24", "wellNum_97": "E01", "wellNum_14": "A14"}
    warned = rows(store.db, sa.select(image.c.warnings).distinct())
    assert warned == [(WarningKind.FORMAT_INFERRED,)]
    store.take(well(1536))
    assert store.setup() == PlateSetup(PlateFormat(32, 48), inferred=True)
    # What is told wins over what was inferred, and takes the warning away.
    store.db.write_portions(partial(rereading.catch_up, now=utc()))
    store.tell("plate,format\n2001,32x48x1\n")
    assert rows(store.db, sa.select(image.c.warnings).distinct()) == [(None,)]
    assert store.read(well(1537)) is None
    drain(store.db, champion)
    assert faults(store.db) == []


def test_a_plate_that_begins_beyond_the_grid_is_made_with_its_own(store: Store) -> None:
    assert store.take(well(97), well(1)).new == 2
    assert store.wells() == {"wellNum_97": "E01", "wellNum_1": "A01"}
    assert store.setup() == PlateSetup(PlateFormat(16, 24), inferred=True)


def test_a_table_that_the_images_contradict_is_refused(store: Store) -> None:
    store.take(well(49))
    with pytest.raises(
        MetadataError, match=r"plate 2001 is said to be 8x6x1, but .*wellNum_49.* does not fit: well 49"
    ):
        store.tell("plate,format\n2001,8x6x1\n")
    assert store.setup() == PlateSetup()


def test_setups_that_changed_since_the_paths_were_read_are_seen(store: Store) -> None:
    seen = [Sighting(well(7), 1000, 5, found) for found in [store.read(well(7))] if found is not None]
    store.tell("plate,format\n2001,8x6x1\n")
    record = partial(rereading.record, plates=store.plates, sightings=seen, now=utc())
    assert store.db.write(record) is None
    assert rows(store.db, sa.select(image)) == []


def test_a_failed_and_a_gone_image_are_read_again_as_what_they_are(store: Store, champion: Version) -> None:
    store.take(well(7), well(8), well(9))
    lease = claim(store.db)
    assert lease is not None
    bad = [Failure(c, "damaged", retryable=False) for c in lease.claims if "wellNum_9" in c.path]
    finish(store.db, lease, champion, failures=bad)
    store.db.write(lambda c: c.execute(sa.update(image).where(image.c.path == well(8)).values(gone_at=utc())))
    before = rows(store.db, sa.select(image.c.path, image.c.gone_at, image.c.content_hash).order_by(image.c.id))
    store.tell("plate,format\n2001,8x6x1\n")
    assert store.wells() == {"wellNum_7": "B01", "wellNum_8": "B02", "wellNum_9": "B03"}
    after = rows(store.db, sa.select(image.c.path, image.c.gone_at, image.c.content_hash).order_by(image.c.id))
    assert after == before


@pytest.mark.slow
def test_reservoirs_belong_to_the_plate_and_stop_counting(db: Database, champion: Version) -> None:
    store = Store(db, "rigaku", reservoir_subwells=[2])
    store.take(*(MINSTREL.format(subwell) for subwell in (1, 2, 3)))
    assert len(store.wells()) == 2
    store.tell("plate,reservoir\nci022987,none\n")
    store.take(MINSTREL.format(2))
    assert store.setup().reservoirs == frozenset()
    drain(db, champion)
    shown = "select drop_number from lims_drop_v1 order by drop_number"
    assert rows(db, sa.text(shown)) == [(1,), (2,), (3,)]
    store.tell("plate,reservoir\nCI022987,3\n")
    assert store.read(MINSTREL.format(3)) is None
    assert rows(db, sa.text("select seen, scored from lims_plate_summary_v1")) == [(2, 2)]
    assert faults(db) == []
    store.tell("plate,reservoir\nCI022987,none\n")
    assert rows(db, sa.text("select seen, scored from lims_plate_summary_v1")) == [(3, 3)]
    assert faults(db) == []


def test_a_reservoir_of_the_source_that_is_configured_later_stops_counting(db: Database, champion: Version) -> None:
    store = Store(db, "rigaku")
    store.take(*(MINSTREL.format(subwell) for subwell in (1, 2)))
    drain(db, champion)
    Store(db, "rigaku", reservoir_subwells=[2])
    assert db.write_portions(partial(rereading.catch_up, now=utc())) == 2
    assert rows(db, sa.text("select seen, scored from lims_plate_summary_v1")) == [(1, 1)]
    assert faults(db) == []


def test_an_image_that_needs_a_report_is_left_to_the_next_walk(db: Database, champion: Version) -> None:
    store = Store(db, "rockmaker-export")
    seen = DropImage("rockmaker-export", "P", "1", 9, 13, 1, Modality.VISIBLE)
    db.write(lambda c: deliveries.record(c, store.id, [Sighting("P/odd/I13_1.jpg", 10, 5, seen)], utc()))
    store.tell("plate,format\nP,384x1\n")
    assert rows(db, sa.select(image.c.mtime_ns)) == [(-6,)]


@pytest.mark.parametrize("text", ["plate,reservoir\nP,x\n", "plate,reservoir\nP,1.5\n", "plate,reservoir\nP,100\n"])
def test_a_reservoir_that_is_not_a_subwell_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match=r"line 2: reservoir .* is no subwell; write its number"):
        read(text.encode(), {}, "imager")


def test_reservoirs_are_read_as_people_write_them() -> None:
    table = read(b"plate;reservoir\nP1;2\nP2;2, 4\nP3;none\nP4;\n", {}, "imager")
    assert [record.reservoirs for record in table.records] == [{2}, {2, 4}, set(), None]


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_a_table_waits_for_images_that_are_being_recorded_and_has_them_read_again(store: Store) -> None:
    store.take(well(1))
    (seen,) = [Sighting(well(7), 1000, 5, found) for found in [store.parse(well(7))] if found is not None]
    told = Thread(target=lambda: store.tell("plate,format\n2001,8x6x1\n"))

    def record(connection: sa.Connection) -> deliveries.Recorded | None:
        done = rereading.record(connection, store.plates, [seen], utc())
        told.start()
        waiting = sa.text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        wait_until(lambda: store.db.read(lambda c: c.execute(waiting).scalar_one()), "the table to wait")
        return done

    recorded = store.db.write(record)
    told.join(30)
    assert recorded is not None
    assert recorded.new == 1
    assert store.wells() == {"wellNum_1": "A01", "wellNum_7": "B01"}


def waits_in_a_ring(db: Database, other: Thread, first: dict[str, list[int]], then: dict[str, list[int]]) -> list[Any]:
    """Hold the first rows, let another wait for them, hold more. Returns the errors of the database."""
    errors: list[Any] = []
    sa.event.listen(db.engine, "handle_error", lambda context: errors.append(context.original_exception))
    waiting = sa.text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )

    def hold(connection: sa.Connection) -> None:
        locks.hold(connection, **first)
        other.start()
        wait_until(lambda: db.read(lambda c: c.execute(waiting).scalar_one()), "the other to wait")
        locks.hold(connection, **then)

    db.write(hold)
    other.join(30)
    return errors


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_other_reservoirs_hold_plates_before_images(db: Database, champion: Version) -> None:
    Store(db, "rigaku").take(MINSTREL.format(1), MINSTREL.format(2))
    images, plates = ([row.id for row in rows(db, sa.select(table.c.id))] for table in (image, plate))
    other = Thread(target=lambda: Store(db, "rigaku", reservoir_subwells=[2]))
    assert waits_in_a_ring(db, other, {"plates": plates}, {"images": images}) == []
    assert {row.mtime_ns for row in rows(db, sa.select(image.c.mtime_ns))} == {-6}


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_images_that_are_read_again_are_held_by_id(db: Database, champion: Version) -> None:
    store = Store(db, "formulatrix")
    store.take(well(1))
    unread = DropImage("formulatrix", "2001", "1", 1, 2, 1, Modality.VISIBLE)
    db.write(lambda c: deliveries.record(c, store.id, [Sighting("2001/odd.jpg", 10, 5, unread)], utc()))
    db.write(lambda c: c.execute(sa.update(plate).values(reread_after=0)))
    first, second = sorted(row.id for row in rows(db, sa.select(image.c.id)))
    other = Thread(target=lambda: db.write_portions(partial(rereading.catch_up, now=utc())))
    assert waits_in_a_ring(db, other, {"images": [first]}, {"images": [second]}) == []
    assert {row.mtime_ns for row in rows(db, sa.select(image.c.mtime_ns))} == {5, -6}
