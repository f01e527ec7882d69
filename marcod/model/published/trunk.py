"""Weights of a network that others trained on other images than drops, from which a model is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.errors import ConfigError
from marcod.model.bundle import Origin
from marcod.model.published.catalogue import Published
from marcod.model.published.files import Progress, proven_files

_LICENCE: Final = "LICENSE"


@dataclass(frozen=True)
class Trunk:
    """Weights float32 by this program's names, the text of their licence, and where they come from."""

    weights: Mapping[str, NDArray[np.float32]]
    licence_text: str
    origin: Origin
    about: str
    citation: str


def read_trunk(model: Published, *, given: Path | None = None, progress: Progress | None = None) -> Trunk:
    """Get a published trunk and read its weights, without running anything that comes with them.

    ``given`` is as for :func:`proven_files`. Raises FetchError when it cannot be had or is not what was published,
    ConfigError for a classifier.
    """
    if model.kind != "trunk":
        raise ConfigError(f"{model.name} is a whole model, no trunk to train one from")
    with proven_files(model, given, progress=progress) as folder:
        # Here, since it imports TensorFlow, which downloading must not wait for.
        from marcod.model import efficientnet
        from marcod.model.convert import torch_file

        names = {PurePosixPath(name).name: folder / name for name in model.files}
        licence = names.pop(_LICENCE).read_text(encoding="utf-8")
        convert: Callable[[Mapping[str, Any]], dict[str, NDArray[np.float32]]] = efficientnet.from_published
        weights = convert(torch_file.read(next(iter(names.values()))))
    return Trunk(weights, licence, model.origin, model.training_data, model.citation)
