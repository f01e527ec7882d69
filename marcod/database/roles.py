"""Rights on PostgreSQL: one role for a LIMS and for people who only look, one for the daemon.

Hides grants and the rights that PostgreSQL gives to everybody by default.

Guarantees:
    - The LIMS's role reads the views and, for marcod's reading commands, the tables but those of ``schema.SECRET``. It
      inserts into the input columns of the inbox and changes nothing else.
    - The daemon's role changes rows and no schema.
    - Both keep this when a new version of the schema brings new tables and views.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.revisions import VERSION_TABLE
from marcod.database.schema import SECRET, metadata
from marcod.errors import ConfigError, StoreError

INBOX: Final = "lims_label_inbox_v1"
INBOX_INPUTS: Final = ("source", "plate", "well", "drop_number", "inspection", "label", "person", "labelled_at")
"""Columns that a LIMS writes; the others are marcod's answer."""

INTERNAL_VIEWS: Final = ("shown_version", "shown_drop", "shown_inspection")
"""Views under those of a LIMS, which reads them through those alone."""

_INBOX_SEQUENCE: Final = "label_inbox_id_seq"
_LONGEST_NAME: Final = 63
_LARGE_OBJECTS: Final = ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)")
"""Functions that any user may call by default to store data outside every table."""


@dataclass(frozen=True, slots=True)
class Made:
    """Result of :func:`make_roles`: new roles, objects they reach, and rights revoked from PUBLIC.

    ``left`` are rights of PUBLIC that this user cannot revoke.
    """

    lims: str
    app: str
    created: tuple[str, ...]
    views: tuple[str, ...]
    tables: tuple[str, ...]
    taken: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def hidden(self) -> tuple[str, ...]:
        """Tables that the LIMS's role does not read."""
        return tuple(name for name in self.tables if name in SECRET)


@dataclass(frozen=True, slots=True)
class Grantees:
    """The roles that hold what :func:`make_roles` gives."""

    lims: tuple[str, ...] = ()
    app: tuple[str, ...] = ()


def make_roles(connection: Connection, lims: str, app: str) -> Made:
    """Make both roles, or bring them to exactly the rights they should have. Safe to repeat.

    Raises ConfigError for names that cannot be, and StoreError when a role is more than it may be.
    """
    _check_names(lims, app)
    created = tuple(role for role in (lims, app) if _create(connection, role))
    for role in (lims, app):
        _require_plain(connection, role)
    taken, left = _take_from_everybody(connection)
    grant(connection, Grantees((lims,), (app,)))
    _require_nothing_else(connection, lims)
    return Made(lims, app, created, tuple(_views(connection)), tuple(_tables(connection)), taken, left)


def grantees(connection: Connection) -> Grantees:
    """Find the holders of the rights: as a LIMS those who may insert into the inbox, as the daemon into ``image``."""
    if connection.dialect.name != "postgresql" or not _may_grant(connection):
        return Grantees()
    inbox = (
        "select distinct r.rolname from pg_attribute a cross join lateral aclexplode(a.attacl) g"
        " join pg_roles r on r.oid = g.grantee"
        " where a.attrelid = to_regclass(:name) and g.privilege_type = 'INSERT' order by 1"
    )
    image = (
        "select distinct r.rolname from pg_class c cross join lateral aclexplode(c.relacl) g"
        " join pg_roles r on r.oid = g.grantee"
        " where c.oid = to_regclass(:name) and g.grantee <> c.relowner and g.privilege_type = 'INSERT' order by 1"
    )

    def names(query: str, relation: str) -> tuple[str, ...]:
        return tuple(connection.execute(sa.text(query), {"name": relation}).scalars())

    return Grantees(names(inbox, INBOX), names(image, "image"))


def grant(connection: Connection, roles: Grantees) -> None:
    """Give these roles what they should have in the schema as it is, and take the rest."""
    if not roles.lims + roles.app:
        return
    views, tables = _views(connection), _tables(connection)
    for role in roles.lims:
        _do(connection, _plain_rights(connection, role))
        _do(connection, _lims_rights(connection, role, views, tables))
    for role in roles.app:
        _do(connection, _plain_rights(connection, role))
        _do(connection, _app_rights(connection, role, views, tables))


def _check_names(*names: str) -> None:
    for name in names:
        if not name or len(name.encode()) > _LONGEST_NAME or "\x00" in name:
            raise ConfigError(f"role name {name!r}: give 1 to {_LONGEST_NAME} bytes, or PostgreSQL cuts it short")
        if name.lower().startswith("pg_") or name.lower() in ("public", "none"):
            raise ConfigError(f"role name {name!r} is reserved by PostgreSQL; give another one")
    if len(set(names)) < len(names):
        raise ConfigError(f"role name {names[0]!r} is given twice; the LIMS and the daemon need a role each")


def _create(connection: Connection, role: str) -> bool:
    if connection.execute(sa.text("select 1 from pg_roles where rolname = :role"), {"role": role}).first():
        return False
    may = "select rolcreaterole or rolsuper from pg_roles where rolname = current_user"
    if not connection.execute(sa.text(may)).scalar_one():
        raise StoreError(
            "this database user may not create roles; let an administrator run"
            f" `create role {_quoted(connection, role)} nologin`, or give the URL of a user with CREATEROLE"
        )
    _do(connection, [f"create role {_quoted(connection, role)} nologin"])
    return True


def _require_plain(connection: Connection, role: str) -> None:
    """Refuse a role with attributes or memberships, which would void every grant below."""
    query = (
        "select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls,"
        " exists (select 1 from pg_auth_members m where m.member = r.oid),"
        " exists (select 1 from pg_shdepend s where s.refclassid = 'pg_authid'::regclass"
        " and s.refobjid = r.oid and s.deptype = 'o')"
        " from pg_roles r where rolname = :role"
    )
    row = connection.execute(sa.text(query), {"role": role}).one()
    reasons = ("has administrative rights", "is a member of another role", "owns objects")
    for found, reason in zip(row, reasons, strict=True):
        if found:
            raise StoreError(f"role {role} {reason}, so it could do more than it should; name another role")


def _take_from_everybody(connection: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Revoke the rights that PUBLIC has by default. Returns those revoked and those left."""
    schema, database = (_quoted(connection, name) for name in _place(connection))
    questions = {
        f"create on schema {schema}": "has_schema_privilege('public', current_schema(), 'CREATE')",
        f"temporary on database {database}": "has_database_privilege('public', current_database(), 'TEMP')",
    }
    for name in _LARGE_OBJECTS:
        function = f"pg_catalog.{name}"
        questions[f"execute on function {function}"] = f"has_function_privilege('public', '{function}', 'EXECUTE')"

    def had() -> list[str]:
        return [right for right, question in questions.items() if _answer(connection, question)]

    before = had()
    # PostgreSQL only warns of what is not this user's to take.
    _do(connection, [f"revoke {right} from public" for right in before])
    left = had()
    return tuple(right for right in before if right not in left), tuple(left)


def _answer(connection: Connection, question: str) -> bool:
    return bool(connection.exec_driver_sql(f"select {question}").scalar_one())


def _plain_rights(connection: Connection, role: str) -> list[str]:
    who, (schema, database) = _quoted(connection, role), (_quoted(connection, n) for n in _place(connection))
    return [
        f"revoke all on all tables in schema {schema} from {who}",
        f"revoke all on all sequences in schema {schema} from {who}",
        f"revoke all on schema {schema} from {who}",
        f"revoke all on database {database} from {who}",
        f"grant connect on database {database} to {who}",
        f"grant usage on schema {schema} to {who}",
    ]


def _lims_rights(connection: Connection, role: str, views: list[str], tables: list[str]) -> list[str]:
    who = _quoted(connection, role)
    readable = (*views, *_open_tables(tables), VERSION_TABLE)
    rights = [f"grant select on {_quoted(connection, name)} to {who}" for name in readable]
    if INBOX in views:
        rights += [
            f"grant insert ({', '.join(INBOX_INPUTS)}) on {INBOX} to {who}",
            # A default of the table behind a view runs with the rights of the inserting role.
            f"grant usage on sequence {_INBOX_SEQUENCE} to {who}",
        ]
    return rights


def _app_rights(connection: Connection, role: str, views: list[str], tables: list[str]) -> list[str]:
    who, schema = _quoted(connection, role), _quoted(connection, _place(connection)[0])
    return [
        *(f"grant select on {_quoted(connection, name)} to {who}" for name in (*views, *INTERNAL_VIEWS, VERSION_TABLE)),
        *(f"grant select, insert, update, delete on {_quoted(connection, name)} to {who}" for name in tables),
        f"grant usage on all sequences in schema {schema} to {who}",
    ]


def _require_nothing_else(connection: Connection, role: str) -> None:
    """Check that no right comes from elsewhere, such as a grant to PUBLIC. Raises StoreError."""
    rows = connection.execute(
        sa.text(
            "select c.relname, p.name from pg_class c cross join unnest(array["
            "'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) as p(name)"
            " where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')"
            " and (has_table_privilege(:role, c.oid, p.name) or p.name in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')"
            " and has_any_column_privilege(:role, c.oid, p.name)) order by 1, 2"
        ),
        {"role": role},
    )
    readable = (*_views(connection), *_open_tables(_tables(connection)), VERSION_TABLE)
    allowed = {(name, "SELECT") for name in readable} | {(INBOX, "INSERT")}
    for name, right in rows:
        if (name, right) not in allowed:
            raise StoreError(
                f"role {role} would still have {right} on {name}, because everybody has;"
                f" run `revoke all on {name} from public` first"
            )


def _may_grant(connection: Connection) -> bool:
    """Tell if this user owns the schema's tables; no other can grant rights."""
    query = "select pg_has_role(relowner, 'USAGE') from pg_class where oid = to_regclass(:name)"
    return bool(connection.execute(sa.text(query), {"name": VERSION_TABLE}).scalar_one_or_none())


def _views(connection: Connection) -> list[str]:
    return sorted(name for name in sa.inspect(connection).get_view_names() if name.startswith("lims_"))


def _tables(connection: Connection) -> list[str]:
    return sorted(set(sa.inspect(connection).get_table_names()) & set(metadata.tables))


def _open_tables(tables: Iterable[str]) -> list[str]:
    """Choose the tables without secrets."""
    return [name for name in tables if name not in SECRET]


def _place(connection: Connection) -> tuple[str, str]:
    """Read the names of the schema and the database."""
    schema, database = connection.execute(sa.text("select current_schema(), current_database()")).one()
    return str(schema), str(database)


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)


def _do(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
