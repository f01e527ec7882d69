"""The views a LIMS reads: their columns are a promise."""

from typing import Any

import sqlalchemy as sa
from factories import CRYSTALS, drain, promote, record, register, register_source, rewritten, rows, sightings, utc

from marcod.database.engine import Database
from marcod.database.schema import UtcDateTime
from marcod.store import queue
from marcod.store.versions import Version

IMAGE_SCORE = """
score_id source layout plate_key barcode inspection_key inspection_ordinal well well_row well_column
drop_number image_id path modality captured_at model model_version model_digest model_synthetic content_hash p_clear
p_crystals p_other p_precipitate label hit is_current scored_at engine
"""

PLATE_SUMMARY = """
inspection_id source layout plate_key barcode inspection_key inspection_ordinal model model_version
model_synthetic n_clear n_crystals n_other n_precipitate hits best_wells expected seen scored failed complete
complete_rule first_image_at last_image_at updated_at labelled project screen crystal_threshold
gone
"""


def view(db: Database, name: str, order: str) -> list[dict[str, Any]]:
    """The rows of a view."""
    statement = sa.text(f"select * from {name} order by {order}")
    return db.read(lambda c: [dict(row) for row in c.execute(statement).mappings()])


def test_the_columns_are_these(db: Database) -> None:
    for name, columns in (("lims_image_score_v1", IMAGE_SCORE), ("lims_plate_summary_v1", PLATE_SUMMARY)):
        found = db.read(lambda c, name=name: list(c.execute(sa.text(f"select * from {name}")).keys()))
        assert found == columns.split()


def test_image_scores_say_which_is_current_and_which_is_a_hit(db: Database, source_id: int, champion: Version) -> None:
    files = sightings(2, barcode="BC", captured_at=utc(-60))
    record(db, source_id, files)
    drain(db, champion, utc(1), scores=lambda c: CRYSTALS if "A01" in c.path else (0.5, 0.2, 0.2, 0.1))
    record(db, source_id, [rewritten(files[0])], utc(2))
    drain(db, champion, utc(3), hashes=lambda c: "new")
    newer = register(db, version="2", crystal_threshold=0.01, synthetic=False)
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(4)))
    drain(db, newer, utc(5), hashes=lambda c: "new" if "A01" in c.path else f"hash of {c.path}")
    shown = view(db, "lims_image_score_v1", "model_version, score_id")
    told = [(r["well"], r["model_version"], bool(r["hit"]), bool(r["is_current"])) for r in shown]
    assert told[:3] == [("A01", "1", True, False), ("A02", "1", False, True), ("A01", "1", False, True)]
    assert sorted(told[3:]) == [("A01", "2", True, False), ("A02", "2", True, False)]
    promote(db, newer, utc(6))
    current = {r["score_id"] for r in view(db, "lims_image_score_v1", "score_id") if r["is_current"]}
    assert current == {r["score_id"] for r in shown[-2:]}
    first = shown[0]
    assert (first["source"], first["layout"], first["plate_key"], first["barcode"]) == ("imager", "rigaku", "P1", "BC")
    assert (first["well_row"], first["well_column"], first["drop_number"], first["label"]) == (1, 1, 1, "Crystals")
    probabilities = tuple(first[f"p_{name}"] for name in ("clear", "crystals", "other", "precipitate"))
    assert probabilities == CRYSTALS
    assert (bool(first["model_synthetic"]), bool(shown[-1]["model_synthetic"])) == (True, False)
    times = sa.text("select scored_at, captured_at from lims_image_score_v1 order by score_id")
    typed = times.columns(scored_at=UtcDateTime(), captured_at=UtcDateTime())
    assert tuple(rows(db, typed)[0]) == (utc(1), utc(-60))


def test_a_score_is_current_only_of_the_champion(db: Database, source_id: int, champion: Version) -> None:
    record(db, source_id, sightings(1))
    drain(db, champion)
    promote(db, register(db, version="2"))
    assert [bool(r["is_current"]) for r in view(db, "lims_image_score_v1", "score_id")] == [False]


def test_plate_summaries_are_one_row_an_inspection(db: Database, champion: Version) -> None:
    where = register_source(db, "imager", expected_drops=3)
    for ordinal in ("1", "2"):
        record(db, where, sightings(3, inspection=ordinal, barcode="BC"), utc(int(ordinal)))
    drain(db, champion, utc(3), scores=lambda c: CRYSTALS if "A02" in c.path else (0.9, 0.0, 0.1, 0.0))
    shown = view(db, "lims_plate_summary_v1", "inspection_id")
    told = [(r["inspection_key"], r["inspection_ordinal"], r["barcode"], r["model_version"]) for r in shown]
    assert told == [("1", 1, "BC", "1"), ("2", 2, "BC", "1")]
    counts = [(r["n_crystals"], r["n_clear"], r["hits"], r["seen"], r["scored"], r["failed"]) for r in shown]
    assert counts == [(1, 2, 1, 3, 3, 0)] * 2
    assert [(bool(r["complete"]), r["complete_rule"]) for r in shown] == [(True, "expected")] * 2
    newer = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(4)))
    drain(db, newer, utc(5), limit=3)
    shown = view(db, "lims_plate_summary_v1", "inspection_id")
    assert [(r["model_version"], r["n_clear"]) for r in shown] == [("1", 2), ("1", 2)]
    promote(db, newer, utc(6))
    shown = view(db, "lims_plate_summary_v1", "inspection_id")
    assert [(r["model_version"], r["n_clear"]) for r in shown] == [("2", 3), ("2", 3)]


def test_until_the_champion_has_scored_a_plate_the_last_champion_is_shown(
    db: Database, source_id: int, champion: Version
) -> None:
    record(db, source_id, sightings(2))
    drain(db, champion, utc(1))
    second = register(db, version="2")
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(2)))
    drain(db, second, utc(3))
    promote(db, register(db, version="3"), utc(4))
    (row,) = view(db, "lims_plate_summary_v1", "inspection_id")
    assert row["model_version"] == "1", "version 2 saw it later and was never champion"
