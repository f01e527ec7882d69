"""A real small network as a real bundle, made once; its weights are random and its scores mean nothing."""

from pathlib import Path

import pytest
import random_bundles
from factories import utc
from random_bundles import LoadOnce

from marcod.database.engine import Database
from marcod.model.registry import Registry
from marcod.store.versions import Version


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundles random:1, random:2 and six:1, which has six classes of its own."""
    folder = tmp_path_factory.mktemp("models")
    random_bundles.write(folder, "random", 1, seed=1)
    random_bundles.write(folder, "random", 2, seed=2, threshold=0.2)
    random_bundles.write(folder, "six", 1, seed=3, classes=("clear", "crystals", "skin", "light", "dry", "needles"))
    return folder


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
