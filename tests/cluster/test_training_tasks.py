"""Tasks of a job step are the processes of one training; the batch script is none of them."""

import sys
from pathlib import Path

import learner
import pytest
from lab import Site
from slurm import Slurm, marcod_program
from training_processes import kill_second, workers
from waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ASK = "from marcod.settings import environment; print(environment.slurm_task(), environment.card_of(0))"


def test_each_task_of_a_step_is_a_process_with_a_card_of_its_own(slurm: Slurm) -> None:
    script = slurm.folder / "train.sbatch"
    ask = f'{sys.executable} -c "{ASK}"'
    log = slurm.folder / "marcod-train.log"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --ntasks=2 --gpus-per-task=1 --output={log}\n{ask}\nsrun {ask}\nsrun {ask}\n"
    )
    job = slurm.submit(script)
    wait_until(lambda: slurm.state(str(job)) in ("COMPLETED", "FAILED"), "the job to end")
    batch, *tasks = log.read_text().splitlines()
    assert batch == "None 0"
    node = tasks[0].rpartition("node='")[2].partition("'")[0]
    expected = {
        f"StepTask(number={number}, of=2, name='{job}.{step}-0', node='{node}') {number}"
        for number in (0, 1) for step in (0, 1)
    }  # fmt: skip
    assert set(tasks) == expected


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_training_by_two_tasks_goes_on_after_the_death_of_one(site: Site, slurm: Slurm) -> None:
    learner.teach(site, learner.make(site, promotion="manual", all_crystals=10, epochs=1, batch_size=8))
    script = Path(__file__).parents[2] / "cluster" / "train.sbatch"
    given = {"MARCOD": str(marcod_program(site.folder)), "MARCOD_CONFIG": str(site.config)}
    job = str(slurm.submit(script, "--ntasks=2", **given))
    wait_until(lambda: 1 in workers(site.folder), "the second task to train", 300)
    kill_second(site.folder)
    # RequeueExit of its configuration starts again what ended with 75, and nothing else.
    wait_until(lambda: slurm.state(job) in ("PENDING", "FAILED"), "the job to end", 120)
    assert slurm.state(job) == "PENDING", slurm.log()
    # In two minutes. Sooner it would be the same step, for which Slurm's signal to the first one may be late.
    slurm.cancel(job)
    assert not workers(site.folder)
    assert site.rows("select state from training_run") == [("running",)]
    again = str(slurm.submit(script, "--ntasks=2", **given))
    wait_until(lambda: slurm.state(again) in ("COMPLETED", "FAILED"), "the training to end", 300)
    assert slurm.state(again) == "COMPLETED", slurm.log()
    [(number, tier, state)] = site.rows("select id, tier, state from training_run")
    assert (number, tier) == (1, "all")
    assert state in ("recommended", "refused")
