"""Model versions change places while a lab works; and the commands by which a person makes them do so."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import factories
import pytest
import random_bundles
import sqlalchemy as sa
from factories import utc
from lab import SIZE, Delivery, Site, terminate
from waiting import wait_until

from marcod.database import workers
from marcod.database.engine import Database
from marcod.model import registry
from marcod.model.registry import Registry
from marcod.settings.environment import child_environment
from marcod.store import campaigns, versions
from marcod.store.versions import Version
from marcod.synthetic import write_file

pytestmark = pytest.mark.story

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles random:1 to random:3."""
    folder = tmp_path_factory.mktemp("random-models")
    for number in (1, 2, 3):
        random_bundles.write(folder, "random", number, seed=number, threshold=0.3)
    return folder


@pytest.fixture
def lab(site: Site, random_models: Path) -> Site:
    """A lab with a folder of its own models, of which random:1 is champion."""
    shutil.copytree(random_models, site.folder / "models")
    site.write(models={"folder": str(site.folder / "models")})
    with models_of(site) as found:
        first = found.register("random", "1", utc())
        factories.promote(found._db, first)
    return site


@contextmanager
def models_of(site: Site) -> Iterator[Registry]:
    """The lab's models, with networks that are built once for all tests."""
    db = Database(site.url)
    yield random_bundles.LoadOnce(db, site.folder / "models")
    db.close()


@dataclass
class Reader:
    """A LIMS that asks the views again and again, and remembers what it must never see."""

    db: Database
    wrong: list[object] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    spoke: set[str] = field(default_factory=set)
    polls: int = 0

    def poll(self) -> None:
        """Each question is one read, as a LIMS would ask it."""
        shown = factories.rows(
            self.db, sa.text("select inspection_id, model, model_version from lims_plate_summary_v1")
        )
        inspections = [row.inspection_id for row in shown]
        if len(inspections) != len(set(inspections)) or not self.answered <= set(inspections):
            self.wrong.append(shown)
        self.answered |= set(inspections)
        current = sa.text("select distinct model, model_version from lims_image_score_v1 where is_current")
        speaking = factories.rows(self.db, current)
        if len(speaking) > 1:
            self.wrong.append(speaking)
        self.spoke |= {row.model_version for row in [*shown, *speaking]}
        self.polls += 1


@contextmanager
def reading(url: str) -> Iterator[Reader]:
    """Poll all the while."""
    reader = Reader(Database(url))
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            reader.poll()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join()
        reader.db.close()


def _changes(found: Registry, first: Version, second: Version) -> list[Callable[[], object]]:
    """What a person who cannot make up their mind does with the two."""

    def promote(version: Version) -> Callable[[], object]:
        return lambda: found.promote(version, actor="test", now=datetime.now(UTC))

    def rollback() -> object:
        return found.rollback(actor="test", now=datetime.now(UTC))

    return [promote(second), rollback, promote(second), promote(first), rollback, promote(first), promote(second)]


def test_promoted_and_rolled_back_under_load_no_image_is_lost_or_scored_twice(
    lab: Site, deliveries: dict[str, Delivery]
) -> None:
    """Images arrive, a scorer and a challenger's shadow run, and champions change in the middle of it."""
    files = []
    for name, delivered in deliveries.items():
        (lab.folder / name).mkdir()
        lab.add_source(name, lab.folder / name, delivered.layout)
        files += [(lab.folder / name, file) for file in delivered.composites()]
    own = {"folder": str(lab.folder / "models")}
    lab.write(models=own, score={"batch_size": 2}, watch={"settle_s": 0.1})
    arriving = iter(files)

    def deliver(count: int) -> None:
        for root, file in itertools.islice(arriving, count):
            write_file(root, file, SIZE)

    with models_of(lab) as found, reading(lab.url) as reader, lab.daemon() as process:
        first, second, third = (found.register("random", str(n), utc()) for n in (1, 2, 3))
        found.challenge(third, actor="test", now=utc())
        changes = _changes(found, first, second)
        # Changes come by turns while a wave waits, and while it is being scored.
        for change, table in zip(changes, itertools.cycle(("image", "score")), strict=False):
            before, polls = lab.count(table), reader.polls
            deliver(len(files) // (len(changes) + 1))
            wait_until(lambda table=table, before=before: lab.count(table) > before, f"the wave's first {table}")
            wait_until(lambda polls=polls: reader.polls > polls + 1, "a look at the views")
            change()
        deliver(len(files))
        wait_until(lambda: lab.count("image") == len(files) and lab.count("job") == 0, "all scores")
        polls = reader.polls
        wait_until(lambda: reader.polls > polls, "a last look at the views")
        assert terminate(process) == 0
    assert not reader.wrong
    assert reader.spoke == {"1", "2"}
    assert "loop failed" not in lab.log
    twice = "select 1 from score group by image_id, model_version_id, content_hash having count(*) > 1"
    assert lab.rows(twice) == []
    by_champions = (
        "select count(distinct image_id) from score join model_version on model_version.id = score.model_version_id"
        " where promoted_at is not null"
    )
    assert lab.rows(by_champions)[0][0] == len(files)
    assert lab.rows("select count(*) from lims_plate_summary_v1")[0][0] == len(deliveries)
    done = [row.action for row in lab.rows("select action from audit order by id")]
    assert done[2:] == ["promote", "rollback", "promote", "promote", "rollback", "promote", "promote"]


@on_sqlite
def test_a_person_looks_at_models_and_changes_who_serves(lab: Site) -> None:
    lab.ok("model", "challenge", "random:3")
    assert "random:2 is champion" in lab.ok("model", "promote", "random:2")
    listed = {row["model"]: row for row in json.loads(lab.ok("model", "list", "--json"))}
    assert {name: row["aliases"] for name, row in listed.items()} == {
        ":".join(registry.SHIPPED): "",
        "random:1": "previous",
        "random:2": "champion",
        "random:3": "challenger",
    }
    assert listed["random:1"]["has_scores"] is False
    assert "champion" in lab.ok("model", "list")
    shown = json.loads(lab.ok("model", "show", "champion", "--json"))
    assert (shown["model"], shown["metrics"], shown["problem"]) == ("random:2", {"images": {"test": 0}}, None)
    assert shown["record"]["threshold"] == {"crystal": 0.3, "recall": 0.0, "measured_on": "nothing"}
    assert [note["action"] for note in shown["history"]] == ["promote"]
    for words in ("0.3, recall 0 (nothing)", "images.test", "input_size 75", shown["digest"], "random:1"):
        assert words in lab.ok("model", "show", "random:2")
    assert "random:1 is champion again, instead of random:2" in lab.ok("model", "rollback")
    again = lab.call("model", "rollback")
    assert (again.exit_code, "`marcod model promote NAME:VERSION`" in again.stderr) == (1, True)
    assert "random:3 is challenger no more" in lab.ok("model", "challenge", "--none")
    assert "random:3 is removed" in lab.ok("model", "remove", "random:3")
    assert not (lab.folder / "models" / "random" / "3").exists()
    refused = lab.call("model", "remove", "champion")
    assert (refused.exit_code, "random:1 is champion and cannot be removed" in refused.stderr) == (1, True)
    for wrong in (["challenge"], ["challenge", "random:2", "--none"], ["verify"], ["show", "nonsense"]):
        assert lab.call("model", *wrong).exit_code == 2


@on_sqlite
def test_every_damaged_bundle_is_named(lab: Site) -> None:
    assert lab.ok("model", "verify", "champion", "random:2").split("\n")[:2] == ["random:1: whole", "random:2: whole"]
    (lab.folder / "models" / "random" / "2" / "bundle.toml").write_text("nonsense")
    (lab.folder / "models" / "random" / "1" / "weights.npz").unlink()
    assert "nonsense" not in lab.ok("model", "list")
    result = lab.call("model", "verify", "--all", "--json")
    assert result.exit_code == 1
    assert "2 of 4 cannot serve: random:1, random:2" in result.stderr
    problems = {row["model"]: row["problem"] for row in json.loads(result.stdout)}
    assert "weights.npz is missing" in problems["random:1"]
    assert "damaged" in problems["random:2"]
    assert problems["random:3"] is problems[":".join(registry.SHIPPED)] is None


@pytest.fixture
def archive(lab: Site) -> Site:
    """Plates A and B of two sources, known to the database and scored by the champion."""
    db = Database(lab.url)
    champion = db.read(versions.champion)
    for number, key in enumerate("AB"):
        source = factories.register_source(db, f"imager-{key}".lower())
        factories.record(db, source, factories.sightings(3, plate=key), utc(days=number))
    factories.drain(db, champion, utc(days=2))
    db.close()
    return lab


@on_sqlite
def test_rescore_chooses_among_plates_sources_and_times(archive: Site) -> None:
    def queued(*arguments: str) -> int:
        answer = json.loads(archive.ok("rescore", *arguments, "--no-wait", "--json"))
        return int(answer["queued"])

    assert queued("--all") == 0
    assert queued("--model", "random:2", "--since", "2026-01-02") == 3
    assert queued("--model", "random:2", "--since", "2026-01-02") == 0
    assert queued("--model", "random:2", "--all") == 6, "three of them wait in the other, and are scored once"
    assert queued("--model", "random:2", "--all") == 0
    assert queued("--model", "random:3", "--plate", "A", "--plate", "B") == 6
    assert {row.priority for row in archive.rows("select priority from job")} == {10}
    assert archive.rows("select images from campaign order by id") == [(3,), (6,)]
    assert "random:1 has scored the archive" in archive.ok("rescore", "--all", "--model", "champion")
    for wrong in ([], ["--all", "--since", "1d"], ["--plate", "A", "--all"], ["--since", "soon"]):
        assert archive.call("rescore", *wrong).exit_code == 2
    unknown = archive.call("rescore", "--all", "--source", "nowhere")
    assert (unknown.exit_code, "the sources are imager-a, imager-b" in unknown.stderr) == (1, True)


@on_sqlite
def test_a_rescore_is_listed_paused_resumed_and_cancelled(archive: Site) -> None:
    assert "no archive is being scored again" in archive.ok("rescore", "list")
    said = archive.ok("rescore", "--all", "--model", "random:2", "--no-wait")
    assert "it is rescore 1; `marcod rescore list` shows how far it is" in said
    assert "6 images of rescores" in archive.ok("queue", "status")
    (shown,) = json.loads(archive.ok("rescore", "list", "--json"))
    assert (shown["id"], shown["model"], shown["state"], shown["left"]) == (1, "random:2", "running", 6)
    archive.ok("rescore", "pause", "1")
    waits = archive.call("rescore", "--all", "--model", "random:2")
    assert (waits.exit_code, "rescore 1 is paused" in waits.stderr) == (1, True)
    assert archive.count("score") == 6
    assert "1 with random:2 paused, 6 images of 6 left" in archive.call("status").stdout
    archive.ok("rescore", "resume", "1")
    archive.ok("rescore", "cancel", "1")
    assert "rescore 1 is cancelled already" in archive.call("rescore", "resume", "1").stderr
    assert "there is no rescore 7" in archive.call("rescore", "pause", "7").stderr
    for before in (["--all"], ["--json"], ["--model", "random:2"], ["--no-wait"]):
        refused = archive.call("rescore", *before, "cancel", "1")
        assert (refused.exit_code, "options come after cancel, and only its own" in refused.stderr) == (2, True)
    assert [row["state"] for row in json.loads(archive.ok("rescore", "list", "--every", "--json"))] == ["cancelled"]
    assert "cancelled" in archive.ok("rescore", "list", "--every")


@contextmanager
def rescore_that_waits(archive: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Begin to rescore the archive where somebody else seems to score, so that it waits; nobody really does."""
    db = Database(archive.url)
    db.write(lambda c: workers.beat(c, "elsewhere", "host", 1, "score", datetime.now(UTC)))
    db.close()
    command = [sys.executable, "-m", "marcod", "--config", str(archive.config), "rescore", "--all"]
    command += ["--model", "random:2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=child_environment()) as process:
        wait_until(lambda: archive.count("campaign_range") == 1, "the images to be queued")
        yield process


@on_sqlite
def test_rescore_that_is_stopped_while_it_waits_leaves_its_work_queued(archive: Site) -> None:
    with rescore_that_waits(archive) as process:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"6 images could not be scored yet and stay queued" in told
    assert archive.count("campaign_range") == 1


@on_sqlite
@pytest.mark.parametrize("end", [("rescore", "cancel", "1"), ("model", "remove", "random:2")], ids=" ".join)
def test_rescore_whose_campaign_is_cancelled_while_it_waits_says_so(archive: Site, end: tuple[str, ...]) -> None:
    with rescore_that_waits(archive) as process:
        archive.ok(*end)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, b"rescore 1 was cancelled; its scores stay" in told) == (1, True)
    assert archive.count("score") == 6


@on_sqlite
def test_rescore_does_not_wait_for_what_another_has_paused(archive: Site) -> None:
    archive.ok("rescore", "--since", "2026-01-02", "--model", "random:2", "--no-wait")
    archive.ok("rescore", "pause", "1")
    db = Database(archive.url)
    db.write(lambda c: workers.beat(c, "elsewhere", "host", 1, "score", datetime.now(UTC)))
    command = [sys.executable, "-m", "marcod", "--config", str(archive.config), "rescore", "--all"]
    command += ["--model", "random:2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment()) as process:
        wait_until(lambda: len(archive.rows("select id from campaign")) == 2, "the other rescore to begin")
        db.write(lambda c: c.execute(sa.text("delete from campaign_range where campaign_id = 2")))
        assert db.write(campaigns.end_if_done, 2, datetime.now(UTC))
        told, _ = process.communicate(timeout=60)
    db.close()
    assert (process.returncode, b"queued for random:2, 0 still to do" in told) == (0, True)
    assert archive.rows("select state from campaign order by id") == [("paused",), ("finished",)]


@on_sqlite
def test_rescore_waits_until_the_archive_is_done(lab: Site, deliveries: dict[str, Delivery]) -> None:
    delivered = deliveries["minstrel"]
    root = lab.folder / "minstrel"
    for file in delivered.composites():
        write_file(root, file, SIZE)
    lab.add_source("minstrel", root, "rigaku")
    lab.write(models={"folder": str(lab.folder / "models")})
    lab.ok("scan")
    lab.ok("score")
    total = len(delivered.composites())
    result = lab.call("rescore", "--since", "1d", "--model", "random:2", "--json")
    answer = json.loads(result.stdout)
    assert (answer["queued"], answer["left"], answer["model"]) == (total, 0, "random:2")
    assert f"images scored by random:2: {total} of {total}" in result.stderr
    assert lab.count("score") == 2 * total
    assert json.loads(lab.ok("rescore", "--all", "--model", "random:2", "--json"))["queued"] == 0
