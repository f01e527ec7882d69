"""What is wrong is said in one sentence, with the right exit code, before anything is written."""

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from lab import Site

from marcod.model import registry

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def _one_sentence(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("marcod: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def fresh(site: Site, empty_db_url: str) -> Site:
    """A lab whose database does not exist yet."""
    site.url = empty_db_url
    return site


def _untouched(site: Site) -> bool:
    return not Path(site.url.removeprefix("sqlite:///")).exists()


def test_a_wrong_key(fresh: Site) -> None:
    fresh.write(watch={"setle_s": 1.0})
    _one_sentence(fresh.call("run"), 2, "watch.setle_s is not a setting", str(fresh.config))
    assert _untouched(fresh)


def test_an_unknown_variable(fresh: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.write()
    monkeypatch.setenv("MARCOD_WATCH__SETLE_S", "1")
    _one_sentence(fresh.call("run"), 2, "MARCOD_WATCH__SETLE_S is not a setting")


def test_a_missing_configuration_file(fresh: Site) -> None:
    _one_sentence(fresh.call("run"), 2, "does not exist")


def test_a_missing_root(fresh: Site) -> None:
    """The service waits for a share to come; a person who asks for a scan is told at once."""
    fresh.add_source("minstrel", fresh.folder / "nowhere", "rigaku")
    fresh.write()
    _one_sentence(fresh.call("scan"), 2, "nowhere", "minstrel", "does not exist")
    assert _untouched(fresh)


def test_an_unknown_layout(fresh: Site) -> None:
    fresh.add_source("minstrel", fresh.folder, "rigagu")
    fresh.write()
    _one_sentence(fresh.call("run"), 2, "minstrel", "rigagu")
    assert _untouched(fresh)


def test_no_source(fresh: Site) -> None:
    fresh.write()
    _one_sentence(fresh.call("run"), 2, "no source is configured")
    assert _untouched(fresh)


def test_an_unknown_role(fresh: Site) -> None:
    fresh.write()
    _one_sentence(fresh.call("run", "--roles", "watch,scor"), 2, "scor")


def test_a_database_that_cannot_be_written(fresh: Site) -> None:
    (fresh.folder / "file").write_text("not a folder")
    fresh.url = f"sqlite:///{fresh.folder}/file/marcod.sqlite"
    fresh.write()
    _one_sentence(fresh.call("score"), 1, "cannot be made")


def test_a_database_that_is_none(fresh: Site) -> None:
    path = fresh.folder / "marcod.sqlite"
    path.write_bytes(b"this is a text and no database" * 100)
    fresh.url = f"sqlite:///{path}"
    fresh.write()
    _one_sentence(fresh.call("score"), 1, "cannot be used")


def test_a_server_that_does_not_answer(fresh: Site) -> None:
    fresh.url = "postgresql://marcod:secret@127.0.0.1:9/marcod"
    fresh.write()
    result = fresh.call("queue", "status")
    _one_sentence(result, 1, "cannot be used")
    assert "secret" not in result.stderr


def test_a_newer_schema(site: Site) -> None:
    site.write()
    from marcod.database.engine import Database

    db = Database(site.url)
    db.write(lambda c: c.exec_driver_sql("update alembic_version set version_num = '9999'"))
    db.write(lambda c: c.exec_driver_sql("update schema_mark set oldest_revision = '9999'"))
    db.close()
    _one_sentence(site.call("score"), 1, "newer than this marcod")
    assert site.count("model_version") == 0


def test_a_damaged_bundle(site: Site) -> None:
    name, version = registry.SHIPPED
    models = site.folder / "models"
    shutil.copytree(registry.shipped_folder() / name / version, models / name / version)
    weights = models / name / version / "weights.npz"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    site.write(models={"folder": str(models)})
    _one_sentence(site.call("score"), 1, "weights.npz", "damaged")
    assert site.count("model_version") == 0


def test_an_unknown_plate_and_model(site: Site) -> None:
    site.write()
    _one_sentence(site.call("plate", "show", "nothing"), 1, "no plate", "there are no plates")
    _one_sentence(site.call("rescore", "--plate", "x", "--model", "nonsense"), 1, "no plate")
    _one_sentence(site.call("plate", "show", "x", "--model", "nonsense"), 2, "NAME:VERSION")
