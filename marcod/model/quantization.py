"""Quantization of a network to 8-bit integers by NNCF, for OpenVINO. Needs the extra ``int8``.

Every number range is taken from images of the lab. Where the classes of too many images change, layers are put back to
float32 until few enough do (accuracy control).
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import quiet
from marcod.errors import ConfigError
from marcod.model import engines
from marcod.model.architecture import Architecture
from marcod.model.engines import QuantizedNetwork

MOST_CHANGED: Final = 0.01
"""Share of the images whose class may change."""

FEWEST: Final = 50
"""Images that a network can be calibrated on at least."""


def require() -> None:
    """Raise ConfigError where NNCF or OpenVINO is not installed."""
    if find_spec("nncf") is None or not engines.installed("openvino"):
        raise ConfigError("int8 needs NNCF and OpenVINO; install marcod with its extra int8")


def quantize(
    architecture: Architecture,
    weights: Mapping[str, NDArray[np.float32]],
    classes: Mapping[Path, int],
    prepare: Callable[[Path], NDArray[np.float32]],
) -> QuantizedNetwork:
    """Quantize a network by images of the lab.

    ``classes`` has the files, each with the output that is the highest in float32; ``prepare`` reads one as the
    network's input, float32 [size, size, 3]. Raises ConfigError where too few are given, or what is needed is not
    installed.
    """
    require()
    if len(classes) < FEWEST:
        raise ConfigError(
            f"int8 is calibrated on images of this lab, and {len(classes)} can be read; it takes {FEWEST}"
        )
    nncf = quiet.import_nncf()
    from marcod.model import openvino_network

    def one(file: Path) -> NDArray[np.float32]:
        # Read each time: all of them at once would take gigabytes.
        return prepare(file)[np.newaxis]

    def agreement(network: Any, files: Iterable[Path]) -> tuple[float, list[float]]:
        kept = [float(np.argmax(network(one(file))[0]) == classes[file]) for file in files]
        return sum(kept) / len(kept), kept

    # Its progress bars are for people, and standard output is what programs read.
    with redirect_stdout(sys.stderr):
        made = nncf.quantize_with_accuracy_control(
            openvino_network.build(architecture, weights, 1),
            nncf.Dataset(list(classes), one),
            nncf.Dataset(list(classes)),
            agreement,
            max_drop=MOST_CHANGED,
            # Symmetric ranges for what layers give on, too: fewer classes change (docs/decisions.md).
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(classes),
            fast_bias_correction=False,
        )
    return _saved(made)


def _saved(network: Any) -> QuantizedNetwork:
    from marcod.model import openvino_network

    with tempfile.TemporaryDirectory(prefix="marcod-int8-") as folder:
        graph = Path(folder) / "network.xml"
        openvino_network.ov.save_model(network, str(graph), compress_to_fp16=False)
        return QuantizedNetwork(graph.read_bytes(), graph.with_suffix(".bin").read_bytes())
