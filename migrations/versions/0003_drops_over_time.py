"""Drops over time, what people say of them in the verdict, plates by their papers, and the LIMS's inbox.

Rows that were there before are carried on: `marcod db upgrade` fills the new columns from what is known.
"""

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
FOLDER = Path(__file__).resolve().parent.parent / "views"
SUMMARY = "lims_plate_summary_v1"
SCORES = "lims_image_score_v1"
NEW_VIEWS = ("lims_drop_v1", "lims_hit_v1", "lims_label_inbox_v1", "lims_label_v1", "lims_image_failure_v1")
PLATE_COLUMNS = (
    ("project", sa.Text),
    ("screen", sa.Text),
    ("format_rows", sa.Integer),
    ("format_columns", sa.Integer),
    ("format_drops", sa.Integer),
)
INBOX_TRIGGER = """
create trigger label_inbox_by_view instead of insert on lims_label_inbox_v1
begin
    insert into label_inbox (source, plate, well, drop_number, inspection, label, person, labelled_at)
    values (new.source, new.plate, new.well, new.drop_number, new.inspection, new.label, new.person, new.labelled_at);
end
"""


def upgrade() -> None:
    for view in (SUMMARY, SCORES):
        op.execute(sa.text(f"drop view {view}"))
    for name, kind in PLATE_COLUMNS:
        op.add_column("plate", sa.Column(name, kind()))
    op.add_column("inspection", sa.Column("order_key", sa.Text()))
    op.add_column("hit", sa.Column("cause", sa.Text(), nullable=False, server_default="new"))
    op.add_column("inspection_summary", sa.Column("labelled", sa.Integer(), nullable=False, server_default="0"))
    _order_inspections()
    _drop_summary()
    _label_inbox()
    op.create_index("ix_inspection_summary_last_image_at", "inspection_summary", ["last_image_at"])
    for view in (f"{SCORES}.{revision}", f"{SUMMARY}.{revision}", *NEW_VIEWS):
        op.execute(sa.text((FOLDER / f"{view}.sql").read_text(encoding="utf-8")))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(sa.text(INBOX_TRIGGER))


def downgrade() -> None:
    for view in (*reversed(NEW_VIEWS), SUMMARY, SCORES):
        op.execute(sa.text(f"drop view {view}"))
    op.drop_index("ix_inspection_summary_last_image_at", "inspection_summary")
    op.drop_table("label_inbox")
    op.drop_table("drop_summary")
    op.drop_column("inspection_summary", "labelled")
    op.drop_column("hit", "cause")
    op.drop_column("inspection", "order_key")
    for name, _ in reversed(PLATE_COLUMNS):
        op.drop_column("plate", name)
    for view in (f"{SUMMARY}.0002", SCORES):
        op.execute(sa.text((FOLDER / f"{view}.sql").read_text(encoding="utf-8")))


def _order_inspections() -> None:
    """The order of a plate's inspections: by their number, else by their key with its numbers read as numbers."""
    table = sa.table("inspection", sa.column("id"), sa.column("key"), sa.column("ordinal"), sa.column("order_key"))
    connection = op.get_bind()
    rows = connection.execute(sa.select(table.c.id, table.c.key, table.c.ordinal)).all()
    for number, key, ordinal in rows:
        text = re.sub(r"\d+", lambda found: found[0].zfill(20), key if ordinal is None else str(ordinal))
        connection.execute(sa.update(table).where(table.c.id == number).values(order_key=text))


def _drop_summary() -> None:
    op.create_table(
        "drop_summary",
        sa.Column("drop_id", BIG, nullable=False),
        sa.Column("model_version_id", BIG, nullable=False),
        sa.Column("inspections", sa.Integer(), nullable=False),
        sa.Column("scored_inspections", sa.Integer(), nullable=False),
        sa.Column("inspection_id", BIG, nullable=False),
        sa.Column("image_id", BIG, nullable=False),
        sa.Column("p_clear", sa.Float()),
        sa.Column("p_crystals", sa.Float()),
        sa.Column("p_other", sa.Float()),
        sa.Column("p_precipitate", sa.Float()),
        sa.Column("label", sa.Text()),
        sa.Column("label_person", sa.Text()),
        sa.Column("label_disputed", sa.Boolean(), nullable=False),
        sa.Column("highest_p_crystals", sa.Float()),
        sa.Column("best_image_id", BIG),
        sa.Column("hit", sa.Boolean(), nullable=False),
        sa.Column("first_hit_inspection_id", BIG),
        sa.Column("first_hit_image_id", BIG),
        sa.Column("trend", sa.Text(), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("drop_id", "model_version_id", name="pk_drop_summary"),
        *(
            sa.ForeignKeyConstraint([column], [f"{table}.id"], name=f"fk_drop_summary_{column}_{table}")
            for column, table in (
                ("drop_id", "drop"),
                ("model_version_id", "model_version"),
                ("inspection_id", "inspection"),
                ("image_id", "image"),
                ("best_image_id", "image"),
                ("first_hit_inspection_id", "inspection"),
                ("first_hit_image_id", "image"),
            )
        ),
    )


def _label_inbox() -> None:
    op.create_table(
        "label_inbox",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("source", sa.Text()),
        sa.Column("plate", sa.Text()),
        sa.Column("well", sa.Text()),
        sa.Column("drop_number", sa.Integer()),
        sa.Column("inspection", sa.Text()),
        sa.Column("label", sa.Text()),
        sa.Column("person", sa.Text()),
        sa.Column("labelled_at", TIME),
        sa.Column("received_at", TIME, nullable=False, server_default=sa.func.current_timestamp()),
        sa.Column("state", sa.Text(), nullable=False, server_default="waiting"),
        sa.Column("reason", sa.Text()),
        sa.Column("tried_at", TIME),
        sa.Column("label_id", BIG),
        sa.PrimaryKeyConstraint("id", name="pk_label_inbox"),
        sa.ForeignKeyConstraint(["label_id"], ["label.id"], name="fk_label_inbox_label_id_label"),
    )
    op.create_index("ix_label_inbox_state_tried_at", "label_inbox", ["state", "tried_at"])
