"""What the service tells of itself: how watching stands, events and their deliveries, lapsed leases, who knows what.

Names with characters that steer a terminal are written as such are from now on; few have any. A marcod of the step
before would not find them and would record such plates and images a second time, so it must not work on beside this.
"""

import re

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
additive = False

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
UNTOLD = sa.text("dispatched_at is null")
UNSENT = sa.text("sent_at is null and failed_at is null")
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
CHUNK = 10_000
TABLES = ("schema_mark", "watch_state", "event", "delivery")
ESCAPED = (
    ("source", ("root",)),
    ("plate", ("key", "barcode")),
    ("inspection", ("key", "order_key")),
    ("image", ("path", "profile")),
)


def upgrade() -> None:
    op.add_column("job", sa.Column("lapsed", sa.Boolean()))
    op.add_column("worker", sa.Column("revision", sa.Text()))
    _schema_mark()
    _watch_state()
    _event()
    _delivery()
    for table, columns in ESCAPED:
        _escape(table, columns)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_column("worker", "revision")
    op.drop_column("job", "lapsed")


def _escape(table: str, columns: tuple[str, ...]) -> None:
    """Write what steers a terminal as the bytes that it is; reading such a name gives the same bytes as before.

    Two names never become one, since a backslash of a name has been written as its byte all along.
    """
    rows = sa.table(table, *map(sa.column, ("id", *columns)))
    connection, last = op.get_bind(), 0
    while True:
        found = sa.select(rows).where(rows.c.id > last).order_by(rows.c.id).limit(CHUNK)
        part = connection.execute(found).all()
        for number, *texts in part:
            if written := _written(dict(zip(columns, texts, strict=True))):
                connection.execute(sa.update(rows).where(rows.c.id == number).values(written))
        if len(part) < CHUNK:
            return
        last = part[-1][0]


def _written(texts: dict[str, str | None]) -> dict[str, str]:
    """Those columns of a row that are to be written otherwise."""
    written = {
        name: STEERING.sub(lambda one: "".join(f"\\x{byte:02x}" for byte in one[0].encode()), text)
        for name, text in texts.items()
        if text is not None and STEERING.search(text)
    }
    if "order_key" in written:
        # It follows from the key, whose bytes now have digits that are read as numbers too.
        written["order_key"] = re.sub(r"\d+", lambda digits: digits[0].zfill(20), written["key"])
    return written


def _schema_mark() -> None:
    mark = op.create_table(
        "schema_mark",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("oldest_revision", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schema_mark"),
    )
    op.bulk_insert(mark, [{"id": 1, "oldest_revision": revision}])


def _watch_state() -> None:
    op.create_table(
        "watch_state",
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("root_there", sa.Boolean(), nullable=False),
        sa.Column("observing", sa.Boolean(), nullable=False),
        sa.Column("trouble", sa.Text()),
        sa.Column("pending", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("walking", sa.Boolean(), nullable=False),
        sa.Column("walked_files", sa.BigInteger(), nullable=False),
        sa.Column("unreadable", sa.Integer(), nullable=False),
        sa.Column("walked_at", TIME),
        sa.Column("walked_whole_at", TIME),
        sa.Column("round_at", TIME),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("source_id", name="pk_watch_state"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_watch_state_source_id_source"),
    )


def _event() -> None:
    op.create_table(
        "event",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("source_id", BIG),
        sa.Column("project", sa.Text()),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("happened_at", TIME, nullable=False),
        sa.Column("dispatched_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sa.UniqueConstraint("subject", name="uq_event_subject"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_event_source_id_source"),
    )
    op.create_index("ix_event_happened_at", "event", ["happened_at"])
    op.create_index("ix_event_untold", "event", ["id"], sqlite_where=UNTOLD, postgresql_where=UNTOLD)


def _delivery() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("event_id", BIG, nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("available_at", TIME, nullable=False),
        sa.Column("lease", sa.Text()),
        sa.Column("sent_at", TIME),
        sa.Column("failed_at", TIME),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint("event_id", "target", name="uq_delivery_event_id_target"),
        sa.ForeignKeyConstraint(["event_id"], ["event.id"], name="fk_delivery_event_id_event"),
    )
    op.create_index("ix_delivery_message", "delivery", ["message"])
    op.create_index(
        "ix_delivery_unsent", "delivery", ["target", "available_at"], sqlite_where=UNSENT, postgresql_where=UNSENT
    )
