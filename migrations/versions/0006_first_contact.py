"""First contact: where each host finds a source, what a layout could not read or warned of, what a model learned from.

A marcod of the step before takes a source over by the path of its root, so it must not work beside this one.
Images and inspections can be removed from now on, so that every constraint on them needs an index on its column. Of
``drop_summary``, which is worked out from other rows and written with every score, the constraints go instead.
"""

import socket
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
additive = False

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
INDEXES = (
    ("ix_label_image_id", "label", "image_id"),
    ("ix_hit_image_id", "hit", "image_id"),
    ("ix_review_item_image_id", "review_item", "image_id"),
    ("ix_review_item_inspection_id", "review_item", "inspection_id"),
)
KEPT = (("drop_id", "drop"), ("model_version_id", "model_version"))
DROPPED = (
    ("inspection_id", "inspection"),
    ("image_id", "image"),
    ("best_image_id", "image"),
    ("first_hit_inspection_id", "inspection"),
    ("first_hit_image_id", "image"),
)
FOLDER = Path(__file__).resolve().parent.parent / "views"
SUMMARY = "lims_plate_summary_v1"


def upgrade() -> None:
    _trained_on()
    _source_root()
    _source_finding()
    op.add_column("plate", sa.Column("split_source", sa.Text()))
    op.add_column("image", sa.Column("warnings", sa.Text()))
    _loosen_drop_summary()
    for name, table, column in INDEXES:
        op.create_index(name, table, [column])
    _summary_view("0006")


def downgrade() -> None:
    _summary_view("0003")
    for name, table, _ in INDEXES:
        op.drop_index(name, table)
    _tighten_drop_summary()
    op.drop_column("image", "warnings")
    op.drop_column("plate", "split_source")
    op.drop_table("source_finding")
    _root_of_source()
    op.drop_table("source_root")
    op.drop_column("model_version", "trained_on")


def _summary_view(revision_of_view: str) -> None:
    """The view of plate summaries says from which probability its hits count."""
    op.execute(sa.text(f"drop view {SUMMARY}"))
    op.execute(sa.text((FOLDER / f"{SUMMARY}.{revision_of_view}.sql").read_text(encoding="utf-8")))


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
    # SQLite serves one host. On a server the watcher tells where the path is one; else it is most likely here.
    here = sa.literal(socket.gethostname())
    shared = op.get_bind().dialect.name == "postgresql"
    source = sa.table("source", *map(sa.column, ("id", "root", "created_at")))
    watched = sa.table("watch_state", *map(sa.column, ("source_id", "host", "updated_at")))
    host = sa.func.coalesce(watched.c.host, here) if shared else here
    seen_at = sa.func.coalesce(watched.c.updated_at, source.c.created_at)
    found = sa.select(source.c.id, host, source.c.root, seen_at)
    found = found.select_from(source.outerjoin(watched, watched.c.source_id == source.c.id))
    rows = sa.table("source_root", *map(sa.column, ("source_id", "host", "root", "seen_at")))
    op.execute(sa.insert(rows).from_select(["source_id", "host", "root", "seen_at"], found))
    op.drop_column("source", "root")


def _root_of_source() -> None:
    """Give each source back the one root that the step before knows: where it was seen last."""
    op.add_column("source", sa.Column("root", sa.Text(), nullable=False, server_default=""))
    op.execute(
        "update source set root = coalesce((select r.root from source_root r where r.source_id = source.id"
        " order by r.seen_at desc, r.host limit 1), '')"
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("source", "root", server_default=None)


def _loosen_drop_summary() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_drop_summary(constraints=KEPT)
        return
    for column, table in DROPPED:
        op.drop_constraint(f"fk_drop_summary_{column}_{table}", "drop_summary")


def _tighten_drop_summary() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_drop_summary(constraints=(*KEPT, *DROPPED))
        return
    for column, table in DROPPED:
        op.create_foreign_key(f"fk_drop_summary_{column}_{table}", "drop_summary", table, [column], ["id"])


def _rebuild_drop_summary(constraints: tuple[tuple[str, str], ...]) -> None:
    """SQLite takes no constraint off a table. Copied there and back, since it renames no table that views look at."""
    op.execute("create table drop_summary_kept as select * from drop_summary")
    op.drop_table("drop_summary")
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
            for column, table in constraints
        ),
    )
    op.execute("insert into drop_summary select * from drop_summary_kept")
    op.drop_table("drop_summary_kept")


def _source_finding() -> None:
    op.create_table(
        "source_finding",
        sa.Column("source_id", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("of_files", sa.BigInteger(), nullable=False),
        sa.Column("example", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text()),
        sa.Column("hint_files", sa.Integer(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("source_id", "kind", "reason", name="pk_source_finding"),
        sa.ForeignKeyConstraint(["source_id"], ["source.id"], name="fk_source_finding_source_id_source"),
    )
