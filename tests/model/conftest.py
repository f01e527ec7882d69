"""A tiny member of the family with random weights, and a bundle of it, made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import TINY, jpeg, random_weights

from marcod.domain import CLASSES
from marcod.model.bundle import Golden, Predictor, Threshold, new_record, write
from marcod.model.preprocess import Preprocessing


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, np.ndarray]:
    return random_weights(TINY)


@pytest.fixture(scope="session")
def tiny_predictor(tiny_weights: dict[str, np.ndarray]) -> Predictor:
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
    return Predictor(record, tiny_weights, batch_size=4)


@pytest.fixture(scope="session")
def pristine_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_predictor: Predictor, tiny_weights: dict[str, np.ndarray]
) -> Path:
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
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
