"""A bundle proves itself before it serves; every kind of damage is one sentence."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import jpeg

from marcod.domain import CLASSES, DropClass
from marcod.errors import BundleError, ImageError
from marcod.model import bundle
from marcod.model.bundle import Golden
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.model.probabilities import softmax

Weights = dict[str, np.ndarray]


def batch_of(predictor: Predictor, *seeds: int) -> np.ndarray:
    return np.stack([predictor.prepare(jpeg(seed)) for seed in seeds])


def test_what_was_written_is_read_back(pristine_bundle: Path, tiny_predictor: Predictor) -> None:
    record = bundle.read(pristine_bundle)
    wanted = tiny_predictor.record
    assert record.model_dump(exclude={"files"}) == wanted.model_dump(exclude={"files"})
    assert record.digest == hashlib.sha256((pristine_bundle / "bundle.toml").read_bytes()).hexdigest()
    assert pristine_bundle.parts[-2:] == ("tiny", "3")
    assert set(record.files) == {
        "weights.npz", "metrics.json", "golden/expected.json", "golden/random-0.jpg", "golden/random-1.jpg",
    }  # fmt: skip
    assert (pristine_bundle / "bundle.toml").read_text().startswith("# Random weights.\n# For tests only.\n")


def test_a_loaded_bundle_scores_like_the_one_written(pristine_bundle: Path, tiny_predictor: Predictor) -> None:
    loaded = bundle.load(pristine_bundle, batch_size=2)
    batch = batch_of(tiny_predictor, 5, 6)
    assert np.abs(loaded.predict(batch) - tiny_predictor.predict(batch)).max() < 1e-6


def test_weights_may_be_kept_in_half_precision(
    tmp_path: Path, tiny_predictor: Predictor, tiny_weights: Weights
) -> None:
    record = tiny_predictor.record.model_copy(update={"version": 9, "licence_text": "Copyright\n\nof somebody"})
    halved = {name: value.astype(np.float16) for name, value in tiny_weights.items()}
    path = bundle.write(tmp_path, record, halved, {}, [])
    found, weights = bundle.load_weights(path)
    assert found.licence_text == "Copyright\n\nof somebody"
    with np.load(path / "weights.npz") as archive:
        assert {archive[name].dtype for name in archive.files} == {np.dtype(np.float16)}
    for name, value in tiny_weights.items():
        assert weights[name].dtype == np.float32
        assert np.array_equal(weights[name], value.astype(np.float16).astype(np.float32))


def test_reading_needs_no_tensorflow(pristine_bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from marcod.model import bundle;"
        "print(bundle.verify(Path(sys.argv[1])).name, 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(pristine_bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["tiny", "False"]


def test_probabilities_and_folding(tiny_predictor: Predictor) -> None:
    scores = tiny_predictor.predict(batch_of(tiny_predictor, 1, 2, 3))
    assert scores.dtype == np.float32
    assert scores.shape == (3, 4)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(scores, axis=0).max() > 1e-3
    assert np.array_equal(tiny_predictor.fold(scores), scores)
    assert tiny_predictor.threshold == 0.25


def test_own_classes_fold_into_the_four(tiny_predictor: Predictor, tiny_weights: Weights) -> None:
    folding = {"needle": "Crystals", "block": "Crystals", "skin": "Other", "clear": "Clear"}
    record = tiny_predictor.record.model_copy(
        update={"classes": tuple(folding), "folding": {k: DropClass(v) for k, v in folding.items()}}
    )
    folded = NetworkPredictor(record, tiny_weights).fold(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    expected = {DropClass.CRYSTALS: 0.3, DropClass.OTHER: 0.3, DropClass.CLEAR: 0.4, DropClass.PRECIPITATE: 0.0}
    assert np.allclose(folded[0], [expected[c] for c in CLASSES])


def test_temperature_divides_the_logits(tiny_predictor: Predictor, tiny_weights: Weights) -> None:
    batch = batch_of(tiny_predictor, 1, 2)
    logits = np.log(tiny_predictor.predict(batch)) * tiny_predictor.record.temperature
    plain = tiny_predictor.record.model_copy(update={"temperature": 1.0})
    undivided = NetworkPredictor(plain, tiny_weights, batch_size=2).predict(batch)
    assert np.allclose(softmax(logits), undivided, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_padding_changes_no_score(tiny_predictor: Predictor, count: int) -> None:
    four = batch_of(tiny_predictor, 1, 2, 3, 4)
    assert np.array_equal(tiny_predictor.predict(four[:count]), tiny_predictor.predict(four)[:count])


def test_batches_of_another_shape_are_refused(tiny_predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="up to 4"):
        tiny_predictor.predict(np.zeros((5, 75, 75, 3), np.float32))
    with pytest.raises(ValueError, match="75"):
        tiny_predictor.predict(np.zeros((2, 74, 75, 3), np.float32))


def test_a_bad_image_is_the_image_s_fault(tiny_predictor: Predictor) -> None:
    with pytest.raises(ImageError):
        tiny_predictor.prepare(b"nothing")


def test_bundles_never_change(tiny_bundle: Path, tiny_predictor: Predictor, tiny_weights: Weights) -> None:
    models = tiny_bundle.parent.parent
    before = bundle.read(tiny_bundle).digest
    with pytest.raises(BundleError, match="another version"):
        bundle.write(models, tiny_predictor.record, tiny_weights, {}, [])
    assert bundle.read(tiny_bundle).digest == before
    assert [p.name for p in tiny_bundle.parent.iterdir()] == ["3"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, tiny_predictor: Predictor, tiny_weights: Weights) -> None:
    with pytest.raises(ValueError, match="JSON"):
        bundle.write(tmp_path, tiny_predictor.record, tiny_weights, {"accuracy": float("nan")}, [])
    assert not any(tmp_path.iterdir())


def _flip_byte(folder: Path) -> None:
    file = folder / "weights.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _edit_toml(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "bundle.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (_flip_byte, r"weights\.npz has changed"),
    "missing file": (lambda f: (f / "weights.npz").unlink(), r"weights\.npz is missing"),
    "missing golden": (lambda f: (f / "golden/random-1.jpg").unlink(), r"golden/random-1\.jpg is missing"),
    "extra file": (lambda f: (f / "golden/notes.txt").write_text("x"), r"golden/notes\.txt does not belong"),
    "dangling link": (lambda f: (f / "link").symlink_to("nowhere"), "link does not belong"),
    "missing record": (lambda f: (f / "bundle.toml").unlink(), "not a model bundle"),
    "bad TOML": (_edit_toml("version = 3", "version = = 3"), "damaged"),
    "not UTF-8": (lambda f: (f / "bundle.toml").write_bytes(b"\xff\xfe"), "damaged"),
    "later format": (_edit_toml("format = 1", "format = 2"), "format 2.*reads format 1"),
    "no format": (_edit_toml("format = 1", ""), "format None"),
    "missing key": (_edit_toml("temperature = 1.5", ""), "temperature: Field required"),
    "unknown key": (_edit_toml("version = 3", "version = 3\ncolour = 1"), "colour"),
    "wrong type": (_edit_toml("version = 3", 'version = "three"'), "version"),
    "digest inside": (_edit_toml("version = 3", 'version = 3\ndigest = "x"'), "digest"),
    "bad folding": (_edit_toml('Clear = "Clear"', 'Clean = "Clear"'), "folding"),
    "unknown class": (_edit_toml('Clear = "Clear"', 'Clear = "Empty"'), "Clear"),
    "infinite temperature": (_edit_toml("temperature = 1.5", "temperature = inf"), "temperature"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tiny_bundle: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(tiny_bundle)
    for check in (bundle.verify, bundle.load):
        with pytest.raises(BundleError, match=message) as caught:
            check(tiny_bundle)
        assert str(tiny_bundle) in str(caught.value)


def _rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file together with its checksum, as somebody editing a bundle by hand would."""
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_bytes(data)
    _edit_toml(old, hashlib.sha256(data).hexdigest())(folder)


def test_a_golden_image_that_scores_otherwise_stops_the_model(tiny_bundle: Path) -> None:
    expected = json.loads((tiny_bundle / "golden/expected.json").read_text())
    expected["random-1.jpg"][0] += 0.01
    _rewrite(tiny_bundle, "golden/expected.json", json.dumps(expected).encode())
    with pytest.raises(BundleError, match=r"random-1\.jpg.*differs by 0\.0100"):
        bundle.load(tiny_bundle, batch_size=2)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("weights.npz", b"not an archive", "cannot be loaded"),
        ("golden/expected.json", b"{", "cannot be loaded"),
        ("golden/expected.json", b'{"absent.jpg": [0.25, 0.25, 0.25, 0.25]}', r"absent\.jpg"),
        ("golden/expected.json", b'{"random-0.jpg": [1.0]}', "expects 1 probabilities"),
        ("golden/random-0.jpg", b"not an image", "cannot be read"),
    ],
)
def test_a_consistent_but_useless_bundle_is_refused(tiny_bundle: Path, name: str, data: bytes, message: str) -> None:
    _rewrite(tiny_bundle, name, data)
    with pytest.raises(BundleError, match=message):
        bundle.load(tiny_bundle, batch_size=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("input_size = 75", "input_size = 80", "contradicts itself"),
        ("input_size = 75", "input_size = 40", "contradicts itself"),
        ("width = 0.05", "width = 0.5", "has shape"),
        ("width = 0.05", "", None),
        ("width = 0.05", "depth = 3", "depth"),
        ('resize = "area"', 'resize = "nearest"', "nearest"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(
    tiny_bundle: Path, old: str, new: str, message: str | None
) -> None:
    _edit_toml(old, new)(tiny_bundle)
    with pytest.raises(BundleError, match=message or "has shape"):
        bundle.load(tiny_bundle, batch_size=2)


def test_golden_images_may_come_from_another_program(
    tmp_path: Path, tiny_predictor: Predictor, tiny_weights: Weights
) -> None:
    wrong = Golden("other.jpg", jpeg(9), [0.7, 0.1, 0.1, 0.1])
    path = bundle.write(tmp_path, tiny_predictor.record, tiny_weights, {}, [wrong])
    with pytest.raises(BundleError, match="does not score its golden image"):
        bundle.load(path, batch_size=2)


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def _no_table_in_lists(value: object) -> bool:
    if isinstance(value, list):
        return not any(isinstance(v, dict) for v in value) and all(map(_no_table_in_lists, value))
    return not isinstance(value, dict) or all(map(_no_table_in_lists, value.values()))


@given(st.dictionaries(st.text(), PLAIN, max_size=4).filter(_no_table_in_lists))
def test_the_toml_writer_writes_what_the_reader_reads(table: dict[str, object]) -> None:
    assert tomllib.loads(bundle.to_toml(table)) == table


def test_times_keep_their_zone() -> None:
    now = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
    assert tomllib.loads(bundle.to_toml({"at": now, "nothing": None}, comment="a\nb")) == {"at": now}


def test_an_installed_bundle_is_the_same_and_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    path = bundle.install(tiny_bundle, models)
    assert path == models / "tiny" / "3"
    assert bundle.verify(path) == bundle.verify(tiny_bundle)
    assert [file.name for file in path.parent.iterdir()] == ["3"]
    assert bundle.install(tiny_bundle, models) == path
    record = (tiny_bundle / "bundle.toml").read_text()
    (tiny_bundle / "bundle.toml").write_text(record.replace("Random weights.", "Other weights."))
    with pytest.raises(BundleError, match="tiny/3 holds another bundle; bundles never change"):
        bundle.install(tiny_bundle, models)


def test_a_damaged_bundle_is_not_installed(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "metrics.json").write_text("{}")
    with pytest.raises(BundleError, match=r"metrics\.json has changed"):
        bundle.install(tiny_bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_bundle_that_cannot_be_put_there_is_a_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(BundleError, match=r"cannot put the bundle at .*models/tiny/3: Not a directory"):
        bundle.install(tiny_bundle, tmp_path / "models")


def rewritten(path: Path, **told: str) -> bundle.BundleRecord:
    """The record of a bundle that was written before ``trained_on`` was, with other words in it."""
    file = path / "bundle.toml"
    text = re.sub(r"(?ms)^trained_on = \[.*?^\]\n", "", file.read_text())
    lines = [line for line in text.splitlines() if line.partition(" =")[0] not in told]
    place = lines.index("[architecture]")
    file.write_text("\n".join([*lines[:place], *(f"{k} = {v}" for k, v in told.items()), *lines[place:]]) + "\n")
    return bundle.verify(path)


LAB = '"data set 0123: 40 labelled images, 12 more for the test; beside them nothing; {}"'


@pytest.mark.parametrize(
    ("told", "trained_on"),
    [
        ({"synthetic": "true", "training_data": '"synthetic: seed 1"'}, ["rendered"]),
        ({"synthetic": "false", "training_data": '"imported from SavedModel m.zip"'}, ["published"]),
        ({"synthetic": "true", "training_data": LAB.format("head")}, ["rendered", "lab"]),
        ({"synthetic": "false", "training_data": LAB.format("all")}, ["published", "lab"]),
        ({"synthetic": "true", "training_data": LAB.format("recalibrate")}, ["rendered"]),
        ({"synthetic": "true", "training_data": LAB.format("scratch")}, ["rendered", "lab"]),
        ({"synthetic": "false", "training_data": LAB.format("scratch")}, ["lab"]),
    ],
)
def test_what_an_old_bundle_learned_from_is_derived(
    tiny_bundle: Path, told: dict[str, str], trained_on: list[str]
) -> None:
    record = rewritten(tiny_bundle, **told)
    assert record.trained_on == tuple(trained_on)
    assert record.synthetic == (trained_on == ["rendered"])
    assert record.digest == hashlib.sha256((tiny_bundle / "bundle.toml").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("given", "trained_on", "synthetic"),
    [
        (["rendered"], ["rendered"], True),
        (["lab", "published", "lab"], ["published", "lab"], False),
        (["lab", "rendered"], ["rendered", "lab"], False),
    ],
)
def test_synthetic_means_rendered_drops_alone(
    tiny_predictor: Predictor, given: list[str], trained_on: list[str], synthetic: bool
) -> None:
    record = bundle.BundleRecord(**tiny_predictor.record.model_dump() | {"trained_on": given})
    assert (record.trained_on, record.synthetic) == (tuple(trained_on), synthetic)


@pytest.mark.parametrize("given", ["[]", '["photographs"]', '"lab"', "7"])
def test_what_a_model_cannot_have_learned_from_is_refused(tiny_bundle: Path, given: str) -> None:
    file = tiny_bundle / "bundle.toml"
    file.write_text(re.sub(r"(?ms)^trained_on = \[.*?^\]$", f"trained_on = {given}", file.read_text()))
    with pytest.raises(BundleError, match="trained_on"):
        bundle.read(tiny_bundle)


HOLDING = """
import sys
from pathlib import Path
from marcod.model import bundle
with bundle.scratch_beside(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("half a bundle")
    print(scratch, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_writer(
    tmp_path: Path, tiny_predictor: Predictor, tiny_weights: Weights
) -> None:
    """What another one is still writing stays."""
    final = tmp_path / "tiny" / "4"
    final.parent.mkdir()

    def write(version: int) -> None:
        record = tiny_predictor.record.model_copy(update={"version": version})
        bundle.write(tmp_path, record, tiny_weights, {}, [])

    command = [sys.executable, "-c", HOLDING, str(final)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        scratch = Path(process.stdout.readline().strip())
        write(1)
        assert (scratch / "half").read_text() == "half a bundle"
        process.kill()
    assert scratch.is_dir()
    write(2)
    assert sorted(p.name for p in final.parent.iterdir()) == ["1", "2"]
