"""Conversion to a lower precision: the threshold that it chooses, what it compares, and when it refuses."""

import socket
from dataclasses import replace
from pathlib import Path

import labelled_sets
import numpy as np
import pytest
import random_bundles
from factories import utc
from labelled_sets import labelled
from tiny import TINY, jpeg, random_weights

from marcod.domain import CRYSTALS, DropClass, Precision
from marcod.errors import BundleError, ConfigError, HostLacksError
from marcod.model import backend, bundle, network
from marcod.model.bundle import Conversion, Threshold
from marcod.model.predictor import NetworkPredictor
from marcod.model.registry import Registry
from marcod.settings import TrainSettings
from marcod.training import conversion
from marcod.training.conversion import Comparison, LabImages
from marcod.training.snapshot_rows import StoredImage

FORMER = Threshold(crystal=0.5, recall=0.9, measured_on="a lab")


def chosen(before: list[float], after: list[float], crystals: tuple[int, ...] = ()) -> float:
    found = conversion.choose_threshold(FORMER, np.array(before, np.float32), np.array(after, np.float32), crystals)
    return found.crystal


def test_as_many_images_are_hits_as_before() -> None:
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.8, 0.3, 0.2, 0.1]) == pytest.approx(0.3, abs=2e-6)
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.8, 0.3, 0.35, 0.1]) == pytest.approx(0.35, abs=2e-6)


def test_of_the_thresholds_with_as_many_hits_the_one_next_to_the_former_is_taken() -> None:
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.95, 0.93, 0.2, 0.1]) == FORMER.crystal
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.9, 0.8, 0.7, 0.1]) == pytest.approx(0.7, abs=2e-6)
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.9, 0.8, 0.7, 0.1]) >= 0.7


def test_a_labelled_crystal_that_was_found_is_found() -> None:
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.8, 0.3, 0.35, 0.1], (1,)) == pytest.approx(0.3, abs=2e-6)
    # One that the parent does not find asks for nothing.
    assert chosen([0.9, 0.6, 0.4, 0.1], [0.8, 0.3, 0.35, 0.1], (3,)) == pytest.approx(0.35, abs=2e-6)


@pytest.mark.parametrize("before", [[0.1, 0.2], [0.9, 0.8], []])
def test_without_a_hit_or_with_hits_alone_the_former_threshold_stays(before: list[float]) -> None:
    assert chosen(before, before) == FORMER.crystal


@pytest.fixture
def networks(tmp_path: Path) -> tuple[NetworkPredictor, NetworkPredictor]:
    """Two networks whose scores differ, as of a parent and a conversion that went wrong."""
    loaded = [bundle.load(random_bundles.write_unsure(tmp_path / name, "random", i)) for i, name in enumerate("ab")]
    parent, made = (one for one in loaded if isinstance(one, NetworkPredictor))
    return parent, made


@pytest.fixture
def drops(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{number}.jpg" for number in range(24)]
    for number, file in enumerate(files):
        file.write_bytes(jpeg(number))
    return files


def with_hits(parent: NetworkPredictor, drops: list[Path], fitting: bool = False) -> LabImages:
    """Give the parent a threshold that half of the drops reach; those of them with a label are crystals."""
    pixels = np.stack([parent.prepare(file.read_bytes()) for file in drops])
    scores = np.concatenate([parent.fold(parent.predict(part)) for part in np.split(pixels, 6)])[:, CRYSTALS]
    at = float(np.sort(scores)[11:13].mean())
    parent.record = parent.record.model_copy(update={"threshold": Threshold(crystal=at, measured_on="the middle")})
    classes = [DropClass.CRYSTALS if score >= at else DropClass.CLEAR for score in scores[:12]]
    own = tuple(replace(labelled(c, f"d{i}"), file=drops[i]) for i, c in enumerate(classes))
    return LabImages(own, (fitting,) * len(own), tuple(drops[12:]))


def compared(parent: NetworkPredictor, made: NetworkPredictor, images: LabImages) -> Comparison:
    return conversion.compare(parent, made, images, TrainSettings(), threads=2)


def test_the_same_network_changes_nothing(
    networks: tuple[NetworkPredictor, NetworkPredictor], drops: list[Path]
) -> None:
    parent, _ = networks
    images = with_hits(parent, drops)
    told: list[tuple[int, int]] = []
    found = conversion.compare(
        parent, parent, images, TrainSettings(), threads=2, progress=lambda done, total: told.append((done, total))
    )
    crystals = sum(image.label is DropClass.CRYSTALS for image in images.labelled)
    assert (found.conversion.images, found.conversion.agreement, found.conversion.largest) == (24, 1.0, 0.0)
    assert (found.conversion.hits, found.conversion.crystals) == (12, crystals)
    assert (found.conversion.hits_changed, found.conversion.crystals_lost, found.conversion.refusal) == (0, 0, None)
    assert told[-1] == (24, 24)
    assert found.flips == ()


def test_a_conversion_that_loses_crystals_is_refused_with_its_numbers(
    networks: tuple[NetworkPredictor, NetworkPredictor], drops: list[Path]
) -> None:
    parent, made = networks
    found = compared(parent, made, with_hits(parent, drops))
    assert found.conversion.refusal == found.sentence
    assert found.conversion.crystals_lost > 0
    assert found.conversion.hits_changed == len(found.flips) > 0
    lost = [
        flip for flip in found.flips if flip.label is DropClass.CRYSTALS and flip.converted < found.threshold.crystal
    ]
    assert len(lost) == found.conversion.crystals_lost
    assert {flip.file for flip in found.flips} <= set(map(str, drops))


def test_labels_of_plates_that_are_no_test_plates_choose_the_threshold(
    networks: tuple[NetworkPredictor, NetworkPredictor], drops: list[Path]
) -> None:
    parent, made = networks
    free, kept = (compared(parent, made, with_hits(parent, drops, fitting)) for fitting in (False, True))
    assert kept.threshold.crystal < free.threshold.crystal
    assert kept.conversion.crystals_lost == 0
    assert kept.conversion.refusal is None


def test_images_to_calibrate_on_come_evenly_from_sources_and_classes(
    networks: tuple[NetworkPredictor, NetworkPredictor], drops: list[Path]
) -> None:
    parent, _ = networks
    images = with_hits(parent, drops)
    folder = drops[0].parent
    drawn = [StoredImage("rare" if number > 20 else "usual", "/none", file.name) for number, file in enumerate(drops)]
    found = conversion.with_calibration(images, parent, drawn, {"rare": folder, "usual": folder}, 6, threads=2)
    assert len(found.calibrating) == 6
    assert not set(found.calibrating) & {*found.others, *(image.file for image in images.labelled)}
    assert set(drops[21:]) & set(found.calibrating)
    given = parent.logits([parent.prepare(file.read_bytes()) for file in list(found.calibrating)[:4]])
    assert given.argmax(1).tolist() == list(found.calibrating.values())[:4]
    assert len(found.others) + len(found.calibrating) == 12


def test_a_version_for_whole_images_is_not_quantized() -> None:
    whole = {"size": 75, "resize": "area", "coverage": "whole"}
    record = labelled_sets.record().model_copy(update={"preprocessing": whole, "parent": "made:0"})
    with pytest.raises(ConfigError, match="int8 is calibrated on central squares; convert its parent, made:0"):
        conversion.require_convertible(record, Precision.INT8)


def test_a_lab_without_images_compares_nothing(networks: tuple[NetworkPredictor, NetworkPredictor]) -> None:
    parent, made = networks
    found = compared(parent, made, LabImages((), (), ()))
    assert found.threshold.crystal == parent.threshold
    assert (found.conversion.images, found.conversion.agreement, found.conversion.refusal) == (0, None, None)


def test_images_that_cannot_be_read_are_left_out(
    networks: tuple[NetworkPredictor, NetworkPredictor], drops: list[Path]
) -> None:
    parent, _ = networks
    images = with_hits(parent, drops)
    drops[3].write_bytes(b"no image")
    drops[20].unlink()
    assert compared(parent, parent, images).conversion.images == 22


def test_versions_that_cannot_be_converted() -> None:
    plain = labelled_sets.record()
    with pytest.raises(ConfigError, match="made:1 calculates in float32 already"):
        conversion.require_convertible(plain, Precision.FLOAT32)
    lower = plain.model_copy(update={"precision": Precision.INT8, "parent": "made:0"})
    with pytest.raises(ConfigError, match="made:1 calculates in int8 already; convert its parent, made:0"):
        conversion.require_convertible(lower, Precision.BFLOAT16)
    conversion.require_convertible(plain, Precision.BFLOAT16)


def test_a_version_that_loses_crystals_does_not_become_champion(registry: Registry, tmp_path: Path) -> None:
    folder = registry.path("random", "1")
    record = conversion.converted(bundle.read(folder), 7, Precision.FLOAT32)
    lost = Conversion(images=9, hits=2, hits_changed=1, crystals=2, crystals_lost=1, refusal="one of 2 is lost")
    models = tmp_path / "models"
    bundle.write_derived(models, record.model_copy(update={"conversion": lost}), folder, {}, bundle.read_golden(folder))
    ours = Registry(registry._db, models)
    version = ours.register("random", "7", utc())
    with pytest.raises(BundleError, match="random:7 may not become champion, compared with random:1: one of 2 is lost"):
        ours.promote(version, actor="ann", now=utc())
    ours.challenge(version, actor="ann", now=utc())


def test_a_network_in_bfloat16_is_another_one_or_refused(tiny_predictor: NetworkPredictor) -> None:
    """Its processor decides; what it has not is named, and no other precision is taken for it in silence."""
    weights = random_weights(TINY)
    batch = np.stack([tiny_predictor.prepare(jpeg(number)) for number in range(4)])
    if lacking := backend.lacks(Precision.BFLOAT16):
        with pytest.raises(HostLacksError, match=f"{socket.gethostname()} cannot calculate in bfloat16: {lacking}"):
            network.compiled(TINY, weights, 4, Precision.BFLOAT16)
        return
    plain, half = (network.compiled(TINY, weights, 4, p)(batch) for p in (Precision.FLOAT32, Precision.BFLOAT16))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.05 * np.abs(plain).max()
    assert np.array_equal(network.compiled(TINY, weights, 4)(batch), plain)


def test_a_precision_that_this_host_has_not_is_named() -> None:
    with pytest.raises(HostLacksError, match="cannot calculate in int8: "):
        network.compiled(TINY, random_weights(TINY), 4, Precision.INT8)
