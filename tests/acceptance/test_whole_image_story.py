"""A version for whole images as a lab uses it: derived, compared, promoted, explained, and not trained."""

import json
from pathlib import Path
from typing import Any

import learner
import pytest
from lab import Site
from PIL import Image

from marcod.model import bundle

pytestmark = pytest.mark.story


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A lab that labelled all its drops, with a version for whole images as champion."""
    folder = tmp_path_factory.mktemp("whole") / "site"
    folder.mkdir()
    made = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    drops = learner.make(made, plates=5)
    made.ok("score")
    learner.teach(made, drops)
    told = ask(made, "model", "convert", learner.SMALL, "--coverage", "whole", "--images", "20")
    assert (told["model"], told["parent"]) == ("small:2", learner.SMALL)
    assert told["conversion"]["images"] == 60
    made.ok("model", "promote", "small:2")
    made.ok("rescore", "--all")
    made.ok("score")
    return made


def ask(site: Site, *arguments: str) -> Any:
    return json.loads(site.ok(*arguments, "--json"))


def test_it_has_a_threshold_and_golden_images_of_its_own(site: Site) -> None:
    folders = [site.folder / "models" / "small" / number for number in ("1", "2")]
    parent, made = map(bundle.read, folders)
    assert made.preprocessing == parent.preprocessing | {"coverage": "whole"}
    assert (made.parent, made.temperature, made.precision) == ("small:1", parent.temperature, parent.precision)
    assert "with as many hits" in made.threshold.measured_on
    assert [image.name for image in bundle.read_golden(folders[1])] == ["wide.jpg"]
    with Image.open(folders[1] / "golden" / "wide.jpg") as wide:
        assert wide.size == (512, 256)
    assert ask(site, "model", "show", "small:2")["record"]["preprocessing"]["coverage"] == "whole"
    site.ok("model", "verify", "--all")


def test_its_heat_map_is_of_the_whole_image(site: Site, tmp_path: Path) -> None:
    plate = site.rows("select plate_key from lims_plate_summary_v1")[0][0]
    widths = []
    for model in ("small:1", "small:2"):
        out = tmp_path / f"{model}.png"
        site.ok("plate", "heatmap", plate, "A02", "--model", model, "--samples", "2", "--out", str(out))
        with Image.open(out) as drawn:
            widths.append(drawn.width)
    assert widths == [80, 100]


def test_it_is_evaluated_as_it_scores(site: Site, tmp_path: Path) -> None:
    """From stored scores and from the files alike."""
    rows = site.rows("select path, label from lims_image_score_v1 where model_version = '2'")
    root = site.folder / "export"
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{path},Crystals\n" for path, _ in rows))
    judged = ask(site, "model", "evaluate", "small:2", "--labels", str(tmp_path / "labels.csv"), "--root", str(root))
    found = sum(label == "Crystals" for _, label in rows)
    assert json.dumps(judged).count("small:2") > 0
    assert len(rows) == 60
    assert judged["accuracy"]["value"] == pytest.approx(found / 60)


def test_training_under_it_is_refused_with_the_way_out(site: Site) -> None:
    refused = site.call("retrain", "--json")
    assert refused.exit_code == 3
    run = json.loads(refused.stdout)
    assert (run["state"], run["candidate"], run["dataset_id"]) == ("refused", None, None)
    assert run["reasons"] == [
        "small:2 looks at whole images, and training at central squares; promote its parent small:1, retrain, and "
        "derive a version for whole images from what comes of it (`marcod model convert NAME:VERSION --coverage whole`)"
    ]
    assert ask(site, "label", "suspects")["labels"] == 60


def test_what_it_is_already_is_refused(site: Site) -> None:
    for asked, sentence in (
        (("small:2", "--coverage", "whole"), "small:2 looks at whole images already"),
        (("small:1", "--coverage", "centre"), "small:1 looks at the central square already"),
        (("small:1",), "nothing to convert; give --precision, --coverage or both"),
    ):
        refused = site.call("model", "convert", *asked)
        assert refused.exit_code != 0
        assert sentence in " ".join(refused.stderr.split())
