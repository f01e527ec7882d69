"""Review desk: the next items for a person, their answers, and the recall that random audits estimate.

Three streams are mixed by their shares. Filling the queue twice is the same as once, and a session may stop at any
moment. Answers are labels like all others, stored by :mod:`marcod.labels.recorder`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from marcod.database.engine import Database
from marcod.domain import DropClass
from marcod.errors import NotFoundError
from marcod.labels import recorder
from marcod.labels.files import find
from marcod.labels.recorder import DropReference, LabelTarget
from marcod.review import queue as store
from marcod.review import recall, sampling, strategies
from marcod.review.queue import Counts, ReviewItem, Stream
from marcod.settings import ReviewSettings
from marcod.store import versions
from marcod.store.votes import NewLabel
from marcod.text import count

ORIGIN: Final = "review"
"""Origin of labels that were given here."""

WAITING: Final = 100
"""Items that the queue is filled up to, over the streams near the threshold and of disagreement."""

ROUND_AGE: Final = timedelta(days=30)
"""After this, or when there are twice as many drops, an audit that was answered is followed by another."""

ENOUGH: Final = 0.5
"""Least answered share of an audit that is reported instead of an older one."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Result of filling the queue: new items per stream, items closed by labels of people, and items removed."""

    new: dict[Stream, int]
    closed: int
    retired: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Result of one audit of the champion: the latest of which enough is answered, drawn at ``drawn_at``.

    ``recall`` with the ends of its interval is None where there is too little to say. ``population`` counts the drops
    there were, ``drawn`` those drawn, of which ``open`` have no answer yet; ``waiting`` are answered before their turn
    and count when those before them are.
    """

    model: str
    threshold: float
    drawn_at: datetime | None
    population: int
    flagged: int
    drawn: int
    answered: int
    skipped: int
    open: int
    waiting: int
    crystals_flagged: int
    crystals_unflagged: int
    recall: float | None
    low: float | None
    high: float | None
    sentence: str
    strata: list[sampling.StratumAnswers]


def fill(db: Database, settings: ReviewSettings, now: datetime, *, new_audit: bool = False) -> Filled:
    """Propose what is worth a look, up to the shares of the settings, and draw an audit when one is due.

    What takes long is only read, so that nobody who writes waits for it.
    """
    filled = _top_up(db, settings, now)
    if not new_audit and not (settings.audit_share and db.read(_is_due, now)):
        return filled
    drawn = db.write(_draw, settings.audit_drops, now, forced=new_audit)
    closed = db.write(store.reconcile) if drawn else 0
    return Filled({**filled.new, Stream.AUDIT: drawn}, filled.closed + closed, filled.retired)


def _top_up(db: Database, settings: ReviewSettings, now: datetime) -> Filled:
    def tidy(connection: Any) -> tuple[versions.Version, int, int]:
        champion = versions.champion(connection)
        return champion, store.retire(connection, champion), store.reconcile(connection)

    def find(connection: Any) -> dict[Stream, list[store.ReviewCandidate]]:
        # Disagreement first: what is near the threshold as well is worth more for it.
        apart = _disagreements(connection, champion, round(WAITING * shares[Stream.DISAGREEMENT]))
        want = _room(connection, shares, now)
        taken = {(p.drop_id, p.inspection_id) for p in apart}
        near = strategies.near_threshold(connection, champion, want + len(apart)) if want else []
        free = [p for p in near if (p.drop_id, p.inspection_id) not in taken]
        return {Stream.DISAGREEMENT: apart, Stream.THRESHOLD: free[:want]}

    def keep(connection: Any) -> dict[Stream, int]:
        if versions.champion(connection) != champion:
            return {}
        # Somebody else may have filled it meanwhile.
        found[Stream.THRESHOLD] = found[Stream.THRESHOLD][: _room(connection, shares, now)]
        return {s: len(store.add(connection, s, champion, each, now)) for s, each in found.items()}

    shares = _shares(settings)
    champion, retired, closed = db.write(tidy)
    found = db.read(find)
    new = db.write(keep) if any(found.values()) else {}
    return Filled(dict.fromkeys(Stream, 0) | new, closed, retired)


def _room(connection: Any, shares: dict[Stream, float], now: datetime) -> int:
    """Count the missing items near the threshold."""
    return max(0, round(WAITING * shares[Stream.THRESHOLD]) - store.counts(connection, now)[Stream.THRESHOLD].open)


def _disagreements(connection: Any, champion: versions.Version, most: int) -> list[store.ReviewCandidate]:
    """Find disagreements, half of labelled drops: their labellers are not asked, and would never get to the others."""
    labelled, unlabelled = store.open_disagreements(connection)
    half = -(-most // 2)
    challenger = versions.aliased(connection, versions.CHALLENGER)
    found = strategies.among_models(connection, champion, challenger, half - unlabelled) if half > unlabelled else []
    return found + (strategies.with_people(connection, champion, half - labelled) if half > labelled else [])


def _shares(settings: ReviewSettings) -> dict[Stream, float]:
    shares = {
        Stream.THRESHOLD: settings.threshold_share,
        Stream.DISAGREEMENT: settings.disagreement_share,
        Stream.AUDIT: settings.audit_share,
    }
    every = sum(shares.values())
    return {stream: share / every if every else 0.0 for stream, share in shares.items()}


def _draw(connection: Any, drops: int, now: datetime, *, forced: bool) -> int:
    """Draw an audit where one is due. Returns how many drops were drawn."""
    sampling.start_draw(connection)
    champion = versions.champion(connection)
    flagged, unflagged = sampling.sides(connection, champion)
    if not flagged + unflagged or not (forced or _due(connection, champion, flagged + unflagged, now)):
        return 0
    strata = recall.plan(drops, flagged, unflagged)
    return sampling.draw(connection, champion, strata, secrets.randbits(62), now)


def _is_due(connection: Any, now: datetime) -> bool:
    champion = versions.champion(connection)
    return _due(connection, champion, sum(sampling.sides(connection, champion)), now)


def _due(connection: Any, champion: versions.Version, population: int, now: datetime) -> bool:
    before = sampling.rounds(connection, champion)
    if not population:
        return False
    if not before or sampling.lost(connection, before[0]):
        return True
    grown = population >= 2 * before[0].population
    return (grown or now - before[0].drawn_at >= ROUND_AGE) and not sampling.open_items(connection, champion)


def next_item(
    db: Database, settings: ReviewSettings, person: str, now: datetime, *, besides: Sequence[int] = ()
) -> ReviewItem | None:
    """Claim the next item for a person, for ``store.PATIENCE``; None where nothing waits for them.

    What they were shown and have not answered comes first, then what was put there by hand, then the stream that is
    furthest behind its share; none of ``besides``, which are in their hands. The queue is filled only where it has
    nothing for them: that takes a pass over all drops.
    """
    taken = take(db, settings, person, now, besides=besides)
    if not taken:
        fill(db, settings, now)
        taken = take(db, settings, person, now, besides=besides)
    return taken[0] if taken else None


def take(
    db: Database,
    settings: ReviewSettings,
    person: str,
    now: datetime,
    *,
    hold: timedelta = store.PATIENCE,
    besides: Sequence[int] = (),
) -> list[ReviewItem]:
    """Claim one item of the queue as it is, for a person, for the time ``hold``; empty where there is none."""

    def work(connection: Any) -> list[ReviewItem]:
        champion = versions.champion(connection)
        store.reconcile(connection)
        order = _turns(settings, store.seen(connection, champion))
        return store.items(connection, store.claim(connection, person, order, now, hold=hold, besides=besides))

    return db.write(work)


def _turns(settings: ReviewSettings, seen: dict[Stream, int]) -> list[Stream]:
    """Order the streams by how far they are behind their shares."""
    shares = _shares(settings)
    every = sum(seen.get(stream, 0) for stream in shares) + 1
    behind = sorted(shares, key=lambda stream: seen.get(stream, 0) - shares[stream] * every)
    return [Stream.MANUAL, *behind]


def answer(
    db: Database, item: ReviewItem, label: DropClass, person: str, now: datetime, request: str | None = None
) -> None:
    """Store a person's answer to an item as a label, and close the item, in one transaction.

    The same ``request`` again changes nothing.
    """
    db.write(_answer, item, label, person, now, request)


def _answer(
    connection: Any, item: ReviewItem, label: DropClass, person: str, now: datetime, request: str | None = None
) -> None:
    given = NewLabel(item.drop_id, item.inspection_id, label, person, now, ORIGIN, request=request)
    if recorder.add(connection, [given], now) or request is None:
        store.close(connection, item.item_id, person=person, answer=str(label), now=now)


def skip(db: Database, item: ReviewItem, person: str, now: datetime) -> None:
    """Close an item without a label; the person is not asked about that drop and inspection again."""
    db.write(store.close, item.item_id, person=person, answer=store.SKIPPED, now=now)


def undo(db: Database, item: ReviewItem, label: DropClass | None, person: str, now: datetime) -> bool:
    """Take an answer back, or with None a skip, and ask the person again. False where it was changed since."""

    def work(connection: Any) -> bool:
        if not store.reopen(connection, item, str(label or store.SKIPPED), person, now):
            return False
        if label is not None:
            subject = LabelTarget(item.drop_id, item.inspection_id)
            recorder.withdraw(connection, subject, person=person, origin=ORIGIN, now=now)
        return True

    return db.write(work)


def release(db: Database, items: Sequence[ReviewItem], person: str) -> None:
    """Give items back that a person does not answer now."""
    db.write(store.release, [item.item_id for item in items], person)


def ask(db: Database, named: DropReference, reason: str, now: datetime) -> bool:
    """Put a drop into the queue by hand. False where it waits already. Raises LabelError and NotFoundError."""
    text = recorder.plain("reason", reason)
    return db.write(lambda c: store.ask(c, find(c, named), versions.champion(c), text, now))


def one(db: Database, item_id: int) -> ReviewItem:
    """Return one item. Raises NotFoundError."""
    found = db.read(store.items, [item_id])
    if not found:
        raise NotFoundError(f"there is no item {item_id}; `marcod review queue` lists them")
    return found[0]


def overview(
    db: Database, now: datetime, streams: Sequence[Stream], limit: int
) -> tuple[dict[Stream, Counts], list[ReviewItem]]:
    """Count the items of each stream, and list the open ones of some."""
    return db.read(lambda c: (store.counts(c, now), store.waiting(c, streams, limit)))


def report(db: Database) -> AuditReport:
    """Report the champion's crystal recall at its threshold, as far as an audit shows it."""

    def work(connection: Any) -> tuple[versions.Version, list[tuple[sampling.Round, list[sampling.StratumAnswers]]]]:
        champion = versions.champion(connection)
        return champion, [(r, sampling.tallies(connection, r)) for r in sampling.rounds(connection, champion)]

    champion, rounds = db.read(work)
    drawn_at, tallies, found = _choose(rounds)
    counted = ("population", "answered", "skipped", "open", "waiting")
    return AuditReport(
        model=str(champion),
        threshold=champion.crystal_threshold,
        drawn_at=drawn_at,
        flagged=sum(t.population for t in tallies if t.flagged),
        drawn=sum(t.sample for t in tallies),
        crystals_flagged=sum(t.crystals for t in tallies if t.flagged),
        crystals_unflagged=sum(t.crystals for t in tallies if not t.flagged),
        sentence=_sentence(champion, tallies, found),
        strata=tallies,
        **(dict.fromkeys(("recall", "low", "high")) if found is None else asdict(found)),
        **{name: sum(getattr(t, name) for t in tallies) for name in counted},
    )


def _choose(
    rounds: list[tuple[sampling.Round, list[sampling.StratumAnswers]]],
) -> tuple[datetime | None, list[sampling.StratumAnswers], recall.RecallEstimate | None]:
    """Choose the audit to report: the latest with enough answers, else the latest with an estimate, else the latest.

    Never several: drops were drawn with other probabilities in each, and the model's scores were others.
    """
    estimated = [(r.drawn_at, tallies, found) for r, tallies in rounds if (found := _estimate(tallies)) is not None]
    enough = (each for each in estimated if _answered(each[1]) >= ENOUGH)
    latest = [(r.drawn_at, tallies, None) for r, tallies in rounds[:1]]
    return next(enough, next(iter([*estimated, *latest]), (None, [], None)))


def _estimate(tallies: list[sampling.StratumAnswers]) -> recall.RecallEstimate | None:
    return recall.estimate([recall.AnsweredStratum(t.flagged, t.population, t.answered, t.crystals) for t in tallies])


def _answered(tallies: list[sampling.StratumAnswers]) -> float:
    """Return the share of the drawn drops that count as answered or skipped."""
    return sum(t.answered + t.skipped for t in tallies) / max(1, sum(t.sample for t in tallies))


def _sentence(
    champion: versions.Version, tallies: list[sampling.StratumAnswers], found: recall.RecallEstimate | None
) -> str:
    if found is not None:
        return (
            f"{champion} finds {found.recall:.0%} of the crystals at its threshold of {champion.crystal_threshold:.4g} "
            f"(95 % interval {found.low:.0%} to {found.high:.0%})."
        )
    if not tallies:
        return f"No audit of {champion} has been drawn yet; `marcod review queue` draws one once drops are scored."
    drawn, answered, crystals = (sum(getattr(t, name) for t in tallies) for name in ("sample", "answered", "crystals"))
    seen = f"{answered} {'is' if answered == 1 else 'are'} answered, {crystals} with crystals"
    return (
        f"Too little to say: of {count(drawn, 'drawn drop')} {seen}. It takes "
        f"{recall.LEAST_ANSWERS} answers, some in each stratum, and {recall.LEAST_CRYSTALS} crystals, one of them "
        "above the threshold; `marcod review next` asks, and `marcod review queue --new-audit` draws more."
    )
