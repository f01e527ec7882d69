"""Model bundle: an immutable folder ``<name>/<version>/`` that is verified before it may serve.

The folder holds ``bundle.toml`` (everything that is not a weight, and the SHA-256 of every other file),
``weights.npz`` (float32 or float16, keyed by the names of the published checkpoint), ``metrics.json``, and ``golden/``:
small images with the probabilities they must get. The SHA-256 of ``bundle.toml`` names the model exactly.

Guarantees:

* A bundle is either whole or refused with one sentence.
* Nothing in it is code.
* :func:`read` and :func:`verify` do not import TensorFlow.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, Field, ValidationError, model_validator

from marcod import files
from marcod.domain import CLASSES, DropClass, Modality, Precision, TrainedOn
from marcod.errors import BundleError, ImageError, os_reason
from marcod.model import engines, memory
from marcod.model.committee import STRICT, Committee, Member
from marcod.model.engines import QuantizedNetwork
from marcod.model.predictor import CommitteePredictor, NetworkPredictor, Predictor

FORMAT: Final = 1
RECORD_FILE: Final = "bundle.toml"
WEIGHTS_FILE: Final = "weights.npz"
METRICS_FILE: Final = "metrics.json"
EXPECTED_FILE: Final = "golden/expected.json"
QUANTIZED_FILES: Final = ("int8.xml", "int8.bin")
"""Graph and numbers of a network of precision int8, in OpenVINO's format; its float32 weights lie beside them."""

FIRST_FAMILY: Final = "inception"
"""Family of a record that names none: it is from before there were others."""

RECORD_BYTES: Final = 1 << 20
_STORED: Final = (np.dtype(np.float32), np.dtype(np.float16))
WEIGHTS_BYTES: Final = 1 << 30
"""Larger ones are not read. The published network has 46 MB of weights."""

GOLDEN_TOLERANCES: Final = {
    Precision.FLOAT32: 5e-3,
    Precision.FLOAT16: 1e-2,
    Precision.BFLOAT16: 3e-2,
    Precision.INT8: 3e-2,
}
"""Largest difference allowed between a golden probability and its expectation, which is of the same precision.

Float32 on another CPU differs by less than 1e-5. Rounding images and weights to the 10 bits of a GPU's TF32
moves the shipped bundle's golden scores by 0.001; a wrong resize, channel order or scale moves one by 0.04 or more.
The lower precisions round every layer's result, and another order of sums may round it the other way.
"""


# What NumPy and the zip reader are known to raise on damaged bytes; NumPy parses a header as Python's literals.
_DAMAGE: Final = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, SyntaxError, tokenize.TokenError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class _Table(BaseModel):
    model_config = STRICT


class Threshold(_Table):
    """Crystal threshold: at or above ``crystal``, a folded crystal probability is a hit.

    ``recall`` is the share of crystals found on the data named by ``measured_on``; None while it is not measured.
    """

    crystal: float = Field(ge=0, le=1)
    recall: float | None = Field(default=None, ge=0, le=1)
    measured_on: str


class Origin(_Table):
    """Published file that the weights were taken from: distribution, version, file name and SHA-256."""

    distribution: str
    version: str
    file: str
    sha256: str


class Conversion(_Table):
    """Comparison of a version of another precision or coverage with its parent on the lab's own images.

    ``agreement`` is the share of ``images`` with the same class; ``largest`` and ``mean`` are changes of a probability;
    ``hits_changed`` counts images that are a hit of one and not of the other, each at its own threshold. ``refusal``
    says why it may not become champion; None if it may.
    """

    images: int = Field(ge=0)
    agreement: float | None = Field(default=None, ge=0, le=1)
    largest: float | None = Field(default=None, ge=0, le=1)
    mean: float | None = Field(default=None, ge=0, le=1)
    hits: int = Field(ge=0)
    hits_changed: int = Field(ge=0)
    crystals: int = Field(ge=0)
    crystals_lost: int = Field(ge=0)
    refusal: str | None = None


class BundleRecord(_Table):
    """Contents of ``bundle.toml``. ``files`` and ``digest`` are filled by :func:`write` and :func:`read`.

    ``classes`` are the model's own, in output order; ``folding`` maps each to one of the four.
    ``modality`` is the one it was trained for; images of another are not scored with it.
    A committee has ``committee`` in the place of ``architecture`` and ``preprocessing``.
    ``licence_text`` goes with the weights wherever their licence asks for it. ``trained_on`` lists what the weights
    learned from, their parents' share included. ``synthetic`` follows from it: rendered drops alone. ``notice`` is
    shown wherever the model is: what a person must know before trusting a score. ``precision`` is the network's, and
    ``conversion`` compares a version of another precision or coverage with its parent. A committee's members have
    precisions of their own.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(ge=1)
    modality: Modality = Modality.VISIBLE
    classes: tuple[str, ...] = Field(min_length=2)
    temperature: float = Field(gt=0)
    training_data: str
    licence: str
    licence_text: str | None = None
    citation: str | None = None
    synthetic: bool
    trained_on: tuple[TrainedOn, ...] = Field(min_length=1)
    notice: str = ""
    parent: str | None = None
    precision: Precision = Precision.FLOAT32
    conversion: Conversion | None = None
    created_at: AwareDatetime
    architecture: dict[str, Any] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    committee: Committee | None = None
    folding: dict[str, DropClass]
    threshold: Threshold
    origin: Origin | None = None
    libraries: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    digest: str = Field(default="", exclude=True)

    @property
    def family(self) -> str | None:
        """The family of the network, as ``families.FAMILIES`` names it; None of a committee."""
        return str(self.architecture.get("family", FIRST_FAMILY)) if self.committee is None else None

    @model_validator(mode="before")
    @classmethod
    def _state_what_it_learned_from(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put ``trained_on`` in order, and derive from it whether the model is synthetic."""
        given = values["trained_on"] if "trained_on" in values else _trained_on_of_old(values)
        if not isinstance(given, (list, tuple)):
            return values
        ordered = tuple(kind for kind in TrainedOn if kind in given)
        strange = [kind for kind in given if kind not in ordered]
        return {**values, "trained_on": (*ordered, *strange), "synthetic": ordered == (TrainedOn.RENDERED,)}

    @model_validator(mode="after")
    def _classes_fold(self) -> "BundleRecord":
        if set(self.folding) != set(self.classes) or len(set(self.classes)) != len(self.classes):
            raise ValueError("folding must name each of the classes exactly once")
        return self

    @model_validator(mode="after")
    def _is_a_network_or_a_committee(self) -> "BundleRecord":
        own = (bool(self.architecture), bool(self.preprocessing), self.committee is None)
        if own not in ((True, True, True), (False, False, False)):
            raise ValueError("it needs [architecture] and [preprocessing], or in their place [committee]")
        four = tuple(str(c) for c in CLASSES)
        if self.committee is not None and (self.classes != four or any(c != f for c, f in self.folding.items())):
            raise ValueError(f"the classes of a committee are {', '.join(four)}")
        return self


def _trained_on_of_old(values: Mapping[str, Any]) -> list[TrainedOn]:
    """Derive ``trained_on`` for a record that was written before that field.

    Such a record is synthetic if rendered drops took part. A training run of a lab wrote "data set ...; TIER" as the
    training data: tier `recalibrate` left the weights as they were, and `scratch` did not start with the parent's.
    """
    rendered, source = bool(values.get("synthetic")), str(values.get("training_data"))
    own_run = source.startswith("data set ") and not source.endswith("; recalibrate")
    weights = [TrainedOn.RENDERED] if rendered else [TrainedOn.PUBLISHED]
    if own_run and source.endswith("; scratch") and not rendered:
        weights = []
    return [*weights, *([TrainedOn.LAB] if own_run else [])]


@dataclass(frozen=True, slots=True)
class Golden:
    """Small image and the probabilities, in the order of the record's classes, that it must get."""

    name: str
    data: bytes
    probabilities: Sequence[float]


def read(path: Path) -> BundleRecord:
    """Read the record of the bundle in folder ``path``; fast, without looking at the other files.

    Raises BundleError when it is missing, not TOML, of another format, or incomplete.
    """
    file = path / RECORD_FILE
    try:
        with file.open("rb") as stream:
            raw = stream.read(RECORD_BYTES + 1)
        table = tomllib.loads(raw.decode()) if len(raw) <= RECORD_BYTES else {}
    except OSError as error:
        raise BundleError(f"{path} is not a model bundle: cannot read {RECORD_FILE} ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BundleError(f"{file} is damaged: {error}") from error
    if len(raw) > RECORD_BYTES:
        raise BundleError(f"{file} is larger than {RECORD_BYTES:,} bytes; that is no record of a model")
    found = table.pop("format", None)
    if found != FORMAT:
        raise BundleError(f"{file} has bundle format {found!r}; this version of marcod reads format {FORMAT}")
    try:
        return BundleRecord(**table, digest=hashlib.sha256(raw).hexdigest())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise BundleError(f"{file}: {where}: {first['msg']}") from error
    except TypeError as error:
        raise BundleError(f"{file}: {error}") from error


def verify(path: Path) -> BundleRecord:
    """Read a bundle and compare every file with its checksum. Raises BundleError naming the first that differs."""
    record = read(path)
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {RECORD_FILE}
    if missing := sorted(record.files.keys() - present):
        raise BundleError(f"{path} is damaged: {missing[0]} is missing")
    if extra := sorted(present - record.files.keys()):
        raise BundleError(f"{path} is damaged: {extra[0]} does not belong to the bundle")
    if odd := next((p for p in path.rglob("*") if p.is_symlink() or not (p.is_dir() or p.is_file())), None):
        raise BundleError(f"{path} is no bundle: {odd.name} is a link or a special file")
    for name, expected in record.files.items():
        if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected:
            raise BundleError(f"{path} is damaged: {name} has changed since it was written (SHA-256 differs)")
    return record


def write(
    models: Path,
    record: BundleRecord,
    weights: Mapping[str, NDArray[np.float32]],
    metrics: Mapping[str, Any],
    golden: Sequence[Golden],
) -> Path:
    """Write a new bundle below ``models`` and return its folder ``<name>/<version>``; a committee has no weights.

    It appears whole or not at all. Raises BundleError when the version exists already, as bundles never change.
    """
    arrays = {} if record.committee is not None and not weights else {WEIGHTS_FILE: _archive(weights)}
    return _put(models, record, {**arrays, **_contents(metrics, golden)})


def write_derived(
    models: Path,
    record: BundleRecord,
    parent: Path,
    metrics: Mapping[str, Any],
    golden: Sequence[Golden],
    quantized: QuantizedNetwork | None = None,
) -> Path:
    """Write a bundle with the very weights of ``parent``, which has been verified, as :func:`write` does.

    Its quantized network is the given one, else the parent's where that has one.
    """
    names = [name for name in (WEIGHTS_FILE, *QUANTIZED_FILES) if (parent / name).exists()]
    kept = {name: (parent / name).read_bytes() for name in names}
    if quantized is not None:
        kept |= zip(QUANTIZED_FILES, (quantized.graph, quantized.numbers), strict=True)
    return _put(models, record, {**kept, **_contents(metrics, golden)})


def _put(models: Path, record: BundleRecord, contents: Mapping[str, bytes]) -> Path:
    final = models / record.name / str(record.version)
    if final.exists():
        raise BundleError(f"{final} exists; bundles never change, so write another version")
    final.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(final) as scratch:
        unfinished = scratch / "bundle"
        _write_files(unfinished, record, contents)
        try:
            files.put_folder_in_place(unfinished, final)
        except OSError as error:
            raise BundleError(f"cannot put the bundle at {final}: {os_reason(error)}") from error
    return final


def install(path: Path, models: Path) -> Path:
    """Copy a bundle from elsewhere below ``models``, whole or not at all, and return its folder there.

    One that is there already stays. Raises BundleError when it is another one, or when it cannot be written.
    """
    record = verify(path)
    final = models / record.name / str(record.version)
    if final.exists():
        if read(final).digest != record.digest:
            raise BundleError(f"{final} holds another bundle; bundles never change, so remove one of them")
        return final
    try:
        return copy(path, final)
    except OSError as error:
        raise BundleError(f"cannot put the bundle at {final}: {os_reason(error)}") from error


def copy(path: Path, final: Path) -> Path:
    """Copy a bundle to a folder that is not there yet, whole or not at all. Raises BundleError and OSError."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(final) as scratch:
        whole = scratch / "bundle"
        shutil.copytree(path, whole)
        verify(whole)
        files.put_folder_in_place(whole, final)
    return final


@contextmanager
def scratch_beside(final: Path) -> Iterator[Path]:
    """Yield a folder next to a bundle's, where bundles are not looked for; it is removed at the end.

    Those that killed processes left there are removed too. Raises OSError.
    """
    with ExitStack() as stack:
        # Making a folder and removing old ones both hold the parent, so that a new one is locked before it is judged.
        with _locked(final.parent, wait=True):
            for left in final.parent.glob(".*-*"):
                with suppress(OSError), _locked(left, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent)))
            with suppress(OSError):
                stack.enter_context(_locked(scratch, wait=False))
        yield scratch


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder until the end, or until this process ends. Raises OSError when another one holds it.

    Where the file system has no such locks, waiting for one does nothing, and not to wait fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)


LoadMember = Callable[[BundleRecord, Member], Predictor]
"""Load a member of a committee by the committee's record. Raises BundleError."""


def load(
    path: Path,
    batch_size: int = 8,
    load_member: LoadMember | None = None,
    engine: engines.Setting = "auto",
) -> Predictor:
    """Load a predictor that has passed the bundle's checksums and golden images.

    A committee's members come from ``load_member``, by default from the folders next to its own. Raises BundleError
    naming the cause when anything is damaged, missing, or scores differently here, ConfigError for an engine that is
    not installed.
    """
    record = verify(path)
    expected = read_golden(path)
    predictor = _predictor(path, record, batch_size, load_member, engine)
    memory.give_back()
    self_test(predictor, expected)
    memory.give_back()
    return predictor


def _predictor(
    path: Path, record: BundleRecord, batch_size: int, load_member: LoadMember | None, engine: engines.Setting
) -> Predictor:
    if record.committee is None:
        return NetworkPredictor(record, _weights(path), batch_size, engine, quantized(path, record))
    load_member = load_member or members_in([path.parent.parent], batch_size, engine)
    members = [load_member(record, member) for member in record.committee.members]
    networks = [member for member in members if isinstance(member, NetworkPredictor)]
    if len(networks) < len(members) or WEIGHTS_FILE in record.files:
        raise BundleError(f"{path} cannot be loaded: a committee has networks as members, and no weights of its own")
    return CommitteePredictor(record, networks, batch_size)


def quantized(path: Path, record: BundleRecord) -> QuantizedNetwork | None:
    """Read the quantized network of a verified bundle; None of one that has none. Raises BundleError."""
    if record.precision is not Precision.INT8:
        return None
    if missing := next((name for name in QUANTIZED_FILES if name not in record.files), None):
        raise BundleError(f"{path} cannot be loaded: it is of precision int8 and has no {missing}")
    graph, numbers = ((path / name).read_bytes() for name in QUANTIZED_FILES)
    return QuantizedNetwork(graph, numbers)


def members_in(folders: Sequence[Path], batch_size: int, engine: engines.Setting = "auto") -> LoadMember:
    """Return a function that loads a member from the first of these folders of bundles that has the very bundle."""

    def load_member(committee: BundleRecord, member: Member) -> Predictor:
        places = [folder / member.name / str(member.version) for folder in folders]
        there = [place for place in places if (place / RECORD_FILE).is_file()]
        right = [place for place in there if member_problem(member, place) is None]
        folder = member_folder(committee, member, next(iter([*right, *there]), None))
        return load(folder, batch_size, engine=engine)

    return load_member


def member_problem(member: Member, folder: Path | None) -> str | None:
    """Return why a committee cannot serve with the bundle in ``folder`` as this member; None if it can."""
    if folder is None or not (folder / RECORD_FILE).is_file():
        return f"its member {member} is not on this host; `marcod model import` brings it"
    if read(folder).digest != member.digest:
        return f"the bundle in {folder} is not the {member} that it was made with"
    return None


def member_folder(committee: BundleRecord, member: Member, folder: Path | None) -> Path:
    """Return the folder of a member. Raises BundleError where :func:`member_problem` has one."""
    problem = member_problem(member, folder)
    if problem is not None or folder is None:
        raise BundleError(f"{committee.name}:{committee.version} cannot serve here: {problem}")
    return folder


def load_weights(path: Path) -> tuple[BundleRecord, dict[str, NDArray[np.float32]]]:
    """Load record and weights of a network whose checksums are right. Raises BundleError as :func:`load` does."""
    record = verify(path)
    if record.committee is not None:
        members = " and ".join(map(str, record.committee.members))
        raise BundleError(f"{record.name}:{record.version} is a committee; the weights are those of {members}")
    return record, _weights(path)


def _weights(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        _refuse_large(path / WEIGHTS_FILE)
        with np.load(path / WEIGHTS_FILE, allow_pickle=False) as archive:
            return {name: archive[name].astype(np.float32, copy=False) for name in archive.files}
    except _DAMAGE as error:
        raise BundleError(f"{path} cannot be loaded: {error}") from error


def _refuse_large(file: Path) -> None:
    """Refuse weights that claim more than they hold, or more than any network here has. Raises ValueError."""
    with zipfile.ZipFile(file) as archive:
        left = WEIGHTS_BYTES
        for member in archive.infolist():
            with archive.open(member) as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype not in _STORED or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} is not as many floating-point numbers as it says")
            left -= member.file_size
            if left < 0:
                raise ValueError(f"the weights are larger than {WEIGHTS_BYTES:,} bytes")


def folding(record: BundleRecord) -> NDArray[np.float32]:
    """Return the folding matrix float32 [own classes, 4], the columns as domain.CLASSES."""
    return np.array([[record.folding[c] == f for f in CLASSES] for c in record.classes], np.float32)


def self_test(predictor: Predictor, golden: Sequence[Golden]) -> None:
    """Score the golden images from their bytes. Raises BundleError when one differs by more than the tolerance."""
    allowed = GOLDEN_TOLERANCES[predictor.record.precision]
    name = f"{predictor.record.name} version {predictor.record.version}"
    for image, scores in zip(golden, _scores(predictor, golden, name), strict=True):
        expected = np.asarray(image.probabilities, np.float32)
        if expected.shape != scores.shape:
            raise BundleError(f"{name}: golden image {image.name} expects {expected.size} probabilities")
        difference = float(np.abs(scores - expected).max())
        if not difference <= allowed:
            raise BundleError(
                f"{name} does not score its golden image {image.name} as it must: a probability "
                f"differs by {difference:.4f}, allowed are {allowed}"
            )


def _scores(predictor: Predictor, golden: Sequence[Golden], name: str) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(golden), predictor.batch_size):
        prepared = []
        for image in golden[start : start + predictor.batch_size]:
            try:
                prepared.append(predictor.prepare(image.data))
            except ImageError as error:
                raise BundleError(f"{name}: golden image {image.name} cannot be read: {error}") from error
        yield from predictor.predict(prepared)


def new_record(**values: Any) -> BundleRecord:
    """Make a record dated now, with the versions of what calculates, decodes and resizes here."""
    libraries = {name: metadata.version(name) for name in sorted({*engines.libraries(), *_LIBRARIES})}
    return BundleRecord(created_at=datetime.now(UTC).replace(microsecond=0), libraries=libraries, **values)


_LIBRARIES: Final = ("numpy", "pillow", "simplejpeg")


def read_golden(path: Path) -> list[Golden]:
    """Read the golden images of a bundle that has been verified. Raises BundleError."""
    try:
        return _read_golden(path, read(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} cannot be loaded: {error}") from error


def _read_golden(path: Path, record: BundleRecord) -> list[Golden]:
    expected = json.loads((path / EXPECTED_FILE).read_text())
    if strange := [name for name in expected if f"golden/{name}" not in record.files]:
        raise ValueError(f"its golden image {strange[0]!r} is not in the bundle")
    read = ((name, (path / "golden" / name).read_bytes(), values) for name, values in expected.items())
    return [Golden(name, data, [float(p) for p in values]) for name, data, values in read]


def _archive(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    archive = io.BytesIO()
    stored = {name: value if value.dtype in _STORED else value.astype(np.float32) for name, value in weights.items()}
    np.savez(archive, **stored)  # type: ignore[arg-type]
    return archive.getvalue()


def _contents(metrics: Mapping[str, Any], golden: Sequence[Golden]) -> dict[str, bytes]:
    expected = {g.name: [round(float(p), 7) for p in g.probabilities] for g in golden}
    return {
        METRICS_FILE: _json(metrics),
        EXPECTED_FILE: _json(expected),
        **{f"golden/{g.name}": g.data for g in golden},
    }


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_files(folder: Path, record: BundleRecord, contents: Mapping[str, bytes]) -> None:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    table = {"format": FORMAT, **record.model_copy(update={"files": hashes}).model_dump()}
    for name, data in {**contents, RECORD_FILE: to_toml(table, comment=record.notice).encode()}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def to_toml(table: Mapping[str, Any], *, comment: str = "") -> str:
    """Write a table as TOML below a comment. What is None is left out, since TOML has no such value."""
    lines = [f"# {line}\n" for line in comment.splitlines()]
    return "".join(lines) + tomli_w.dumps(_without_none(table))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
