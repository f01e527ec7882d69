"""Bundles on disk and versions in the database: what is damaged never serves, what is removed can come back."""

import shutil
from pathlib import Path

import pytest
import random_bundles
import sqlalchemy as sa
from factories import promote, record, register_source, rows, sightings, utc

from marcod.database.engine import Database
from marcod.database.schema import audit, job, model_version
from marcod.errors import BundleError, ConfigError, NotFoundError, StoreError
from marcod.model import registry
from marcod.model.registry import SHIPPED, Registry
from marcod.store import queue, serving, versions

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture
def own(models: Path, tmp_path: Path) -> Path:
    """A lab's own folder with random:1 and random:2, to be damaged."""
    shutil.copytree(models / "random", tmp_path / "models" / "random")
    return tmp_path / "models"


@pytest.fixture
def lab(db: Database, own: Path) -> Registry:
    """Bundles that are checked whenever they load; random:1 is champion."""
    found = Registry(db, own)
    first = found.register("random", "1", utc())
    promote(db, first)
    return found


def damage(folder: Path) -> None:
    """Flip one bit of the weights."""
    weights = folder / "weights.npz"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


def snapshot(db: Database) -> list[object]:
    """Everything about versions."""
    return [rows(db, sa.select(table)) for table in (model_version, audit, job)] + [db.read(versions.listed)]


@on_sqlite
def test_a_model_is_named_by_its_name_or_its_alias(lab: Registry) -> None:
    assert str(lab.find("champion")) == str(lab.find("random:1")) == "random:1"
    assert lab.resolve("random:2") == ("random", "2")
    for text, error, words in (
        ("challenger", NotFoundError, "no model is challenger"),
        ("random:2", NotFoundError, "random:2 is not registered"),
        ("random", ConfigError, "write NAME:VERSION, .* or champion, challenger or previous"),
        ("../random:1", ConfigError, "does not name a model"),
    ):
        with pytest.raises(error, match=words):
            lab.find(text)
    assert str(lab.resolve_registered("random:2", utc())) == str(lab.find("random:2")) == "random:2"


@on_sqlite
def test_what_cannot_be_read_is_listed_with_its_reason(lab: Registry, own: Path, models: Path) -> None:
    (own / "random" / "2" / "bundle.toml").write_text("format = 1\nname = ")
    shutil.copytree(models / "random" / "2", own / "other" / "2")
    shutil.rmtree(own / "random" / "1")
    problems = {known.name: known.problem for known in lab.known()}
    assert "it is not on this host" in str(problems["random:1"])
    assert "damaged" in str(problems["random:2"])
    assert "calls itself random:2" in str(problems["other:2"])
    assert problems[":".join(SHIPPED)] is None
    with pytest.raises(BundleError, match="calls itself random:2"):
        lab.resolve_registered("other:2", utc())


def test_what_cannot_serve_does_not_become_champion(lab: Registry, db: Database, own: Path) -> None:
    second = lab.resolve_registered("random:2", utc())
    before = snapshot(db)
    damage(own / "random" / "2")
    with pytest.raises(BundleError, match=r"weights\.npz has changed"):
        lab.promote(second, actor="test", now=utc(1))
    with pytest.raises(BundleError, match=r"weights\.npz has changed"):
        lab.challenge(second, actor="test", now=utc(1))
    assert lab.why_unusable(lab.describe("random:2")) is not None
    assert snapshot(db) == before
    shutil.rmtree(own / "random" / "2")
    random_bundles.write(own, "random", 2, seed=7)
    with pytest.raises(BundleError, match="not the one registered as random:2"):
        lab.promote(second, actor="test", now=utc(1))
    assert "not the one registered" in str(lab.why_unusable(lab.describe("random:2")))
    assert snapshot(db) == before


@on_sqlite
def test_a_rollback_to_a_damaged_bundle_is_refused(lab: Registry, db: Database, own: Path) -> None:
    second = lab.resolve_registered("random:2", utc())
    promote(db, second, utc(1))
    before = snapshot(db)
    damage(own / "random" / "1")
    with pytest.raises(BundleError, match=r"weights\.npz has changed"):
        lab.rollback(actor="test", now=utc(2))
    shutil.rmtree(own / "random" / "1")
    with pytest.raises(NotFoundError, match="no bundle random:1"):
        lab.rollback(actor="test", now=utc(2))
    assert snapshot(db) == before


def test_a_version_without_scores_goes_with_its_folder(lab: Registry, db: Database, own: Path) -> None:
    second = lab.resolve_registered("random:2", utc())
    record(db, register_source(db), sightings(2))
    db.write(lambda c: queue.enqueue_rescore(c, second.id, utc(1)))
    assert lab.remove(lab.describe("random:2"), force=False, actor="test", now=utc(2)) is False
    assert [path.name for path in sorted((own / "random").iterdir())] == ["1"]
    assert rows(db, sa.select(job.c.model_version_id).distinct()) == [(lab.find("champion").id,)]
    with pytest.raises(NotFoundError, match="no model random:2"):
        lab.describe("random:2")


@on_sqlite
def test_a_removal_that_was_cut_short_is_finished_by_the_next(lab: Registry, db: Database, own: Path) -> None:
    """The database is done, the folder is still there: the bundle is one that nobody registered yet."""
    second = lab.resolve_registered("random:2", utc())
    db.write(lambda c: serving.remove(c, second, force=False, actor="test", now=utc(1)))
    left = lab.describe("random:2")
    assert (left.registered, left.problem) == (None, None)
    lab.remove(left, force=False, actor="test", now=utc(2))
    assert not (own / "random" / "2").exists()
    with pytest.raises(StoreError, match="was removed already"):
        lab.remove(registry.ModelInfo("random:2", None, None, None, None), force=False, actor="test", now=utc(3))


@on_sqlite
def test_the_very_same_bundle_brings_a_removed_version_back(lab: Registry, db: Database, own: Path) -> None:
    from factories import claimed, finish

    second = lab.resolve_registered("random:2", utc())
    kept = own.parent / "kept"
    shutil.copytree(own / "random" / "2", kept)
    promote(db, second, utc(1))
    record(db, register_source(db), sightings(2))
    finish(db, claimed(db, utc(2)), second)
    lab.rollback(actor="test", now=utc(3))
    assert lab.remove(lab.describe("random:2"), force=True, actor="test", now=utc(4)) is True
    [gone] = [known for known in lab.known() if known.name == "random:2"]
    assert (gone.folder, gone.problem) == (None, None)
    assert gone.registered is not None
    assert gone.registered.removed_at == utc(4)
    random_bundles.write(own, "random", 2, seed=9)
    with pytest.raises(BundleError, match="differs from the one that scored under this name"):
        lab.resolve_registered("random:2", utc(5))
    shutil.rmtree(own / "random" / "2")
    shutil.move(kept, own / "random" / "2")
    assert lab.resolve_registered("random:2", utc(6)) == second
    assert lab.describe("random:2").registered == versions.Registered(second, (), utc(), utc(1), None, True)


@on_sqlite
def test_the_shipped_bundle_stays(lab: Registry) -> None:
    with pytest.raises(BundleError, match="came with marcod"):
        lab.remove(lab.describe(":".join(SHIPPED)), force=True, actor="test", now=utc())
    assert lab.path(*SHIPPED).is_dir()


@on_sqlite
def test_a_number_is_never_given_twice(lab: Registry, own: Path) -> None:
    """What was removed, what lies here unregistered and what is promised elsewhere all count."""
    assert lab.next_number("random") == 3
    assert lab.next_number("other") == 1
    lab.resolve_registered("random:2", utc())
    lab.remove(lab.describe("random:2"), force=False, actor="test", now=utc(1))
    random_bundles.write(own, "random", 10, seed=4)
    assert lab.next_number("random") == 11
    assert lab.next_number("random", ["random:12", "other:40", "random-two:50"]) == 13
    assert lab.next_number("other", ["random:12", "other:40"]) == 41
    assert lab.next_number(SHIPPED[0]) == int(SHIPPED[1]) + 1
