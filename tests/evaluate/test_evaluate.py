"""Evaluation: labelled sets as people have them, numbers against scikit-learn, and a page that stands alone."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import factories
import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from factories import utc
from labelled_sets import SIX, labelled, record, said
from sklearn import metrics as reference
from tiny import jpeg

from marcod.catalog import registration
from marcod.cli import cli
from marcod.cli.common.output import json_text
from marcod.database.engine import Database
from marcod.database.schema import image
from marcod.domain import CLASSES, DropClass, Split, split_of
from marcod.errors import ConfigError, MarcodError, NotFoundError
from marcod.evaluate import page, results, tables
from marcod.evaluate.labelled import from_csv, from_database
from marcod.evaluate.predictions import Predictions, predict
from marcod.model import probabilities
from marcod.model.bundle import folding
from marcod.model.predictor import Predictor
from marcod.model.registry import Registry
from marcod.store import versions, votes

CLEAR, CRYSTALS, OTHER, PRECIPITATE = CLASSES
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def judged(predictions: Predictions, **more: Any) -> results.Evaluation:
    values = {"record": record(), "description": "a set", "seed": 1, "now": NOW} | more
    return results.evaluate(predictions, **values)


@pytest.fixture
def sheet(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV file beside three images."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")

    def write(*rows: str, header: str = "image,label") -> Path:
        file = tmp_path / "labels.csv"
        file.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8-sig")
        return file

    return write


def test_a_csv_file_says_what_it_can(sheet: Callable[..., Path]) -> None:
    file = sheet(
        "a.jpg,crystals,lab,Minstrel,P1,A1,1,mine",
        "b.jpg, Clear ,lab,,P1,A1,2,other",
        "",
        "c.jpg,OTHER,,,,,,x",
        header="Image,Label,Source,imager,plate,drop,inspection,remark",
    )
    given = from_csv(file, None, record())
    a, b, c = given.images
    assert given.description == "labels.csv, 3 labelled images"
    assert (a.label, a.file, a.imager, a.drop, a.group) == (
        CRYSTALS,
        file.parent / "a.jpg",
        "Minstrel",
        "lab/P1/A1",
        "lab/P1",
    )
    assert (b.label, b.imager, b.drop, b.group) == (CLEAR, "lab", a.drop, a.group)
    assert (c.label, c.drop, c.group, c.own) == (OTHER, "c.jpg", "c.jpg", 2)
    assert len({a.unit, b.unit, c.unit}) == 3


def test_images_of_a_drop_at_an_inspection_are_one_unit(sheet: Callable[..., Path]) -> None:
    header = "image,label,drop,inspection,group"
    file = sheet("a.jpg,Clear,A1,1,g", "b.jpg,Clear,A1,1,g", "c.jpg,Crystals,A1,1,g", header=header)
    images = from_csv(file, None, record()).images
    assert len({p.unit for p in images}) == 2
    assert {p.group for p in images} == {"g"}


def test_labels_may_be_the_models_own_classes(sheet: Callable[..., Path]) -> None:
    file = sheet("a.jpg,Needles", "b.jpg,crystals", "c.jpg,PRECIPITATE")
    found = [(p.label, p.own) for p in from_csv(file, None, record(tuple(SIX))).images]
    assert found == [(CRYSTALS, 5), (CRYSTALS, 1), (PRECIPITATE, None)]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (
            ["a.jpg,cristal"],
            "image,label",
            r"line 2: label 'cristal' is not known; write one of Clear, Crystals, Other",
        ),
        (["a.jpg,"], "image,label", r"line 2: label '' is not known"),
        ([",Clear"], "image,label", r"line 2: the image is not named"),
        (["a.jpg,Clear", "b.jpg,Clear", "a.jpg,Other"], "image,label", r"line 4: a.jpg is in line 2 already"),
        (
            ["a.jpg|Clear"],
            "image|label",
            r"no column 'image'; its first line must name the columns, separated by commas",
        ),
        (["a.jpg"], "image", r"no column 'label'"),
        (
            ["P,A01,Clear"],
            "plate,well,label",
            r"`marcod label` imported need no file: --from-database uses them",
        ),
        (
            ["a.jpg;Clear;4,41312E+11"],
            "image;label;plate",
            r"line 2: plate '4,41312E\+11': a spreadsheet has rounded it",
        ),
        ([], "image,label", r"has no labelled image below its header"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_said_with_its_line(
    sheet: Callable[..., Path], rows: list[str], header: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_csv(sheet(*rows, header=header), None, record())


def test_a_file_that_is_not_a_csv(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.csv cannot be read: No such file"):
        from_csv(tmp_path / "gone.csv", None, record())
    (tmp_path / "image.csv").write_bytes(jpeg(1))
    with pytest.raises(
        ConfigError, match=r"image.csv, line 1: this is not a table but another file; save it as CSV UTF-8"
    ):
        from_csv(tmp_path / "image.csv", None, record())


def test_missing_files_are_all_counted_and_stop_unless_allowed(sheet: Callable[..., Path], tmp_path: Path) -> None:
    file = sheet("a.jpg,Clear", *(f"gone{i}.jpg,Clear" for i in range(7)))
    with pytest.raises(
        ConfigError, match=r"7 of the 8 images .* are not there: .*gone0.jpg, .*gone4.jpg and 2 more; name"
    ):
        from_csv(file, None, record())
    given = from_csv(file, None, record(), skip_missing=True)
    assert (len(given.images), len(given.missing)) == (1, 7)
    with pytest.raises(ConfigError, match="8 of the 8 images"):
        from_csv(file, tmp_path / "elsewhere", record(), skip_missing=True)


def test_scores_come_in_batches_and_the_unreadable_are_named(tmp_path: Path, tiny_predictor: Predictor) -> None:
    images = []
    for number in range(10):
        image = labelled(CLEAR, str(tmp_path / str(number)))
        image.file.write_bytes(b"no image" if number == 3 else jpeg(number))
        images.append(image)
    images.append(labelled(CLEAR, str(tmp_path / "gone")))
    seen: list[int] = []
    found = predict(images, tiny_predictor.record, lambda: tiny_predictor, threads=2, done=seen.append)
    assert [p.file.stem for p in found.images] == [str(n) for n in range(10) if n != 3]
    assert [name.split(": ")[0] for name in found.unreadable] == [str(images[3].file), str(images[10].file)]
    assert seen == [0, 4, 8, 11]
    alone = tiny_predictor.predict(tiny_predictor.prepare(jpeg(9))[np.newaxis])
    assert found.folded(tiny_predictor.record)[-1] == pytest.approx(alone[0], abs=1e-6)
    with pytest.raises(MarcodError, match=r"none of 1 image can be read: .*gone.jpg: No such file"):
        predict(images[-1:], tiny_predictor.record, lambda: tiny_predictor, threads=1)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_a_stored_score_is_taken_back_as_it_is(temperature: float) -> None:
    model = record(temperature=temperature)
    scores = probabilities.softmax(np.random.default_rng(1).normal(0, 3, (50, 4)))
    scores[0] = (0, 1, 0, 0)
    images = [labelled(CLEAR, str(i), stored=tuple(row.tolist())) for i, row in enumerate(scores)]
    found = predict(images, model, lambda: pytest.fail("nothing has to be loaded"), threads=1)
    assert found.folded(model) == pytest.approx(scores, abs=2e-7)
    own_temperature = probabilities.softmax(np.log(scores[1:]) * temperature)
    assert found.folded(model, 1.0)[1:] == pytest.approx(own_temperature, abs=1e-5)


def test_a_unit_counts_once_by_its_most_crystalline_image() -> None:
    images = [labelled(CLEAR, "x", unit="one"), labelled(CLEAR, "y", unit="one"), labelled(CLEAR, "z")]
    logits = np.log(np.array([[0.8, 0.1, 0.05, 0.05], [0.2, 0.7, 0.05, 0.05], [0.9, 0.05, 0.03, 0.02]]))
    counted = Predictions(tuple(images), logits, ()).counted(record())
    assert [p.file.stem for p in counted.images] == ["y", "z"]
    whole = judged(Predictions(tuple(images), logits, ()))
    assert (whole.data.images, whole.data.counted, whole.accuracy.value) == (3, 2, 0.5)


def test_every_number_is_scikit_learns() -> None:
    predictions = said()
    found, scores, true = judged(predictions), predictions.folded(record()), predictions.labels
    order = [CLASSES.index(c) for c in results.ORDER]
    predicted = scores.argmax(axis=1)
    assert [list(row) for row in found.confusion.counts] == reference.confusion_matrix(
        true, predicted, labels=order
    ).tolist()
    shares = reference.confusion_matrix(true, predicted, labels=order, normalize="true")
    assert np.array(found.confusion.percent) == pytest.approx(100 * shares)
    assert found.accuracy.value == pytest.approx(reference.accuracy_score(true, predicted))
    for ranking in (found.crystals, found.precipitate):
        index = CLASSES.index(ranking.drop_class)
        rates, recalls, _ = reference.roc_curve(true == index, scores[:, index])
        assert ranking.auc.value == pytest.approx(reference.auc(rates, recalls))
        assert {(0.0, 0.0), (1.0, 1.0)} <= set(ranking.roc)
        assert len(ranking.roc) <= 200
        for at in ranking.operating:
            assert at.false_positive_rate == pytest.approx(rates[recalls >= at.recall - 1e-12].min())
        assert ranking.average_precision.value == pytest.approx(
            reference.average_precision_score(true == index, scores[:, index])
        )
    for detection, hits in zip(found.detection, (predicted == 1, scores[:, 1] >= 0.3), strict=True):
        expected = reference.precision_recall_fscore_support(true == 1, hits, average="binary")
        got = (detection.precision.value, detection.recall.value, detection.f1)
        assert got == pytest.approx(expected[:3])
        assert detection.accuracy.value == pytest.approx(((true == 1) == hits).mean())


def test_deviation_across_sources_is_table_5() -> None:
    predictions = said()
    predicted, true = predictions.folded(record()).argmax(axis=1), predictions.labels
    sources = np.array([p.source for p in predictions.images])
    cells = [
        ((predicted == 3) & (true == 1) & (sources == s)).sum() / ((true == 1) & (sources == s)).sum()
        for s in set(sources)
    ]
    found = judged(predictions).confusion
    assert found.sources == (3, 3, 3, 3)
    assert found.deviation[0][1] == pytest.approx(100 * np.std(cells, ddof=1))
    alone = judged(predictions.only(range(0, 400, 3))).confusion
    assert alone.sources == (1, 1, 1, 1)
    assert set(alone.deviation) == {(None,) * 4}
    assert "deviation" not in {t.name for t in tables.all_tables(judged(predictions.only(range(0, 400, 3))))}


def test_intervals_hold_the_number_follow_the_seed_and_widen_with_groups() -> None:
    predictions = said()
    found = judged(predictions)
    for estimate in (found.accuracy, found.accuracy_over_groups, found.crystals.auc, found.crystals.average_precision):
        assert estimate.low < estimate.value < estimate.high
    assert judged(predictions) == found
    assert judged(predictions, seed=2).crystals.auc != found.crystals.auc
    copies = Predictions(
        tuple(p for p in predictions.images for _ in range(4)), np.repeat(predictions.logits, 4, axis=0), ()
    )
    units = [labelled(p.label, str(i), group=p.drop) for i, p in enumerate(copies.images)]
    grouped = judged(Predictions(tuple(units), copies.logits, ())).accuracy_over_groups
    ungrouped = judged(Predictions(tuple(labelled(p.label, str(i)) for i, p in enumerate(units)), copies.logits, ()))
    narrow = ungrouped.accuracy_over_groups
    assert grouped.high - grouped.low > 1.6 * (narrow.high - narrow.low)


def test_each_imager_is_judged_alone() -> None:
    predictions = said()
    found = judged(predictions)
    assert [p.name for p in found.imagers] == ["Minstrel", "Rock <Imager>"]
    alone = judged(predictions.only(range(0, 400, 2)))
    assert found.imagers[0].accuracy == alone.accuracy
    assert found.imagers[0].crystal_auc == alone.crystals.auc.value
    assert found.imagers[0].crystal_recall == alone.detection[1].recall


@pytest.mark.parametrize("only", [CLEAR, CRYSTALS])
def test_one_class_alone_leaves_numbers_undefined(only: DropClass) -> None:
    predictions = said()
    kept = predictions.only([i for i, p in enumerate(predictions.images) if p.label is only])
    found = judged(kept)
    assert (found.crystals.auc, found.crystals.roc) == (results.Estimate(None), ())
    assert found.confusion.percent[3] == (None,) * 4
    assert (found.detection[1].recall.value is None) == (only is CLEAR)
    assert all(at.false_positive_rate is None for at in found.crystals.operating)
    json.loads(json_text(found), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    shown = {t.name: t for t in tables.all_tables(found)}
    assert "-" in shown["operating"].rows[0]
    assert page.html(found)


def test_a_single_image_can_be_judged() -> None:
    found = judged(said(1))
    assert found.accuracy_over_groups.low is None
    assert page.html(found)
    assert "too narrow" in " ".join(tables.warnings(found))


def test_a_model_with_own_classes_is_judged_in_the_four_and_in_its_own() -> None:
    model, predictions = record(tuple(SIX)), said(classes=6, fold=tuple(SIX.values()))
    found = judged(predictions, record=model)
    own = np.array([p.own for p in predictions.images])
    assert found.own is not None
    assert (
        np.array(found.own.counts).tolist()
        == reference.confusion_matrix(own, predictions.logits.argmax(axis=1)).tolist()
    )
    scores = probabilities.softmax(predictions.logits) @ folding(model)
    assert scores[:, 1] == pytest.approx(probabilities.softmax(predictions.logits)[:, [1, 5]].sum(axis=1))
    assert found.accuracy.value == pytest.approx((scores.argmax(axis=1) == predictions.labels).mean())
    assert tables.all_tables(found)[-1].rows[5][0] == "6 needles"
    mixed = Predictions((labelled(CLEAR, "new"), *predictions.images[1:]), predictions.logits, ())
    assert judged(mixed, record=model).own is None
    assert judged(said()).own is None


def test_the_page_stands_alone_escapes_and_warns() -> None:
    predictions = Predictions(said().images, said().logits, ("<b>bad</b>.jpg: truncated",))
    text = page.html(judged(predictions, description="<script>alert(1)</script>", missing=["gone.jpg"]))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Rock &lt;Imager&gt;" in text
    assert "Synthetic model. Made of &lt;random&gt; numbers." in text
    assert "&lt;b&gt;bad&lt;/b&gt;.jpg: truncated" in text
    assert "gone.jpg" in text
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">]*)', text)
    assert len(sources) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert page.html(judged(predictions, description="x")) == page.html(judged(predictions, description="x"))


@pytest.fixture
def lab(db: Database, tmp_path: Path) -> Database:
    """Eight plates of twelve drops that the shipped model has scored and two persons have labelled."""
    champion = Registry(db).ensure_champion(utc())
    source_id = factories.register_source(db)
    files = [s for n in range(8) for region in (1, 2) for s in factories.sightings(12, plate=f"P{n}", region=region)]
    factories.record(db, source_id, files)
    rng = Random(1)
    factories.drain(db, champion, scores=lambda claim: factories.CRYSTALS if rng.random() < 0.3 else factories.CLEAR)
    drops = factories.rows(db, sa.select(image.c.drop_id, image.c.inspection_id).distinct().order_by(image.c.drop_id))
    words = [
        votes.NewLabel(drop, inspection, CRYSTALS if drop % 3 == 0 else CLEAR, person, utc(), "test")
        for drop, inspection in drops
        for person in ("ada", "bob")
    ]
    db.write(lambda c: votes.add(c, words, utc()))
    return db


def test_the_database_gives_every_side_its_plates(lab: Database) -> None:
    champion = lab.read(versions.champion)

    def given(split: Split | None, **more: Any) -> Any:
        return from_database(lab, record(), champion.id, split=split, source=None, roots={}, **more)

    sides = {split: {p.group.split("/")[1] for p in given(split).images} for split in Split}
    assert sides == {s: {f"P{n}" for n in range(8) if split_of("imager", f"P{n}") is s} for s in Split}
    whole = given(None)
    assert len(whole.images) == 8 * 12 * 2
    assert len({p.unit for p in whole.images}) == 8 * 12
    assert all(p.stored is not None for p in whole.images)
    assert whole.images[0].file.parts[:3] == ("/", "plates", "imager")
    moved = from_database(lab, record(), champion.id, split=None, source="imager", roots={"imager": Path("/here")})
    assert moved.images[0].file.parts[:2] == ("/", "here")
    with pytest.raises(NotFoundError, match="no image of all plates of elsewhere is labelled, of 0 labelled images"):
        from_database(lab, record(), champion.id, split=None, source="elsewhere", roots={})


def test_a_vector_of_own_classes_comes_back_in_the_models_order(lab: Database) -> None:
    champion = lab.read(versions.champion)
    vector = {name: 0.5 if name == "needles" else 0.1 for name in SIX}
    lab.write(lambda c: c.execute(sa.text("update score set vector = :v"), {"v": json.dumps(vector)}))
    given = from_database(lab, record(tuple(SIX)), champion.id, split=None, source=None, roots={})
    assert given.images[0].stored == pytest.approx((0.1, 0.1, 0.1, 0.1, 0.1, 0.5))


def call(url: str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--database", url, "model", "evaluate", *words])


def test_the_command_judges_stored_scores_as_table_json_and_page(lab: Database, db_url: str, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    shown = call(db_url, "champion", "--from-database", "--split", "all", "--html", str(target))
    assert shown.exit_code == 0, shown.output
    assert "of 96 drops in 8 groups" in shown.stdout
    assert "Synthetic model." in shown.stdout
    assert "Confusion (the paper's Table 4)" in shown.stdout
    assert "lite0:1" in target.read_text(encoding="utf-8")
    found = json.loads(call(db_url, "champion", "--from-database", "--split", "all", "--json").stdout)
    assert (found["data"]["images"], found["data"]["counted"]) == (192, 96)
    assert found["confusion"]["classes"] == ["Crystals", "Precipitate", "Clear", "Other"]
    assert sum(map(sum, found["confusion"]["counts"])) == 96
    plates = tmp_path / "plates"
    plates.mkdir()
    lab.write(lambda c: registration.register_source(c, "here", str(plates), "rigaku", None, utc()))
    inside = call(db_url, "champion", "--from-database", "--html", str(plates / "page.html"))
    assert (inside.exit_code, "where only the imager writes" in inside.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_bundle_that_the_database_does_not_know_is_judged(
    lab: Database, db_url: str, models: Path, tmp_path: Path
) -> None:
    """By a reader, who registers nothing; its images have no scores, and here no files either."""
    assert {p.stored for p in from_database(lab, record(), None, split=None, source=None, roots={}).images} == {None}
    config = tmp_path / "marcod.toml"
    config.write_text(f"store.url = {db_url!r}\nmodels.folder = {str(models)!r}\n")
    words = ["--config", str(config), "model", "evaluate", "random:1", "--from-database", "--split", "all"]
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, "none of 192 images can be read: /plates/imager" in result.stderr) == (1, True)
    with pytest.raises(NotFoundError):
        lab.read(versions.find, "random", "1")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_the_command_says_what_it_needs(db_url: str, tmp_path: Path) -> None:
    both = call(db_url, "champion", "--from-database", "--labels", "x.csv")
    assert (both.exit_code, "either --labels CSV or --from-database" in both.stderr) == (2, True)
    assert call(db_url, "champion").exit_code == 2
    assert call(db_url, "champion", "--from-database", "--root", str(tmp_path)).exit_code == 2
    assert call(db_url, "champion", "--labels", "x.csv", "--source", "lab").exit_code == 2
    split = call(db_url, "champion", "--labels", "x.csv", "--split", "test")
    assert (split.exit_code, "--split belongs to --from-database" in split.stderr) == (2, True)
    nowhere = call(db_url, "champion", "--from-database", "--html", str(tmp_path / "no" / "page.html"))
    assert (nowhere.exit_code, "there is no folder" in nowhere.stderr) == (2, True)
    none = call(db_url, "champion", "--labels", str(tmp_path / "gone.csv"))
    assert (none.exit_code, "no model is champion" in none.stderr) == (1, True)
    lab = Database(db_url)
    Registry(lab).ensure_champion(utc())
    lab.close()
    unknown = call(db_url, "champion", "--labels", str(tmp_path / "gone.csv"))
    assert (unknown.exit_code, "gone.csv cannot be read" in unknown.stderr) == (2, True)
    nothing = call(db_url, "champion", "--from-database")
    assert (nothing.exit_code, "no image of the test plates of all sources is labelled" in nothing.stderr) == (1, True)
