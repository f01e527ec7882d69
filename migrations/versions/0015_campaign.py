"""Campaigns: an archive that is scored again in ranges of inspections instead of a job for every image."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, ForeignKey, Index, Table

revision = "0015"
down_revision = "0014"
additive = True

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
for name in ("model_version", "source"):
    Table(name, METADATA, Column("id", BIG, primary_key=True))


def _required(kind: type[sa.types.TypeEngine] | sa.types.TypeEngine, *names: str) -> list[Column]:
    return [Column(name, kind, nullable=False) for name in names]


OPEN = sa.text("ended_at is null")
CAMPAIGN = Table(
    "campaign",
    METADATA,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("model_version_id", BIG, ForeignKey("model_version.id"), nullable=False, index=True),
    Column("source_id", BIG, ForeignKey("source.id")),
    Column("since", TIME),
    *_required(sa.Text, "state", "actor"),
    Column("created_at", TIME, nullable=False),
    Column("ended_at", TIME),
    *_required(sa.BigInteger, "images", "done", "scored"),
    Index("ix_campaign_open", "id", sqlite_where=OPEN, postgresql_where=OPEN),
)

CAMPAIGN_RANGE = Table(
    "campaign_range",
    METADATA,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("campaign_id", BIG, ForeignKey("campaign.id"), nullable=False),
    *_required(BIG, "first_inspection_id", "last_inspection_id", "mark_inspection_id", "mark_image_id"),
    *_required(sa.Integer, "images", "done", "scored"),
    Column("lease", sa.Text),
    Column("error", sa.Text),
    Column("available_at", TIME),
    *_required(sa.Integer, "lapses", "pauses"),
    Index("ix_campaign_range_campaign_id", "campaign_id", "id"),
)
NEW = (CAMPAIGN, CAMPAIGN_RANGE)


def upgrade() -> None:
    METADATA.create_all(op.get_bind(), NEW, checkfirst=False)


def downgrade() -> None:
    METADATA.drop_all(op.get_bind(), NEW, checkfirst=False)
