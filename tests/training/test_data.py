"""What a training learns from: rows of the lab and the base set side by side, read once, and what a network sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab_snapshots import item, snapshot, written
from labelled_sets import labelled
from tiny import TINY

from marcod.domain import CLASSES, Split
from marcod.fitting.checkpoint import Weights
from marcod.model import network, preprocess
from marcod.model.preprocess import Preprocessing
from marcod.training import data, rehearsal
from marcod.training.data import FLIPS, UPRIGHT, LoadedSet, TrainingSet
from marcod.training.rehearsal import RehearsalSet

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES
RECORD = Preprocessing(TINY.input_size, "area")
KEPT = data.for_patches(RECORD)


def base_set(count: int = 60) -> RehearsalSet:
    """Images that stand on all sides."""
    images = [labelled(CLASSES[i % 4], f"b{i}", source=rehearsal.SOURCE, imager=rehearsal.IMAGER) for i in range(count)]
    return RehearsalSet("made", True, tuple(images))


def test_rows_are_the_lab_s_then_the_base_set_s(tmp_path: Path) -> None:
    """Even those of a lab's source that is named as the base set is."""
    said = {"ada": CRYSTALS, "bob": CLEAR}
    items = [
        item(1, tmp_path, shares=(0.5, 0.5, 0, 0), persons=said, weight=0.25, stream="threshold"),
        item(2, tmp_path, source="base", stream="audit"),
        item(3, tmp_path, stream="disagreement"),
        item(4, tmp_path, side=Split.VALIDATION),
        item(5, tmp_path, side=Split.TEST),
    ]
    others = base_set()
    found = data.training_set(snapshot(items), others, Split.TRAIN, {"base": tmp_path / "here"})
    expected = others.side(Split.TRAIN)
    assert len(found) == 3 + len(expected) > 10
    assert found.is_lab.tolist() == [True] * 3 + [False] * len(expected)
    assert found.files[:3] == (tmp_path / "1.png", tmp_path / "here" / "2.png", tmp_path / "3.png")
    assert found.files[3:] == tuple(image.file for image in expected)
    assert found.labels.tolist() == [1, 2, 3, *(CLASSES.index(image.label) for image in expected)]
    assert found.targets[:3].tolist() == [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert found.targets[3:].argmax(axis=1).tolist() == found.labels[3:].tolist()
    assert found.weights.tolist() == [0.25, 1, 1, *(1.0 for _ in expected)]
    assert found.chosen.tolist() == [True, False, True, *(False for _ in expected)]
    assert found.plates[:4] == ("cellar/P0", "base/P0", "cellar/P0", expected[0].group)
    assert found.drops[:4] == ("1001", "1002", "1003", expected[0].drop)
    assert found.persons[:4] == (said, {"ada": OTHER}, {"ada": PRECIPITATE}, {})
    assert found.domains == ("cellar", "base", "cellar", *(rehearsal.SOURCE for _ in expected))


@pytest.mark.parametrize("with_base", [True, False])
def test_every_image_is_on_one_side_and_the_test_side_is_the_gate_s(tmp_path: Path, with_base: bool) -> None:
    items = [item(number, tmp_path, side=list(Split)[number % 3]) for number in range(12)]
    lab, others = snapshot(items), base_set() if with_base else rehearsal.NOTHING
    sides = {side: data.training_set(lab, others, side, {}).files for side in Split}
    tested = data.tested(lab, others, {})
    assert {image.file for image in tested} == set(sides[Split.TEST])
    assert sum(map(len, sides.values())) == len({file for files in sides.values() for file in files})
    assert sum(map(len, sides.values())) == 12 + len(others.images)
    assert all(image.own is None for image in tested)
    assert {(p.source, p.imager) for p in tested} == {("cellar", "rigaku"), ("", "base")} if with_base else True


def test_no_rows_are_no_images(tmp_path: Path) -> None:
    none = data.training_set(snapshot([]), rehearsal.NOTHING, Split.TRAIN, {})
    assert (none.targets.shape, none.is_lab.shape) == ((0, 4), (0,))
    assert len(load(none, tmp_path).pixels) == 0


def test_rows_are_chosen_and_joined_field_by_field(tmp_path: Path) -> None:
    rows = data.training_set(snapshot([item(n, tmp_path) for n in range(6)]), rehearsal.NOTHING, Split.TRAIN, {})
    back = rows.only(np.array([0, 1, 2])).and_(rows.only(np.array([3, 4, 5])))
    for name in TrainingSet.__dataclass_fields__:
        assert list(map(str, getattr(back, name))) == list(map(str, getattr(rows, name)))


def test_some_rows_are_the_same_ones_each_time(tmp_path: Path) -> None:
    rows = data.training_set(snapshot([item(n, tmp_path) for n in range(40)]), rehearsal.NOTHING, Split.TRAIN, {})
    some = rows.some(10, seed=1)
    assert some.drops == rows.some(10, seed=1).drops != rows.some(10, seed=2).drops
    assert len(set(some.drops)) == 10
    assert list(some.drops) == sorted(some.drops)
    assert rows.some(40, seed=1) is rows


def load(rows: TrainingSet, folder: Path, **more: object) -> LoadedSet:
    values: dict[str, object] = {"threads": 2, "progress": lambda *step: None, "stopped": lambda: False, "what": "r"}
    return data.load(rows, KEPT, folder / "train.npy", **(values | more))  # type: ignore[arg-type]


@pytest.fixture
def rows(tmp_path: Path) -> TrainingSet:
    """Six images on disk, of which the third is cut short and the fifth gone."""
    items = [written(item(number, tmp_path / "plates")) for number in range(6)]
    files = [tmp_path / "plates" / one.path for one in items]
    files[2].write_bytes(files[2].read_bytes()[:60])
    files[4].unlink()
    return data.training_set(snapshot(items), rehearsal.NOTHING, Split.TRAIN, {})


def test_what_cannot_be_read_is_named_and_left_out(rows: TrainingSet, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = load(rows, tmp_path, progress=lambda *step: steps.append(step), what="reading")
    assert steps == [("reading", done, 6) for done in range(1, 7)]
    assert found.rows.drops == ("1000", "1001", "1003", "1005")
    assert found.pixels.shape == (4, KEPT.size, KEPT.size, 3)
    brightest = found.pixels.mean(axis=(1, 2)).argmax(axis=1)
    assert brightest[1:].tolist() == [0, 2, 0]
    damaged, gone = found.unreadable
    assert damaged.startswith(f"{rows.files[2]}: ")
    assert gone == f"{rows.files[4]}: No such file or directory"


def test_a_killed_run_finds_the_same_again_and_reads_nothing_twice(rows: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        load(rows, tmp_path, stopped=lambda: True)
    first = load(rows, tmp_path)
    for file in rows.files:
        file.unlink(missing_ok=True)
    again = load(rows, tmp_path)
    assert again.rows.drops == first.rows.drops
    assert np.array_equal(again.pixels, first.pixels)
    assert again.unreadable == first.unreadable


def test_less_is_kept_around_a_large_input() -> None:
    assert data.for_patches(Preprocessing(160, "area")).size == 256
    assert data.for_patches(Preprocessing(599, "bilinear-tf1", 2)) == Preprocessing(719, "bilinear-tf1", 2)


def test_features_are_what_the_last_layer_sees_of_every_flip(
    rows: TrainingSet, tmp_path: Path, tiny_weights: Weights
) -> None:
    given, place = load(rows, tmp_path), tmp_path / "features.npz"
    shown: list[int] = []

    def goes_on(what: str, done: int, total: int) -> None:
        shown.append(done)
        if len(shown) == 1:
            raise InterruptedError

    def seen(weights: Weights) -> np.ndarray:
        found = data.extract_features(
            given, data.FeatureExtractor(TINY, weights), RECORD, place, flips=FLIPS, progress=goes_on
        )
        assert np.array_equal(found.targets, np.tile(given.rows.targets, (4, 1)))
        assert np.array_equal(found.weights, np.tile(given.rows.weights, 4))
        return found.features

    with pytest.raises(InterruptedError):
        seen(tiny_weights)
    assert not place.exists()
    features = seen(tiny_weights)
    assert shown == [4, 4, 8, 12, 16]
    kernel, bias = network.head(tiny_weights)
    score = network.compiled(TINY, tiny_weights, 8)
    for number, (down, across) in enumerate(FLIPS):
        pixels = [preprocess.prepare(image[::down, ::across], RECORD) for image in given.pixels]
        logits = score(np.stack(pixels))
        part = features[number * 4 : number * 4 + 4]
        np.testing.assert_allclose(part @ kernel + bias, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    shown.clear()
    nothing = {name: np.zeros_like(value) for name, value in tiny_weights.items()}
    assert np.array_equal(seen(nothing), features)
    assert shown == []


def test_of_no_images_nothing_is_seen(tmp_path: Path, tiny_weights: Weights) -> None:
    none = load(data.training_set(snapshot([]), rehearsal.NOTHING, Split.TRAIN, {}), tmp_path)
    place = tmp_path / "features.npz"
    found = data.extract_features(
        none, data.FeatureExtractor(TINY, tiny_weights), RECORD, place, flips=UPRIGHT, progress=lambda *step: None
    )
    assert found.features.shape == (0, len(network.head(tiny_weights)[0]))


def test_another_head_changes_the_logits_and_nothing_else(tiny_weights: Weights) -> None:
    kernel, bias = network.head(tiny_weights)
    assert kernel.shape[1:] == bias.shape == (4,)
    same = network.with_head(tiny_weights, kernel, bias)
    assert same.keys() == tiny_weights.keys()
    assert all(np.array_equal(same[name], value) for name, value in tiny_weights.items())
    moved = network.shifted(tiny_weights, np.array([1, -1, 0, 0.5]))
    assert {name for name in moved if not np.array_equal(moved[name], tiny_weights[name])} == {
        "Inception/Logits/Conv2d_1c_1x1/biases"
    }
    assert np.allclose(network.head(moved)[1] - bias, [1, -1, 0, 0.5])
    assert {value.dtype for value in moved.values()} == {np.dtype(np.float32)}
    wider = network.with_head(tiny_weights, np.zeros((len(kernel), 6)), np.arange(6.0))
    network.set_variables(network.build(replace(TINY, classes=6)), wider)
