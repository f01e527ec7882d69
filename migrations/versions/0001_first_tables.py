"""The first tables and views.

A step stands for itself: it names every column again and imports nothing of the live schema.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

VIEWS = ("lims_image_score_v1", "lims_plate_summary_v1")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    for create in TABLES:
        create()
    folder = Path(__file__).resolve().parent.parent / "views"
    for view in VIEWS:
        op.execute(sa.text((folder / f"{view}.sql").read_text(encoding="utf-8")))


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(sa.text(f"drop view {view}"))
    for create in reversed(TABLES):
        op.drop_table(create.__name__.removeprefix("_"))


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON()),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])


def _model_version() -> None:
    op.create_table(
        "model_version",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("crystal_threshold", sa.Float(), nullable=False),
        sa.Column("synthetic", sa.Boolean(), nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_version"),
        sa.UniqueConstraint("name", "version", name="uq_model_version_name_version"),
    )


def _source() -> None:
    op.create_table(
        "source",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("layout", sa.Text(), nullable=False),
        sa.Column("reading", sa.Text(), nullable=False),
        sa.Column("expected_drops", sa.Integer()),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_source"),
        sa.UniqueConstraint("name", name="uq_source_name"),
    )


def _worker() -> None:
    op.create_table(
        "worker",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("marcod_version", sa.Text(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_worker"),
    )
    op.create_index("ix_worker_seen_at", "worker", ["seen_at"])


def _model_alias() -> None:
    op.create_table(
        "model_alias",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_model_alias"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_model_alias_model_version_id_model_version"
        ),
    )


def _plate() -> None:
    op.create_table(
        "plate",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("barcode", sa.Text()),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_plate"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_plate_source_id_source"),
        sa.UniqueConstraint("source_id", "key", name="uq_plate_source_id_key"),
    )
    op.create_index("ix_plate_barcode", "plate", ["barcode"])


def _drop() -> None:
    op.create_table(
        "drop",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("plate_id", BIG, nullable=False),
        sa.Column("well", sa.Text(), nullable=False),
        sa.Column("well_row", sa.Integer(), nullable=False),
        sa.Column("well_column", sa.Integer(), nullable=False),
        sa.Column("drop_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drop"),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name="fk_drop_plate_id_plate"),
        sa.UniqueConstraint(
            "plate_id",
            "well_row",
            "well_column",
            "drop_number",
            name="uq_drop_plate_id_well_row_well_column_drop_number",
        ),
    )


def _inspection() -> None:
    op.create_table(
        "inspection",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("plate_id", BIG, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer()),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_inspection"),
        sa.ForeignKeyConstraint(["plate_id"], ["plate.id"], name="fk_inspection_plate_id_plate"),
        sa.UniqueConstraint("plate_id", "key", name="uq_inspection_plate_id_key"),
    )


def _image() -> None:
    op.create_table(
        "image",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("drop_id", BIG, nullable=False),
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text()),
        sa.Column("region", sa.BigInteger()),
        sa.Column("captured_at", TIME),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.Text()),
        sa.Column("seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_image"),
        sa.ForeignKeyConstraint(["drop_id"], ["drop.id"], name="fk_image_drop_id_drop"),
        sa.ForeignKeyConstraint(["inspection_id"], ["inspection.id"], name="fk_image_inspection_id_inspection"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_image_source_id_source"),
        sa.UniqueConstraint("source_id", "path", name="uq_image_source_id_path"),
    )
    op.create_index("ix_image_drop_id", "image", ["drop_id"])
    op.create_index("ix_image_inspection_id", "image", ["inspection_id"])


def _inspection_summary() -> None:
    op.create_table(
        "inspection_summary",
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("n_clear", sa.Integer(), nullable=False),
        sa.Column("n_crystals", sa.Integer(), nullable=False),
        sa.Column("n_other", sa.Integer(), nullable=False),
        sa.Column("n_precipitate", sa.Integer(), nullable=False),
        sa.Column("hits", sa.Integer(), nullable=False),
        sa.Column("best_wells", sa.Text(), nullable=False),
        sa.Column("expected", sa.Integer()),
        sa.Column("seen", sa.Integer(), nullable=False),
        sa.Column("scored", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("complete_rule", sa.Text()),
        sa.Column("first_image_at", TIME),
        sa.Column("last_image_at", TIME),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("inspection_id", "model_version_id", name="pk_inspection_summary"),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspection.id"], name="fk_inspection_summary_inspection_id_inspection"
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_version.id"],
            name="fk_inspection_summary_model_version_id_model_version",
        ),
    )
    op.create_index(
        "ix_inspection_summary_open",
        "inspection_summary",
        ["last_image_at"],
        sqlite_where=sa.text("not complete"),
        postgresql_where=sa.text("not complete"),
    )


def _hit() -> None:
    op.create_table(
        "hit",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("drop_id", BIG, nullable=False),
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("image_id", BIG, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("p_crystals", sa.Float(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("found_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hit"),
        sa.ForeignKeyConstraint(["drop_id"], ["drop.id"], name="fk_hit_drop_id_drop"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_hit_image_id_image"),
        sa.ForeignKeyConstraint(["inspection_id"], ["inspection.id"], name="fk_hit_inspection_id_inspection"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_hit_model_version_id_model_version"
        ),
        sa.UniqueConstraint("drop_id", "model_version_id", name="uq_hit_drop_id_model_version_id"),
    )
    op.create_index("ix_hit_found_at", "hit", ["found_at"])
    op.create_index("ix_hit_inspection_id", "hit", ["inspection_id"])


def _job() -> None:
    op.create_table(
        "job",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("image_id", BIG, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("available_at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("failed_at", TIME),
        sa.Column("enqueued_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_job_image_id_image"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_job_model_version_id_model_version"
        ),
        sa.UniqueConstraint("image_id", "model_version_id", name="uq_job_image_id_model_version_id"),
    )
    op.create_index(
        "ix_job_failed",
        "job",
        ["failed_at"],
        sqlite_where=sa.text("failed_at is not null"),
        postgresql_where=sa.text("failed_at is not null"),
    )
    op.create_index(
        "ix_job_leased",
        "job",
        ["available_at"],
        sqlite_where=sa.text("lease is not null"),
        postgresql_where=sa.text("lease is not null"),
    )
    op.create_index(
        "ix_job_next",
        "job",
        ["priority", "available_at", "id"],
        sqlite_where=sa.text("failed_at is null"),
        postgresql_where=sa.text("failed_at is null"),
    )
    op.create_index(
        "ix_job_next_of_version",
        "job",
        ["model_version_id", "priority", "available_at", "id"],
        sqlite_where=sa.text("failed_at is null"),
        postgresql_where=sa.text("failed_at is null"),
    )


def _score() -> None:
    op.create_table(
        "score",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("image_id", BIG, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("p_clear", sa.Float(), nullable=False),
        sa.Column("p_crystals", sa.Float(), nullable=False),
        sa.Column("p_other", sa.Float(), nullable=False),
        sa.Column("p_precipitate", sa.Float(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("vector", sa.JSON()),
        sa.Column("scored_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_score"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_score_image_id_image"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_score_model_version_id_model_version"
        ),
        sa.UniqueConstraint(
            "image_id",
            "model_version_id",
            "content_hash",
            name="uq_score_image_id_model_version_id_content_hash",
        ),
    )


TABLES = (
    _audit,
    _model_version,
    _source,
    _worker,
    _model_alias,
    _plate,
    _drop,
    _inspection,
    _image,
    _inspection_summary,
    _hit,
    _job,
    _score,
)
