"""`marcod model fetch` as a person types it, where no model comes of it; with the real one: test_published_marco.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from marcod.cli import cli
from marcod.model import published
from marcod.settings.environment import child_environment

pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture
def config(tmp_path: Path, db_url: str) -> Path:
    file = tmp_path / "marcod.toml"
    file.write_text(f"store.url = {db_url!r}\nmodels.folder = {str(tmp_path / 'models')!r}\n")
    return file


def call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), "model", "fetch", *arguments], prog_name="marcod")


def test_the_catalogue_is_shown(config: Path) -> None:
    shown = call(config, "--list").stdout
    entry = published.find("marco")
    for text in (
        f"{entry.distribution} {entry.version}",
        "43,077,887 bytes",
        entry.sha256,
        "Apache-2.0",
        entry.citation,
    ):
        assert text in shown
    listed = json.loads(call(config, "--list", "--json").stdout)
    assert listed == [model.model_dump(mode="json") for model in published.catalogue().values()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name one published model, or give --list alone"),
        (["marco", "--list"], 2, "name one published model, or give --list alone"),
        (["--list", "--no-promote"], 2, "name one published model, or give --list alone"),
        (
            ["macro"],
            2,
            "marcod: there is no published model 'macro'; `marcod model fetch --list` shows: "
            "marco, efficientnet-lite0\n",
        ),
        (["marco", "--from", "nowhere.whl"], 2, "marcod: there is no file or folder nowhere.whl\n"),
        (["marco", "--from", "."], 1, "marcod: . does not hold marco: it must have the files saved_model.pb, "),
    ],
)
def test_what_is_typed_wrong_is_said(
    config: Path, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(config.parent / "cache"))
    result = call(config, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not (config.parent / "models").exists()


def test_a_models_folder_that_cannot_be_written_is_refused_before_any_download(config: Path) -> None:
    (config.parent / "models").write_text("a file")
    result = call(config, "marco")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"marcod: {config.parent / 'models'} is no folder; name another\n"


def test_with_the_network_cut_one_sentence_says_what_to_bring(config: Path) -> None:
    """A real process, with nothing of this host's own pip."""
    environment = child_environment(
        PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="",
        PIP_CONFIG_FILE="/dev/null", XDG_CACHE_HOME=str(config.parent / "cache"),
    )  # fmt: skip
    command = [sys.executable, "-m", "marcod", "--config", str(config), "model", "fetch", "marco"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    entry = published.find("marco")
    assert (done.returncode, done.stdout) == (1, "")
    *attempts, sentence = done.stderr.splitlines()
    assert attempts[-1] == "asking pip for it, attempt: 3 of 3"
    assert sentence.startswith("marcod: marco could not be fetched: http://127.0.0.1:9/simple/dls-marco-score-ispyb/: ")
    assert sentence.endswith(f"run `marcod model fetch marco --from {entry.file}`")
    assert [p for p in (config.parent / "cache").rglob("*") if p.is_file()] == []
    assert not (config.parent / "models").exists()
