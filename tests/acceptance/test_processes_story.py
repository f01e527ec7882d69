"""`marcod retrain` by two processes: one is killed, the same call goes on, and the gate judges as ever."""

import json
import subprocess
import sys
from pathlib import Path

import learner
import pytest
from lab import Site
from training_processes import kill_second, workers
from waiting import wait_until

from marcod.errors import TRY_AGAIN
from marcod.settings.environment import child_environment

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_run_of_two_processes_survives_the_death_of_one(site: Site) -> None:
    learner.teach(site, learner.make(site, promotion="manual", all_crystals=10, epochs=1, batch_size=8))
    errors = site.folder / "errors.txt"
    with errors.open("w") as stream:
        process = subprocess.Popen(command(site), env=child_environment(), stdout=subprocess.DEVNULL, stderr=stream)
    wait_until(lambda: 1 in workers(site.folder), "the second process", 300)
    kill_second(site.folder)
    assert process.wait() == TRY_AGAIN, errors.read_text()
    assert "marcod: process 1 of 2 was ended by SIGKILL, and the others with it" in errors.read_text()
    assert not workers(site.folder)
    assert site.rows("select state from training_run") == [("running",)]
    again = subprocess.run([*command(site), "--json"], env=child_environment(), stdout=subprocess.PIPE, check=False)
    run = json.loads(again.stdout)
    assert (run["id"], run["tier"], run["candidate"]) == (1, "all", "lab:1")
    assert run["state"] in ("recommended", "refused")
    assert {check["name"] for check in run["numbers"]["gate"]["checks"]} >= {"parity", "golden images"}
    [point] = json.loads((Path(run["folder"]) / "curve.json").read_text())["curve"]
    assert point["epoch"] == 1


def command(site: Site) -> list[str]:
    return [sys.executable, "-m", "marcod", "--config", str(site.config), "retrain", "--processes", "2"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_more_processes_than_tasks_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"JOB_ID": "7", "STEP_ID": "0", "STEP_NUM_TASKS": "2", "PROCID": "1"}
    site.write(train={"folder": str(site.folder / "training")}, models={"folder": str(site.folder / "models")})
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    result = site.call("retrain", "--processes", "3")
    assert result.exit_code == 2
    assert "srun started 2 tasks, and each is a process; leave --processes 3 out" in result.output
