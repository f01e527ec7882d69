"""`marcod source`, and the trap of the first day: a folder scanned by hand and configured later."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from lab import Site, delivery
from waiting import wait_until

from marcod.synthetic import ImagerStyle

pytestmark = pytest.mark.story


@pytest.fixture
def scanned(site: Site) -> Path:
    """A folder with one plate, scanned by hand."""
    root = site.folder / "images"
    delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.05).write(root)
    site.write()
    site.ok("scan", str(root), "--layout", "rigaku")
    return root


@pytest.fixture
def tried(site: Site) -> None:
    """The README's example configuration, tried once: its folder was not there, and its name is recorded."""
    site.add_source("minstrel", site.folder / "mnt" / "minstrel3", "rigaku")
    site.write()
    with site.daemon("watch") as process:
        wait_until(lambda: site.count("watch_state") == 1, "the source of the example to be watched")
        assert site.call("source", "rename", "minstrel", "m3").exit_code == 1, "a living worker watches it"
        site.wait_until_running(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    site.lines.clear()


def listed(site: Site) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(site.ok("source", "list", "--json"))}


def test_a_folder_scanned_by_hand_and_configured_later_has_its_plates_once(
    site: Site, tried: None, scanned: Path
) -> None:
    images = site.count("image")
    (by_hand,) = listed(site).keys() - {"minstrel"}
    site.add_source("minstrel", scanned, "rigaku")
    site.write()
    looked = site.call("scan")
    assert (looked.exit_code, "0 new" in looked.stdout) == (0, True)
    assert looked.stdout.startswith(f"minstrel: what was recorded as source {by_hand} belongs to it now\n")
    assert "former=" not in looked.output
    assert (site.count("image"), list(listed(site))) == (images, ["minstrel"])
    assert site.rows("select subject from audit where action = 'source merge'") == [(by_hand,)]
    assert json.loads(site.ok("plate", "list", "--json"))[0]["source"] == "minstrel"
    shown = json.loads(site.ok("source", "show", "minstrel", "--json"))
    assert (shown["contents"]["images"], shown["source"]["root"]) == (images, str(scanned))
    assert str(scanned) in site.ok("source", "show", "minstrel")


def test_what_is_there_twice_already_is_merged(site: Site, scanned: Path) -> None:
    """A copy of a folder that was scanned too."""
    (by_hand,) = listed(site)
    copy = site.folder / "copy"
    delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.05).write(copy)
    site.ok("scan", str(copy), "--layout", "rigaku", "--source", "twin")
    images = listed(site)["twin"]["images"]
    refused = site.call("plate", "show", "CI030117")
    assert refused.exit_code == 1
    assert f"`marcod source merge {by_hand} twin`" in refused.stderr
    dry = json.loads(site.ok("source", "merge", by_hand, "twin", "--dry-run", "--json"))
    assert (dry["plan"]["same_images"], site.count("image")) == (images, 2 * images)
    done = json.loads(site.ok("source", "merge", by_hand, "twin", "--json"))
    assert done["plan"] == dry["plan"]
    assert site.count("image") == images
    assert by_hand not in listed(site)
    assert "twin" in site.ok("source", "rename", "twin", "minstrel3", "--dry-run")
    site.ok("source", "rename", "twin", "minstrel3")
    unknown = site.call("source", "show", "minstral")
    assert (unknown.exit_code, "minstrel3" in unknown.stderr) == (1, True)


def test_labels_are_saved_before_a_source_is_forgotten(site: Site, scanned: Path) -> None:
    (by_hand,) = listed(site)
    files = sorted(path for path in scanned.rglob("*") if path.is_file())
    well = site.rows('select well from "drop" order by id limit 1')[0][0]
    site.ok("label", "add", "CI030117", well, "Crystals", "--person", "ann")
    for flags, code, said in (((), 1, "--labels-to FILE"), (("--with-labels",), 2, "give --yes")):
        refused = site.call("source", "forget", by_hand, *flags)
        assert (refused.exit_code, said in refused.stderr) == (code, True)
    assert "would be removed" in site.ok("source", "forget", by_hand, "--dry-run")
    inside = site.call("source", "forget", by_hand, "--yes", "--labels-to", str(scanned / "labels.csv"))
    assert (inside.exit_code, site.count("label")) == (2, 1)
    saved = site.folder / "labels.csv"
    site.ok("source", "forget", by_hand, "--yes", "--labels-to", str(saved))
    assert [site.count(table) for table in ("image", "label", "plate")] == [0, 0, 0]
    assert sorted(path for path in scanned.rglob("*") if path.is_file()) == files
    (row,) = csv.DictReader(saved.open())
    assert (row["plate"], row["well"], row["label"], row["person"]) == ("CI030117", well, "Crystals", "ann")
    site.ok("scan", str(scanned), "--layout", "rigaku")
    site.ok("label", "import", str(saved))
    assert site.count("label") == 1


def test_roots_inside_roots_are_refused_everywhere(site: Site, scanned: Path) -> None:
    site.add_source("wide", site.folder, "rigaku")
    site.add_source("narrow", scanned, "rigaku")
    site.write()
    for command in (("config", "check"), ("run",), ("scan",), ("scan", "--source", "narrow")):
        refused = site.call(*command)
        assert refused.exit_code == 2, command
        assert f"{scanned} of source 'narrow' lies inside {site.folder} of source 'wide'" in refused.stderr
    site.lines.clear()
    site.write()
    (plate,) = [path for path in scanned.iterdir() if path.is_dir()]
    inside = site.call("scan", str(plate), "--layout", "rigaku")
    assert (inside.exit_code, f"lies inside {scanned}" in inside.stderr) == (2, True)
