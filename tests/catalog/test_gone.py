"""Images whose files are gone for good: their scores count, and those never scored are told until accepted."""

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from factories import (
    CRYSTALS,
    MAX_ATTEMPTS,
    RETRY_S,
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    rewritten,
    rows,
    sightings,
    utc,
)  # fmt: skip

from marcod.catalog import deliveries
from marcod.cli import cli
from marcod.database.engine import Database
from marcod.database.schema import audit, image, inspection_summary
from marcod.domain import Modality
from marcod.health import snapshot
from marcod.service import periodic
from marcod.settings import Settings
from marcod.store import queue
from marcod.store.versions import Version


@pytest.fixture
def lab(db: Database, db_url: str, source_id: int, champion: Version, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Three drops: the first is scored and then gone, the second is gone unscored, the third is there and scored."""
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    files = sightings(3)
    record(db, source_id, [files[0], files[2]])
    drain(db, champion, utc(1), scores=lambda c: CRYSTALS)
    record(db, source_id, [files[1], rewritten(files[0])], utc(2))
    lose(db, champion)
    return db


def lose(db: Database, version: Version) -> None:
    """Let a worker find none of the waiting files, as often as it tries."""
    for turn in range(MAX_ATTEMPTS):
        now = utc(100 + turn * (RETRY_S * 2**MAX_ATTEMPTS + 100))
        lease = claimed(db, now)
        finish(db, lease, version, now, failures=[queue.Failure(c, queue.GONE, retryable=True) for c in lease.claims])


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, ["queue", *words])


def unseen(db: Database) -> int:
    return db.read(lambda c: snapshot.take_snapshot(c, utc(days=30))).gone


@pytest.mark.slow
def test_the_score_of_a_file_that_is_gone_goes_on_counting(lab: Database, champion: Version) -> None:
    newer = register(lab, version="2")
    lab.write(lambda c: queue.enqueue_rescore(c, newer.id, utc(days=1)))
    drain(lab, newer, utc(days=1), scores=lambda c: CRYSTALS)
    promote(lab, newer, utc(days=2))
    counted = {row.model_version_id: row for row in rows(lab, sa.select(inspection_summary))}
    assert [(counted[v.id].hits, counted[v.id].scored, counted[v.id].gone) for v in (champion, newer)] == [
        (2, 2, 1)
    ] * 2


@pytest.mark.slow
def test_what_went_unscored_is_listed_until_somebody_lets_it_be(lab: Database) -> None:
    assert unseen(lab) == 1
    shown = call("gone")
    assert "1 image whose file is gone" in shown.stdout
    assert "never scored" in shown.stdout
    (told,) = json.loads(call("gone", "--json").stdout)
    every = json.loads(call("gone", "--all", "--json").stdout)
    assert sorted((row["image_id"] == told["image_id"], row["scored"]) for row in every) == [
        (False, True),
        (True, False),
    ]
    done = call("accept", str(told["image_id"]))
    assert (done.exit_code, done.stdout) == (0, "1 image is accepted as gone\n")
    assert (unseen(lab), json.loads(call("gone", "--json").stdout)) == (0, [])
    again = call("accept", str(told["image_id"]))
    assert again.exit_code == 1
    assert "`marcod queue gone` lists those that are" in again.stderr
    (noted,) = rows(lab, sa.select(audit).where(audit.c.action == "accept gone"))
    assert noted.detail == {"first": [told["image_id"]]}


def test_which_ones_are_let_be_must_be_said(lab: Database) -> None:
    for words in (("accept",), ("accept", "1", "--all")):
        done = call(*words)
        assert done.exit_code == 2
        assert "name images, or --all" in done.stderr
    assert call("accept", "--all").stdout == "1 image is accepted as gone\n"
    assert call("accept", "--all").stdout == "0 images are accepted as gone\n"


def test_a_setting_lets_all_be(lab: Database) -> None:
    periodic.housekeeping(lab, Settings.model_validate({"score": {"accept_gone": False}}))
    assert unseen(lab) == 1
    periodic.housekeeping(lab, Settings.model_validate({"score": {"accept_gone": True}}))
    assert unseen(lab) == 0


def test_a_file_that_comes_back_is_scored(lab: Database, source_id: int, champion: Version) -> None:
    call("accept", "--all")
    record(lab, source_id, sightings(3), utc(days=3))
    assert drain(lab, champion, utc(days=3), hashes=lambda c: f"again {c.path}") == 2
    assert rows(lab, sa.select(image.c.id).where(image.c.gone_at.is_not(None))) == []


def test_a_score_counts_in_its_own_light_alone(lab: Database, source_id: int, champion: Version) -> None:
    (lost,) = rows(lab, sa.select(image).where(image.c.gone_score_id.is_not(None)))
    seen = replace(sightings(3)[0], size=lost.size, mtime_ns=lost.mtime_ns)
    in_uv = replace(seen, image=replace(seen.image, modality=Modality.UV))
    for file, kept in ((in_uv, None), (seen, lost.gone_score_id)):
        lab.write(lambda c, file=file: deliveries.reread(c, source_id, [file], utc(days=1)))  # type: ignore[misc]
        (read,) = rows(lab, sa.select(image).where(image.c.id == lost.id))
        assert (read.gone_at, read.gone_score_id) == (lost.gone_at, kept)
