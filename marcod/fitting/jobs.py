"""Fit as a record in a file, from which any process on any host can carry it out.

The images stay where they are: the record names the files that all processes read. Weights and labels are in it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod.errors import MarcodError
from marcod.fitting import batches, checkpoint, fit
from marcod.fitting.batches import Images
from marcod.fitting.checkpoint import Weights
from marcod.fitting.fit import FitOptions, Fitted, Progress, Validation
from marcod.fitting.recipes import Augmentation, Cosine, Recipe, Staircase
from marcod.model import backend, families
from marcod.model.architecture import Architecture
from marcod.model.preprocess import Preprocessing

BEGIN: Final = "begin/"
AUTO: Final = "auto"
"""The precision of the device that trains."""


@dataclass(frozen=True)
class Taught:
    """Images to learn from: rows of the kept images at ``place``, or patches of ``size`` of ``files``.

    Soft labels float32 [n, classes], and a weight each [n] as in :class:`batches.Images`.
    """

    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    by_weight: bool = False
    place: Path | None = None
    files: tuple[Path, ...] = ()
    size: int = 0

    def open(self) -> Images:
        """Return them as a training takes them; nothing is read yet."""
        if self.place is None:
            return Images(self.targets, self.weights, batches.patches(self.files, self.size), self.by_weight)
        pixels = np.load(self.place, mmap_mode="r")
        return Images(self.targets, self.weights, lambda chosen, _seed: pixels[chosen], self.by_weight)


@dataclass(frozen=True)
class Judges:
    """Images that judge each pass: ``rows`` of the kept ones at ``place``, class indices and a weight each."""

    place: Path
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    weights: NDArray[np.float32]
    how: Preprocessing

    def open(self) -> Validation:
        """Read and prepare them; by all but the first of several processes none is read."""
        if backend.share().number:
            return Validation(np.zeros((0, self.how.size, self.how.size, 3), np.float32), self.labels, self.weights)
        pixels = np.load(self.place, mmap_mode="r")
        return Validation(batches.prepared(pixels[self.rows], self.how), self.labels, self.weights)


@dataclass(frozen=True)
class FitJob:
    """Everything that decides a fit. ``place`` is the checkpoint; ``begin`` is empty for random weights."""

    architecture: Architecture
    recipe: Recipe
    taught: Taught
    seed: int
    place: Path
    begin: Weights = field(default_factory=dict)
    judges: Judges | None = None
    precision: str = AUTO
    tensorboard: Path | None = None


def run(job: FitJob, progress: Progress, stop: Any = None) -> Fitted:
    """Carry out a fit as :func:`fit.fit` does: on this host, or with the processes that this one joined."""
    return fit.fit(
        job.architecture, job.recipe, job.taught.open(),
        seed=job.seed, weights=job.begin or None, validation=None if job.judges is None else job.judges.open(),
        precision=backend.half_precision() if job.precision == AUTO else job.precision,
        options=FitOptions(job.place, stop, progress, job.tensorboard),
    )  # fmt: skip


def save(path: Path, job: FitJob) -> None:
    """Write a fit's record whole or not at all. Raises OSError."""
    taught, judges = job.taught, job.judges
    about = {
        "architecture": job.architecture.to_dict(),
        "recipe": asdict(job.recipe),
        "taught": {"by_weight": taught.by_weight, "place": taught.place, "files": taught.files, "size": taught.size},
        "judges": None if judges is None else {"place": judges.place, "how": judges.how.to_dict()},
        "seed": job.seed,
        "place": job.place,
        "precision": job.precision,
        "tensorboard": job.tensorboard,
    }
    text = json.dumps(about, default=str)
    arrays: dict[str, NDArray[Any]] = {"about": np.frombuffer(text.encode(), np.uint8)}
    arrays |= {"targets": taught.targets, "weights": taught.weights}
    if judges is not None:
        arrays |= {f"judges/{name}": getattr(judges, name) for name in ("rows", "labels", "weights")}
    checkpoint.save_arrays(path, arrays | {BEGIN + name: value for name, value in job.begin.items()})


def load(path: Path) -> FitJob:
    """Read a fit's record. Raises MarcodError where there is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise MarcodError(f"{path} cannot be read here: {error.strerror}; is train.folder on every host?") from error
    about = json.loads(arrays["about"].tobytes())
    taught, judges = about["taught"], about["judges"]
    return FitJob(
        architecture=families.architecture(about["architecture"]),
        recipe=_recipe(about["recipe"]),
        taught=Taught(
            arrays["targets"], arrays["weights"], taught["by_weight"], _path(taught["place"]),
            tuple(map(Path, taught["files"])), taught["size"],
        ),
        judges=None if judges is None else _judges(judges, arrays),
        seed=about["seed"],
        place=Path(about["place"]),
        begin={name.removeprefix(BEGIN): value for name, value in arrays.items() if name.startswith(BEGIN)},
        precision=about["precision"],
        tensorboard=_path(about["tensorboard"]),
    )  # fmt: skip


def _judges(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Judges:
    rows, labels, weights = (arrays[f"judges/{name}"] for name in ("rows", "labels", "weights"))
    return Judges(Path(about["place"]), rows, labels, weights, Preprocessing.from_dict(about["how"]))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _recipe(values: Mapping[str, Any]) -> Recipe:
    """Invert ``asdict``, which makes dictionaries of dataclasses and lists of pairs."""
    given, augmentation = dict(values), dict(values["augmentation"])
    for name in ("patch", "contrast", "saturation"):
        augmentation[name] = None if augmentation[name] is None else tuple(augmentation[name])
    decay = given["decay"]
    made = Cosine(**decay) if "warmup_steps" in decay else Staircase(**decay)
    return Recipe(**given | {"decay": made, "augmentation": Augmentation(**augmentation)})
