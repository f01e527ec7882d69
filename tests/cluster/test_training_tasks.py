"""Tasks of a job step know their numbers, as those of one training; the batch script is none of them."""

import sys

import pytest
from slurm import Slurm
from waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

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
