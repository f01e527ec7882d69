"""Snapshot: a frozen set of labelled images, with their bytes and sides.

Guarantees:

* A plate and an image's bytes stay on one side for ever, however the labels grow.
* Every image of a snapshot is on disk, can be decoded and is the one that people labelled.
* What is left out is named.

The manifest is a file of JSON lines, a header and one line per image, identified by the SHA-256 of its bytes.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from marcod import files, images
from marcod.database.engine import Database
from marcod.domain import CLASSES, DropClass, Modality, Split, path_text, split_of
from marcod.errors import ImageError, MarcodError, os_reason
from marcod.store.votes import LabelledImage
from marcod.training import snapshot_rows
from marcod.training.snapshot_rows import Gathered, Past

FORMAT: Final = "marcod dataset 1"
READERS: Final = 8
"""Threads that read files; a file server answers many at once sooner than one after another."""

_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_STRICTEST: Final = (Split.TEST, Split.VALIDATION, Split.TRAIN)
"""The side that wins where the same file was labelled on several at the same time."""

_REMARKS: Final = ("away", "missing", "changed", "excluded")
_OF_IMAGE: Final = (
    "image_id", "drop_id", "inspection_id", "source", "plate_key", "well", "drop_number", "path", "root", "label",
    "persons",
)  # fmt: skip
"""Fields that an item takes from the labelled image as they are."""


@dataclass(frozen=True, slots=True)
class Item:
    """Labelled image of a snapshot.

    ``imager`` is the layout's name; ``plate_key``, ``path`` (relative to the source's root) and ``root`` (as the
    database knows it) are as on disk. ``content_hash`` is the SHA-256 of the file when the snapshot was taken.
    ``shares`` are the persons' shares for each class in the order of ``domain.CLASSES``, and sum to 1.
    ``weight`` is what the image counts for: one drop counts 1 for a label, copies of one file count as one.
    ``stream`` is the review stream whose question the label answers and ``inclusion`` the probability with which an
    audit drew it; None where no question was asked, and where no probability is known.
    """

    image_id: int
    drop_id: int
    inspection_id: int
    source: str
    imager: str
    plate_key: str
    well: str
    drop_number: int
    path: str
    root: str
    content_hash: str
    label: DropClass
    shares: tuple[float, ...]
    persons: dict[str, DropClass]
    side: Split
    weight: float
    stream: str | None
    inclusion: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Frozen set of labelled images, and sentences on what is missing.

    ``missing`` are files that are gone, ``changed`` those that are no longer what was labelled, ``excluded`` those
    left out for another reason, one sentence an image each. ``away`` has a sentence for every source whose whole
    folder is not there, with the number of images; they are in ``missing`` as well. ``digest`` is the SHA-256 of the
    manifest, ``gate_digest`` follows from the test side's images and labels alone.
    """

    taken_at: datetime
    last_label_id: int | None
    modality: str
    items: tuple[Item, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    excluded: tuple[str, ...]
    digest: str
    gate_digest: str
    away: tuple[str, ...] = ()

    def side(self, split: Split) -> tuple[Item, ...]:
        """List the images of one side."""
        return tuple(item for item in self.items if item.side is split)

    def counts(self) -> dict[str, Any]:
        """Count each side, ready for JSON: images, drops, plates, drops with crystals, drops by class
        and the same by source."""
        return {str(side): _counts(self.side(side)) for side in Split}


def _counts(items: Sequence[Item]) -> dict[str, Any]:
    sources = sorted({item.source for item in items})
    return {
        **_numbers(items),
        "classes": {str(c): len({i.drop_id for i in items if i.label is c}) for c in CLASSES},
        "sources": {name: _numbers([item for item in items if item.source == name]) for name in sources},
    }


def _numbers(items: Sequence[Item]) -> dict[str, int]:
    return {
        "images": len(items),
        "drops": len({item.drop_id for item in items}),
        "plates": len({(item.source, item.plate_key) for item in items}),
        "crystals": len({item.drop_id for item in items if item.label is DropClass.CRYSTALS}),
    }


def take(
    db: Database,
    *,
    modality: Modality,
    roots: Mapping[str, Path],
    now: datetime,
    sources: Sequence[str] | None = None,
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Snapshot:
    """Freeze the present labels with the present files; ``roots`` are the sources' folders on this host.

    ``done`` is called with how many files have been read, and of how many. Raises StoreError.
    """
    gathered = db.read(snapshot_rows.gather, modality)
    chosen = [p for p in gathered.images if sources is None or p.source in sources]
    rest = [p for p in gathered.images if sources is not None and p.source not in sources]
    contents, gone, unreadable = _read_all(chosen, gathered.past, roots, done)
    # What was never scored is known by its file alone, and its copies in another source must find their side.
    others, _, _ = _read_all([p for p in rest if not gathered.past[p.image_id].contents], gathered.past, roots)
    assigned = assign([p for p in chosen if p.image_id in contents], contents | others, gathered)
    snapshot = Snapshot(
        taken_at=now,
        last_label_id=gathered.last_label_id,
        modality=str(modality),
        items=assigned.items,
        missing=_sentences((p, _GONE) for p in gone),
        changed=_sentences(assigned.changed),
        excluded=_sentences([*unreadable, *assigned.elsewhere]),
        digest="",
        gate_digest=_gate_digest(assigned.items),
        away=_away(chosen, gone, roots),
    )
    return replace(snapshot, digest=hashlib.sha256(_manifest(snapshot)).hexdigest())


_Remark = tuple[LabelledImage, str]
_GONE: Final = "is gone; bring it back, or take its label back"


def _sentences(remarks: Iterable[_Remark]) -> tuple[str, ...]:
    return tuple(sorted(f"{p.source}: {path_text(p.path)} {text}" for p, text in remarks))


def _away(
    chosen: Iterable[LabelledImage], missing: Iterable[LabelledImage], roots: Mapping[str, Path]
) -> tuple[str, ...]:
    """Write a sentence for each source without a single image: its folder is more likely offline than empty."""
    wanted = Counter(p.source for p in chosen)
    gone = Counter(p.source for p in missing)
    folder = {p.source: path_text(str(_root(p, roots))) for p in missing}
    return tuple(
        f"source {name}: none of its {count:,} labelled images is under {folder[name]}; is the folder mounted?"
        for name, count in sorted(wanted.items())
        if gone[name] == count
    )


def _root(image: LabelledImage, roots: Mapping[str, Path]) -> Path:
    return roots.get(image.source, Path(image.root))


def _read_all(
    images: Sequence[LabelledImage],
    past: Mapping[int, Past],
    roots: Mapping[str, Path],
    done: Callable[[int, int], None] = lambda count, total: None,
) -> tuple[dict[int, str], list[LabelledImage], list[_Remark]]:
    """Hash each image's file; return also the images whose files are gone, and those that cannot be read."""
    hashes, gone, unreadable = {}, [], []
    with ThreadPoolExecutor(READERS, thread_name_prefix="hash") as pool:
        folders = [_root(p, roots) for p in images]
        outcomes = pool.map(_content, folders, [p.path for p in images], [past[p.image_id].contents for p in images])
        for count, (image, outcome) in enumerate(zip(images, outcomes, strict=True), start=1):
            if outcome is None:
                gone.append(image)
            elif isinstance(outcome, ImageError):
                unreadable.append((image, f"cannot be read: {outcome}"))
            else:
                hashes[image.image_id] = outcome
            done(count, len(images))
    return hashes, gone, unreadable


def _content(root: Path, path: str, known: Mapping[str, datetime]) -> str | ImageError | None:
    """Hash an image that can be decoded, or return its error, or None where there is no file."""
    try:
        data = images.read(root / path, root)
        content = hashlib.sha256(data).hexdigest()
        # What was ever scored has been decoded before.
        if content not in known:
            images.to_rgb(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return ImageError(error.strerror)
    except ImageError as error:
        return error
    return content


@dataclass(frozen=True, slots=True)
class Assigned:
    """Images on their sides and weighed; those whose file is another than people named, and those whose file
    stands on another side, each with the end of a sentence."""

    items: tuple[Item, ...]
    changed: tuple[_Remark, ...]
    elsewhere: tuple[_Remark, ...]


def assign(images: Iterable[LabelledImage], contents: Mapping[int, str], gathered: Gathered) -> Assigned:
    """Assign each image to a side; ``contents`` are the hashes of the files by image.

    A plate's side follows from its name. Where one file was labelled on plates of several sides, it stays where it was
    labelled first: what a model has seen in training never becomes a test later, nor the other way round.
    """
    homes = _homes(gathered.past, contents)
    present, changed = _unchanged(images, contents, gathered.past)
    items, elsewhere = [], []
    for image in present:
        content, side = contents[image.image_id], image.split
        if side is homes[content]:
            items.append(_item(image, content, side, gathered))
        else:
            elsewhere.append((image, f"is the same file as one on a {homes[content]} plate, and stays on that side"))
    return Assigned(_weighed(sorted(items, key=_place)), tuple(changed), tuple(elsewhere))


def _unchanged(
    images: Iterable[LabelledImage], contents: Mapping[int, str], past: Mapping[int, Past]
) -> tuple[list[LabelledImage], list[_Remark]]:
    """Find the images whose files are those that people labelled, and what is wrong with the others.

    The database knows a file's former contents by their scores. One that was never scored is taken as it is.
    """
    kept, changed = [], []
    for image in images:
        content, known = contents[image.image_id], past[image.image_id]
        if image.content_hash is not None and content != image.content_hash:
            changed.append((image, "is not the file that was scored last; label it again when it has been scored"))
        elif image.labelled_at < _since(content, known):
            changed.append((image, "was rewritten after it was labelled; label it again"))
        else:
            kept.append(image)
    return kept, changed


def _since(content: str, known: Past) -> datetime:
    """Return when an image got this content, as far as is known: always, unless another was scored before."""
    if not known.contents or content == min(known.contents, key=lambda other: (known.contents[other], other)):
        return _ALWAYS
    return known.contents.get(content, _NEVER)


def _homes(past: Mapping[int, Past], contents: Mapping[int, str]) -> dict[str, Split]:
    """Find the side of each content: that of the plate on which it was labelled first, even if no longer.

    Scores and labels only grow and are dated, so what is first now stays first for ever.
    """
    claims: dict[str, tuple[datetime, int]] = {}
    for image_id, known in past.items():
        rank = _STRICTEST.index(split_of(known.source, known.plate_key))
        unscored = [contents[image_id]] if image_id in contents else []
        for content in known.contents or unscored:
            start = _since(content, known)
            recorded = [recorded_at for labelled_at, recorded_at in known.labels if labelled_at >= start]
            if recorded:
                claim = max(start, min(recorded)), rank
                claims[content] = min(claim, claims.get(content, claim))
    return {content: _STRICTEST[rank] for content, (_, rank) in claims.items()}


def _item(image: LabelledImage, content: str, side: Split, gathered: Gathered) -> Item:
    votes = [image.votes.get(drop_class, 0) for drop_class in CLASSES]
    stream, inclusion = gathered.asked.get((image.drop_id, image.inspection_id), (None, None))
    return Item(
        **{name: getattr(image, name) for name in _OF_IMAGE},
        imager=image.layout,
        content_hash=content,
        shares=tuple(count / sum(votes) for count in votes),
        side=side,
        weight=1.0,
        stream=stream,
        inclusion=inclusion,
    )


def _place(item: Item) -> tuple[str, str, str, int, int, str]:
    return item.source, item.plate_key, item.well, item.drop_number, item.inspection_id, item.path


def _weighed(items: Sequence[Item]) -> tuple[Item, ...]:
    """Weigh images so that a drop counts 1 per label and a file counts once, however often they occur."""
    of_drop: dict[tuple[int, DropClass], set[str]] = defaultdict(set)
    for item in items:
        of_drop[item.drop_id, item.label].add(item.content_hash)
    copies = Counter(item.content_hash for item in items)
    return tuple(
        replace(item, weight=1.0 / (len(of_drop[item.drop_id, item.label]) * copies[item.content_hash]))
        for item in items
    )


def _manifest(snapshot: Snapshot) -> bytes:
    """Write the manifest: a header and one line per image. Equal snapshots give equal bytes."""
    header = {
        "format": FORMAT,
        "taken_at": snapshot.taken_at.astimezone(UTC).isoformat(),
        "last_label_id": snapshot.last_label_id,
        "modality": snapshot.modality,
        "images": len(snapshot.items),
        "gate_digest": snapshot.gate_digest,
        **{name: getattr(snapshot, name) for name in _REMARKS},
    }
    return b"".join(_line(row) for row in (header, *map(asdict, snapshot.items)))


def _line(row: Any) -> bytes:
    # Escaped to ASCII, because a path may hold bytes that are no text at all.
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _gate_digest(items: Iterable[Item]) -> str:
    """Hash the test side: drops, files, labels and weights, without ids of one database."""
    rows = sorted(
        _line([i.source, i.plate_key, i.well, i.drop_number, i.content_hash, str(i.label), list(i.shares), i.weight])
        for i in items
        if i.side is Split.TEST
    )
    return hashlib.sha256(b"".join(rows)).hexdigest()


def write(snapshot: Snapshot, path: Path) -> None:
    """Write the manifest whole or not at all. Raises MarcodError."""
    try:
        files.write_whole(path, _manifest(snapshot))
    except OSError as error:
        raise MarcodError(f"the manifest {path} cannot be written: {os_reason(error)}") from error


def read(path: Path, digest: str) -> Snapshot:
    """Read a snapshot from its manifest. Raises MarcodError when it is unreadable or its bytes have another hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MarcodError(f"the manifest {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise MarcodError(
            f"the manifest {path} is not the one that was taken: its SHA-256 is {found}, not {digest}; take a new one"
        )
    header, *rows = map(json.loads, data.splitlines())
    if header["format"] != FORMAT:
        raise MarcodError(f"the manifest {path} is a {header['format']!r}, and this marcod reads {FORMAT!r} only")
    return Snapshot(
        taken_at=datetime.fromisoformat(header["taken_at"]),
        last_label_id=header["last_label_id"],
        modality=header["modality"],
        items=tuple(map(_read_item, rows)),
        digest=digest,
        gate_digest=header["gate_digest"],
        **{name: tuple(header[name]) for name in _REMARKS},
    )


def _read_item(row: dict[str, Any]) -> Item:
    typed = {
        "label": DropClass(row["label"]),
        "shares": tuple(row["shares"]),
        "persons": {person: DropClass(label) for person, label in row["persons"].items()},
        "side": Split(row["side"]),
    }
    return Item(**(row | typed))


def register(db: Database, snapshot: Snapshot) -> int:
    """Return the id of the snapshot's row in the database, inserted if new."""
    numbers = _numbers(snapshot.items)
    row = {
        **{name: getattr(snapshot, name) for name in ("digest", "gate_digest", "last_label_id", "taken_at")},
        **{name: numbers[name] for name in ("images", "drops", "crystals")},
        "missing": len(snapshot.missing),
        "changed": len(snapshot.changed),
        "counts": snapshot.counts(),
    }
    return db.write(snapshot_rows.register, row)
