"""Plates of every imager become scores, summaries and exports, and a second pass changes nothing."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lab import Delivery, Site, real_plates

from marcod.model import bundle, registry

pytestmark = pytest.mark.story


@dataclass(frozen=True)
class Plate:
    """What must come of one source: which plate and how many of what."""

    layout: str
    fill: Callable[[Path], None]
    key: str
    inspection: str
    images: int
    wells: int
    drops: frozenset[int]
    thumbnails: int = 0


def _copied(source: Path) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        shutil.copytree(source, root, dirs_exist_ok=True)

    return fill


def _as_rock_imager_store(data: Path) -> Callable[[Path], None]:
    """The real XChem plate as its Rock Imager store had it, with a thumbnail beside every image."""

    def fill(root: Path) -> None:
        for row in csv.DictReader((data / "90j8.csv").open()):
            name = f"90j8_{int(row['WellColNum']):02d}{row['WellRowLetter']}_{row['DropNum']}.jpg"
            folder = root / (
                f"WellImages/{int(row['PlateID']) % 1000}/plateID_{row['PlateID']}/batchID_{row['BatchID']}"
                f"/wellNum_{row['WellNum']}/profileID_{row['ProfileID']}"
            )
            folder.mkdir(parents=True, exist_ok=True)
            region = 70_000 + 2 * int(row["WellNum"]) + int(row["DropNum"])
            for kind in ("ef", "th"):
                shutil.copy(
                    data / "90j8_2018-04-11_RI1000-0081-2drop" / name,
                    folder / f"d{row['DropNum']}_r{region}_{kind}.jpg",
                )

    return fill


def _real(data: Path) -> dict[str, Plate]:
    three, two = frozenset({1, 3, 4}), frozenset({1, 2})
    return {
        "real-minstrel": Plate("rigaku", _copied(data / "rigaku"), "CI022987", "3", 288, 96, three),
        "real-xchem": Plate("xchem", _copied(data / "xchem"), "90j8", "2018-04-11", 192, 96, two),
        "real-rock-imager": Plate(
            "formulatrix", _as_rock_imager_store(data / "xchem"), "692", "616", 192, 96, two, 192
        ),
    }


def _made(deliveries: dict[str, Delivery]) -> dict[str, Plate]:
    plates = {}
    for name, delivered in deliveries.items():
        images = [file.image for file in delivered.composites() if file.image is not None]
        plates[name] = Plate(
            delivered.layout,
            delivered.write,
            images[0].plate_key,
            images[0].inspection_key,
            len(images),
            len({p.well for p in images}),
            frozenset(p.drop for p in images),
            len(images) if delivered.layout == "formulatrix" else 0,
        )
    return plates


@pytest.fixture
def plates(site: Site, deliveries: dict[str, Delivery]) -> dict[str, Plate]:
    """Every plate in its own source, delivered."""
    data = real_plates()
    found = _made(deliveries) | (_real(data) if data else {})
    for name, plate in found.items():
        root = site.folder / name
        root.mkdir()
        plate.fill(root)
        site.add_source(name, root, plate.layout)
    site.write(score={"batch_size": 16, "lease_s": 120.0})
    return found


def test_plates_are_scanned_scored_and_summarised_and_nothing_happens_twice(
    site: Site, plates: dict[str, Plate]
) -> None:
    reports = json.loads(site.ok("scan", "--json"))
    for name, plate in plates.items():
        assert reports[name]["new"] == plate.images, name
        assert reports[name]["ignored"].get("thumbnail", 0) == plate.thumbnails, name
    total = sum(plate.images for plate in plates.values())
    assert json.loads(site.ok("score", "--json"))["tally"] == {"scored": total, "failed": 0, "quarantined": 0}

    summaries = {row["source"]: row for row in json.loads(site.ok("plate", "list", "--json"))}
    for name, plate in plates.items():
        row = summaries[name]
        assert (row["plate_key"], row["inspection_key"]) == (plate.key, plate.inspection)
        assert row["scored"] == row["seen"] == plate.images
        assert row["n_clear"] + row["n_crystals"] + row["n_other"] + row["n_precipitate"] == plate.images
        exported = list(csv.DictReader(io.StringIO(site.ok("plate", "export", plate.key, "--source", name))))
        assert len({record["well"] for record in exported}) == plate.wells
        assert {int(record["drop_number"]) for record in exported} == plate.drops

    before = site.rows("select * from score order by id"), site.rows("select * from image order by id")
    again = json.loads(site.ok("scan", "--json"))
    for name, plate in plates.items():
        assert (again[name]["new"], again[name]["changed"], again[name]["unchanged"]) == (0, 0, plate.images), name
    assert json.loads(site.ok("score", "--json"))["tally"]["scored"] == 0
    assert (site.rows("select * from score order by id"), site.rows("select * from image order by id")) == before


def test_every_score_names_its_model_and_is_current(site: Site, deliveries: dict[str, Delivery]) -> None:
    root = site.folder / "minstrel"
    deliveries["minstrel"].write(root)
    site.add_source("minstrel", root, "rigaku")
    site.write()
    site.ok("scan")
    site.ok("score")
    rows = site.rows(
        "select model, model_version, model_synthetic, is_current, hit, p_crystals from lims_image_score_v1"
    )
    assert {(r.model, r.model_version, bool(r.model_synthetic), bool(r.is_current)) for r in rows} == {
        ("lite0", "1", True, True)
    }
    hits = json.loads(site.ok("hits", "--json"))
    assert len(hits) == sum(bool(r.hit) for r in rows)
    shown = site.ok("plate", "show", "CI030117")
    assert "replaces neither MARCO nor a calibration" in " ".join(shown.split())
    assert f"{len(hits)} hits" in shown


def _second_version(models: Path) -> None:
    """The shipped bundle's weights under a version of their own, with another temperature."""
    name, version = registry.SHIPPED
    shipped = registry.shipped_folder() / name / version
    record = bundle.read(shipped).model_copy(update={"version": 2, "temperature": 3.0})
    with np.load(shipped / "weights.npz") as weights:
        bundle.write(models, record, dict(weights), {}, [])


def test_rescoring_a_plate_adds_scores_and_keeps_the_old_ones(site: Site, deliveries: dict[str, Delivery]) -> None:
    delivered = deliveries["minstrel"]
    root = site.folder / "minstrel"
    delivered.write(root)
    models = site.folder / "models"
    _second_version(models)
    site.add_source("minstrel", root, "rigaku")
    site.write(models={"folder": str(models)})
    site.ok("scan")
    site.ok("score")
    total = len(delivered.composites())
    before = site.rows("select * from score")
    assert len(before) == total

    answer = json.loads(site.ok("rescore", "--plate", "CI030117", "--model", "lite0:2", "--json"))
    assert (answer["queued"], answer["left"]) == (total, 0)
    after = site.rows("select * from score")
    assert set(before) < set(after)
    assert len(after) == 2 * total
    current = site.rows("select distinct model_version from lims_image_score_v1 where is_current")
    assert [row.model_version for row in current] == ["1"]
    again = json.loads(site.ok("rescore", "--plate", "CI030117", "--model", "lite0:2", "--json"))
    assert (again["queued"], again["left"]) == (0, 0)
    other = json.loads(site.ok("plate", "show", "CI030117", "--model", "lite0:2", "--json"))
    assert {drop["model"] for drop in other["drops"]} == {"lite0:2"}
