"""Doubts about labels: found by what had not seen the plate, with the images and the model a lab has."""

from dataclasses import replace
from pathlib import Path

import pytest
from lab_snapshots import item, snapshot, written

from marcod.domain import CLASSES, Split
from marcod.errors import MarcodError
from marcod.fitting import adapt
from marcod.training import out_of_fold

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES
FLIPPED, DAMAGED = 21, 30


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and longer steps: with so few images most of the time is what a pass costs in Keras."""
    monkeypatch.setattr(adapt, "HEAD_EPOCHS", 15)
    monkeypatch.setattr(adapt, "HEAD_RATE", 1e-2)


def test_a_label_that_no_other_plate_bears_out_is_doubted(pristine_bundle: Path, tmp_path: Path) -> None:
    """Even where a source is named as the base set is, and on the test side."""
    items = [written(item(n, tmp_path, source="base", side=list(Split)[n // 20])) for n in range(40)]
    items[FLIPPED] = replace(items[FLIPPED], label=PRECIPITATE, shares=(0, 0, 0, 1), persons={"bob": PRECIPITATE})
    (tmp_path / items[DAMAGED].path).write_bytes(b"no image")
    seen: list[int] = []
    found = out_of_fold.find(snapshot(items), pristine_bundle, {}, threads=2, seed=1, done=seen.append)
    worst = found.issues.suspects[0]
    assert found.items[worst.index] == items[FLIPPED]
    assert (worst.given, worst.likely) == (PRECIPITATE, CRYSTALS)
    assert len(found.issues.suspects) < 6
    assert [person.person for person in found.issues.by_person] == ["ada", "bob"]
    assert len(found.items) == 39
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith(f"{tmp_path / items[DAMAGED].path}: ")
    assert seen == [16, 32, 40]


def test_labels_on_one_plate_cannot_be_compared(pristine_bundle: Path, tmp_path: Path) -> None:
    items = [written(item(number, tmp_path)) for number in range(6)]
    with pytest.raises(MarcodError, match="labels on one plate cannot be compared with others"):
        out_of_fold.find(snapshot(items), pristine_bundle, {}, threads=1, seed=1)
