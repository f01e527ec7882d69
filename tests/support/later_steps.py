"""Steps of the schema after the newest one, written into a folder of steps: two that only add, one that renames."""

import shutil
from pathlib import Path

from marcod.database import revisions

NEWEST = revisions.known().newest
ADDING, BREAKING, LAST = "9001", "9002", "9003"

ADDS = f'''
"""Adds a table, columns and an index, and shows one of them."""
import sqlalchemy as sa
from alembic import op
from pathlib import Path

revision = "{ADDING}"
down_revision = "{NEWEST}"
additive = True
VIEW = Path(__file__).parent.parent / "views" / "lims_hit_v2.sql"

def upgrade():
    op.create_table("robot", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("score", sa.Column("sharpness", sa.Float()))
    op.add_column("image", sa.Column("robot_id", sa.Integer()))
    op.add_column("worker", sa.Column("gpu", sa.Text()))
    op.add_column("job", sa.Column("weight", sa.Float(), nullable=False, server_default="1"))
    op.create_index("ix_score_sharpness", "score", ["sharpness"])
    op.execute(sa.text(VIEW.read_text(encoding="utf-8")))

def downgrade():
    op.execute(sa.text("drop view lims_hit_v2"))
    op.drop_index("ix_score_sharpness", "score")
    op.drop_table("robot")
    for table, column in (("score", "sharpness"), ("image", "robot_id"), ("worker", "gpu"), ("job", "weight")):
        op.drop_column(table, column)
'''
BREAKS = f'''
"""Another name for what everybody uses."""
from alembic import op

revision = "{BREAKING}"
down_revision = "{ADDING}"

def upgrade():
    op.alter_column("hit", "cause", new_column_name="reason")

def downgrade():
    op.alter_column("hit", "reason", new_column_name="cause")
'''
ADDS_MORE = f'''
"""Adds once more."""
import sqlalchemy as sa
from alembic import op

revision = "{LAST}"
down_revision = "{BREAKING}"
additive = True

def upgrade():
    op.add_column("plate", sa.Column("shelf", sa.Text()))

def downgrade():
    op.drop_column("plate", "shelf")
'''


def write(scripts: Path) -> Path:
    """Write marcod's own steps and the later ones into a folder."""
    shutil.copytree(revisions.folder(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    for revision, text in ((ADDING, ADDS), (BREAKING, BREAKS), (LAST, ADDS_MORE)):
        (scripts / "versions" / f"{revision}_later.py").write_text(text, encoding="utf-8")
    view = "create view lims_hit_v2 as select hit.id as hit_id, score.sharpness as sharpness from hit"
    joined = " join score on score.image_id = hit.image_id and score.model_version_id = hit.model_version_id"
    (scripts / "views" / "lims_hit_v2.sql").write_text(view + joined, encoding="utf-8")
    return scripts
