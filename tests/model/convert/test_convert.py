"""What others publish becomes a bundle that scores as the original does; every kind of source is really made here."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saved_models
import tensorflow as tf
from tiny import TINY, jpeg

from marcod.domain import CLASSES, DropClass
from marcod.errors import ConfigError
from marcod.model import bundle, convert, network
from marcod.model.convert import ImportedModel, saved_model, sources
from marcod.model.convert.keras_file import read as read_keras
from marcod.model.convert.sources import ModelFormat
from marcod.model.efficientnet import EfficientNetLite
from marcod.model.inception import MARCO
from marcod.model.preprocess import Preprocessing
from marcod.model.weights import GLOBAL_STEP

pytestmark = pytest.mark.story

import_tiny = partial(
    convert.import_model, architecture=TINY, preprocessing=Preprocessing(TINY.input_size, "bilinear-tf1")
)


@dataclass(frozen=True)
class Case:
    """A SavedModel and what came of it."""

    source: Path
    variables: Mapping[str, np.ndarray]
    done: ImportedModel


@pytest.fixture(scope="module")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("tiny")
    source = saved_models.write(folder / "published")
    return Case(source, saved_models.tiny_variables(), import_tiny(str(source), folder / "models"))


def test_a_saved_model_becomes_a_bundle(tiny_case: Case) -> None:
    path, record = tiny_case.done.path, tiny_case.done.record
    assert path.parts[-3:] == ("models", "marco", "1")
    assert record == bundle.verify(path)
    assert (record.name, record.version, record.parent, record.synthetic) == ("marco", 1, None, False)
    assert record.classes == tuple(c.value for c in CLASSES)
    assert record.folding == {c.value: c for c in CLASSES}
    assert (record.temperature, record.licence) == (1.0, "Apache-2.0")
    assert (record.threshold.crystal, record.threshold.recall) == (0.25, None)
    assert "nothing that the network itself calls crystals lies below 0.25" in record.threshold.measured_on
    assert record.architecture["auxiliary"] is True
    assert record.preprocessing["resize"] == "bilinear-tf1"


def test_the_bundle_holds_every_variable_bit_by_bit(tiny_case: Case) -> None:
    with np.load(tiny_case.done.path / "weights.npz") as weights:
        assert set(weights.files) == set(tiny_case.variables) - {GLOBAL_STEP}
        assert all(np.array_equal(weights[name], tiny_case.variables[name]) for name in weights.files)


def test_the_bundle_scores_as_the_graph_does(tiny_case: Case) -> None:
    """Also images that the import did not compare: large, small, upright, grey."""
    images = [jpeg(1), jpeg(2, 701, 500), jpeg(3, 333, 640)]
    predictor = bundle.load(tiny_case.done.path, batch_size=len(images))
    ours = predictor.predict(np.stack([predictor.prepare(p) for p in images]))
    graph = saved_model.read(tiny_case.source)
    original = saved_model.score(graph, tiny_case.variables, images)
    assert graph.classes == tiny_case.done.record.classes
    assert np.abs(ours - original).max() < 1e-5
    assert len({tuple(np.argsort(row)) for row in original} | {tuple(np.round(row, 3)) for row in original}) > 1


def test_the_report_is_kept(tiny_case: Case) -> None:
    kept = json.loads((tiny_case.done.path / "metrics.json").read_text())
    assert kept == tiny_case.done.report
    parity, source = kept["parity"], kept["source"]
    assert parity["images"] == len(parity["differences"]) == 8
    assert parity["largest_difference"] == max(parity["differences"].values())
    assert parity["largest_difference"] <= parity["tolerance"] == convert.TOLERANCE
    assert any("1224x1024" in name for name in parity["differences"])
    assert parity["tensorflow"] == tf.__version__
    assert source["kind"] == "SavedModel"
    assert source["global_step"] == saved_models.STEP
    files = {p.relative_to(tiny_case.source).as_posix(): p for p in tiny_case.source.rglob("*") if p.is_file()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
    assert source["files"] == digests
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    assert source["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert source["sha256"] in tiny_case.done.record.training_data
    assert str(saved_models.STEP) in tiny_case.done.record.training_data


def test_the_golden_scores_are_the_original_s(tiny_case: Case) -> None:
    expected = json.loads((tiny_case.done.path / "golden" / "expected.json").read_text())
    assert len(expected) == 4
    images = [(tiny_case.done.path / "golden" / name).read_bytes() for name in expected]
    assert max(map(len, images)) < 300_000
    original = saved_model.score(saved_model.read(tiny_case.source), tiny_case.variables, images)
    assert np.allclose(original, list(expected.values()), atol=1e-6)
    assert all(name.startswith("synthetic-") for name in expected)


def zipped(folder: Path, target: Path, root: str) -> Path:
    """A zip of ``folder``, its files below ``root`` (with a slash) inside."""
    inside = target.parent / f"{target.stem}-files"
    shutil.copytree(folder, inside / root)
    return Path(shutil.make_archive(str(target.with_suffix("")), "zip", inside))


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return bundle.load_weights(path)[1]


def same_weights(first: Path, second: Path, *, auxiliary: bool = True) -> bool:
    one, other = weights_of(first), weights_of(second)
    kept = {name for name in other if auxiliary or "AuxLogits" not in name}
    return set(one) == kept and all(np.array_equal(one[name], other[name]) for name in kept)


def photographs(folder: Path) -> Path:
    (folder / "deeper").mkdir(parents=True)
    for index in range(48):
        (folder / "deeper" / f"{index:02}.JPG").write_bytes(jpeg(index, 90 + index, 80))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_its_zip_compared_on_photographs_too(tmp_path: Path, tiny_case: Case) -> None:
    archive = zipped(tiny_case.source, tmp_path / "model.zip", "marco-v1")
    calls: list[tuple[str, int, int]] = []
    done = import_tiny(
        str(archive), tmp_path / "models", name="zipped", version=7, licence="CC0-1.0", threshold=0.4,
        images=photographs(tmp_path / "images"), progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert done.path == tmp_path / "models" / "zipped" / "7"
    assert same_weights(done.path, tiny_case.done.path)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert done.record.training_data == f"imported from SavedModel model.zip (SHA-256 {digest}), step 1700000"
    assert (done.record.licence, done.record.threshold.crystal) == ("CC0-1.0", 0.4)
    assert done.record.threshold.measured_on.startswith("not measured; chosen at import")
    compared = list(done.report["parity"]["differences"])
    assert compared[8:] == [f"deeper/{index:02}.JPG" for index in range(0, 48, 2)]
    assert {("scoring with the original graph", 32, 32), ("scoring with marcod", 32, 32)} <= set(calls)


def test_a_checkpoint(tmp_path: Path, tiny_case: Case) -> None:
    """It names no classes: they are the four, or those given, in the order given."""
    own = {"empty": DropClass.CLEAR, "needles": DropClass.CRYSTALS, "skin": DropClass.OTHER, "Other": DropClass.OTHER}
    done = import_tiny(str(tiny_case.source / "variables"), tmp_path, folding=own)
    assert same_weights(done.path, tiny_case.done.path)
    assert (done.record.classes, done.record.folding) == (tuple(own), own)
    assert done.report["parity"] is None
    assert "no graph" in done.report["parity_missing"]
    assert done.report["folded_against_plain"]["largest_difference"] <= convert.TOLERANCE


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("", ModelFormat.SAVED_MODEL),
        ("saved_model.pb", ModelFormat.SAVED_MODEL),
        ("variables", ModelFormat.CHECKPOINT),
        ("variables/variables", ModelFormat.CHECKPOINT),
        ("variables/variables.index", ModelFormat.CHECKPOINT),
        ("variables/variables.data-00000-of-00001", ModelFormat.CHECKPOINT),
    ],
)
def test_every_way_of_naming_a_source(tmp_path: Path, tiny_case: Case, given: str, kind: ModelFormat) -> None:
    found = sources.fetch(str(tiny_case.source / given), tmp_path, convert.ArchiveLimits())
    assert found.kind is kind
    assert found.path == (
        tiny_case.source if kind is ModelFormat.SAVED_MODEL else tiny_case.source / "variables/variables"
    )


def keras_file(folder: Path, variables: Mapping[str, np.ndarray], *, auxiliary: bool) -> Path:
    model = network.build(replace(TINY, auxiliary=auxiliary), auxiliary=auxiliary)
    network.set_variables(model, variables)
    model.save(folder / "model.keras")
    return folder / "model.keras"


def test_a_keras_file(tmp_path: Path, tiny_case: Case) -> None:
    file = keras_file(tmp_path, tiny_case.variables, auxiliary=False)
    done = import_tiny(str(file), tmp_path / "models")
    assert done.record.architecture["auxiliary"] is False
    assert same_weights(done.path, tiny_case.done.path, auxiliary=False)
    assert done.report["parity"] is None


def test_a_keras_file_of_the_other_family(tmp_path: Path) -> None:
    small = EfficientNetLite(input_size=32, classes=4)
    model = network.build(small)
    model.save(tmp_path / "lite.keras")
    with zipfile.ZipFile(tmp_path / "lite.keras") as archive:
        archive.extractall(tmp_path / "inside")
    architecture, weights = read_keras(tmp_path / "inside", [TINY, small])
    assert architecture == small
    given = network.variables(model)
    assert all(np.array_equal(weights[name], value) for name, value in given.items())
    assert set(weights) == set(given)


def test_a_keras_file_with_the_auxiliary_head(tmp_path: Path, tiny_case: Case) -> None:
    with zipfile.ZipFile(keras_file(tmp_path, tiny_case.variables, auxiliary=True)) as archive:
        archive.extractall(tmp_path / "inside")
    architecture, weights = read_keras(tmp_path / "inside", [TINY])
    assert architecture == replace(TINY, auxiliary=True)
    wanted = {n: v for n, v in tiny_case.variables.items() if n != GLOBAL_STEP}
    assert weights.keys() == wanted.keys()
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_of_our_bundles_is_copied(tmp_path: Path, pristine_bundle: Path) -> None:
    given = zipped(pristine_bundle, tmp_path / "bundle.zip", "3")
    done = import_tiny(str(given), tmp_path / "models", taken=[("tiny", "3")])
    assert done.path == tmp_path / "models" / "tiny" / "3"
    assert tree(done.path) == tree(pristine_bundle)
    assert done.record == bundle.read(pristine_bundle)


def test_a_bundle_under_another_name_names_its_parent(tmp_path: Path, pristine_bundle: Path) -> None:
    """Versions count on, also over those known elsewhere, and are never given twice."""
    taken = [("ours", "4"), ("other", "9")]
    done = import_tiny(str(pristine_bundle), tmp_path, name="ours", taken=taken)
    original = bundle.read(pristine_bundle)
    assert (done.record.name, done.record.version, done.record.parent) == ("ours", 5, "tiny:3")
    same = {"classes", "temperature", "threshold", "notice", "synthetic", "created_at", "architecture", "libraries"}
    assert done.record.model_dump(include=same) == original.model_dump(include=same)
    assert same_weights(done.path, pristine_bundle)
    for version in (4, 5):
        with pytest.raises(ConfigError, match=f"ours:{version} exists; bundles never change"):
            import_tiny(str(pristine_bundle), tmp_path, name="ours", version=version, taken=taken)


FIVE = ("skin", "Crystals", "needles", "Clear", "Precipitate")


def test_other_classes_need_a_folding(tmp_path: Path) -> None:
    source = str(saved_models.write(tmp_path / "five", classes=FIVE))
    with pytest.raises(ConfigError, match=r"--class NAME=FOLDED each: skin, needles$"):
        import_tiny(source, tmp_path / "models")
    with pytest.raises(ConfigError, match="has no class needle; its classes are skin, Crystals"):
        import_tiny(source, tmp_path / "models", folding={"needle": DropClass.CRYSTALS})
    folding = {"needles": DropClass.CRYSTALS, "skin": DropClass.OTHER}
    done = import_tiny(source, tmp_path / "models", folding=folding)
    assert done.record.classes == FIVE
    assert done.record.folding == {c: folding.get(c) or DropClass(c) for c in FIVE}
    assert done.record.threshold.crystal == 0.2
    with pytest.raises(ConfigError, match="5 classes apart and does not name them"):
        import_tiny(f"{source}/variables", tmp_path / "models")


def test_the_published_size_is_what_is_imported_by_default() -> None:
    defaults: dict[str, Any] = convert.import_model.__kwdefaults__
    assert defaults["architecture"] == MARCO
    assert defaults["preprocessing"] == Preprocessing(599, "bilinear-tf1")
