"""The course of a training in its folder, as numbers and as an image."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from marcod.fitting import plots

POINT = {"loss": 1.0, "validation_loss": 1.2, "validation_accuracy": 0.5, "rate": 0.1, "seconds": 3.0}


def test_a_course_is_kept_as_numbers_and_drawn(tmp_path: Path) -> None:
    course = [{"epoch": epoch, **POINT} for epoch in (1, 2, 3)]
    del course[1]["loss"]
    plots.write(tmp_path, course, "lab:3, all", {"tier": "all"})
    assert json.loads((tmp_path / "curve.json").read_text()) == {"tier": "all", "curve": course}
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    plots.write(tmp_path, [{"epoch": 1, "loss": 1.0}], "lab:1", {})
    assert (tmp_path / "curve.png").exists()


def test_a_recalibration_has_no_course(tmp_path: Path) -> None:
    plots.write(tmp_path, [], "lab:1", {"tier": "recalibrate"})
    assert json.loads((tmp_path / "curve.json").read_text()) == {"tier": "recalibrate", "curve": []}
    assert not (tmp_path / "curve.png").exists()
