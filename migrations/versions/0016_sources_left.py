"""Sources that a worker leaves to other hosts, by name, with the reason; null where it never said so."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
additive = True


def upgrade() -> None:
    op.add_column("worker", sa.Column("left_to_others", sa.JSON))


def downgrade() -> None:
    op.drop_column("worker", "left_to_others")
