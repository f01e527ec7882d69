"""A committee as a lab uses it: made of two bundles by one command, it scores, is explained, judged, and learns."""

import json
import shutil
from pathlib import Path
from typing import Any

import learner
import pytest
from lab import Site

from marcod.model import bundle

pytestmark = pytest.mark.story
PARENT = learner.SMALL


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pristine_members: Path) -> Site:
    """A lab that labelled all its drops, with a committee of a small network and a random one as champion.

    The small network was made for drops and is wrong about the patterns that this imager shows.
    """
    folder = tmp_path_factory.mktemp("committee") / "site"
    folder.mkdir()
    made = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    shutil.copytree(pristine_members, folder / "models")
    drops = learner.make(made, member="small")
    # The random member says nearly the same of all rendered drops, so by their deviation it is loud on patterns.
    asked = ("model", "combine", PARENT, "left:1", "--drops", "8", "--weights", "300,1")
    facts = ask(made, *asked)
    assert (facts["model"], [m["model"] for m in facts["members"]]) == ("committee:1", [PARENT, "left:1"])
    again = ask(made, *asked)
    assert (again["model"], again["digest"]) == ("committee:1", facts["digest"])
    made.ok("model", "promote", "committee:1")
    made.ok("score")
    learner.teach(made, drops)
    return made


def ask(site: Site, *arguments: str) -> Any:
    return json.loads(site.ok(*arguments, "--json"))


def listed(site: Site) -> dict[str, Any]:
    return {str(row["model"]): row for row in ask(site, "model", "list")}


def test_it_is_a_version_like_any_other(site: Site, tmp_path: Path) -> None:
    row = listed(site)["committee:1"]
    assert (row["aliases"], row["members"], row["synthetic"]) == ("champion", [PARENT, "left:1"], True)
    assert f"{PARENT}, weight 100%" in site.ok("model", "show", "champion")
    assert scored(site) == {"committee:1": 120, PARENT: 120, "left:1": 120}
    plate = site.rows("select plate_key from lims_plate_summary_v1")[0][0]
    shown = {name: ask(site, "plate", "show", plate, "--model", name) for name in ("left:1", "champion")}
    assert len({json.dumps(one["drops"]) for one in shown.values()}) == 2
    site.ok("plate", "heatmap", plate, "A01", "--samples", "2", "--out", str(tmp_path / "heat.png"))
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    site.ok("model", "verify", "--all")
    judged = ask(site, "model", "evaluate", "committee:1", "--from-database", "--split", "all")
    assert judged["data"]["images"] == 120


def test_constants_from_the_labs_own_scores(site: Site) -> None:
    facts = ask(site, "model", "combine", PARENT, "left:1", "--from-database", "--name", "own-committee")
    assert "images of this lab, without test plates" in facts["fixed_on"]
    # Nobody has scored with it yet, and its members' scores are enough to judge it.
    shutil.move(site.folder / "export", site.folder / "away")
    try:
        judged = ask(site, "model", "evaluate", "own-committee:1", "--from-database", "--split", "all")
    finally:
        shutil.move(site.folder / "away", site.folder / "export")
    assert judged["data"]["images"] == 120


def test_a_calibrated_committee_keeps_its_members(site: Site) -> None:
    facts = ask(site, "model", "calibrate", "committee:1", "--from-database", "--recall", "0.6")
    record = bundle.verify(Path(facts["folder"]))
    assert record.committee == bundle.read(site.folder / "models" / "committee" / "1").committee
    assert record.parent == "committee:1"


def test_the_gate_promotes_a_committee_whose_member_learned(site: Site) -> None:
    """The rebuilt committee takes over waiting images, and the former one takes them back."""
    learner.deliver(site.folder / "export", 1, first=50)
    site.ok("scan")
    run = json.loads(site.ok("retrain", "--json"))
    assert (run["state"], run["tier"]) == ("promoted", "head"), run["reasons"]
    name, number = run["candidate"].split(":")
    assert (run["numbers"]["member"], run["numbers"]["member_parent"]) == ("lab:1", PARENT)
    was, now = (run["numbers"]["gate"][name] for name in ("champion", "candidate"))
    assert was["crystal_average_precision"] < 0.5 < 0.9 < now["crystal_average_precision"]
    assert now["accuracy"] > was["accuracy"] + 0.2
    record = bundle.verify(site.folder / "models" / name / number)
    assert record.committee is not None
    assert [str(m) for m in record.committee.members] == ["lab:1", "left:1"]
    assert record.committee.members[0].digest == bundle.verify(site.folder / "models" / "lab" / "1").digest
    assert record.parent == "committee:1"
    models = listed(site)
    assert (models[run["candidate"]]["aliases"], models["committee:1"]["aliases"]) == ("champion", "previous")
    assert models["lab:1"]["registered_at"] is not None
    assert site.call("model", "remove", "lab:1", "--force").exit_code == 1
    site.ok("label", "suspects")


def test_what_waits_goes_to_the_next_committee_and_back(site: Site) -> None:
    """Plates that are still arriving are scored whole by it; after a rollback no score of the champion is missing."""
    new = next(name for name, row in listed(site).items() if row["aliases"] == "champion")
    waiting = "select name || ':' || version, count(*) from job join model_version v on v.id = model_version_id"
    assert [tuple(row) for row in site.rows(f"{waiting} group by 1")] == [(new, 132)]
    site.ok("score")
    by_new = {new: 132, "lab:1": 132, "left:1": 132}
    assert scored(site) == by_new | {"committee:1": 120, PARENT: 120}
    site.ok("model", "rollback")
    assert listed(site)["committee:1"]["aliases"] == "champion"
    site.ok("score")
    assert scored(site) == by_new | {"committee:1": 132, PARENT: 132}
    assert {row[0] for row in site.rows("select model || ':' || model_version from lims_drop_v1")} == {"committee:1"}
    again = json.loads(site.ok("retrain", "--json"))
    assert (again["state"], listed(site)["committee:1"]["aliases"]) == ("unchanged", "champion")


def scored(site: Site) -> dict[str, int]:
    """How many images each version scored."""
    counts = "select name || ':' || version, count(*) from score join model_version v on v.id = model_version_id "
    return dict(site.rows(counts + "group by 1"))
