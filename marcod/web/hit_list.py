"""The gallery of hits over all plates, the best or the newest first; which are hits is the rule of ``lims_hit_v1``.

A page is found in two steps: the ids of its hits, by the filters, then everything about these. The list is walked along
an index of its order; where a filter leaves few hits, these are put in order by themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.engine import Database
from marcod.database.schema import (
    drop,
    drop_mark,
    drop_summary,
    follow,
    hit,
    image,
    inspection,
    model_alias,
    model_version,
    plate,
    review_item,
    source,
)
from marcod.plates import reports
from marcod.plates.harvest import MarkKind, is_harvested
from marcod.review.queue import Stream
from marcod.store.drops import Cause
from marcod.web import drop_marks, queries
from marcod.web.drop_marks import Marks
from marcod.web.image_address import ImageSize, address, tag_of
from marcod.web.people import User
from marcod.web.queries import SHOWN_DROP, SHOWN_VERSION, are_few, unindexed, visible

Order = Literal["best", "newest"]
PAGE: Final = 60
CSV_PORTION: Final = 1_000
NEW_H: Final = 24
"""Hours for which a hit is marked as new."""


@dataclass(frozen=True, slots=True)
class HitFilter:
    """Filters and order of the gallery, as its address has them; ``after`` is where the page before ended."""

    source: str = ""
    project: str = ""
    since: str = ""
    order: Order = "best"
    harvested: Literal["", "yes", "no"] = ""
    new: bool = False
    unlabelled: bool = False
    followed: bool = False
    after: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "HitFilter":
        """Read an address; what cannot be read counts as not given."""
        texts: dict[str, Any] = {name: queries.text_of(query, name) for name in ("source", "project", "since", "after")}
        harvested: Any = query.get("harvested") if query.get("harvested") in ("yes", "no") else ""
        ticks: dict[str, Any] = {name: query.get(name) == "1" for name in ("new", "unlabelled", "followed")}
        return cls(order="newest" if query.get("order") == "newest" else "best", harvested=harvested, **texts, **ticks)

    def query(self, **changed: Any) -> str:
        """Return the end of an address with these filters, without ``?``."""
        values = {field.name: getattr(replace(self, **changed), field.name) for field in fields(self)}
        if values["order"] == "best":
            values["order"] = ""
        return urlencode({name: 1 if value is True else value for name, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class HitRow(reports.Hit):
    """One hit; ``p_crystals`` is the highest probability of all inspections, ``thumb`` the address of that image.

    ``inspection_id`` is where that image was taken, or the first at which it was a hit. ``is_new`` hits were found
    within :data:`NEW_H` hours.
    """

    drop_id: int
    inspection_id: int
    followed: bool
    is_new: bool
    thumb: str | None

    @property
    def plate(self) -> str:
        """Name by which people know the plate."""
        return self.barcode or self.plate_key


@dataclass(frozen=True, slots=True)
class HitPage:
    """One page of the gallery; ``after`` begins the next one, empty at the end."""

    rows: list[HitRow]
    after: str


def hits(connection: Connection, user: User, chosen: HitFilter, now: datetime, limit: int = PAGE) -> HitPage:
    """Read one page of the gallery."""
    places = _places(connection, user, chosen, now, limit + 1)
    rows = _rows(connection, user, [place.id for place in places[:limit]], now)
    return HitPage(rows, _cursor(places[limit - 1]) if len(places) > limit else "")


def around(
    connection: Connection, user: User, chosen: HitFilter, drop_id: int, now: datetime, limit: int
) -> list[HitRow]:
    """Read the list from its beginning where the drop is near that, else what follows the drop in its order."""
    first = hits(connection, user, replace(chosen, after=""), now, limit).rows
    if any(row.drop_id == drop_id for row in first):
        return first
    # It may be far down, or a label has just taken it out of the list.
    key = hit.c.found_at if chosen.order == "newest" else drop_summary.c.highest_p_crystals
    tie = hit.c.id if chosen.order == "newest" else hit.c.drop_id
    its = sa.select(hit.c.id, key, tie).join(drop_summary, _its_summary(hit)).where(hit.c.drop_id == drop_id)
    own = connection.execute(its.order_by(hit.c.id.desc()).limit(1)).first()
    if own is None:
        return first
    after = _cursor(_Place(*own))
    return hits(connection, user, replace(chosen, after=after), now, limit).rows


def all_hits(db: Database, user: User, chosen: HitFilter, now: datetime) -> Iterator[list[HitRow]]:
    """Read the whole list in portions, each in a transaction of its own."""
    chosen = replace(chosen, after="")
    while True:
        page = db.read(hits, user, chosen, now, CSV_PORTION)
        yield page.rows
        if not page.after:
            return
        chosen = replace(chosen, after=page.after)


@dataclass(frozen=True, slots=True)
class _Place:
    """Place of a hit in its order: its key, None for a hit by label alone, and the id that decides among equals."""

    id: int
    key: float | datetime | None
    tie: int


def _cursor(place: _Place) -> str:
    key = place.key.isoformat() if isinstance(place.key, datetime) else place.key
    return f"{key}_{place.tie}"


def _place_of(after: str, order: Order) -> _Place | None:
    """Read where a page ended; None for an address that somebody changed."""
    key, _, tie = after.rpartition("_")
    try:
        if order == "newest":
            moment = datetime.fromisoformat(key)
            return None if moment.tzinfo is None else _Place(0, moment, int(tie))
        return _Place(0, None if key == "None" else float(key), int(tie))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Filtered:
    """Hits of the filters: ``hits`` is their table, or the few rows of it that a filter leaves."""

    statement: sa.Select[Any]
    hits: sa.FromClause
    are_few: bool


def _places(connection: Connection, user: User, chosen: HitFilter, now: datetime, limit: int) -> list[_Place]:
    after = _place_of(chosen.after, chosen.order)
    found = _filtered(connection, user, chosen, now)
    if chosen.order == "newest":
        return _choose(connection, found, found.statement, (found.hits.c.found_at, found.hits.c.id), after, limit)
    p, tie = drop_summary.c.highest_p_crystals, drop_summary.c.drop_id
    scored: list[_Place] = []
    if after is None or after.key is not None:
        scored = _choose(connection, found, found.statement.where(p.is_not(None)), (p, tie), after, limit)
    if len(scored) >= limit:
        return scored
    # Those that people called crystals where the model has no score come last; there are few.
    last = found.statement.add_columns(p, tie).where(p.is_(None)).order_by(tie.desc()).limit(limit - len(scored))
    if after is not None and after.key is None:
        last = last.where(tie < after.tie)
    return scored + [_Place(*row) for row in connection.execute(last)]


def _choose(
    connection: Connection,
    found: _Filtered,
    statement: sa.Select[Any],
    order: tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]],
    after: _Place | None,
    limit: int,
) -> list[_Place]:
    """Find a page: walk along the index of the order, or find all where they are few and put them in order then."""
    key, tie = order
    statement = statement.add_columns(key.label("place"), tie.label("tie"))
    if found.are_few:
        few = statement.cte("few").prefix_with("materialized")
        statement, key, tie = sa.select(few.c.id, few.c.place, few.c.tie), few.c.place, few.c.tie
    if after is not None:
        # One comparison of both, which an index answers.
        values = (sa.literal(after.key, key.type), sa.literal(after.tie, tie.type))
        statement = statement.where(sa.tuple_(key, tie) < sa.tuple_(*values))
    statement = statement.order_by(key.desc(), tie.desc()).limit(limit)
    return [_Place(*row) for row in connection.execute(statement)]


def _filtered(connection: Connection, user: User, chosen: HitFilter, now: datetime) -> _Filtered:
    """Select the hits of the filters."""
    of_plate = _of_plate(connection, user, chosen)
    since = queries.since(chosen.since, now)
    driving = _driving(connection, user, chosen, of_plate, since)
    found: sa.FromClause = hit
    if driving is not None:
        # Found before anything is joined, which databases do not always think of.
        found = sa.select(hit).where(driving).cte("some").prefix_with("materialized")
    statement = (
        sa.select(found.c.id)
        .join(drop_summary, _its_summary(found))
        .join(SHOWN_VERSION, SHOWN_VERSION.c.model_version_id == found.c.model_version_id)
        .join(drop, drop.c.id == found.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .where(drop_summary.c.first_hit_inspection_id.is_not(None), *of_plate, _counts(found), _not_asked(found, user))
    )
    if since is not None and chosen.order == "newest":
        statement = statement.where(found.c.found_at >= since)
    elif since is not None:
        # So that no index on the time is taken, whose rows would all have to be put in order.
        statement = statement.where(sa.case((found.c.found_at >= since, 1), else_=0) == 1)
    if chosen.new:
        statement = statement.where(found.c.cause != str(Cause.CONFIRMED))
    if chosen.unlabelled:
        statement = statement.where(drop_summary.c.label_person.is_(None))
    if chosen.harvested:
        harvested = is_harvested(found.c.drop_id)
        statement = statement.where(harvested if chosen.harvested == "yes" else sa.not_(harvested))
    if chosen.followed:
        statement = statement.where(found.c.drop_id.in_(_followed(user)))
    return _Filtered(statement, found, driving is not None)


def _of_plate(connection: Connection, user: User, chosen: HitFilter) -> list[sa.ColumnElement[bool]]:
    found = [visible(user)]
    if chosen.source:
        found.append(unindexed(connection, plate.c.source_id) == queries.source_named(connection, chosen.source))
    if chosen.project:
        found.append(plate.c.project == chosen.project)
    return found


def _driving(
    connection: Connection,
    user: User,
    chosen: HitFilter,
    of_plate: list[sa.ColumnElement[bool]],
    since: datetime | None,
) -> sa.ColumnElement[bool] | None:
    """Return the condition on hits of a filter that leaves few, None where each leaves many."""
    if chosen.followed:
        return hit.c.drop_id.in_(_followed(user))
    if chosen.harvested == "yes":
        return hit.c.drop_id.in_(sa.select(drop_mark.c.drop_id).where(drop_mark.c.kind == str(MarkKind.HARVESTED)))
    if since is not None and are_few(connection, sa.select(hit.c.id).where(hit.c.found_at >= since)):
        return hit.c.found_at >= since
    matching = sa.select(plate.c.id).where(*of_plate)
    # The best ones lie everywhere, so that a walk soon finds some; the newest of an imager may all lie far down.
    share = 10 if chosen.order == "best" else 1
    if (chosen.source or chosen.project) and are_few(connection, matching, share):
        return hit.c.inspection_id.in_(sa.select(inspection.c.id).where(inspection.c.plate_id.in_(matching)))
    return None


def _followed(user: User) -> sa.Select[Any]:
    return sa.select(follow.c.drop_id).where(follow.c.person == user.name)


def _its_summary(found: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(
        drop_summary.c.drop_id == found.c.drop_id, drop_summary.c.model_version_id == found.c.model_version_id
    )


def _counts(found: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that a hit is the champion's, or of the version shown where the champion has none."""
    its = drop_summary.alias("of_champion")
    champion = sa.select(model_alias.c.model_version_id).where(model_alias.c.alias == "champion").scalar_subquery()
    has_own = sa.exists().where(
        its.c.drop_id == found.c.drop_id, its.c.model_version_id == champion, its.c.first_hit_inspection_id.is_not(None)
    )
    is_shown = sa.exists().where(
        SHOWN_DROP.c.drop_id == found.c.drop_id, SHOWN_DROP.c.model_version_id == found.c.model_version_id
    )
    return sa.or_(SHOWN_VERSION.c.is_champion, sa.and_(sa.not_(has_own), is_shown))


def _not_asked(found: sa.FromClause, user: User) -> sa.ColumnElement[bool]:
    """Return the condition that no random audit asks the person about the drop, who is to see no score before."""
    return sa.not_(
        sa.exists().where(
            review_item.c.drop_id == found.c.drop_id,
            review_item.c.stream == str(Stream.AUDIT),
            review_item.c.person == user.name,
            review_item.c.answered_at.is_(None),
        )
    )


def _rows(connection: Connection, user: User, ids: Sequence[int], now: datetime) -> list[HitRow]:
    """Read everything about the hits of a page, in their order."""
    first = inspection.alias("first_inspection")
    statement: sa.Select[Any] = (
        sa.select(
            hit.c.id, hit.c.drop_id, hit.c.inspection_id, hit.c.image_id, hit.c.threshold, hit.c.cause, hit.c.found_at,
            drop.c.well, drop.c.drop_number, plate.c.key.label("plate_key"), plate.c.barcode, plate.c.project,
            plate.c.screen, source.c.name.label("source"), drop_summary.c.highest_p_crystals, drop_summary.c.label,
            drop_summary.c.label_person, drop_summary.c.trend, drop_summary.c.best_image_id,
            first.c.key.label("first_hit_inspection_key"), image.c.path, image.c.content_hash, image.c.size,
            image.c.mtime_ns, image.c.unread, image.c.inspection_id.label("best_inspection_id"),
            model_version.c.name.label("model"), model_version.c.version.label("model_version"),
            model_version.c.synthetic.label("model_synthetic"),
        )
        .join(drop_summary, _its_summary(hit))
        .join(drop, drop.c.id == hit.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .join(source, source.c.id == plate.c.source_id)
        .join(model_version, model_version.c.id == sa.func.coalesce(hit.c.score_version_id, hit.c.model_version_id))
        .join(first, first.c.id == drop_summary.c.first_hit_inspection_id)
        .outerjoin(image, image.c.id == sa.func.coalesce(drop_summary.c.best_image_id, hit.c.image_id))
        .where(hit.c.id.in_(ids))
    )  # fmt: skip
    found = {row.id: row for row in connection.execute(statement)}
    marks = drop_marks.of_drops(connection, user, [row.drop_id for row in found.values()])
    return [_row(found[name], marks, now) for name in ids]


_GIVEN: Final = frozenset({"inspection_id"})


def _row(found: Any, marks: Marks, now: datetime) -> HitRow:
    thumb = None
    if found.path is not None:
        tag = tag_of(found.content_hash, found.size, found.mtime_ns, unread=found.unread)
        thumb = address(found.best_image_id or found.image_id, ImageSize.THUMB, tag)
    names = {field.name for field in fields(HitRow)} & set(found._fields)
    return HitRow(
        hit_id=found.id,
        inspection_id=found.best_inspection_id or found.inspection_id,
        p_crystals=found.highest_p_crystals,
        best_path=found.path,
        harvested=found.drop_id in marks.harvested,
        followed=found.drop_id in marks.followed,
        is_new=found.cause != Cause.CONFIRMED and found.found_at >= now - timedelta(hours=NEW_H),
        thumb=thumb,
        **{name: getattr(found, name) for name in names - _GIVEN},
    )
