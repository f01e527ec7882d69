"""Upgrades next to running workers: a step that only adds lets them work on, any other waits for them.

The later steps are of `later_steps`. The worker of today is this code, which knows none of them.
"""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from factories import CRYSTALS, drain, promote, record, register, register_source, rows, sightings, utc
from later_steps import ADDING, BREAKING, LAST, NEWEST

from marcod.cli import cli
from marcod.database import migrate, revisions, workers
from marcod.database.engine import Database
from marcod.database.revisions import SchemaState
from marcod.database.schema import (
    audit,
    campaign,
    drop_summary,
    hit,
    image,
    inspection_summary,
    job,
    schema_mark,
    score,
)
from marcod.domain import DropClass
from marcod.errors import SchemaError
from marcod.store import derived, serving, versions, votes
from marcod.store.votes import NewLabel


def mark(db: Database) -> str:
    return str(rows(db, sa.select(schema_mark.c.oldest_revision))[0][0])


def test_steps_know_their_order_and_which_only_add(to_come: Path) -> None:
    known = revisions.known(to_come)
    assert known.newest == LAST
    assert known.between(NEWEST, "head") == (ADDING, BREAKING, LAST)
    assert known.between(None, NEWEST) == revisions.known().revisions
    assert known.between(ADDING, NEWEST) == ()
    assert (known.place(None), known.place("1234"), known.place("0010")) == (0, 0, 1)
    at = {step: known.oldest_usable(step) for step in ("0010", ADDING, BREAKING, LAST)}
    assert at["0010"] == "0010"
    assert at[ADDING] == known.oldest_usable(NEWEST)
    assert (at[BREAKING], at[LAST]) == (BREAKING, BREAKING)


@pytest.mark.slow
def test_the_mark_follows_every_way_up_and_down(empty_db: Database, to_come: Path) -> None:
    first = revisions.known().oldest_usable(NEWEST)
    migrate.upgrade(empty_db, now=utc())
    assert mark(empty_db) == first
    for revision, marked in ((ADDING, first), (BREAKING, BREAKING), (LAST, BREAKING)):
        migrate.upgrade(empty_db, revision, now=utc(), scripts=to_come)
        assert mark(empty_db) == marked
    migrate.downgrade(empty_db, ADDING, to_come)
    assert mark(empty_db) == first
    migrate.upgrade(empty_db, now=utc(), scripts=to_come)
    assert mark(empty_db) == BREAKING


def work(db: Database, now_h: float) -> None:
    """All that a worker does, and a person through it, on a plate of its own."""
    now, name = utc(hours=now_h), f"P{now_h}"
    version = db.read(versions.champion)
    db.write(lambda c: workers.beat(c, "old", "host", 1, "watch,score", now))
    source_id = db.read(lambda c: c.execute(sa.text("select min(id) from source")).scalar_one())
    files = sightings(3, name, "1")
    assert record(db, source_id, files, now).new == 3
    assert drain(db, version, now, scores=lambda c: CRYSTALS) == 3
    last = rows(db, sa.select(image.c.drop_id, image.c.inspection_id).order_by(image.c.id.desc()).limit(1))[0]

    def say(connection: sa.Connection) -> None:
        votes.add(connection, [NewLabel(last[0], last[1], DropClass.CLEAR, "ann", now, "test")], now)
        derived.refresh(connection, [last[0]], [last[1]], now)

    db.write(say)
    seen = sa.select(inspection_summary.c.n_crystals, inspection_summary.c.labelled, inspection_summary.c.complete)
    assert rows(db, seen.where(inspection_summary.c.inspection_id == last[1])) == [(2, 1, True)]


@pytest.mark.slow
def test_the_marcod_of_today_works_on_a_schema_to_which_something_was_added(
    empty_db: Database, empty_db_url: str, to_come: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = empty_db
    migrate.require_current(db)
    promote(db, register(db))
    register_source(db, expected_drops=3)
    work(db, 1)
    assert migrate.upgrade(db, ADDING, now=utc(hours=1), scripts=to_come) is SchemaState.OLDER
    assert revisions.state(db) is SchemaState.COMPATIBLE
    migrate.require_current(db)
    work(db, 2)
    counts = [rows(db, sa.select(sa.func.count()).select_from(t))[0][0] for t in (score, drop_summary, hit)]
    assert counts == [6, 6, 6]
    assert len(rows(db, sa.text("select * from lims_hit_v2"))) == 6
    monkeypatch.setenv("MARCOD_STORE__URL", empty_db_url)
    for command in ("check", "upgrade"):
        done = CliRunner().invoke(cli, ["db", command])
        assert (done.exit_code, "newer than this marcod, which can work on it" in done.stdout) == (0, True), done.output
    assert revisions.state(db) is SchemaState.COMPATIBLE

    # What takes something away waits for the worker; a minute after its last sign of life it is gone.
    with pytest.raises(SchemaError, match=rf"step {BREAKING} .* these running workers use: old on host\. Stop them"):
        migrate.upgrade(db, now=utc(hours=2), scripts=to_come)
    assert revisions.state(db) is SchemaState.COMPATIBLE
    migrate.upgrade(db, now=utc(1, hours=2, minutes=1), scripts=to_come)
    assert revisions.state(db, to_come) is SchemaState.CURRENT
    assert revisions.state(db) is SchemaState.UNKNOWN
    with pytest.raises(SchemaError, match="is newer than this marcod"):
        migrate.require_current(db)


def beat_as(db: Database, revision: str | None) -> None:
    db.write(lambda c: workers.beat(c, "w", "host", 1, "score", utc()))
    db.write(lambda c: c.execute(sa.text("update worker set revision = :r"), {"r": revision}))


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_only_who_does_not_know_the_step_is_waited_for(db: Database, to_come: Path) -> None:
    for revision in (None, "what nobody knows", NEWEST, ADDING):
        beat_as(db, revision)
        with pytest.raises(SchemaError, match="w on host"):
            migrate.upgrade(db, now=utc(), scripts=to_come)
    beat_as(db, BREAKING)
    assert migrate.upgrade(db, now=utc(), scripts=to_come) is SchemaState.CURRENT


def years_ahead(db: Database) -> None:
    """Set the server's clock, as new connections are told it, ten years ahead."""
    later = "create function public.clock_timestamp() returns timestamptz language sql"
    db.write(lambda c: c.exec_driver_sql(later + " as $$select pg_catalog.clock_timestamp() + interval '10 years'$$"))
    name = db.url.database
    db.write(lambda c: c.exec_driver_sql(f'alter database "{name}" set search_path = public, pg_catalog'))
    db.close()
    db.read(lambda c: None)


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_what_people_have_done_is_written_in_the_server_s_time(
    db: Database, db_url: str, source_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(db, register(db, version="1"))
    record(db, source_id, sightings(1))
    shadow = register(db, version="2")
    years_ahead(db)
    db.write(lambda c: serving.challenge(c, shadow, actor="test", now=utc()))
    db.write(lambda c: c.execute(sa.delete(job)))
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    for command in (["rescore", "--all", "--no-wait"], ["model", "challenge", "--none"]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
    last = sa.select(audit.c.at).order_by(audit.c.id.desc()).limit(1)
    written = [row[0] for query in (sa.select(campaign.c.created_at), last) for row in rows(db, query)]
    assert [abs(moment - db.now()) < timedelta(minutes=5) for moment in written] == [True, True]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_worker_whose_clock_is_ahead_is_forced(db: Database, to_come: Path) -> None:
    beat_as(db, NEWEST)
    assert migrate.upgrade(db, now=utc(), force=True, scripts=to_come) is SchemaState.CURRENT


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_who_is_alive_is_judged_by_the_clock_that_heartbeats_go_by(db: Database, db_url: str, to_come: Path) -> None:
    """The server is ten years ahead of this host; the upgrade is the first that this process asks of it."""
    years_ahead(db)
    db.write(lambda c: workers.beat(c, "w", "host", 1, "score", db.now()))
    fresh = Database(db_url)
    with pytest.raises(SchemaError, match="w on host"):
        migrate.upgrade(fresh, scripts=to_come)
    fresh.close()


def test_an_older_schema_waits_for_its_upgrade(db: Database, to_come: Path) -> None:
    assert revisions.state(db, to_come) is SchemaState.OLDER
    with pytest.raises(SchemaError, match="is older than this marcod; run `marcod db upgrade` first"):
        migrate.require_current(db, to_come)
    assert revisions.state(db) is SchemaState.CURRENT
    migrate.upgrade(db, now=utc(), scripts=to_come)
    migrate.require_current(db, to_come)
