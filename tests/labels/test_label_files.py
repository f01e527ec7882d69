"""Label files of every format, read into rows by natural keys; files of no format are refused as a whole."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marcod.errors import LabelError
from marcod.labels import files
from marcod.labels.files import Choices, LabelRow, Problem
from marcod.labels.recorder import DropReference, person_named


def read(path: Path, kind: str, **choices: object) -> tuple[list[LabelRow], list[Problem]]:
    file = files.read(path, kind, Choices(**choices), "marco")  # type: ignore[arg-type]
    return file.rows, file.problems


def written(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_csv_by_common_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "Barcode,Well,Drop Number,Inspection,Score,Scored by,Date\r\n"
        "CI1,A1,1,3,Crystals,ann,2026-03-09 14:30\r\n\r\nCI1,AF48,,,Clear,,\r\n",
    )
    rows, problems = read(path, "csv", zone=ZoneInfo("Europe/Berlin"))
    assert problems == []
    assert rows == [
        LabelRow(2, DropReference("CI1", "A1", 1, "3"), "Crystals", "ann", datetime(2026, 3, 9, 13, 30, tzinfo=UTC)),
        LabelRow(4, DropReference("CI1", "AF48"), "Clear"),
    ]


def test_csv_with_a_column_map(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffPlatte;Reihe;Spalte;Label;Urteil;Bild\nP;2;03;ignored;90;a/b.jpg\n")
    columns = {"Platte": "plate", "Reihe": "row", "Spalte": "column", "Urteil": "label", "Bild": "path"}
    rows, problems = read(path, "csv", columns=columns)
    assert problems == []
    assert rows == [LabelRow(2, DropReference("P", "B03", path="a/b.jpg"), "90")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: needs columns label, plate and well"),
        ("plate,well\nP,A1\n", "needs columns label"),
        ("label,plate\nClear,P\n", "label and path; there are 'label', 'plate'"),
        ("plate,well,label\n" + "x" * 200_000 + ",A1,Clear\n", "field larger than field limit"),
    ],
)
def test_no_label_file(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(LabelError, match=complaint) as raised:
        read(written(tmp_path, text), "csv")
    assert "labels.csv" in str(raised.value)


def test_a_mapped_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no column 'Barcode'; there are 'plate', 'well', 'label'"):
        read(written(tmp_path, "plate,well,label\n"), "csv", columns={"Barcode": "plate"})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("P,A1,,1,", "the label is empty"),
        ("P,A1,Clear,one,", "drop 'one' is no number"),
        ("P,A1,Clear,0,", "drop '0' is no number"),
        ("P,A1,Clear,1,09.03.2026", "'09.03.2026' is no time"),
        ("P,A1,Clear,1,0001-01-01T00:00:00+14:00", "is no time"),
        ("P,A1,Clear,1,1900-01-01", "before 1980"),
    ],
)
def test_a_wrong_line_is_reported_and_the_rest_is_read(tmp_path: Path, line: str, complaint: str) -> None:
    path = written(tmp_path, f"plate,well,label,drop,time\n{line}\nP,A2,Clear,1,\n")
    rows, [problem] = read(path, "csv")
    assert [row.named.well for row in rows] == ["A2"]
    assert (problem.file, problem.line, problem.may_come) == (str(path), 2, False)
    assert complaint in problem.reason


MINSTREL = "RMM3_01_222_ROBO_Test1_Clon1_CI_0000CI022987_003_121121_12_08_04_HF_99_030_001_RDI.jpg"


def test_crystaltrak_by_image_name_or_columns(tmp_path: Path) -> None:
    text = f"image name,barcode,inspection number,column,row,subwell,score,who\n{MINSTREL},,,,,,36,ann\n"
    text += ",CI022987,3,12,8,4,01,bob\n,CI022987,3,12,8,4,,\nholiday.jpg,,,,,,36,ann\n"
    rows, problems = read(written(tmp_path, text), "sgc")
    where = DropReference("CI022987", "H12", 4, "3")
    assert rows == [LabelRow(2, where, "36", "ann"), LabelRow(3, where, "01", "bob")]
    assert [problem.line for problem in problems] == [4, 5]


REPORT = (
    "03/16/10 08:36:21\r\n"
    '"D:\\export\\90j8\\Crystals\\90j8_D12_Visible_9_3552.jpg","Crystals",Drop,03/17/10 09:00:00\r\n'
    '"D:\\export\\90j8\\Sand\\90j8_A1_Visible_4_3553.jpg","Sand",2,03/18/10 09:00:00\r\n'
    '"D:\\export\\90j8\\Sand\\holiday.jpg","Sand",2,03/18/10 09:00:00\r\n'
    '"x"\r\n'
)


def test_rock_maker_report(tmp_path: Path) -> None:
    rows, problems = read(written(tmp_path, REPORT, "90j8/report.csv"), "rockmaker", zone=ZoneInfo("Europe/London"))
    assert rows == [
        LabelRow(2, DropReference("90j8", "D12", None, "3552"), "Crystals", time=datetime(2010, 3, 17, 9, tzinfo=UTC)),
        LabelRow(3, DropReference("90j8", "A01", 2, "3553"), "Sand", time=datetime(2010, 3, 18, 9, tzinfo=UTC)),
    ]
    assert [problem.line for problem in problems] == [4, 5]


MSO = (
    "X000015862202008111512-jpg.rar\tmsoversion2\n"
    "Well Number\tCocktail\tpH\n"
    "1029\t17_C0450\t7.0\t90\n"
    '1\t17_C0001 "x\t7.0\t50-25\n'
    "2\t17_C0002\t10\n"
    "3\t17_C0003\t10\t\n"
    "1537\t17_C0003\t10\t10\n"
    "well\t17_C0003\t10\t10\n"
)


def test_hwi_mso(tmp_path: Path) -> None:
    rows, problems = read(written(tmp_path, MSO, "run.mso"), "hwi")
    taken = datetime(2020, 8, 11, 15, 12, tzinfo=UTC)
    assert rows == [
        LabelRow(3, DropReference("X000015862", "V21", None, "202008111512"), "90", time=taken),
        LabelRow(4, DropReference("X000015862", "A01", None, "202008111512"), "50-25", time=taken),
    ]
    assert [problem.line for problem in problems] == [7, 8]


def test_hwi_mso_by_its_own_name(tmp_path: Path) -> None:
    text = MSO.replace("X000015862202008111512-jpg.rar", "my run")
    rows, _ = read(written(tmp_path, text, "X000015862202008111512-uvt.mso"), "hwi")
    assert rows[0].named.inspection == "202008111512-uvt"
    for content in (text, "", "\n", "X000015862202008111512-jpg.rar\n", MSO.replace("20200811", "20201399")):
        with pytest.raises(LabelError, match=r"run\.mso"):
            read(written(tmp_path, content, "run.mso"), "hwi")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200) | st.builds(lambda tail: b"plate,well,label,time\n" + tail, st.binary(max_size=99))
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    for kind in files.FORMATS[1:]:
        with suppress(LabelError):
            read(path, kind)


def test_a_folder_holds_files_of_several_formats(tmp_path: Path) -> None:
    for name in ("a/report.csv", "b/run.mso", "c.csv", "d/readme.txt", "d/1.jpg"):
        written(tmp_path, "", name)

    def found(wanted: str) -> list[tuple[str, str]]:
        return [(path.relative_to(tmp_path).as_posix(), kind) for path, kind in files.files(tmp_path, wanted)]

    assert found("auto") == [("a/report.csv", "rockmaker"), ("b/run.mso", "hwi"), ("c.csv", "csv")]
    assert found("hwi") == [("b/run.mso", "hwi")]
    assert found("ispyb") == [("c.csv", "ispyb")]
    assert files.files(tmp_path / "c.csv", "pims") == [(tmp_path / "c.csv", "pims")]
    assert files.files(tmp_path / "d/readme.txt", "auto") == [(tmp_path / "d/readme.txt", "csv")]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="does not exist"):
        files.files(tmp_path / "none", "auto")
    with pytest.raises(LabelError, match="holds no label file"):
        files.files(tmp_path, "auto")
    path = written(tmp_path, "")
    os.truncate(path, files.LARGEST + 1)
    with pytest.raises(LabelError, match="larger than"):
        read(path, "csv")


@pytest.mark.parametrize(
    ("heading", "complaint"),
    [
        (
            "plate,well,classification,manual_call",
            "the columns 'classification' and 'manual_call' could each be the label",
        ),
        (
            "plate,well,classification,manual_call,scored_by,disputed_by",
            "label, 'scored_by' and 'disputed_by' could each be the person; choose with --map COLUMN=FIELD, "
            "such as --map 'manual_call=label' --map 'disputed_by=person'",
        ),
        ("plate_key,barcode,well,label", "'plate_key' and 'barcode' could each be the plate"),
        ("plate,well,label,date,time", "'date' and 'time' could each be the time"),
        ("plate,well,prediction", "needs columns label"),
        ("plate,well,model_label", "needs columns label"),
    ],
)
def test_two_columns_that_could_be_one_field(tmp_path: Path, heading: str, complaint: str) -> None:
    path = written(tmp_path, f"{heading}\nP,A1,Clear,Crystals,a,b\n")
    with pytest.raises(LabelError, match="line 1: ") as raised:
        read(path, "csv")
    assert complaint in str(raised.value)


def test_a_column_of_the_fields_own_name_goes_first(tmp_path: Path) -> None:
    path = written(tmp_path, "barcode,plate,well,position,label,call sign\nB,P,A1,9,Clear,x\n")
    assert read(path, "csv")[0] == [LabelRow(2, DropReference("P", "A1"), "Clear")]


def test_with_a_models_column_a_line_needs_its_person(tmp_path: Path) -> None:
    text = "plate,well,label,model_label,label_person\nP,A1,Clear,Clear,\nP,A2,Crystals,Clear,ann\nP,A3,Clear,Clear,\n"
    rows, [problem] = read(written(tmp_path, text), "csv")
    assert rows == [LabelRow(3, DropReference("P", "A2"), "Crystals", "ann")]
    assert problem.reason.startswith("this and 1 further line name no person, and beside the column 'model_label'")


def test_a_table_of_polo(tmp_path: Path) -> None:
    text = "plate_id,well_number,human_class,machine_class,scored_by\n61,13,Crystals,Clear,kim\n61,14,Clear,Other,\n"
    rows, [problem] = read(written(tmp_path, text), "csv")
    assert rows == [LabelRow(2, DropReference("61", "13"), "Crystals", "kim")]
    assert problem.reason.startswith("this line names no person, and beside the column 'machine_class'")
    imagers = "plate,well,label,person,machine\nP,A1,Clear,,RI-1000\n"
    assert read(written(tmp_path, imagers), "csv") == ([LabelRow(2, DropReference("P", "A1"), "Clear")], [])


@pytest.mark.parametrize("person", ["MARCO v1", "marco:2", "Marco_1.0", "autoscorer", "model 3"])
def test_a_model_is_not_a_person(person: str) -> None:
    with pytest.raises(LabelError, match="is a model and not a person"):
        person_named(person)


@pytest.mark.parametrize("person", ["Marco", "MARCO", "kim", "Modelski", "Marco Rossi 2", "m.auto"])
def test_people_are_persons(person: str) -> None:
    assert person_named(person) == person


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "mac_roman"])
def test_tables_of_excel(tmp_path: Path, encoding: str) -> None:
    end = "\r" if encoding == "mac_roman" else "\r\n"
    path = tmp_path / "labels.csv"
    path.write_bytes(end.join(["plate;well;label;person", "P;A1;Clear;Jörg", ""]).encode(encoding))
    assert read(path, "csv")[0] == [LabelRow(2, DropReference("P", "A1"), "Clear", "Jörg")]
