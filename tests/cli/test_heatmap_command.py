"""`marcod plate heatmap` on a scored plate: the image it makes, and one sentence for each way it cannot."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from fault_tools import ordinary_user
from lab import SIZE, Delivery, Site
from PIL import Image

from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS
from marcod.synthetic import ImagerStyle, PlateSpec, write_file

pytestmark = pytest.mark.story

QUICK = ("--samples", "2")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[str]]:
    """Two synthetic drops of one well, scored by the shipped model, and where they lie."""
    folder = tmp_path_factory.mktemp("heatmap")
    site = Site(folder, f"sqlite:///{folder / 'marcod.sqlite'}")
    spec = PlateSpec(ImagerStyle.RIGAKU, "CI030117", (datetime(2026, 4, 1, tzinfo=UTC),), PLATE_FORMATS[24], (1, 3), 2)
    files = Delivery("rigaku", spec).composites()[:3]
    for file in files:
        write_file(folder / "plates", file, SIZE)
    site.add_source("lab", folder / "plates", "rigaku", wells=24)
    site.write(models={"folder": str(folder / "models")})
    site.ok("db", "upgrade")
    site.ok("scan", "--settle", "0")
    site.ok("score")
    return site, [file.path for file in files]


@pytest.fixture
def plates(scored: tuple[Site, list[str]], tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """The delivered folder, put back after a test that damages it."""
    root = scored[0].folder / "plates"
    shutil.copytree(root, tmp_path / "kept")
    yield root, scored[1]
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", root)


def refused(site: Site, *arguments: str, code: int = 1) -> str:
    """What the command says when it must not work; no image may be left."""
    out = site.folder / "refused.png"
    named = () if "--out" in arguments else ("--out", str(out))
    result = site.call("plate", "heatmap", *arguments, *named, *QUICK)
    assert result.exit_code == code, result.output + str(result.exception)
    assert not list(site.folder.rglob("*refused*"))
    return result.stderr


def test_a_heat_map_says_what_it_shows_and_comes_out_the_same(scored: tuple[Site, list[str]]) -> None:
    site, paths = scored
    first, again = site.folder / "first.png", site.folder / "again.png"
    told = json.loads(
        site.ok("plate", "heatmap", "CI030117", "a1", "--drop", "1", "--out", str(first), "--json", *QUICK)
    )
    site.ok("plate", "heatmap", "CI030117", "A01", "--drop", "1", "--out", str(again), *QUICK)
    assert first.read_bytes() == again.read_bytes()
    image = Image.open(first)
    assert image.width == min(SIZE)
    assert image.height > image.width
    text = image.text  # type: ignore[attr-defined]
    assert text["marcod:file"] == told["file"] == str(site.folder / "plates" / paths[0])
    assert text["marcod:model"] == told["model"] == "lite0:1"
    assert (text["marcod:class"], text["marcod:seed"], text["marcod:samples"]) == ("Crystals", "0", "2")
    assert text["marcod:model_digest"] == told["model_digest"]
    drop = json.loads(site.ok("plate", "show", "CI030117", "--json"))["drops"][0]
    assert told["probability"] == drop["p_crystals"]
    assert not [p for p in site.folder.iterdir() if p.name.startswith(".")]


def test_who_may_only_read_everything_draws_one_too(scored: tuple[Site, list[str]], tmp_path: Path) -> None:
    site, _ = scored
    database = site.folder / "marcod.sqlite"
    modes = {path: path.stat().st_mode for path in (database, *site.folder.rglob("*"), site.folder)}
    names = sorted(site.folder.rglob("*"))
    tmp_path.chmod(0o777)
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with ordinary_user(tmp_path):
            told = site.ok("plate", "heatmap", "CI030117", "A2", "--out", str(tmp_path / "mine.png"), *QUICK)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert "Crystals 0." in told
    assert sorted(site.folder.rglob("*")) == names


def test_another_class_and_a_well_of_one_drop(scored: tuple[Site, list[str]]) -> None:
    site, _ = scored
    out = site.folder / "clear.png"
    shown = site.ok("plate", "heatmap", "CI030117", "A2", "--class", "clear", "--out", str(out), *QUICK)
    assert "Clear 0." in shown
    assert "trained on rendered drops alone" in " ".join(shown.split())
    assert Image.open(out).text["marcod:class"] == "Clear"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("NONE", "A1"), 1, "no plate has the key or barcode 'NONE'"),
        (("CI030117", "A1"), 1, "well A01 has the drops 1, 3; choose one with --drop"),
        (("CI030117", "A1", "--drop", "2"), 1, "has no drop 2, only 1, 3"),
        (("CI030117", "D6"), 1, "has no image of well D06; the wells with drops are"),
        (("CI030117", "well"), 2, "'well' is not a well; write it like A1"),
        (("CI030117", "A2", "--inspection", "9"), 1, "has no inspection '9'"),
        (("CI030117", "A2", "--model", "other:1"), 1, "model other:1 is not registered"),
        (("CI030117", "A2", "--out", "heat.jpg"), 2, "end the name with .png"),
        (("CI030117", "A2", "--out", "/nowhere/heat.png"), 2, "there is no folder /nowhere"),
    ],
)
def test_what_is_not_there_is_named(
    scored: tuple[Site, list[str]], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert message in refused(scored[0], *arguments, code=code)


def test_nothing_is_written_where_imagers_write(scored: tuple[Site, list[str]]) -> None:
    site, _ = scored
    before = sorted((site.folder / "plates").rglob("*"))
    inside = str(site.folder / "plates" / "CI030117" / "heat.png")
    assert "where only the imager writes" in refused(site, "CI030117", "A2", "--out", inside, code=2)
    assert sorted((site.folder / "plates").rglob("*")) == before


def test_a_image_that_changed_is_not_the_one_scored(
    scored: tuple[Site, list[str]], plates: tuple[Path, list[str]]
) -> None:
    root, paths = plates
    (root / paths[2]).write_bytes((root / paths[0]).read_bytes())
    assert "has changed since it was scored" in refused(scored[0], "CI030117", "A2")


def test_a_image_or_a_source_that_is_gone(scored: tuple[Site, list[str]], plates: tuple[Path, list[str]]) -> None:
    root, paths = plates
    (root / paths[2]).unlink()
    assert f"{root / paths[2]} is gone" in refused(scored[0], "CI030117", "A2")
    shutil.rmtree(root)
    assert f"the folder {root} of its source is gone" in refused(scored[0], "CI030117", "A2")


@contextmanager
def altered(site: Site, there: str, back: str) -> Iterator[None]:
    """Scores changed behind the program's back, for a while."""
    db = Database(site.url)
    db.write(lambda c: c.execute(sa.text(f"update score set {there}")))
    try:
        yield
    finally:
        db.write(lambda c: c.execute(sa.text(f"update score set {back}")))
        db.close()


def test_scores_that_the_model_would_not_give_are_not_explained(scored: tuple[Site, list[str]]) -> None:
    with altered(scored[0], "p_crystals = p_crystals + 0.1", "p_crystals = p_crystals - 0.1"):
        assert "the heat would not explain the score" in refused(scored[0], "CI030117", "A2")


def test_a_drop_that_is_not_scored_has_no_heat(scored: tuple[Site, list[str]]) -> None:
    with altered(scored[0], "content_hash = 'x' || content_hash", "content_hash = substr(content_hash, 2)"):
        said = refused(scored[0], "CI030117", "A2")
    assert "has not scored well A02 yet; `marcod rescore --plate CI030117" in said
