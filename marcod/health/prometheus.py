"""Metrics for Prometheus: this process's own counts, and the latest snapshot of the database.

A scrape asks the database nothing: it gets the latest snapshot that :meth:`Monitor.update` was given, and none older
than ten times ``metrics.every_s``, because old figures that seem fresh are worse than none. Several processes may give
figures of the database; the alert rules and the dashboard (``docs/monitoring``) take one of them.
"""

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from marcod import counters, files
from marcod.errors import ConfigError, MarcodError, os_reason
from marcod.health import checks, snapshot
from marcod.health.snapshot import StatusSnapshot
from marcod.settings import ROLES, MetricsSettings

LOOKS: Final = 10
"""A look at the database is shown until it is this many pauses between looks old."""

CLIENT_S: Final = 10.0
"""A client that says nothing for this long is hung up on."""


class Monitor:
    """Exporter of one process. ``clock`` is monotonic, in seconds; it tells how old a look at the database is."""

    def __init__(self, settings: MetricsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._latest = _Latest(LOOKS * settings.every_s, clock)
        self._ours = _registry(counters.REGISTRY, self._latest)
        self._all = _registry(counters.REGISTRY, counters.PROCESS, self._latest)
        self._server: WSGIServer | None = None

    def update(self, seen: StatusSnapshot, now: datetime) -> None:
        """Show this look at the database, taken at ``now``, from here on."""
        self._latest.put(seen, now)

    def text(self) -> str:
        """Everything that this process shows, in Prometheus's text format."""
        return generate_latest(self._all).decode()

    def serve(self) -> None:
        """Answer Prometheus on a thread of its own, where a port is set. Raises ConfigError when it cannot be had."""
        if self._settings.port is None or self._server is not None:
            return
        address, port = self._settings.address, self._settings.port
        try:
            self._server, _ = start_http_server(port, address, self._all)
        except OSError as error:
            raise ConfigError(_refused(address, port, error)) from error
        # The library waits for a silent client for ever, each on a thread of its own.
        self._server.RequestHandlerClass.timeout = CLIENT_S  # type: ignore[attr-defined]

    def write_textfile(self) -> None:
        """Write the file for node-exporter whole or not at all, where one is set. Raises MarcodError.

        Without ``process_`` figures, because node-exporter has its own of those names.
        """
        if self._settings.textfile is not None:
            target = self._settings.textfile
            try:
                files.write_whole(target, generate_latest(self._ours), mode=0o644)
            except OSError as error:
                raise MarcodError(f"metrics.textfile: {target} cannot be written: {os_reason(error)}") from error

    def close(self) -> None:
        """Stop the endpoint. The text file stays; its time tells that nobody writes it."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _registry(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


def _refused(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"metrics.port: {port} on {address} is in use; give each process on a host its own, "
            "such as MARCOD_METRICS__PORT in its unit"
        )
    key = "port" if error.errno == errno.EACCES else "address"
    return f"metrics.{key}: {address}:{port} cannot be listened on: {error.strerror}"


class _Latest(Collector):
    """The latest look at the database, as figures; its parts are replaced at once, so that scrapes need no lock."""

    def __init__(self, fresh_s: float, clock: Callable[[], float]) -> None:
        self._fresh_s = fresh_s
        self._clock = clock
        self._seen: tuple[StatusSnapshot, datetime, float] | None = None

    def put(self, seen: StatusSnapshot, now: datetime) -> None:
        self._seen = (seen, now, self._clock())

    def collect(self) -> Iterable[Metric]:
        if self._seen is None:
            return
        seen, now, at = self._seen
        yield _gauge("snapshot_timestamp_seconds", "When the database was last looked at", now)
        if self._clock() - at <= self._fresh_s:
            for part in _PARTS:
                yield from part(seen)


Figure = float | datetime | None


def _gauge(name: str, help_text: str, samples: Mapping[Any, Figure] | Figure, *labels: str) -> Metric:
    """Return a gauge of marcod's: one figure, or figures by the value of a label or by the values of several.

    Times become seconds since 1970, and what is None is left out.
    """
    family = GaugeMetricFamily(f"marcod_{name}", help_text, labels=labels)
    for values, figure in samples.items() if isinstance(samples, Mapping) else [((), samples)]:
        if figure is not None:
            number = figure.timestamp() if isinstance(figure, datetime) else float(figure)
            family.add_metric(values if isinstance(values, tuple) else (values,), number)
    return family


def _queue(seen: StatusSnapshot) -> Iterator[Metric]:
    kinds = {"new": seen.new, "rescore": seen.rescore}
    states = ("waiting", "leased", "retrying")
    counts = {(kind, state): getattr(jobs, state) for kind, jobs in kinds.items() for state in states}
    yield _gauge("queue_jobs", "Images in the queue", counts, "kind", "state")
    oldest = {kind: jobs.oldest_at for kind, jobs in kinds.items()}
    about = "Since when the longest waiting image could have been scored; none when none waits"
    yield _gauge("queue_oldest_timestamp_seconds", about, oldest, "kind")
    left = {(str(one.id), one.model, str(one.state)): one.left for one in seen.rescores}
    about = "Images that a rescore of an archive has to score yet, which are not in the queue"
    yield _gauge("rescore_left_images", about, left, "rescore", "model", "state")
    yield _gauge("queue_lapsed_jobs", "Waiting images whose worker let its lease run out", seen.lapsed)
    yield _gauge("failed_images", "Images in quarantine", seen.failed)
    yield _gauge("gone_images", "Images whose files went before anything scored them", seen.gone)
    latest = {source: seen.quarantined.get(source, 0) for source in seen.sources}
    about = f"The latest {snapshot.QUARANTINED} images in quarantine, by source"
    yield _gauge("quarantined_images", about, latest, "source")
    yield _gauge("last_score_timestamp_seconds", "When the latest score was written", seen.last_scored_at)


def _who(seen: StatusSnapshot) -> Iterator[Metric]:
    roles = dict.fromkeys(ROLES, 0) | snapshot.roles(seen.workers)
    yield _gauge("workers", "Processes that are alive", roles, "role")
    serving = {alias: v for alias, v in (("champion", seen.champion), ("challenger", seen.challenger)) if v}
    info = {(alias, version.model, str(version.synthetic).lower()): 1 for alias, version in serving.items()}
    yield _gauge("model_info", "The model versions that score new images", info, "alias", "model", "synthetic")
    since = {alias: version.since for alias, version in serving.items()}
    yield _gauge("model_since_timestamp_seconds", "Since when they do", since, "alias")
    far = {} if seen.coming is None else {"done": seen.coming.done, "all": seen.coming.plates}
    yield _gauge("promotion_plates", "Plates worked out for the version that becomes champion, and all", far, "state")
    if (run := seen.training) is not None:
        yield _gauge("training_run_info", "The latest training run", {(str(run.id), run.state): 1}, "run", "state")
        times = {"started": run.started_at, "beat": run.beat_at, "ended": run.ended_at}
        yield _gauge("training_run_timestamp_seconds", "When it began, showed life, ended", times, "event")


def _drift(seen: StatusSnapshot) -> Iterator[Metric]:
    # One line per set of labels: a former champion's alarm may still be open next to the present one's.
    alarms = dict.fromkeys(sorted({(a.source, a.modality, a.signal) for a in seen.alarms}), 1)
    yield _gauge("drift_alarm", "Open drift alarms; see marcod drift", alarms, "source", "modality", "signal")


def _watch(seen: StatusSnapshot) -> Iterator[Metric]:
    def one(name: str, help_text: str, attribute: str) -> Metric:
        return _gauge(name, help_text, {s.source: getattr(s, attribute) for s in seen.watched}, "source")

    def each(name: str, help_text: str, label: str, attributes: Mapping[str, str]) -> Metric:
        found = {(s.source, value): getattr(s, name) for s in seen.watched for value, name in attributes.items()}
        return _gauge(name, help_text, found, "source", label)

    yield one("source_up", "Whether the root of a source is there", "root_there")
    yield one("source_observer_up", "Whether its observer works; without, files are found by scans", "observing")
    backlog = {"settling": "pending", "incomplete": "waiting"}
    yield each("source_backlog_files", "Files seen and not yet queued", "state", backlog)
    yield one("source_walking", "Whether a scan is under way", "walking")
    yield one("source_walked_files", "How far the scan under way is, or how far the last one came", "walked_files")
    yield one("source_unreadable_folders", "Folders that the last scan could not list", "unreadable")
    scans = {"changed": "walked_at", "whole": "walked_whole_at"}
    yield each("source_last_scan_timestamp_seconds", "When a scan of this scope last ended well", "scan", scans)
    yield one("source_round_timestamp_seconds", "When its watching thread last showed life", "round_at")
    yield one("source_report_timestamp_seconds", "When its watcher last wrote all this", "updated_at")


def _findings(seen: StatusSnapshot) -> Iterator[Metric]:
    counts = {(f.source, f.kind, f.reason, str(f.attention).lower()): f.files for f in seen.findings}
    about = "Images that a layout does not read (ignored) or warns of (warning)"
    yield _gauge("source_files", about, counts, "source", "kind", "reason", "attention")


def _notify(seen: StatusSnapshot) -> Iterator[Metric]:
    for name, help_text, attribute in (
        ("unsent", "That wait to be sent", "unsent"),
        ("oldest_timestamp_seconds", "When the oldest event happened that waits to be sent", "oldest_at"),
        ("given_up", f"Given up, of the events of the last {snapshot.GIVEN_UP_AGE.days} days", "given_up"),
    ):
        figures = {target: getattr(box, attribute) for target, box in seen.outbox.items()}
        yield _gauge(f"notifications_{name}", help_text, figures, "target")
    yield _gauge("events_untold", "Events not handed to their targets yet", seen.untold)


def _troubles(seen: StatusSnapshot) -> Iterator[Metric]:
    counts = dict(sorted(checks.counts(checks.troubles(seen)).items()))
    about = "Troubles that need a person, as marcod status and doctor show them"
    yield _gauge("trouble", about, counts, "check", "source", "target")


_PARTS: Final = (_troubles, _queue, _who, _drift, _watch, _findings, _notify)
