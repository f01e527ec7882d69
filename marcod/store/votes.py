"""Labels that people give: every vote is kept, and each person's latest vote on a subject counts.

A subject is a drop at an inspection, or one image of it. For an image, votes on it win over votes on its drop. Votes on
one of several files with the same bytes are votes on the image that counts for them.

Guarantees:

* Repeating an import changes nothing, because the table only grows and each vote has a key.
* A person can take back a label.
* There is one label per subject: that of most persons, the latest on a tie.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import insert
from marcod.database.schema import drop, image, inspection, label, plate, score, source
from marcod.domain import COLUMN_OF_CLASS, DropClass, Modality, Split, split_of, text_path
from marcod.store.selects import at_drop, count_where, counted_in, current_score
from marcod.store.sources import root_of
from marcod.store.versions import get

CHUNK: Final = 1000
SEVERAL: Final = "web several"
"""Beginning of the origin of labels that a person gave to many drops at once, perhaps without a look at each."""

FOUR_CLASSES: Final = "marco"
"""The vocabulary of the four classes themselves."""

COUNTING: Final = sa.func.coalesce(image.c.same_as_id, image.c.id)
"""The image that counts instead of an image, or itself."""


@dataclass(frozen=True, slots=True)
class NewLabel:
    """One person's label of a drop at an inspection, or of its image ``image_id``; None takes the former label back.

    The drop, the inspection and the image must be of one another. ``original`` is the label as written, in its
    ``vocabulary``; ``origin`` is the way it came, such as ``cli`` or ``csv NAME``. ``labelled_at`` is aware.
    ``request`` names one answer on the page; a second label of the same request is none.
    """

    drop_id: int
    inspection_id: int
    label: DropClass | None
    person: str
    labelled_at: datetime
    origin: str
    original: str = ""
    vocabulary: str = FOUR_CLASSES
    image_id: int | None = None
    request: str | None = None

    @property
    def key(self) -> str:
        """The same for the same label of the same person at the same time, however it comes."""
        parts = (
            self.drop_id,
            self.inspection_id,
            self.image_id,
            self.label,
            self.original,
            self.vocabulary,
            self.person,
            self.labelled_at.astimezone(UTC).isoformat(),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MajorityLabel:
    """The label that counts for a subject now, the last person who gave it and when, and the label of each person."""

    drop_id: int
    inspection_id: int
    image_id: int | None
    label: DropClass
    votes: dict[DropClass, int]
    person: str
    labelled_at: datetime
    persons: dict[str, DropClass]

    @property
    def disputed(self) -> bool:
        """Tell if persons disagree."""
        return len(self.votes) > 1


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image with its label, and with a model's current score if that was asked for and is there.

    ``path``, ``root`` and ``plate_key`` are as on disk. ``own`` tells that the label was given to the image itself,
    ``labelled_at`` when somebody last gave it, ``persons`` the label of each person. ``probabilities`` are in the order
    of ``domain.CLASSES``, ``vector`` is a model's own classes by name. ``split_source`` is the former source whose name
    decides the plate's side.
    """

    image_id: int
    source: str
    layout: str
    root: str
    path: str
    plate_key: str
    inspection_id: int
    inspection_ordinal: int | None
    drop_id: int
    well: str
    drop_number: int
    content_hash: str | None
    label: DropClass
    votes: dict[DropClass, int]
    persons: dict[str, DropClass]
    labelled_at: datetime
    own: bool
    probabilities: tuple[float, float, float, float] | None
    vector: dict[str, float] | None
    split_source: str | None = None

    @property
    def split(self) -> Split:
        """The side of its plate, which a source that is renamed or merged does not change."""
        return split_of(self.split_source or self.source, self.plate_key)


def add(connection: Connection, labels: Iterable[NewLabel], now: datetime) -> int:
    """Store labels. Returns how many are new."""
    rows = [
        {
            **asdict(new),
            "label": new.label and str(new.label),
            "original": new.original or str(new.label or ""),
            "recorded_at": now,
            "key": new.key,
        }
        for new in {n.key: n for n in labels}.values()
    ]
    statement = insert(connection, label).on_conflict_do_nothing().returning(label.c.id)
    chunks = (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK))
    return sum(len(connection.execute(statement, chunk).all()) for chunk in chunks)


def given_singly(labels: Any = label) -> sa.ColumnElement[bool]:
    """Choose labels whose person looked at that one drop, of ``label`` or an alias of it."""
    several: sa.ColumnElement[bool] = labels.c.origin.startswith(SEVERAL)
    return sa.not_(several)


def current(
    connection: Connection,
    *,
    drop_ids: Sequence[int] | None = None,
    sources: Sequence[str] | None = None,
    singly: bool = False,
) -> list[MajorityLabel]:
    """List the label of every subject that has one, by drop, inspection and image.

    ``singly`` takes labels that were given to several drops at once as never given.
    """
    given: dict[tuple[int, int, int | None], list[Any]] = {}
    for row in connection.execute(_latest(drop_ids, sources, singly=singly)):
        given.setdefault((row.drop_id, row.inspection_id, row.image_id), []).append(row)
    verdicts = [_verdict(subject, rows) for subject, rows in given.items()]
    return sorted(verdicts, key=lambda v: (v.drop_id, v.inspection_id, v.image_id or 0))


@dataclass(frozen=True, slots=True)
class DropVotes:
    """Labels of one drop at one inspection: of the drop, and of single images of it."""

    of_drop: MajorityLabel | None
    of_images: dict[int, MajorityLabel]

    def majority(self, hits: Mapping[int, bool]) -> MajorityLabel | None:
        """Decide the drop's label, None where no label counts; ``hits`` tells by image if the model predicts crystals.

        Crystals win, on the drop or on one image, because a lab would rather look twice than miss one. A label of one
        image does not count against another image in which the model predicts crystals. ``votes`` are all votes.
        """
        labels = [v for v in (self.of_drop, *self.of_images.values()) if v is not None]
        crystals = [v for v in labels if v.label is DropClass.CRYSTALS]
        unlabelled_hit = self.of_drop is None and any(
            hit for image_id, hit in hits.items() if image_id not in self.of_images
        )
        if not labels or (unlabelled_hit and not crystals):
            return None
        votes = sum((Counter(v.votes) for v in labels), Counter[DropClass]())
        return replace(max(crystals or labels, key=lambda v: v.labelled_at), votes=dict(votes))


NO_VOTES: Final = DropVotes(None, {})
"""A drop without labels."""


def of_drops(
    connection: Connection, drop_ids: Sequence[int], *, singly: bool = False
) -> dict[tuple[int, int], DropVotes]:
    """Read the labels of these drops, by drop and inspection; ``singly`` as in :func:`current`."""
    found: dict[tuple[int, int], DropVotes] = {}
    for verdict in current(connection, drop_ids=drop_ids, singly=singly):
        subject = (verdict.drop_id, verdict.inspection_id)
        held = found.get(subject, NO_VOTES)
        if verdict.image_id is None:
            found[subject] = DropVotes(verdict, held.of_images)
        else:
            found[subject] = DropVotes(held.of_drop, {**held.of_images, verdict.image_id: verdict})
    return found


def of_inspection(connection: Connection, inspection_id: int) -> dict[int, DropVotes]:
    """Read the labels of the drops of one inspection, by drop."""
    of_this = sa.select(label.c.drop_id).where(label.c.inspection_id == inspection_id).distinct()
    drop_ids = list(connection.execute(of_this).scalars())
    if not drop_ids:
        return {}
    return {drop_id: its for (drop_id, where), its in of_drops(connection, drop_ids).items() if where == inspection_id}


def _verdict(subject: tuple[int, int, int | None], rows: list[Any]) -> MajorityLabel:
    """Count one subject's latest votes, the oldest first."""
    votes = Counter(DropClass(row.label) for row in rows)
    last = {DropClass(row.label): (place, row) for place, row in enumerate(rows)}
    winner = max(votes, key=lambda vote: (votes[vote], last[vote][0]))
    latest = last[winner][1]
    persons = {row.person: DropClass(row.label) for row in rows}
    return MajorityLabel(*subject, winner, dict(votes), latest.person, latest.labelled_at, persons)


_SHOWN: Final = sa.func.coalesce(COUNTING, 0)
_AGE: Final = sa.func.row_number().over(
    partition_by=(label.c.drop_id, label.c.inspection_id, _SHOWN, label.c.person),
    order_by=(label.c.labelled_at.desc(), label.c.id.desc()),
)
"""1 for a person's latest vote on a subject, more for the former ones."""


def _latest(drop_ids: Sequence[int] | None, sources: Sequence[str] | None, *, singly: bool) -> sa.Select[Any]:
    """Select each person's latest vote on each subject, unless it took the former back; the oldest first."""
    columns = (column for column in label.c if column is not label.c.image_id)
    chosen = sa.select(*columns, COUNTING.label("image_id"), _AGE.label("age"))
    chosen = chosen.outerjoin(image, image.c.id == label.c.image_id)
    if drop_ids is not None:
        chosen = chosen.where(label.c.drop_id.in_(list(drop_ids)))
    if sources is not None:
        chosen = chosen.where(label.c.drop_id.in_(_drops_of(sources)))
    if singly:
        chosen = chosen.where(given_singly())
    vote = chosen.subquery()
    return sa.select(vote).where(vote.c.age == 1, vote.c.label.is_not(None)).order_by(vote.c.labelled_at, vote.c.id)


def _drops_of(sources: Sequence[str]) -> sa.Select[Any]:
    place = sa.select(drop.c.id).join(plate, plate.c.id == drop.c.plate_id)
    return place.join(source, source.c.id == plate.c.source_id).where(source.c.name.in_(list(sources)))


def labelled_images(
    connection: Connection,
    version_id: int | None,
    sources: Sequence[str] | None = None,
    *,
    modality: Modality = Modality.VISIBLE,
) -> list[LabelledImage]:
    """List every image that carries a label, a drop's inspections in their order.

    With a version the images of its modality, and its score of the present content; else those of ``modality``,
    without scores. A drop's label is carried by all such images of it at that inspection.
    """
    verdicts = {(v.drop_id, v.inspection_id, v.image_id): v for v in current(connection, sources=sources)}
    light = modality if version_id is None else get(connection, version_id).modality
    found = []
    for row in connection.execute(_images(connection, version_id, str(light), sources)):
        own = verdicts.get((row.drop_id, row.inspection_id, row.image_id))
        given = own or verdicts.get((row.drop_id, row.inspection_id, None))
        if given is not None:
            found.append(_labelled(row, given))
    return found


def _labelled(row: Any, given: MajorityLabel) -> LabelledImage:
    facts = dict(row._mapping)
    p_clear, p_crystals, p_other, p_precipitate = (facts.pop(name) for name in COLUMN_OF_CLASS.values())
    return LabelledImage(
        **facts | {name: text_path(facts[name]) for name in ("root", "path", "plate_key")},
        label=given.label,
        votes=given.votes,
        persons=given.persons,
        labelled_at=given.labelled_at,
        own=given.image_id is not None,
        probabilities=None if p_crystals is None else (p_clear, p_crystals, p_other, p_precipitate),
    )


def _images(
    connection: Connection, version_id: int | None, modality: str, sources: Sequence[str] | None
) -> sa.Select[Any]:
    """Select the images in one light of every subject that ever had a label."""
    given = sa.select(label.c.drop_id, label.c.inspection_id).distinct().subquery()
    of_version = current_score(version_id)
    statement = (
        sa.select(
            image.c.id.label("image_id"), image.c.path, image.c.drop_id, image.c.inspection_id, image.c.content_hash,
            source.c.name.label("source"), root_of(connection), plate.c.split_source, source.c.layout,
            plate.c.key.label("plate_key"), inspection.c.ordinal.label("inspection_ordinal"), drop.c.well,
            drop.c.drop_number, *(score.c[name] for name in COLUMN_OF_CLASS.values()), score.c.vector,
        )
        .join(given, sa.and_(given.c.drop_id == image.c.drop_id, given.c.inspection_id == image.c.inspection_id))
        .join(source, source.c.id == image.c.source_id)
        .join(inspection, inspection.c.id == image.c.inspection_id)
        .join(plate, plate.c.id == inspection.c.plate_id)
        .join(drop, drop.c.id == image.c.drop_id)
        .outerjoin(score, of_version)
        .where(counted_in(modality))
        .order_by(image.c.drop_id, inspection.c.order_key, image.c.inspection_id, image.c.id)
    )  # fmt: skip
    return statement if sources is None else statement.where(source.c.name.in_(list(sources)))


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """One vote of a person; ``label`` is None where it took the former back.

    ``counts`` tells that it is this person's latest vote on its subject, ``disputed`` that persons disagree on it now.
    Keys and path are as stored.
    """

    label_id: int
    source: str
    plate_key: str
    barcode: str | None
    inspection_key: str
    well: str
    drop_number: int
    path: str | None
    label: DropClass | None
    original: str
    vocabulary: str
    person: str
    origin: str
    labelled_at: datetime
    recorded_at: datetime
    counts: bool
    disputed: bool


def listed(
    connection: Connection,
    *,
    plate_ids: Sequence[int] | None = None,
    since: datetime | None = None,
    person: str | None = None,
    disputed: bool = False,
    source_name: str | None = None,
    limit: int = 100,
) -> list[LabelEntry]:
    """List votes, the latest recorded first: of some plates, since a time, by a person, or those disputed."""
    vote = _counted(plate_ids).subquery()
    columns = (
        vote.c.id, source.c.name, plate.c.key, plate.c.barcode, inspection.c.key, drop.c.well, drop.c.drop_number,
        image.c.path, vote.c.label, vote.c.original, vote.c.vocabulary, vote.c.person, vote.c.origin,
        vote.c.labelled_at, vote.c.recorded_at, vote.c.counts, vote.c.lowest != vote.c.highest,
    )  # fmt: skip
    statement = _among(vote, columns, since, person, source_name, disputed=disputed)
    latest = statement.order_by(vote.c.recorded_at.desc(), vote.c.id.desc()).limit(limit)
    return [_entry(row) for row in connection.execute(latest)]


def count_listed(
    connection: Connection,
    *,
    plate_ids: Sequence[int] | None = None,
    since: datetime | None = None,
    person: str | None = None,
    disputed: bool = False,
) -> tuple[int, int]:
    """Count what :func:`listed` gives without a limit: all votes, and those that count now."""
    vote = _counted(plate_ids).subquery()
    columns = (sa.func.count(), count_where(vote.c.counts))
    total, counting = connection.execute(_among(vote, columns, since, person, None, disputed=disputed)).one()
    return int(total), int(counting)


def _among(
    vote: Any,
    columns: Sequence[Any],
    since: datetime | None,
    person: str | None,
    source_name: str | None,
    *,
    disputed: bool,
) -> sa.Select[Any]:
    """Select columns of chosen votes and of the places that they are about."""
    statement: sa.Select[Any] = (
        at_drop(sa.select(*columns).select_from(vote), vote.c.drop_id)
        .join(inspection, inspection.c.id == vote.c.inspection_id)
        .outerjoin(image, image.c.id == vote.c.image_id)
    )
    for chosen in (
        None if since is None else vote.c.recorded_at >= since,
        None if person is None else vote.c.person == person,
        None if source_name is None else source.c.name == source_name,
        sa.and_(vote.c.counts, vote.c.lowest != vote.c.highest) if disputed else None,
    ):
        statement = statement if chosen is None else statement.where(chosen)
    return statement


def _entry(row: Any) -> LabelEntry:
    values = dict(zip((field.name for field in fields(LabelEntry)), row, strict=True))
    counts = bool(values["counts"])
    return LabelEntry(
        **values
        | {
            "label": None if values["label"] is None else DropClass(values["label"]),
            "counts": counts,
            "disputed": counts and bool(values["disputed"]),
        }
    )


def _counted(plate_ids: Sequence[int] | None) -> sa.Select[Any]:
    """Select every vote with ``counts``, and the least and greatest of the classes that count for its subject."""
    chosen = sa.select(label, _SHOWN.label("shown"), _AGE.label("age"))
    chosen = chosen.outerjoin(image, image.c.id == label.c.image_id)
    if plate_ids is not None:
        of_plates = sa.select(drop.c.id).where(drop.c.plate_id.in_(list(plate_ids)))
        chosen = chosen.where(label.c.drop_id.in_(of_plates))
    vote = chosen.subquery()
    counts = sa.and_(vote.c.age == 1, vote.c.label.is_not(None))
    counted = sa.case((counts, vote.c.label))
    of_subject = (vote.c.drop_id, vote.c.inspection_id, vote.c.shown)
    return sa.select(
        vote,
        counts.label("counts"),
        sa.func.min(counted).over(partition_by=of_subject).label("lowest"),
        sa.func.max(counted).over(partition_by=of_subject).label("highest"),
    )


def key_ids(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
    """Look up the ids of stored labels by their keys."""
    rows = connection.execute(sa.select(label.c.key, label.c.id).where(label.c.key.in_(list(keys))))
    return {str(row[0]): int(row[1]) for row in rows}
