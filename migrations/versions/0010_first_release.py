"""All tables and views of the first release.

A step stands for itself: it names every column and imports nothing of the live schema.
"""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, ForeignKey, Index, Table, UniqueConstraint

revision = "0010"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
FOLDER = Path(__file__).resolve().parent.parent / "views"
VIEWS = (
    "shown_version",
    "shown_drop",
    "shown_inspection",
    "lims_drop_v1",
    "lims_hit_v1",
    "lims_plate_summary_v1",
    "lims_image_score_v1",
    "lims_image_failure_v1",
    "lims_label_v1",
    "lims_label_inbox_v1",
)
INBOX_TRIGGER = """
create trigger label_inbox_by_view instead of insert on lims_label_inbox_v1
begin
    insert into label_inbox (source, plate, well, drop_number, inspection, label, person, labelled_at)
    values (new.source, new.plate, new.well, new.drop_number, new.inspection, new.label, new.person, new.labelled_at);
end
"""
METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def upgrade() -> None:
    METADATA.create_all(op.get_bind(), checkfirst=False)
    op.bulk_insert(METADATA.tables["schema_mark"], [{"id": 1, "oldest_revision": revision}])
    for view in VIEWS:
        op.execute(sa.text((FOLDER / f"{view}.sql").read_text(encoding="utf-8")))
    # PostgreSQL inserts through a view of one table by itself; SQLite needs a trigger.
    if op.get_bind().dialect.name == "sqlite":
        op.execute(sa.text(INBOX_TRIGGER))


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(sa.text(f"drop view {view}"))
    METADATA.drop_all(op.get_bind(), checkfirst=False)


def _key() -> Column[int]:
    return Column("id", BIG, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, **more: Any) -> Column[int]:
    return Column(name, BIG, ForeignKey(f"{target}.id"), nullable=False, **more)


def _index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


Table(
    "audit",
    METADATA,
    _key(),
    Column("at", TIME, nullable=False, index=True),
    Column("actor", sa.Text, nullable=False),
    Column("action", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False),
    Column("detail", sa.JSON),
)

Table(
    "worker",
    METADATA,
    Column("name", sa.Text, primary_key=True),
    Column("host", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    Column("roles", sa.Text, nullable=False),
    Column("marcod_version", sa.Text, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("seen_at", TIME, nullable=False, index=True),
    Column("revision", sa.Text),
)

Table(
    "source",
    METADATA,
    _key(),
    Column("name", sa.Text, nullable=False, unique=True),
    Column("layout", sa.Text, nullable=False),
    Column("reading", sa.Text, nullable=False),
    Column("expected_drops", sa.Integer),
    Column("created_at", TIME, nullable=False),
)

Table(
    "source_root",
    METADATA,
    Column("source_id", BIG, ForeignKey("source.id"), primary_key=True),
    Column("host", sa.Text, primary_key=True),
    Column("root", sa.Text, nullable=False),
    Column("seen_at", TIME, nullable=False),
    Index("ix_source_root_host_root", "host", "root"),
)

Table(
    "source_finding",
    METADATA,
    Column("source_id", BIG, ForeignKey("source.id"), primary_key=True),
    Column("kind", sa.Text, primary_key=True),
    Column("reason", sa.Text, primary_key=True),
    Column("files", sa.BigInteger, nullable=False),
    Column("of_files", sa.BigInteger, nullable=False),
    Column("example", sa.Text, nullable=False),
    Column("hint", sa.Text),
    Column("hint_files", sa.Integer, nullable=False),
    Column("asked", sa.Integer, nullable=False),
    Column("accepted", sa.Boolean, nullable=False),
    Column("updated_at", TIME, nullable=False),
)

Table(
    "watch_state",
    METADATA,
    Column("source_id", BIG, ForeignKey("source.id"), primary_key=True),
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
    Column("walked_at", TIME),
    Column("walked_whole_at", TIME),
    Column("round_at", TIME),
    Column("updated_at", TIME, nullable=False),
)

Table(
    "plate",
    METADATA,
    _key(),
    _ref("source_id", "source"),
    Column("key", sa.Text, nullable=False),
    Column("barcode", sa.Text, index=True),
    Column("first_seen_at", TIME, nullable=False),
    Column("project", sa.Text),
    Column("screen", sa.Text),
    Column("format_rows", sa.Integer),
    Column("format_columns", sa.Integer),
    Column("format_drops", sa.Integer),
    Column("split_source", sa.Text),
    Column("key_folded", sa.Text, index=True),
    Column("barcode_folded", sa.Text, index=True),
    Column("reservoirs", sa.Text),
    Column("reread_after", BIG),
    UniqueConstraint("source_id", "key"),
    _index("ix_plate_reread_after", "reread_after", where="reread_after is not null"),
)

Table(
    "drop",
    METADATA,
    _key(),
    _ref("plate_id", "plate"),
    Column("well", sa.Text, nullable=False),
    Column("well_row", sa.Integer, nullable=False),
    Column("well_column", sa.Integer, nullable=False),
    Column("drop_number", sa.Integer, nullable=False),
    UniqueConstraint("plate_id", "well_row", "well_column", "drop_number"),
)

Table(
    "inspection",
    METADATA,
    _key(),
    _ref("plate_id", "plate"),
    Column("key", sa.Text, nullable=False),
    Column("ordinal", sa.Integer),
    Column("first_seen_at", TIME, nullable=False),
    Column("order_key", sa.Text),
    UniqueConstraint("plate_id", "key"),
)

Table(
    "image",
    METADATA,
    _key(),
    _ref("source_id", "source"),
    Column("path", sa.Text, nullable=False),
    _ref("drop_id", "drop", index=True),
    _ref("inspection_id", "inspection", index=True),
    Column("modality", sa.Text, nullable=False),
    Column("profile", sa.Text),
    Column("region", sa.BigInteger),
    Column("captured_at", TIME),
    Column("size", sa.BigInteger, nullable=False),
    Column("mtime_ns", sa.BigInteger, nullable=False),
    Column("content_hash", sa.Text),
    Column("seen_at", TIME, nullable=False),
    Column("warnings", sa.Text),
    Column("unread", sa.Boolean, nullable=False, server_default=sa.false()),
    Column("gone_at", TIME),
    Column("gone_score_id", BIG),
    Column("gone_accepted", sa.Boolean),
    Column("same_as_id", BIG),
    UniqueConstraint("source_id", "path"),
    _index("ix_image_gone_at", "gone_at", where="gone_at is not null"),
    _index("ix_image_same_as_id", "same_as_id", where="same_as_id is not null"),
)

Table(
    "model_version",
    METADATA,
    _key(),
    Column("name", sa.Text, nullable=False),
    Column("version", sa.Text, nullable=False),
    Column("digest", sa.Text, nullable=False),
    Column("modality", sa.Text, nullable=False),
    Column("crystal_threshold", sa.Float, nullable=False),
    Column("synthetic", sa.Boolean, nullable=False),
    Column("registered_at", TIME, nullable=False),
    Column("promoted_at", TIME),
    Column("removed_at", TIME),
    Column("trained_on", sa.Text),
    UniqueConstraint("name", "version"),
)

Table(
    "model_alias",
    METADATA,
    Column("alias", sa.Text, primary_key=True),
    _ref("model_version_id", "model_version"),
    Column("set_at", TIME, nullable=False),
)

Table(
    "job",
    METADATA,
    _key(),
    _ref("image_id", "image"),
    _ref("model_version_id", "model_version"),
    Column("priority", sa.Integer, nullable=False),
    Column("available_at", TIME, nullable=False),
    Column("attempts", sa.Integer, nullable=False),
    Column("lease", sa.Text),
    Column("error", sa.Text),
    Column("failed_at", TIME),
    Column("enqueued_at", TIME, nullable=False),
    Column("lapsed", sa.Boolean),
    UniqueConstraint("image_id", "model_version_id"),
    _index("ix_job_failed", "failed_at", where="failed_at is not null"),
    _index("ix_job_leased", "available_at", where="lease is not null"),
    _index("ix_job_next", "priority", "available_at", "id", where="failed_at is null"),
    _index("ix_job_next_of_version", "model_version_id", "priority", "available_at", "id", where="failed_at is null"),
)

Table(
    "score",
    METADATA,
    _key(),
    _ref("image_id", "image"),
    _ref("model_version_id", "model_version"),
    Column("content_hash", sa.Text, nullable=False),
    Column("p_clear", sa.Float, nullable=False),
    Column("p_crystals", sa.Float, nullable=False),
    Column("p_other", sa.Float, nullable=False),
    Column("p_precipitate", sa.Float, nullable=False),
    Column("label", sa.Text, nullable=False),
    Column("vector", sa.JSON),
    Column("scored_at", TIME, nullable=False),
    Column("brightness", sa.Float),
    Column("contrast", sa.Float),
    Column("focus", sa.Float),
    UniqueConstraint("image_id", "model_version_id", "content_hash"),
    Index("ix_score_model_version_id", "model_version_id", "id"),
)

Table(
    "label",
    METADATA,
    _key(),
    _ref("drop_id", "drop", index=True),
    _ref("inspection_id", "inspection", index=True),
    Column("image_id", BIG, ForeignKey("image.id"), index=True),
    Column("label", sa.Text),
    Column("original", sa.Text, nullable=False),
    Column("vocabulary", sa.Text, nullable=False),
    Column("person", sa.Text, nullable=False),
    Column("origin", sa.Text, nullable=False),
    Column("labelled_at", TIME, nullable=False),
    Column("recorded_at", TIME, nullable=False, index=True),
    Column("key", sa.Text, nullable=False, unique=True),
)

Table(
    "label_inbox",
    METADATA,
    _key(),
    Column("source", sa.Text),
    Column("plate", sa.Text),
    Column("well", sa.Text),
    Column("drop_number", sa.Integer),
    Column("inspection", sa.Text),
    Column("label", sa.Text),
    Column("person", sa.Text),
    Column("labelled_at", TIME),
    Column("received_at", TIME, nullable=False, server_default=sa.func.current_timestamp()),
    Column("state", sa.Text, nullable=False, server_default="waiting"),
    Column("reason", sa.Text),
    Column("tried_at", TIME),
    Column("label_id", BIG, ForeignKey("label.id")),
    Index("ix_label_inbox_state_tried_at", "state", "tried_at"),
)

Table(
    "inspection_summary",
    METADATA,
    Column("inspection_id", BIG, ForeignKey("inspection.id"), primary_key=True),
    Column("model_version_id", BIG, ForeignKey("model_version.id"), primary_key=True),
    Column("n_clear", sa.Integer, nullable=False),
    Column("n_crystals", sa.Integer, nullable=False),
    Column("n_other", sa.Integer, nullable=False),
    Column("n_precipitate", sa.Integer, nullable=False),
    Column("hits", sa.Integer, nullable=False),
    Column("best_wells", sa.Text, nullable=False),
    Column("expected", sa.Integer),
    Column("seen", sa.Integer, nullable=False),
    Column("scored", sa.Integer, nullable=False),
    Column("failed", sa.Integer, nullable=False),
    Column("complete", sa.Boolean, nullable=False),
    Column("complete_rule", sa.Text),
    Column("first_image_at", TIME),
    Column("last_image_at", TIME, index=True),
    Column("updated_at", TIME, nullable=False),
    Column("labelled", sa.Integer, nullable=False, server_default="0"),
    Column("waiting", sa.Integer, nullable=False, server_default="0"),
    Column("gone", sa.Integer, nullable=False, server_default="0"),
    _index("ix_inspection_summary_open", "last_image_at", where="not complete and waiting = 0"),
)

Table(
    "drop_summary",
    METADATA,
    Column("drop_id", BIG, ForeignKey("drop.id"), primary_key=True),
    Column("model_version_id", BIG, ForeignKey("model_version.id"), primary_key=True),
    Column("inspections", sa.Integer, nullable=False),
    Column("scored_inspections", sa.Integer, nullable=False),
    Column("inspection_id", BIG, nullable=False),
    Column("image_id", BIG, nullable=False),
    Column("p_clear", sa.Float),
    Column("p_crystals", sa.Float),
    Column("p_other", sa.Float),
    Column("p_precipitate", sa.Float),
    Column("label", sa.Text),
    Column("label_person", sa.Text),
    Column("label_disputed", sa.Boolean, nullable=False),
    Column("highest_p_crystals", sa.Float),
    Column("best_image_id", BIG),
    Column("hit", sa.Boolean, nullable=False),
    Column("first_hit_inspection_id", BIG),
    Column("first_hit_image_id", BIG),
    Column("trend", sa.Text, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("score_version_id", BIG),
)

Table(
    "hit",
    METADATA,
    _key(),
    _ref("drop_id", "drop"),
    _ref("inspection_id", "inspection", index=True),
    _ref("image_id", "image", index=True),
    _ref("model_version_id", "model_version"),
    Column("p_crystals", sa.Float, nullable=False),
    Column("threshold", sa.Float, nullable=False),
    Column("found_at", TIME, nullable=False, index=True),
    Column("cause", sa.Text, nullable=False, server_default="new"),
    Column("score_version_id", BIG),
    Column("ended_at", TIME),
    UniqueConstraint("drop_id", "model_version_id"),
)

Table(
    "review_round",
    METADATA,
    _key(),
    _ref("model_version_id", "model_version"),
    Column("threshold", sa.Float, nullable=False),
    Column("strata", sa.JSON, nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("drawn_at", TIME, nullable=False),
)

Table(
    "review_item",
    METADATA,
    _key(),
    _ref("drop_id", "drop"),
    _ref("inspection_id", "inspection", index=True),
    _ref("image_id", "image", index=True),
    Column("stream", sa.Text, nullable=False),
    Column("reason", sa.Text, nullable=False),
    _ref("model_version_id", "model_version"),
    Column("p_crystals", sa.Float),
    Column("round_id", BIG, ForeignKey("review_round.id"), index=True),
    Column("stratum", sa.Integer),
    Column("inclusion", sa.Float),
    Column("rank", sa.Float, nullable=False),
    Column("proposed_at", TIME, nullable=False),
    Column("person", sa.Text),
    Column("shown_at", TIME),
    Column("answer", sa.Text),
    Column("answered_at", TIME),
    UniqueConstraint("drop_id", "inspection_id", "stream"),
    _index("ix_review_item_open", "stream", "rank", "id", where="answered_at is null"),
)

Table(
    "dataset",
    METADATA,
    _key(),
    Column("digest", sa.Text, nullable=False, unique=True),
    Column("gate_digest", sa.Text, nullable=False, index=True),
    Column("last_label_id", BIG),
    Column("images", sa.Integer, nullable=False),
    Column("drops", sa.Integer, nullable=False),
    Column("crystals", sa.Integer, nullable=False),
    Column("missing", sa.Integer, nullable=False),
    Column("changed", sa.Integer, nullable=False),
    Column("counts", sa.JSON, nullable=False),
    Column("taken_at", TIME, nullable=False),
)

Table(
    "training_run",
    METADATA,
    _key(),
    Column("active", sa.Boolean, unique=True),
    Column("state", sa.Text, nullable=False),
    Column("cause", sa.Text, nullable=False),
    Column("actor", sa.Text, nullable=False),
    Column("recipe", sa.Text, nullable=False),
    Column("options", sa.JSON, nullable=False),
    Column("parent", sa.Text),
    Column("dataset_id", BIG, ForeignKey("dataset.id"), index=True),
    Column("tier", sa.Text),
    Column("candidate", sa.Text),
    Column("candidate_digest", sa.Text, index=True),
    Column("folder", sa.Text, nullable=False),
    Column("host", sa.Text, nullable=False),
    Column("pid", sa.Integer, nullable=False),
    Column("token", sa.Text, nullable=False),
    Column("step", sa.Text),
    Column("reasons", sa.JSON),
    Column("numbers", sa.JSON),
    Column("error", sa.Text),
    Column("started_at", TIME, nullable=False),
    Column("beat_at", TIME, nullable=False),
    Column("ended_at", TIME),
)

Table(
    "drift_reference",
    METADATA,
    _key(),
    _ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    _ref("model_version_id", "model_version"),
    Column("images", sa.Integer, nullable=False),
    Column("statistics", sa.JSON, nullable=False),
    Column("first_at", TIME, nullable=False),
    Column("last_at", TIME, nullable=False),
    Column("made_at", TIME, nullable=False),
    UniqueConstraint("source_id", "modality", "model_version_id"),
)

Table(
    "drift_day",
    METADATA,
    _key(),
    _ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    _ref("model_version_id", "model_version"),
    Column("day", sa.Date, nullable=False),
    Column("images", sa.Integer, nullable=False),
    Column("failures", sa.Integer, nullable=False),
    Column("statistics", sa.JSON, nullable=False),
    Column("made_at", TIME, nullable=False),
    UniqueConstraint("source_id", "modality", "model_version_id", "day"),
)

Table(
    "drift_alarm",
    METADATA,
    _key(),
    _ref("source_id", "source"),
    Column("modality", sa.Text, nullable=False),
    _ref("model_version_id", "model_version"),
    Column("signal", sa.Text, nullable=False),
    Column("day", sa.Date, nullable=False),
    Column("value", sa.Float),
    Column("reference", sa.Float),
    Column("p_value", sa.Float, nullable=False),
    Column("detail", sa.Text, nullable=False),
    Column("raised_at", TIME, nullable=False),
    Column("cleared_at", TIME),
    UniqueConstraint("source_id", "modality", "model_version_id", "signal", "day"),
)

Table(
    "event",
    METADATA,
    _key(),
    Column("kind", sa.Text, nullable=False),
    Column("subject", sa.Text, nullable=False, unique=True),
    Column("source_id", BIG, ForeignKey("source.id")),
    Column("project", sa.Text),
    Column("detail", sa.JSON, nullable=False),
    Column("happened_at", TIME, nullable=False, index=True),
    Column("dispatched_at", TIME),
    _index("ix_event_untold", "id", where="dispatched_at is null"),
)

Table(
    "delivery",
    METADATA,
    _key(),
    _ref("event_id", "event"),
    Column("target", sa.Text, nullable=False),
    Column("message", sa.Text, index=True),
    Column("attempts", sa.Integer, nullable=False),
    Column("available_at", TIME, nullable=False),
    Column("lease", sa.Text),
    Column("sent_at", TIME),
    Column("failed_at", TIME),
    Column("error", sa.Text),
    UniqueConstraint("event_id", "target"),
    _index("ix_delivery_unsent", "target", "available_at", where="sent_at is null and failed_at is null"),
)

Table(
    "schema_mark",
    METADATA,
    Column("id", sa.Integer, primary_key=True),
    Column("oldest_revision", sa.Text, nullable=False),
)
