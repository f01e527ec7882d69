"""Databases of former schemas, with rows in every table: upgrading keeps them all, and so does going back."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from factories import utc

from marcod.cli import cli
from marcod.database import migrate
from marcod.database.engine import Database
from marcod.store import backfill, sources

THEN = datetime(2025, 5, 1, 8, 30, tzinfo=UTC)
WELLS = 6

Rows = dict[str, list[dict[str, Any]]]


def _source() -> Rows:
    """One source, one plate, two inspections, six wells."""
    return {
        "source": [
            {"id": 1, "name": "imager", "root": "/p", "layout": "rigaku", "reading": "", "expected_drops": 6,
             "created_at": THEN},
        ],
        "plate": [{"id": 1, "source_id": 1, "key": "P1", "barcode": "BC", "first_seen_at": THEN}],
        "drop": [
            {"id": n, "plate_id": 1, "well": f"A0{n}", "well_row": 1, "well_column": n, "drop_number": 1}
            for n in range(1, WELLS + 1)
        ],
        "inspection": [
            {"id": n, "plate_id": 1, "key": key, "ordinal": None, "first_seen_at": THEN}
            for n, key in ((1, "batch 10"), (2, "batch 9"))
        ],
    }  # fmt: skip


def _models() -> Rows:
    version = {"name": "marco", "modality": "visible", "crystal_threshold": 0.5, "synthetic": True}
    return {
        "model_version": [
            version | {"id": n, "version": str(n), "digest": f"d{n}", "registered_at": THEN} for n in (1, 2)
        ],
        "model_alias": [{"alias": "champion", "model_version_id": 1, "set_at": THEN}],
        "audit": [
            {"id": 1, "at": THEN, "actor": "ann", "action": "promote", "subject": "marco:1", "detail": {"from": None}},
        ],
        "worker": [
            {"name": "w", "host": "h", "pid": 1, "roles": "score", "marcod_version": "0", "started_at": THEN,
             "seen_at": THEN},
        ],
    }  # fmt: skip


def _images() -> Rows:
    """Both inspections of every drop scored by version 1; in A02 crystals at batch 10; one image failed for 2."""
    images, scores = [], []
    for number in range(2 * WELLS):
        drop, where = number % WELLS + 1, number // WELLS + 1
        crystals = drop == 2 and where == 1
        images.append(
            {"id": number + 1, "source_id": 1, "path": f"{where}/A0{drop}.jpg", "drop_id": drop, "inspection_id": where,
             "modality": "visible", "profile": None, "region": None, "captured_at": THEN, "size": 9, "mtime_ns": 5,
             "content_hash": f"h{number}", "seen_at": THEN}
        )  # fmt: skip
        p = (0.05, 0.9, 0.03, 0.02) if crystals else (0.9, 0.05, 0.03, 0.02)
        scores.append(
            {"id": number + 1, "image_id": number + 1, "model_version_id": 1, "content_hash": f"h{number}",
             "p_clear": p[0], "p_crystals": p[1], "p_other": p[2], "p_precipitate": p[3],
             "label": "Crystals" if crystals else "Clear", "vector": {"x": 1.0}, "scored_at": THEN}
        )  # fmt: skip
    return {"image": images, "score": scores}


def _results() -> Rows:
    summary = {
        "model_version_id": 1, "n_other": 0, "n_precipitate": 0, "best_wells": "[]", "expected": 6, "seen": 6,
        "scored": 6, "failed": 0, "complete": True, "complete_rule": "expected", "first_image_at": THEN,
        "last_image_at": THEN, "updated_at": THEN,
    }  # fmt: skip
    return {
        "inspection_summary": [
            summary | {"inspection_id": 1, "n_clear": 5, "n_crystals": 1, "hits": 1},
            summary | {"inspection_id": 2, "n_clear": 6, "n_crystals": 0, "hits": 0},
        ],
        "hit": [
            {"id": 1, "drop_id": 2, "inspection_id": 1, "image_id": 2, "model_version_id": 1, "p_crystals": 0.9,
             "threshold": 0.5, "found_at": THEN},
        ],
        "job": [
            {"id": 1, "image_id": 1, "model_version_id": 2, "priority": 10, "available_at": THEN, "attempts": 5,
             "lease": None, "error": "truncated", "failed_at": THEN, "enqueued_at": THEN},
        ],
    }  # fmt: skip


def _labels() -> Rows:
    """Ann calls A03 crystals at batch 10."""
    return {
        "label": [
            {"id": 1, "drop_id": 3, "inspection_id": 1, "image_id": None, "label": "Crystals", "original": "Crystals",
             "vocabulary": "marco", "person": "ann", "origin": "csv x", "labelled_at": THEN, "recorded_at": THEN,
             "key": "k1"},
        ],
    }  # fmt: skip


def fill(db: Database, revision: str) -> dict[str, sa.Table]:
    """Rows in every table of a revision, written by SQL alone. Returns the tables as they are at that revision."""
    tables = reflected(db)
    given = _source() | _models() | _images() | _results() | (_labels() if revision >= "0002" else {})
    if revision >= "0002":
        given["model_version"][0]["promoted_at"] = THEN
        given["model_version"][1]["removed_at"] = THEN
    assert set(given) == set(tables), "every table has rows"

    def work(connection: sa.Connection) -> None:
        for name, rows in given.items():
            for row in rows:
                naive = connection.dialect.name == "sqlite"
                values = {k: v.replace(tzinfo=None) if v is THEN and naive else v for k, v in row.items()}
                connection.execute(sa.insert(tables[name]).values(values))
            if connection.dialect.name == "postgresql" and "id" in tables[name].columns:
                # Rows with ids of their own leave the counter behind.
                counter = f"pg_get_serial_sequence('\"{name}\"', 'id')"
                connection.execute(sa.text(f'select setval({counter}, (select max(id) from "{name}"))'))

    db.write(work)
    return tables


def reflected(db: Database) -> dict[str, sa.Table]:
    found = sa.MetaData()
    db.read(lambda c: found.reflect(c))
    return {name: table for name, table in found.tables.items() if name != "alembic_version"}


MOVED = {("source", "root")}
"""Columns whose content stands in another table since."""


def rows_of(db: Database, tables: dict[str, sa.Table], *, moved: bool = True) -> dict[str, list[Any]]:
    """Every row of these tables in the columns they had then, with or without those that have moved since."""

    def read(connection: sa.Connection, table: sa.Table) -> list[Any]:
        order = list(table.primary_key.columns)
        columns = [column for column in table.c if moved or (table.name, column.name) not in MOVED]
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(*order))]

    return {name: db.read(lambda c, t=table: read(c, t)) for name, table in tables.items()}


VIEWS = {"lims_image_score_v1": "score_id", "lims_plate_summary_v1": "inspection_id"}


def columns_of(db: Database) -> dict[str, list[str]]:
    return {view: [c["name"] for c in db.read(lambda c, v=view: sa.inspect(c).get_columns(v))] for view in VIEWS}


def answers(db: Database, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
    """What the views say in these columns."""
    found = {}
    for view, names in columns.items():
        statement = f"select {', '.join(names)} from {view} order by {VIEWS[view]}"
        found[view] = db.read(lambda c, s=statement: [tuple(row) for row in c.exec_driver_sql(s)])
    return found


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_populated_database_keeps_every_row_up_and_down(empty_db: Database, revision: str) -> None:
    migrate.upgrade(empty_db, revision)
    tables = fill(empty_db, revision)
    before, columns = rows_of(empty_db, tables), columns_of(empty_db)
    staying = rows_of(empty_db, tables, moved=False)
    said = answers(empty_db, columns)
    assert all(before.values())
    assert all(said.values())
    migrate.upgrade(empty_db)
    assert rows_of(empty_db, tables, moved=False) == staying
    assert empty_db.read(sources.roots) == {"imager": "/p"}
    assert answers(empty_db, columns) == said
    now = columns_of(empty_db)
    assert all(now[view][: len(names)] == names for view, names in columns.items())
    migrate.downgrade(empty_db, revision)
    assert rows_of(empty_db, tables) == before
    assert answers(empty_db, columns) == said
    assert {name: sorted(table.c.keys()) for name, table in reflected(empty_db).items()} == {
        name: sorted(table.c.keys()) for name, table in tables.items()
    }


def shown(db: Database, statement: str) -> list[Any]:
    return db.read(lambda c: [tuple(row) for row in c.exec_driver_sql(statement)])


DROPS = "select well, label, label_person, trend, first_hit_inspection_key, inspections from lims_drop_v1 order by well"


def test_an_upgrade_fills_in_what_the_old_schema_did_not_keep(
    empty_db: Database, empty_db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty_db, "0002")
    tables = fill(empty_db, "0002")
    monkeypatch.setenv("MARCOD_STORE__URL", empty_db_url)
    migrate.upgrade(empty_db)
    check = CliRunner().invoke(cli, ["db", "check"])
    assert (check.exit_code, "run `marcod db upgrade` to finish" in check.stderr) == (3, True)
    first = CliRunner().invoke(cli, ["db", "upgrade"])
    assert first.exit_code == 0, first.output
    assert "drops of marco:1: 6 of 6" in first.stderr
    assert "6 drops worked out, 1 labelled inspection counted again" in first.stdout
    assert CliRunner().invoke(cli, ["db", "check"]).exit_code == 0
    clear = ("Clear", None, "none", None, 2)
    assert shown(empty_db, DROPS) == [
        ("A01", *clear),
        ("A02", "Crystals", None, "appearing", "batch 10", 2),
        ("A03", "Crystals", "ann", "appearing", "batch 10", 2),
        ("A04", *clear), ("A05", *clear), ("A06", *clear),
    ]  # fmt: skip
    assert shown(empty_db, "select labelled, hits from lims_plate_summary_v1 order by inspection_id") == [
        (1, 2),
        (0, 0),
    ]
    kept = rows_of(empty_db, tables, moved=False)
    again = CliRunner().invoke(cli, ["db", "upgrade"])
    assert (again.exit_code, "worked out" in again.stdout) == (0, False)
    assert rows_of(empty_db, tables, moved=False) == kept


def test_filling_in_goes_on_where_it_was_stopped(empty_db: Database) -> None:
    migrate.upgrade(empty_db, "0002")
    fill(empty_db, "0002")
    migrate.upgrade(empty_db)

    def stop(what: str, done: int, total: int) -> None:
        assert (what, total) == ("drops of marco:1", WELLS)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backfill.run(empty_db, utc(), stop, chunk=2)
    assert len(shown(empty_db, DROPS)) == 4
    assert empty_db.read(backfill.unfinished)
    told: list[tuple[str, int, int]] = []
    assert backfill.run(empty_db, utc(), lambda *step: told.append(step), chunk=2) == backfill.Filled(2, 1)
    assert told[-1] == ("labelled inspections", 1, 1)
    assert backfill.run(empty_db, utc(), lambda *_: None, chunk=2) == backfill.Filled(0, 0)


def test_what_a_model_learned_from_is_told_by_its_training_run(empty_db: Database) -> None:
    """A run that only calibrated left the weights as they were; of others the record told before."""
    migrate.upgrade(empty_db, "0005")
    tables = reflected(empty_db)
    version = {"modality": "visible", "crystal_threshold": 0.5, "registered_at": THEN, "version": "1"}
    models = [
        version | {"id": n, "name": name, "digest": name, "synthetic": synthetic}
        for n, (name, synthetic) in enumerate(
            (("shipped", True), ("marco", False), ("head", True), ("all", False), ("calibrated", True)), start=1
        )
    ]
    run = {
        "state": "promoted", "cause": "hand", "actor": "ann", "recipe": "adapt", "options": {}, "folder": "/f",
        "host": "h", "pid": 1, "token": "t", "started_at": THEN, "beat_at": THEN,
    }  # fmt: skip
    runs = [
        run | {"id": n, "tier": tier, "candidate_digest": digest}
        for n, (tier, digest) in enumerate(
            (("head", "head"), ("all", "all"), ("recalibrate", "calibrated"), ("head", None)), start=1
        )
    ]

    def insert(connection: sa.Connection) -> None:
        connection.execute(sa.insert(tables["model_version"]), models)
        connection.execute(sa.insert(tables["training_run"]), runs)

    empty_db.write(insert)
    migrate.upgrade(empty_db)
    told = shown(empty_db, "select name, trained_on, synthetic from model_version order by id")
    assert [(name, trained_on, bool(synthetic)) for name, trained_on, synthetic in told] == [
        ("shipped", "rendered", True),
        ("marco", "published", False),
        ("head", "rendered,lab", False),
        ("all", "published,lab", False),
        ("calibrated", "rendered", True),
    ]
    migrate.downgrade(empty_db, "0005")
    assert len(shown(empty_db, "select id from model_version")) == len(models)


def test_names_of_plates_are_found_in_any_case_after_the_upgrade(empty_db: Database) -> None:
    migrate.upgrade(empty_db, "0007")
    tables = reflected(empty_db)
    before = [("CI0229", "Bar-Code"), ("Pru\u0308f", None), ("STRASSE", "Stra\u00dfe")]
    values = {"source_id": 1, "first_seen_at": THEN}
    plates = [values | {"id": n, "key": key, "barcode": barcode} for n, (key, barcode) in enumerate(before, start=1)]
    held = {"id": 1, "name": "s", "layout": "rigaku", "reading": "", "created_at": THEN}

    def insert(connection: sa.Connection) -> None:
        connection.execute(sa.insert(tables["source"]), held)
        connection.execute(sa.insert(tables["plate"]), plates)

    empty_db.write(insert)
    migrate.upgrade(empty_db)
    told = shown(empty_db, "select key, barcode, key_folded, barcode_folded, reservoirs from plate order by id")
    assert told == [
        ("CI0229", "Bar-Code", "ci0229", "bar-code", None),
        ("Pru\u0308f", None, "pr\u00fcf", None, None),
        ("STRASSE", "Stra\u00dfe", "strasse", "strasse", None),
    ]
    migrate.downgrade(empty_db, "0007")
    assert shown(empty_db, "select key, barcode from plate order by id") == before
