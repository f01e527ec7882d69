"""How much the labels outside the test side can carry, and what they lack."""

from pathlib import Path

import pytest
from lab_snapshots import item, snapshot

from marcod.domain import CLASSES, CRYSTALS, Split
from marcod.settings import TrainSettings
from marcod.training import tiers
from marcod.training.snapshot import Item


def labelled(crystals: int, others: int, plates: int = 4, side: Split = Split.TRAIN) -> list[Item]:
    """So many drops of crystals and others, in turn on the plates."""
    classes = [CLASSES[CRYSTALS]] * crystals + [c for c in CLASSES if c is not CLASSES[CRYSTALS]] * others
    return [
        item(n, Path(), label=label, plate_key=f"P{n % plates}", side=side)
        for n, label in enumerate(classes[: crystals + others])
    ]


@pytest.mark.parametrize(("crystals", "tier"), [(4, "classes"), (5, "head"), (299, "head"), (300, "all")])
def test_crystals_decide_how_much_may_change(crystals: int, tier: str) -> None:
    assert tiers.tier_for(snapshot(labelled(crystals, 20)), TrainSettings()) == tier


def test_the_test_side_carries_nothing_and_without_a_training_side_nothing_is_learned() -> None:
    tested = [item(1000 + n, Path(), side=Split.TEST) for n in range(400)]
    assert tiers.tier_for(snapshot([*labelled(9, 9), *tested]), TrainSettings(head_crystals=10)) == "classes"
    assert tiers.tier_for(snapshot(labelled(400, 9, side=Split.VALIDATION)), TrainSettings()) == "recalibrate"
    assert tiers.tier_for(snapshot(labelled(9, 9)), TrainSettings(recipe="scratch")) == "scratch"


def test_labels_that_carry_nothing_are_named_with_what_is_missing() -> None:
    assert tiers.find_missing(snapshot(labelled(3, 3, plates=2))) is None
    for few in (labelled(2, 40), labelled(40, 2), labelled(40, 40, plates=1), []):
        assert tiers.find_missing(snapshot(few)) is not None
    assert tiers.find_missing(snapshot(labelled(0, 7, plates=1))) == (
        "outside the test side there are 0 drops labelled as crystals, 7 as anything else, and 1 plate; "
        "a candidate takes 3, 3 and 2"
    )
