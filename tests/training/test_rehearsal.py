"""The base set: rendered once or a lab's folder, the same images on the same sides each time."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from marcod import synthetic
from marcod.domain import CLASSES, Split
from marcod.errors import ConfigError
from marcod.model.bundle import BundleRecord, Threshold
from marcod.settings import TrainSettings
from marcod.training import rehearsal
from marcod.training.rehearsal import RehearsalSet


def parent(*, made_up: bool = True) -> BundleRecord:
    """A record that needs no bundle."""
    return BundleRecord(
        name="made",
        version=1,
        classes=tuple(CLASSES),
        temperature=1.0,
        training_data="none",
        licence="Apache-2.0",
        synthetic=made_up,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture={"family": "none"},
        preprocessing={"size": 1},
        folding={c: c for c in CLASSES},
        threshold=Threshold(crystal=0.5, measured_on="nothing"),
    )


def load(
    settings: TrainSettings,
    record: BundleRecord | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> RehearsalSet:
    return rehearsal.load(settings, record or parent(), progress=progress, stopped=stopped, processes=1)


def settings(folder: Path, *, images: int = 100, **more: object) -> TrainSettings:
    """Settings of a lab that may render fewer drops than a real one."""
    return TrainSettings(folder=folder, **more).model_copy(update={"base_images": images})


def test_rendered_drops_are_for_every_model_of_visible_light(tmp_path: Path) -> None:
    auto, folder = TrainSettings(folder=tmp_path), TrainSettings(folder=tmp_path, base="none", base_folder=tmp_path)
    photographs = parent(made_up=False)
    ultraviolet = photographs.model_copy(update={"modality": "uv"})
    assert [rehearsal.wanted(auto, of) for of in (parent(), photographs, ultraviolet)] == ["rendered"] * 2 + ["none"]
    assert rehearsal.wanted(TrainSettings(base="rendered"), ultraviolet) == "rendered"
    assert rehearsal.wanted(folder, parent()) == "folder"
    assert load(auto, ultraviolet) is rehearsal.NOTHING
    assert rehearsal.NOTHING.side(Split.TRAIN) == ()


@pytest.mark.slow
def test_a_rendered_set_is_whole_only_with_its_list_and_drawn_once(tmp_path: Path) -> None:
    lab, shown = settings(tmp_path, images=9), []
    folder = tmp_path / "base" / "rendered-9"
    with pytest.raises(InterruptedError):
        load(lab, stopped=lambda: len(list(folder.glob("*.jpg"))) > 0)
    assert not (folder / rehearsal.LIST).exists()
    first = load(lab, progress=lambda *step: shown.append(step))
    assert shown == [("rendering the base set", done, 9) for done in range(1, 10)]
    assert len(first.images) == 9
    for image in first.images:
        data, label = synthetic.drop_jpeg(rehearsal.FIRST_SEED + int(image.file.stem.rpartition("-")[2]))
        assert (image.file.read_bytes(), image.label) == (data, label)
        assert (image.source, image.imager) == (rehearsal.SOURCE, rehearsal.IMAGER)
    assert first.synthetic
    assert "9 rendered drops" in first.about
    shown.clear()
    assert load(lab, progress=lambda *step: shown.append(step)) == first
    assert shown == []


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A lab's folder: 240 images of 60 plates, most of which are no images at all, since nobody reads them here."""
    with (tmp_path / rehearsal.LIST).open("w", newline="") as stream:
        rows = [(f"{i}.jpg", CLASSES[i % 4], f"P{i % 60}") for i in range(240)]
        csv.writer(stream).writerows([("image", "label", "plate"), *rows])
    for i in range(240):
        (tmp_path / f"{i}.jpg").touch()
    return tmp_path


def test_a_lab_s_folder_stands_on_sides_by_plate(listed: Path, tmp_path: Path) -> None:
    found = load(settings(tmp_path, images=240, base_folder=listed))
    sides = {split: {image.group for image in found.side(split)} for split in Split}
    assert all(sides.values())
    assert sum(len(found.side(split)) for split in Split) == sum(map(len, sides.values())) * 4 == 240
    assert not found.synthetic
    assert f"240 of 240 images in {listed}, list " in found.about


def test_a_part_of_a_folder_is_the_same_each_time_and_stays_on_its_sides(listed: Path, tmp_path: Path) -> None:
    whole = load(settings(tmp_path, images=240, base_folder=listed))
    some, again = (load(settings(tmp_path, images=50, base_folder=listed)) for _ in range(2))
    assert some == again
    assert len(some.images) == 50
    assert load(settings(tmp_path, images=50, base_folder=listed, seed=2)).images != some.images
    for split in Split:
        assert set(some.side(split)) <= set(whole.side(split))


def test_another_list_is_another_set(listed: Path, tmp_path: Path) -> None:
    before = load(settings(tmp_path, base_folder=listed)).about
    with (listed / rehearsal.LIST).open("a") as stream:
        stream.write("0b.jpg,Clear,P0\n")
    (listed / "0b.jpg").touch()
    assert load(settings(tmp_path, base_folder=listed)).about != before
    (listed / rehearsal.LIST).unlink()
    with pytest.raises(ConfigError, match=r"labels\.csv cannot be read"):
        load(settings(tmp_path, base_folder=listed))
