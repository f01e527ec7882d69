"""Import of a model: from a source to a bundle, or to nothing at all.

Guarantees:

* A bundle is written only after its predictor has given every compared image the probabilities that the original
  gives, to :data:`TOLERANCE`. The comparison is kept in the bundle.
* An import which fails for any reason leaves the folder of models as it was.
"""

import io
import json
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from marcod import files, images, synthetic
from marcod.domain import CLASSES, DropClass, TrainedOn
from marcod.errors import BundleError, ConfigError, ImageError, is_full, os_reason
from marcod.model import bundle, network, probabilities
from marcod.model.architecture import Architecture
from marcod.model.bundle import BundleRecord, Golden, Threshold
from marcod.model.convert import keras_file, saved_model, sources
from marcod.model.convert.checkpoint import Checkpoint
from marcod.model.convert.sources import ArchiveLimits, ModelFormat, ModelSource, Progress
from marcod.model.efficientnet import LITE0
from marcod.model.inception import MARCO, MARCO_SMALL
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.model.preprocess import Preprocessing
from marcod.model.published.catalogue import Published

TOLERANCE: Final = 1e-5
"""Largest difference of a probability from the original's. Float32 rounding makes about 1e-6 of it."""

DEFAULT_NAME: Final = "marco"
IMAGES_AT_MOST: Final = 24

_PUBLISHED_PREPROCESSING: Final = Preprocessing(MARCO.input_size, "bilinear-tf1")
_BATCH: Final = 8
_FIRST_SEED: Final = 5_000_000
"""Where the seeds of the rendered drops begin, far from those of training."""

_SIZES: Final = (
    (330, 270), (512, 410), (640, 480), (800, 600), (1224, 1024), (601, 456), (455, 602), (720, 720),
)  # fmt: skip
"""Width and height of the rendered drops; the first four become golden images, one of each class."""

_GOLDEN: Final = 4


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A bundle that was written: its folder, its record, and what its metrics.json says about the import."""

    path: Path
    record: BundleRecord
    report: Mapping[str, Any]


@dataclass(frozen=True)
class _Model:
    """Contents of a source. ``classes`` and ``graph`` are None where it does not bring any."""

    architecture: Architecture
    preprocessing: Preprocessing
    weights: Mapping[str, NDArray[np.float32]]
    classes: tuple[str, ...] | None = None
    graph: saved_model.PublishedGraph | None = None
    global_step: int | None = None


@dataclass(frozen=True)
class _Image:
    name: str
    data: bytes


def import_model(
    source: str,
    models: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    architecture: Architecture = MARCO,
    preprocessing: Preprocessing = _PUBLISHED_PREPROCESSING,
    images: Path | None = None,
    folding: Mapping[str, DropClass] | None = None,
    licence: str | None = None,
    threshold: float | None = None,
    published: Published | None = None,
    taken: Collection[tuple[str, str]] = (),
    limits: ArchiveLimits = ArchiveLimits(),  # noqa: B008
    progress: Progress | None = None,
) -> ImportedModel:
    """Turn ``source``, a path or URL, into bundle ``<name>/<version>`` below ``models``.

    A bundle keeps its own name and version unless others are given; anything else is called ``marco`` and gets the
    next free version. ``architecture`` gives the family member, whose number of classes and auxiliary head follow
    the source. Images are compared on rendered drops and on JPEGs below the folder ``images``. ``folding``
    says what classes other than the four count as; ``published`` has the facts for the record; ``taken`` are names and
    versions that stand for other bundles elsewhere, such as in the database. Raises ConfigError for what the caller
    must change, BundleError for what is wrong with the source.
    """
    _require_name(DEFAULT_NAME if name is None else name)
    photographs = [] if images is None else _photographs(images)
    with tempfile.TemporaryDirectory(prefix="marcod-import-") as scratch:
        found = sources.fetch(source, Path(scratch), limits, progress)
        if found.kind is ModelFormat.BUNDLE:
            if folding or licence is not None or threshold is not None or published is not None:
                raise ConfigError("a bundle has its own classes, licence and threshold; import it without the options")
            return _import_bundle(found, models, name, version, taken)
        target = _free_target(models, name or DEFAULT_NAME, version, taken)
        model = _read(found, architecture, preprocessing)
        record = _record(target, found, model, folding or {}, licence, threshold, published)
        return _compare_and_write(models, record, found, model, _rendered(progress) + photographs, progress)


def _require_name(name: str) -> None:
    """Before anything is fetched, and by the rule of the record itself."""
    try:
        TypeAdapter(BundleRecord.model_fields["name"].rebuild_annotation()).validate_python(name)
    except ValidationError as error:
        raise ConfigError(f"no model can have the name {name!r}: {error.errors()[0]['msg']}") from error


def _free_target(models: Path, name: str, version: int | None, taken: Collection[tuple[str, str]]) -> tuple[str, int]:
    """``version``, or the lowest number above all there are. Raises ConfigError when it stands for a bundle."""
    folders = [p.name for p in (models / name).glob("*") if p.name.isdecimal()]
    used = {int(text) for text in (*folders, *(v for n, v in taken if n == name)) if text.isdecimal()}
    if version in used:
        raise ConfigError(f"{name}:{version} exists; bundles never change, so choose another version")
    return name, version or max(used, default=0) + 1


def _read(source: ModelSource, template: Architecture, preprocessing: Preprocessing) -> _Model:
    if source.kind is ModelFormat.KERAS:
        found, weights = keras_file.read(source.path, (template, LITE0, MARCO_SMALL))
        if found.input_size != preprocessing.size:
            # The program trains its small networks so; the file itself does not say how images came to be.
            preprocessing = Preprocessing(found.input_size, "area")
        return _Model(found, preprocessing, weights)
    is_graph = source.kind is ModelFormat.SAVED_MODEL
    graph = saved_model.read(source.path) if is_graph else None
    checkpoint = Checkpoint(source.path / "variables" / "variables" if is_graph else source.path)
    architecture = checkpoint.architecture(template)
    weights = checkpoint.weights(architecture)
    classes = None if graph is None else graph.classes
    if classes is not None and len(classes) != architecture.classes:
        raise BundleError(f"the graph names {len(classes)} classes, but its weights tell {architecture.classes} apart")
    return _Model(architecture, preprocessing, weights, classes, graph, checkpoint.global_step())


def _folding(model: _Model, given: Mapping[str, DropClass]) -> dict[str, DropClass]:
    """Return the model's classes in the order of its logits, and which of the four each counts as."""
    known = {c.value: c for c in CLASSES}
    count = model.architecture.classes
    # A source that names no classes has those of the published graph, or the given ones in the order given.
    classes = model.classes or tuple(given) or tuple(known)
    if len(classes) != count:
        raise ConfigError(
            f"the model tells {count} classes apart and does not name them; give --class NAME=FOLDED {count} times, "
            "in the order of its outputs"
        )
    if strange := [c for c in given if c not in classes]:
        raise ConfigError(f"the model has no class {strange[0]}; its classes are {', '.join(classes)}")
    if missing := [c for c in classes if c not in given and c not in known]:
        raise ConfigError(
            f"say as which of {', '.join(known)} these classes count, with --class NAME=FOLDED each: "
            f"{', '.join(missing)}"
        )
    return {c: given[c] if c in given else known[c] for c in classes}


def _record(
    target: tuple[str, int],
    source: ModelSource,
    model: _Model,
    given: Mapping[str, DropClass],
    licence: str | None,
    threshold: float | None,
    published: Published | None,
) -> BundleRecord:
    folding = _folding(model, given)
    if published is not None and tuple(folding) != published.classes:
        raise BundleError(f"not imported: its classes are {', '.join(folding)}, not {', '.join(published.classes)}")
    try:
        return bundle.new_record(
            name=target[0],
            version=target[1],
            classes=list(folding),
            folding=folding,
            temperature=1.0,
            threshold=_threshold(threshold, len(folding)),
            training_data=_training_data(source, model, published),
            licence=licence or (published.licence if published else "Apache-2.0"),
            citation=published and published.citation,
            trained_on=(TrainedOn.PUBLISHED,),
            origin=published and published.origin,
            architecture=model.architecture.to_dict(),
            preprocessing=model.preprocessing.to_dict(),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"no bundle can be made with this {where}: {first['msg']}") from error


def _training_data(source: ModelSource, model: _Model, published: Published | None) -> str:
    step = "" if model.global_step is None else f", step {model.global_step}"
    if published is None:
        return f"imported from {source.kind} {source.name} (SHA-256 {source.sha256}){step}"
    return f"{published.training_data}{step}"


def _threshold(given: float | None, classes: int) -> Threshold:
    if given is not None:
        return Threshold(crystal=given, measured_on="not measured; chosen at import. Run `marcod model calibrate`")
    lowest = math.floor(1e4 / classes) / 1e4
    return Threshold(
        crystal=lowest,
        measured_on=f"not measured; with {classes} classes nothing that the network itself calls crystals lies "
        f"below {lowest:g}. Run `marcod model calibrate`",
    )


def _rendered(progress: Progress | None) -> list[_Image]:
    """Synthetic drops, always the same ones, in the sizes that imagers take and in others."""
    made = []
    for index in range(len(_SIZES)):
        made.append(_drop(index))
        if progress is not None:
            progress("rendering drops", index + 1, len(_SIZES))
    return made


@cache
def _drop(index: int) -> _Image:
    size, label = _SIZES[index], CLASSES[index % len(CLASSES)]
    pixels = synthetic.render(synthetic.random_scene(_FIRST_SEED + index, label), size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return _Image(f"synthetic-{label.value.lower()}-{size[0]}x{size[1]}.jpg", buffer.getvalue())


def _photographs(folder: Path) -> list[_Image]:
    """JPEGs in grey or colour below a folder, spread evenly over them all."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg") and p.is_file())
    if not found:
        raise ConfigError(f"there is no JPEG below {folder}")
    count = min(len(found), IMAGES_AT_MOST)
    chosen = [found[i * len(found) // count] for i in range(count)]
    photographs = [_Image(p.relative_to(folder).as_posix(), p.read_bytes()) for p in chosen]
    for image in photographs:
        try:
            header = images.inspect(image.data)
        except ImageError as error:
            raise ConfigError(f"{image.name} cannot be used for comparison: {error}") from error
        if header.format != "JPEG" or header.mode not in ("L", "RGB"):
            raise ConfigError(f"{image.name} cannot be used for comparison: it is no JPEG in grey or colour")
    return photographs


def _compare_and_write(
    models: Path,
    record: BundleRecord,
    source: ModelSource,
    model: _Model,
    images: Sequence[_Image],
    progress: Progress | None,
) -> ImportedModel:
    predictor = NetworkPredictor(record, model.weights, batch_size=_BATCH)
    prepared = [_prepare(predictor, image) for image in images]
    stage = _stage(progress, len(images))
    if model.graph is None:
        expected = _plain_scores(model, prepared, stage("scoring without folding"))
    else:
        data = [image.data for image in images]
        expected = saved_model.score(model.graph, model.weights, data, stage("scoring with the original graph"))
    scores = _batched(predictor.predict, prepared, stage("scoring with marcod"))
    compared = _compared(images, scores, expected)
    report = _report(source, model, compared)
    golden = [Golden(p.name, p.data, e.tolist()) for p, e in zip(images[:_GOLDEN], expected, strict=False)]
    path = _written(models, lambda: bundle.write(models, record, model.weights, report, golden))
    return ImportedModel(path, bundle.verify(path), report)


def _prepare(predictor: Predictor, image: _Image) -> NDArray[np.float32]:
    try:
        return predictor.prepare(image.data)
    except ImageError as error:
        raise ConfigError(f"{image.name} cannot be used for comparison: {error}") from error


Done = Callable[[int], None]


def _stage(progress: Progress | None, total: int) -> Callable[[str], Done]:
    def begin(name: str) -> Done:
        return lambda done: None if progress is None else progress(name, done, total)

    return begin


def _batched(
    score: Callable[[NDArray[np.float32]], NDArray[np.float32]], prepared: Sequence[NDArray[np.float32]], done: Done
) -> NDArray[np.float32]:
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(prepared), _BATCH):
        rows.extend(score(np.stack(prepared[start : start + _BATCH])))
        done(len(rows))
    return np.stack(rows)


def _plain_scores(model: _Model, prepared: Sequence[NDArray[np.float32]], done: Done) -> NDArray[np.float32]:
    """Probabilities of the network with its layers as they were trained, nothing folded or moved."""
    plain = network.build(model.architecture)
    network.set_variables(plain, model.weights)
    plain.compile(jit_compile=keras.backend.backend() != "tensorflow")
    return _batched(lambda batch: probabilities.softmax(plain.predict_on_batch(batch)), prepared, done)


def _compared(images: Sequence[_Image], scores: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """Return the comparison for metrics.json. Raises BundleError naming the image that differs most."""
    differences = np.abs(scores.astype(np.float64) - expected).max(axis=1)
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    if not differences[worst] <= TOLERANCE:
        raise BundleError(
            f"not imported: on {images[worst].name} a probability differs by {differences[worst]:.2g} from the "
            f"original's, and {TOLERANCE:g} is allowed; the source prepares images otherwise or is another network"
        )
    return {
        "images": len(images),
        "largest_difference": float(differences[worst]),
        "tolerance": TOLERANCE,
        "differences": {p.name: float(d) for p, d in zip(images, differences, strict=True)},
    }


def _report(source: ModelSource, model: _Model, compared: dict[str, Any]) -> dict[str, Any]:
    origin = {
        "kind": str(source.kind),
        "name": source.name,
        "sha256": source.sha256,
        "files": dict(source.files),
        "global_step": model.global_step,
    }
    backend = {"tensorflow": tf.__version__, "keras_backend": keras.backend.backend()}
    if model.graph is not None:
        return {"source": origin, "parity": compared | backend}
    reason = f"a {source.kind} brings no graph of its own to compare with"
    return {"source": origin, "parity": None, "parity_missing": reason, "folded_against_plain": compared | backend}


def _import_bundle(
    source: ModelSource, models: Path, name: str | None, version: int | None, taken: Collection[tuple[str, str]]
) -> ImportedModel:
    """Verify a bundle, and copy it as it is or write it again under another name."""
    record = bundle.verify(source.path)
    # Under its own name it may be in the database: this is how a lost folder is restored.
    own = name in (None, record.name) and version in (None, record.version)
    target = _free_target(models, name or record.name, record.version if own else version, () if own else taken)
    expected, metrics = (_json_of(source.path, file) for file in (bundle.EXPECTED_FILE, bundle.METRICS_FILE))
    if outside := [key for key in expected if f"golden/{key}" not in record.files]:
        raise BundleError(f"{source.name} is damaged: its golden image {outside[0]!a} is not one of its files")
    places = [source.path.parent.parent, models, files.shipped("models")]
    bundle.load(source.path, _BATCH, bundle.members_in(places, _BATCH))
    if own:
        path = _written(models, lambda: bundle.copy(source.path, models / target[0] / str(target[1])))
        return ImportedModel(path, bundle.verify(path), metrics)
    values = record.model_dump() | {
        "name": target[0], "version": target[1], "parent": f"{record.name}:{record.version}", "files": {},
    }  # fmt: skip
    renamed = BundleRecord(**values)
    golden = [Golden(key, (source.path / "golden" / key).read_bytes(), scores) for key, scores in expected.items()]
    path = _written(models, lambda: bundle.write_derived(models, renamed, source.path, metrics, golden))
    return ImportedModel(path, bundle.verify(path), metrics)


def _json_of(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder.name} is damaged: {name} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise BundleError(f"{folder.name} is damaged: {name} is not a table")
    return found


def _written(models: Path, write: Callable[[], Path]) -> Path:
    """Call ``write``; remove the empty folders that it made when it fails."""
    before = set(models.glob("*"))
    try:
        return write()
    except OSError as error:
        kind = BundleError if is_full(error) else ConfigError
        raise kind(f"cannot write below {models}: {os_reason(error)}") from error
    finally:
        for folder in set(models.glob("*")) - before:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
