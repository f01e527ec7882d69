"""Plates of several formats in one store, names in any case, and a barcode used again: at the command line."""

import json
from pathlib import Path

import pytest
from lab import Site, delivery
from PIL import Image

from marcod.synthetic import ImagerStyle

pytestmark = pytest.mark.story

AT = "select plate_key, path, well from lims_image_score_v1 order by path"


def store_path(plate: int, well: int) -> str:
    return f"WellImages/{plate % 1000}/plateID_{plate}/batchID_{plate}/wellNum_{well}/profileID_1/d1_r7_ef.jpg"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """One synthetic image of a drop."""
    delivered = delivery("rigaku", ImagerStyle.RIGAKU, "CI030117", 2, filled=0.02)
    delivered.write(tmp_path / "made")
    return tmp_path / "made" / delivered.composites()[0].path


@pytest.fixture
def store(site: Site) -> Path:
    """A configured, empty Rock Imager store of 96-well plates."""
    root = site.folder / "share"
    root.mkdir()
    site.add_source("ri", root, "formulatrix")
    site.write(models={"folder": str(site.folder / "models")}, watch={"settle_s": 0.1})
    return root


def put(root: Path, drop: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # Other bytes behind the image's end, as two files of the same bytes count once.
        file.write_bytes(drop.read_bytes() + bytes([number]))


def table(site: Site, text: str) -> Path:
    file = site.folder / "plates.csv"
    file.write_text(text, encoding="utf-8")
    return file


def wells(site: Site) -> dict[tuple[str, int], str]:
    return {(key, int(path.split("wellNum_")[1].split("/")[0])): well for key, path, well in site.rows(AT)}


def test_a_table_before_the_first_image_tells_each_plates_grid(site: Site, store: Path, drop: Path) -> None:
    put(store, drop, store_path(2001, 7), store_path(2001, 48), store_path(2002, 97), store_path(2003, 13))
    site.ok("plate", "import", str(table(site, "source,plate,format\nri,2001,8x6x1\nri,2002,384x1\n")))
    site.ok("scan")
    site.ok("score")
    right = {("2001", 7): "B01", ("2001", 48): "H06", ("2002", 97): "E01", ("2003", 13): "B01"}
    assert wells(site) == right


def test_a_grid_is_inferred_with_a_warning_until_a_table_tells_it(site: Site, store: Path, drop: Path) -> None:
    put(store, drop, store_path(2002, 13), store_path(2003, 13))
    site.ok("scan")
    site.ok("score")
    assert set(wells(site).values()) == {"B01"}
    put(store, drop, *(store_path(2002, well) for well in (13, 97)))
    scanned = site.call("scan")
    assert scanned.exit_code == 3
    assert "so the plate is taken for a larger one" in scanned.stdout
    assert "give the plates' formats with `marcod plate import`" in scanned.stdout
    site.ok("score")
    assert wells(site) == {("2002", 13): "A13", ("2002", 97): "E01", ("2003", 13): "B01"}
    status = json.loads(site.call("status", "--json").stdout)
    assert "format_inferred" in json.dumps(status)
    imported = site.ok("plate", "import", str(table(site, "source,plate,format\nri,2002,384x1\n")))
    assert "1 changed" in imported
    site.ok("scan")
    assert "format_inferred" not in site.call("status", "--json").stdout
    assert wells(site) == {("2002", 13): "A13", ("2002", 97): "E01", ("2003", 13): "B01"}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_names_in_any_case_and_a_barcode_used_again(site: Site, drop: Path) -> None:
    root = site.folder / "images"
    put(root, drop, "lysozyme/plate1/20240105_091500/A1a.jpg", "thaumatin/plate1/20240106_141000/A1a.jpg")
    put(root, drop, "Tray7/20210105_091500/A1a.jpg", "kinase/last/20240106_141000/A1a.jpg")
    site.add_source("ami", root, "ami")
    site.write(models={"folder": str(site.folder / "models")}, watch={"settle_s": 0.1})
    site.ok("scan")
    site.ok("score")
    ambiguous = site.call("plate", "show", "plate1")
    assert ambiguous.exit_code == 1
    assert "give the key of one of them: lysozyme/plate1, thaumatin/plate1" in ambiguous.stderr
    for name in ("tray7", "LAST"):
        for command in (("plate", "show"), ("rescore", "--plate"), ("label", "list", "--plate")):
            site.ok(*command, name)
    labels = site.folder / "labels.csv"
    labels.write_text("plate,well,label,person\ntray7,a1,Crystals,ann\n", encoding="utf-8")
    site.ok("label", "import", str(labels))
    assert site.rows("select plate_key, label from lims_label_v1") == [("Tray7", "Crystals")]
    put(root, drop, "Tray7/20240105_091500/A1a.jpg", "lysozyme/plate1/20240205_091500/A1a.jpg")
    for _ in range(2):  # new, and recorded as it stands
        scanned = site.call("scan")
        assert scanned.exit_code == 3
        assert "needs attention: 1 of 6 images read with a warning (years after the inspection before" in scanned.stdout
        assert "an example: Tray7/20240105_091500/A1a.jpg" in scanned.stdout
    assert "barcode_reused" in site.call("status", "--json").stdout


def test_a_black_image_is_scored_and_reported_from_the_next_scan_on(site: Site, store: Path, drop: Path) -> None:
    put(store, drop, store_path(2001, 7))
    dark = store / store_path(2001, 8)
    dark.parent.mkdir(parents=True)
    Image.new("RGB", (640, 480)).save(dark, "JPEG")
    site.ok("scan")
    site.ok("score")
    assert len(wells(site)) == 2
    again = site.call("scan")
    assert (again.exit_code, "1 of 2 images read with a warning (uniformly black" in again.output) == (3, True)
    for command in ("status", "doctor"):
        assert "uniformly black" in site.call(command).output
