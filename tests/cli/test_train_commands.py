"""`marcod train`: a person sees what a run was made of, how it was judged, and why."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learner
import pytest
import sqlalchemy as sa
from factories import utc
from lab import Site

from marcod.database.engine import Database
from marcod.database.schema import dataset
from marcod.domain import Split, split_of
from marcod.model.registry import Registry
from marcod.training import run_rows

pytestmark = pytest.mark.story

REASON = "crystal recall at its own threshold is 80.0 %, the champion's 95.0 %"
NUMBERS: dict[str, Any] = {
    "champion": {"model": "small:1", "threshold": 0.31, "crystal_recall": 0.95, "log_loss": 0.5},
    "candidate": {"model": "lab:1", "threshold": 0.42, "crystal_recall": 0.8, "log_loss": None},
    "checks": [
        {"name": "crystal recall", "passed": False, "sentence": REASON, "numbers": {"bound": -0.21, "margin": 0.02}},
        {
            "name": "enough drops",
            "passed": True,
            "sentence": "enough",
            "numbers": {"crystals": 40, "drops": 90, "left": None, "crystals_needed": 15, "drops_needed": 30},
        },
    ],
}


@dataclass(frozen=True)
class Trained:
    """A lab and a database connection to it."""

    lab: Site
    db: Database
    folder: Path

    def run(self, state: str, **more: Any) -> int:
        """A run that ended so; returns its number."""
        token = state

        def work(connection: sa.Connection) -> int:
            made = run_rows.begin(
                connection, cause="100 new labels", actor="trainer", recipe="adapt", options={"epochs": 6},
                parent="small:1", folder=str(self.folder), host="here", pid=7, token=token, now=utc(),
            )  # fmt: skip
            run_rows.note(connection, made.id, token, tier="head", **more.pop("noted", {}))
            if state != run_rows.RUNNING:
                run_rows.end(connection, made.id, token, state=state, now=utc(hours=1, minutes=2), **more)
            return made.id

        return self.db.write(work)

    def dataset(self) -> int:
        values = {
            "digest": "dd", "gate_digest": "gg", "images": 400, "drops": 300, "crystals": 70, "missing": 1,
            "changed": 2, "counts": {"test": {"Crystals": 15}}, "taken_at": utc(),
        }  # fmt: skip
        made = sa.insert(dataset).values(**values).returning(dataset.c.id)
        return self.db.write(lambda c: int(c.execute(made).scalar_one()))


@pytest.fixture
def trained(site: Site) -> Iterator[Trained]:
    """A lab in which nothing was trained."""
    site.write()
    db = Database(site.url)
    Registry(db).ensure_champion(utc())
    folder = site.folder / "run-1"
    folder.mkdir()
    (folder / "curves.png").write_bytes(b"")
    yield Trained(site, db, folder)
    db.close()


def test_runs_are_listed_and_shown_with_their_reasons(trained: Trained) -> None:
    lab = trained.lab
    assert "there is no training run yet" in lab.ok("train", "list")
    noted = {"dataset_id": trained.dataset(), "candidate": "lab:1", "candidate_digest": "cc"}
    run = trained.run("refused", reasons=[REASON], numbers=NUMBERS, noted=noted)
    trained.run("failed", error="the disk is full")
    listed = lab.ok("train", "list")
    for words in ("refused", "adapt, head", "small:1", "lab:1", "1h 02m", REASON, "the disk is full"):
        assert words in listed
    assert len(json.loads(lab.ok("train", "list", "--limit", "1", "--json"))) == 1

    shown = lab.ok("train", "show", str(run))
    for words in (
        "the candidate did not pass the gate", "100 new labels, by trainer",
        "400 images of 300 drops, 70 with crystals", "1 file missing, 2 changed", "Crystals 15",
        "has judged 1 candidate", "candidate lab:1", "0.42", "bound -0.21, margin 0.02",
        "passed   40 of 15 crystals, 90 of 30 drops\n",
        f"- {REASON}", str(trained.folder / "curves.png"),
    ):  # fmt: skip
        assert words in shown, words
    assert "asks more" not in shown
    assert not set("{}[]") & set(shown), "values of Python"
    assert "None" not in shown
    assert "false alarms" not in shown
    assert "called hits, of all" not in shown
    document = json.loads(lab.ok("train", "show", str(run), "--json"))
    assert document["numbers"] == NUMBERS
    assert document["data"]["crystals"] == 70
    assert document["gate_uses"] == 1
    assert "token" not in document


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_runs_and_what_cannot_be_known_is_said(trained: Trained) -> None:
    lab = trained.lab
    noted = {"dataset_id": trained.dataset(), "candidate": "lab:1"}
    last = trained.run("refused", noted=noted, numbers={"gate": {**NUMBERS, "rules": {"looks": 9.6}}})
    assert "This test side has judged 11 candidates, and the gate asks more of each further one" in lab.ok(
        "train", "show", str(last)
    )
    kept = {"gate": NUMBERS, "seconds": 12.5, "material": "52de", "partly": [], "label_noise": 0.04, "mix": None}
    passed = trained.run("recommended", numbers=kept, noted={"candidate": "lab:9"})
    shown = lab.ok("train", "show", str(passed))
    assert "`marcod model promote lab:9` makes it champion" in shown
    further = [line.split("  ", 1) for line in shown.split("Further numbers\n")[1].splitlines()]
    assert [(name, value.strip()) for name, value in further] == [
        ("seconds", "12.5"),
        ("share of labels that look wrong", "0.04"),
    ]
    assert "data" in shown
    assert "none taken" in shown
    running = lab.ok("train", "show", str(trained.run("running")))
    assert "running: not over yet" in running
    assert "last seen" in running
    result = lab.call("train", "show", "999")
    assert result.exit_code == 1
    assert "there is no training run 999; `marcod train list` shows them" in result.stderr


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_labels_that_no_candidate_can_be_judged_on_are_refused_untrained(site: Site) -> None:
    learner.teach(site, learner.make(site, 1)[:4])
    refused = site.call("retrain", "--json")
    assert refused.exit_code == 3
    run = json.loads(refused.stdout)
    assert (run["state"], run["candidate"], run["tier"]) == ("refused", None, None)
    sentence, untrained = run["reasons"]
    assert sentence == "the test side has 0 drops with crystals, 0 drops and 0 plates; a promotion takes 5, 10 and 2"
    assert "nothing was trained" in untrained
    shown = json.loads(site.ok("train", "show", str(run["id"]), "--json"))
    assert (shown["reasons"], shown["gate_uses"]) == (run["reasons"], 0)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_labels_that_can_teach_nothing_are_refused_untrained(site: Site) -> None:
    """Two test plates are labelled, which are enough to judge by, and nothing that may be learned from."""
    drops = learner.make(site, 5)
    learner.teach(site, [drop for drop in drops if split_of(learner.SOURCE, drop.plate) is Split.TEST])
    refused = site.call("retrain", "--json")
    assert refused.exit_code == 3
    run = json.loads(refused.stdout)
    assert (run["state"], run["candidate"], run["tier"]) == ("refused", None, None)
    sentence, untrained = run["reasons"]
    assert sentence == (
        "outside the test side there are 0 drops labelled as crystals, 0 as anything else, and 0 plates; "
        "a candidate takes 3, 3 and 2"
    )
    assert "nothing was trained" in untrained
    assert json.loads(site.ok("train", "show", str(run["id"]), "--json"))["gate_uses"] == 0
