"""Workers that a real Slurm starts, cancels, requeues and ends, on PostgreSQL, while plates arrive."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import factories
import pytest
import sqlalchemy as sa
from lab import Site, terminate
from slurm import Slurm, marcod_program
from waiting import wait_until

from marcod import layouts
from marcod.database.engine import Database
from marcod.database.schema import image
from marcod.model.registry import Registry
from marcod.store import queue, versions
from marcod.synthetic import ImagerStyle, PlateSpec, plate_files, write_file

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SCRIPT: Final = Path(__file__).parents[2] / "cluster" / "score.sbatch"
WORKERS: Final = 4
BATCH: Final = 16
ARCHIVE: Final = range(14)
LATER: Final = range(14, 200)


def plate(root: Path, number: int) -> None:
    """Write a plate whose images are copies of few, since only their number matters here."""
    spec = PlateSpec(
        ImagerStyle.RIGAKU, f"CL{number:06d}", (datetime(2026, 4, 1, 8, tzinfo=UTC),), seed=number, filled=1.0
    )
    files = list(plate_files(spec, layouts.make("rigaku")))
    kept: dict[int, Path] = {}
    for index, file in enumerate(files):
        target = root / file.path
        if (known := kept.get(index % 4)) is None:
            write_file(root, file, (204, 171))
            kept[index % 4] = target
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(known, target)


@pytest.fixture
def archive(site: Site) -> Path:
    """The folder of an imager whose plates wait to be scored again."""
    root = site.folder / "minstrel"
    for number in ARCHIVE:
        plate(root, number)
    site.add_source("minstrel", root, "rigaku")
    site.write(score={"batch_size": BATCH, "lease_s": 8.0, "engine": "openvino"}, log={"level": "warning"})
    site.ok("scan")
    db = Database(site.url)
    Registry(db, site.folder / "models").ensure_champion(db.now())
    champion = db.read(versions.champion)
    ids = [row.id for row in factories.rows(db, sa.select(image.c.id).order_by(image.c.id))]
    db.write(queue.enqueue, ids, champion.id, db.now(), queue.RESCORE)
    db.close()
    return root


def jobs(site: Site, condition: str, **values: str) -> int:
    return int(site.rows(f"select count(*) from job where {condition}", **values)[0][0])


def wait_for_lease(site: Site, task: str) -> None:
    wait_until(lambda: jobs(site, "lease like :worker", worker=f"%:slurm-{task}:%"), f"{task} to hold images")


def refill(site: Site, root: Path, numbers: Iterator[int]) -> None:
    """Let another plate come where little waits, so that a worker that is ended has work left."""
    if jobs(site, "lease is null") < 200:
        plate(root, next(numbers))


def wait_for(slurm: Slurm, task: str, *said: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until Slurm says these words of a task."""

    def says() -> bool:
        meanwhile()
        shown = slurm.show(task).split()
        return all(word in shown for word in said)

    try:
        wait_until(says, f"{task}: {said}", 300)
    except pytest.fail.Exception as failure:
        pytest.fail(f"{failure}\n{slurm.show(task)}\n{slurm.log()}")


def deliver(site: Site, root: Path, numbers: Iterable[int]) -> tuple[int, int]:
    """Let new plates come. Returns how much of the archive was scored until all of them were in workers' hands,
    and how much of it waits still."""
    before = site.count("image")
    for number in numbers:
        plate(root, number)
    wait_until(lambda: site.count("image") >= before + 96 * len(list(numbers)), "the new plates to be recorded")
    scored = site.count("score")
    wait_until(lambda: not jobs(site, "priority = 0 and lease is null"), "new images to be taken")
    return site.count("score") - scored, jobs(site, "priority = 10 and lease is null")


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_an_array_of_workers_survives_slurm(site: Site, archive: Path, slurm: Slurm) -> None:
    """One is cancelled, one requeued, one killed, one out of time: each image has one score, and nothing is leased."""
    with site.daemon("watch,schedule") as watcher:
        site.wait_until_running(watcher)
        others = connections(site)
        array = slurm.submit(
            SCRIPT, f"--array=1-{WORKERS}", MARCOD=str(marcod_program(site.folder)), MARCOD_CONFIG=str(site.config)
        )
        tasks = [f"{array}_{number}" for number in range(1, WORKERS + 1)]
        cancelled, requeued, killed, late = tasks
        for task in tasks:
            wait_for_lease(site, task)
        assert connections(site) <= others + 6 * WORKERS
        between, waiting = deliver(site, archive, LATER[:2])
        assert between <= 3 * BATCH * WORKERS
        assert waiting
        wait_for_lease(site, cancelled)
        slurm.cancel(cancelled)
        wait_for_lease(site, requeued)
        slurm.control("requeue", requeued)
        wait_for_lease(site, killed)
        os.kill(pid_of(site, killed), signal.SIGKILL)
        # By the job file Slurm says so two minutes before, and RequeueExit of its configuration starts it again.
        slurm.control("update", f"JobId={late}", "TimeLimit=1")
        numbers = iter(LATER[2:])
        for task in (requeued, late):
            wait_for(slurm, task, "JobState=PENDING", "Restarts=1", meanwhile=lambda: refill(site, archive, numbers))
            # Slurm lets a requeued job wait for two minutes; in the same second it would be refused.
            slurm.control("update", f"JobId={task}", "StartTime=now+5", "TimeLimit=60")
        wait_for(slurm, cancelled, "JobState=CANCELLED")
        wait_for(slurm, killed, "JobState=FAILED", "ExitCode=0:9")
        deliver(site, archive, [next(numbers)])
        for task in (requeued, late):
            wait_for(slurm, task, "JobState=COMPLETED", "ExitCode=0:0")
        assert terminate(watcher) == 0
    assert site.count("job") == 0
    assert site.count("worker") == 1
    files = sum(1 for path in archive.rglob("*.jpg") if path.is_file())
    assert site.count("score") == site.count("image") == files
    assert not site.rows("select image_id from score group by image_id having count(*) > 1")


def connections(site: Site) -> int:
    return int(site.rows("select count(*) from pg_stat_activity where datname = current_database()")[0][0])


def pid_of(site: Site, task: str) -> int:
    return int(site.rows("select pid from worker where name like :name", name=f"%:slurm-{task}:%")[0][0])


@pytest.mark.parametrize("backend", ["postgres"], indirect=True)
def test_a_training_runs_as_a_job(site: Site, slurm: Slurm) -> None:
    """A lab without labels has nothing to train on, which is said in a sentence."""
    site.write()
    site.ok("db", "upgrade")
    script = SCRIPT.with_name("train.sbatch")
    job = str(slurm.submit(script, MARCOD=str(marcod_program(site.folder)), MARCOD_CONFIG=str(site.config)))
    wait_for(slurm, job, "JobState=COMPLETED", "ExitCode=0:0")
    assert "no labelled image can be read" in (slurm.folder / f"marcod-train-{job}.log").read_text()
