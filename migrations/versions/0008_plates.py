"""Plates are found by their names without regard to case and Unicode form; each may have reservoirs of its own.

``plate.key_folded`` and ``plate.barcode_folded`` are the names as they are compared. ``plate.reservoirs`` lists, with
commas, the subwells without a drop; null where nobody told. ``plate.reread_after`` is the last image that was read
again after those or the grid changed; null where none is left. A marcod of the step before leaves them empty.
"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
additive = False

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LEFT = sa.text("reread_after is not null")
PORTION = 1_000


def upgrade() -> None:
    for name in ("key_folded", "barcode_folded", "reservoirs"):
        op.add_column("plate", sa.Column(name, sa.Text()))
    op.add_column("plate", sa.Column("reread_after", BIG))
    op.create_index("ix_plate_reread_after", "plate", ["reread_after"], sqlite_where=LEFT, postgresql_where=LEFT)
    op.create_index("ix_plate_key_folded", "plate", ["key_folded"])
    op.create_index("ix_plate_barcode_folded", "plate", ["barcode_folded"])
    _fold()


def downgrade() -> None:
    op.drop_index("ix_plate_barcode_folded", "plate")
    op.drop_index("ix_plate_key_folded", "plate")
    op.drop_index("ix_plate_reread_after", "plate")
    for name in ("reread_after", "reservoirs", "barcode_folded", "key_folded"):
        op.drop_column("plate", name)


def _fold() -> None:
    plate = sa.table("plate", *(sa.column(name) for name in ("id", "key", "barcode", "key_folded", "barcode_folded")))
    connection, last = op.get_bind(), 0
    columns = (plate.c.id, plate.c.key, plate.c.barcode)
    while rows := connection.execute(
        sa.select(*columns).where(plate.c.id > last).order_by(plate.c.id).limit(PORTION)
    ).all():
        last = rows[-1].id
        values = {"key_folded": sa.bindparam("one"), "barcode_folded": sa.bindparam("other")}
        statement = sa.update(plate).where(plate.c.id == sa.bindparam("row")).values(values)
        connection.execute(statement, [{"row": r.id, "one": _folded(r.key), "other": _folded(r.barcode)} for r in rows])


def _folded(name: str | None) -> str | None:
    if name is None:
        return None
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
