"""`marcod model import`, as a person types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from marcod.cli import cli
from marcod.database.engine import Database
from marcod.store import versions

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture
def config(tmp_path: Path, db_url: str) -> Path:
    file = tmp_path / "marcod.toml"
    file.write_text(f"store.url = {db_url!r}\nmodels.folder = {str(tmp_path / 'models')!r}\n")
    return file


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), "model", *arguments], prog_name="marcod")


def test_an_imported_model_waits_to_be_promoted(config: Path, db_url: str, pristine_bundle: Path) -> None:
    result = call(config, "import", str(pristine_bundle), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    folder = config.parent / "models" / "tiny" / "3"
    assert (said["model"], said["folder"]) == ("tiny:3", str(folder))
    assert said["report"] == json.loads((folder / "metrics.json").read_text())
    database = Database(db_url)
    assert [r.version.name for r in database.read(versions.listed)] == ["lite0"]
    database.close()
    again = call(config, "import", str(pristine_bundle), "--name", "other")
    assert again.stdout.splitlines() == [
        f"wrote {config.parent / 'models' / 'other' / '1'}",
        "next: marcod model promote other:1",
    ]
    assert call(config, "promote", "other:1").exit_code == 0
    refused = call(config, "import", str(pristine_bundle), "--name", "other", "--version", "1")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "marcod: other:1 exists; bundles never change, so choose another version\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.zip"], 2, "marcod: there is no file or folder nowhere.zip\n"),
        (["x", "--name", "No Name"], 2, "marcod: no model can have the name 'No Name': "),
        (
            ["x", "--class", "needles"],
            2,
            "marcod: 'needles' does not fold a class; write NAME=FOLDED with one of Clear,",
        ),
        (["x", "--class", "needles=Cristals"], 2, "marcod: 'needles=Cristals' does not fold a class"),
        (["x", "--version", "0"], 2, "Usage: "),
        (["x", "--threshold", "1.5"], 2, "Usage: "),
        (["x", "--images", "nowhere"], 2, "Usage: "),
    ],
)
def test_what_is_typed_wrong_is_said(config: Path, arguments: list[str], code: int, message: str) -> None:
    result = call(config, "import", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(message)
    assert not (config.parent / "models").exists()


@pytest.mark.slow
def test_a_file_that_is_not_a_model_fails(config: Path) -> None:
    result = call(config, "import", str(config))
    assert result.exit_code == 1
    assert "is neither a zip nor a .keras file" in result.stderr
