"""The rule of a committee whose member learned: its constants follow, and labels correct what all members favour."""

from pathlib import Path

import numpy as np
import pytest
from factories import utc
from labelled_sets import record
from random_bundles import LoadOnce, combine

from marcod.database.engine import Database
from marcod.domain import CRYSTALS, DropClass
from marcod.model import committee
from marcod.model.committee import Committee, Member
from marcod.model.probabilities import softmax
from marcod.training import assess, committees
from marcod.training.data import TrainingSet
from marcod.training.rehearsal import SOURCE


def rule() -> Committee:
    members = tuple(
        Member(name=name, version=1, digest="0" * 64, mean=-1, deviation=2, weight=1) for name in ("left", "own")
    )
    return Committee(members=members, clip=10, mean=-1.5, deviation=2.8, fixed_on="nothing")


def rows(labels: np.ndarray, *, lab: bool = True) -> TrainingSet:
    count, none = len(labels), tuple({} for _ in labels)
    names = tuple(str(i) for i in range(count))
    return TrainingSet(
        tuple(Path(name) for name in names), ("",) * count, labels, np.eye(4, dtype=np.float32)[labels],
        np.ones(count, np.float32),
        ("imager" if lab else SOURCE,) * count, names, names, np.zeros(count, bool), none,
    )  # fmt: skip


def test_the_constants_of_the_member_that_learned_follow_its_logits() -> None:
    """A member that is surer and says more crystals has the same word as before; a changed order changes the score."""
    logits = np.random.default_rng(1).normal(0, 1.5, (40, 2, 4))
    logits[:, :, [0, 2, 3]] = np.log(1 / 3)
    before = softmax(logits.reshape(-1, 4)).reshape(40, 2, 4)
    logits[:, 0, CRYSTALS] = 1.7 * logits[:, 0, CRYSTALS] + 0.8
    after = softmax(logits.reshape(-1, 4)).reshape(40, 2, 4)
    new = committees.moved(rule(), 0, record().model_copy(update={"name": "lab", "digest": "1" * 64}), before, after)
    assert [str(m) for m in new.members] == ["lab:1", "own:1"]
    assert (new.members[0].digest, new.members[1]) == ("1" * 64, rule().members[1])
    assert new.logits(after)[:, CRYSTALS] == pytest.approx(rule().logits(before)[:, CRYSTALS], abs=1e-4)
    few = committees.moved(rule(), 0, record(), before[:5], after[:5])
    assert (few.members[0].mean, few.members[0].deviation) == (-1, 2)


def test_labels_correct_a_class_that_every_member_favours() -> None:
    """A new imager: all that is clear is called precipitate, as one of them does on another imager's thumbnails."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 3], 24)
    logits = rng.normal(0, 1, (24, 2, 4))
    logits[np.arange(24), :, labels] += 2
    logits[:, :, 3] += 7
    scores = softmax(logits.reshape(-1, 4)).reshape(24, 2, 4)
    plain = rule()
    found = committees.offsets(plain, scores, rows(labels))
    assert DropClass.CRYSTALS not in found
    corrected = plain.model_copy(update={"offsets": found})
    assert (plain.logits(scores).argmax(axis=1) == labels).mean() < 0.7
    assert (corrected.logits(scores).argmax(axis=1) == labels).mean() > 0.8
    assert np.array_equal(corrected.logits(scores)[:, CRYSTALS], plain.logits(scores)[:, CRYSTALS])
    whole = softmax(corrected.logits(scores))[:, CRYSTALS]
    assert whole == pytest.approx(softmax(plain.logits(scores))[:, CRYSTALS], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_network_that_learned_is_the_one_that_the_champion_lacks(db: Database, members: Path) -> None:
    """Whoever its parent is: another member may have the same."""
    registry = LoadOnce(db, members)
    left, own = (registry.load(registry.resolve_registered(name, utc()), 4) for name in ("left:1", "own:1"))
    both = registry.load(combine(registry, members, "left:1", "own:1"), 4)
    assert (assess.learned(left, both), assess.learned(own, both)) == (own, left)
    assert assess.learned(left, own) is own


def test_without_labels_nothing_moves() -> None:
    scores = np.full((0, 2, 4), 0.25, np.float32)
    found = committees.offsets(rule(), scores, rows(np.zeros(0, np.intp)))
    assert found == rule().offsets


def test_a_few_labels_of_a_class_move_no_offset() -> None:
    labels = np.array([0] * 20 + [3] * (committees.FEWEST - 1))
    noise = np.random.default_rng(1).normal(0, 1, (len(labels) * 2, 4))
    scores = softmax(noise).reshape(-1, 2, 4)
    assert committees.offsets(rule(), scores, rows(labels)) == rule().offsets
    assert committee.OTHERS == (0, 2, 3)
