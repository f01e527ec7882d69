"""The engine that gave a score; null in scores of before, which TensorFlow gave, or another backend of Keras."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
additive = True

FOLDER = Path(__file__).resolve().parent.parent / "views"
VIEW = "lims_image_score_v1"


def upgrade() -> None:
    op.add_column("score", sa.Column("engine", sa.Text))
    statement = (FOLDER / f"{VIEW}.0013.sql").read_text(encoding="utf-8")
    # PostgreSQL puts it in its place, since views of a LIMS may stand on it; SQLite cannot, and does not mind.
    if op.get_bind().dialect.name == "postgresql":
        statement = statement.replace("create view", "create or replace view", 1)
    else:
        op.execute(sa.text(f"drop view {VIEW}"))
    op.execute(sa.text(statement))


def downgrade() -> None:
    op.execute(sa.text(f"drop view {VIEW}"))
    op.drop_column("score", "engine")
    op.execute(sa.text((FOLDER / f"{VIEW}.sql").read_text(encoding="utf-8")))
