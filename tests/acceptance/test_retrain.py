"""The learning loop as a lab uses it: labels in, `marcod retrain`, and what becomes of the candidate.

Training takes the longest, so a run that was judged is decided about again and again: it is set back to the moment
before its end, as a kill there leaves it.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import factories
import learner
import pytest
import sqlalchemy as sa
from lab import Site, terminate
from waiting import wait_until

from marcod.database.engine import Database
from marcod.database.schema import training_run
from marcod.model import bundle
from marcod.settings.environment import child_environment
from marcod.store import promotions

pytestmark = pytest.mark.story

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
SWAP = {"Crystals": "Clear", "Clear": "Crystals"}
PARENT = learner.SMALL
GONE = 2**22 + 1
"""No process has an id above Linux's largest."""

Rewind = Callable[..., Site]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Path]:
    """A lab that taught, whose training was killed, and gone on with by the trainer; and a copy of its database."""
    folder = tmp_path_factory.mktemp("judged") / "site"
    folder.mkdir()
    site = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    learner.teach(site, learner.make(site, promotion="manual"))
    process = retraining(site)
    wait_until(lambda: any((folder / "training").glob("run-*/train-*-features.npz")), "the first features")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state_of(site) == "running"
    with site.daemon("trainer") as daemon:
        wait_until(lambda: state_of(site) != "running", "the run to end")
        assert terminate(daemon) == 0
    assert state_of(site) == "recommended", run_of(site, 1)["reasons"]
    assert champion(site) == PARENT
    copy = folder / "judged.sqlite"
    shutil.copyfile(folder / "marcod.sqlite", copy)
    return site, copy


def retraining(site: Site) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "marcod", "--config", str(site.config), "retrain"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=child_environment(), stdout=quiet, stderr=quiet)


def state_of(site: Site) -> str:
    return str(site.rows("select state from training_run")[0][0])


@pytest.fixture
def rewind(judged: tuple[Site, Path]) -> Rewind:
    """The lab with its run set back to just before its end, asked for with other settings."""

    def back(**train: Any) -> Site:
        site, copy = judged
        for end in ("", "-wal", "-shm"):
            (site.folder / f"marcod.sqlite{end}").unlink(missing_ok=True)
        shutil.copyfile(copy, site.folder / "marcod.sqlite")
        shutil.rmtree(site.folder / "models" / "lab", ignore_errors=True)
        run = run_of(site, 1)
        options = run["options"] | {"train": run["options"]["train"] | train}
        values = {"active": True, "state": "running", "pid": GONE, "ended_at": None, "options": options}
        write(site, sa.update(training_run).values(values | {"reasons": sa.null(), "numbers": sa.null()}))
        return site

    return back


def write(site: Site, statement: Any) -> None:
    db = Database(site.url)
    db.write(lambda c: c.execute(statement))
    db.close()


def champion(site: Site) -> str:
    found = json.loads(site.ok("model", "list", "--json"))
    return next(str(m["model"]) for m in found if "champion" in m["aliases"])


def run_of(site: Site, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.ok("train", "show", str(number), "--json"))
    return found


def test_what_a_run_leaves_behind(judged: tuple[Site, Path], rewind: Rewind) -> None:
    site = rewind()
    folder = Path(run_of(site, 1)["folder"])
    assert {"manifest.jsonl", "curve.json", "verdict.json"} <= {p.name for p in folder.iterdir()}
    record = bundle.verify(folder / "candidate" / "lab" / "1")
    steps = json.loads((folder / "candidate" / "lab" / "1" / "metrics.json").read_text())["steps"]
    assert [step["step"].split()[0] for step in steps if step["chosen"]] == ["head"]
    assert (record.parent, record.synthetic, record.trained_on) == (PARENT, False, ("rendered", "lab"))
    assert json.loads((folder / "curve.json").read_text())["curve"] == [], "a last layer is not trained in passes"
    assert folder.stat().st_mode & 0o777


def test_a_better_model_is_promoted_and_can_be_taken_back_for_good(rewind: Rewind) -> None:
    site = rewind(promotion="gated")
    run = json.loads(site.ok("retrain", "--json"))
    assert (run["id"], run["state"], run["tier"], run["candidate"]) == (1, "promoted", "head", "lab:1")
    assert champion(site) == "lab:1"
    assert bundle.verify(site.folder / "models" / "lab" / "1").digest == run["candidate_digest"]
    told = site.ok("train", "show", "1")
    assert "average precision of crystals" in told
    site.ok("model", "rollback")
    site.ok("retrain")
    assert "nothing was trained" in run_of(site, 2)["reasons"][0]
    write(site, sa.update(training_run).where(training_run.c.id == 1).values(active=True, state="running", pid=GONE))
    again = site.call("retrain", "--json")
    assert again.exit_code == 3
    refused = json.loads(again.stdout)
    assert refused["state"] == "refused"
    assert "was rolled back" in refused["reasons"][0]
    assert champion(site) == PARENT


def test_somebody_promoted_another_meanwhile(rewind: Rewind) -> None:
    site = rewind(promotion="gated")
    write(site, sa.update(training_run).values(parent="other:1"))
    result = site.call("retrain", "--json")
    assert result.exit_code == 3
    assert f"{PARENT} became champion meanwhile" in json.loads(result.stdout)["reasons"][0]
    assert champion(site) == PARENT


def test_a_candidate_scores_in_shadow_before_it_serves(rewind: Rewind) -> None:
    site = rewind(promotion="gated", shadow_images=learner.A_PLATE)
    assert json.loads(site.ok("retrain", "--json"))["state"] == "shadow"
    assert champion(site) == PARENT
    assert "no candidate's time in shadow is over" in site.ok("train", "settle")
    learner.deliver(site.folder / "export", 1, first=50)
    site.ok("scan")
    site.ok("score")
    assert "promoted" in site.ok("train", "settle")
    assert champion(site) == "lab:1"
    assert run_of(site, 1)["numbers"]["shadow"]["images"] == learner.A_PLATE


def test_a_candidate_in_shadow_does_not_take_the_place_of_what_a_person_promotes(rewind: Rewind) -> None:
    site = rewind(promotion="gated", shadow_images=learner.A_PLATE)
    site.ok("retrain")
    learner.deliver(site.folder / "export", 1, first=50)
    site.ok("scan")
    site.ok("score")
    with closing(Database(site.url)) as db:
        other = factories.register(db, "other")
        db.write(lambda c: promotions.begin(c, other, actor="ann", now=factories.utc()))
    assert "recommended" in site.ok("train", "settle")
    assert "other:1 is becoming champion meanwhile" in run_of(site, 1)["reasons"][0]
    assert champion(site) == PARENT


def test_a_challenge_that_a_person_ended_promotes_nothing(rewind: Rewind) -> None:
    site = rewind(promotion="gated", shadow_images=1)
    site.ok("retrain")
    site.ok("model", "challenge", "--none")
    assert "refused" in site.ok("train", "settle")
    assert champion(site) == PARENT


def test_suspects_of_a_person_who_swaps(rewind: Rewind) -> None:
    site = rewind()
    labelled = json.loads(site.ok("label", "list", "--limit", "1000", "--json"))
    plates = sorted({row["plate_key"] for row in labelled})
    mixed_up = [row for row in labelled if row["plate_key"] in plates[::2] and row["label"] in SWAP]
    lines = ["plate,well,label,person,time"]
    for row in mixed_up:
        for person in ("bob", "cyd"):
            lines.append(f"{row['plate_key']},{row['well']},{SWAP[row['label']]},{person},2026-05-02 10:00")
    (site.folder / "bob.csv").write_text("\n".join(lines) + "\n")
    site.ok("label", "import", str(site.folder / "bob.csv"))
    told = json.loads(site.ok("label", "suspects", "--limit", "1000", "--json"))
    listed = {(row["plate"], row["well"]) for row in told["suspects"]}
    swapped = {(row["plate_key"], row["well"]) for row in mixed_up}
    assert len(listed & swapped) > 0.6 * len(swapped)
    assert {p["person"]: p["swaps"] for p in told["people"]}["bob"] is not None


@on_sqlite
def test_nothing_to_learn_from_and_one_training_at_a_time(site: Site) -> None:
    learner.make(site, plates=1)
    site.ok("retrain")
    assert "no labelled image" in run_of(site, 1)["reasons"][0]
    now = datetime.now(UTC)
    elsewhere = {
        "active": True, "state": "running", "cause": "person", "actor": "ann", "recipe": "adapt", "options": {},
        "folder": "/", "host": "elsewhere", "pid": 1, "token": "t", "started_at": now, "beat_at": now,
    }  # fmt: skip
    write(site, sa.insert(training_run).values(elsewhere))
    result = site.call("retrain")
    assert result.exit_code == 1
    assert "training run 2 is active" in result.output
