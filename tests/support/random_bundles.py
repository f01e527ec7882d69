"""The smallest real networks as real bundles; their weights are random and their scores mean nothing."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import numpy as np
import tiny
from factories import utc

from marcod.domain import CLASSES
from marcod.model import bundle, combining
from marcod.model import weights as arrays
from marcod.model.inception import Inception
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.model.preprocess import Preprocessing
from marcod.model.registry import Registry
from marcod.store.versions import Version

ARCHITECTURE = Inception(input_size=75, classes=4, entry=False, width=0.1, auxiliary=False)
MEASURED = {"images": {"test": 0}}
FOUR = tuple(str(c) for c in CLASSES)


def write(
    models: Path,
    name: str,
    version: int,
    seed: int,
    classes: tuple[str, ...] = FOUR,
    threshold: float = 0.5,
) -> Path:
    """A bundle ``name:version`` below ``models``, without golden images. Its network is very sure of everything."""
    architecture = replace(ARCHITECTURE, classes=len(classes))
    rng = np.random.default_rng(seed)
    shapes = arrays.shapes(architecture)
    weights = {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if name.endswith("moving_variance")
        else rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return bundle.write(models, _record(name, version, classes, threshold, architecture), weights, MEASURED, [])


def write_unsure(models: Path, name: str, seed: int, classes: tuple[str, ...] = FOUR, size: int = 75) -> Path:
    """A bundle ``name:1`` as above that gives different images different scores, as a committee's members must."""
    architecture = replace(ARCHITECTURE, classes=len(classes), input_size=size)
    record = _record(name, 1, classes, 0.25, architecture)
    predictor = NetworkPredictor(record, weights := tiny.random_weights(architecture, seed), 2)
    image = tiny.jpeg(seed)
    scores = predictor.predict(predictor.prepare(image)[np.newaxis])[0].tolist()
    return bundle.write(models, record, weights, MEASURED, [bundle.Golden("random.jpg", image, scores)])


def _record(
    name: str, version: int, classes: tuple[str, ...], threshold: float, architecture: Inception
) -> bundle.BundleRecord:
    return bundle.BundleRecord(
        name=name,
        version=version,
        classes=classes,
        temperature=1.0,
        training_data="none, the weights are random",
        licence="Apache-2.0",
        synthetic=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        architecture=architecture.to_dict(),
        preprocessing=Preprocessing(architecture.input_size, "area").to_dict(),
        folding={c: CLASSES[i % 4] for i, c in enumerate(classes)},
        threshold=bundle.Threshold(crystal=threshold, recall=0.0, measured_on="nothing"),
    )


class LoadOnce(Registry):
    """A registry that builds each network once for all tests; building takes seconds, and predictors keep no state."""

    built: ClassVar[dict[str, Predictor]] = {}

    def _load(self, path: Path, digest: str, batch_size: int) -> Predictor:
        if digest in self.built:
            self._loaded[digest, batch_size] = self.built[digest]
        self.built[digest] = super()._load(path, digest, batch_size)
        return self.built[digest]


def combine(registry: Registry, models: Path, *names: str, name: str = "committee") -> Version:
    """A committee of registered versions, fixed on a few rendered drops, and registered."""
    found = [registry.resolve_registered(text, utc()) for text in names]
    parts = [combining.part(registry.path(v.name, v.version), registry.load(v, 4)) for v in found]
    made = combining.fix(parts, combining.rendered(parts, 8))
    path = combining.write(models, combining.record(name, registry.next_number(name), parts, made), parts)
    return registry.register(name, path.name, utc())
