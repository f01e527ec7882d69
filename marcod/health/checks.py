"""Checks of a snapshot: each trouble that needs a person, judged once.

``marcod status``, ``marcod doctor`` and the metric ``marcod_trouble``, on which the alert rules rest, all render
what :func:`troubles` returns, so they never disagree. Every threshold stands in :data:`CHECKS`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from marcod.health import snapshot
from marcod.health.finding import HealthFinding, Severity
from marcod.health.snapshot import StatusSnapshot
from marcod.store import versions
from marcod.store.campaigns import Campaign, State
from marcod.text import count
from marcod.watch.status import SourceStatus

MAX_CAUSES: Final = 5
"""Causes that hold images up, of which each is one trouble."""

MAX_HOSTS: Final = 3
"""Hosts that leave a source to others, of which the names are shown."""

UNWATCHED: Final = "no process watches it"
START: Final = "start `marcod run`, or its unit"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One kind of trouble: where the doctor shows it, how severe it is, and the longest time that is well."""

    name: str
    area: str
    subject: str
    verdict: Severity
    limit: timedelta | None = None


_BROKEN, _ATTENTION = Severity.BROKEN, Severity.ATTENTION

CHECKS: Final = {
    check.name: check
    for check in (
        HealthCheck("no_champion", "models", "champion", _BROKEN),
        HealthCheck("synthetic_champion", "models", "champion", _ATTENTION),
        # A running marcod works on it every few seconds.
        HealthCheck("promotion_stands", "models", "becoming champion", _ATTENTION, timedelta(minutes=10)),
        HealthCheck("nothing_runs", "workers", "none", _BROKEN),
        HealthCheck("no_scorer", "workers", "score", _BROKEN),
        HealthCheck("no_watcher", "workers", "watch", _BROKEN),
        HealthCheck("no_schedule", "workers", "schedule", _ATTENTION),
        # An image that could have been scored so long ago has no scorer, or too few.
        HealthCheck("images_wait", "work", "queue", _BROKEN, timedelta(minutes=30)),
        HealthCheck("rescore_stands", "work", "rescores", _ATTENTION, timedelta(minutes=30)),
        HealthCheck("held_up", "work", "held up", _BROKEN),
        HealthCheck("quarantine", "work", "quarantine", _ATTENTION),
        HealthCheck("images_gone", "work", "gone", _ATTENTION),
        HealthCheck("drift", "work", "drift", _ATTENTION),
        HealthCheck("notifications_stuck", "work", "notifications", _BROKEN, timedelta(hours=1)),
        HealthCheck("notifications_given_up", "work", "notifications", _ATTENTION),
        HealthCheck("training_failed", "work", "training", _ATTENTION),
        # A trainer that lives takes a run over after two minutes of silence.
        HealthCheck("training_silent", "work", "training", _ATTENTION, timedelta(minutes=30)),
        # A watcher reports every ten seconds.
        HealthCheck("watcher_silent", "sources", "watching", _BROKEN, timedelta(minutes=1)),
        HealthCheck("root_offline", "sources", "watching", _BROKEN),
        # A watcher starts a round twice a second.
        HealthCheck("watcher_hangs", "sources", "watching", _BROKEN, timedelta(minutes=5)),
        HealthCheck("no_scan", "sources", "watching", _BROKEN, timedelta(hours=1)),
        HealthCheck("unreadable_folders", "sources", "watching", _ATTENTION),
        HealthCheck("observer", "sources", "watching", _ATTENTION),
        HealthCheck("left_to_others", "sources", "left to others", _ATTENTION),
        HealthCheck("unread_files", "sources", "files", _ATTENTION),
    )
}
"""Every check by its name, which the alert rules use as well."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One trouble, and the next step. ``source`` and ``target`` are empty where it concerns none."""

    check: HealthCheck
    text: str
    advice: str = ""
    source: str = ""
    target: str = ""
    detail: str = ""

    @property
    def sentence(self) -> str:
        """The trouble in one line."""
        about = f"source {self.source}: " if self.source else ""
        return f"{about}{self.text}; {self.advice}" if self.advice else f"{about}{self.text}"

    @property
    def finding(self) -> HealthFinding:
        """The trouble as the doctor reports it."""
        subject = self.detail or self.check.subject
        subject = f"{self.source}: {subject}" if self.source else subject
        return HealthFinding(self.check.area, subject, self.check.verdict, self.text, self.advice)


def troubles(seen: StatusSnapshot) -> list[Trouble]:
    """List what needs a person, the worst first."""
    found = [*_models(seen), *_workers(seen), *_queue(seen), *_outside(seen), *_training(seen)]
    waited_for = awaited(seen)
    for state in seen.watched:
        if state.source not in waited_for:
            found += _source(state, seen.taken_at)
    found += [
        _trouble("unread_files", one.text, one.advice, source=one.source, detail=one.reason)
        for one in seen.findings
        if one.attention
    ]
    found += _left_to_others(seen)
    return sorted(found, key=lambda trouble: trouble.check.verdict is not Severity.BROKEN)


def awaited(seen: StatusSnapshot) -> list[str]:
    """List the sources that a process may still report, because it started less than a reporting limit ago."""
    now = seen.taken_at
    starting = any(
        "watch" in w.roles.split(",") and not _over("watcher_silent", w.started_at, now) for w in seen.workers
    )
    watched = {state.source for state in seen.watched if is_watched(state, now)}
    return [name for name in seen.sources if name not in watched] if starting else []


def is_watched(state: SourceStatus, now: datetime) -> bool:
    """Tell if a process watches a source; one that ended in order took its name out of the row."""
    return bool(state.worker) and state.updated_at is not None and not _over("watcher_silent", state.updated_at, now)


def _trouble(
    name: str, text: str, advice: str = "", *, source: str = "", target: str = "", detail: str = ""
) -> Trouble:
    return Trouble(CHECKS[name], text, advice, source, target, detail)


def _over(name: str, since: datetime | None, now: datetime) -> bool:
    """Tell if the time since then exceeds a check's limit; None is before all times."""
    limit = CHECKS[name].limit
    assert limit is not None
    return since is None or now - since > limit


def _models(seen: StatusSnapshot) -> Iterator[Trouble]:
    if seen.champion is None:
        yield _trouble("no_champion", "no model is champion", "`marcod model promote NAME:VERSION` makes one")
    elif seen.scored_by_synthetic:
        text = f"{seen.champion.model} was {versions.RENDERED_ALONE}"
        yield _trouble("synthetic_champion", text, versions.REAL_MODEL)
    if seen.coming is not None and _over("promotion_stands", seen.coming.moved_at, seen.taken_at):
        text = f"{seen.coming}, none for {age(seen.coming.moved_at, seen.taken_at)}"
        advice = f"`marcod model promote {seen.coming.model}` goes on, and a running `marcod run` does"
        yield _trouble("promotion_stands", f"becoming champion: {text}", advice)


def _workers(seen: StatusSnapshot) -> Iterator[Trouble]:
    if not seen.workers:
        yield _trouble("nothing_runs", "no marcod runs", "`marcod run` starts one")
        return
    alive = snapshot.roles(seen.workers)
    for role, check, effect in (
        ("score", "no_scorer", "images wait"),
        ("watch", "no_watcher", "new images are found at its next start"),
        ("schedule", "no_schedule", "no plate is completed, no drift is seen, no notification is sent"),
    ):
        if role not in alive:
            yield _trouble(check, f"no process has the role {role}: {effect}", START)


def _queue(seen: StatusSnapshot) -> Iterator[Trouble]:
    oldest_at, now = seen.new.oldest_at, seen.taken_at
    if oldest_at is not None and _over("images_wait", oldest_at, now):
        text = f"a new image waits for {age(oldest_at, now)}"
        yield _trouble("images_wait", text, "scoring is too slow or fails, see the log")
    for one in seen.rescores:
        if _stands(one, seen):
            text = f"rescore {one.id} with {one.model} gets no further, {count(one.left, 'image')} left"
            yield _trouble("rescore_stands", text, "see the log of who scores; `marcod rescore cancel` ends it")
    for held_up in seen.held_up[:MAX_CAUSES]:
        text = f"{count(held_up.images, 'image waits', 'images wait')}: {held_up.error}"
        yield _trouble("held_up", text, "remove the cause; the images are tried again by themselves")
    if seen.failed:
        yield _trouble("quarantine", f"{count(seen.failed, 'image')} in quarantine", "`marcod queue failed` says why")
    if seen.gone:
        text = f"{count(seen.gone, 'image')} went before anything scored them"
        yield _trouble("images_gone", text, "`marcod queue gone` lists them, `marcod queue accept` accepts that")


def _stands(one: Campaign, seen: StatusSnapshot) -> bool:
    """Tell if somebody scores, nothing new waits, and a rescore of some age has no score lately and none a worker."""
    idle = one.state is State.RUNNING and one.images_per_s is None and not any(other.held for other in seen.rescores)
    free = "score" in snapshot.roles(seen.workers) and not seen.new.waiting and not seen.rescore.waiting
    return idle and free and _over("rescore_stands", one.created_at, seen.taken_at)


def _outside(seen: StatusSnapshot) -> Iterator[Trouble]:
    """Yield troubles of the imagers' light and of those who receive notifications."""
    for alarm in seen.alarms:
        yield _trouble("drift", alarm.detail, "see `marcod drift`")
    for target, box in seen.outbox.items():
        if box.oldest_at is not None and _over("notifications_stuck", box.oldest_at, seen.taken_at):
            text = f"{target} was not notified of what happened {age(box.oldest_at, seen.taken_at)} ago"
            yield _trouble("notifications_stuck", text, "`marcod notify list` shows why", target=target)
        if box.given_up:
            text = (
                f"{count(box.given_up, 'notification')} for {target} given up within {snapshot.GIVEN_UP_AGE.days} days"
            )
            yield _trouble("notifications_given_up", text, "`marcod notify list` shows why", target=target)


def _training(seen: StatusSnapshot) -> Iterator[Trouble]:
    run = seen.training
    if run is None:
        return
    if run.state in ("failed", "abandoned"):
        why = f": {run.error}" if run.error else ""
        yield _trouble(
            "training_failed", f"training run {run.id} {run.state}{why}", f"see `marcod train show {run.id}`"
        )
    if run.state == "running" and _over("training_silent", run.beat_at, seen.taken_at):
        text = f"training run {run.id} shows no life for {age(run.beat_at, seen.taken_at)}"
        yield _trouble("training_silent", text, "start the trainer, which takes it over")


def _source(state: SourceStatus, now: datetime) -> Iterator[Trouble]:
    def trouble(check: str, text: str, advice: str) -> Trouble:
        return _trouble(check, text, advice, source=state.source)

    if not is_watched(state, now):
        text = f"{UNWATCHED}; the last report came {ago(state.updated_at, now)} from {state.host}"
        yield trouble("watcher_silent", text, START)
        return
    if not state.root_there:
        yield trouble("root_offline", f"its root is offline on {state.host}", "mount the share")
    elif state.round_at is not None and _over("watcher_hangs", state.round_at, now):
        text = f"its watcher on {state.host} hangs since {state.round_at:%H:%M} UTC"
        yield trouble("watcher_hangs", text, "the share does not answer; check the file server")
    elif not state.walking and _over("no_scan", state.walked_at, now):
        text = f"the last scan that ended well was {ago(state.walked_at, now)}"
        yield trouble("no_scan", text, "see the log of the watching process")
    if state.unreadable:
        text = f"{count(state.unreadable, 'folder')} cannot be listed"
        yield trouble("unreadable_folders", text, "see the log; let the user of marcod read them")
    if state.trouble:
        yield trouble("observer", state.trouble, "until then scans find the new files, later")


def _left_to_others(seen: StatusSnapshot) -> Iterator[Trouble]:
    """Yield sources that hosts with a scorer do not find, each reason once."""
    hosts: dict[tuple[str, str], set[str]] = {}
    for worker in seen.workers:
        for name, reason in (worker.left_to_others or {}).items():
            hosts.setdefault((name, reason), set()).add(worker.host)
    for (name, reason), of in sorted(hosts.items()):
        more = f" and {count(len(of) - MAX_HOSTS, 'other')}" if len(of) > MAX_HOSTS else ""
        text = f"on {', '.join(sorted(of)[:MAX_HOSTS])}{more} its images are left to other hosts: {reason}"
        yield _trouble("left_to_others", text, "mount it there, or give its root there in [hosts]", source=name)


def counts(found: Iterable[Trouble]) -> dict[tuple[str, str, str], int]:
    """Count troubles by check, source and target; a check without any has 0 under no source and no target."""
    counted = Counter((trouble.check.name, trouble.source, trouble.target) for trouble in found)
    there = {name for name, _, _ in counted}
    return dict(counted) | {(name, "", ""): 0 for name in CHECKS if name not in there}


_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def age(at: datetime, now: datetime) -> str:
    """Format the time since then in the largest unit of which it has two, such as ``90 min``."""
    seconds = max(0, int((now - at).total_seconds()))
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= 2 * size or size == 1)
    return f"{seconds // size} {unit}"


def ago(at: datetime | None, now: datetime) -> str:
    """Format the time since then, such as ``90 min ago``; ``never`` for None."""
    return "never" if at is None else f"{age(at, now)} ago"
