"""Accounts and sessions of the page, marks on drops, whom a drop is followed by, and the requests of labels."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, ForeignKey, Table

revision = "0011"
down_revision = "0010"
additive = True

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
FOLDER = Path(__file__).resolve().parent.parent / "views"
WIDER = ("lims_drop_v1", "lims_hit_v1")
"""Views that get the column ``harvested``."""


METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
for name in ("drop", "inspection"):
    Table(name, METADATA, Column("id", BIG, primary_key=True))

WEB_USER = Table(
    "web_user",
    METADATA,
    Column("name", sa.Text, primary_key=True),
    Column("role", sa.Text, nullable=False),
    Column("password", sa.Text, nullable=False),
    Column("created_at", TIME, nullable=False),
)

WEB_SESSION = Table(
    "web_session",
    METADATA,
    Column("token_hash", sa.Text, primary_key=True),
    Column("user_name", sa.Text, ForeignKey("web_user.name"), nullable=False, index=True),
    Column("created_at", TIME, nullable=False),
    Column("seen_at", TIME, nullable=False),
    Column("ended_at", TIME),
)

DROP_MARK = Table(
    "drop_mark",
    METADATA,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("drop_id", BIG, ForeignKey("drop.id"), nullable=False, index=True),
    Column("inspection_id", BIG, ForeignKey("inspection.id"), nullable=False, index=True),
    Column("kind", sa.Text, nullable=False),
    Column("text", sa.Text, nullable=False),
    Column("person", sa.Text, nullable=False),
    Column("marked_at", TIME, nullable=False),
    Column("request", sa.Text, unique=True),
)

FOLLOW = Table(
    "follow",
    METADATA,
    Column("drop_id", BIG, ForeignKey("drop.id"), primary_key=True),
    Column("person", sa.Text, primary_key=True, index=True),
    Column("since", TIME, nullable=False),
)
NEW = (WEB_USER, WEB_SESSION, DROP_MARK, FOLLOW)


def upgrade() -> None:
    op.add_column("label", Column("request", sa.Text))
    some = sa.text("request is not null")
    op.create_index("ix_label_request", "label", ["request"], unique=True, sqlite_where=some, postgresql_where=some)
    METADATA.create_all(op.get_bind(), NEW, checkfirst=False)
    for view in WIDER:
        _view(f"{view}.0011")
    _view("lims_drop_mark_v1")


def _view(file: str) -> None:
    """Make a view, or put a wider one in the place of the former."""
    statement = (FOLDER / f"{file}.sql").read_text(encoding="utf-8")
    # PostgreSQL puts it in its place, since views of a LIMS may stand on it; SQLite cannot, and does not mind.
    if op.get_bind().dialect.name == "postgresql":
        statement = statement.replace("create view", "create or replace view", 1)
    else:
        op.execute(sa.text(f"drop view if exists {file.split('.')[0]}"))
    op.execute(sa.text(statement))


def downgrade() -> None:
    for view in ("lims_drop_mark_v1", *reversed(WIDER)):
        op.execute(sa.text(f"drop view {view}"))
    for view in WIDER:
        op.execute(sa.text((FOLDER / f"{view}.sql").read_text(encoding="utf-8")))
    METADATA.drop_all(op.get_bind(), NEW, checkfirst=False)
    op.drop_index("ix_label_request", "label")
    op.drop_column("label", "request")
