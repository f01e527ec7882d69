"""Thinning: what is replaced goes, what anybody may still ask for stays, and no view but the history changes."""

import json
import random
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import oracle
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from factories import (
    CLEAR,
    CRYSTALS,
    claim,
    claimed,
    drain,
    finish,
    promote,
    record,
    register,
    register_source,
    rewritten,
    rows,
    sightings,
    utc,
)
from populated import PLATE, populate

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.database.schema import (
    audit,
    drop,
    drop_summary,
    event,
    image,
    inspection,
    inspection_summary,
    model_version,
    score,
)
from marcod.domain import DropClass
from marcod.settings import RetentionSettings
from marcod.store import audit_log, derived, queue, results, serving, summaries, versions, votes
from marcod.store.versions import Version
from marcod.store.votes import NewLabel
from marcod.training import run_rows
from marcod.upkeep import recounting, retention
from marcod.upkeep.retention import Thinned

HISTORY = "lims_image_score_v1"
SETTINGS = RetentionSettings(scores_days=365, audit_days=365)
LATER = utc(days=400)

sqlite_only = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def said(db: Database) -> dict[str, Counter[Any]]:
    """Everything that the views say, and of the history what it says of the present."""

    def work(connection: sa.Connection) -> dict[str, Counter[Any]]:
        views = sorted(set(sa.inspect(connection).get_view_names()) - {HISTORY})
        assert len(views) >= 6
        queries = {view: f"select * from {view}" for view in views}
        queries[HISTORY] = f"select * from {HISTORY} where is_current"
        return {
            view: Counter(tuple(map(str, row)) for row in connection.exec_driver_sql(q)) for view, q in queries.items()
        }

    return db.read(work)


def count_anew(db: Database, now: datetime) -> None:
    """Work every drop and every inspection out anew, as every version that has a row of it sees it."""

    def work(connection: sa.Connection) -> None:
        drop_ids = connection.execute(sa.select(drop.c.id)).scalars().all()
        derived.refresh(connection, drop_ids, connection.execute(sa.select(inspection.c.id)).scalars().all(), now)

    db.write(work)


def all_scored(db: Database, version: Version, now: datetime, **more: Any) -> None:
    """Let a version score again what it has not scored."""
    db.write(lambda c: queue.enqueue_rescore(c, version.id, now))
    drain(db, version, now, **more)


def of_version(db: Database, version: Version) -> int:
    return rows(db, sa.select(sa.func.count()).select_from(score).where(score.c.model_version_id == version.id))[0][0]


@pytest.fixture
def lab(db: Database) -> Database:
    """The populated lab, with a third champion that scored all the first did and a fourth that scored nothing yet."""
    populate(db)
    third = register(db, name="marco", version="3")
    all_scored(db, third, utc(hours=8), scores=lambda c: CRYSTALS if "A03" in c.path else CLEAR)
    promote(db, third, utc(hours=9))
    return db


@pytest.mark.slow
def test_a_former_champions_scores_go_and_no_view_says_otherwise(lab: Database) -> None:
    first = lab.read(lambda c: versions.find(c, "marco", "1"))
    source_id = rows(lab, sa.text("select id from source where name = 'minstrel'"))[0][0]
    # A drop that nobody spoke of: the labelled ones of the lab keep all they have.
    many = sightings(6, "CI9", "1")
    record(lab, source_id, many, utc(hours=10))
    drain(lab, lab.read(versions.champion), utc(hours=10), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)
    all_scored(lab, first, utc(hours=11), scores=lambda c: CRYSTALS if "A05" in c.path else CLEAR)
    count_anew(lab, utc(hours=12))
    before, had, images = said(lab), of_version(lab, first), rows(lab, sa.select(image).order_by(image.c.id))
    dry = retention.run(lab, SETTINGS, LATER, limit=5, dry=True)
    assert said(lab) == before
    assert of_version(lab, first) == had
    done = retention.run(lab, SETTINGS, LATER, limit=5)
    assert done == dry
    assert done.scores >= 6
    assert of_version(lab, first) == had - done.scores > 0
    assert said(lab) == before
    count_anew(lab, utc(hours=12))
    assert said(lab) == before
    assert rows(lab, sa.select(image).order_by(image.c.id)) == images
    assert retention.run(lab, SETTINGS, LATER, limit=5) == Thinned()


@pytest.mark.slow
@sqlite_only
def test_drops_that_people_spoke_of_keep_every_score(lab: Database) -> None:
    labelled = (
        sa.select(drop.c.id)
        .join(sa.text("plate"), sa.text("plate.id = plate_id"))
        .where(sa.text("plate.key = :key").bindparams(key=PLATE), drop.c.well.in_(["A01", "A02", "A03"]))
    )
    ids = [row[0] for row in rows(lab, labelled)]
    of_these = sa.select(sa.func.count()).select_from(score).join(image).where(image.c.drop_id.in_(ids))
    before = rows(lab, of_these)
    retention.run(lab, SETTINGS, LATER)
    assert (len(ids), rows(lab, of_these)) == (3, before)


@pytest.fixture
def two(db: Database) -> tuple[Version, Version, Version]:
    """A plate of two inspections that the first of three champions scored; the last one serves."""
    first, second, third = (register(db, version=str(n)) for n in (1, 2, 3))
    promote(db, first)
    source_id = register_source(db, expected_drops=4)
    for number in (1, 2):
        record(db, source_id, sightings(4, "P1", str(number)), utc(hours=number))
        drain(db, first, utc(hours=number), scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)
    promote(db, second, utc(hours=3))
    promote(db, third, utc(hours=4))
    return first, second, third


def kept(db: Database, *found: Version) -> list[int]:
    return [of_version(db, version) for version in found]


def test_what_serves_or_may_be_gone_back_to_stays(db: Database, two: tuple[Version, Version, Version]) -> None:
    first, second, third = two
    for version in (second, third):
        all_scored(db, version, utc(hours=5))
    challenger = register(db, version="4")
    db.write(lambda c: serving.challenge(c, challenger, actor="ann", now=utc(hours=6)))
    all_scored(db, challenger, utc(hours=6))
    assert kept(db, first, second, third, challenger) == [8, 8, 8, 8]
    assert retention.run(db, SETTINGS, LATER) == Thinned(scores=8)
    assert kept(db, first, second, third, challenger) == [0, 8, 8, 8]
    back = db.write(lambda c: serving.rollback(c, versions.previous(c), actor="ann", now=utc(hours=7)))
    assert back == third
    assert {row[0] for row in rows(db, sa.text("select model_version from lims_drop_v1"))} == {"2"}


@sqlite_only
def test_what_the_champion_has_not_seen_stays(db: Database, two: tuple[Version, Version, Version]) -> None:
    """It scored one inspection of two, so the former champion speaks of the drops."""
    first, _, third = two
    db.write(lambda c: queue.enqueue_rescore(c, third.id, utc(hours=5), inspection_ids=[2]))
    drain(db, third, utc(hours=5))
    before = said(db)
    assert retention.run(db, SETTINGS, LATER) == Thinned()
    assert said(db) == before
    all_scored(db, third, utc(hours=6))
    assert retention.run(db, SETTINGS, LATER, limit=3) == Thinned(scores=8)
    assert kept(db, first, third) == [0, 8]
    assert rows(db, sa.select(drop_summary.c.model_version_id).distinct()) == [(third.id,)]
    assert rows(db, sa.select(inspection_summary.c.model_version_id).distinct()) == [(third.id,)]


@sqlite_only
def test_an_inspection_that_the_champion_has_not_completed_keeps_its_former_champion(
    db: Database, two: tuple[Version, Version, Version]
) -> None:
    first, _, third = two
    db.write(lambda c: queue.enqueue_rescore(c, third.id, utc(hours=5)))
    lease = claimed(db, utc(hours=5), limit=7)
    finish(db, lease, third, utc(hours=5))
    complete = sa.select(inspection_summary.c.complete).where(inspection_summary.c.model_version_id == third.id)
    assert sorted(rows(db, complete)) == [(False,), (True,)]
    assert retention.run(db, SETTINGS, LATER) == Thinned()
    assert kept(db, first) == [8]


@sqlite_only
def test_young_scores_stay_and_none_goes_unless_asked(db: Database, two: tuple[Version, Version, Version]) -> None:
    first, _, third = two
    all_scored(db, third, utc(hours=5))
    assert retention.run(db, RetentionSettings(), LATER) == Thinned()
    assert retention.run(db, SETTINGS, utc(days=365)) == Thinned()
    assert kept(db, first, third) == [8, 8]
    # One of its looks at every drop is young: the drop keeps both.
    half = utc(days=365, hours=1.5)
    assert retention.run(db, SETTINGS, half) == Thinned()
    assert retention.run(db, SETTINGS, utc(days=365, hours=2.5)) == Thinned(scores=8)


@sqlite_only
def test_what_stays_of_a_version_is_counted_right(db: Database, two: tuple[Version, Version, Version]) -> None:
    """One drop is labelled, and of one the file is gone, its former score counting for versions that never saw it."""
    third = two[2]
    images = rows(db, sa.select(image).order_by(image.c.inspection_id, image.c.id))
    db.write(lambda c: results.mark_gone(c, [images[0].id], utc(hours=1)))
    given = NewLabel(images[1].drop_id, images[1].inspection_id, DropClass.CLEAR, "ann", utc(hours=1), "cli")
    db.write(lambda c: votes.add(c, [given], utc(hours=1)))
    count_anew(db, utc(hours=1))
    all_scored(db, third, utc(hours=5))
    db.write(lambda c: summaries.complete_quiet(c, utc(days=2), 1.0))
    before, kept_score = said(db), rows(db, sa.select(image.c.gone_score_id).where(image.c.id == images[0].id))
    assert retention.run(db, SETTINGS, LATER).scores == 4
    assert said(db) == before
    assert rows(db, sa.select(image.c.gone_score_id).where(image.c.id == images[0].id)) == kept_score
    assert [fault for fault in oracle.faults(db) if "told" not in fault] == []
    every = db.read(lambda c: [portion for p in recounting.plate_ids(c) for portion in recounting.portions(c, p)])
    for portion in every:
        assert db.write(lambda c, p=portion: recounting.recount(c, p, LATER, fix=False, actor="ann")) == []


@sqlite_only
def test_a_score_that_counts_for_a_file_that_is_gone_stays(db: Database, source_id: int, champion: Version) -> None:
    """A champion between saw nothing of the file but that score; the one that serves had scored it before."""
    record(db, source_id, sightings(2), utc())
    drain(db, champion, utc(), scores=lambda c: CRYSTALS)
    last, between = register(db, version="2"), register(db, version="3")
    all_scored(db, last, utc(1))
    gone = rows(db, sa.select(image.c.id))[0].id
    db.write(lambda c: (results.mark_gone(c, [gone], utc(2)), derived.refresh_images(c, [gone], utc(2))))
    for version in (between, last):
        promote(db, version, utc(3))
        all_scored(db, version, utc(4))
    db.write(lambda c: summaries.complete_quiet(c, utc(days=2), 1.0))
    assert retention.run(db, SETTINGS, LATER) == Thinned(scores=1)
    assert [fault for fault in oracle.faults(db) if "told" not in fault] == []


@sqlite_only
def test_scores_of_former_contents_go_when_there_is_one_of_the_present(db: Database, champion: Version) -> None:
    source_id = register_source(db)
    files = sightings(3)
    record(db, source_id, files)
    drain(db, champion)
    record(db, source_id, [rewritten(f) for f in files], utc(minutes=5))
    drain(db, champion, utc(minutes=5), hashes=lambda c: f"anew {c.path}")
    where = rows(db, sa.select(image.c.drop_id, image.c.inspection_id).order_by(image.c.id))
    word = NewLabel(where[0][0], where[0][1], DropClass.CLEAR, "ann", utc(minutes=2), "test")
    db.write(lambda c: votes.add(c, [word], utc(minutes=2)))
    count_anew(db, utc(minutes=6))
    before = said(db)
    assert retention.run(db, SETTINGS, LATER) == Thinned(contents=2)
    assert said(db) == before
    left = rows(db, sa.select(score.c.content_hash).order_by(score.c.id))
    assert [text.split()[0] for (text,) in left] == ["hash", "anew", "anew", "anew"]


@pytest.mark.slow
@sqlite_only
def test_the_walk_goes_on_where_it_was_stopped(db: Database, two: tuple[Version, Version, Version]) -> None:
    first, _, third = two
    all_scored(db, third, utc(hours=5))
    one = retention.run(db, SETTINGS, LATER, rounds=1, limit=2)
    assert (one.scores, one.last) == (4, 2)
    rest = retention.run(db, SETTINGS, LATER, after=one.last or 0, limit=2)
    assert (rest.scores, rest.last) == (4, None)
    assert kept(db, first, third) == [0, 8]


@sqlite_only
def test_a_version_that_comes_back_scores_again_and_its_hits_are_no_news(
    db: Database, two: tuple[Version, Version, Version]
) -> None:
    first, _, third = two
    all_scored(db, third, utc(hours=5))
    retention.run(db, SETTINGS, LATER)
    promote(db, first, LATER)
    all_scored(db, first, LATER, scores=lambda c: CRYSTALS if "A02" in c.path else CLEAR)
    assert rows(db, sa.text("select well, model_version from lims_hit_v1")) == [("A02", "1")]
    assert rows(db, sa.text("select count(*) from hit where found_at > '2026-06-01'")) == [(0,)]


@pytest.mark.slow
@sqlite_only
def test_the_audit_keeps_what_rollbacks_and_people_need(db: Database, two: tuple[Version, Version, Version]) -> None:
    _, second, third = two
    db.write(lambda c: serving.rollback(c, second, actor="ann", now=utc(hours=5)))

    def note(connection: sa.Connection) -> None:
        for action in ("drift-clear", "plate barcode", "roles", "something new"):
            audit_log.write(connection, "ann", action, "x", {}, utc(hours=6))
            audit_log.write(connection, "ann", action, "y", {}, LATER)

    db.write(note)
    before = db.read(lambda c: run_rows.rolled_back(c, str(third)))
    history = db.read(lambda c: audit_log.history(c, str(third)))
    assert before is not None
    only = RetentionSettings(audit_days=365)
    assert retention.run(db, only, LATER, limit=1, dry=True) == Thinned(audit=2)
    assert retention.run(db, only, LATER, limit=1) == Thinned(audit=2)
    assert db.read(lambda c: run_rows.rolled_back(c, str(third))) == before
    assert db.read(lambda c: audit_log.history(c, str(third))) == history
    left = Counter(row[0] for row in rows(db, sa.select(audit.c.action)))
    assert left == {"promote": 3, "rollback": 1, "roles": 2, "something new": 2, "drift-clear": 1, "plate barcode": 1}


@pytest.mark.slow
def test_by_hand(
    db: Database, db_url: str, two: tuple[Version, Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, third = two
    all_scored(db, third, utc(hours=5))
    monkeypatch.setenv("MARCOD_STORE__URL", db_url)
    off = CliRunner().invoke(cli, ["db", "thin"])
    assert (off.exit_code, "retention.scores_days" in off.stderr) == (2, True)
    monkeypatch.setenv("MARCOD_RETENTION__SCORES_DAYS", "30")
    dry = CliRunner().invoke(cli, ["db", "thin", "--dry-run", "--json"])
    assert json.loads(dry.stdout) == {"dry_run": True, "scores": 8, "contents": 0, "audit": 0}
    assert kept(db, first) == [8]
    done = CliRunner().invoke(cli, ["db", "thin"])
    assert done.exit_code == 0, done.output
    assert "8 scores of former model versions" in done.stdout
    assert kept(db, first, third) == [0, 8]
    assert rows(db, sa.select(audit.c.action, audit.c.detail).order_by(audit.c.id.desc()).limit(1)) == [
        ("thin", {"scores": 8, "contents": 0, "audit": 0})
    ]
    assert rows(db, sa.select(sa.func.count()).select_from(model_version)) == [(3,)]


def lived(db: Database, chance: random.Random) -> None:
    """A lab whose years went as chance would have it: promotions, rescores, rewritten files, failures and words."""
    models = [register(db, version=str(n), crystal_threshold=chance.choice([0.3, 0.5, 0.92])) for n in range(4)]
    promote(db, models[0])
    source_id = register_source(db, expected_drops=chance.choice([None, 3, 4]))
    for hour in range(1, 15):
        now = utc(hours=hour)
        what = chance.choice(
            ["arrive", "arrive", "promote", "rescore", "rescore", "rewrite", "say", "challenge", "back"]
        )
        model, number, plate_key = chance.choice(models), str(chance.randint(1, 3)), f"P{chance.randint(1, 2)}"
        files = sightings(chance.randint(1, 4), plate_key, number)
        if what == "arrive":
            record(db, source_id, files, now)
        elif what == "rewrite":
            record(db, source_id, [rewritten(f, hour) for f in files], now)
        elif what == "promote":
            promote(db, model, now)
        elif what == "rescore":
            ids = chance.choice([None, [1], [2], [1, 3]])
            db.write(lambda c, m=model, i=ids, t=now: queue.enqueue_rescore(c, m.id, t, inspection_ids=i))
        elif what == "say":
            say(db, chance, now)
        elif what == "challenge" and model != db.read(versions.champion):
            db.write(lambda c, m=model, t=now: serving.challenge(c, m, actor="ann", now=t))
        elif what == "back" and (former := db.read(lambda c: versions.aliased(c, versions.PREVIOUS))) is not None:
            db.write(lambda c, f=former, t=now: serving.rollback(c, f, actor="ann", now=t))
        work_some(db, chance, now)
    if chance.random() < 0.8:
        all_scored(db, db.read(versions.champion), utc(hours=16), scores=lambda c: chance.choice([CLEAR, CRYSTALS]))
    db.write(lambda c: summaries.complete_quiet(c, utc(days=2), 60))


def say(db: Database, chance: random.Random, now: datetime) -> None:
    """Somebody labels one of the images."""
    found = rows(db, sa.select(image.c.drop_id, image.c.inspection_id))
    if not found:
        return
    drop_id, inspection_id = chance.choice(found)
    word = NewLabel(drop_id, inspection_id, chance.choice(list(DropClass)), "ann", now, "test")

    def work(connection: sa.Connection) -> None:
        votes.add(connection, [word], now)
        derived.refresh(connection, [drop_id], [inspection_id], now)

    db.write(work)


def work_some(db: Database, chance: random.Random, now: datetime) -> None:
    """A worker does some of what waits; now and then an image fails for good."""
    for _ in range(chance.choice([0, 1, 1, 3, 9])):
        lease = claim(db, now, limit=chance.randint(1, 6))
        if lease is None:
            return
        version = db.read(lambda c, v=lease.model_version_id: versions.get(c, v))
        bad = [queue.Failure(c, "truncated", retryable=False) for c in lease.claims if chance.random() < 0.1]
        of = {c.job_id: chance.choice([CLEAR, CRYSTALS, (0.5, 0.4, 0.05, 0.05)]) for c in lease.claims}
        finish(
            db, lease, version, now,
            hashes=lambda c: f"{c.path} {now}" if chance.random() < 0.2 else f"hash of {c.path}",
            scores=lambda c, of=of: of[c.job_id], failures=bad,
        )  # fmt: skip


@sqlite_only
@pytest.mark.parametrize("seed", [104, 106, 107])
@pytest.mark.slow
def test_whatever_happened_no_view_changes(db: Database, seed: int) -> None:
    chance = random.Random(seed)
    lived(db, chance)
    count_anew(db, utc(days=20))
    before = said(db)
    now, limit = utc(days=365, hours=chance.randint(5, 40)), chance.randint(1, 30)
    counts = retention.run(db, SETTINGS, now, limit=limit, dry=True)
    assert retention.run(db, SETTINGS, now, limit=limit) == counts
    assert said(db) == before
    count_anew(db, utc(days=20))
    assert said(db) == before
    assert retention.run(db, SETTINGS, now, limit=limit) == Thinned()


@pytest.mark.slow
def test_a_hit_that_ended_after_thinning_is_news_again(db: Database, source_id: int, champion: Version) -> None:
    (file,) = sightings(1)
    record(db, source_id, [file])
    drain(db, champion, utc(1), scores=lambda c: CRYSTALS)
    for number in (2, 3):
        newer = register(db, version=str(number))
        promote(db, newer, utc(hours=number))
        all_scored(db, newer, utc(hours=number), scores=lambda c: CRYSTALS)
        db.write(lambda c, number=number: summaries.complete_quiet(c, utc(hours=number + 1), 60.0))  # type: ignore[misc]
    assert retention.run(db, SETTINGS, LATER).scores == 1
    for change, seen in ((1, CLEAR), (2, CRYSTALS)):
        now = LATER + timedelta(hours=change)
        record(db, source_id, [rewritten(file, change)], now)
        bytes_of = f"bytes {change}"
        drain(db, newer, now, hashes=lambda c, found=bytes_of: found, scores=lambda c, seen=seen: seen)
    assert len(rows(db, sa.select(event.c.id).where(event.c.kind == "hits"))) == 2
