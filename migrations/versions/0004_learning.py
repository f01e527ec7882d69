"""What the learning loop keeps: how a picture looked, what to review, frozen data sets, training runs and drift.

Everything is added: a marcod of the step before works on beside it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
OPEN = sa.text("answered_at is null")
LOOKS = ("brightness", "contrast", "focus")
TABLES = ("review_round", "review_item", "dataset", "training_run", "drift_reference", "drift_day", "drift_alarm")


def upgrade() -> None:
    for name in LOOKS:
        op.add_column("score", sa.Column(name, sa.Float()))
    op.create_index("ix_score_model_version_id", "score", ["model_version_id", "id"])
    _review_round()
    _review_item()
    _dataset()
    _training_run()
    _drift_reference()
    _drift_day()
    _drift_alarm()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_index("ix_score_model_version_id", "score")
    for name in LOOKS:
        op.drop_column("score", name)


def _review_round() -> None:
    op.create_table(
        "review_round",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("strata", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("drawn_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_review_round"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_review_round_model_version_id_model_version"
        ),
    )


def _review_item() -> None:
    op.create_table(
        "review_item",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("drop_id", BIG, nullable=False),
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("image_id", BIG, nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("p_crystals", sa.Float()),
        sa.Column("round_id", BIG),
        sa.Column("stratum", sa.Integer()),
        sa.Column("inclusion", sa.Float()),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("proposed_at", TIME, nullable=False),
        sa.Column("person", sa.Text()),
        sa.Column("shown_at", TIME),
        sa.Column("answer", sa.Text()),
        sa.Column("answered_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_review_item"),
        sa.ForeignKeyConstraint(["drop_id"], ["drop.id"], name="fk_review_item_drop_id_drop"),
        sa.ForeignKeyConstraint(["inspection_id"], ["inspection.id"], name="fk_review_item_inspection_id_inspection"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_review_item_image_id_image"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_review_item_model_version_id_model_version"
        ),
        sa.ForeignKeyConstraint(["round_id"], ["review_round.id"], name="fk_review_item_round_id_review_round"),
        sa.UniqueConstraint("drop_id", "inspection_id", "stream", name="uq_review_item_drop_id_inspection_id_stream"),
    )
    op.create_index(
        "ix_review_item_open", "review_item", ["stream", "rank", "id"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_index("ix_review_item_round_id", "review_item", ["round_id"])


def _dataset() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("gate_digest", sa.Text(), nullable=False),
        sa.Column("last_label_id", BIG),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("drops", sa.Integer(), nullable=False),
        sa.Column("crystals", sa.Integer(), nullable=False),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("taken_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dataset"),
        sa.UniqueConstraint("digest", name="uq_dataset_digest"),
    )
    op.create_index("ix_dataset_gate_digest", "dataset", ["gate_digest"])


def _training_run() -> None:
    op.create_table(
        "training_run",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("active", sa.Boolean()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("parent", sa.Text()),
        sa.Column("dataset_id", BIG),
        sa.Column("tier", sa.Text()),
        sa.Column("candidate", sa.Text()),
        sa.Column("candidate_digest", sa.Text()),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("step", sa.Text()),
        sa.Column("reasons", sa.JSON()),
        sa.Column("numbers", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("beat_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_training_run"),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name="fk_training_run_dataset_id_dataset"),
        sa.UniqueConstraint("active", name="uq_training_run_active"),
    )
    op.create_index("ix_training_run_candidate_digest", "training_run", ["candidate_digest"])
    op.create_index("ix_training_run_dataset_id", "training_run", ["dataset_id"])


def _drift_reference() -> None:
    op.create_table(
        "drift_reference",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.Column("first_at", TIME, nullable=False),
        sa.Column("last_at", TIME, nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift_reference"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_drift_reference_source_id_source"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_drift_reference_model_version_id_model_version"
        ),
        sa.UniqueConstraint(
            "source_id", "modality", "model_version_id", name="uq_drift_reference_source_id_modality_model_version_id"
        ),
    )


def _drift_day() -> None:
    op.create_table(
        "drift_day",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift_day"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_drift_day_source_id_source"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_drift_day_model_version_id_model_version"
        ),
        sa.UniqueConstraint(
            "source_id",
            "modality",
            "model_version_id",
            "day",
            name="uq_drift_day_source_id_modality_model_version_id_day",
        ),
    )


def _drift_alarm() -> None:
    op.create_table(
        "drift_alarm",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("signal", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("value", sa.Float()),
        sa.Column("reference", sa.Float()),
        sa.Column("p_value", sa.Float(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("raised_at", TIME, nullable=False),
        sa.Column("cleared_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_drift_alarm"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_drift_alarm_source_id_source"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_drift_alarm_model_version_id_model_version"
        ),
        sa.UniqueConstraint(
            "source_id",
            "modality",
            "model_version_id",
            "signal",
            "day",
            name="uq_drift_alarm_source_id_modality_model_version_id_signal_day",
        ),
    )
