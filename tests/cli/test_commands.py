"""The commands that read, on a plate whose scores are set by hand, so that every number is known."""

import csv
import io
import json
import re
from pathlib import Path

import factories
import pytest
from click.testing import CliRunner
from factories import utc
from lab import Site

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.domain import path_text
from marcod.model.registry import Registry
from marcod.store import queue, versions

CRYSTALS_IN = {"P/1/visible/B03.jpg", "P/1/visible/C07.jpg"}
CRYSTALS = (0.0, 1.0, 0.0, 0.0)
CLEAR = (1.0, 0.0, 0.0, 0.0)


def _scores(claim: queue.Claim) -> tuple[float, float, float, float]:
    return CRYSTALS if claim.path in CRYSTALS_IN else CLEAR


@pytest.fixture
def plate(site: Site) -> Site:
    """Plate P, 48 wells, two of them with crystals, one failed, and two other plates of one barcode."""
    site.write()
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db, expected_drops=48)
    factories.record(db, source_id, factories.sightings(48, plate="P", barcode="=cmd()"))
    lease = factories.claimed(db)
    bad = [queue.Failure(c, "truncated", retryable=False) for c in lease.claims if c.path.endswith("/D12.jpg")]
    factories.finish(db, lease, champion, scores=_scores, failures=bad)
    for name in ("two", "three"):
        other = factories.register_source(db, name)
        factories.record(db, other, factories.sightings(2, plate="X", barcode="SAME"))
    factories.drain(db, champion, scores=_scores)
    db.close()
    return site


def test_plate_list(plate: Site) -> None:
    rows = {row["plate_key"]: row for row in json.loads(plate.ok("plate", "list", "--json"))}
    assert (rows["P"]["hits"], rows["P"]["scored"], rows["P"]["failed"], rows["P"]["complete"]) == (2, 47, 1, True)
    listed = plate.ok("plate", "list")
    assert "3 inspections; hits: crystals >= 0.07; classes: the likeliest" in listed
    assert re.search(r"drops +precipitate +clear +other +crystals +", listed)
    assert "complete (expected)" in listed


def test_plate_show(plate: Site) -> None:
    shown = plate.ok("plate", "show", "P")
    lines = {line.split()[0]: line for line in shown.splitlines() if line[:2].strip() in set("ABCDEFGH")}
    assert lines["B"].split()[1:].index("X") == 2
    assert "!" in lines["D"]
    counted = "48 drops: 2 hits (crystals >= 0.07); others by likeliest class: 45 Clear; 1 failed; complete (expected)"
    assert counted in shown
    assert len(json.loads(plate.ok("plate", "show", "P", "--json"))["drops"]) == 48


def test_plate_export_is_safe_for_spreadsheets(plate: Site) -> None:
    target = plate.folder / "plate.csv"
    plate.ok("plate", "export", "P", "--output", str(target))
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert {row["barcode"] for row in rows} == {"'=cmd()"}
    assert [row["well"] for row in rows if row["hit"] == "True"] == ["B03", "C07"]
    assert {row["barcode"] for row in json.loads(plate.ok("plate", "export", "P", "--format", "json"))} == {"=cmd()"}


def test_a_barcode_of_two_plates_asks_which(plate: Site) -> None:
    result = plate.call("plate", "show", "SAME")
    assert result.exit_code == 1
    assert "several plates answer" in result.stderr
    assert plate.call("plate", "show", "SAME", "--source", "two").exit_code == 0


def test_hits(plate: Site) -> None:
    assert [hit["well"] for hit in json.loads(plate.ok("hits", "--json"))] == ["B03", "C07"]
    assert json.loads(plate.ok("hits", "--since", "2027-01-01", "--json")) == []
    assert "B03" in plate.ok("hits")
    assert plate.call("hits", "--since", "yesterday").exit_code == 2


def test_queue_failed_and_retry(plate: Site) -> None:
    [failed] = json.loads(plate.ok("queue", "failed", "--json"))
    assert (failed["path"], failed["error"]) == ("P/1/visible/D12.jpg", "truncated")
    assert "1 failed" in plate.ok("queue", "status")
    assert "1 image is back" in plate.ok("queue", "retry", str(failed["image_id"]))
    status = json.loads(plate.ok("queue", "status", "--json"))
    assert (status["queue"]["waiting"], status["queue"]["failed"]) == (1, 0)
    assert status["workers"] == []
    [summary] = [row for row in json.loads(plate.ok("plate", "list", "--json")) if row["plate_key"] == "P"]
    assert summary["failed"] == 0


def test_rescore_without_waiting_queues_what_a_version_has_not_seen(plate: Site) -> None:
    db = Database(plate.url)
    other = factories.register(db, name="other")
    db.close()
    champion = json.loads(plate.ok("rescore", "--plate", "P", "--no-wait", "--json"))
    assert champion["queued"] == 0
    result = plate.call("rescore", "--plate", "P", "--model", "other:1", "--no-wait")
    assert result.exit_code == 1
    assert "no bundle other:1" in result.stderr
    assert plate.rows("select count(*) from job where model_version_id = :id", id=other.id)[0][0] == 0


def test_rescore_without_an_image_says_so(site: Site) -> None:
    site.write()
    table = site.folder / "plates.csv"
    table.write_text("plate,source,project\nNOPE,imager,PHIPA\n")
    db = Database(site.url)
    factories.register_source(db)
    Registry(db).ensure_champion(utc())
    db.close()
    site.ok("plate", "import", str(table))
    said = "has arrived that could be scored; `marcod scan` takes in what lies there\n"
    assert site.ok("rescore", "--plate", "NOPE") == f"no image of plate NOPE {said}"
    assert site.ok("rescore", "--all") == site.ok("rescore", "--since", "1h") == f"no image {said}"
    assert json.loads(site.ok("rescore", "--all", "--json"))["queued"] == 0


def test_rescore_says_what_comes_before_it(plate: Site) -> None:
    db = Database(plate.url)
    factories.record(db, factories.register_source(db, "four"), factories.sightings(3, plate="N"))
    db.close()
    plate.ok("queue", "retry")
    said = plate.ok("rescore", "--plate", "P", "--no-wait")
    assert "behind 4 new images" in said
    assert json.loads(plate.ok("rescore", "--plate", "P", "--no-wait", "--json"))["new_before"] == 4


UNKNOWN = [
    (
        ("label", "add", "P", "B03", "Cristals"),
        1,
        "'Cristals' is not in the vocabulary marco; the words are Crystals, ",
    ),
    (("label", "add", "P", "B33", "Clear"), 1, "the wells with drops are B03, "),
    (("label", "add", "Pp", "B03", "Clear", "--source", "imager"), 1, "the plates are =cmd()"),
    (("label", "add", "P", "B03", "Clear", "--source", "imagar"), 1, "the sources are imager, three, two"),
    (("label", "add", "P", "B03", "Clear", "--drop", "2"), 1, "the drops of that well are 1"),
    (("label", "add", "P", "B03", "Clear", "--inspection", "7"), 1, "the inspections are 1"),
    (("label", "add", "P", "B03", "Clear", "--vocabulary", "hwl"), 2, "the vocabularies are hwi, "),
    (("review", "add", "P", "B33"), 1, "the wells with drops are B03, "),
    (("plate", "show", "SAMA"), 1, "the plates are SAME, =cmd()"),
    (("plate", "show", "P", "--source", "imagar"), 1, "the sources are imager, three, two"),
    (("plate", "show", "P", "--inspection", "7"), 1, "the inspections are 1"),
    (("plate", "show", "P", "--model", "marco-synthetic:1"), 1, "the models are lite0:1"),
    (("model", "promote", "marco-synthetic:1"), 1, "the models here are lite0:1"),
    (("rescore", "--plate", "Q", "--no-wait"), 1, "the plates are "),
    (("hits", "--source", "imagar"), 1, "the sources are imager, three, two"),
    (("hits", "--project", "kinase"), 1, "there are no projects"),
    (("notify", "retry", "lims"), 2, "there are no targets"),
    (("scan", "--source", "imagar"), 2, "there are no sources"),
    (("queue", "retry", "4711"), 1, "none of these images is in quarantine"),
]
"""Commands with a word that nobody knows, the exit code, and the beginning of the words that are offered."""


def test_an_unknown_word_is_answered_with_those_there_are(plate: Site) -> None:
    for arguments, code, offered in UNKNOWN:
        result = plate.call(*arguments)
        assert (result.exit_code, offered in result.stderr) == (code, True), (arguments, result.stderr)


def test_model_list_and_promote(plate: Site) -> None:
    [row] = json.loads(plate.ok("model", "list", "--json"))
    assert (row["model"], row["aliases"], row["synthetic"]) == ("lite0:1", "champion", True)
    assert "is champion" in plate.ok("model", "promote", "lite0:1")
    assert plate.call("model", "promote", "none:1").exit_code == 1


def test_database_commands(plate: Site) -> None:
    assert json.loads(plate.ok("db", "check", "--json"))["schema"] == "current"
    assert "is current" in plate.ok("db", "upgrade")


def test_config_commands(plate: Site) -> None:
    shown = json.loads(plate.ok("config", "show", "--json"))
    assert shown["watch"]["settle_s"] == 0.3
    assert "watch.settle_s" in plate.ok("config", "show")
    assert "configuration is fine" in plate.ok("config", "check")


def test_explain(plate: Site) -> None:
    path = "90j8_2018-04-11_RI1000-0081-2drop/90j8_01A_1.jpg"
    answers = json.loads(plate.ok("explain", path, "--json"))[path]
    [match] = [answer for answer in answers if answer["drop_image"]]
    assert (match["layout"], match["plate_key"], match["well"], match["drop"]) == ("xchem", "90j8", "A01", 1)
    assert "xchem" in plate.ok("explain", path)
    assert "thumbnail" in plate.ok(
        "explain", "WellImages/1/plateID_1/batchID_2/wellNum_1/profileID_1/d1_r1_th.jpg", "--layout", "formulatrix"
    )
    for more in ((), ("--json",)):
        unknown = plate.call("explain", path, "holiday.jpg", *more)
        assert (unknown.exit_code, "no family" in unknown.stdout) == (2, not more)
    assert plate.call("explain", path, "--layout", "hwi").exit_code == 2


def test_a_look_by_hand_does_not_take_over_a_configured_source(site: Site) -> None:
    """Its name, its profiles and its expected drops stand in a configuration that this call did not read."""
    root = site.folder / "store"
    root.mkdir()
    site.add_source("rock-imager", root, "formulatrix", expected_drops=96)
    site.write()
    site.ok("scan")
    before = site.rows("select name, reading, expected_drops from source")
    site.lines.clear()
    site.write()
    result = site.call("scan", str(root / ".." / "store"), "--layout", "formulatrix")
    assert result.exit_code == 2
    assert "'rock-imager'" in result.stderr
    assert site.rows("select name, reading, expected_drops from source") == before


@pytest.mark.parametrize("command", ["plate import", "review import", "label import", "db restore --yes"])
def test_what_is_to_be_read_and_is_not_there(site: Site, command: str) -> None:
    site.write()
    result = site.call(*command.split(), "nowhere.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("marcod: nowhere.csv does not exist; name a")


def test_without_a_source_the_next_step_is_said(site: Site) -> None:
    site.write()
    assert "no image is recorded yet; `marcod setup FOLDER` configures a source" in site.ok("score")
    run = site.call("run")
    assert (run.exit_code, "`marcod setup FOLDER` adds what an imager writes to" in run.stderr) == (2, True)


def test_a_folder_looked_at_by_hand_twice_is_one_source(site: Site) -> None:
    root = site.folder / "store"
    root.mkdir()
    site.write()
    for _ in range(2):
        site.ok("scan", str(root), "--layout", "formulatrix")
    assert site.count("source") == 1


def test_completion_knows_the_commands(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    from click.shell_completion import BashComplete

    from marcod.cli import cli

    found = {item.value for item in BashComplete(cli, {}, "marcod", "_MARCOD_COMPLETE").get_completions([], "re")}
    assert found == {"rescore", "retrain", "review"}


def test_a_hostile_barcode_cannot_steer_the_terminal(site: Site) -> None:
    site.write()
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db)
    name = "\x1b[31mred\x1b[0m"
    factories.record(db, source_id, factories.sightings(1, plate=name))
    factories.drain(db, champion)
    assert db.read(versions.champion) == champion
    db.close()
    assert "\x1b[31m" not in site.ok("plate", "list")
    for given in (name, path_text(name)):
        assert "\x1b[31m" not in site.ok("plate", "show", given)


@pytest.mark.parametrize("command", [["scan"], ["setup"], ["--config"], ["label", "import"]])
@pytest.mark.parametrize(("path", "why"), [("", "it is empty"), ("x" * 5000, "too long for a file")])
def test_a_path_that_no_file_can_have_is_a_matter_of_usage(command: list[str], path: str, why: str) -> None:
    result = CliRunner().invoke(cli, [*command, path, *(["status"] if command == ["--config"] else [])])
    assert (result.exit_code, why in result.stderr) == (2, True), result.output


def test_a_name_of_any_length_is_explained() -> None:
    result = CliRunner().invoke(cli, ["explain", "x" * 5000 + ".jpg"])
    assert (result.exit_code, "the path is longer than 4096 characters" in result.output) == (0, True), result.output


def test_a_link_to_itself_is_not_the_configuration_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "loop.toml"), "config", "check"])
    assert (result.exit_code, "did you mean" in result.output) == (2, False), result.output
