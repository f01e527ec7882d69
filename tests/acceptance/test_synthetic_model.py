"""A model trained on rendered drops alone steps back: whoever looks is told, with the command that ends it."""

import json

import factories
import pytest
from lab import Site, delivery

from marcod.database.engine import Database
from marcod.synthetic import ImagerStyle

pytestmark = pytest.mark.story

REMEDY = "`marcod model fetch marco` brings the published MARCO"


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_it_says_so_wherever_its_scores_are_shown(site: Site) -> None:
    delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.03).write(site.folder / "in")
    site.add_source("minstrel", site.folder / "in", "rigaku")
    site.write(models={"folder": str(site.folder / "models")})

    assert "lite0:1 was trained on rendered drops alone" in in_one_line(site.ok("scan"))
    assert "Scored by" not in site.ok("plate", "show", "CI030117") + site.ok("plate", "list")
    for command in (["scan", "--json"], ["score", "--json"], ["plate", "export", "CI030117"]):
        result = site.call(*command)
        assert "rendered drops" not in result.stdout, command
        assert REMEDY in in_one_line(result.stderr), command
        if "--json" in command:
            json.loads(result.stdout)
    for command in (["plate", "list"], ["plate", "show", "CI030117"], ["model", "list"], ["status"]):
        assert REMEDY in in_one_line(site.ok(*command)), command
    assert "needs attention" in site.ok("status")
    examined = site.call("doctor", "--no-device", "--json")
    findings = {f"{f['area']}: {f['subject']}": f for f in json.loads(examined.stdout)["findings"]}
    assert (examined.exit_code, findings["models: champion"]["verdict"]) == (3, "attention")
    assert REMEDY in findings["models: champion"]["advice"]


def test_another_champion_ends_it(site: Site) -> None:
    root = site.folder / "in"
    root.mkdir()
    site.add_source("minstrel", root, "rigaku")
    site.write(models={"folder": str(site.folder / "models")})
    asked = (["scan"], ["model", "list"], ["status"])
    assert [REMEDY in in_one_line(site.ok(*command)) for command in asked] == [True, True, True]
    db = Database(site.url)
    factories.promote(db, factories.register(db, "lab", synthetic=False))
    db.close()
    assert not any("rendered drops" in site.ok(*command) for command in asked)
