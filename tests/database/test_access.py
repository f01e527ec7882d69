"""The roles tried for real: users who log in with them and try what they must not."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import factories
import pytest
import sqlalchemy as sa
from factories import utc
from sqlalchemy.engine import make_url

from marcod.database import migrate, revisions, workers
from marcod.database import roles as database_roles
from marcod.database.engine import Database
from marcod.database.schema import SECRET, metadata
from marcod.errors import ConfigError, StoreError
from marcod.labels import inbox, vocabularies
from marcod.plates import reports
from marcod.store import queue, results, summaries, versions

pytestmark = pytest.mark.parametrize("backend", ["postgres"], indirect=True)

PASSWORD = "one-way-in"
VIEWS = sorted({path.name.split(".")[0] for path in (revisions.folder() / "views").glob("lims_*.sql")})
TABLES = sorted([*metadata.tables, "alembic_version"])


class Users:
    """Two roles under names of their own, with a hostile character each, and a user of each who logs in."""

    def __init__(self, server: Any) -> None:
        tag = uuid4().hex[:8]
        self._server = server
        self.lims, self.app = f'lims %s "{tag}"', f"app-{tag}"
        self.reader, self.worker = f"reader_{tag}", f"worker_{tag}"

    def add(self, name: str, options: str = "login") -> None:
        self._server.do(f"create role {quoted(name)} {options} password '{PASSWORD}'")

    def close(self) -> None:
        for name in (self.reader, self.worker, self.lims, self.app):
            self._server.do(f"drop role if exists {quoted(name)}")


def quoted(name: str) -> str:
    """For the driver, to which a percent sign means a parameter."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


@pytest.fixture
def users(postgres: Any) -> Iterator[Users]:
    """Gone at the end; what they may do goes with the test's database."""
    made = Users(postgres)
    yield made
    made.close()


@pytest.fixture
def lab(users: Users, db: Database, postgres: Any) -> Database:
    """A database with both roles and their users, and a scored plate."""
    db.write(lambda c: database_roles.make_roles(c, users.lims, users.app))
    for user, role in ((users.reader, users.lims), (users.worker, users.app)):
        users.add(user)
        postgres.do(f"grant {quoted(role)} to {quoted(user)}")
    version = factories.register(db)
    factories.promote(db, version)
    factories.record(db, factories.register_source(db), factories.sightings(2))
    factories.drain(db, version, scores=lambda c: factories.CRYSTALS)
    return db


def as_user(db: Database, name: str) -> Database:
    return Database(make_url(db.url).set(username=name, password=PASSWORD).render_as_string(hide_password=False))


@pytest.fixture
def reader(lab: Database, users: Users) -> Iterator[Database]:
    """Logged in as a LIMS."""
    database = as_user(lab, users.reader)
    yield database
    database.close()


@pytest.fixture
def worker(lab: Database, users: Users) -> Iterator[Database]:
    """Logged in as the daemon."""
    database = as_user(lab, users.worker)
    yield database
    database.close()


def run(db: Database, statement: str) -> Any:
    return db.write(lambda c: c.exec_driver_sql(statement).rowcount)


def refused(db: Database, statement: str) -> bool:
    """Whether the server says that there is no privilege."""
    with pytest.raises(StoreError, match=r"permission denied|must be owner"):
        run(db, statement)
    return True


def test_a_lims_reads_every_view(reader: Database) -> None:
    for view in VIEWS:
        run(reader, f"select * from {view}")
    assert run(reader, "select * from lims_image_score_v1 where hit") == 2


def test_internal_views_are_for_the_daemon_alone(reader: Database, worker: Database) -> None:
    for view in database_roles.INTERNAL_VIEWS:
        assert refused(reader, f"select * from {view}")
        assert run(worker, f"select * from {view}") > 0


INSERT = (
    "insert into lims_label_inbox_v1 (source, plate, well, drop_number, inspection, label, person, labelled_at)"
    " values ('imager', 'P1', 'A01', 1, '1', 'Clear', 'ann', now())"
)


def test_a_lims_fills_the_inbox_and_reads_what_became_of_it(reader: Database, lab: Database) -> None:
    run(reader, INSERT)
    with reader.engine.begin() as connection:
        number = connection.exec_driver_sql(
            "insert into lims_label_inbox_v1 (plate, well, label, person) values ('P1', 'A02', 'Other', 'bob')"
            " returning inbox_id"
        ).scalar_one()
    assert number == 2
    shown = lab.read(lambda c: c.exec_driver_sql("select well, state, received_at from lims_label_inbox_v1").all())
    assert [(row[0], row[1], row[2] is not None) for row in shown] == [
        ("A01", "waiting", True),
        ("A02", "waiting", True),
    ]


def test_a_lims_cannot_write_what_is_the_answer(reader: Database) -> None:
    for column, value in (("inbox_id", "7"), ("received_at", "now()"), ("state", "'resolved'"), ("reason", "'mine'")):
        assert refused(reader, f"insert into lims_label_inbox_v1 (plate, {column}) values ('P1', {value})")
        assert refused(reader, f"update lims_label_inbox_v1 set {column} = {value}")


def test_a_lims_cannot_change_what_it_sent(reader: Database) -> None:
    run(reader, INSERT)
    for statement in (
        "update lims_label_inbox_v1 set label = 'Clear'",
        "delete from lims_label_inbox_v1",
        "insert into lims_label_inbox_v1 values (9)",
        f"{INSERT} on conflict do nothing returning (select setval('label_inbox_id_seq', 1))",
        "insert into label_inbox (label_id) values (1)",
    ):
        assert refused(reader, statement), statement


def test_a_lims_reads_every_table_without_secrets_and_changes_none(reader: Database, lab: Database) -> None:
    first = {name: lab.read(lambda c, n=name: sa.inspect(c).get_columns(n)[0]["name"]) for name in TABLES}
    for table in TABLES:
        if table in SECRET:
            assert refused(reader, f'select * from "{table}"')
        else:
            run(reader, f'select * from "{table}"')
        for statement in (
            f'insert into "{table}" default values',
            f'update "{table}" set "{first[table]}" = null',
            f'delete from "{table}"',
            f'truncate "{table}"',
            f'lock table "{table}" in share mode',
            f'drop table "{table}" cascade',
            f'alter table "{table}" add column x integer',
            f'create index on "{table}" ("{first[table]}")',
        ):
            assert refused(reader, statement), statement
        if table not in SECRET:
            # PostgreSQL only warns of who may read and gives that on.
            run(reader, f'grant select on "{table}" to public')
    everybody = (
        "select count(*) from information_schema.role_table_grants where grantee = 'PUBLIC' and table_name = any(%(t)s)"
    )
    assert lab.read(lambda c: c.exec_driver_sql(everybody, {"t": TABLES}).scalar_one()) == 0


def test_a_lims_writes_to_no_other_view(reader: Database) -> None:
    for view in VIEWS:
        with pytest.raises((StoreError, sa.exc.DBAPIError)):
            run(reader, f"delete from {view}")
        assert refused(reader, f"drop view {view}")
        assert refused(reader, f"create or replace view {view} as select 1")
        assert refused(reader, f"comment on view {view} is 'mine'")


FORBIDDEN = (
    "create table mine (x integer)",
    "create temporary table mine (x integer)",
    "create view mine as select 1",
    "create schema mine",
    "create sequence mine",
    "create type mine as (x integer)",
    "create function mine() returns integer language sql as 'select 1'",
    "create function mine() returns integer language plpgsql as 'begin return 1; end'",
    "create role mine",
    "alter database template1 set search_path = 'mine'",
    "alter role current_user superuser",
    "copy (select 1) to program 'true'",
    "copy (select 1) to '/marcod-mine'",
    "copy lims_label_inbox_v1 (label) from program 'echo Clear'",
    "select pg_read_file('PG_VERSION')",
    "select pg_ls_dir('.')",
    "select lo_import('PG_VERSION')",
    "select lo_from_bytea(0, 'x')",
    "select lo_create(0)",
    "select lo_creat(-1)",
    "select setval('label_inbox_id_seq', 1)",
    "select nextval('score_id_seq')",
    "set log_statement = 'none'",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename <> current_user",
    "set role pg_monitor",
    "set session authorization pg_monitor",
    "do $$ begin delete from image; end $$",
)


def test_a_lims_does_nothing_else(reader: Database) -> None:
    for statement in FORBIDDEN:
        with pytest.raises((StoreError, sa.exc.DBAPIError), match=r"permission denied|must be|cannot copy to view"):
            run(reader, statement)


def test_the_daemon_works_as_its_role(worker: Database, lab: Database) -> None:
    migrate.require_current(worker)
    second = factories.register(worker, version="2")
    source_id = factories.register_source(worker, "other", expected_drops=2)
    factories.record(worker, source_id, factories.sightings(3, plate="P2"), utc(1))
    lease = factories.claimed(worker, utc(2), limit=1)
    champion = worker.read(versions.champion)
    factories.finish(worker, lease, champion, utc(2), failures=[queue.Failure(lease.claims[0], "bad", retryable=False)])
    assert factories.drain(worker, champion, utc(3)) == 2
    assert worker.write(lambda c: results.retry_failed(c, utc(4))) == 1
    assert factories.drain(worker, champion, utc(5), scores=lambda c: factories.CRYSTALS) == 1
    worker.write(lambda c: results.give_up_exhausted(c, max_attempts=1, now=utc(6)))
    worker.write(lambda c: summaries.complete_quiet(c, utc(days=9), 60.0))
    worker.write(lambda c: workers.beat(c, "w", "host", 1, "score", utc(6)))
    worker.write(lambda c: workers.leave(c, "w"))
    factories.promote(worker, second, utc(7))
    worker.write(lambda c: queue.enqueue_rescore(c, second.id, utc(8)))
    assert factories.drain(worker, second, utc(9)) == 5
    assert len(worker.read(lambda c: reports.summaries(c))) == 2
    values = "('imager', 'P1', 'A01', 1, '1', 'Clear', 'ann')"
    run(
        worker, f"insert into label_inbox (source, plate, well, drop_number, inspection, label, person) values {values}"
    )
    turn = worker.write(lambda c: inbox.resolve(c, vocabularies.load(), "marco", utc(days=400), limit=9))
    assert turn.resolved == 1


def test_the_daemon_changes_no_schema(worker: Database) -> None:
    for table in TABLES:
        assert refused(worker, f'drop table "{table}" cascade')
        assert refused(worker, f'truncate "{table}"')
        assert refused(worker, f'alter table "{table}" add column x integer')
    assert refused(worker, "create table mine (x integer)")
    assert refused(worker, "create temporary table mine (x integer)")
    assert refused(worker, "update alembic_version set version_num = '1'")
    migrate.upgrade(worker)
    assert revisions.state(worker) is revisions.SchemaState.CURRENT


def rights(db: Database, *roles: str) -> list[Any]:
    """Every grant of a table, view or column to these roles, as the catalog has it."""
    statement = sa.text(
        "select relname, coalesce(attname, ''), pg_get_userbyid(g.grantee), g.privilege_type from ("
        " select relname, null as attname, relacl as acl from pg_class"
        " where relnamespace = current_schema()::regnamespace union all"
        " select relname, attname, attacl from pg_attribute join pg_class on pg_class.oid = attrelid"
        " where relnamespace = current_schema()::regnamespace) a cross join lateral aclexplode(a.acl) g"
        " where pg_get_userbyid(g.grantee) = any(:roles) order by 1, 2, 3, 4"
    )
    return db.read(lambda c: [tuple(row) for row in c.execute(statement, {"roles": list(roles)})])


def test_again_changes_nothing_and_corrects_what_was_added(lab: Database, users: Users) -> None:
    before = rights(lab, users.lims, users.app)
    run(lab, f"grant delete on image to {quoted(users.lims)}")
    run(lab, f"grant update (state) on lims_label_inbox_v1 to {quoted(users.lims)}")
    run(lab, f"grant truncate on image to {quoted(users.app)}")
    assert rights(lab, users.lims, users.app) != before
    made = lab.write(lambda c: database_roles.make_roles(c, users.lims, users.app))
    assert (made.created, made.taken, made.views) == ((), (), tuple(VIEWS))
    assert rights(lab, users.lims, users.app) == before


def test_an_upgrade_keeps_the_roles(lab: Database, users: Users, reader: Database, worker: Database) -> None:
    before = rights(lab, users.lims, users.app)
    run(lab, "drop view lims_hit_v1")
    statement = (revisions.folder() / "views" / "lims_hit_v1.sql").read_text(encoding="utf-8")
    lab.write(lambda c: c.execute(sa.text(statement)))
    assert refused(reader, "select * from lims_hit_v1")
    migrate.upgrade(lab)
    assert rights(lab, users.lims, users.app) == before
    run(reader, "select * from lims_hit_v1")
    run(worker, "select * from lims_hit_v1")


def test_an_upgrade_grants_to_nobody_else(users: Users, db: Database) -> None:
    users.add(users.reader)
    run(db, f"grant select on lims_hit_v1 to {quoted(users.reader)}")
    migrate.upgrade(db)
    assert rights(db, users.reader) == [("lims_hit_v1", "", users.reader, "SELECT")]


@pytest.mark.parametrize(
    ("options", "reason"),
    [("superuser", "has administrative rights"), ("in role pg_read_all_data", "is a member of another role")],
)
def test_a_role_that_could_do_more_is_refused(users: Users, db: Database, options: str, reason: str) -> None:
    users.add(users.lims, options)
    with pytest.raises(StoreError, match=reason):
        db.write(lambda c: database_roles.make_roles(c, users.lims, users.app))
    assert rights(db, users.lims, users.app) == []


def test_what_everybody_may_is_said(users: Users, db: Database) -> None:
    run(db, "grant update on image to public")
    with pytest.raises(StoreError, match="would still have UPDATE on image"):
        db.write(lambda c: database_roles.make_roles(c, users.lims, users.app))


@pytest.mark.parametrize(
    ("lims", "app", "reason"),
    [("", "a", "bytes"), ("ä" * 32, "a", "bytes"), ("a\x00", "b", "bytes"), ("public", "a", "reserved"),
     ("pg_x", "a", "reserved"), ("same", "same", "twice")],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(db: Database, lims: str, app: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        db.write(lambda c: database_roles.make_roles(c, lims, app))


def test_a_user_who_may_not_create_roles_is_refused(users: Users, db: Database, worker: Database) -> None:
    with pytest.raises(StoreError, match="may not create roles; let an administrator run"):
        worker.write(lambda c: database_roles.make_roles(c, f"{users.lims}x", users.app))


def test_an_owner_who_is_not_a_superuser_makes_them(users: Users, empty_db: Database, postgres: Any) -> None:
    users.add(users.worker, "login createrole")
    postgres.do(f"alter database {empty_db.url.database} owner to {users.worker}")
    owner = as_user(empty_db, users.worker)
    migrate.require_current(owner)
    made = owner.write(lambda c: database_roles.make_roles(c, users.lims, users.app))
    assert made.created == (users.lims, users.app)
    assert "temporary" in {right.split(" on ")[0] for right in made.taken}
    assert "execute" in {right.split(" on ")[0] for right in made.left}
    users.add(users.reader)
    run(owner, f"grant {quoted(users.lims)} to {quoted(users.reader)}")
    reader = as_user(empty_db, users.reader)
    run(reader, "insert into lims_label_inbox_v1 (plate) values ('P')")
    assert refused(reader, "delete from image")
    for database in (owner, reader):
        database.close()
    run(empty_db, f"reassign owned by {quoted(users.worker)} to current_user")
    postgres.do(f"alter database {empty_db.url.database} owner to current_user")
