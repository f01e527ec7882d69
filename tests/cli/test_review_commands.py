"""What people are asked, on the screen and in a folder, and what their answers say of the model. Synthetic."""

import csv
import json
import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import factories
import pytest
from factories import utc
from lab import Site

from marcod.catalog import registration
from marcod.database.engine import Database
from marcod.model.registry import Registry
from marcod.settings.environment import child_environment

IMAGE = b"\xff\xd8\xff\xe0 an image"


@pytest.fixture
def lab(site: Site) -> Site:
    """A plate of 60 wells with its files, of which the first 12 score 0.9 and the others less and less."""
    root = site.folder / "plates"
    site.add_source("imager", root, "rigaku")
    site.write(review={"audit_drops": 60})
    db = Database(site.url)
    champion = Registry(db).ensure_champion(utc())
    source_id = db.write(lambda c: registration.register_source(c, "imager", str(root), "rigaku", None, utc()))
    files = factories.sightings(60, plate="=P1")
    factories.record(db, source_id, files)
    for file in files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_bytes(IMAGE)
    place = {file.path: n for n, file in enumerate(files)}

    def scores(path: str) -> tuple[float, float, float, float]:
        p = 0.9 if place[path] < 12 else 0.04 - place[path] / 2000
        return 1 - p, p, 0.0, 0.0

    factories.drain(db, champion, scores=lambda claim: scores(claim.path))
    db.close()
    return site


def shown(lab: Site, person: str = "ann") -> Any:
    return json.loads(lab.ok("review", "next", "--person", person, "--json"))


def queue(lab: Site, *more: str) -> Any:
    return json.loads(lab.ok("review", "queue", "--limit", "1000", "--json", *more))


def exported(lab: Site, name: str = "to do", person: str = "ann", limit: int = 5) -> tuple[Path, list[dict[str, str]]]:
    folder = lab.folder / name
    lab.ok("review", "export", str(folder), "--person", person, "--limit", str(limit))
    with (folder / "review.csv").open() as file:
        return folder, list(csv.DictReader(file))


def filled(folder: Path, rows: list[dict[str, str]]) -> str:
    with (folder / "review.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder)


def test_next_and_what_comes_otherwise(lab: Site) -> None:
    first = shown(lab)
    assert first["file"] == str(lab.folder / "plates" / first["path"])
    assert shown(lab)["item_id"] == first["item_id"]
    assert shown(lab, "bob")["item_id"] != first["item_id"]
    text = lab.ok("review", "next", "--person", "ann")
    total = len(queue(lab)["items"])
    assert f"7 of {total} open items; --limit shows more\n" in lab.ok("review", "queue", "--limit", "7")
    assert f"item {first['item_id']}" in text
    assert first["reason"] in text
    # A label that is given in another way answers it.
    lab.ok("label", "add", "=P1", first["well"], "clear", "--inspection", "1", "--person", "eve")
    assert shown(lab)["well"] != first["well"]
    lab.ok("review", "add", "=P1", "B01", "--reason", "Odd light.")
    assert "was waiting already" in lab.ok("review", "add", "=P1", "B01")
    by_hand = shown(lab, "joe")
    assert (by_hand["well"], by_hand["stream"], by_hand["reason"]) == ("B01", "manual", "Odd light.")
    found = queue(lab)
    assert found["filled"]["new"] == dict.fromkeys(("threshold", "disagreement", "audit", "manual"), 0)
    assert found["counts"]["audit"]["open"] + found["counts"]["audit"]["answered"] == 60
    assert "put there by hand" in lab.ok("review", "queue", "--help")


def test_a_folder_to_fill_in(lab: Site) -> None:
    folder, rows = exported(lab)
    assert len(rows) == 5
    assert {(folder / row["image"]).read_bytes() for row in rows} == {IMAGE}
    assert all(row["image"].startswith(f"{row['item']}-") and row["plate"] == "'=P1" for row in rows)
    # What ann took home is asked of nobody meanwhile, not of her either.
    taken = {row["item"] for row in rows}
    assert str(shown(lab)["item_id"]) not in taken
    _, others = exported(lab, "bob's", "bob")
    assert not taken & {row["item"] for row in others}
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = "crystals", "hwi:90", "skip"
    rows[1] |= {"person": "eve", "comment": "ünclear"}
    done = json.loads(lab.ok("review", "import", filled(folder, rows), "--json"))
    assert done == {"new": 1 + 1, "skipped": 1, "known": 0, "empty": 2}
    labels = lab.rows("select label, person, origin from label order by person")
    assert [tuple(row) for row in labels] == [("Crystals", "ann", "review"), ("Crystals", "eve", "review")]
    answers = lab.rows("select answer, person from review_item where answered_at is not null and stream <> 'audit'")
    answers += lab.rows("select answer, person from review_item where answered_at is not null and stream = 'audit'")
    assert ("skipped", "ann") in {tuple(row) for row in answers}
    again = json.loads(lab.ok("review", "import", str(folder / "review.csv"), "--json"))
    assert again == {"new": 0, "skipped": 0, "known": 3, "empty": 2}
    # A filled folder that is taken in late does not undo what was said since.
    lab.ok("label", "add", "=P1", rows[0]["well"], "clear", "--inspection", "1", "--person", "ann")
    assert json.loads(lab.ok("review", "import", str(folder), "--json"))["new"] == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_wrong_line_takes_nothing(lab: Site) -> None:
    folder, rows = exported(lab)
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = "crystals", "sand", "clear"
    rows[2]["well"] = "H12"
    rows[3] |= {"item": "4711", "label": "clear"}
    rows[4] |= {"item": rows[0]["item"], "well": rows[0]["well"], "label": "clear"}
    result = lab.call("review", "import", filled(folder, rows))
    assert result.exit_code == 1
    told = result.stderr
    assert "nothing was taken" in told
    assert "line 3: 'sand' is not in the vocabulary marco" in told
    assert f"line 4: item {rows[2]['item']} is well" in told
    assert "line 5: there is no item '4711' in this database" in told
    assert f"line 6: item {rows[0]['item']} has another label in line 2" in told
    assert lab.count("label") == 0


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_where_an_export_may_go(lab: Site) -> None:
    inside = lab.call("review", "export", str(lab.folder / "plates" / "review"))
    assert inside.exit_code == 2
    assert "only the imager writes" in inside.stderr
    folder, _ = exported(lab)
    twice = lab.call("review", "export", str(folder))
    assert (twice.exit_code, "is there already" in twice.stderr) == (2, True)
    for path in (lab.folder / "plates").rglob("*.jpg"):
        path.unlink()
    gone = lab.call("review", "export", str(lab.folder / "gone"), "--limit", "2", "--person", "bob")
    assert gone.exit_code == 3
    assert gone.stdout.count("cannot be read: No such file or directory") == 2
    assert [path.name for path in (lab.folder / "gone").iterdir()] == ["review.csv"]
    assert {path.name for path in lab.folder.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_image_that_cannot_be_read_is_left_out(lab: Site) -> None:
    """A path that is a loop of links gives an error of its own, as a stale network share does."""
    files = sorted((lab.folder / "plates").rglob("*.jpg"))
    for path in files[:59]:
        path.unlink()
        path.symlink_to(path.name)
    result = lab.call("review", "export", str(lab.folder / "some"), "--limit", "60", "--person", "ann")
    assert result.exit_code == 3
    assert result.stdout.count("cannot be read: Too many levels of symbolic links") == 59
    assert len(list((lab.folder / "some").iterdir())) == 2
    held = lab.rows("select count(*) from review_item where shown_at is not null and answered_at is null")
    assert held[0][0] == 1


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_images_are_where_the_source_is_now(lab: Site) -> None:
    """The source was moved; the database still knows its former place, where nothing is written either."""
    (lab.folder / "plates").rename(lab.folder / "moved")
    lab.lines.clear()
    lab.add_source("imager", lab.folder / "moved", "rigaku")
    lab.write(review={"audit_drops": 60})
    first = shown(lab)
    assert first["file"] == str(lab.folder / "moved" / first["path"])
    assert str(lab.folder / "moved") in lab.ok("review", "next", "--person", "ann")
    folder, rows = exported(lab)
    assert {(folder / row["image"]).read_bytes() for row in rows} == {IMAGE}
    (lab.folder / "plates").mkdir()
    before = lab.call("review", "export", str(lab.folder / "plates" / "review"))
    assert (before.exit_code, "only the imager writes" in before.stderr) == (2, True)


def test_recall_from_the_audit(lab: Site) -> None:
    assert "No audit of" in lab.ok("review", "recall")
    queue(lab)
    assert "Too little to say: of 60 drawn drops 0 are answered" in lab.ok("review", "recall")
    crystals = {f"A{n:02d}" for n in range(1, 11)} | {"B01"}
    lines = ["plate,well,inspection,label"]
    for row in lab.rows("select well from lims_drop_v1"):
        lines.append(f"=P1,{row[0]},1,{'crystals' if row[0] in crystals else 'clear'}")
    (lab.folder / "all.csv").write_text("\n".join(lines))
    lab.ok("label", "import", str(lab.folder / "all.csv"))
    found = json.loads(lab.ok("review", "recall", "--json"))
    assert (found["drawn"], found["answered"], found["open"]) == (60, 60, 0)
    assert (found["crystals_flagged"], found["crystals_unflagged"]) == (10, 1)
    assert found["recall"] == found["low"] == found["high"] == pytest.approx(10 / 11)
    text = lab.ok("review", "recall")
    assert "finds 91% of the crystals" in text
    assert "An audit of 60 drops on 20" in text
    assert ", 12 of them hits at its threshold: 60 of 60 drawn ones answered, 0 skipped, 0 open; crystals in 10" in text


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_session_of_keys_stops_and_goes_on(lab: Site) -> None:
    said = session(lab, "x", "?c", "s", "q")
    assert "3 answered or skipped" in said
    assert "? is not one of the keys" in said
    assert said.count("x crystals, p precipitate, c clear, o other, s skip, u undo, q quit: ") == 5
    assert [row[0] for row in lab.rows("select label from label order by id")] == ["Crystals", "Clear"]
    assert lab.rows("select count(*) from review_item where answer = 'skipped'")[0][0] == 1
    held = "select count(*) from review_item where shown_at is not null and answered_at is null"
    assert lab.rows(held)[0][0] == 0
    assert "item " in session(lab, "\x03")
    assert lab.rows(held)[0][0] == 0
    assert lab.count("label") == 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_answers_are_taken_back_and_images_opened(lab: Site) -> None:
    viewer, opened = lab.folder / "bin" / "xdg-open", lab.folder / "opened"
    viewer.parent.mkdir()
    viewer.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n')
    viewer.chmod(0o755)
    said = session(lab, "u", "x", "s", "u", "u", "p", "q", more=("--open",), path=viewer.parent)
    assert "nothing to take back in this session" in said
    items = [line.split(" (")[0] for line in said.splitlines() if line.startswith("item ")]
    # The first twice, since nothing was to take back; the skipped second comes back after the third, then the first.
    first, second, third = items[0], items[2], items[3]
    assert items == [first, first, second, third, second, first, second]
    assert f"the skip of {place(said, second)} is taken back" in said
    assert f"Crystals of {place(said, first)} is taken back" in said
    labels = [row[0] for row in lab.rows("select label from label order by id")]
    assert labels == ["Crystals", None, "Precipitate"]
    answered = lab.rows("select answer, count(*) from review_item where answered_at is not null group by answer")
    # The label answers the drop in every stream, and nothing of the answer that was taken back is left.
    assert {row[0] for row in answered} == {"Precipitate"}
    paths = opened.read_text().splitlines()
    assert len(paths) == len(items)
    assert all(Path(path).read_bytes() == IMAGE and path in said for path in paths)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_without_a_viewer_the_path_is_enough(lab: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(lab.folder))
    result = lab.call("review", "next", "--person", "ann", "--open")
    assert result.exit_code == 1
    assert "xdg-open cannot be started" in result.stderr
    assert str(lab.folder / "plates") in result.stdout


def place(said: str, item: str) -> str:
    """The drop that an item is about, as the session names it."""
    line = next(line for line in said.splitlines() if line.startswith(f"{item} ("))
    return line.split("): ")[1].removesuffix(", imager")


def session(lab: Site, *keys: str, more: tuple[str, ...] = (), path: Path | None = None) -> str:
    """`marcod review next` on a terminal of its own, with keys typed at each question."""
    command = [sys.executable, "-m", "marcod", "--config", str(lab.config), "review", "next", "--person", "ann", *more]
    ours, theirs = pty.openpty()
    environment = child_environment()
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said, waiting = b"", list(keys)
    try:
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            said += os.read(ours, 65536) if select.select([ours], [], [], 0.05)[0] else b""
            asked = said.count(b"q quit: ") > len(keys) - len(waiting)
            # What is typed before the terminal gives single keys is lost.
            if waiting and asked and not termios.tcgetattr(ours)[3] & termios.ICANON:
                os.write(ours, waiting.pop(0).encode())
    except OSError:
        # Linux says so where the other side of a terminal is closed.
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return said.decode()
