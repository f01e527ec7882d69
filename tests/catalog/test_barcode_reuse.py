"""A barcode that is used again years later is noticed, in whatever order the images arrive."""

from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
import sqlalchemy as sa
from factories import CLEAR, MAX_ATTEMPTS, RETRY_S, claimed, record, register_source, rewritten, rows, sightings, utc

from marcod.catalog import barcode_reuse, registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.database.schema import image, inspection
from marcod.domain import WarningKind
from marcod.store import results
from marcod.store.versions import Version

FIRST = utc()
YEARS = timedelta(days=900)


def taken(inspection_key: str, after: timedelta, wells: int = 2, **more: object) -> list[Sighting]:
    values = {"barcode": "B1", "captured_at": FIRST + after} | more
    return sightings(wells, inspection=inspection_key, **values)  # type: ignore[arg-type]


def warned(db: Database) -> dict[str, set[str | None]]:
    """The warnings of the images of each inspection."""
    found: dict[str, set[str | None]] = {}
    for key, warning in rows(
        db, sa.select(inspection.c.key, image.c.warnings).join(image, image.c.inspection_id == inspection.c.id)
    ):
        found.setdefault(key, set()).add(warning)
    return found


@pytest.mark.slow
def test_an_inspection_years_later_is_warned_of(db: Database, source_id: int, champion: Version) -> None:
    assert record(db, source_id, taken("1", timedelta())).reused == 0
    assert record(db, source_id, taken("2", timedelta(days=90))).reused == 0
    done = record(db, source_id, taken("3", YEARS)[:1])
    assert (done.reused, done.reused_example) == (1, taken("3", YEARS)[0].path)
    # Its further images, and what is read again of it, keep the warning; so does one that is unchanged.
    assert record(db, source_id, taken("3", YEARS)).reused == 1
    assert record(db, source_id, taken("3", YEARS)).unchanged == 2
    assert record(db, source_id, [rewritten(taken("3", YEARS)[0])]).changed == 1
    kind = WarningKind.BARCODE_REUSED
    assert warned(db) == {"1": {None}, "2": {None}, "3": {kind}}
    assert record(db, source_id, taken("4", YEARS + timedelta(days=7))).reused == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
def test_the_order_of_arrival_does_not_matter(
    db: Database, source_id: int, champion: Version, order: tuple[int, ...]
) -> None:
    deliveries = [taken("1", timedelta()), taken("2", YEARS), taken("3", YEARS + timedelta(days=30))]
    for number in order:
        record(db, source_id, deliveries[number])
    assert warned(db) == {"1": {None}, "2": {WarningKind.BARCODE_REUSED}, "3": {None}}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_an_inspection_between_the_two_takes_the_warning_back(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, taken("1", timedelta()))
    record(db, source_id, taken("3", barcode_reuse.PAUSE + timedelta(days=1)))
    record(db, source_id, taken("2", timedelta(days=300)))
    assert warned(db) == {"1": {None}, "2": {None}, "3": {None}}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_without_dates_or_a_barcode_nothing_is_said(db: Database, champion: Version) -> None:
    undated = register_source(db, "undated")
    for key, after in (("1", timedelta()), ("2", YEARS)):
        assert record(db, undated, taken(key, after, captured_at=None)).reused == 0
    unnamed = register_source(db, "unnamed")
    for key, after in (("1", timedelta()), ("2", YEARS)):
        assert record(db, unnamed, taken(key, after, barcode=None)).reused == 0


def undated(file: Sighting) -> Sighting:
    return replace(file, image=replace(file.image, captured_at=None))


def test_dates_that_are_known_later_count(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, taken("1", timedelta()))
    first, second = taken("2", YEARS)
    record(db, source_id, [undated(first)])
    assert record(db, source_id, [second]).reused == 1
    third = taken("3", 2 * YEARS, wells=1)[0]
    record(db, source_id, [undated(third)])
    db.write(lambda c: registration.read_again(c, source_id))
    record(db, source_id, [third])
    kind = WarningKind.BARCODE_REUSED
    assert warned(db) == {"1": {None}, "2": {kind}, "3": {kind}}
    db.write(lambda c: registration.read_again(c, source_id))
    record(db, source_id, [replace(third, image=taken("2", YEARS + timedelta(days=1))[0].image)])
    assert warned(db) == {"1": {None}, "2": {kind}}


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_what_a_worker_notes_of_an_image_meanwhile_stays(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, taken("2", YEARS))
    lease = claimed(db)
    blank = [results.Scored(c, f"hash of {c.path}", CLEAR, warnings=(WarningKind.BLANK,)) for c in lease.claims]
    options = {"now": utc(), "retry_s": RETRY_S, "max_attempts": MAX_ATTEMPTS}
    waits = True

    def finish_before_the_images_are_held(*call: object) -> None:
        nonlocal waits
        if waits and "NOWAIT" in str(call[2]):
            waits = False
            db.write(lambda c: results.finish(c, lease.token, champion, blank, [], **options))  # type: ignore[arg-type]

    sa.event.listen(db.engine, "before_cursor_execute", finish_before_the_images_are_held)
    record(db, source_id, taken("1", timedelta()))
    assert not waits
    assert warned(db) == {"1": {None}, "2": {f"{WarningKind.BLANK},{WarningKind.BARCODE_REUSED}"}}
