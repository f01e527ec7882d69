"""Checkpoint of a training in one file, so that a kill at any point loses minutes and not the training.

The file is an ``.npz`` without pickles that is replaced in one step, so that it is always whole.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import files
from marcod.errors import MarcodError

Weights = dict[str, NDArray[np.float32]]
_GROUPS: Final = ("weights", "average", "best")

# What NumPy and zipfile raise for a file of other bytes: RuntimeError for one that seems to be encrypted.
_DAMAGE: Final = (
    OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile
)  # fmt: skip


@dataclass(frozen=True)
class TrainingState:
    """State of a training after ``step`` steps of ``epoch``.

    ``curve`` has what was measured at the end of each epoch; ``best`` are the weights of the best one.
    """

    epoch: int
    step: int
    weights: Weights
    average: Weights
    best: Weights
    optimizer: list[NDArray[Any]]
    best_loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, state: TrainingState) -> None:
    """Replace the checkpoint file. Raises OSError, and the former file stays as it was."""
    about = {"epoch": state.epoch, "step": state.step, "best_loss": state.best_loss, "curve": state.curve}
    arrays: dict[str, NDArray[Any]] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for group in _GROUPS:
        arrays |= {f"{group}/{name}": value for name, value in getattr(state, group).items()}
    arrays |= {f"optimizer/{i:05d}": value for i, value in enumerate(state.optimizer)}
    save_arrays(path, arrays)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` whole or not at all. Raises OSError."""
    # One process at a time writes here, so a killed one's remains are overwritten.
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    files.put_in_place(unfinished, path)


def digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of weights, which two processes have in common if they have the same to the last bit."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + b"\x00" + np.ascontiguousarray(weights[name]).tobytes())
    return found.hexdigest()


def load(path: Path) -> TrainingState | None:
    """Load the state in a file, None when there is no file. Raises MarcodError when it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _state(arrays)
    except _DAMAGE as error:
        raise MarcodError(f"the checkpoint {path} is damaged: {error}; remove it to start again") from error


def _state(arrays: dict[str, NDArray[Any]]) -> TrainingState:
    about = json.loads(arrays.pop("about").tobytes())
    groups: dict[str, Any] = {group: {} for group in (*_GROUPS, "optimizer")}
    for name, value in arrays.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    optimizer = groups.pop("optimizer")
    return TrainingState(**about, **groups, optimizer=[optimizer[name] for name in sorted(optimizer)])
