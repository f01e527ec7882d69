"""One drop through all its inspections as its page shows it: images, what the model and people say, notes and marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypedDict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import (
    UtcDateTime,
    drop,
    drop_summary,
    image,
    inspection,
    label,
    model_version,
    plate,
    review_item,
    score,
    source,
)
from marcod.domain import CLASSES, COLUMN_OF_CLASS, DropClass, drop_name
from marcod.errors import NotFoundError
from marcod.review.queue import Stream
from marcod.settings import Settings
from marcod.store import verdicts, versions, votes
from marcod.store.selects import SHOWN_DROP
from marcod.store.verdicts import DropVerdict
from marcod.store.versions import Version
from marcod.web import drop_marks
from marcod.web.access import User
from marcod.web.image_address import ImageSize, address, tag_of
from marcod.web.plate_cells import Said, said
from marcod.web.plate_view import model_of
from marcod.web.queries import visible


class Photograph(TypedDict):
    """One image of the drop: addresses of its sizes, its light, where it lies, and when its imager took it.

    ``state`` is here, gone or changed (written again since it was scored). ``path`` is below its source's folder.
    """

    image: int
    modality: str
    profile: str | None
    path: str
    captured_at: str | None
    state: str
    thumb: str
    view: str
    original: str
    heat: str
    file: str


class DropLook(Said):
    """The drop at one inspection: ``name`` is the inspection's number, else its key; ``days`` since the first.

    ``image`` is the one that counts, ``images`` are all in every light, that one first. ``probabilities`` are by class,
    empty where there is no score, or where a random audit asks this person.
    """

    inspection: int
    key: str
    name: str
    at: str
    days: float
    image: int
    images: list[Photograph]
    probabilities: dict[str, float]


class DropView(TypedDict):
    """The page of a drop.

    ``plate`` has id, source, key, name, barcode, project and screen; ``drop`` id, well, row, column, number and
    ``name`` such as A01.2. ``looks`` are its inspections in order, ``inspection`` the id of the one shown. ``model`` is
    as on the plate's page. ``now`` is what counts of the drop: label, person, disputed, hit, best, trend. ``scores``
    say of the image shown which model said what and when. ``labels`` are all ever given, the latest first: label,
    original, person, origin, at, inspection, counts. ``marks`` are kind, text, person, at and inspection.
    ``um_per_px`` is null where nobody configured it.
    """

    plate: dict[str, Any]
    drop: dict[str, Any]
    inspection: int
    looks: list[DropLook]
    model: dict[str, Any]
    now: dict[str, Any]
    scores: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    harvested: bool
    followed: bool
    um_per_px: float | None


def drop_view(
    connection: Connection, user: User, settings: Settings, drop_id: int, inspection_id: int | None = None
) -> DropView:
    """Read the page of a drop, by default at its latest inspection in the model's light.

    Raises NotFoundError for what is not there, or not for this person.
    """
    its = _drop(connection, user, drop_id)
    version = version_shown(connection, drop_id)
    facts = _Facts(user, version, _hidden(connection, user, drop_id), _verdicts(connection, drop_id, version))
    images = _images(connection, drop_id)
    if not images:
        raise NotFoundError("no image of this drop has arrived yet")
    looks = [_look(facts, list(its), images[0]) for _, its in groupby(images, key=attrgetter("inspection_id"))]
    at = _chosen(looks, inspection_id)
    marks = drop_marks.of_drop(connection, user, drop_id)
    its_source = settings.sources.get(its.source)
    return {
        "plate": _plate_of(its),
        "drop": _drop_of(its),
        "inspection": at["inspection"],
        "looks": looks,
        "model": model_of(version),
        "now": _now(connection, drop_id, version, hidden=bool(facts.hidden)),
        "scores": [] if at["inspection"] in facts.hidden else _scores(connection, at["image"]),
        "labels": _labels(connection, drop_id),
        "marks": drop_marks.as_json(drop_marks.history(connection, drop_id)),
        "harvested": drop_id in marks.harvested,
        "followed": drop_id in marks.followed,
        "um_per_px": its_source.um_per_px if its_source else None,
    }


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts from which the looks are made; ``hidden`` are the inspections at which a random audit asks this person."""

    user: User
    version: Version
    hidden: frozenset[int]
    seen: dict[int, DropVerdict]


def _drop(connection: Connection, user: User, drop_id: int) -> Any:
    columns = (
        drop.c.id, drop.c.well, drop.c.well_row, drop.c.well_column, drop.c.drop_number, plate.c.id.label("plate_id"),
        source.c.name.label("source"), plate.c.key, plate.c.barcode, plate.c.project, plate.c.screen,
    )  # fmt: skip
    statement = sa.select(*columns).join(plate, plate.c.id == drop.c.plate_id)
    its = statement.join(source, source.c.id == plate.c.source_id).where(drop.c.id == drop_id, visible(user))
    found = connection.execute(its).one_or_none()
    if found is None:
        raise NotFoundError("there is no such drop")
    return found


def _plate_of(its: Any) -> dict[str, Any]:
    facts = {name: getattr(its, name) for name in ("source", "key", "barcode", "project", "screen")}
    return {"id": its.plate_id, "name": its.barcode or its.key, **facts}


def _drop_of(its: Any) -> dict[str, Any]:
    return {
        "id": its.id,
        "name": drop_name(its.well, its.drop_number),
        "well": its.well,
        "row": its.well_row,
        "column": its.well_column,
        "number": its.drop_number,
    }


def version_shown(connection: Connection, drop_id: int) -> Version:
    """Return the model version whose rows the views show for the drop."""
    shown = sa.select(SHOWN_DROP.c.model_version_id).where(SHOWN_DROP.c.drop_id == drop_id)
    version_id = connection.execute(shown).scalars().first()
    return versions.champion(connection) if version_id is None else versions.get(connection, version_id)


def _hidden(connection: Connection, user: User, drop_id: int) -> frozenset[int]:
    asked = (
        review_item.c.drop_id == drop_id,
        review_item.c.stream == str(Stream.AUDIT),
        review_item.c.person == user.name,
        review_item.c.answered_at.is_(None),
    )
    return frozenset(connection.execute(sa.select(review_item.c.inspection_id).where(*asked)).scalars())


def _verdicts(connection: Connection, drop_id: int, version: Version) -> dict[int, DropVerdict]:
    """Decide the verdicts on the drop by inspection."""
    given = votes.of_drops(connection, [drop_id])
    images = verdicts.of_drops(connection, [drop_id], version, given.keys())
    at_each = groupby(images, key=attrgetter("inspection_id"))
    return {i: verdicts.of_drop(its, given.get((drop_id, i), votes.NO_VOTES)) for i, its in at_each}


_TAKEN = sa.func.coalesce(image.c.captured_at, image.c.seen_at, type_=UtcDateTime()).label("taken")


def photographs(connection: Connection, drop_id: int, inspection_id: int) -> list[Photograph]:
    """List the images of a drop at one inspection, in every light."""
    return [_photograph(row) for row in _images(connection, drop_id) if row.inspection_id == inspection_id]


def _images(connection: Connection, drop_id: int) -> Sequence[Any]:
    """Read the drop's images without copies, inspection by inspection in their order."""
    columns = (
        image.c.id, image.c.inspection_id, image.c.modality, image.c.profile, image.c.path, image.c.captured_at,
        image.c.content_hash, image.c.size, image.c.mtime_ns, image.c.unread, image.c.gone_at, _TAKEN,
        inspection.c.key, inspection.c.ordinal,
    )  # fmt: skip
    its = sa.select(*columns).join(inspection, inspection.c.id == image.c.inspection_id)
    its = its.where(image.c.drop_id == drop_id, image.c.same_as_id.is_(None))
    return connection.execute(its.order_by(inspection.c.order_key, inspection.c.id, image.c.path)).all()


def _look(facts: _Facts, rows: list[Any], first: Any) -> DropLook:
    seen = rows[0]
    verdict = facts.seen.get(seen.inspection_id)
    hidden = seen.inspection_id in facts.hidden
    counting = None if verdict is None else verdict.image.image_id
    ordered = sorted(rows, key=lambda row: row.id != counting)
    look: DropLook = {
        **said(verdict, facts.version, facts.user, hidden=hidden),
        "inspection": seen.inspection_id,
        "key": seen.key,
        "name": seen.key if seen.ordinal is None else str(seen.ordinal),
        "at": seen.taken.isoformat(),
        "days": round((seen.taken - first.taken).total_seconds() / 86_400, 2),
        "image": ordered[0].id,
        "images": [_photograph(row) for row in ordered],
        "probabilities": {} if hidden or verdict is None else probabilities_of(verdict.image),
    }
    if verdict is None:
        look["state"] = "light"
    return look


def _photograph(row: Any) -> Photograph:
    tag = tag_of(row.content_hash, row.size, row.mtime_ns, unread=row.unread)
    places = {size: address(row.id, size, tag) for size in ImageSize}
    return {
        "image": row.id,
        "modality": row.modality,
        "profile": row.profile,
        "path": row.path,
        "captured_at": None if row.captured_at is None else row.captured_at.isoformat(),
        "state": "gone" if row.gone_at is not None else "changed" if row.unread and row.content_hash else "here",
        "thumb": places[ImageSize.THUMB],
        "view": places[ImageSize.VIEW],
        "original": places[ImageSize.ORIGINAL],
        "heat": places[ImageSize.HEAT],
        "file": places[ImageSize.FILE],
    }


IN_ORDER: Final = (DropClass.CRYSTALS, DropClass.PRECIPITATE, DropClass.CLEAR, DropClass.OTHER)
"""Classes in the order of the buttons that give them."""


def probabilities_of(row: Any) -> dict[str, float]:
    """Return the probabilities of a row by class, empty where there is no score."""
    found = {str(each): getattr(row, COLUMN_OF_CLASS[each]) for each in IN_ORDER}
    return {} if None in found.values() else found


def _chosen(looks: Sequence[DropLook], inspection_id: int | None) -> DropLook:
    if inspection_id is None:
        return next((look for look in reversed(looks) if look["state"] != "light"), looks[-1])
    found = next((look for look in looks if look["inspection"] == inspection_id), None)
    if found is None:
        raise NotFoundError("there is no image of this drop at that inspection")
    return found


def _now(connection: Connection, drop_id: int, version: Version, *, hidden: bool) -> dict[str, Any]:
    """Return the class that counts now and the trend; nothing is said while a random audit asks about it."""
    names = ("label", "label_person", "label_disputed", "hit", "highest_p_crystals", "trend", "inspection_id")
    its = sa.select(*(drop_summary.c[name] for name in names)).where(
        drop_summary.c.drop_id == drop_id, drop_summary.c.model_version_id == version.id
    )
    row = None if hidden else connection.execute(its).one_or_none()
    keys = ("label", "person", "disputed", "hit", "best", "trend", "inspection")
    values = (None, None, False, False, None, None, None) if row is None else tuple(row)
    return dict(zip(keys, values, strict=True))


def _scores(connection: Connection, image_id: int) -> list[dict[str, Any]]:
    """Read which model version said what of the present bytes of an image, the latest first."""
    names = tuple(COLUMN_OF_CLASS[each] for each in CLASSES)
    statement = (
        sa.select(
            model_version.c.name, model_version.c.version, score.c.label, score.c.scored_at,
            *(score.c[name] for name in names), model_version.c.crystal_threshold,
        )
        .join(model_version, model_version.c.id == score.c.model_version_id)
        .join(image, image.c.id == score.c.image_id)
        .where(score.c.image_id == image_id, score.c.content_hash == image.c.content_hash)
        .order_by(score.c.scored_at.desc(), score.c.id.desc())
    )  # fmt: skip
    return [
        {
            "model": f"{row.name}:{row.version}",
            "label": row.label,
            "probabilities": probabilities_of(row),
            "threshold": row.crystal_threshold,
            "at": row.scored_at.isoformat(),
        }
        for row in connection.execute(statement)
    ]


def _labels(connection: Connection, drop_id: int) -> list[dict[str, Any]]:
    """List the labels of the drop, the latest first, and whether each counts: it is its person's last and stands."""
    columns = (
        label.c.label, label.c.original, label.c.person, label.c.origin, label.c.labelled_at, label.c.inspection_id,
        votes.COUNTING.label("image_id"),
    )  # fmt: skip
    statement = sa.select(*columns).outerjoin(image, image.c.id == label.c.image_id).where(label.c.drop_id == drop_id)
    found: list[dict[str, Any]] = []
    heard: set[tuple[Any, ...]] = set()
    for row in connection.execute(statement.order_by(label.c.labelled_at.desc(), label.c.id.desc())):
        subject = (row.inspection_id, row.image_id, row.person)
        found.append(
            {
                "label": row.label,
                "original": row.original,
                "person": row.person,
                "origin": row.origin,
                "at": row.labelled_at.isoformat(),
                "inspection": row.inspection_id,
                "counts": subject not in heard and row.label is not None,
            }
        )
        heard.add(subject)
    return found
