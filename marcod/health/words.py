"""The status in words: facts, sources and workers as rows of text, for every place that shows them."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from marcod.health import checks
from marcod.health.checks import Trouble, age, ago, is_watched
from marcod.health.finding import Severity
from marcod.health.snapshot import Jobs, Outbox, Serving, StatusSnapshot
from marcod.store.campaigns import Campaign
from marcod.text import count
from marcod.training.run_rows import Run
from marcod.watch.status import SourceStatus

SOURCE_COLUMNS = ("source", "root", "found by", "host", "last scan", "whole scan", "settling", "incomplete", "failed")
WORKER_COLUMNS = ("host", "process", "roles", "runs for", "seen", "version")


def verdict(seen: StatusSnapshot, found: list[Trouble]) -> tuple[Severity | None, str]:
    """Return how everything stands in one phrase, with its severity; None where all is well."""
    if found:
        return found[0].check.verdict, "needs attention"
    if awaited := checks.awaited(seen):
        return Severity.ATTENTION, f"starting; nothing is known yet of {', '.join(awaited)}"
    return None, "all is well"


def facts(seen: StatusSnapshot) -> Iterator[tuple[str, str]]:
    """List queue, scores, models, training, drift and notifications, each with a name; the name is empty to go on."""
    now = seen.taken_at
    yield "queue", _jobs(seen.new, "new", now)
    if seen.rescore != Jobs(0, 0, 0, None):
        yield "", _jobs(seen.rescore, "to be scored again", now)
    yield from (("" if number else "rescores", rescore(one, now)) for number, one in enumerate(seen.rescores))
    yield "scores", f"{seen.last_minute:,} in the last minute, the last one {ago(seen.last_scored_at, now)}"
    yield from (
        (alias, _version(v)) for alias, v in (("champion", seen.champion), ("challenger", seen.challenger)) if v
    )
    if seen.coming:
        yield "becoming champion", f"{seen.coming} since {seen.coming.since:%Y-%m-%d %H:%M} UTC"
    if seen.training:
        yield "training", _run(seen.training, now)
    yield from (("layouts", f"{one.source}: {one.text}") for one in seen.findings if not one.attention)
    drifting = ", ".join(f"{alarm.signal} of {alarm.source}" for alarm in seen.alarms)
    yield "drift", drifting or "no alarm"
    yield from (("notify", f"{target}: {_box(box, now)}") for target, box in seen.outbox.items())
    if seen.untold and seen.outbox:
        yield "", f"{count(seen.untold, 'event')} not handed on yet"


def rescore(one: Campaign, now: datetime) -> str:
    """Describe a rescore of an archive: how far it is, its rate and the time left."""
    far = f"{one.id} with {one.model} {one.state}, {count(one.left, 'image')} of {one.images:,} left"
    if one.images_per_s is None or one.left_s is None:
        return far
    return f"{far}, {one.images_per_s:,.1f} a second, {age(now - timedelta(seconds=one.left_s), now)} to go"


def _jobs(jobs: Jobs, kind: str, now: datetime) -> str:
    longest = "" if jobs.oldest_at is None else f" (longest {age(jobs.oldest_at, now)})"
    return f"{jobs.waiting:,} {kind}{longest}, {jobs.leased:,} being scored, {jobs.retrying:,} waiting for another try"


def _version(serving: Serving) -> str:
    made = ", trained on rendered drops alone" if serving.synthetic else ""
    return f"{serving.model} since {serving.since:%Y-%m-%d %H:%M} UTC{made}"


def _run(run: Run, now: datetime) -> str:
    if run.ended_at is None:
        return f"run {run.id} {run.state} since {age(run.started_at, now)}{f', {run.step}' if run.step else ''}"
    return f"run {run.id} {run.state}{f' {run.candidate}' if run.candidate else ''}, {ago(run.ended_at, now)}"


def _box(box: Outbox, now: datetime) -> str:
    oldest = "" if box.oldest_at is None else f", the oldest for {age(box.oldest_at, now)}"
    return f"{box.unsent:,} wait{oldest}, {box.given_up:,} given up"


def sources(seen: StatusSnapshot) -> list[tuple[object, ...]]:
    """Return a row of :data:`SOURCE_COLUMNS` for each source."""
    states = {state.source: state for state in seen.watched}
    return [(name, *_watching(states.get(name), seen.taken_at), seen.quarantined.get(name, 0)) for name in seen.sources]


def _watching(state: SourceStatus | None, now: datetime) -> tuple[object, ...]:
    """Tell from the root to what is on its way."""
    if state is None:
        return ("-", "nobody", *["-"] * 5)
    root = "there" if state.root_there else "OFFLINE"
    scan, whole = ago(state.walked_at, now), ago(state.walked_whole_at, now)
    if not is_watched(state, now):
        return (f"was {root}", "nobody", state.host, scan, whole, "-", "-")
    if state.walking:
        scan = f"now, {count(state.walked_files, 'file')}"
    how = "events" if state.observing else "scans"
    return (root, how, state.host, scan, whole, f"{state.pending:,}", f"{state.waiting:,}")


def standing(name: str, seen: StatusSnapshot, found: list[Trouble]) -> Severity | None:
    """Return how severe the troubles of a source are; None where it is well, or nobody watches it."""
    if not any(state.source == name for state in seen.watched):
        return None
    verdicts = {trouble.check.verdict for trouble in found if trouble.source == name}
    if Severity.BROKEN in verdicts:
        return Severity.BROKEN
    odd = name in seen.quarantined or any(alarm.source == name for alarm in seen.alarms)
    return Severity.ATTENTION if verdicts or odd else None


def workers(seen: StatusSnapshot) -> list[tuple[object, ...]]:
    """Return a row of :data:`WORKER_COLUMNS` for each process."""
    now = seen.taken_at
    return [
        (
            w.host,
            f"{w.pid}, {w.task}" if w.task else str(w.pid),
            w.roles,
            age(w.started_at, now),
            ago(w.seen_at, now),
            w.marcod_version,
        )
        for w in seen.workers
    ]
