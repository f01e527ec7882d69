"""The tables of the service itself: who works, how the watching stands, what was done, and whom to tell of it."""

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

from marcod.database.column_types import BigId, UtcDateTime, key, metadata, ref

worker = Table(
    "worker",
    metadata,
    Column("name", sa.Text, primary_key=True),
    Column("host", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    Column("roles", sa.Text, nullable=False),
    Column("marcod_version", sa.Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False, index=True),
    Column("revision", sa.Text),
)
"""Every living process; ``revision`` is the newest step of the schema that it knows."""

watch_state = Table(
    "watch_state",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    Column("worker", sa.Text, nullable=False),
    Column("host", sa.Text, nullable=False),
    Column("root_there", sa.Boolean, nullable=False),
    Column("observing", sa.Boolean, nullable=False),
    Column("trouble", sa.Text),
    Column("pending", sa.Integer, nullable=False),
    Column("waiting", sa.Integer, nullable=False),
    Column("walking", sa.Boolean, nullable=False),
    Column("walked_files", sa.BigInteger, nullable=False),
    Column("unreadable", sa.Integer, nullable=False),
    Column("walked_at", UtcDateTime),
    Column("walked_whole_at", UtcDateTime),
    Column("round_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""How the watching of a source stands, written by its watcher every few seconds.

``pending`` files have not settled, ``waiting`` ones lack something beside them; ``walked_files`` is how far the walk
under way is, or the last one came; ``round_at`` is when its thread last showed life.
"""

source_root = Table(
    "source_root",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    Column("host", sa.Text, primary_key=True),
    Column("root", sa.Text, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Index("ix_source_root_host_root", "host", "root"),
)
"""Where a host finds the files of a source; a path means nothing on another host."""

source_finding = Table(
    "source_finding",
    metadata,
    Column("source_id", BigId, ForeignKey("source.id"), primary_key=True),
    Column("kind", sa.Text, primary_key=True),
    Column("reason", sa.Text, primary_key=True),
    Column("files", sa.BigInteger, nullable=False),
    Column("of_files", sa.BigInteger, nullable=False),
    Column("example", sa.Text, nullable=False),
    Column("hint", sa.Text),
    Column("hint_files", sa.Integer, nullable=False),
    Column("asked", sa.Integer, nullable=False),
    Column("accepted", sa.Boolean, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""Files of a source that its layout did not understand or warned of: one row per kind and reason, with an example.

``of_files`` are all images of the source; ``hint`` is the family that reads ``hint_files`` of ``asked`` files.
"""

_UNTOLD = sa.text("dispatched_at is null")
_UNSENT = sa.text("sent_at is null and failed_at is null")

event = Table(
    "event",
    metadata,
    key(),
    Column("kind", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False, unique=True),
    Column("source_id", BigId, ForeignKey("source.id")),
    Column("project", sa.Text),
    Column("detail", sa.JSON, nullable=False),
    Column("happened_at", UtcDateTime, nullable=False, index=True),
    Column("dispatched_at", UtcDateTime),
    Index("ix_event_untold", "id", sqlite_where=_UNTOLD, postgresql_where=_UNTOLD),
)
"""Something people may want to be told, written with what it tells of; ``subject`` makes it happen once."""

delivery = Table(
    "delivery",
    metadata,
    key(),
    ref("event_id", "event"),
    Column("target", sa.Text, nullable=False),
    Column("message", sa.Text, index=True),
    Column("attempts", sa.Integer, nullable=False),
    Column("available_at", UtcDateTime, nullable=False),
    Column("lease", sa.Text),
    Column("sent_at", UtcDateTime),
    Column("failed_at", UtcDateTime),
    Column("error", sa.Text),
    UniqueConstraint("event_id", "target"),
    Index("ix_delivery_unsent", "target", "available_at", sqlite_where=_UNSENT, postgresql_where=_UNSENT),
)
"""An event for one target; those of one ``message`` are sent together, under that name however often it takes."""

schema_mark = Table(
    "schema_mark",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("oldest_revision", sa.Text, nullable=False),
)
"""One row: a marcod that knows this step can work, whatever was added after it."""

audit = Table(
    "audit",
    metadata,
    key(),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("actor", sa.Text, nullable=False),
    Column("action", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False),
    Column("detail", sa.JSON),
)
