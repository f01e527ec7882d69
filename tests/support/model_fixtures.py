"""Tiny networks with random weights and real bundles of them, each made once in a session for all rooms."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from factories import utc

from marcod.database.engine import Database
from marcod.domain import CLASSES

if TYPE_CHECKING:
    # TensorFlow takes seconds, which only the tests that ask for these fixtures shall pay.
    from marcod.model.predictor import Predictor
    from marcod.model.registry import Registry
    from marcod.store.versions import Version


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, np.ndarray]:
    from tiny import TINY, random_weights

    return random_weights(TINY)


@pytest.fixture(scope="session")
def tiny_predictor(tiny_weights: dict[str, np.ndarray]) -> "Predictor":
    from tiny import TINY

    from marcod.model.bundle import Threshold, new_record
    from marcod.model.predictor import NetworkPredictor
    from marcod.model.preprocess import Preprocessing

    record = new_record(
        name="tiny",
        version=3,
        classes=[c.value for c in CLASSES],
        folding={c: c for c in CLASSES},
        temperature=1.5,
        threshold=Threshold(crystal=0.25, recall=0.95, measured_on="nothing: the weights are random"),
        training_data="none",
        licence="Apache-2.0",
        synthetic=True,
        notice="Random weights.\nFor tests only.",
        architecture=TINY.to_dict(),
        preprocessing=Preprocessing(TINY.input_size, "area").to_dict(),
    )
    return NetworkPredictor(record, tiny_weights, batch_size=4)


@pytest.fixture(scope="session")
def pristine_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_predictor: "Predictor", tiny_weights: dict[str, np.ndarray]
) -> Path:
    from tiny import jpeg

    from marcod.model.bundle import Golden, write

    images = [jpeg(1), jpeg(2)]
    scores = tiny_predictor.predict(np.stack([tiny_predictor.prepare(p) for p in images]))
    golden = [Golden(f"random-{i}.jpg", p, s.tolist()) for i, (p, s) in enumerate(zip(images, scores, strict=True))]
    models = tmp_path_factory.mktemp("models")
    return write(models, tiny_predictor.record, tiny_weights, {"synthetic": True, "accuracy": 0.25}, golden)


@pytest.fixture
def tiny_bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / "tiny" / "3"))


@pytest.fixture
def eagerly() -> Iterator[None]:
    """TensorFlow takes every step as it is written, which for one or two steps is much faster than compiling them."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundles random:1, random:2 and six:1, which has six classes of its own."""
    import random_bundles

    folder = tmp_path_factory.mktemp("models")
    random_bundles.write(folder, "random", 1, seed=1)
    random_bundles.write(folder, "random", 2, seed=2, threshold=0.2)
    random_bundles.write(folder, "six", 1, seed=3, classes=("clear", "crystals", "skin", "light", "dry", "needles"))
    return folder


@pytest.fixture(scope="session")
def pristine_members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with left:1 and own:1, of another input size and with six classes of its own."""
    import random_bundles

    folder = tmp_path_factory.mktemp("members")
    random_bundles.write_unsure(folder, "left", seed=1)
    classes = ("clear", "crystals", "skin", "light", "dry", "needles")
    random_bundles.write_unsure(folder, "own", seed=3, classes=classes, size=91)
    return folder


@pytest.fixture
def members(pristine_members: Path, tmp_path: Path) -> Path:
    """A copy of the folder above that a test may change and add to."""
    return Path(shutil.copytree(pristine_members, tmp_path / "models"))


@pytest.fixture
def registry(db: Database, models: Path) -> "Registry":
    """The bundles above on a fresh database, with random:1 as champion."""
    from random_bundles import LoadOnce

    registry = LoadOnce(db, models)
    registry.promote(registry.register("random", "1", utc()), actor="test", now=utc())
    return registry


@pytest.fixture
def second(registry: "Registry") -> "Version":
    """random:2, registered."""
    return registry.register("random", "2", utc())
