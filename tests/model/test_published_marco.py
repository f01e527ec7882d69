"""The published MARCO, with its real weights: fetched as a person fetches it, and scoring as its own graph scores.

It comes from the file named by MARCOD_PUBLISHED_WHEEL, the user's cache, or pip. Where it cannot be had, every test
fails with the reason.
"""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tiny import jpeg

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.domain import CLASSES, DropClass, TrainedOn
from marcod.evaluate import metrics
from marcod.model import bundle, convert, published
from marcod.model.convert import saved_model
from marcod.model.convert.checkpoint import Checkpoint
from marcod.model.inception import MARCO
from marcod.model.predictor import Predictor
from marcod.model.weights import GLOBAL_STEP
from marcod.store import versions

pytestmark = pytest.mark.timeout(900)

BATCH = 8
CRYSTALS = CLASSES.index(DropClass.CRYSTALS)

GOLDEN = {
    "synthetic-clear-330x270.jpg": (0.4983, 0.2106, 0.2309, 0.0602),
    "synthetic-crystals-512x410.jpg": (0.0220, 0.9263, 0.0234, 0.0283),
    "synthetic-other-640x480.jpg": (0.5517, 0.0703, 0.1330, 0.2450),
    "synthetic-precipitate-800x600.jpg": (0.0281, 0.0251, 0.0256, 0.9212),
}
"""What the original graph makes of rendered drops: the probabilities of Clear, Crystals, Other and Precipitate."""

GOLDEN_MOVES = 5e-3
"""Largest difference from the table: another Pillow may encode a rendered drop with pixels that differ by a little."""

ORIGINAL_AUC = {
    "Huangt19150/microscopy-vlm-lpb25": 1.0,
    "LP-CDF/AMi_Image_Analysis": 0.9966,
    "corihart/crystal_detection": 0.3377,
    "flurinh/ProteinProtosWorkshop": 0.3333,
    "all": 0.9525,
    "large": 0.8496,
}
"""Crystal AUC of the original graph on the photographs that have both, by source; large is without thumbnails."""

THUMBNAIL = 100
"""Pixels of the shorter side below which an image is one."""


@dataclass(frozen=True)
class Marco:
    """The bundle that the fetch wrote, what the command printed, and the configuration it was called with."""

    path: Path
    said: dict[str, Any]
    config: Path


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), *arguments], prog_name="marcod")


def configured(folder: Path, url: str, models: Path) -> Path:
    file = folder / "marcod.toml"
    file.write_text(f"store.url = {url!r}\nmodels.folder = {str(models)!r}\n")
    return file


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Marco | str:
    """A fetch into a new database; the sentence of its failure where it fails."""
    folder = tmp_path_factory.mktemp("fetched")
    config = configured(folder, f"sqlite:///{shutil.copy(sqlite_template, folder)}", folder / "models")
    result = call(config, "model", "fetch", "marco", "--json")
    if result.exit_code != 0:
        return result.stderr.strip().rpartition("\n")[2]
    said = json.loads(result.stdout)
    return Marco(Path(said["folder"]), said, config)


@pytest.fixture
def marco(fetched: Marco | str) -> Marco:
    if isinstance(fetched, Marco):
        return fetched
    return pytest.fail(f"the published MARCO cannot be had: {fetched}", pytrace=False)


def test_the_published_marco_can_be_had(marco: Marco) -> None:
    assert marco.said["fetched"] is True


@dataclass(frozen=True)
class Original:
    """The published SavedModel as it is: its folder, graph and variables."""

    folder: Path
    graph: saved_model.PublishedGraph
    variables: dict[str, np.ndarray]

    def scores(self, images: Sequence[bytes]) -> np.ndarray:
        return saved_model.score(self.graph, self.variables, images)


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    with published.proven_files(published.find("marco")) as folder:
        copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("original") / "savedmodel"))
    checkpoint = Checkpoint(copy / "variables" / "variables")
    return Original(copy, saved_model.read(copy), dict(checkpoint.weights(checkpoint.architecture(MARCO))))


@pytest.fixture
def original(marco: Marco, request: pytest.FixtureRequest) -> Original:
    found: Original = request.getfixturevalue("_original")
    return found


@pytest.fixture(scope="session")
def _predictor(fetched: Marco) -> Predictor:
    """Loading it runs its golden images."""
    return bundle.load(fetched.path, BATCH)


@pytest.fixture
def predictor(marco: Marco, request: pytest.FixtureRequest) -> Predictor:
    found: Predictor = request.getfixturevalue("_predictor")
    return found


def scores_of(predictor: Predictor, images: Sequence[bytes]) -> np.ndarray:
    with ThreadPoolExecutor(2) as pool:
        prepared = list(pool.map(predictor.prepare, images))
    return np.concatenate(
        [predictor.predict(np.stack(prepared[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    )


def test_the_record_says_where_it_is_from_and_whom_to_cite(marco: Marco) -> None:
    record, entry = bundle.verify(marco.path), published.find("marco")
    assert marco.path.parts[-3:] == ("models", "marco", "1")
    assert (record.name, record.version, record.parent) == ("marco", 1, None)
    assert record.classes == tuple(c.value for c in CLASSES) == entry.classes
    assert record.folding == {c.value: c for c in CLASSES}
    assert (record.temperature, record.threshold.crystal, record.threshold.recall) == (1.0, 0.25, None)
    assert (record.trained_on, record.synthetic) == ((TrainedOn.PUBLISHED,), False)
    assert (record.licence, record.citation) == ("Apache-2.0", entry.citation)
    assert record.origin is not None
    assert (record.origin.file, record.origin.sha256) == (entry.file, entry.sha256)
    assert record.training_data.startswith("415,990 photographs of drops")
    assert published.is_copy(record, entry)


def test_the_command_tells_all_of_it(marco: Marco) -> None:
    entry = published.find("marco")
    said = {key: marco.said[key] for key in ("model", "promoted", "champion", "former_champion", "licence", "citation")}
    assert said == {
        "model": "marco:1", "promoted": True, "champion": "marco:1", "former_champion": "lite0:1",
        "licence": "Apache-2.0", "citation": entry.citation,
    }  # fmt: skip
    listed = call(marco.config, "model", "list").stdout.splitlines()
    [line] = [line for line in listed if line.startswith("marco:1")]
    assert line.split()[1:5] == ["champion", "0.25", "published", "Apache-2.0"]
    shown = " ".join(call(marco.config, "model", "show", "champion").stdout.split())
    for text in (entry.citation, entry.sha256, "Apache-2.0", f"{entry.distribution} {entry.version}", "published"):
        assert text in shown


def test_every_variable_is_the_original_s_bit_by_bit(marco: Marco, original: Original) -> None:
    with np.load(marco.path / "weights.npz") as weights:
        assert set(weights.files) == set(original.variables) - {GLOBAL_STEP}
        assert all(np.array_equal(weights[name], original.variables[name]) for name in weights.files)


def test_the_comparison_is_kept(marco: Marco, original: Original) -> None:
    kept = json.loads((marco.path / "metrics.json").read_text())
    assert kept == marco.said["report"]
    parity = kept["parity"]
    assert parity["images"] == len(parity["differences"]) == 8
    assert parity["largest_difference"] <= parity["tolerance"] == convert.TOLERANCE
    entry = published.find("marco")
    assert kept["source"]["files"] == {name: content.sha256 for name, content in sorted(entry.files.items())}
    for name, content in entry.files.items():
        assert hashlib.sha256((original.folder / name).read_bytes()).hexdigest() == content.sha256


def test_it_scores_as_the_graph_does_and_its_golden_images_as_in_the_table(
    marco: Marco, original: Original, predictor: Predictor
) -> None:
    """Also images that the import did not compare: large, small, upright, grey, and real ones where there are any."""
    expected = json.loads((marco.path / "golden" / "expected.json").read_text())
    golden = [(marco.path / "golden" / name).read_bytes() for name in expected]
    real = [file.read_bytes() for file in _photographs()[::46]]
    images = [*golden, jpeg(1), jpeg(2, 701, 500), jpeg(3, 333, 640), *real]
    # In one call, since each one builds the graph anew.
    scored, ours = original.scores(images), scores_of(predictor, images)
    assert np.abs(ours - scored).max() < convert.TOLERANCE
    assert len({tuple(np.round(row, 3)) for row in scored}) == len(images)
    assert np.allclose(scored[: len(golden)], list(expected.values()), atol=1e-6)
    assert list(expected) == list(GOLDEN)
    assert np.abs(ours[: len(golden)] - list(GOLDEN.values())).max() < GOLDEN_MOVES


REAL = [Path(text) for text in [os.environ.get("MARCOD_REAL_PLATES", "")] if text]
"""A folder with real plates and photographs, where there is one."""


def _photographs() -> list[Path]:
    return [file for folder in REAL for file in sorted((folder / "photographs").glob("*.jpg"))]


@pytest.mark.story
@pytest.mark.parametrize("folder", REAL, ids=lambda folder: "rigaku")
def test_few_drops_of_a_real_plate_are_hits(folder: Path, predictor: Predictor) -> None:
    files = sorted((folder / "rigaku").rglob("*.jpg"))
    scored = scores_of(predictor, [file.read_bytes() for file in files])
    hits = int((scored[:, CRYSTALS] >= predictor.threshold).sum())
    assert (hits, len(files)) == (19, 288)


@pytest.mark.story
@pytest.mark.parametrize("folder", REAL, ids=lambda folder: "photographs")
def test_real_photographs_rank_as_with_the_original(folder: Path, predictor: Predictor) -> None:
    with (folder / "photographs" / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = [folder / "photographs" / row["image"] for row in rows]
    crystals = np.array([row["label"] == DropClass.CRYSTALS for row in rows])
    sources = np.array([row["source"] for row in rows])
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(min(image.size))
    scored = scores_of(predictor, [file.read_bytes() for file in files])[:, CRYSTALS]
    groups = {name: sources == name for name in Counter(sources.tolist())}
    groups |= {"all": np.ones(len(rows), bool), "large": np.array(sizes) >= THUMBNAIL}
    found = {name: metrics.auc(scored[group], crystals[group]) for name, group in groups.items()}
    assert {name: auc for name, auc in found.items() if auc is not None} == pytest.approx(ORIGINAL_AUC, abs=1e-3)


@pytest.fixture
def config(marco: Marco, db_url: str, tmp_path: Path) -> Path:
    """The configuration of another lab's database on the host that has the bundle."""
    return configured(tmp_path, db_url, marco.path.parents[1])


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_run_twice_it_is_there_and_is_promoted_over_the_shipped_bundle(config: Path, marco: Marco) -> None:
    left = call(config, "model", "fetch", "marco", "--no-promote")
    assert left.exit_code == 0, left.output
    assert left.stdout.startswith(f"marco:1 is here already, in {marco.path}\n")
    assert left.stdout.endswith(
        "lite0:1 stays champion\n"
        "next: `marcod model challenge marco:1` lets it score new images next to the champion, to compare\n"
        "or: `marcod model promote marco:1` makes it champion\n"
    )
    promoted = call(config, "model", "fetch", "marco")
    assert promoted.exit_code == 0, promoted.output
    assert promoted.stdout.endswith(
        "marco:1 is champion, instead of lite0:1\n"
        "or: `marcod model combine marco:1 lite0:1 --weights 1,2 --challenge` lets a committee of both score new "
        "images next to the champion\n"
    )
    again = json.loads(call(config, "model", "fetch", "marco", "--json").stdout)
    assert (again["fetched"], again["promoted"], again["champion"]) == (False, False, "marco:1")
    assert again["digest"] == marco.said["digest"]


def test_a_champion_of_the_lab_stays(config: Path, marco: Marco, db: Database) -> None:
    learned = (TrainedOn.RENDERED, TrainedOn.LAB)
    factories.promote(db, factories.register(db, "lab", synthetic=False, trained_on=learned))
    said = json.loads(call(config, "model", "fetch", "marco", "--json").stdout)
    assert (said["promoted"], said["champion"]) == (False, "lab:1")
    assert said["outcome"] == [
        "lab:1 stays champion; it learned from this lab's labels",
        "next: `marcod model challenge marco:1` lets it score new images next to the champion, to compare",
    ]
    assert [str(r.version) for r in db.read(versions.listed)] == ["lab:1"]
