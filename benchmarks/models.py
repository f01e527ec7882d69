"""The bundles that are measured: the shipped one, and one of the published network's size with random weights."""

from datetime import datetime
from pathlib import Path

from marcod.database.engine import Database
from marcod.domain import CLASSES
from marcod.model import bundle, registry
from marcod.model.predictor import Predictor
from marcod.model.registry import Registry
from marcod.store.versions import Version

MARCO_SIZE = ("marco-size-random", "1")


def own_folder(place: Path) -> tuple[Path | None, str]:
    """The folder to configure so that there is a first champion, and what that champion is."""
    name = ":".join(registry.SHIPPED)
    if (registry.shipped_folder() / registry.SHIPPED[0] / registry.SHIPPED[1] / bundle.RECORD_FILE).is_file():
        return None, f"{name} (shipped)"

    from marcod.model.efficientnet import LITE0

    folder = place / "models"
    if not folder.exists():
        _write_random(folder, *registry.SHIPPED, LITE0, "area")
    return folder, f"{name}, of random weights, because the shipped bundle is not there"


def marco_size(place: Path) -> Path:
    """A folder with the published network's architecture and preprocessing, its weights as initialised."""
    from marcod.model.inception import MARCO

    folder = place / "marco"
    if not folder.exists():
        _write_random(folder, *MARCO_SIZE, MARCO, "bilinear-tf1")
    return folder


def champion(db: Database, folder: Path | None, name: tuple[str, str], now: datetime) -> tuple[Registry, Version]:
    """Register a bundle and let it score."""
    found = Registry(db, folder)
    version = found.register(*name, now)
    found.promote(version, actor="bench", now=now)
    return found, version


def loaded(found: Registry, version: Version, batch_size: int) -> Predictor:
    """A predictor that has compiled its network already."""
    import numpy as np

    predictor = found.load(version, batch_size)
    predictor.predict(np.zeros((batch_size, *predictor.input_shape), np.float32))
    return predictor


def _write_random(folder: Path, name: str, version: str, architecture: object, resize: str) -> None:
    import keras

    from marcod.model import network
    from marcod.model.architecture import Architecture

    assert isinstance(architecture, Architecture)
    keras.utils.set_random_seed(1)
    record = bundle.new_record(
        name=name,
        version=int(version),
        classes=tuple(str(c) for c in CLASSES),
        temperature=1.0,
        training_data="none, the weights are random",
        licence="Apache-2.0",
        synthetic=True,
        architecture=architecture.to_dict(),
        preprocessing={"size": architecture.input_size, "resize": resize},
        folding={str(c): c for c in CLASSES},
        threshold=bundle.Threshold(crystal=0.5, recall=0.0, measured_on="nothing"),
    )
    bundle.write(folder, record, network.variables(network.build(architecture)), {}, [])
