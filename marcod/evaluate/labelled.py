"""Labelled sets of images, from a table or from the database.

Each image has its file, drop, group (the plate, when known) and the unit that counts once. Nothing is dropped without
being named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from marcod import tabular
from marcod.database.engine import Database
from marcod.domain import CLASSES, DropClass, Split
from marcod.errors import ConfigError, NotFoundError
from marcod.model.bundle import BundleRecord
from marcod.model.committee import Committee
from marcod.model.probabilities import softmax
from marcod.store import results, versions, votes
from marcod.text import count, some

REQUIRED: Final = ("image", "label")
FURTHER: Final = ("source", "imager", "plate", "drop", "inspection", "group")
"""Columns of a CSV file; others are not looked at."""

SHOWN: Final = 5
"""How many of the missing files are named."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Image and its label.

    ``own`` is the index of the label among the model's own classes, None when it was given in the four. Images of
    one ``unit`` (one drop at one inspection, with one label) count once; drops of one ``group`` resemble one another.
    ``stored`` are probabilities from the database in the order of the model's own classes.
    """

    file: Path
    label: DropClass
    source: str
    imager: str
    drop: str
    inspection: str
    unit: str
    group: str
    own: int | None = None
    stored: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labelled images, a sentence that describes them, and the files that are missing."""

    description: str
    images: tuple[Labelled, ...]
    missing: tuple[str, ...] = ()


def from_csv(file: Path, root: Path | None, record: BundleRecord, *, skip_missing: bool = False) -> LabelledSet:
    """Read the set in a table with the columns image and label; images are relative to ``root`` or the file's folder.

    Raises ConfigError naming the line for anything that cannot be read, and for missing files unless
    ``skip_missing``.
    """
    images: list[Labelled] = []
    lines: dict[Path, int] = {}
    for line, row in _rows(file):
        image = _from_row(row, root or file.parent, record, f"{file}, line {line}")
        if image.file in lines:
            raise ConfigError(
                f"{file}, line {line}: {row['image']} is in line {lines[image.file]} already; leave one of them"
            )
        lines[image.file] = line
        images.append(image)
    if not images:
        raise ConfigError(f"{file} has no labelled image below its header")
    missing = [image for image in images if not image.file.is_file()]
    if missing and not skip_missing:
        raise ConfigError(_missing_sentence(file, missing, len(images)))
    absent = {image.file for image in missing}
    there = tuple(image for image in images if image.file not in absent)
    if not there:
        raise ConfigError(_missing_sentence(file, missing, len(images)))
    return LabelledSet(f"{file.name}, {count(len(images), 'labelled image')}", there, tuple(str(f) for f in absent))


def _missing_sentence(file: Path, missing: Sequence[Labelled], of: int) -> str:
    named = some([str(image.file) for image in missing], SHOWN)
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{len(missing)} of the {count(of, 'image')} in {file} {verb} not there: {named}; "
        "name their folder with --root, or leave them out with --skip-missing"
    )


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table by column, each with the number of the line it ends on."""
    advice = (
        f"its first line must name the columns, separated by commas: {', '.join(REQUIRED)} and, if known, "
        f"{', '.join(FURTHER)}; labels that `marcod label` imported need no file: --from-database uses them"
    )
    try:
        for line, row in tabular.rows_of(tabular.read_text(file), REQUIRED, advice):
            yield line, {name: row.get(name, "") for name in (*REQUIRED, *FURTHER)}
    except tabular.TableError as error:
        raise ConfigError(error.of(file)) from error


def _from_row(row: Mapping[str, str], root: Path, record: BundleRecord, where: str) -> Labelled:
    if not row["image"]:
        raise ConfigError(f"{where}: the image is not named; fill in its path or take the line out")
    for name in ("plate", "group"):
        if damage := tabular.damage(row[name]):
            raise ConfigError(f"{where}: {name} {row[name]!r}: {damage}")
    label, own = _label(row["label"], record, where)
    image, source = row["image"], row["source"]
    plate = f"{source}/{row['plate']}" if row["plate"] else ""
    drop = f"{plate or source}/{row['drop']}" if row["drop"] else image
    together = (drop, row["inspection"], str(label)) if row["drop"] and row["inspection"] else (image,)
    return Labelled(
        file=root / image,
        label=label,
        own=own,
        source=source,
        imager=row["imager"] or source,
        drop=drop,
        inspection=row["inspection"] or image,
        unit="\x00".join(together),
        group=row["group"] or plate or drop,
    )


def _label(text: str, record: BundleRecord, where: str) -> tuple[DropClass, int | None]:
    """Parse one of the four classes or of the model's own, in any case. The four come first where both fold alike."""
    four = {c.value.casefold(): c for c in CLASSES}.get(text.casefold())
    own = {name.casefold(): i for i, name in enumerate(record.classes)}.get(text.casefold())
    if four is None and own is None:
        names = list(dict.fromkeys([*(c.value for c in CLASSES), *record.classes]))
        raise ConfigError(f"{where}: label {text!r} is not known; write one of {', '.join(names)}")
    if four is None:
        assert own is not None
        return record.folding[record.classes[own]], own
    return four, own if own is not None and record.folding[record.classes[own]] is four else None


def from_database(
    db: Database,
    record: BundleRecord,
    version_id: int | None,
    *,
    split: Split | None,
    source: str | None,
    roots: Mapping[str, Path],
) -> LabelledSet:
    """Read the labels of one side or of all; ``roots`` are the sources' folders on this host.

    Without a version the images have no scores of its own. A drop's inspections come in their order. Raises
    NotFoundError when nothing is labelled there.
    """
    sources = None if source is None else [source]
    found = db.read(votes.labelled_images, version_id, sources, modality=record.modality)
    if record.committee is not None:
        found = _with_members(db, record, record.committee, found)
    chosen = [image for image in found if split is None or image.split is split]
    side = "all plates" if split is None else f"the {split} plates"
    where = f"{side} of {source or 'all sources'}"
    if not chosen:
        raise NotFoundError(
            f"no image of {where} is labelled, of {count(len(found), 'labelled image')} in all; "
            "label some, or choose another side of the split"
        )
    return LabelledSet(
        f"labels in the database, {where}, {count(len(chosen), 'image')}",
        tuple(_from_image(image, record, roots) for image in chosen),
    )


def _with_members(
    db: Database, record: BundleRecord, rule: Committee, found: Sequence[votes.LabelledImage]
) -> list[votes.LabelledImage]:
    """Give images without a score of a committee the one that follows from its members' scores, where all are there."""
    registered = {str(one.version): one.version for one in db.read(versions.listed)}
    members = [registered.get(str(member)) for member in rule.members]
    ids = [m.id for m, named in zip(members, rule.members, strict=True) if m is not None and m.digest == named.digest]
    if len(ids) < len(members):
        return list(found)
    lacking = [image.image_id for image in found if image.probabilities is None]
    known = db.read(results.stored, ids, lacking)
    complete = []
    for image in found:
        scores = [known.get(image.image_id, {}).get((i, image.content_hash or "")) for i in range(len(ids))]
        given = [one.probabilities for one in scores if one is not None]
        if image.probabilities is None and len(given) == len(ids):
            own = softmax(rule.logits([given]) / record.temperature)[0]
            image = replace(image, probabilities=(float(own[0]), float(own[1]), float(own[2]), float(own[3])))
        complete.append(image)
    return complete


def _from_image(image: votes.LabelledImage, record: BundleRecord, roots: Mapping[str, Path]) -> Labelled:
    unit = f"image {image.image_id}" if image.own else f"drop {image.drop_id} at {image.inspection_id}"
    stored: tuple[float, ...] | None = image.probabilities
    if image.vector is not None:
        stored = tuple(image.vector[name] for name in record.classes)
    return Labelled(
        file=roots.get(image.source, Path(image.root)) / image.path,
        label=image.label,
        source=image.source,
        imager=image.layout,
        drop=str(image.drop_id),
        inspection=str(image.inspection_id),
        unit=unit,
        group=f"{image.source}/{image.plate_key}",
        stored=stored,
    )
