"""Calibration: the promise is kept on new drops, refused where the data cannot carry it, and the weights stay."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from labelled_sets import SIX, labelled, record, said
from scipy.stats import binom, binomtest
from tiny import jpeg

from marcod.cli import cli
from marcod.domain import CLASSES
from marcod.errors import BundleError, MarcodError
from marcod.evaluate import calibration, metrics
from marcod.evaluate.predictions import Predictions
from marcod.model import bundle
from marcod.model.predictor import Predictor

CLEAR, CRYSTALS, _, _ = CLASSES


@pytest.mark.parametrize(
    ("recall", "confidence", "needed"),
    [(0.98, None, 49), (0.99, None, 99), (0.95, 0.95, 59), (0.97, 0.95, 99), (0.98, 0.95, 149), (0.99, 0.95, 299)],
)
def test_how_many_crystals_a_promise_takes(recall: float, confidence: float | None, needed: int) -> None:
    assert calibration.crystals_needed(recall, confidence) == needed
    assert calibration.allowed_misses(needed, recall, confidence) == 0
    assert calibration.allowed_misses(needed - 1, recall, confidence) == -1


PROMISES = (st.integers(0, 600), st.floats(0.3, 0.995), st.sampled_from([None, 0.8, 0.95, 0.99]))


@given(*PROMISES)
def test_as_many_misses_as_the_rule_allows_and_no_more(crystals: int, recall: float, confidence: float | None) -> None:
    misses = calibration.allowed_misses(crystals, recall, confidence)

    def kept(m: int) -> bool:
        if confidence is None:
            return (m + 1) / (crystals + 1) <= 1 - recall + 1e-9
        return bool(binom.cdf(m, crystals, 1 - recall) <= 1 - confidence + 1e-9)

    assert misses < max(crystals, 1)
    assert misses == -1 or kept(misses)
    assert misses == crystals - 1 or not kept(misses + 1)
    assert (misses >= 0) == (crystals >= calibration.crystals_needed(recall, confidence))


def test_with_confidence_it_is_the_lower_clopper_pearson_bound() -> None:
    misses = calibration.allowed_misses(500, 0.979, 0.95)
    assert misses == 5
    bound = binomtest(500 - misses, 500, alternative="greater").proportion_ci(0.95, method="exact").low
    assert bound >= 0.979
    assert binomtest(500 - 6, 500, alternative="greater").proportion_ci(0.95, method="exact").low < 0.979


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_promise_is_kept_on_new_crystals(confidence: float | None) -> None:
    rng, crystals, recall = np.random.default_rng(1), 60, 0.9
    scores = rng.random((4000, crystals))
    misses = calibration.allowed_misses(crystals, recall, confidence)
    # Of uniform scores the share below a threshold is the threshold.
    found = 1 - np.array([metrics.threshold_missing(row, misses, 6) for row in scores])
    if confidence is None:
        assert recall <= found.mean() <= recall + 0.02
    else:
        assert confidence - 0.01 <= (found >= recall).mean() <= confidence + 0.06


def fit(predictions: Predictions, recall: float = 0.9, **more: Any) -> calibration.Fit:
    return calibration.fit(predictions, more.pop("record", record()), "a set", recall=recall, **more)


def test_a_fit_gives_back_the_temperature_and_the_highest_threshold() -> None:
    predictions = said(2000)
    sharp = Predictions(predictions.images, predictions.logits * 2, ())
    fitted, plain = fit(sharp), fit(predictions)
    assert fitted.after.temperature == pytest.approx(2 * plain.after.temperature, rel=0.01)
    assert fitted.after.calibration_error < fitted.before.calibration_error
    assert fitted.after.log_loss < fitted.before.log_loss
    crystals = sharp.folded(record(), fitted.after.temperature)[sharp.labels == 1, 1]
    assert fitted.crystals == len(crystals)
    assert fitted.misses == (crystals < fitted.after.threshold).sum() == fitted.allowed_misses
    assert (crystals < fitted.after.threshold + 2e-6).sum() > fitted.allowed_misses
    assert "recall of at least 90 % expected of new drops" in fitted.promise
    assert "with 95 % confidence" in fit(predictions, confidence=0.95).promise


def test_own_classes_are_fitted_by_what_they_fold_into() -> None:
    model, predictions = record(tuple(SIX)), said(2000, classes=6, fold=tuple(SIX.values()))
    fitted = fit(predictions, record=model)
    crystals = predictions.folded(model, fitted.after.temperature)[predictions.labels == 1, 1]
    assert fitted.misses == (crystals < fitted.after.threshold).sum() == fitted.allowed_misses


def test_too_few_crystals_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        MarcodError, match=r"recall of 98 % needs at least 49 drops with crystals, and there are 5; label"
    ):
        fit(_crystals(5), recall=0.98)
    with pytest.raises(MarcodError, match=r"of 98 % with 95 % confidence needs at least 149 drops .* there are 100"):
        fit(_crystals(100), recall=0.98, confidence=0.95)
    with pytest.raises(MarcodError, match="there are 0"):
        fit(Predictions((labelled(CLEAR),), np.zeros((1, 4)), ()))


def _crystals(count: int, per_drop: int = 1) -> Predictions:
    """Crystals with rising probabilities, so many images a drop, each at an inspection of its own."""
    images = [labelled(CRYSTALS, f"{i}", drop=f"d{i // per_drop}", inspection=f"{i % per_drop}") for i in range(count)]
    logits = np.zeros((count, 4))
    logits[:, 1] = np.linspace(-1, 3, count)
    return Predictions(tuple(images), logits, ())


def test_a_drop_counts_once_by_its_first_inspection_with_crystals() -> None:
    assert fit(_crystals(40, per_drop=2)).crystals == 20
    with pytest.raises(MarcodError, match="needs at least 19 drops with crystals, and there are 18"):
        fit(_crystals(36, per_drop=2), recall=0.95)
    twice = _crystals(40, per_drop=2)
    first = twice.only(range(0, 40, 2))
    assert fit(twice).misses == fit(first).misses
    same_inspection = [labelled(CRYSTALS, f"{i}", drop=f"d{i // 2}", inspection="1") for i in range(40)]
    best = calibration._one_a_drop(Predictions(tuple(same_inspection), twice.logits, ()), record())
    assert best.logits[:, 1].tolist() == twice.logits[1::2, 1].tolist()


@pytest.fixture(scope="module")
def fitted() -> calibration.Fit:
    return fit(said(400))


def test_the_new_version_has_the_same_weights_and_passes_its_own_test(
    tiny_bundle: Path, tiny_predictor: Predictor, fitted: calibration.Fit, tmp_path: Path
) -> None:
    path = calibration.write(tmp_path / "models", tiny_bundle, tiny_predictor, 9, fitted)
    made, parent = bundle.load(path, batch_size=4).record, bundle.read(tiny_bundle)
    assert (path / bundle.WEIGHTS_FILE).read_bytes() == (tiny_bundle / bundle.WEIGHTS_FILE).read_bytes()
    assert (made.version, made.parent, made.temperature) == (9, "tiny:3", fitted.after.temperature)
    assert made.threshold.crystal == fitted.after.threshold
    assert made.threshold.recall == 1 - fitted.misses / fitted.crystals
    assert made.threshold.measured_on == fitted.promise
    changed = {"version", "parent", "temperature", "threshold", "created_at", "libraries", "files", "digest"}
    assert made.model_dump(exclude=changed) == parent.model_dump(exclude=changed)
    assert {f: h for f, h in made.files.items() if f.endswith("jpg")} == {
        f: h for f, h in parent.files.items() if f.endswith("jpg")
    }
    said_of_it = json.loads((path / bundle.METRICS_FILE).read_text())
    assert said_of_it["accuracy"] == 0.25
    assert said_of_it["calibration"]["after"]["threshold"] == fitted.after.threshold
    with pytest.raises(BundleError, match="bundles never change"):
        calibration.write(tmp_path / "models", tiny_bundle, tiny_predictor, 9, fitted)


@pytest.fixture
def call(pristine_bundle: Path, tmp_path: Path, db_url: str) -> Callable[..., Result]:
    """The command on 24 drops, every third one labelled as crystals, in a lab whose one model is tiny:3."""
    models = tmp_path / "models"
    shutil.copytree(pristine_bundle, models / "tiny" / "3")
    lines = ["image,label"]
    for number in range(24):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(f"{number}.jpg,{'Crystals' if number % 3 == 0 else 'Clear'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))

    def run(*words: str) -> Result:
        environment = {"MARCOD_MODELS__FOLDER": str(models)}
        return CliRunner().invoke(cli, ["--database", db_url, "model", *words], env=environment)

    return run


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_command_makes_the_next_version_and_promotion_uses_its_threshold(
    call: Callable[..., Result], tmp_path: Path
) -> None:
    labels = ("--labels", str(tmp_path / "labels.csv"))
    refused = call("calibrate", "tiny:3", *labels, "--recall", "0.98")
    assert refused.exit_code == 1
    assert "needs at least 49 drops with crystals, and there are 8" in refused.stderr
    assert [p.name for p in (tmp_path / "models" / "tiny").iterdir()] == ["3"]
    shown = call("calibrate", "tiny:3", *labels, "--recall", "0.7")
    assert shown.exit_code == 0, shown.output
    assert "missed, of 8 drops with crystals" in shown.stdout
    assert "then marcod model promote tiny:4" in shown.stdout
    record = bundle.verify(tmp_path / "models" / "tiny" / "4")
    assert call("promote", "tiny:4").exit_code == 0
    listed = {row["model"]: row for row in json.loads(call("list", "--json").stdout)}
    assert listed["tiny:4"]["crystal_threshold"] == record.threshold.crystal


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_command_never_calibrates_on_test_plates(call: Callable[..., Result]) -> None:
    test_side = call("calibrate", "tiny:3", "--from-database", "--split", "test", "--recall", "0.9")
    assert (test_side.exit_code, "'test' is not one of" in test_side.stderr) == (2, True)
    assert call("calibrate", "tiny:3", "--from-database", "--recall", "1").exit_code == 2
