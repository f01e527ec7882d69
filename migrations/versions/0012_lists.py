"""Indexes of the page's lists: the best hits, what is not complete, the plates of a project."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
additive = True

INDEXES = (
    ("ix_drop_summary_hits", "drop_summary", ["highest_p_crystals", "drop_id"], "first_hit_inspection_id is not null"),
    ("ix_inspection_summary_unfinished", "inspection_summary", ["inspection_id"], "not complete"),
    ("ix_plate_project", "plate", ["project"], None),
)


def upgrade() -> None:
    for name, table, columns, condition in INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, _, _ in reversed(INDEXES):
        op.drop_index(name, table)
