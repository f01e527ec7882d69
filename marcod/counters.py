"""Counters of this process for Prometheus: images by outcome, batches, delays, lapses, failed loops.

The loops report plain values and need no client library. Counts begin at zero with the process and are
never written to the database; the state of queue and watching is read from there, by ``marcod.health.prometheus``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from marcod import __version__

REGISTRY: Final = CollectorRegistry()
"""Counters of marcod in this process; nothing else is in it."""

PROCESS: Final = CollectorRegistry()
"""Memory, processor time and open files of this process, under the names that every exporter uses for its own."""

OUTCOMES: Final = ("scored", "retried", "quarantined", "stale")
"""Outcomes of a claimed image; a stale one was no longer ours when it was finished."""

BATCH_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
DECODE_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
DELAY_S: Final = (0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 86_400)

# Every counter would have a second series with the time at which it began, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_images = Counter("marcod_images", "Images that this process finished", ("source", "outcome"), registry=REGISTRY)
_batch = Histogram(
    "marcod_batch_seconds", "Time of a batch: waiting for its images to be read and decoded, and on the device",
    ("model", "stage"), buckets=BATCH_S, registry=REGISTRY,
)  # fmt: skip
_decode = Histogram("marcod_decode_seconds", "Time to read and decode one image", buckets=DECODE_S, registry=REGISTRY)
_delay = Histogram(
    "marcod_file_to_score_seconds", "From a new image's file to its score in the database", buckets=DELAY_S,
    registry=REGISTRY,
)  # fmt: skip
_lapses = Counter("marcod_lease_lapses", "Images taken over from a worker whose lease had lapsed", registry=REGISTRY)
_failures = Counter("marcod_loop_failures", "Failures after which a loop began again", ("loop",), registry=REGISTRY)
_build = Gauge("marcod_build_info", "The marcod that runs", ("version",), registry=REGISTRY)
_build.labels(__version__).set(1)
ProcessCollector(registry=PROCESS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished batch; times in seconds.

    ``outcomes`` counts images by source and one of :data:`OUTCOMES`; ``decode_s`` has a time for every image that
    was read, ``delays_s`` the time from file to score of every new one, which clocks that differ may make negative;
    ``lapsed`` images were taken over from a worker whose lease had lapsed.
    """

    model: str
    outcomes: Mapping[tuple[str, str], int]
    wait_s: float
    predict_s: float
    decode_s: Sequence[float]
    delays_s: Sequence[float]
    lapsed: int


def batch(done: Batch) -> None:
    """Count a finished batch."""
    for source in {source for source, _ in done.outcomes}:
        for outcome in OUTCOMES:
            # Also those of zero: an increase is only seen in a series that was there before.
            _images.labels(source, outcome).inc(done.outcomes.get((source, outcome), 0))
    _batch.labels(done.model, "wait").observe(done.wait_s)
    _batch.labels(done.model, "predict").observe(done.predict_s)
    for seconds in done.decode_s:
        _decode.observe(seconds)
    for seconds in done.delays_s:
        _delay.observe(max(0.0, seconds))
    _lapses.inc(done.lapsed)


def loops(names: Iterable[str]) -> None:
    """Name the loops of this process, so that the first failure of one is seen as an increase."""
    for name in names:
        _failures.labels(name)


def loop_failed(name: str) -> None:
    """Count a failure after which a loop begins again."""
    _failures.labels(name).inc()
