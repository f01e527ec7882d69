"""Variables of a TensorFlow checkpoint, checked against an architecture before any value is read.

A checkpoint yields exactly the variables an architecture has, finite and as float32, or one sentence that names what
is missing, extra, of another shape or damaged. The reader compares every value with the checksum that the checkpoint
holds for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from marcod.errors import BundleError
from marcod.model import network
from marcod.model.architecture import HEAD, Architecture
from marcod.model.inception import Inception
from marcod.model.weights import GLOBAL_STEP
from marcod.text import some

Shape = tuple[int, ...]

_LOGITS: Final = f"{Inception.root}/{HEAD}/biases"
_AUXILIARY: Final = f"{Inception.root}/AuxLogits/"
_NAMED: Final = 5


class Checkpoint:
    """An open checkpoint. Raises BundleError for files that are missing or damaged."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        with self._damage():
            self._reader = tf.train.load_checkpoint(str(prefix))
            shapes = self._reader.get_variable_to_shape_map()
            self._types = self._reader.get_variable_to_dtype_map()
        self.shapes: dict[str, Shape] = {name: tuple(shape) for name, shape in sorted(shapes.items())}

    def architecture(self, template: Architecture) -> Architecture:
        """``template`` with the classes and the auxiliary head that the variables speak of."""
        last = self.shapes.get(_LOGITS, ())
        classes = last[0] if len(last) == 1 and last[0] >= 2 else template.classes
        return replace(template, classes=classes, auxiliary=any(n.startswith(_AUXILIARY) for n in self.shapes))

    def weights(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        """All variables of ``architecture`` under their names. Raises BundleError for what does not fit."""
        wanted = network.variable_shapes(network.build(architecture, auxiliary=architecture.auxiliary))
        refuse_misfits({n: s for n, s in self.shapes.items() if n != GLOBAL_STEP}, wanted)
        wrong = [n for n in wanted if self._types[n] != tf.float32]
        if wrong:
            raise BundleError(f"the variable {wrong[0]} is {self._types[wrong[0]].name}; it has to be float32")
        weights = {name: self._value(name) for name in wanted}
        refuse_not_finite(weights)
        return weights

    def global_step(self) -> int | None:
        """Return the number of training steps, where the checkpoint records it."""
        if self.shapes.get(GLOBAL_STEP) != ():
            return None
        return int(self._value(GLOBAL_STEP))

    def _value(self, name: str) -> NDArray[Any]:
        with self._damage(name):
            return np.asarray(self._reader.get_tensor(name))

    @contextmanager
    def _damage(self, variable: str = "") -> Iterator[None]:
        try:
            yield
        except (tf.errors.OpError, ValueError, RuntimeError, LookupError, OverflowError, MemoryError) as error:
            subject = f"its variable {variable}" if variable else f"{self.prefix.name}.index"
            raise BundleError(
                f"the checkpoint {self.prefix.name} is damaged or incomplete: {subject} cannot be read "
                f"({first_line(error)})"
            ) from error


def refuse_misfits(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """Raise one BundleError that names what is missing, extra and of another shape, the first few of each."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    changed = sorted(name for name in wanted.keys() & found.keys() if found[name] != wanted[name])
    reshaped = [f"{name} is {found[name]}, not {wanted[name]}" for name in changed]
    kinds = ((missing, "missing"), (extra, "extra"), (reshaped, "of another shape"))
    if parts := [f"{len(names)} {kind}: {some(names, _NAMED)}" for names, kind in kinds if names]:
        raise BundleError(f"the variables are not those of this network; {'; '.join(parts)}")


def refuse_not_finite(weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise a BundleError that names the variables with infinities or no numbers in them."""
    if wrong := [name for name, value in weights.items() if not np.isfinite(value).all()]:
        raise BundleError(f"{len(wrong)} variables hold values that are not finite numbers: {some(wrong, _NAMED)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to 200 characters, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
