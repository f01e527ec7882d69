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
    """A lab that labelled all its drops, with a committee of a small network and a random one as champion."""
    folder = tmp_path_factory.mktemp("committee") / "site"
    folder.mkdir()
    made = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    shutil.copytree(pristine_members, folder / "models")
    drops = learner.make(made, min_test_crystals=2, member="small")
    facts = ask(made, "model", "combine", PARENT, "left:1", "--drops", "8", "--weights", "2,1")
    assert (facts["model"], [m["model"] for m in facts["members"]]) == ("committee:1", [PARENT, "left:1"])
    again = ask(made, "model", "combine", PARENT, "left:1", "--drops", "8", "--weights", "2,1")
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
    assert f"{PARENT}, weight 67%" in site.ok("model", "show", "champion")
    assert dict(site.rows("select name, count(*) from score join model_version on model_version_id = model_version.id "
                          "group by name")) == {"committee": 120, "small": 120, "left": 120}  # fmt: skip
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


def test_one_member_learns_and_the_committee_is_built_again(site: Site) -> None:
    run = json.loads(site.call("retrain", "--json").stdout)
    assert run["numbers"]["member_parent"] == PARENT, run["reasons"]
    candidate = Path(run["folder"]) / "candidate"
    name, number = run["candidate"].split(":")
    record = bundle.verify(candidate / name / number)
    assert record.committee is not None
    assert [str(m) for m in record.committee.members] == ["lab:1", "left:1"]
    assert record.committee.members[0].digest == bundle.verify(candidate / "lab" / "1").digest
    assert record.parent == "committee:1"
    site.ok("label", "suspects")
