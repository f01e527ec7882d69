"""Quantization by NNCF: what it needs, the network that comes of it, and that nothing is reported to anybody."""

import subprocess
import sys
import textwrap
from pathlib import Path

import learner
import numpy as np
import pytest
from tiny import TINY

from marcod.domain import CLASSES, Precision
from marcod.errors import BundleError, ConfigError
from marcod.model import bundle, families, openvino_network, preprocess, quantization, registry
from marcod.model.architecture import Architecture
from marcod.model.engines import QuantizedNetwork
from marcod.model.predictor import NetworkPredictor
from marcod.model.preprocess import Preprocessing
from marcod.synthetic import drop_jpeg

SHIPPED = registry.shipped_folder().joinpath(*registry.SHIPPED)
SIDE = 96
"""The shipped network for fewer pixels. A random one would keep no class, and all its layers be put back."""

Network = tuple[Architecture, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def shipped() -> Network:
    record, weights = bundle.load_weights(SHIPPED)
    return families.architecture(record.architecture | {"input_size": SIDE}), weights


@pytest.fixture(scope="module")
def drops(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("drops")
    files = [folder / f"{number}.jpg" for number in range(quantization.FEWEST)]
    for number, file in enumerate(files):
        file.write_bytes(drop_jpeg(9_000_000 + number, CLASSES[number % len(CLASSES)])[0])
    return {file: preprocess.read(file.read_bytes(), Preprocessing(SIDE, "area")) for file in files}


@pytest.fixture(scope="module")
def quantized(shipped: Network, drops: dict[Path, np.ndarray]) -> QuantizedNetwork:
    scoring = openvino_network.compiled(*shipped, 4)
    classes = {file: int(scoring(pixels[np.newaxis]).argmax()) for file, pixels in drops.items()}
    return quantization.quantize(*shipped, classes, drops.__getitem__)


def test_its_scores_are_near_those_of_float32(
    shipped: Network, quantized: QuantizedNetwork, drops: dict[Path, np.ndarray]
) -> None:
    batch = np.stack(list(drops.values()))
    plain = np.concatenate([openvino_network.compiled(*shipped, 10)(part) for part in np.split(batch, 5)])
    made = np.concatenate([openvino_network.quantized(quantized, shipped[0], 10)(part) for part in np.split(batch, 5)])
    assert 0 < np.abs(made - plain).mean() < 0.3 * plain.std()
    changed = int((made.argmax(1) != plain.argmax(1)).sum())
    assert changed <= 1, "more than one of fifty classes changed"


def test_neighbours_change_no_bit_of_a_score(
    shipped: Network, quantized: QuantizedNetwork, drops: dict[Path, np.ndarray]
) -> None:
    scoring = openvino_network.quantized(quantized, shipped[0], 8)
    batch = np.stack(list(drops.values())[:8])
    alone = np.concatenate([scoring(pixels[np.newaxis]) for pixels in batch])
    assert np.array_equal(scoring(batch), alone)


def test_it_is_written_into_a_bundle_and_read_from_it(quantized: QuantizedNetwork, tmp_path: Path) -> None:
    learner.write_small(tmp_path / "models")
    parent = tmp_path / "models" / "small" / "1"
    record = bundle.read(parent).model_copy(update={"version": 4, "precision": Precision.INT8, "files": {}})
    path = bundle.write_derived(tmp_path, record, parent, {}, [], quantized)
    loaded = bundle.load(path, 4)
    assert isinstance(loaded, NetworkPredictor)
    assert loaded.engine == "openvino"
    again = bundle.write_derived(tmp_path, record.model_copy(update={"version": 5}), path, {}, [])
    assert bundle.quantized(again, bundle.verify(again)) == quantized
    without = bundle.write_derived(tmp_path, record.model_copy(update={"version": 6}), parent, {}, [])
    with pytest.raises(BundleError, match=r"of precision int8 and has no int8.xml"):
        bundle.load(without)


@pytest.mark.parametrize("graph", [b"", b"<net", b"<?xml version='1.0'?><net name='x' version='11'/>"])
def test_a_damaged_network_is_refused_with_a_sentence(graph: bytes) -> None:
    with pytest.raises(BundleError, match="quantized network"):
        openvino_network.quantized(QuantizedNetwork(graph, b"\0" * 64), TINY, 4)


def test_too_few_images_are_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match="and 3 can be read; it takes 50"):
        quantization.quantize(TINY, {}, {Path(f"{n}.jpg"): 0 for n in range(3)}, lambda file: np.zeros(1, np.float32))


def test_no_connection_is_tried() -> None:
    """NNCF's and OpenVINO's reports go to their makers by a thread of their own; here none is even begun."""
    script = textwrap.dedent("""
        import sys
        def watch(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo"):
                print("tried", event, arguments[-1])
        sys.addaudithook(watch)
        from marcod import quiet
        nncf = quiet.import_nncf()
        import numpy as np
        from marcod.model import openvino_network
        ov = openvino_network.ov
        given = ov.opset13.parameter([1, 8], np.float32)
        weights = ov.opset13.constant(np.eye(8, dtype=np.float32))
        network = ov.Model([ov.opset13.matmul(given, weights, False, False)], [given], "one")
        nncf.quantize(network, nncf.Dataset([np.ones((1, 8), np.float32)] * 4), subset_size=4)
        ov.Core().compile_model(network, "CPU")
        print("done", sorted(name for name in sys.modules if "telemetry" in name and sys.modules[name] is not None
                             and not name.startswith(("marcod", "nncf"))))
    """)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200)
    lines = [line for line in found.stdout.splitlines() if line.startswith(("tried", "done"))]
    assert lines == ["done []"]
