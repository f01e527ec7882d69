"""A promotion of a version that scored in silence, whose processes are killed: what the views say, and how it ends."""

import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import factories
import oracle
import pytest
import random_bundles
import sqlalchemy as sa
from factories import utc
from lab import Site
from waiting import wait_until

from marcod.database import workers
from marcod.database.engine import Database
from marcod.model import registry
from marcod.model.registry import Registry
from marcod.settings.environment import child_environment
from marcod.store import promotions, queue, serving, summaries, versions

pytestmark = pytest.mark.story

PLATES = 300
WELLS = 3

Process = subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles random:1 and random:2."""
    folder = tmp_path_factory.mktemp("two-models")
    for number in (1, 2):
        random_bundles.write(folder, "random", number, seed=number, threshold=0.3)
    return folder


@pytest.fixture
def archive(site: Site, two_models: Path) -> Site:
    """Many small plates that the champion random:1 has scored, and random:2 in silence."""
    shutil.copytree(two_models, site.folder / "models")
    site.write(models={"folder": str(site.folder / "models")})
    with closing(Database(site.url)) as db:
        found = Registry(db, site.folder / "models")
        first, second = (found.register("random", number, utc()) for number in "12")
        factories.promote(db, first)
        source_id = factories.register_source(db, expected_drops=WELLS)
        files = [s for number in range(PLATES) for s in factories.sightings(WELLS, plate=f"P{number}")]
        factories.record(db, source_id, files)
        factories.drain(db, first, utc(1))
        db.write(queue.enqueue_rescore, second.id, utc(2))
        factories.drain(db, second, utc(2), scores=_crystals_in_every_tenth)
    return site


def _crystals_in_every_tenth(claim: queue.Claim) -> tuple[float, float, float, float]:
    return factories.CRYSTALS if claim.path.startswith("P") and "0/1/" in claim.path else factories.CLEAR


@dataclass
class Lims:
    """Somebody who asks three views all the while, and remembers which versions answered in turn."""

    db: Database
    spoke: list[str] = field(default_factory=list)
    mixed: list[list[str]] = field(default_factory=list)

    def ask(self) -> None:
        for view in ("lims_plate_summary_v1", "lims_drop_v1", "lims_image_score_v1 where is_current"):
            asked = sa.text(f"select distinct model_version from {view}")
            answered = [row[0] for row in factories.rows(self.db, asked)]
            if len(answered) != 1:
                self.mixed.append(answered)
            elif answered != self.spoke[-1:]:
                self.spoke += answered


@contextmanager
def asking(url: str) -> Iterator[Lims]:
    """Ask until the end, and once more."""
    with closing(Database(url)) as db:
        lims, stop = Lims(db), threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                lims.ask()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield lims
        finally:
            stop.set()
            thread.join()
        lims.ask()


def far(site: Site) -> int:
    """Plates that are worked out; 0 where nothing is becoming champion."""
    return int(next(iter(row[0] for row in site.rows("select done from promotion")), 0))


@contextmanager
def held_up(site: Site) -> Iterator[Callable[[], None]]:
    """Keep a promotion from its end. Yields what is called once it moves: on SQLite a writer holds up all others."""
    if site.url.startswith("sqlite"):
        with closing(sqlite3.connect(site.url.removeprefix("sqlite:///"), isolation_level=None, timeout=60)) as writer:
            yield lambda: _begin(writer)
        return
    engine = sa.create_engine(site.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("select id from inspection order by id desc limit 1 for update"))
        yield lambda: None
    engine.dispose()


def _begin(writer: sqlite3.Connection) -> None:
    writer.execute("begin immediate")


def killed_midway(site: Site, process: Process) -> None:
    """Kill what works on a promotion between two of its steps."""
    with held_up(site) as hold:
        wait_until(lambda: far(site), "the first plates")
        hold()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < far(site) < PLATES


def assert_whole(site: Site, lims: Lims) -> None:
    """One version answered at each moment, the new one at the end; and every row is what the facts say."""
    assert lims.mixed == []
    assert lims.spoke == ["1", "2"]
    with closing(Database(site.url)) as db:
        db.write_portions(summaries.complete_quiet, datetime.now(UTC), 1.0)
        assert oracle.faults(db) == []
    found = site.rows("select count(*) from lims_drop_v1 where model_version = '2'")
    assert found[0][0] == PLATES * WELLS


def promoting(site: Site) -> Process:
    """The command, on its way."""
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), "model", "promote", "random:2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment())


def test_the_command_killed_midway_goes_on_when_it_is_called_again(archive: Site) -> None:
    with asking(archive.url) as lims:
        with promoting(archive) as process:
            killed_midway(archive, process)
        listed = {row["model"]: row for row in json.loads(archive.ok("model", "list", "--json"))}
        assert listed["random:2"]["becoming_champion"]["plates"] == PLATES
        assert 0 < listed["random:2"]["becoming_champion"]["done"] < PLATES
        assert listed["random:1"]["aliases"] == "champion"
        assert f"of {PLATES} plates" in archive.ok("status")
        with promoting(archive) as process:
            told, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert b"random:2 is champion" in told
    assert_whole(archive, lims)


def test_a_service_killed_midway_goes_on_when_it_runs_again(archive: Site) -> None:
    """Nobody is at the command line; the role schedule alone does it."""
    with closing(Database(archive.url)) as db:
        second = db.read(lambda c: versions.find(c, "random", "2"))
        db.write(serving.promote, second, actor="ann", now=datetime.now(UTC))
        assert db.read(promotions.pending) is not None
    with asking(archive.url) as lims:
        with archive.daemon("schedule") as process:
            killed_midway(archive, process)
        assert lims.spoke == ["1"]
        with archive.daemon("schedule"):
            wait_until(lambda: archive.count("promotion") == 0, "the change of the champion")
    assert_whole(archive, lims)


def test_what_takes_long_is_left_to_a_service_or_said_to_be_left(
    archive: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "AT_ONCE_S", 0.0)
    left = archive.ok("model", "promote", "random:2", "--no-wait")
    assert "random:2 becomes champion once its plates are worked out: 0 of 300 plates; random:1 answers" in left
    assert "nobody works on it now: `marcod model promote random:2` goes on" in left
    refused = archive.call("model", "remove", "random:2", "--force")
    assert (refused.exit_code, "is becoming champion and cannot be removed" in refused.stderr) == (1, True)
    with closing(Database(archive.url)) as db:
        db.write(lambda c: workers.beat(c, "elsewhere", "host", 1, "schedule", datetime.now(UTC)))
    assert "a running marcod works on it" in archive.ok("model", "promote", "random:2")
    assert "becoming champion: 0 of 300 plates" in archive.ok("model", "list")
    assert "random:1 is champion" in archive.ok("model", "promote", "random:1")
    assert archive.count("promotion") == 0
    assert "random:2 is champion" in archive.ok("model", "promote", "random:2", "--wait")
    assert "random:1 is champion again, instead of random:2" in archive.ok("model", "rollback")
    done = [row.action for row in archive.rows("select action from audit order by id")]
    assert [action for action, _ in itertools.groupby(done)][-4:] == ["promote", "withdraw", "promote", "rollback"]


def test_a_history_by_name_of_a_version_without_rows_is_worked_out(archive: Site) -> None:
    shown = json.loads(archive.ok("plate", "show", "P10", "--history", "--model", "random:2", "--json"))
    assert shown["model"] == "random:2"
    assert [(drop["hit"], drop["trend"], drop["highest_p_crystals"]) for drop in shown["drops"]] == [
        (True, "steady", 0.9)
    ] * WELLS
    former = json.loads(archive.ok("plate", "show", "P10", "--history", "--json"))
    assert [drop["hit"] for drop in former["drops"]] == [False] * WELLS
