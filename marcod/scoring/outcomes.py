"""Outcomes of batches: from the device to the database, put together where many batches are written at once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from marcod import counters, telemetry
from marcod.store import queue, results, versions

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class BatchReport(counters.Batch):
    """Finished batch as metrics count it, with the sums for logs and progress bars."""

    scored: int
    failed: int
    quarantined: int
    stale: int


@dataclass(frozen=True, slots=True)
class ScoreTotals:
    """Sums over batches."""

    scored: int = 0
    failed: int = 0
    quarantined: int = 0

    def plus(self, report: BatchReport | None) -> "ScoreTotals":
        """Add a batch, where one was written."""
        if report is None:
            return self
        quarantined = self.quarantined + report.quarantined
        return ScoreTotals(self.scored + report.scored, self.failed + report.failed, quarantined)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of a batch on the device, with times; ``short`` marks a shortage of memory."""

    version: versions.Version
    scored: list[results.Scored]
    by_members: list[tuple[versions.Version, list[results.Scored]]]
    failures: list[queue.Failure]
    decode_s: list[float]
    wait_s: float
    predict_s: float
    short: bool


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Put the outcomes of several batches of one version together; each has the same members."""
    members = [version for version, _ in outcomes[0].by_members]
    by_members = [(version, [s for one in outcomes for s in one.by_members[i][1]]) for i, version in enumerate(members)]
    return Outcome(
        outcomes[0].version,
        [scored for one in outcomes for scored in one.scored],
        by_members,
        [failure for one in outcomes for failure in one.failures],
        [seconds for one in outcomes for seconds in one.decode_s],
        sum(one.wait_s for one in outcomes),
        sum(one.predict_s for one in outcomes),
        any(one.short for one in outcomes),
    )


def report_of(lease: queue.Lease, model: str, outcome: Outcome, done: results.Finished, now: datetime) -> BatchReport:
    """Count a batch that was written."""
    mine = [claim for claim in lease.claims if claim.image_id in done.held]
    given_up = {claim.image_id for claim in mine} & done.given_up
    became = {failure.claim.image_id: "retried" for failure in outcome.failures} | dict.fromkeys(
        given_up, "quarantined"
    )
    stale = [(claim.source, "stale") for claim in lease.claims if claim.image_id not in done.held]
    return BatchReport(
        model=model,
        scored=done.scored,
        failed=done.failed,
        quarantined=done.quarantined,
        stale=done.stale,
        wait_s=outcome.wait_s,
        predict_s=outcome.predict_s,
        outcomes=Counter([*((claim.source, became.get(claim.image_id, "scored")) for claim in mine), *stale]),
        decode_s=outcome.decode_s,
        delays_s=[
            (now - claim.enqueued_at).total_seconds()
            for claim in mine
            if claim.priority == queue.NEW and claim.image_id not in became
        ],
        lapsed=sum(claim.lapsed for claim in lease.claims),
    )


def log_batch(report: BatchReport, failures: Sequence[queue.Failure]) -> None:
    """Write a batch and what failed in it to the log."""
    log.info(
        "batch scored",
        model=report.model,
        scored=report.scored,
        failed=report.failed,
        stale=report.stale,
        wait_s=round(report.wait_s, 3),
        predict_s=round(report.predict_s, 3),
    )
    waiting = [failure for failure in failures if not failure.counts]
    if waiting:
        log.warning("images wait", images=len(waiting), error=waiting[0].error)
    for failure in failures:
        if failure.counts:
            log.warning("image failed", path=failure.claim.path, attempt=failure.claim.attempts, error=failure.error)
