"""Conversion of a model version to a lower precision or to whole images, and its comparison with the parent.

Guarantees:

* The parent's weights stay as they are; a version of another precision or coverage is a version of its own.
* Its threshold calls as many of the lab's images hits as the parent's does, and finds as many labelled crystals.
* One that loses crystals beyond ``train.recall_margin`` says so in its record, and cannot become champion.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, zip_longest
from math import floor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from marcod import synthetic
from marcod.database.engine import Database
from marcod.domain import CLASSES, CRYSTALS, DropClass, Modality, Precision, Split
from marcod.errors import ConfigError, NotFoundError
from marcod.evaluate import calibration, gate, labelled, metrics, paired, predictions
from marcod.evaluate.labelled import Labelled
from marcod.evaluate.predictions import Outcome, Predictions
from marcod.images import read
from marcod.model import bundle, families, preprocess, quantization
from marcod.model.bundle import BundleRecord, Conversion, Threshold
from marcod.model.engines import QuantizedNetwork
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.model.preprocess import Preprocessing
from marcod.model.squares import Coverage
from marcod.settings import TrainSettings
from marcod.store.versions import Version
from marcod.text import count
from marcod.training import assess, snapshot_rows
from marcod.training.snapshot_rows import StoredImage

SAMPLE: Final = 1000
"""Images of the lab, besides the labelled ones, that both versions score."""

_WIDE: Final = 256
"""Height in pixels of the golden image of whole images; it is twice as wide."""

_DECIMALS: Final = calibration.DECIMALS

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class LabImages:
    """Images of the lab that both versions score: files of labelled ones first, then of those without a label.

    ``fitting`` tells which labelled ones may choose the threshold: those of plates that are not test plates.
    ``calibrating`` are files that a quantized network takes its number ranges from, and that compare nothing; each has
    its class, as an index of the parent's outputs.
    """

    labelled: tuple[Labelled, ...]
    fitting: tuple[bool, ...]
    others: tuple[Path, ...]
    calibrating: Mapping[Path, int] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All files, labelled ones first."""
        return [*(image.file for image in self.labelled), *self.others]


@dataclass(frozen=True, slots=True)
class FlippedDrop:
    """Image on which a hit of one version is none of the other, each at its own threshold."""

    file: str
    label: DropClass | None
    parent: float
    converted: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison: what goes into the record, the sentences, and every image whose hit changed."""

    threshold: Threshold
    conversion: Conversion
    sentence: str
    flips: tuple[FlippedDrop, ...]


def lab_images(
    db: Database, record: BundleRecord, version: Version, roots: Mapping[str, Path], most: int, seed: int
) -> LabImages:
    """Read which images of the lab are labelled, and draw so many others, the same ones for the same seed."""
    own = _labelled(db, record, version, roots, None)
    test = {image.file for image in _labelled(db, record, version, roots, Split.TEST)}
    known = {image.file for image in own}
    drawn = db.read(snapshot_rows.sample, Modality(record.modality), most, seed)
    others = (_file(image, roots) for image in drawn)
    # Both score them again, on the same pixels, whatever is stored.
    return LabImages(
        tuple(replace(image, stored=None) for image in own),
        tuple(image.file not in test for image in own),
        tuple(file for file in others if file not in known),
    )


def with_calibration(
    images: LabImages,
    parent: Predictor,
    drawn: Sequence[StoredImage],
    roots: Mapping[str, Path],
    most: int,
    *,
    threads: int,
    progress: Progress = lambda done, total: None,
) -> LabImages:
    """Take so many images for calibration, evenly from the sources and from the classes that the parent gives there.

    ``drawn`` are images of the lab in the order of a draw. They compare nothing any more.
    """
    labelled = {image.file for image in images.labelled}
    sources = {_file(image, roots): image.source for image in drawn}
    files = [file for file in sources if file not in labelled]
    classes = {files[i]: int(np.argmax(row)) for i, row in _logits(parent, files, threads, progress).items()}
    groups: dict[tuple[str, int], list[Path]] = {}
    for file, found in classes.items():
        groups.setdefault((sources[file], found), []).append(file)
    turns = zip_longest(*groups.values())
    chosen = list(islice((file for turn in turns for file in turn if file is not None), most))
    calibrating = {file: classes[file] for file in chosen}
    return replace(images, others=tuple(f for f in images.others if f not in calibrating), calibrating=calibrating)


def _logits(
    parent: Predictor, files: Sequence[Path], threads: int, progress: Progress
) -> dict[int, NDArray[np.float32]]:
    found: dict[int, NDArray[np.float32]] = {}
    done = 0
    for batch in predictions.prepared(files, range(len(files)), parent, threads):
        pixels = {i: outcome for i, outcome in batch.items() if not isinstance(outcome, str)}
        if pixels:
            found.update(zip(pixels, parent.logits(list(pixels.values())), strict=True))
        done += len(batch)
        progress(done, len(files))
    return found


def _file(image: StoredImage, roots: Mapping[str, Path]) -> Path:
    return roots.get(image.source, Path(image.root)) / image.path


def network(
    folder: Path, record: BundleRecord, parent: Predictor, images: LabImages
) -> tuple[NetworkPredictor, QuantizedNetwork | None]:
    """Make the network of a converted record, whose parent lies in ``folder``, and what is to be written of it.

    Raises HostLacksError for a precision that this host lacks, ConfigError as :func:`quantization.quantize`.
    """
    _, weights = bundle.load_weights(folder)
    if record.precision is not Precision.INT8:
        return NetworkPredictor(record, weights, parent.batch_size), None
    made = quantization.quantize(
        families.architecture(record.architecture),
        weights,
        images.calibrating,
        lambda file: parent.prepare(read(file)),
    )
    return NetworkPredictor(record, weights, parent.batch_size, quantized=made), made


def _labelled(
    db: Database, record: BundleRecord, version: Version, roots: Mapping[str, Path], split: Split | None
) -> tuple[Labelled, ...]:
    try:
        return labelled.from_database(db, record, version.id, split=split, source=None, roots=roots).images
    except NotFoundError:
        return ()


def require_convertible(record: BundleRecord, precision: Precision | None, coverage: Coverage | None = None) -> None:
    """Check that a version can be converted to another precision, another coverage, or both. Raises ConfigError."""
    name = f"{record.name}:{record.version}"
    if record.committee is not None:
        members = ", ".join(map(str, record.committee.members))
        raise ConfigError(f"{name} is a committee; convert its members ({members}) and combine those")
    if precision is None and coverage is None:
        raise ConfigError("nothing to convert; give --precision, --coverage or both")
    if coverage is not None and coverage == Preprocessing.from_dict(record.preprocessing).coverage:
        raise ConfigError(f"{name} looks at {_LOOKS_AT[coverage]} already")
    if precision is None:
        if record.precision is Precision.INT8:
            raise ConfigError(
                f"{name} calculates in int8; convert its parent, {record.parent}, with both --precision and --coverage"
            )
        return
    if record.precision is not Precision.FLOAT32:
        raise ConfigError(f"{name} calculates in {record.precision} already; convert its parent, {record.parent}")
    if precision is Precision.FLOAT32:
        raise ConfigError(f"{name} calculates in float32 already; give --precision bfloat16, float16 or int8")
    if precision is Precision.INT8 and Preprocessing.from_dict(record.preprocessing).coverage == "whole":
        raise ConfigError(
            f"{name} looks at whole images, and int8 is calibrated on central squares; convert its parent, "
            f"{record.parent}, with both --precision and --coverage"
        )


_LOOKS_AT: Final[Mapping[Coverage, str]] = {"centre": "the central square", "whole": "whole images"}


def converted(
    parent: BundleRecord, number: int, precision: Precision | None, coverage: Coverage | None = None
) -> BundleRecord:
    """Make the record of a version of another precision or coverage; its threshold is still the parent's."""
    changed = {"version", "parent", "precision", "preprocessing", "conversion"}
    kept = parent.model_dump(exclude={"files", "libraries", "created_at", *changed})
    seen = Preprocessing.from_dict(parent.preprocessing)
    return bundle.new_record(
        **kept,
        version=number,
        parent=f"{parent.name}:{parent.version}",
        precision=precision or parent.precision,
        preprocessing=replace(seen, coverage=coverage or seen.coverage).to_dict(),
    )


def compare(
    parent: Predictor,
    made: Predictor,
    images: LabImages,
    settings: TrainSettings,
    *,
    threads: int,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Let both versions score the images, choose the threshold, and judge. Raises ConfigError as the readers do."""
    found = _scored(parent, made, images.files, threads, progress)
    read = sorted(found)
    # Those with a label come first.
    own = [images.labelled[place] for place in read if place < len(images.labelled)]
    logits = [np.array([found[place][side] for place in read], np.float64) for side in (0, 1)]
    known = [Predictions(tuple(own), side[: len(own)], ()) for side in logits]
    scores = [_folded(predictor, side) for predictor, side in zip((parent, made), logits, strict=True)]
    fitting = [i for i, one in enumerate(own) if one.label is DropClass.CRYSTALS and images.fitting[read[i]]]
    before, after = (side[:, CRYSTALS] for side in scores)
    threshold = choose_threshold(parent.record.threshold, before, after, fitting)
    record = made.record.model_copy(update={"threshold": threshold})
    hits = [before >= parent.threshold, after >= threshold.crystal]
    return _comparison(images, read, scores, hits, threshold, _judged(parent.record, record, known, settings))


def _scored(
    parent: Predictor, made: Predictor, files: Sequence[Path], threads: int, progress: Progress
) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return both versions' logits by index; images that cannot be read are left out."""
    found: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    done = 0
    for batch, seen in _prepared(parent, made, files, threads):
        read = [i for i in batch if not isinstance(batch[i], str) and not isinstance(seen[i], str)]
        if read:
            logits = [
                predictor.logits([own for i in read if not isinstance(own := part[i], str)])
                for predictor, part in ((parent, batch), (made, seen))
            ]
            found.update(zip(read, zip(*logits, strict=True), strict=True))
        done += len(batch)
        progress(done, len(files))
    return found


def _prepared(
    parent: Predictor, made: Predictor, files: Sequence[Path], threads: int
) -> Iterator[tuple[dict[int, Outcome], dict[int, Outcome]]]:
    """Yield batches as each of both versions sees them; what both see alike is decoded once."""
    of_parent = predictions.prepared(files, range(len(files)), parent, threads)
    if parent.record.preprocessing == made.record.preprocessing:
        return ((batch, batch) for batch in of_parent)
    return zip(of_parent, predictions.prepared(files, range(len(files)), made, threads), strict=True)


def _folded(predictor: Predictor, logits: NDArray[np.float64]) -> NDArray[np.float32]:
    if not len(logits):
        return np.zeros((0, len(CLASSES)), np.float32)
    return Predictions((), logits, ()).folded(predictor.record)


def choose_threshold(
    former: Threshold, before: NDArray[np.float32], after: NDArray[np.float32], crystals: Sequence[int]
) -> Threshold:
    """Choose the threshold next to the former with as many hits as before, and as many of the ``crystals`` found.

    Many have as many hits where few images are near; the highest of them would lose hits among other images.

    ``before`` and ``after`` are crystal probabilities float32 [n] of the same images, ``crystals`` indices. Without
    hits, or where all are hits, the former threshold stays.
    """
    hits = int((before >= former.crystal).sum())
    if not 0 < hits < len(before):
        return Threshold(
            crystal=former.crystal, measured_on=f"the parent's; it calls {hits} of {len(before)} images hits"
        )
    scale = 10.0**_DECIMALS
    ordered = np.sort(after).astype(np.float64)
    least, most = (floor(ordered[-hits - 1] * scale) + 1) / scale, floor(ordered[-hits] * scale) / scale
    crystal = min(max(former.crystal, least), most)
    if len(crystals):
        missed = int((before[list(crystals)] < former.crystal).sum())
        if missed < len(crystals):
            crystal = min(crystal, metrics.threshold_missing(after[list(crystals)], missed, _DECIMALS))
    text = (
        f"{count(len(before), 'image')} of the lab: next to the parent's {former.crystal:g} with as many hits, {hits}"
    )
    text += f", and as many of {len(crystals)} images with crystals" if len(crystals) else ""
    return Threshold(crystal=crystal, measured_on=text)


def _judged(
    parent: BundleRecord, record: BundleRecord, known: Sequence[Predictions], settings: TrainSettings
) -> tuple[str, str | None, int, int]:
    """Return the gate's sentence, its refusal or None, drops with crystals, and how many the parent alone finds."""
    if not any(image.label is DropClass.CRYSTALS for image in known[0].images):
        return "no drop with crystals is labelled, so it is unknown if any is lost", None, 0, 0
    pair = paired.pair((parent, known[0]), (record, known[1]))
    check = gate.keeps_crystals(pair, assess.rules_of(settings, "recalibrate"))
    lost, _ = paired.lost_and_gained(pair, pair.champion.flagged, pair.candidate.flagged, pair.is_crystal)
    crystals = len({drop for drop, is_crystal in zip(pair.drops, pair.is_crystal, strict=True) if is_crystal})
    return check.sentence, None if check.passed else check.sentence, crystals, lost


def _comparison(
    images: LabImages,
    read: Sequence[int],
    scores: Sequence[NDArray[np.float32]],
    hits: Sequence[NDArray[np.bool_]],
    threshold: Threshold,
    judged: tuple[str, str | None, int, int],
) -> Comparison:
    sentence, refusal, crystals, lost = judged
    changed = np.flatnonzero(hits[0] != hits[1])
    change = np.abs(scores[0] - scores[1])
    files, labels = images.files, [image.label for image in images.labelled]
    flips = tuple(
        FlippedDrop(
            str(files[read[i]]),
            labels[read[i]] if read[i] < len(labels) else None,
            round(float(scores[0][i, CRYSTALS]), 6),
            round(float(scores[1][i, CRYSTALS]), 6),
        )
        for i in changed.tolist()
    )
    conversion = Conversion(
        images=len(read),
        agreement=float((scores[0].argmax(1) == scores[1].argmax(1)).mean()) if len(read) else None,
        largest=float(change.max()) if len(read) else None,
        mean=float(change.mean()) if len(read) else None,
        hits=int(hits[0].sum()),
        hits_changed=len(changed),
        crystals=crystals,
        crystals_lost=lost,
        refusal=refusal,
    )
    return Comparison(threshold, conversion, sentence, flips)


def write(
    models: Path, folder: Path, made: NetworkPredictor, compared: Comparison, quantized: QuantizedNetwork | None = None
) -> Path:
    """Write the bundle of a converted network, whose parent lies in ``folder``. Raises BundleError."""
    measured, golden = calibration.measured_and_golden(folder)
    if made.looks_at_whole_images:
        golden |= {"wide.jpg": _wide()}
    record = made.record.model_copy(update={"threshold": compared.threshold, "conversion": compared.conversion})
    flips: list[dict[str, Any]] = [asdict(flip) for flip in compared.flips]
    told = {**measured, "conversion": {"sentence": compared.sentence, "flips": flips}}
    expected = calibration.expectations(made, golden, record.temperature)
    return bundle.write_derived(models, record, folder, told, expected, quantized)


def _wide() -> bytes:
    """Make a golden image that no single square shows whole: rendered drops, one with crystals and a clear one."""
    wide = Image.new("RGB", (2 * _WIDE, _WIDE))
    for number, kind in enumerate((DropClass.CRYSTALS, DropClass.CLEAR)):
        data, _ = synthetic.drop_jpeg(number, kind)
        part = Image.fromarray(preprocess.centre_square(preprocess.decode(data)))
        wide.paste(part.resize((_WIDE, _WIDE), Image.Resampling.BOX), (number * _WIDE, 0))
    out = io.BytesIO()
    wide.save(out, "JPEG", quality=90)
    return out.getvalue()
