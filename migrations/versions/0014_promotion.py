"""The version that becomes champion once its plate summaries and drops are worked out; one row at most."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column

revision = "0014"
down_revision = "0013"
additive = True

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "promotion",
        Column("id", sa.Integer, nullable=False),
        Column("model_version_id", BIG, nullable=False),
        Column("actor", sa.Text, nullable=False),
        Column("begun_at", TIME, nullable=False),
        Column("moved_at", TIME, nullable=False),
        Column("last_plate_id", BIG, nullable=False),
        Column("end_plate_id", BIG, nullable=False),
        Column("done", sa.BigInteger, nullable=False),
        Column("plates", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promotion"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name="fk_promotion_model_version_id_model_version"
        ),
    )


def downgrade() -> None:
    op.drop_table("promotion")
