"""Versions side by side: which were ever champion, which are gone from disk; and what people say of drops.

A plate's summary is answered by a version that is or was champion, so a challenger's scores never reach it.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
SUMMARY = "lims_plate_summary_v1"
VIEWS = Path(__file__).resolve().parent.parent / "views"


def upgrade() -> None:
    op.execute(sa.text(f"drop view {SUMMARY}"))
    op.add_column("model_version", sa.Column("promoted_at", TIME))
    op.add_column("model_version", sa.Column("removed_at", TIME))
    op.execute(
        sa.text(
            "update model_version set promoted_at = (select max(audit.at) from audit where audit.action = 'promote'"
            " and audit.subject = model_version.name || ':' || model_version.version)"
        )
    )
    _label()
    op.execute(sa.text((VIEWS / f"{SUMMARY}.{revision}.sql").read_text(encoding="utf-8")))


def downgrade() -> None:
    op.execute(sa.text(f"drop view {SUMMARY}"))
    op.drop_table("label")
    op.drop_column("model_version", "removed_at")
    op.drop_column("model_version", "promoted_at")
    op.execute(sa.text((VIEWS / f"{SUMMARY}.sql").read_text(encoding="utf-8")))


def _label() -> None:
    op.create_table(
        "label",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("drop_id", BIG, nullable=False),
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("image_id", BIG),
        sa.Column("label", sa.Text()),
        sa.Column("original", sa.Text(), nullable=False),
        sa.Column("vocabulary", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("labelled_at", TIME, nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_label"),
        sa.ForeignKeyConstraint(["drop_id"], ["drop.id"], name="fk_label_drop_id_drop"),
        sa.ForeignKeyConstraint(["inspection_id"], ["inspection.id"], name="fk_label_inspection_id_inspection"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_label_image_id_image"),
        sa.UniqueConstraint("key", name="uq_label_key"),
    )
    op.create_index("ix_label_drop_id", "label", ["drop_id"])
    op.create_index("ix_label_inspection_id", "label", ["inspection_id"])
    op.create_index("ix_label_recorded_at", "label", ["recorded_at"])
