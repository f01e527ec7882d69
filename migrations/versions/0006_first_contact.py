"""First contact: where each host finds a source, what a layout could not read or warned of, what a model learned from.

A marcod of the step before takes a source over by the path of its root, so it must not work beside this one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
additive = False

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _trained_on()
    _source_root()
    _source_finding()


def downgrade() -> None:
    op.drop_table("source_finding")
    op.drop_table("source_root")
    op.drop_column("model_version", "trained_on")


def _trained_on() -> None:
    """A version whose weights a training run of this lab made learned from the lab; of others the record told it.

    A run of the tier `recalibrate` leaves the weights as they were. Registering a bundle again corrects the guess.
    """
    op.add_column("model_version", sa.Column("trained_on", sa.Text()))
    op.execute("update model_version set trained_on = case when synthetic then 'rendered' else 'published' end")
    op.execute(
        "update model_version set trained_on = trained_on || ',lab', synthetic = false"
        " where digest in (select candidate_digest from training_run"
        " where candidate_digest is not null and tier <> 'recalibrate')"
    )


def _source_root() -> None:
    op.create_table(
        "source_root",
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("source_id", "host", name="pk_source_root"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_source_root_source_id_source"),
    )
    op.create_index("ix_source_root_host_root", "source_root", ["host", "root"])


def _source_finding() -> None:
    op.create_table(
        "source_finding",
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("example", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text()),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("source_id", "kind", "reason", name="pk_source_finding"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_source_finding_source_id_source"),
    )
