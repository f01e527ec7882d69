"""`marcod db check --deep`: rows that were damaged behind marcod's back are found, told, and mended on request."""

import json
from typing import Any

import oracle
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from factories import CRYSTALS, drain, promote, record, register, register_source, rows, sightings, utc

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.database.schema import audit, drop_summary, event, hit, image, inspection_summary, job, score
from marcod.domain import DropClass
from marcod.labels import recorder
from marcod.store import queue, summaries, versions
from marcod.store.votes import NewLabel


@pytest.fixture
def lab(db: Database, db_url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Two plates of three drops, scored as crystals; one drop is labelled, one image came too late to be scored."""
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    version = register(db)
    promote(db, version)
    source_id = register_source(db)
    for plate in ("P1", "P2"):
        record(db, source_id, sightings(3, plate=plate))
    drain(db, version, utc(1), scores=lambda c: CRYSTALS)
    first = rows(db, sa.select(image).order_by(image.c.id))[0]
    given = NewLabel(first.drop_id, first.inspection_id, None, "ann", utc(2), "test", image_id=None)
    db.write(lambda c: recorder.add(c, [given], utc(2)))
    record(db, source_id, sightings(4, plate="P1"), utc(3))
    return db


def damage(db: Database, *statements: Any) -> None:
    db.write(lambda c: [c.execute(statement) for statement in statements])


DAMAGE = (
    sa.update(inspection_summary).values(hits=7, complete=False),
    sa.delete(drop_summary).where(
        drop_summary.c.drop_id == sa.select(sa.func.min(drop_summary.c.drop_id)).scalar_subquery()
    ),
    sa.update(hit)
    .where(hit.c.drop_id == sa.select(sa.func.max(hit.c.drop_id)).scalar_subquery())
    .values(ended_at=utc(4)),
    sa.delete(job),
)


def check(*options: str) -> Result:
    return CliRunner().invoke(cli, ["db", "check", "--deep", *options])


def test_a_sound_database_has_no_difference(lab: Database) -> None:
    before = oracle.World.read(lab)
    done = check()
    assert (done.exit_code, done.stdout) == (0, "2 plates recounted; every row is as it should be\n")
    assert oracle.World.read(lab).rows == before.rows


def test_what_differs_is_reported_and_left(lab: Database) -> None:
    damage(lab, *DAMAGE)
    before = oracle.World.read(lab)
    done = check()
    assert done.exit_code == 3
    for told in (
        "plate P1, inspection 1 by small:1: hits is 7, counted 3",
        "plate P2, inspection 1 by small:1: hits is 7, counted 3",
        "plate P1, drop A01 1 by small:1: is missing",
        "plate P2, hit A03 1 by small:1: is missing",
        "plate P1, work for 1 images by small:1: is missing",
    ):
        assert told in done.stdout
    assert done.stdout.endswith("; --fix mends them\n")
    # A recount that is not kept leaves nothing: no row, no job, no event for anybody to be told of.
    assert oracle.World.read(lab).rows == before.rows


def test_one_plate_alone_is_recounted(lab: Database) -> None:
    damage(lab, *DAMAGE)
    told = json.loads(check("--plate", "P2", "--json").stdout)
    assert told["plates"] == 1
    assert {found["plate"] for found in told["differences"]} == {"P2"}
    assert (told["fixed"], check("--plate", "P9").exit_code) == (False, 1)


@pytest.mark.slow
def test_a_mend_puts_it_right_once_and_notes_it(lab: Database) -> None:
    damage(lab, *DAMAGE)
    told = len(rows(lab, sa.select(event)))
    done = check("--fix")
    assert done.exit_code == 0
    assert done.stdout.endswith("mended\n")
    lab.write(lambda c: summaries.complete_quiet(c, utc(days=1), 60.0))
    assert oracle.faults(lab) == []
    assert check().stdout == "2 plates recounted; every row is as it should be\n"
    noted = rows(lab, sa.select(audit).where(audit.c.action == "recount"))
    assert {row.subject for row in noted} == {"P1", "P2"}
    assert all(row.detail["differences"] for row in noted)
    assert len(rows(lab, sa.select(event))) >= told


@pytest.mark.slow
def test_a_mend_leaves_the_hits_of_a_thinned_version(lab: Database) -> None:
    newer = register(lab, version="2")
    promote(lab, newer, utc(5))
    lab.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(5)))
    drain(lab, newer, utc(6), scores=lambda c: CRYSTALS)
    of_first = score.c.model_version_id != newer.id
    damage(
        lab,
        sa.delete(score).where(of_first),
        sa.delete(drop_summary).where(drop_summary.c.model_version_id != newer.id),
        sa.update(drop_summary).values(hit=False),
    )
    standing = sa.select(hit.c.drop_id, hit.c.model_version_id).where(hit.c.ended_at.is_(None)).order_by(hit.c.id)
    before = rows(lab, standing)
    assert check("--fix").exit_code == 0
    assert rows(lab, standing) == before
    assert check().exit_code == 0


def test_its_options_go_with_it(lab: Database) -> None:
    done = CliRunner().invoke(cli, ["db", "check", "--fix"])
    assert done.exit_code == 2
    assert "go with --deep" in done.stderr


@pytest.mark.slow
def test_what_people_alone_spoke_of_needs_one_row(lab: Database) -> None:
    drain(lab, lab.read(versions.champion), utc(4))
    second = register(lab, version="2")
    lab.write(lambda c: queue.enqueue_rescore(c, second.id, utc(5)))
    drain(lab, second, utc(6), scores=lambda c: CRYSTALS)
    record(lab, 1, sightings(5, plate="P1", inspection="2")[4:], utc(7))
    drop_id, inspection_id = rows(lab, sa.select(image.c.drop_id, image.c.inspection_id).order_by(image.c.id.desc()))[0]
    given = NewLabel(drop_id, inspection_id, DropClass.CRYSTALS, "ann", utc(8), "test")
    lab.write(lambda c: recorder.add(c, [given], utc(8)))
    assert check().exit_code == 0
    promote(lab, second, utc(9))
    assert check().exit_code == 0
    of_drop = drop_summary.c.drop_id == drop_id
    damage(lab, sa.delete(drop_summary).where(of_drop), sa.delete(hit).where(hit.c.drop_id == drop_id))
    assert f"by {second}: is missing" in check("--fix").stdout
    assert rows(lab, sa.select(drop_summary.c.model_version_id).where(of_drop)) == [(second.id,)]
