"""Right under every order of events: bytes not read yet, files gone for good, and one rule for the version that speaks.

``image.unread`` says that a file changed after ``content_hash`` was taken. ``image.gone_at`` says that the file is gone
for good; ``gone_score_id`` is the score that goes on counting for it. ``image.same_as_id`` names the image that counts
instead of one with the same bytes of the same drop and inspection. A marcod of the step before knows none of this.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
additive = False

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
FOLDER = Path(__file__).resolve().parent.parent / "views"
RULES = ("speaking_version", "speaking_drop", "speaking_inspection")
REDEFINED = ("lims_drop_v1", "lims_hit_v1", "lims_plate_summary_v1", "lims_image_score_v1")
BEFORE = {
    "lims_drop_v1": "lims_drop_v1",
    "lims_hit_v1": "lims_hit_v1",
    "lims_plate_summary_v1": "lims_plate_summary_v1.0006",
    "lims_image_score_v1": "lims_image_score_v1.0003",
}
GONE = "the file is gone"
OPEN_BEFORE = sa.text("not complete")
OPEN = sa.text("not complete and waiting = 0")


def upgrade() -> None:
    for view in reversed(REDEFINED):
        op.execute(sa.text(f"drop view {view}"))
    op.add_column("image", sa.Column("unread", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("image", sa.Column("gone_at", TIME))
    op.add_column("image", sa.Column("gone_score_id", BIG))
    op.add_column("image", sa.Column("gone_accepted", sa.Boolean()))
    op.add_column("image", sa.Column("same_as_id", BIG))
    for column in ("waiting", "gone"):
        op.add_column("inspection_summary", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("drop_summary", sa.Column("score_version_id", BIG))
    op.add_column("hit", sa.Column("score_version_id", BIG))
    op.add_column("hit", sa.Column("ended_at", TIME))
    gone = sa.text("gone_at is not null")
    op.create_index("ix_image_gone_at", "image", ["gone_at"], sqlite_where=gone, postgresql_where=gone)
    same = sa.text("same_as_id is not null")
    op.create_index("ix_image_same_as_id", "image", ["same_as_id"], sqlite_where=same, postgresql_where=same)
    op.drop_index("ix_inspection_summary_open", "inspection_summary")
    op.create_index(
        "ix_inspection_summary_open", "inspection_summary", ["last_image_at"],
        sqlite_where=OPEN, postgresql_where=OPEN,
    )  # fmt: skip
    _mark_gone()
    _count_waiting()
    _end_hits()
    for view in (*RULES, *REDEFINED):
        file = FOLDER / (f"{view}.sql" if view in RULES else f"{view}.{revision}.sql")
        op.execute(sa.text(file.read_text(encoding="utf-8")))


def downgrade() -> None:
    for view in (*reversed(REDEFINED), *reversed(RULES)):
        op.execute(sa.text(f"drop view {view}"))
    op.drop_index("ix_inspection_summary_open", "inspection_summary")
    op.create_index(
        "ix_inspection_summary_open", "inspection_summary", ["last_image_at"],
        sqlite_where=OPEN_BEFORE, postgresql_where=OPEN_BEFORE,
    )  # fmt: skip
    op.drop_index("ix_image_same_as_id", "image")
    op.drop_index("ix_image_gone_at", "image")
    op.drop_column("hit", "ended_at")
    op.drop_column("hit", "score_version_id")
    op.drop_column("drop_summary", "score_version_id")
    for column in ("gone", "waiting"):
        op.drop_column("inspection_summary", column)
    for column in ("same_as_id", "gone_accepted", "gone_score_id", "gone_at", "unread"):
        op.drop_column("image", column)
    for view in reversed(REDEFINED):
        op.execute(sa.text((FOLDER / f"{BEFORE[view]}.sql").read_text(encoding="utf-8")))


def _mark_gone() -> None:
    """Images that were given up because their file was gone are gone; the last champion's score goes on counting."""
    op.execute(
        sa.text(
            "update image set gone_at = (select max(job.failed_at) from job where job.image_id = image.id"
            " and job.failed_at is not null and job.error = :gone) where id in"
            " (select image_id from job where failed_at is not null and error = :gone)"
        ).bindparams(gone=GONE)
    )
    op.execute(
        sa.text(
            "update image set gone_score_id = (select score.id from score"
            " join model_version on model_version.id = score.model_version_id"
            " where score.image_id = image.id and score.content_hash = image.content_hash"
            " and model_version.promoted_at is not null"
            " order by model_version.promoted_at desc, score.id desc limit 1) where gone_at is not null"
        )
    )
    op.execute(sa.text("delete from job where failed_at is not null and error = :gone").bindparams(gone=GONE))


def _count_waiting() -> None:
    """Rows that are not complete are counted again by the periodic work; until then they count as waiting."""
    op.execute(sa.text("update inspection_summary set waiting = 1 where not complete and scored + failed < seen"))


def _end_hits() -> None:
    """A hit whose drop has no hit any more ended when its row was written last."""
    op.execute(
        sa.text(
            "update hit set ended_at = (select updated_at from drop_summary where drop_summary.drop_id = hit.drop_id"
            " and drop_summary.model_version_id = hit.model_version_id"
            " and drop_summary.first_hit_inspection_id is null)"
        )
    )
