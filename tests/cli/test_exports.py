"""Plates by their papers, through their inspections, and on sheets: the commands, on both databases."""

import csv
import io
import json
from pathlib import Path

import factories
import pytest
import sqlalchemy as sa
from factories import CRYSTALS, record, sightings, utc
from lab import Site
from PIL import Image

from marcod.database.engine import Database
from marcod.database.schema import drop_mark, image
from marcod.domain import DropClass
from marcod.model.registry import Registry
from marcod.store import derived, queue, results, versions, votes
from marcod.store.votes import NewLabel

CLEAR = (1.0, 0.0, 0.0, 0.0)
GREW = {"A01": 2, "A02": 3}
"""The inspection at which crystals appear, by well; there are three."""


def _scores(claim: queue.Claim) -> tuple[float, float, float, float]:
    _, inspection, _, name = claim.path.split("/")
    return CRYSTALS if int(inspection) >= GREW.get(name.removesuffix(".jpg"), 9) else CLEAR


@pytest.fixture
def lab(site: Site) -> Site:
    """Plate P at three inspections with four drops, of whose last images one is on the disk and one is broken."""
    root = site.folder / "plates"
    site.add_source("imager", root, "rigaku")
    site.add_source("later", site.folder / "later", "rigaku")
    site.write()
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db)
    for number in (1, 2, 3):
        record(db, source_id, sightings(4, plate="P", inspection=str(number)), utc(days=number))
        factories.drain(db, champion, utc(days=number), scores=_scores)
    db.close()
    folder = root / "P" / "3" / "visible"
    folder.mkdir(parents=True)
    Image.new("RGB", (400, 300), "gray").save(folder / "A01.jpg")
    (folder / "A02.jpg").write_bytes(b"no image")
    return site


def say(site: Site, well: str, inspection: str, word: DropClass) -> None:
    """What a person says, through the store."""
    ids = (
        'select d.id, i.id from "drop" d join inspection i on i.plate_id = d.plate_id where d.well = :w and i.key = :i'
    )
    [(drop_id, inspection_id)] = site.rows(ids, w=well, i=inspection)
    db = Database(site.url)
    db.write(lambda c: votes.add(c, [NewLabel(drop_id, inspection_id, word, "ann", utc(), "test")], utc()))
    db.write(lambda c: derived.refresh(c, [drop_id], [inspection_id], utc()))
    db.close()


def test_a_plate_through_its_inspections(lab: Site) -> None:
    shown = lab.ok("plate", "show", "P", "--history")
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:1] == "A"}
    assert lines == {
        "A01.1": [".", "X", "X", "appearing", "2", "0.900"],
        "A02.1": [".", ".", "X", "appearing", "3", "0.900"],
    }
    assert "2 of 4 drops are or were hits (crystals >= 0.07)" in shown
    assert "A04.1" in lab.ok("plate", "show", "P", "--history", "--all-drops")
    found = json.loads(lab.ok("plate", "show", "P", "--history", "--json"))
    assert [i["key"] for i in found["inspections"]] == ["1", "2", "3"]
    assert [d["first_hit_inspection_key"] for d in found["drops"]] == ["2", "3", None, None]
    assert [d["hit"] for d in found["drops"]] == [True, True, False, False]
    assert [look["hit"] for look in found["drops"][0]["inspections"]] == [False, True, True]
    assert lab.call("plate", "show", "P", "--all-drops").exit_code == 2
    assert lab.call("plate", "show", "P", "--history", "--inspection", "1").exit_code == 2


def test_a_person_s_word_counts_everywhere(lab: Site) -> None:
    say(lab, "A01", "3", DropClass.CLEAR)
    say(lab, "A04", "3", DropClass.CRYSTALS)
    rows = {row["well"]: row for row in csv.DictReader(io.StringIO(lab.ok("plate", "export", "P")))}
    assert [rows["A01"][name] for name in ("label", "hit", "model_label", "label_person", "label_disputed")] == [
        "Clear", "False", "Crystals", "ann", "False",
    ]  # fmt: skip
    assert [w for w, row in rows.items() if row["hit"] == "True"] == ["A02", "A04"]
    shown = lab.ok("plate", "show", "P")
    assert "4 drops: 2 hits (crystals >= 0.07); others by likeliest class: 2 Clear" in shown
    assert "labelled by people: A01.1 Clear (ann), A04.1 Crystals (ann)" in shown
    found = {hit["well"]: hit for hit in json.loads(lab.ok("hits", "--json"))}
    assert {well: (hit["trend"], hit["label_person"]) for well, hit in found.items()} == {
        "A01": ("dissolving", "ann"), "A02": ("appearing", None), "A04": ("appearing", "ann"),
    }  # fmt: skip
    say(lab, "A01", "2", DropClass.OTHER)
    assert {hit["well"] for hit in json.loads(lab.ok("hits", "--json"))} == {"A02", "A04"}


def harvest(site: Site, well: str, kind: str) -> None:
    """Mark a drop as harvested, or not."""
    ids = (
        'select d.id, i.id from "drop" d join inspection i on i.plate_id = d.plate_id where d.well = :w and i.key = :i'
    )
    [(drop_id, inspection_id)] = site.rows(ids, w=well, i="3")
    db = Database(site.url)
    values = {"drop_id": drop_id, "inspection_id": inspection_id, "kind": kind, "text": "", "person": "ann"}
    db.write(lambda c: c.execute(sa.insert(drop_mark).values(**values, marked_at=utc(days=9))))
    db.close()


def test_what_was_harvested_stands_in_the_exports_of_a_plate(lab: Site) -> None:
    for well, kind in (("A01", "harvested"), ("A02", "harvested"), ("A02", "unharvested"), ("A04", "note")):
        harvest(lab, well, kind)
    rows = list(csv.DictReader(io.StringIO(lab.ok("plate", "export", "P"))))
    assert [row["well"] for row in rows if row["harvested"] == "True"] == ["A01"]
    records = json.loads(lab.ok("plate", "export", "P", "--format", "json"))
    assert [record["harvested"] for record in records] == [True, False, False, False]
    assert "A01.1 X; harvested; crystals" in lab.ok("plate", "export", "P", "--format", "html", "--out", "-")


def test_a_sheet_of_a_plate(lab: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = lab.folder / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    assert "4 drops written to P-3.html" in lab.ok("plate", "export", "P", "--format", "html")
    text = (desk / "P-3.html").read_text()
    # Once on the map and once among the hits; what is broken or gone has a place.
    assert text.count('src="data:image/jpeg;base64,') == 2
    assert text.count("no image") == 4
    assert "trained on rendered drops alone" in text
    assert [path.name for path in desk.iterdir()] == ["P-3.html"]
    assert lab.ok("plate", "export", "P", "--format", "html", "--out", "-").startswith("<!doctype html>")
    assert lab.ok("plate", "export", "P", "--format", "json", "--out", "-").startswith("[")


def test_the_score_of_a_file_that_is_gone_names_the_model_that_gave_it(lab: Site) -> None:
    db = Database(lab.url)
    former = db.read(versions.champion)
    newer = factories.register(db, "newer", digest="b" * 64, synthetic=False, crystal_threshold=0.25)
    at = sa.select(image.c.id).where(image.c.path.contains("/3/")).order_by(image.c.path).limit(2)
    lost = [row.id for row in factories.rows(db, at)]
    db.write(results.mark_gone, lost, utc(days=4))
    factories.promote(db, newer, utc(days=5))
    rest = sa.select(image.c.id).where(image.c.gone_at.is_(None))
    db.write(queue.enqueue, [row.id for row in factories.rows(db, rest)], newer.id, utc(days=5), queue.RESCORE)
    factories.drain(db, newer, utc(days=5), scores=_scores)
    db.close()
    exported = list(csv.DictReader(io.StringIO(lab.ok("plate", "export", "P"))))
    own = (str(newer), "False")
    assert [(row["model"], row["model_synthetic"]) for row in exported] == [(str(former), "True")] * 2 + [own] * 2
    shown = " ".join(lab.ok("plate", "show", "P").split())
    assert f"2 drops by {former} (crystals >= {former.crystal_threshold:g}), since the files are gone" in shown
    assert "rendered drops" in shown
    sheet = lab.ok("plate", "export", "P", "--format", "html", "--out", "-")
    assert f"2 drops by {former}" in sheet
    assert "trained on rendered drops alone" in sheet


def test_nothing_is_written_where_imagers_write(lab: Site) -> None:
    inside = lab.folder / "plates" / "P" / "3" / "visible" / "A01.jpg"
    before = inside.read_bytes()
    result = lab.call("plate", "export", "P", "--out", str(inside))
    assert result.exit_code == 2
    assert "where only the imager writes" in result.stderr
    assert inside.read_bytes() == before
    result = lab.call("hits", "--export", str(lab.folder / "missing" / "hits.csv"))
    assert (result.exit_code, "there is no folder" in result.stderr) == (2, True)


def test_hits_in_files(lab: Site) -> None:
    for kind in ("csv", "json", "html"):
        assert "2 hits written" in lab.ok("hits", "--export", str(lab.folder / f"hits.{kind}"))
    rows = list(csv.DictReader((lab.folder / "hits.csv").open()))
    assert [(row["well"], row["first_hit_inspection_key"]) for row in rows] == [("A01", "2"), ("A02", "3")]
    assert [hit["cause"] for hit in json.loads((lab.folder / "hits.json").read_text())] == ["new", "new"]
    page = (lab.folder / "hits.html").read_text()
    assert "<h1>2 hits" in page
    assert "likeliest Crystals, imager" in page
    assert lab.call("hits", "--export", "hits.xlsx").exit_code == 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_file_holds_all_hits_or_says_that_it_does_not(site: Site) -> None:
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    files = factories.sightings(501)
    factories.record(db, factories.register_source(db), files)
    factories.drain(db, champion, scores=lambda claim: (0.0, 1.0, 0.0, 0.0))
    db.close()
    site.write()
    assert len(json.loads(site.ok("hits", "--json"))) == 25
    target = str(site.folder / "hits.csv")
    full = site.call("hits", "--export", target)
    assert ("501 hits written" in full.stdout, "--limit" in full.output) == (True, False)
    cut = site.call("hits", "--export", target, "--limit", "30")
    assert ("30 hits written" in cut.stdout, "30 of 501 hits written; --limit writes more" in cut.stderr) == (
        True,
        True,
    )
    images = site.call("hits", "--export", str(site.folder / "hits.html"))
    assert ("500 hits written" in images.stdout, "500 of 501 hits written" in images.stderr) == (True, True)
    assert "25 of 501 hits (crystals >= 0.07), best first; --limit shows more\n" in site.ok("hits")
    assert "501 hits (crystals >= 0.07), best first\n" in site.ok("hits", "--limit", "501")


def test_a_list_says_how_many_there_are(lab: Site) -> None:
    title = "2 of 3 inspections; hits: crystals >= 0.07; classes: the likeliest; --limit shows more\n"
    assert title in lab.ok("plate", "list", "--limit", "2")
    assert "1 of 2 hits (crystals >= 0.07), best first; --limit shows more" in lab.ok("hits", "--limit", "1")
    assert "1 of 2 hits" in lab.ok("hits", "--limit", "1", "--source", "imager")


def test_one_inspection_has_no_trend(lab: Site) -> None:
    db = Database(lab.url)
    record(db, factories.register_source(db), sightings(1, plate="ONCE"), utc(days=4))
    factories.drain(db, db.read(versions.champion), utc(days=4), scores=lambda claim: CRYSTALS)
    db.close()
    trends = {line.split()[1]: line.split()[5] for line in lab.ok("hits").splitlines() if " A01.1 " in line}
    assert trends == {"ONCE": "-", "P": "appearing"}
    assert [hit["trend"] for hit in json.loads(lab.ok("hits", "--json")) if hit["plate_key"] == "ONCE"] == ["steady"]
    assert "A01.1  X  -" in lab.ok("plate", "show", "ONCE", "--history")


def test_hits_are_chosen(lab: Site) -> None:
    table = lab.folder / "plates.csv"
    table.write_text("plate,source,project\nP,imager,PHIPA\n")
    lab.ok("plate", "import", str(table))
    assert len(json.loads(lab.ok("hits", "--project", "PHIPA", "--json"))) == 2
    assert json.loads(lab.ok("hits", "--project", "another", "--json")) == []
    assert json.loads(lab.ok("hits", "--source", "later", "--json")) == []
    db = Database(lab.url)
    other = factories.register(db, name="other", crystal_threshold=0.4)
    factories.promote(db, other, utc(days=4))
    db.write(lambda c: queue.enqueue_rescore(c, other.id, utc(days=4)))
    # The second model confirms A01, sees A03 where the first saw nothing, and thinks nothing of A02.
    factories.drain(db, other, utc(days=5), scores=lambda c: CRYSTALS if c.path[-7:-4] in ("A01", "A03") else CLEAR)
    db.close()
    causes = {hit["well"]: hit["cause"] for hit in json.loads(lab.ok("hits", "--json"))}
    assert causes == {"A01": "confirmed", "A03": "model"}
    assert [hit["well"] for hit in json.loads(lab.ok("hits", "--new", "--json"))] == ["A03"]
    assert json.loads(lab.ok("hits", "--since", "2026-01-07", "--json")) == []


def test_papers_by_the_command(lab: Site) -> None:
    table = lab.folder / "plates.csv"
    table.write_text("Plate ID;source;barcode;format;project\nP;imager;=B1;8x12x1;PHIPA\nQ;later;=B1;;\n")
    arguments = ("plate", "import", str(table), "--map", "Plate ID=plate")
    assert "1 new plate, 1 changed, 0 unchanged; nothing is written" in lab.ok(*arguments, "--dry-run")
    assert (lab.count("plate"), lab.count("source")) == (1, 1)
    assert "1 new plate, 1 changed, 0 unchanged" in lab.ok(*arguments)
    assert json.loads(lab.ok(*arguments, "--json"))["unchanged"] == 2
    recorded = "select s.name, r.root from source s join source_root r on r.source_id = s.id order by s.id"
    assert lab.rows(recorded)[-1] == ("later", str(lab.folder / "later"))
    assert {row[0] for row in lab.rows("select expected from lims_plate_summary_v1")} == {96}
    assert lab.rows("select action, subject from audit where action = 'plate barcode'") == [
        ("plate barcode", "imager P")
    ]
    assert "project PHIPA" in lab.ok("plate", "show", "=B1", "--source", "imager")
    result = lab.call("plate", "show", "Q")
    assert (result.exit_code, "no image of plate Q" in result.stderr) == (1, True)


def test_a_line_without_a_source_finds_the_plate_that_is_there(lab: Site) -> None:
    db = Database(lab.url)
    record(db, factories.register_source(db, "later"), sightings(1, plate="Q", barcode="BC7"), utc(days=4))
    db.close()
    table = lab.folder / "plates.csv"
    table.write_text("plate,project\nP,PHIPA\nBC7,lysozyme\n")
    assert "0 new plates, 2 changed" in lab.ok("plate", "import", str(table))
    assert lab.rows("select key, project from plate order by key") == [("P", "PHIPA"), ("Q", "lysozyme")]
    table.write_text("plate,format\nNEW,96x1\nP,1x3x1\nQ,96xx\n")
    wrong = lab.call("plate", "import", str(table))
    assert wrong.exit_code == 1
    assert "line 2: names no source, and no plate NEW is there yet" in wrong.stderr
    assert "line 3: plate P is said to be 1x3x1" in wrong.stderr
    assert "line 4: " in wrong.stderr


def test_wrong_papers_change_nothing(lab: Site) -> None:
    table = lab.folder / "plates.csv"
    table.write_text("plate,source,format\nNEW,imager,96x1\nP,imager,1x3x1\nX,nowhere,96x1\n")
    result = lab.call("plate", "import", str(table))
    assert result.exit_code == 1
    assert "line 3: plate P is said to be 1x3x1" in result.stderr
    assert "line 4: there is no source 'nowhere'" in result.stderr
    assert "nothing was imported" in result.stderr
    assert lab.count("plate") == 1
    result = lab.call("plate", "import", str(table), "--json")
    assert len(json.loads(result.stdout)["problems"]) == 2
    assert lab.call("plate", "import", str(table), "--map", "format=size").exit_code == 2
    assert lab.call("plate", "import", str(Path("nowhere.csv"))).exit_code == 2
