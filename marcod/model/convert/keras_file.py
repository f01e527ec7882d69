"""Weights of a ``.keras`` file of our network, without making an object of anything the file describes.

The file's ``config.json`` is only compared with the network that we build; layers named there are never made, so
no code in it can run. Source of the file's format: the Keras 3 documentation, "Whole model saving & loading".
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model import network
from marcod.model.architecture import Architecture
from marcod.model.bundle import WEIGHTS_BYTES
from marcod.model.convert.checkpoint import first_line, refuse_not_finite

_WEIGHTED: Final = ("Conv2D", "DepthwiseConv2D", "BatchNormalization")
_LOGITS: Final = "Logits.Conv2d_1c_1x1"
_AUXILIARY: Final = "AuxLogits."


def read(folder: Path, templates: Sequence[Architecture]) -> tuple[Architecture, dict[str, NDArray[np.float32]]]:
    """Return the architecture, one of ``templates`` with the file's classes and heads, and its weights.

    ``folder`` holds the unpacked file. Raises BundleError when it is damaged or another network.
    """
    layers, size = _described(folder / "config.json")
    template = next((t for t in templates if t.input_size == size), None)
    if template is None or _LOGITS not in layers:
        sizes = " or ".join(str(t.input_size) for t in templates)
        raise BundleError(
            f"the Keras file is not our network: it takes {size} pixels and has {len(layers)} layers with weights; "
            f"ours takes {sizes} pixels and ends in {_LOGITS}"
        )
    auxiliary = any(name.startswith(_AUXILIARY) for name in layers)
    architecture = replace(template, classes=layers[_LOGITS] or template.classes, auxiliary=auxiliary)
    model = network.build(architecture, auxiliary=auxiliary)
    _refuse_others(layers, [layer for layer in model.layers if layer.weights])
    _load(model, folder / "model.weights.h5")
    weights = network.variables(model)
    refuse_not_finite(weights)
    return architecture, weights


def _described(file: Path) -> tuple[dict[str, int | None], Any]:
    """Layers with weights in their order, with their filters, and the side of the input."""
    try:
        layers = json.loads(file.read_bytes())["config"]["layers"]
        found = {
            layer["config"]["name"]: layer["config"].get("filters")
            for layer in layers
            if layer["class_name"] in _WEIGHTED
        }
        shapes = [layer["config"]["batch_shape"] for layer in layers if layer["class_name"] == "InputLayer"]
        return found, shapes[0][1]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"the Keras file's config.json does not describe a network of ours ({error!r})") from error


def _refuse_others(found: dict[str, int | None], ours: Sequence[Any]) -> None:
    """Weights are stored by position, so names, order and filters have to be ours."""
    wanted = {layer.name: layer.get_config().get("filters") for layer in ours}
    pairs = list(zip(found.items(), wanted.items(), strict=False))
    if wrong := next(((a, b) for a, b in pairs if a != b), None):
        (name, filters), (our_name, our_filters) = wrong
        raise BundleError(
            f"the Keras file is not our network: it has {name} with {filters} filters where ours has "
            f"{our_name} with {our_filters}"
        )
    if len(found) != len(wanted):
        raise BundleError(f"the Keras file is not our network: {len(found)} layers with weights, ours {len(wanted)}")


def _refuse_large(file: Path) -> None:
    """Refuse arrays that unpack to more than any network here has; a packed zero costs nothing. Raises ValueError."""
    sizes: list[int] = []

    def note(_name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            sizes.append(found.size * found.dtype.itemsize)

    with h5py.File(file, "r") as opened:
        opened.visititems(note)
    if sum(sizes) > WEIGHTS_BYTES:
        raise ValueError(f"they unpack to {sum(sizes):,} bytes; more than {WEIGHTS_BYTES:,} are not read")


def _load(model: Any, file: Path) -> None:
    try:
        _refuse_large(file)
        # Reads arrays alone, and refuses HDF5 links to other files of this computer (since Keras 3.15).
        model.load_weights(file)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise BundleError(f"the Keras file's weights cannot be read: {first_line(error)}") from error
