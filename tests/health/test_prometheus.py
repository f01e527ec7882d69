"""What Prometheus reads; and that the alerts and the dashboard ask for what is there."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import promql_parser
import pytest
import standings
import yaml
from prometheus_client.parser import text_string_to_metric_families

from marcod import counters
from marcod.database.engine import Database
from marcod.errors import ConfigError, MarcodError
from marcod.health import snapshot
from marcod.health.prometheus import Monitor
from marcod.settings import MetricsSettings

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
FOLDER = Path(__file__).parent.parent.parent / "docs" / "monitoring"
Shown = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Clock:
    """Time that goes by when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def samples(text: str) -> Shown:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def named(shown: Shown) -> set[str]:
    return {name for name, _ in shown}


@pytest.fixture
def seen(db: Database) -> snapshot.StatusSnapshot:
    standings.populate(db, NOW)
    return db.read(lambda c: snapshot.take_snapshot(c, NOW))


def of(shown: Shown, name: str, **labels: str) -> float:
    return shown[name, frozenset(labels.items())]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_figures_of_the_database(seen: snapshot.StatusSnapshot) -> None:
    monitor = Monitor(MetricsSettings())
    monitor.update(seen, NOW)
    shown = samples(monitor.text())
    at = NOW.timestamp()
    assert of(shown, "marcod_snapshot_timestamp_seconds") == at
    assert of(shown, "marcod_queue_jobs", kind="new", state="waiting") == 3
    assert of(shown, "marcod_queue_jobs", kind="rescore", state="waiting") == 8
    assert of(shown, "marcod_queue_oldest_timestamp_seconds", kind="new") == at - 3600
    assert of(shown, "marcod_quarantined_images", source="minstrel") == of(shown, "marcod_failed_images") == 1
    assert of(shown, "marcod_quarantined_images", source="rock-imager") == 0
    assert of(shown, "marcod_workers", role="score") == 1
    assert of(shown, "marcod_workers", role="trainer") == 0
    assert of(shown, "marcod_model_info", alias="champion", model="marco:1", synthetic="true") == 1
    assert of(shown, "marcod_drift_alarm", source="minstrel", modality="visible", signal="brightness") == 1
    assert of(shown, "marcod_source_up", source="rock-imager") == 0
    assert of(shown, "marcod_source_backlog_files", source="minstrel", state="settling") == 3
    assert of(shown, "marcod_source_last_scan_timestamp_seconds", source="minstrel", scan="changed") == at - 40
    not_read = {"source": "rock-imager", "kind": "ignored"}
    assert of(shown, "marcod_source_files", **not_read, reason="not_this_layout", attention="true") == 288
    assert of(shown, "marcod_source_files", **not_read, reason="out_of_range", attention="false") == 2
    assert of(shown, "marcod_notifications_unsent", target="lims") == 1
    assert of(shown, "marcod_training_run_info", run="1", state="failed") == 1


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_is_old_is_not_shown(seen: snapshot.StatusSnapshot) -> None:
    clock = Clock()
    monitor = Monitor(MetricsSettings(every_s=15.0), clock)
    assert "marcod_snapshot_timestamp_seconds" not in named(samples(monitor.text()))
    monitor.update(seen, NOW)
    clock.now += 150
    assert "marcod_queue_jobs" in named(samples(monitor.text()))
    clock.now += 1
    left = named(samples(monitor.text()))
    assert "marcod_queue_jobs" not in left
    assert {"marcod_snapshot_timestamp_seconds", "marcod_lease_lapses_total", "process_open_fds"} <= left


@pytest.fixture
def served() -> Iterator[tuple[Monitor, int]]:
    port = free_port()
    monitor = Monitor(MetricsSettings(port=port))
    monitor.serve()
    yield monitor, port
    monitor.close()


@pytest.mark.slow
def test_prometheus_is_answered(served: tuple[Monitor, int]) -> None:
    monitor, port = served
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        shown = named(samples(answer.read().decode()))
    assert {"marcod_build_info", "process_resident_memory_bytes"} <= shown
    with pytest.raises(ConfigError, match=f"metrics.port: {port} on 127.0.0.1 is in use; .*MARCOD_METRICS__PORT"):
        Monitor(MetricsSettings(port=port)).serve()
    monitor.close()
    again = Monitor(MetricsSettings(port=port))
    again.serve()
    again.close()


def test_an_address_that_is_not_ours_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"metrics.address: 192.0.2.1:\d+ cannot be listened on: "):
        Monitor(MetricsSettings(port=free_port(), address="192.0.2.1")).serve()


def test_nothing_is_served_or_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    monitor = Monitor(MetricsSettings())
    monitor.serve()
    monitor.write_textfile()
    monitor.close()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_text_file_is_replaced_whole(seen: snapshot.StatusSnapshot, tmp_path: Path) -> None:
    target = tmp_path / "collector" / "marcod.prom"
    monitor = Monitor(MetricsSettings(textfile=target))
    with pytest.raises(MarcodError, match=r"metrics.textfile: .*marcod.prom cannot be written: No such file"):
        monitor.write_textfile()
    target.parent.mkdir()
    monitor.write_textfile()
    assert "marcod_queue_jobs" not in target.read_text()
    target.chmod(0o600)
    monitor.update(seen, NOW)
    monitor.write_textfile()
    shown = named(samples(target.read_text()))
    assert {"marcod_queue_jobs", "marcod_build_info"} <= shown
    # node-exporter has such figures of its own, and would refuse the file.
    assert not [name for name in shown if not name.startswith("marcod_")]
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "grafana.json").read_text()))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    marks = [mark["expr"] for mark in dashboard()["annotations"]["list"]]
    return sorted({*asked, *marks, *(rule["expr"] for rule in rules())})


@pytest.fixture
def shown(seen: snapshot.StatusSnapshot) -> Shown:
    """All that a process can show."""
    outcomes = {("minstrel", "scored"): 1}
    counters.batch(counters.Batch("m:1", outcomes, 1, 1, decode_s=[1], delays_s=[1], lapsed=1))
    counters.loop_failed("score")
    monitor = Monitor(MetricsSettings())
    monitor.update(seen, NOW + timedelta(seconds=1))
    return samples(monitor.text())


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_alerts_and_dashboard_ask_for_what_is_there(shown: Shown) -> None:
    labels: dict[str, set[str]] = {}
    for name, pairs in shown:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    asked: set[str] = set()
    for expression in expressions():
        for selector in selectors(expression):
            asked.add(selector.name)
            assert selector.name in labels, f"{selector.name} of {expression}"
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels[selector.name], f"{matcher.name} of {expression}"
        for grouped in grouping(expression):
            known = {"instance", "job"}.union(*(labels[s.name] for s in selectors(expression)))
            assert grouped in known, f"{grouped} of {expression}"
    # And the other way round: what nobody looks at need not be counted.
    ours = {name.removesuffix("_sum").removesuffix("_count") for name in labels if name.startswith("marcod_")}
    unseen = {name for name in ours if name not in asked and f"{name}_bucket" not in asked}
    assert unseen == {"marcod_queue_lapsed_jobs", "marcod_last_score_timestamp_seconds", "marcod_source_walked_files"}


def parts(expression: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: found.append(node) or True)
    return found


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    return [node for node in parts(expression) if isinstance(node, promql_parser.VectorSelector)]


def grouping(expression: str) -> list[str]:
    """Labels by which an expression adds up."""
    sums = [node for node in parts(expression) if isinstance(node, promql_parser.AggregateExpr)]
    return [label for node in sums if node.modifier is not None for label in node.modifier.labels]


def test_the_alerts_are_complete() -> None:
    for rule in rules():
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    [chosen] = dashboard()["templating"]["list"]
    assert (chosen["type"], chosen["query"]) == ("datasource", "prometheus")
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
