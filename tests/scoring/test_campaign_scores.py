"""Campaigns in the scoring loop: batches for the device, one write for many, new images in between."""

import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa
from factories import rows, utc
from test_score import GOOD, SETTINGS, Lab, bomb, photograph

from marcod.database.engine import Database
from marcod.database.schema import campaign_range, image, job, score
from marcod.model.registry import Registry
from marcod.scoring import range_work
from marcod.scoring import scorer as loop
from marcod.scoring.outcomes import BatchReport
from marcod.store import campaigns
from marcod.store.campaigns import Archive, State
from marcod.store.versions import Version


@pytest.fixture
def lab(db: Database, registry: Registry, tmp_path: Path) -> Lab:
    return Lab(db, registry, tmp_path / "root")


def begin(lab: Lab, version: Version) -> int:
    """Begin a campaign over everything."""
    found = lab.db.read(campaigns.survey, version.id, Archive(), 0)
    assert found is not None
    return lab.db.write(campaigns.begin, version.id, Archive(), found.owed, "test", utc(2))


def scored(lab: Lab, version: Version) -> list[str]:
    """Paths of the images that a version scored."""
    paths = sa.select(image.c.path).join(score, score.c.image_id == image.c.id)
    return sorted(path for (path,) in rows(lab.db, paths.where(score.c.model_version_id == version.id)))


def only(lab: Lab) -> campaigns.Campaign:
    (one,) = lab.db.read(campaigns.listed, utc(5), every=True)
    return one


def test_an_archive_is_scored_in_batches_and_written_at_once(lab: Lab, second: Version) -> None:
    for seed in range(11):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    lab.drain()
    lab.reports.clear()
    begin(lab, second)
    lab.drain(utc(3))
    assert scored(lab, second) == [f"{seed:02}.jpg" for seed in range(11)]
    assert [(one.model, one.scored) for one in lab.reports] == [(str(second), 11)]
    assert only(lab).state is State.FINISHED
    assert rows(lab.db, sa.select(campaign_range)) == []


def test_an_image_that_cannot_be_read_becomes_a_job_that_is_tried_again(lab: Lab, second: Version) -> None:
    for name, data in GOOD.items():
        lab.deliver(name, data)
    lab.drain()
    begin(lab, second)
    (lab.root / "rgb.jpg").write_bytes(photograph(1)[:-600])
    (lab.root / "cmyk.jpg").write_bytes(bomb())
    (lab.root / "grey.jpg").rename(lab.root / "away")
    lab.drain(utc(3))
    assert only(lab).state is State.FINISHED
    assert set(lab.failed()) == {"cmyk.jpg"}
    assert {path: attempts for path, (attempts, _) in lab.waiting().items()} == {"rgb.jpg": 1, "grey.jpg": 1}
    (lab.root / "rgb.jpg").write_bytes(photograph(1))
    for attempt in range(1, 5):
        lab.drain(utc(hours=attempt))
    assert scored(lab, second) == sorted(set(GOOD) - {"cmyk.jpg", "grey.jpg"})


def test_a_source_that_is_offline_puts_its_range_off_without_a_job(lab: Lab, second: Version) -> None:
    for seed in range(6):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    lab.drain()
    begin(lab, second)
    lab.root.rename(lab.root.parent / "unmounted")
    lab.drain(utc(3))
    (waiting,) = rows(lab.db, sa.select(campaign_range))
    assert (waiting.error, waiting.available_at) == ("source imager is away", utc(3 + SETTINGS.retry_s))
    assert (rows(lab.db, sa.select(job)), only(lab).left) == ([], 6)
    lab.drain(utc(4))
    (lab.root.parent / "unmounted").rename(lab.root)
    lab.drain(utc(60))
    assert len(scored(lab, second)) == 6
    assert only(lab).state is State.FINISHED


def test_new_images_come_between_two_batches_of_a_campaign(
    lab: Lab, second: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ASK_S", 0.0)
    for seed in range(12):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    lab.drain()
    begin(lab, second)
    scores: list[tuple[str, int]] = []

    def deliver_once(version: Version) -> object:
        if version.id == second.id:
            lab.deliver("new.jpg", photograph(99), utc(3))
        return lab.registry.load(version, SETTINGS.most_images)

    def note(report: BatchReport) -> None:
        scores.append((report.model, report.scored))

    lab.scorer(utc(4), load=deliver_once, on_batch=note).drain(threading.Event())
    assert [images for model, images in scores if model != str(second)] == [1]
    assert scores[-1] == (str(second), 12)
    assert len(scored(lab, second)) == 12


def test_what_was_scored_when_it_is_stopped_is_kept(lab: Lab, second: Version) -> None:
    for seed in range(12):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    lab.drain()
    begin(lab, second)
    stop, turns = threading.Event(), list[int]()

    def alive() -> None:
        turns.append(1)
        if len(turns) >= 2:
            stop.set()

    lab.scorer(utc(3)).run(stop, alive)
    done = len(scored(lab, second))
    assert 0 < done < 12
    assert only(lab).left == 12 - done
    (waiting,) = rows(lab.db, sa.select(campaign_range))
    assert (waiting.lease, waiting.available_at) == (None, None)
    lab.drain(utc(3))
    assert len(scored(lab, second)) == 12


def test_a_version_that_cannot_be_loaded_leaves_its_campaign_to_others(lab: Lab, second: Version) -> None:
    for seed in range(3):
        lab.deliver(f"{seed}.jpg", photograph(seed))
    lab.drain()
    begin(lab, second)

    def refuse(version: Version) -> object:
        if version.id == second.id:
            raise RuntimeError("no room")
        return lab.registry.load(version, SETTINGS.most_images)

    lab.scorer(utc(3), load=refuse).drain(threading.Event())
    (waiting,) = rows(lab.db, sa.select(campaign_range))
    assert (waiting.lease, waiting.error) == (None, "RuntimeError: no room")
    lab.drain(utc(4))
    assert len(scored(lab, second)) == 3


def leases(lab: Lab) -> list[str | None]:
    return [lease for (lease,) in rows(lab.db, sa.select(campaign_range.c.lease))]


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_that_leaves_a_range_for_new_images_and_ends_gives_it_back(
    lab: Lab, second: Version, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    monkeypatch.setattr(range_work, "GATHERED_S", 0.0)
    monkeypatch.setattr(loop, "ASK_S", 0.0)
    for seed in range(11):
        lab.deliver(f"{seed:02}.jpg", photograph(seed))
    lab.drain()
    begin(lab, second)
    stop, models = threading.Event(), list[str]()

    def report(batch: BatchReport) -> None:
        models.append(batch.model)
        if models == [str(second)]:
            for seed in range(20, 32):
                lab.deliver(f"{seed:02}.jpg", photograph(seed), utc(2))
        elif str(second) != batch.model and fails:
            fail()
        elif str(second) != batch.model:
            stop.set()

    def fail() -> None:
        nonlocal fails
        fails = False
        raise RuntimeError("the metrics are away")

    scorer = lab.scorer(utc(3), on_batch=report)
    with pytest.raises(RuntimeError, match="away") if fails else nullcontext():
        scorer.run(stop)
    assert 0 < len(scored(lab, second)) < 11
    assert leases(lab) == [None]
    scorer.drain(threading.Event())
    assert only(lab).state is State.FINISHED
    assert set(scored(lab, second)) >= {f"{seed:02}.jpg" for seed in range(11)}
