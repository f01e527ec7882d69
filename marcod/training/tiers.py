"""Tiers of training: how much of a network the labels outside the test side can carry."""

from collections import Counter
from typing import Final, Literal

from marcod.domain import DropClass, Split
from marcod.settings import TrainSettings
from marcod.text import count
from marcod.training.snapshot import Item, Snapshot

Tier = Literal["recalibrate", "normalization", "offsets", "classes", "head", "all", "scratch"]

STEPS: Final[tuple[Tier, ...]] = ("recalibrate", "normalization", "offsets", "classes", "head")
"""Tiers that leave all kernels but the last layer's alone, the one that changes least first."""

KEEPS_CRYSTALS: Final[tuple[Tier, ...]] = ("offsets", "classes")
"""Tiers that leave crystals ranked nearly as they are, and change what is said of the other classes."""

FEWEST_DROPS: Final = 3
"""Labelled drops with crystals, and as many without, from which anything is learned."""

FEWEST_PLATES: Final = 2
"""Labelled plates outside the test side: one to learn from, another to see what it was good for."""


def tier_for(snapshot: Snapshot, settings: TrainSettings) -> Tier:
    """Choose the highest tier by the drops labelled as crystals outside the test side.

    How far a run really goes up to the last layer is decided by labels that nothing had learned from.
    """
    if not snapshot.side(Split.TRAIN):
        return "recalibrate"
    if settings.recipe == "scratch":
        return "scratch"
    crystals = _drops(snapshot)[DropClass.CRYSTALS]
    if crystals < settings.head_crystals:
        return "classes"
    return "head" if crystals < settings.all_crystals else "all"


def find_missing(snapshot: Snapshot) -> str | None:
    """Return a sentence on what the labels outside the test side lack to carry any candidate; None if they do."""
    drops, plates = _drops(snapshot), len({(i.source, i.plate_key) for i in _own(snapshot)})
    crystals = drops.pop(DropClass.CRYSTALS, 0)
    others = sum(drops.values())
    if min(crystals, others) >= FEWEST_DROPS and plates >= FEWEST_PLATES:
        return None
    return (
        f"outside the test side there are {count(crystals, 'drop')} labelled as crystals, {others} as anything else, "
        f"and {count(plates, 'plate')}; a candidate takes {FEWEST_DROPS}, {FEWEST_DROPS} and {FEWEST_PLATES}"
    )


def _drops(snapshot: Snapshot) -> Counter[DropClass]:
    """Count labelled drops outside the test side by class."""
    return Counter(label for _, label in {(item.drop_id, item.label) for item in _own(snapshot)})


def _own(snapshot: Snapshot) -> list[Item]:
    return [*snapshot.side(Split.TRAIN), *snapshot.side(Split.VALIDATION)]
