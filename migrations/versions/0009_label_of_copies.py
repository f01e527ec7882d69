"""Of a person's labels of an image and of its copies, the latest counts in `lims_label_v1` too.

A folder that moved gives its images a second path. Labels of both paths are labels of one image.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
additive = True

FOLDER = Path(__file__).resolve().parent.parent / "views"


def upgrade() -> None:
    _define("lims_label_v1.0009")


def downgrade() -> None:
    _define("lims_label_v1")


def _define(name: str) -> None:
    op.execute(sa.text("drop view lims_label_v1"))
    op.execute(sa.text((FOLDER / f"{name}.sql").read_text(encoding="utf-8")))
