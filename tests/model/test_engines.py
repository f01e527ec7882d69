"""Two engines, one network: OpenVINO builds of a bundle's weights what Keras does, and scores alike to 1e-5."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import numpy as np
import pytest
import tiny
from factories import utc
from random_bundles import combine

from marcod.database.engine import Database
from marcod.domain import Precision
from marcod.errors import ON_A_WHOLE_HOST, BundleError, ConfigError, HostLacksError, what_is_left_out
from marcod.model import bundle, engines, openvino_network, processors, weights
from marcod.model.architecture import Architecture
from marcod.model.efficientnet import EfficientNetLite
from marcod.model.registry import SHIPPED, Registry, shipped_folder
from marcod.settings import ScoreSettings
from marcod.settings.environment import child_environment

SMALL_LITE: Final = EfficientNetLite(input_size=64, classes=4)
WITH_ENTRY: Final = replace(tiny.TINY, input_size=151, entry=True)
ARCHITECTURES: Final = (tiny.TINY, WITH_ENTRY, SMALL_LITE)


def images_of(architecture: Architecture, count: int) -> np.ndarray:
    shape = (count, architecture.input_size, architecture.input_size, 3)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def values_of(architecture: Architecture) -> dict[str, np.ndarray]:
    """Random weights that keep the scale of what passes through them."""
    given = tiny.random_weights(architecture)
    return {name: np.ones_like(value) if name.endswith("gamma") else value for name, value in given.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda one: f"{one.family}-{one.input_size}")
def test_neighbours_and_places_in_a_batch_change_no_bit_of_a_score(architecture: Architecture) -> None:
    score = openvino_network.compiled(architecture, values_of(architecture), 7)
    batch = images_of(architecture, 7)
    together = score(batch)
    assert together.shape == (7, 4)
    assert np.ptp(together, axis=0).min() > 0, "different images have different scores"
    assert np.array_equal(np.concatenate([score(batch[i : i + 1]) for i in range(7)]), together)
    assert np.array_equal(score(batch[::-1]), together[::-1])


def test_the_shipped_bundle_scores_its_golden_images_to_five_decimals() -> None:
    folder = shipped_folder().joinpath(*SHIPPED)
    predictor = bundle.load(folder, 4, engine="openvino")
    assert predictor.engine == "openvino"
    for golden in bundle.read_golden(folder):
        found = predictor.predict(predictor.prepare(golden.data)[np.newaxis])[0]
        assert np.abs(found - np.asarray(golden.probabilities)).max() <= 1e-5


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_committee_and_its_members_are_calculated_by_one_engine(db: Database, members: Path) -> None:
    light, usual = Registry(db, members, "openvino"), Registry(db, members)
    usual.promote(usual.register("left", "1", utc()), actor="test", now=utc())
    version = combine(usual, members, "left:1", "own:1")
    found, wanted = light.load(version, 4), usual.load(version, 4)
    assert {one.engine for one in (found, *found.networks)} == {"openvino"}
    data = tiny.jpeg(5)
    scores = [one.predict(one.prepare(data)[np.newaxis]) for one in (found, wanted)]
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5


def test_weights_that_do_not_fit_are_refused_as_keras_refuses_them() -> None:
    given = tiny.random_weights(tiny.TINY)
    name = next(name for name in given if name.endswith("weights"))
    for changed, told in (
        ({name: given[name][..., :-1]}, "its convolution has shape"),
        ({"Inception/Logits/Conv2d_1c_1x1/biases": np.zeros(5, np.float32)}, "this architecture needs"),
        ({"Inception/more/weights": np.zeros(5, np.float32)}, "does not have"),
        ({name: given[name] * np.float32(np.nan)}, "not finite"),
    ):
        with pytest.raises(BundleError, match=told):
            openvino_network.build(tiny.TINY, {**given, **changed}, 1)
    with pytest.raises(BundleError, match="lack"):
        openvino_network.build(tiny.TINY, {n: v for n, v in given.items() if not n.startswith("Inception/Logits")}, 1)
    with pytest.raises(BundleError, match="too small"):
        weights.shapes(replace(tiny.TINY, input_size=40))


def test_a_version_of_float16_waits_for_a_host_with_tensorflow(tiny_weights: dict[str, np.ndarray]) -> None:
    with pytest.raises(HostLacksError, match="float16 needs TensorFlow"):
        engines.compiled("openvino", tiny.TINY, tiny_weights, 2, Precision.FLOAT16)


def test_bfloat16_by_openvino_is_another_network_or_refused(tiny_weights: dict[str, np.ndarray]) -> None:
    """The processor decides; no other precision is taken for it in silence."""
    batch = np.random.default_rng(3).uniform(-1, 1, (2, 75, 75, 3)).astype(np.float32)
    plain = engines.compiled("openvino", tiny.TINY, tiny_weights, 2, Precision.FLOAT32).scoring(batch)
    if lacking := processors.lacks(Precision.BFLOAT16):
        with pytest.raises(HostLacksError, match=f"cannot calculate in bfloat16: {lacking}"):
            engines.compiled("openvino", tiny.TINY, tiny_weights, 2, Precision.BFLOAT16)
        return
    half = engines.compiled("openvino", tiny.TINY, tiny_weights, 2, Precision.BFLOAT16).scoring(batch)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.05 * np.abs(plain).max()


def test_the_engine_of_a_host_is_what_is_configured_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.chosen("openvino") == "openvino"
    for lacking, setting, found in (("tensorflow", "auto", "openvino"), ("openvino", "auto", "tensorflow")):
        with monkeypatch.context() as patch:
            patch.setattr(engines, "installed", lambda engine, lacking=lacking: engine != lacking)
            assert engines.chosen(setting) == found
            with pytest.raises(ConfigError, match=f"score.engine is {lacking}, but .* is not installed"):
                engines.chosen(lacking)
    assert get_args(ScoreSettings.model_fields["engine"].annotation) == get_args(engines.Setting)


def test_work_for_a_whole_host_is_refused_with_one_sentence() -> None:
    sentence = what_is_left_out(ModuleNotFoundError(name="keras.layers"))
    assert sentence == f"this needs TensorFlow, which is not installed here; {ON_A_WHOLE_HOST}"
    assert what_is_left_out(ModuleNotFoundError(name="marcod.nothing")) is None


SPY: Final = """
import sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        print("SOCKET", event, arguments, flush=True)
        raise OSError("no connection is allowed")
sys.addaudithook(refuse)
from marcod.model import bundle, registry
import numpy as np
folder = registry.shipped_folder().joinpath(*registry.SHIPPED)
predictor = bundle.load(folder, 4, engine="openvino")
predictor.predict(np.zeros((3, *predictor.input_shape), np.float32))
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
print("LOADED", *sorted(loaded & {"tensorflow", "keras", "openvino_telemetry"}))
"""


@pytest.mark.slow
def test_loading_and_scoring_connect_to_nobody_and_leave_nothing_in_the_home(tmp_path: Path) -> None:
    environment = child_environment(HOME=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-c", SPY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert done.stdout.splitlines() == ["LOADED"]
    assert list(tmp_path.iterdir()) == []
