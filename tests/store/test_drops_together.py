"""Two scorers at one drop: whoever comes second sees what the first saw."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from factories import CLEAR, CRYSTALS, LEASE_S, claimed, record, sightings, utc

from marcod.database.engine import Database
from marcod.store import results
from marcod.store.versions import Version


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_two_inspections_of_a_drop_scored_at_once(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1, inspection="1") + sightings(1, inspection="2"))
    leases = [claimed(db, utc(1), limit=1) for _ in range(2)]

    def finish(connection: sa.Connection, number: int) -> None:
        lease = leases[number]
        scored = [results.Scored(c, f"h{number}", CLEAR if number else CRYSTALS) for c in lease.claims]
        results.finish(connection, lease.token, champion, scored, [], now=utc(2), retry_s=1.0, max_attempts=2)

    with ThreadPoolExecutor(1) as pool:
        with db.engine.begin() as connection:
            finish(connection, 0)
            other = pool.submit(db.write, lambda c: finish(c, 1))
            _wait_until_somebody_waits(db)
        other.result(LEASE_S)
    statement = "select inspections, inspection_key, trend, first_hit_inspection_key from lims_drop_v1"
    assert db.read(lambda c: tuple(c.exec_driver_sql(statement).one())) == (2, "2", "dissolving", "1")


def _wait_until_somebody_waits(db: Database) -> None:
    statement = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    for _ in range(100_000):
        if db.read(lambda c: c.exec_driver_sql(statement).scalar_one()):
            return
    pytest.fail("nobody waited")
