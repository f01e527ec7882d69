"""Checks of health: each trouble looks the same to status, doctor, the metrics and the alert rules."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import factories
import promql_parser
import pytest
import standings
import yaml
from prometheus_client.parser import text_string_to_metric_families

from marcod.database import migrate, workers
from marcod.database.engine import Database
from marcod.health import checks, doctor
from marcod.health.finding import HealthFinding, Severity
from marcod.health.prometheus import Monitor
from marcod.health.snapshot import Coming, HeldUp, Jobs, Outbox, StatusSnapshot, take_snapshot
from marcod.settings import MetricsSettings, Settings
from marcod.store import campaigns
from marcod.watch import status

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ALERTS = Path(__file__).parent.parent.parent / "docs" / "monitoring" / "alerts.yml"
JUST_OVER = timedelta(seconds=1)

WITHOUT_ALERT: Final = {"quarantine"}
"""MarcodQuarantineGrows tells when many images go there at once; one alone wakes nobody up."""


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[StatusSnapshot]:
    """A lab with alarms, findings and a training run."""
    other = Database(f"sqlite:///{tmp_path / 'troubled.sqlite'}")
    migrate.upgrade(other)
    standings.populate(other, NOW)
    yield other.read(take_snapshot, NOW)
    other.close()


@pytest.fixture
def healthy(db: Database) -> StatusSnapshot:
    """A lab that is well: a champion of photographs, one watched imager, a process with every role."""
    factories.promote(db, factories.register(db, synthetic=False), NOW)
    factories.register_source(db, "minstrel")
    db.write(lambda c: status.write(c, [standings.state("minstrel", NOW)], NOW))
    for at in (NOW - timedelta(hours=1), NOW):
        db.write(lambda c, at=at: workers.beat(c, "w", "host", 1, "watch,score,schedule", at))
    return db.read(take_snapshot, NOW)


def over(name: str) -> datetime:
    """A time that lies just beyond a check's limit."""
    limit = checks.CHECKS[name].limit
    assert limit is not None
    return NOW - limit - JUST_OVER


def watched(**more: object) -> Callable[[StatusSnapshot], dict[str, object]]:
    def change(seen: StatusSnapshot) -> dict[str, object]:
        return {"watched": (replace(seen.watched[0], **more),)}

    return change


def roles(names: str) -> Callable[[StatusSnapshot], dict[str, object]]:
    return lambda seen: {"workers": (replace(seen.workers[0], roles=names),)}


def trained(troubled: StatusSnapshot, **more: object) -> dict[str, object]:
    assert troubled.training is not None
    return {"training": replace(troubled.training, **more)}  # type: ignore[arg-type]


def rescore(created_at: datetime) -> campaigns.Campaign:
    """A rescore that nobody works on."""
    counts = {"images": 9, "done": 3, "scored": 3, "ranges": 1, "held": 0}
    state = campaigns.State.RUNNING
    return campaigns.Campaign(
        1, "marco:1", None, None, state, "ann", created_at, None, error=None, images_per_s=None, **counts
    )


def changes(troubled: StatusSnapshot) -> dict[str, Callable[[StatusSnapshot], dict[str, object]]]:
    """For every check, the fields of a healthy lab's snapshot that make its trouble."""
    box = Outbox(unsent=1, oldest_at=None, given_up=0)
    return {
        "no_champion": lambda _: {"champion": None},
        "synthetic_champion": lambda seen: {"champion": replace(seen.champion, synthetic=True)},  # type: ignore[type-var]
        "promotion_stands": lambda _: {"coming": Coming("marco:1", 1204, 30_000, NOW, over("promotion_stands"))},
        "nothing_runs": lambda _: {"workers": ()},
        "no_scorer": roles("watch,schedule"),
        "no_watcher": roles("score,schedule"),
        "no_schedule": roles("watch,score"),
        "images_wait": lambda _: {"new": Jobs(1, 0, 0, over("images_wait"))},
        "rescore_stands": lambda _: {"rescores": (rescore(over("rescore_stands")),)},
        "held_up": lambda _: {"held_up": (HeldUp("too little memory", 3),)},
        "quarantine": lambda _: {"failed": 1},
        "images_gone": lambda _: {"gone": 1},
        "drift": lambda _: {"alarms": troubled.alarms},
        "notifications_stuck": lambda _: {"outbox": {"lims": replace(box, oldest_at=over("notifications_stuck"))}},
        "notifications_given_up": lambda _: {"outbox": {"lims": replace(box, given_up=2)}},
        "training_failed": lambda _: trained(troubled, state="abandoned"),
        "training_silent": lambda _: trained(troubled, state="running", ended_at=None, beat_at=over("training_silent")),
        "watcher_silent": watched(updated_at=over("watcher_silent")),
        "root_offline": watched(root_there=False),
        "watcher_hangs": watched(round_at=over("watcher_hangs")),
        "no_scan": watched(walked_at=over("no_scan")),
        "unreadable_folders": watched(unreadable=2),
        "observer": watched(trouble="no inotify watches left"),
        "left_to_others": lambda seen: {
            "workers": tuple(replace(w, left_to_others={"minstrel": "its root lists nothing"}) for w in seen.workers)
        },
        "unread_files": lambda _: {"findings": (replace(troubled.findings[0], source="minstrel"),)},
    }


def doctor_finds(db: Database, seen: StatusSnapshot) -> list[HealthFinding]:
    """What the doctor finds that is not well; this host has no imager configured and no model files."""
    found = doctor.work_at(db, Settings(), seen, device=False)
    return [one for one in found if one.verdict is not Severity.OK]


def shown(seen: StatusSnapshot) -> list[Any]:
    monitor = Monitor(MetricsSettings())
    monitor.update(seen, NOW)
    families = text_string_to_metric_families(monitor.text())
    return [sample for family in families for sample in family.samples]


def open_checks(seen: StatusSnapshot) -> set[str]:
    """Checks with a trouble, as the metric tells them."""
    return {s.labels["check"] for s in shown(seen) if s.name == "marcod_trouble" and s.value > 0}


def alerts() -> dict[str, list[promql_parser.VectorSelector]]:
    """The series that each alert asks for, of those alerts that go by a check."""
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    asked = {rule["alert"]: selectors(rule["expr"]) for rule in group["rules"]}
    return {name: found for name, found in asked.items() if any(s.name == "marcod_trouble" for s in found)}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: found.append(node) or True)
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


def matches(selector: promql_parser.VectorSelector, name: str, labels: MappingProxyType[str, str]) -> bool:
    wanted = selector.matchers.matchers
    return selector.name == name and all(re.fullmatch(m.value, labels.get(m.name, "")) for m in wanted)


def alerts_on(check: str) -> set[str]:
    labels = MappingProxyType({"check": check})
    return {name for name, asked in alerts().items() if any(matches(s, "marcod_trouble", labels) for s in asked)}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_healthy_lab_has_no_trouble(db: Database, healthy: StatusSnapshot) -> None:
    assert checks.troubles(healthy) == []
    assert open_checks(healthy) == set()
    assert {one.area for one in doctor_finds(db, healthy)} <= {"sources", "models"}
    assert {s.labels["check"] for s in shown(healthy) if s.name == "marcod_trouble"} == set(checks.CHECKS)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.slow
def test_each_trouble_is_one_for_status_doctor_metric_and_alert(
    db: Database, healthy: StatusSnapshot, troubled: StatusSnapshot
) -> None:
    every = changes(troubled)
    assert set(every) == set(checks.CHECKS)
    before = doctor_finds(db, healthy)
    for name, change in every.items():
        seen = replace(healthy, **change(healthy))
        [trouble] = checks.troubles(seen)
        assert trouble.check.name == name
        assert [one for one in doctor_finds(db, seen) if one not in before] == [trouble.finding], name
        assert open_checks(seen) == {name}
        samples = shown(seen)
        firing = alerts_on(name)
        assert bool(firing) is (name not in WITHOUT_ALERT), name
        for asked in (alerts()[alert] for alert in firing):
            for selector in asked:
                assert any(matches(selector, s.name, s.labels) for s in samples), f"{selector.name} of {name}"


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_is_at_its_limit_is_well(healthy: StatusSnapshot) -> None:
    [state] = healthy.watched

    def at(name: str) -> datetime:
        return over(name) + JUST_OVER

    seen = replace(
        healthy,
        new=Jobs(1, 0, 0, at("images_wait")),
        outbox={"lims": Outbox(1, at("notifications_stuck"), 0)},
        watched=(
            replace(state, updated_at=at("watcher_silent"), round_at=at("watcher_hangs"), walked_at=at("no_scan")),
        ),
    )
    assert checks.troubles(seen) == []


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_rescore_that_waits_behind_one_in_work_is_well(healthy: StatusSnapshot) -> None:
    waiting = rescore(over("rescore_stands"))
    assert [one.check.name for one in checks.troubles(replace(healthy, rescores=(waiting,)))] == ["rescore_stands"]
    first = replace(waiting, id=2, held=1)
    assert checks.troubles(replace(healthy, rescores=(first, waiting))) == []


def test_alerts_name_checks_that_exist() -> None:
    for name, asked in alerts().items():
        for selector in asked:
            for matcher in selector.matchers.matchers:
                if matcher.name == "check":
                    assert set(matcher.value.split("|")) <= set(checks.CHECKS), name


def test_the_documentation_names_every_check_with_its_limit() -> None:
    page = (ALERTS.parent.parent / "monitoring.md").read_text()
    cells = [line.split("|")[1:] for line in page.splitlines() if line.startswith("| `")]
    rows = {row[0].strip("` "): row[1:] for row in cells}
    for name, check in checks.CHECKS.items():
        limit = "" if check.limit is None else checks.age(NOW - check.limit, NOW)
        assert (rows[name][0].strip(), rows[name][1].strip()) == (check.verdict, limit), name
