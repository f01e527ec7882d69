"""Scoring with a committee: each member scores an image once per content, for itself and for every committee."""

import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import factories
import numpy as np
import pytest
import random_bundles
import sqlalchemy as sa
from factories import utc
from test_score import Lab, photograph

from marcod.database.engine import Database
from marcod.database.schema import job, model_version, score
from marcod.model.predictor import Predictor
from marcod.plates import reports
from marcod.store import queue
from marcod.store.versions import Version


class Counting(random_bundles.LoadOnce):
    """A registry whose networks count the images that they score, by name."""

    seen: ClassVar[Counter[str]] = Counter()

    def _load(self, path: Path, digest: str, batch_size: int) -> Predictor:
        found = super()._load(path, digest, batch_size)
        for network in found.networks:
            _count(network, self.seen)
        return found


def _count(network: Predictor, seen: Counter[str]) -> None:
    if hasattr(network, "counted"):
        return
    predict, name = network.predict, f"{network.record.name}:{network.record.version}"

    def counted(batch: np.ndarray) -> np.ndarray:
        seen[name] += len(batch)
        return predict(batch)

    network.predict, network.counted = counted, True  # type: ignore[method-assign, attr-defined]


@pytest.fixture
def registry(db: Database, members: Path) -> Counting:
    found = Counting(db, members)
    found.promote(found.register("left", "1", utc()), actor="test", now=utc())
    return found


@pytest.fixture
def committee(registry: Counting, members: Path) -> Version:
    made = random_bundles.combine(registry, members, "left:1", "own:1")
    # Its golden images count as little as the drops that its constants were fixed on.
    registry.load(made, 4)
    registry.seen.clear()
    return made


@pytest.fixture
def lab(db: Database, registry: Counting, committee: Version, tmp_path: Path) -> Lab:
    made = Lab(db, registry, tmp_path / "root")
    for seed in range(6):
        made.deliver(f"{seed}.jpg", photograph(seed))
    return made


def stored(lab: Lab) -> dict[str, dict[int, tuple[float, ...]]]:
    """The four probabilities by version and image."""
    columns = (score.c.p_clear, score.c.p_crystals, score.c.p_other, score.c.p_precipitate)
    statement = sa.select(model_version.c.name, score.c.image_id, *columns).join(score)
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for name, image_id, *values in factories.rows(lab.db, statement):
        found.setdefault(name, {})[image_id] = tuple(values)
    return found


def owe(lab: Lab, version: Version) -> None:
    lab.db.write(lambda c: queue.enqueue_rescore(c, version.id, utc(1)))


def jobs(lab: Lab) -> int:
    return len(factories.rows(lab.db, sa.select(job.c.id)))


def test_stored_scores_of_members_are_used(lab: Lab, committee: Version, registry: Counting) -> None:
    lab.drain()
    assert registry.seen == {"left:1": 6}
    owe(lab, committee)
    lab.drain(utc(2))
    assert registry.seen == {"left:1": 6, "own:1": 6}
    found = stored(lab)
    assert {name: len(its) for name, its in found.items()} == {"left": 6, "own": 6, "committee": 6}
    rule = registry.load(committee, 4)
    for image_id, own in found["committee"].items():
        given = [[found["left"][image_id], found["own"][image_id]]]
        assert rule.combine(given)[0] == pytest.approx(own, abs=1e-7)  # type: ignore[attr-defined]
    [row] = factories.rows(
        lab.db, sa.select(score.c.vector).join(model_version).where(model_version.c.name == "own").limit(1)
    )
    assert set(row.vector) == {"clear", "crystals", "skin", "light", "dry", "needles"}


def test_a_member_of_the_batch_before_is_not_asked_again(lab: Lab, committee: Version, registry: Counting) -> None:
    """The committee's jobs are claimed while the member's scores of the same images are on their way."""
    owe(lab, committee)
    lab.drain(utc(2))
    assert registry.seen == {"left:1": 6, "own:1": 6}


def test_members_that_a_committee_asked_need_no_job_of_their_own(
    lab: Lab, committee: Version, registry: Counting
) -> None:
    """As challenger the member was to score the images too; the champion that it belongs to did it on the way."""
    six = registry.find("own:1")
    registry.promote(committee, actor="test", now=utc(1))
    owe(lab, six)
    lab.drain(utc(2))
    assert registry.seen == {"left:1": 6, "own:1": 6}
    assert jobs(lab) == 0
    # Who speaks is the committee; the members are asked for by name.
    [shown] = factories.rows(lab.db, sa.text("select distinct model from lims_drop_v1"))
    assert shown.model == "committee"
    assert {(s.model, s.scored) for s in lab.db.read(reports.summaries)} == {("committee", 6)}


def test_a_rewritten_file_is_scored_by_every_member_again(lab: Lab, committee: Version, registry: Counting) -> None:
    registry.promote(committee, actor="test", now=utc(1))
    lab.drain(utc(2))
    (lab.root / "0.jpg").write_bytes(photograph(77))
    lab._wells = 0
    lab.record("0.jpg", utc(3))
    lab.drain(utc(4))
    assert registry.seen == {"left:1": 7, "own:1": 7}


def test_an_image_that_one_member_cannot_score_fails_alone(
    lab: Lab, committee: Version, registry: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(committee, actor="test", now=utc(1))
    loaded = registry.load(committee, 4)
    member = loaded.networks[1]
    poison, predict = member.prepare(photograph(3)), member.predict

    def fails(batch: np.ndarray) -> np.ndarray:
        vectors = predict(batch)
        odd = [i for i, pixels in enumerate(batch) if np.array_equal(pixels, poison)]
        vectors[odd] = np.nan
        return vectors

    monkeypatch.setattr(member, "predict", fails)
    lab.drain(utc(2))
    assert lab.failed() == {"3.jpg": "the model gave no number for it"}
    assert {name: len(its) for name, its in stored(lab).items()} == {"left": 5, "own": 5, "committee": 5}


def test_decoding_is_left_out_where_every_member_is_stored(lab: Lab, committee: Version, registry: Counting) -> None:
    lab.drain()
    six = registry.find("own:1")
    owe(lab, six)
    lab.drain(utc(2))
    asked: list[Collection[int]] = []
    predictor = registry.load(committee, 4)
    inputs = predictor.inputs

    def noted(data: bytes, wanted: Collection[int]) -> dict[int, np.ndarray]:
        asked.append(wanted)
        return inputs(data, wanted)

    predictor.inputs = noted  # type: ignore[method-assign]
    try:
        owe(lab, committee)
        lab.scorer(utc(3), load=lambda version: predictor).drain(threading.Event())
    finally:
        del predictor.inputs
    assert [list(wanted) for wanted in asked] == [[]] * 6
    assert registry.seen == {"left:1": 6, "own:1": 6}
