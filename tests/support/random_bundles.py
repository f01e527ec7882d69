"""The smallest real networks as real bundles; their weights are random and their scores mean nothing."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import numpy as np

from marcod.domain import CLASSES
from marcod.model import bundle, network
from marcod.model.bundle import Predictor
from marcod.model.inception import Inception
from marcod.model.preprocess import Preprocessing
from marcod.model.registry import Registry
from marcod.store.versions import Version

ARCHITECTURE = Inception(input_size=75, classes=4, entry=False, width=0.1, auxiliary=False)
FOUR = tuple(str(c) for c in CLASSES)


def write(
    models: Path, name: str, version: int, seed: int, classes: tuple[str, ...] = FOUR, threshold: float = 0.5
) -> Path:
    """A bundle ``name:version`` below ``models``, without golden images."""
    architecture = replace(ARCHITECTURE, classes=len(classes))
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
    return bundle.write(models, record, weights, {"images": {"test": 0}}, [])


class LoadOnce(Registry):
    """A registry that builds each network once for all tests; building takes seconds, and predictors keep no state."""

    built: ClassVar[dict[str, Predictor]] = {}

    def load(self, version: Version, batch_size: int) -> Predictor:
        if version.digest not in self.built:
            self.built[version.digest] = super().load(version, batch_size)
        return self.built[version.digest]
