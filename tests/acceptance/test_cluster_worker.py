"""The real program as a job of a cluster: exit codes, names, time limits, signals."""

import json
import signal
import subprocess
import sys

import pytest
from lab import Delivery, Site
from waiting import wait_until

from marcod import app
from marcod.settings.environment import child_environment

ONE_DATABASE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
WORK_LEFT = 75


@pytest.fixture
def waiting(site: Site, deliveries: dict[str, Delivery]) -> int:
    """How many images of a plate wait."""
    root = site.folder / "minstrel"
    deliveries["minstrel"].write(root)
    site.add_source("minstrel", root, "rigaku")
    site.write(score={"batch_size": 1, "decode_threads": 1})
    site.ok("scan")
    return site.count("job")


def start(site: Site, *options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), "score", "--json", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment(**variables)
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, int]:
    """Exit code, why it ended, and how many images it scored."""
    said, errors = process.communicate(timeout=120)
    assert said, errors
    document = json.loads(said)
    return process.returncode, document["ended"], document["tally"]["scored"]


def leased(site: Site) -> int:
    return int(site.rows("select count(*) from job where lease is not null")[0][0])


@pytest.mark.slow
def test_a_worker_of_slurm_ends_with_0_when_nothing_is_left(site: Site, waiting: int) -> None:
    process = start(site, "--until-empty", SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="3", SLURM_JOB_ID="20")
    wait_until(lambda: site.count("worker"), "its heartbeat")
    [(name, roles)] = site.rows("select name, roles from worker")
    assert name.split(":")[2] == "slurm-17_3"
    assert roles == "score"
    assert "slurm-17_3" in site.ok("status")
    assert ended(process) == (0, "empty", waiting)
    assert site.count("worker") == 0


@ONE_DATABASE
@pytest.mark.slow
def test_a_worker_whose_time_is_up_ends_with_75_and_holds_nothing(site: Site, waiting: int) -> None:
    """Before it has loaded its model, so that everything is left."""
    assert ended(start(site, "--max-minutes", "0.0001")) == (WORK_LEFT, "time", 0)
    assert leased(site) == 0
    assert site.count("job") == waiting


@pytest.mark.slow
def test_a_worker_that_is_stopped_gives_back_what_it_holds(site: Site, waiting: int) -> None:
    process = start(site, "--until-empty")
    wait_until(lambda: site.count("score"), "the first score")
    process.send_signal(signal.SIGTERM)
    code, why, scored = ended(process)
    assert leased(site) == 0
    assert site.count("score") == scored
    assert (code, why) == ((WORK_LEFT, "signal") if scored < waiting else (0, "empty"))


def test_idle_belongs_to_until_empty(site: Site) -> None:
    site.write()
    refused = site.call("score", "--idle", "5")
    assert refused.exit_code == 2
    assert "--idle belongs to --until-empty" in refused.output


@pytest.mark.parametrize(
    ("variables", "task"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "slurm-12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "slurm-12_0"),
        ({"SLURM_JOB_ID": "12", "SLURM_PROCID": "3"}, "slurm-12.3"),
        ({"POD_NAME": "marcod-score-7d9f"}, "pod-marcod-score-7d9f"),
    ],
)
def test_the_name_of_a_worker_has_its_task_of_a_batch_system(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], task: str | None
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "POD_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    parts = app.worker_name().split(":")
    assert (parts[2] if len(parts) == 4 else None) == task
    assert app.worker_name() != app.worker_name()
