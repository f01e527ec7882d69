"""What people say of drops, by every way it comes: it wins over the score, and taking it back restores the score."""

import json
import os
from typing import Any

import factories
import pytest
from factories import utc
from lab import Site, terminate
from waiting import wait_until

from marcod.database.engine import Database
from marcod.model.registry import Registry

REPORT = (
    "03/16/10 08:36:21\n"
    '"D:\\export\\P\\Crystals\\P_A1_Visible_9_1.jpg","Crystals",Drop,03/17/10 09:00:00\n'
    '"D:\\export\\P\\Sand\\P_A2_Visible_4_1.jpg","Sand",Drop,03/17/10 09:00:00\n'
)
MSO = "X000015862202008111512-jpg.rar\tmsoversion2\nWell\tCocktail\n1\t17_C0450\t10-90\n2\t17_C0451\t25\n"
MINSTREL = "RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_{}_01_01_HF_99_030_001_RDI.jpg"

FORMATS: dict[str, tuple[str, str, str, str]] = {
    "csv": ("P", "1", "labels.csv", "plate,well,label,inspection\nP,A1,crystals,1\nP,A2,sand,1\n"),
    "rockmaker": ("P", "1", "P/report.csv", REPORT),
    "hwi": ("X000015862", "202008111512", "run.mso", MSO),
    "sgc": (
        "CI022987", "3", "scores.csv",
        f"image name,score,who\n{MINSTREL.format('01')},36,ann\n{MINSTREL.format('02')},33,ann\n",
    ),
    "ispyb": ("P", "1", "ispyb.csv", "barcode,well,score\nP,A01,9\nP,A02,5\n"),
    "pims": ("P", "1", "pims.csv", "barcode;well;drop;score\nP;A01;1;1\nP;A02;1;3\n"),
}  # fmt: skip
"""Plate, inspection, file and its text: well A01 is crystals, the word for A02 is left open."""


@pytest.fixture
def lab(site: Site) -> Site:
    """A lab with no plates yet."""
    site.write()
    return site


def imaged(lab: Site, plate: str, inspection: str = "1", **more: Any) -> None:
    """Wells A01 to A03 of a plate, all scored clear."""
    db = Database(lab.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db)
    files = factories.sightings(3, plate=plate, inspection=inspection, inspection_ordinal=None, **more)
    factories.record(db, source_id, files)
    factories.drain(db, champion, scores=lambda claim: (1.0, 0.0, 0.0, 0.0))
    db.close()


def shown(lab: Site) -> list[Any]:
    """All that a LIMS sees of the plate, but when it changed."""
    drop = "select well, label, label_person, hit, p_crystals, trend from lims_drop_v1 order by well"
    plate = "select n_clear, n_crystals, n_other, n_precipitate, hits, labelled, best_wells from lims_plate_summary_v1"
    return [tuple(row) for row in (*lab.rows(drop), *lab.rows(plate))]


def written(lab: Site, name: str, text: str) -> str:
    path = lab.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def overrides(lab: Site, kind: str) -> None:
    """Import a file, look, import it again, take the label back, look."""
    plate, inspection, name, text = FORMATS[kind]
    imaged(lab, plate, inspection)
    before = shown(lab)
    path = written(lab, name, text)
    imported = ("label", "import", path, "--format", kind, "--person", "ann")
    result = lab.call(*imported, "--json")
    assert result.exit_code == 3, result.output
    done = json.loads(result.stdout)
    assert (done["rows"], done["new"], done["known"], done["problems"]) == (2, 1, 0, [])
    assert list(done["unmapped"].values()) == [1]
    after = shown(lab)
    assert after[0][:4] == ("A01", "Crystals", "ann", True)
    assert after[1:3] == before[1:3]
    assert after[3][:6] == (2, 1, 0, 0, 1, 1)
    assert '"A01"' in after[3][6].split("}")[0]
    assert "0 labels taken, 1 known before" in lab.call(*imported).stdout
    assert "1 label of ann withdrawn" in lab.ok("label", "withdraw", plate, "A1", "--person", "ann")
    assert shown(lab) == before


def test_a_label_overrides_and_taking_it_back_restores(lab: Site) -> None:
    overrides(lab, "csv")


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"csv"}))
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_so_does_every_other_format(lab: Site, kind: str) -> None:
    overrides(lab, kind)


def test_one_label_by_hand_and_by_the_lims(lab: Site) -> None:
    imaged(lab, "P")
    before = shown(lab)
    assert "A2 of P is Crystals, says ann" in lab.ok("label", "add", "P", "A2", "crystals", "--person", "ann")
    assert shown(lab)[1][:3] == ("A02", "Crystals", "ann")
    lab.ok("label", "add", "P", "A2", "sgc:32", "--person", "bob")
    assert lab.rows("select label, label_disputed from lims_drop_v1 where well = 'A02'") == [("Other", True)]
    listed = json.loads(lab.ok("label", "list", "--plate", "P", "--disputed", "--json"))
    assert [(row["person"], row["label"], row["original"]) for row in listed] == [
        ("bob", "Other", "sgc:32"),
        ("ann", "Crystals", "crystals"),
    ]
    assert "! " in lab.ok("label", "list", "--since", "1h")
    for person in ("ann", "bob"):
        lab.ok("label", "withdraw", "P", "A2", "--person", person)
    assert shown(lab) == before
    result = lab.call("label", "withdraw", "P", "A2", "--person", "ann")
    assert result.exit_code == 1
    assert "ann says nothing of A2 of P there" in result.stderr


def test_labels_that_count_are_counted(lab: Site) -> None:
    imaged(lab, "P")
    for well, person in (("A1", "ann"), ("A2", "ann"), ("A1", "ann"), ("A2", "bob")):
        lab.ok("label", "add", "P", well, "Crystals", "--person", person)
    lab.ok("label", "withdraw", "P", "A2", "--person", "bob")
    assert lab.ok("label", "list").startswith("2 labels that count; 5 entries, the latest first\n")
    limited = lab.ok("label", "list", "--limit", "3")
    assert limited.startswith("2 labels that count; 3 of 5 entries, the latest first; --limit shows more\n")
    assert lab.ok("label", "list", "--person", "bob").startswith("0 labels that count; 2 entries")
    lab.ok("label", "add", "P", "A3", "Clear", "--person", "eve")
    assert lab.ok("label", "list", "--person", "eve").startswith("1 label\n")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_was_left_is_taken_after_the_tables_were_changed(lab: Site) -> None:
    imaged(lab, "P")
    path = written(lab, "P/report.csv", REPORT)
    result = lab.call("label", "import", path, "--person", "ann")
    assert result.exit_code == 3
    assert "'Sand' is not in the vocabulary rockmaker; the words are " in result.stdout
    assert "; or give it a class in the file named by labels.vocabularies" in result.stdout
    own = written(lab, "own.toml", '[rockmaker.words]\nSand = "Precipitate"\n')
    lab.write(labels={"vocabularies": own})
    assert "1 label taken, 1 known before" in lab.ok("label", "import", path, "--person", "ann")
    assert [row[1] for row in shown(lab)[:3]] == ["Crystals", "Precipitate", "Clear"]
    assert lab.rows("select original, vocabulary, origin from label where label = 'Precipitate'") == [
        ("Sand", "rockmaker", "rockmaker report.csv")
    ]
    words = json.loads(lab.ok("label", "vocabularies", "rockmaker", "--json"))["rockmaker"]
    assert (words["Sand"], words["Crystal Else"]) == ("Precipitate", "unmapped")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_lines_that_cannot_be_taken_are_reported_and_the_rest_is_taken(lab: Site) -> None:
    imaged(lab, "P")
    text = "plate,well,label,path\nP,A1,Crystals,\nP9,A1,Crystals,\nP,1A,Clear,\n,,Other,P/1/visible/A02.jpg\nP,A3,,\n"
    path = written(lab, "labels.csv", text)
    dry = lab.call("label", "import", str(lab.folder), "--format", "csv", "--dry-run")
    assert "5 lines in 1 file: 2 labels would be taken, 0 known before" in dry.stdout
    assert lab.count("label") == 0
    result = lab.call("label", "import", path, "--map", "label=label")
    assert result.exit_code == 3
    assert "2 labels taken" in result.stdout
    assert f"{path}, line 3: no plate has the key or barcode 'P9' yet" in result.stdout
    assert f"{path}, line 4: '1A' is not a well; write it like A1 or AF48" in result.stdout
    assert f"{path}, line 6: the label is empty" in result.stdout
    assert "can be imported again later" in result.stdout
    assert [row[1] for row in shown(lab)[:3]] == ["Crystals", "Other", "Clear"]
    assert lab.rows("select count(image_id) from label") == [(1,)]


def test_characters_that_cannot_be_printed_are_reported(lab: Site) -> None:
    imaged(lab, "P")
    lines = ["P\0,A1,Clear,ann,", "P,A\0,Clear,ann,", "P,A1,Cl\0ear,ann,", "P,A1,Clear,a\0nn,", "P,A1,Clear,ann,x\0"]
    path = written(lab, "labels.csv", "\n".join(["plate,well,label,person,path", *lines, "P,A1,Other,ann,"]))
    result = lab.call("label", "import", path, "--json")
    done = json.loads(result.stdout)
    assert (result.exit_code, done["new"], [p["line"] for p in done["problems"]]) == (3, 1, [2, 3, 4, 5, 6])
    assert all("cannot be printed" in problem["reason"] for problem in done["problems"])


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("add", "P9", "A1", "Clear"), 1, "no plate has the key or barcode 'P9' yet"),
        (("add", "P", "A1", "clearish"), 1, "is not in the vocabulary marco"),
        (("add", "P", "A1", "Clear", "--vocabulary", "mine"), 2, "there is no vocabulary 'mine'"),
        (("add", "P", "A1", "Clear", "--drop", "4"), 1, "no image of drop 4"),
        (("import", "nowhere.csv"), 2, "nowhere.csv does not exist"),
        (("import", "x.csv", "--map", "a=b"), 2, "write COLUMN=FIELD"),
        (("list", "--plate", "P9"), 1, "no plate"),
    ],
    ids=str,
)
def test_refusals_are_one_sentence(lab: Site, arguments: tuple[str, ...], code: int, word: str) -> None:
    imaged(lab, "P")
    result = lab.call("label", *arguments)
    assert result.exit_code == code, result.output
    assert word in result.stderr


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_broken_vocabularies_stop_the_service_before_it_starts(lab: Site) -> None:
    lab.write(labels={"vocabularies": written(lab, "own.toml", "[sgc")})
    result = lab.call("run", "--roles", "schedule")
    assert result.exit_code == 2
    assert "own.toml are not valid TOML" in result.stderr
    assert lab.call("label", "vocabularies").exit_code == 2
    assert "[sgc.words]" in lab.ok("label", "vocabularies", "--toml")


def test_the_inbox_is_shown_and_tried_again(lab: Site) -> None:
    imaged(lab, "P")
    db = Database(lab.url)
    for word, plate in (("90", "P"), ("Clear", "P9")):
        statement = (
            f"insert into lims_label_inbox_v1 (plate, well, label, person) values ('{plate}', 'A1', '{word}', 'lims')"
        )
        db.write(lambda c, statement=statement: c.exec_driver_sql(statement))
    db.close()
    shown_now = json.loads(lab.ok("label", "inbox", "--retry", "--json"))
    assert shown_now["counts"] == {"refused": 1, "waiting": 1}
    assert "'90' is not in the vocabulary marco" in lab.ok("label", "inbox")
    lab.write(labels={"vocabulary": "hwi"})
    lab.ok("label", "inbox", "--retry")
    assert shown(lab)[0][:3] == ("A01", "Crystals", "lims")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_service_resolves_the_inbox(lab: Site) -> None:
    imaged(lab, "P")
    db = Database(lab.url)
    insert = "insert into lims_label_inbox_v1 (plate, well, label, person) values ('P', 'A1', 'Crystals', 'lims')"
    db.write(lambda c: c.exec_driver_sql(insert))
    db.close()
    with lab.daemon("schedule") as process:
        wait_until(lambda: lab.rows("select state from lims_label_inbox_v1") == [("resolved",)], "the inbox")
        assert terminate(process) == 0
    assert "inbox" in lab.log
    assert shown(lab)[0][:3] == ("A01", "Crystals", "lims")


def imports(lab: Site, path: str, *options: str) -> str:
    return lab.ok("label", "import", path, "--person", "ann", *options).split(": ")[1].strip()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_line_without_a_time_is_taken_once_and_of_one_inspection(lab: Site) -> None:
    imaged(lab, "P")
    path = written(lab, "labels.csv", "plate,well,label\nP,A1,Crystals\n")
    assert imports(lab, path) == "1 label taken, 0 known before"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert imports(lab, path) == "0 labels taken, 1 known before"
    lab.ok("label", "withdraw", "P", "A1", "--person", "ann")
    os.utime(path)
    assert imports(lab, path) == "0 labels taken, 1 known before"
    imaged(lab, "P", "2")
    result = lab.call("label", "import", path, "--person", "ann")
    assert result.exit_code == 3
    assert "line 2: it names no inspection and no time, and its plate has several inspections" in result.stdout
    named = written(lab, "named.csv", "plate,well,label,inspection\nP,A1,Crystals,2\n")
    assert imports(lab, named) == "1 label taken, 0 known before"


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_labels_dated_by_their_image_follow_the_file_imported_last(lab: Site) -> None:
    imaged(lab, "P")
    [first, second] = [
        written(lab, f"{word}/report.csv", REPORT.replace("Sand", word).replace("Crystals", word))
        for word in ("Crystals", "Clear")
    ]

    def says(path: str, known: int) -> str:
        assert imports(lab, path) == f"{2 - known} labels taken, {known} known before"
        return str(shown(lab)[0][1])

    news, nothing = 0, 2
    assert says(first, news) == "Crystals"
    assert says(second, news) == "Clear"
    for _ in range(2):
        assert says(first, news) == "Crystals"
        assert says(first, nothing) == "Crystals"
        assert says(second, news) == "Clear"
    lab.ok("label", "withdraw", "P", "A1", "--person", "ann")
    lab.ok("label", "add", "P", "A2", "Other", "--person", "ann")
    assert says(first, nothing) == "Clear"
    assert [row[1:3] for row in shown(lab)[:2]] == [("Clear", None), ("Other", "ann")]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_old_and_new_exports_in_one_folder_do_not_take_turns(lab: Site) -> None:
    imaged(lab, "P")
    lines = REPORT.splitlines(keepends=True)
    newer = "".join([lines[0], lines[1].replace('"Crystals"', '"Clear"')])
    for name, text in (("x", "".join(lines[:2])), ("y", newer)):
        (lab.folder / "exports" / name).mkdir(parents=True)
        written(lab, f"exports/{name}/report.csv", text)
    folder = str(lab.folder / "exports")
    imports(lab, folder)
    assert shown(lab)[0][1] == "Clear"
    kept = lab.count("label")
    for _ in range(2):
        assert imports(lab, folder).startswith("0 labels taken")
    assert (shown(lab)[0][1], lab.count("label")) == ("Clear", kept)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_user_without_a_name_may_label(lab: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    imaged(lab, "P")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    assert "says uid 987654" in lab.ok("label", "add", "P", "A1", "Clear")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_lines_that_nothing_tells_apart_are_reported_and_crystals_stays(lab: Site) -> None:
    imaged(lab, "P")
    text = (
        "plate,well,drop,label,person\nP,A1,,Crystals,ann\nP,A1,1,Clear,ann\n"
        "P,A2,,Clear,ann\nP,A2,,Other,ann\nP,A3,,Clear,ann\nP,A3,,Clear,bob\nP,a03,,Clear,ann\n"
    )
    path = written(lab, "labels.csv", text)
    for new, known in ((3, 0), (0, 3)):
        result = lab.call("label", "import", path, "--json")
        done = json.loads(result.stdout)
        assert (result.exit_code, done["new"], done["known"]) == (3, new, known)
        assert [(problem["line"], problem["reason"]) for problem in done["problems"]] == [
            (2, "lines 2 and 3 give one drop Clear and Crystals by 'ann', at one time; Crystals is kept; "
             "name the drop, the inspection or the time of each"),
            (4, "lines 4 and 5 give one drop Clear and Other by 'ann', at one time; none is kept; "
             "name the drop, the inspection or the time of each"),
        ]  # fmt: skip
    assert [row[1:4] for row in shown(lab)[:3]] == [
        ("Crystals", "ann", True), ("Clear", None, False), ("Clear", "ann", False),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_lines_at_odds_of_a_report_are_reported(lab: Site) -> None:
    imaged(lab, "P")
    lines = REPORT.splitlines(keepends=True)
    both = "".join([*lines[:2], lines[1].replace("Crystals", "Clear").replace("_9_1", "_1_1")])
    result = lab.call("label", "import", written(lab, "P/report.csv", both), "--person", "ann")
    assert result.exit_code == 3
    assert "lines 2 and 3 give one drop Clear and Crystals" in result.stdout
    assert shown(lab)[0][:4] == ("A01", "Crystals", "ann", True)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_one_bad_file_of_a_folder_is_reported_and_the_others_are_taken(lab: Site) -> None:
    imaged(lab, "P")
    written(lab, "in/0.csv", "Cocktail,Conc\n1,2\n")
    written(lab, "in/1.csv", "plate,well,label,person\nP,A1,Crystals,ann\nP9,A1,Clear,ann\n")
    written(lab, "in/2.mso", "no run\n")
    written(lab, "in/3.csv", 'plate,well,label,person\nP,A2,Clear,"ann\nP,A3,Clear,ann\n')
    for new, known in ((1, 0), (0, 1)):
        result = lab.call("label", "import", str(lab.folder / "in"), "--json")
        done = json.loads(result.stdout)
        assert (result.exit_code, done["files"], done["new"], done["known"]) == (3, 1, new, known)
        told = [(problem["file"][-5:], problem["line"], problem["whole_file"]) for problem in done["problems"]]
        assert told == [("0.csv", 1, True), ("2.mso", 1, True), ("3.csv", 3, True), ("1.csv", 3, False)]
    assert shown(lab)[0][:3] == ("A01", "Crystals", "ann")
    alone = lab.call("label", "import", str(lab.folder / "in" / "0.csv"))
    assert (alone.exit_code, alone.stdout) == (1, "")
    assert "line 1: needs columns label, plate and well" in alone.stderr


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_an_archive_of_labels_keeps_lines_of_one_well_together(lab: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marcod.labels.files.CHUNK", 2)
    imaged(lab, "P")
    wells = [("A1", "Crystals"), ("A2", "Clear"), ("A3", "Clear"), ("a01", "Clear")]
    text = "".join(f"P,{well},{word},ann\n" for well, word in wells)
    result = lab.call("label", "import", written(lab, "labels.csv", f"plate,well,label,person\n{text}"))
    assert result.exit_code == 3
    assert "give one drop Clear and Crystals by 'ann'" in result.stdout
    assert [row[1] for row in shown(lab)[:3]] == ["Crystals", "Clear", "Clear"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_what_a_spreadsheet_damaged_is_reported_with_the_remedy(lab: Site) -> None:
    imaged(lab, "00441312")
    lines = ["4.41312E+11,A1", "441312,A1", "00441312,01-Dec", "00441312,A1"]
    text = "plate,well,label,person\n" + "".join(f"{line},Crystals,ann\n" for line in lines)
    result = lab.call("label", "import", written(lab, "labels.csv", text), "--json")
    done = json.loads(result.stdout)
    reasons = [problem["reason"] for problem in done["problems"]]
    assert (result.exit_code, done["new"]) == (3, 1)
    for reason, word in zip(reasons, ("a power of ten", "'00441312' is there", "a date"), strict=True):
        assert word in reason
        assert reason.endswith("format the column as text, enter it again and save the table")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_labels_of_a_forgotten_source_come_back_under_their_names(lab: Site) -> None:
    """A plate's name may begin as a formula does, or as a formula that was made harmless."""
    names = ("=1+1", "'=1+1", "-2", "@x", "+y", "''-z", "'plain")
    for name in names:
        imaged(lab, name)
        lab.ok("label", "add", "--person", f"={name}", "--", name, "A1", "Crystals")
    given = "select plate_key, well, drop_number, inspection_key, label, person from lims_label_v1 order by plate_key"
    before = lab.rows(given)
    saved = str(lab.folder / "labels.csv")
    lab.ok("source", "forget", "imager", "--yes", "--labels-to", saved)
    assert lab.rows(given) == []
    for name in names:
        imaged(lab, name)
    lab.ok("label", "import", saved)
    assert lab.rows(given) == before
    assert len(before) == len(names)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_labels_may_come_before_the_images(lab: Site) -> None:
    imaged(lab, "other")
    lab.ok("plate", "import", written(lab, "plates.csv", "plate,format\nP,96x1\n"), "--source", "imager")
    path = written(lab, "labels.csv", "plate,well,label,person\nP,A1,Crystals,ann\nP,A13,Clear,ann\nP9,A1,Clear,ann\n")
    early = json.loads(lab.call("label", "import", path, "--json").stdout)
    assert [(problem["line"], problem["may_come"]) for problem in early["problems"]] == [
        (2, True),
        (3, False),
        (4, True),
    ]
    assert early["problems"][1]["reason"] == "well A13 is outside the plate's 8 x 12 wells"
    imaged(lab, "P")
    later = json.loads(lab.call("label", "import", path, "--json").stdout)
    assert (later["new"], [problem["line"] for problem in later["problems"]]) == (1, [3, 4])
