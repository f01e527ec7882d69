"""A real small network as a real bundle, made once; its weights are random and its scores mean nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from factories import utc

from marcod import bundle, network
from marcod.bundle import Predictor
from marcod.domain import CLASSES
from marcod.preprocess import Preprocessing
from marcod.registry import Registry
from marcod.store.engine import Database
from marcod.store.versions import Version

ARCHITECTURE = network.Architecture(input_size=75, classes=4, entry=False, width=0.1, auxiliary=False)
BATCH_SIZE = 4

WriteBundle = Callable[..., Path]


def _write(models: Path, name: str, version: int, seed: int, classes: tuple[str, ...], threshold: float) -> Path:
    architecture = network.Architecture(**{**ARCHITECTURE.to_dict(), "classes": len(classes)})
    rng = np.random.default_rng(seed)
    shapes = network.variable_shapes(network.build(architecture))
    weights = {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if name.endswith("moving_variance")
        else rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    record = bundle.BundleRecord(
        name=name,
        version=version,
        classes=classes,
        temperature=1.0,
        training_data="none, the weights are random",
        licence="Apache-2.0",
        synthetic=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture=architecture.to_dict(),
        preprocessing=Preprocessing(75, "area").to_dict(),
        folding={c: CLASSES[i % 4] for i, c in enumerate(classes)},
        threshold=bundle.Threshold(crystal=threshold, recall=0.0, measured_on="nothing"),
    )
    return bundle.write(models, record, weights, {}, [])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundles random:1, random:2 and six:1, which has six classes of its own."""
    folder = tmp_path_factory.mktemp("models")
    four = tuple(str(c) for c in CLASSES)
    _write(folder, "random", 1, seed=1, classes=four, threshold=0.5)
    _write(folder, "random", 2, seed=2, classes=four, threshold=0.2)
    _write(folder, "six", 1, seed=3, classes=("clear", "crystals", "skin", "light", "dry", "needles"), threshold=0.5)
    return folder


class LoadOnce(Registry):
    """A registry that builds each network once for all tests; building takes seconds, and predictors keep no state."""

    built: ClassVar[dict[str, Predictor]] = {}

    def load(self, version: Version, batch_size: int) -> Predictor:
        if version.digest not in self.built:
            self.built[version.digest] = super().load(version, batch_size)
        return self.built[version.digest]


@pytest.fixture
def registry(db: Database, models: Path) -> Registry:
    """The bundles above on a fresh database, with random:1 as champion."""
    registry = LoadOnce(db, models)
    registry.promote(registry.register("random", "1", utc()), actor="test", now=utc())
    return registry


@pytest.fixture
def second(registry: Registry) -> Version:
    """random:2, registered."""
    return registry.register("random", "2", utc())
