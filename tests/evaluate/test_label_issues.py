"""Suspects among simulated labels: a real classifier, trained out of fold on labels some of which are wrong.

The features are synthetic: four overlapping clouds whose best possible accuracy is about nine in ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from marcod.domain import CLASSES, DropClass
from marcod.evaluate.label_issues import LabelIssues, find, folds

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES
PREVALENCE = (0.45, 0.15, 0.10, 0.30)
PERSONS = ("ada", "bob", "cyd")
PER_PLATE = 48


@dataclass
class Lab:
    """Drops with what they truly are, what is said of them, by whom, and what a model that saw no answer thinks."""

    truth: NDArray[np.intp]
    labels: NDArray[np.intp]
    persons: list[Mapping[str, DropClass]]
    probabilities: NDArray[np.float64]

    @property
    def flipped(self) -> NDArray[np.bool_]:
        return self.truth != self.labels

    def found(self) -> LabelIssues:
        return find(self.probabilities, self.labels, self.persons)


def lab(seed: int, *, random: float = 0.0, swapper: str | None = None, drops: int = 2400) -> Lab:
    """``random`` of the labels are another class; ``swapper`` takes crystals for clear drops and the reverse."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, drops, p=PREVALENCE)
    features = rng.normal(0, 1, (drops, 6)) + 2.6 * np.eye(4, 6)[truth]
    plate = np.arange(drops) // PER_PLATE
    person = rng.integers(0, 3, plate[-1] + 1)[plate]
    wrong = rng.random(drops) < random
    labels = np.where(wrong, (truth + rng.integers(1, 4, drops)) % 4, truth)
    if swapper is not None:
        labels = np.where(person == PERSONS.index(swapper), np.array([1, 0, 2, 3])[labels], labels)
    fold = folds([f"P{p}" for p in plate], 4)
    probabilities = np.zeros((drops, 4))
    for part in range(4):
        model = LogisticRegression(C=1.0).fit(features[fold != part], labels[fold != part])
        probabilities[fold == part] = model.predict_proba(features[fold == part])
    said = [{PERSONS[p]: CLASSES[w]} for p, w in zip(person, labels, strict=True)]
    return Lab(truth, labels, said, probabilities)


@pytest.mark.slow
def test_most_of_random_flips_are_listed_and_their_share_is_known() -> None:
    poisoned = lab(1, random=0.3)
    found = poisoned.found()
    listed = [s.index for s in found.suspects]
    assert poisoned.flipped[listed].sum() > 0.7 * poisoned.flipped.sum()
    assert poisoned.flipped[listed].mean() > 0.8
    assert poisoned.flipped[listed[:100]].mean() > 0.95
    assert found.noise == pytest.approx(poisoned.flipped.mean(), abs=0.05)
    assert found.judged > 0.6 * len(poisoned.labels)


@pytest.mark.slow
def test_one_who_swaps_crystals_and_clear_drops_is_found() -> None:
    poisoned = lab(2, swapper="bob")
    found = poisoned.found()
    listed = [s.index for s in found.suspects]
    assert poisoned.flipped[listed].sum() > 0.7 * poisoned.flipped.sum()
    of = {person.person: person for person in found.by_person}
    assert set(of["bob"].confused or ()) == {CRYSTALS, CLEAR}
    assert [name for name in PERSONS if of[name].swapped] == ["bob"]
    assert of["bob"].interval is not None
    for other in ("ada", "cyd"):
        assert of[other].interval is not None
        assert of["bob"].interval[0] > of[other].interval[1]
    assert sum(person.labels for person in found.by_person) == len(poisoned.labels)


@pytest.mark.slow
def test_clean_labels_give_few_suspects_and_accuse_nobody() -> None:
    found = lab(3).found()
    assert len(found.suspects) < 0.03 * 2400
    assert found.noise < 0.04
    assert not any(person.swapped for person in found.by_person)


def test_the_thresholds_and_the_joint_by_hand() -> None:
    probabilities = np.array([
        [0.8, 0.2, 0.0, 0.0],
        [0.6, 0.3, 0.1, 0.0],
        [0.1, 0.9, 0.0, 0.0],
        [0.3, 0.7, 0.0, 0.0],
        [0.9, 0.1, 0.0, 0.0],
    ])  # fmt: skip
    labels = np.array([0, 0, 0, 1, 1])
    persons: list[dict[str, DropClass]] = [
        {"ada": CLEAR},
        {"ada": CLEAR},
        {"ada": CLEAR},
        {"ada": CRYSTALS},
        {"bob": CRYSTALS, "ada": CLEAR},
    ]
    # Thresholds: clear (0.8 + 0.6 + 0.1) / 3 = 0.5, crystals (0.7 + 0.1) / 2 = 0.4.
    found = find(probabilities, labels, persons)
    assert [(s.index, s.given, s.likely, round(s.margin, 6)) for s in found.suspects] == [
        (2, CLEAR, CRYSTALS, -0.8),
        (4, CRYSTALS, CLEAR, -0.8),
    ]
    assert found.judged == 5
    assert found.noise == pytest.approx(2 / 5)
    ada, bob = found.by_person
    assert (ada.labels, ada.judged, ada.share, bob.share) == (5, 5, 0.2, 1.0)
    assert ada.table[0][:2] == (3, 1)
    assert (ada.confused, bob.confused) == ((CLEAR, CRYSTALS), (CRYSTALS, CLEAR))
    assert not bob.swapped
    # Less weight on the second and third rows raises the threshold of clear to 0.65, above the second row.
    weighted = find(probabilities, labels, persons, np.array([1.0, 0.25, 0.25, 1.0, 1.0]))
    assert weighted.judged == 4
    assert weighted.noise == pytest.approx((1.5 * 0.25 / 1.25 + 2.0 * 1.0 / 2.0) / 3.5)


def test_what_no_threshold_reaches_is_not_judged() -> None:
    found = find(np.array([[0.9, 0.1, 0, 0], [0.5, 0.5, 0, 0]]), np.array([0, 0]), [{}, {"ada": CLEAR}])
    assert (found.judged, found.suspects, found.noise) == (1, (), 0.0)
    [ada] = found.by_person
    assert (ada.labels, ada.judged, ada.share, ada.interval, ada.confused, ada.swapped) == (
        1,
        0,
        None,
        None,
        None,
        False,
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 6))
def test_a_plate_is_in_one_fold_and_no_fold_is_empty_without_need(numbers: list[int], k: int) -> None:
    plates = [f"cellar/P{number}" for number in numbers]
    found = folds(plates, k)
    assert len(set(zip(plates, found.tolist(), strict=True))) == len(set(plates))
    assert len(set(found.tolist())) == min(k, len(set(plates)))
    again = folds(plates[::-1], k)
    assert again[::-1].tolist() == found.tolist()
