"""What nobody may read who is shown a log, an error or the configuration."""

import json
from pathlib import Path

import pytest

from marcod import telemetry
from marcod.database.engine import Database
from marcod.errors import StoreError
from marcod.settings import Settings, StoreSettings, loading
from marcod.settings.loading import redacted_url

SECRET = "hunter2"
URLS = [
    f"postgresql://lab:{SECRET}@db/marcod",
    f"postgresql://:{SECRET}@db/marcod",
    f"postgresql://lab:{SECRET}%2F%40%3A@db:5432/marcod?sslmode=verify-full",
    f"postgresql://lab:a?{SECRET}@db/marcod",
    f"postgresql://lab:a/{SECRET}@db/marcod",
    f"postgresql://lab@db/marcod?password={SECRET}",
    f"postgresql://db/marcod?user=lab&sslpassword={SECRET}&sslmode=require",
    f"postgresql://db/marcod?PASSWORD={SECRET}",
    f"postgresql://db/marcod?p%61ssword={SECRET}",
    f"postgresql+psycopg2://lab:{SECRET}@/marcod?host=/run/postgresql",
]


@pytest.mark.parametrize("url", URLS)
def test_no_password_is_shown_with_the_database(url: str) -> None:
    shown = redacted_url(Settings(store=StoreSettings(url=url)))
    assert SECRET not in shown
    assert shown.startswith(url.split("://")[0])
    assert "marcod" in shown
    db = Database(url)
    assert SECRET not in str(db)


def test_what_is_not_a_secret_is_shown() -> None:
    url = "postgresql://lab@db:5432/marcod?sslmode=verify-full&host=/run"
    assert redacted_url(Settings(store=StoreSettings(url=url))) == url
    assert redacted_url(Settings(store=StoreSettings(url="sqlite:////data/a.sqlite"))) == "sqlite:////data/a.sqlite"


def test_a_password_with_an_at_sign_is_refused_and_not_named() -> None:
    with pytest.raises(StoreError, match="%40") as caught:
        Database(f"postgresql://lab:pa@{SECRET}@db/marcod")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_values(style: str, capfd: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", style)
    try:
        _fail(SECRET)
    except RuntimeError:
        telemetry.logger("marcod.test").exception("it failed")
    told = capfd.readouterr().err
    assert "no luck" in told
    assert "_fail" in told
    assert SECRET not in told


def _fail(password: str) -> None:
    if password:
        raise RuntimeError("no luck")


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_name_steers_a_terminal_or_looks_like_a_line(style: str, capfd: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", style)
    log = telemetry.logger("marcod.test")
    names = ("\x1b[2J\x1b]0;owned\x07.jpg", "a\n2026 [error] forged", "\u202egpj.exe", "\x9b31m", "\udcff", "a\rb")
    for name in names:
        log.info("image failed", path=name, names=[name])
    try:
        raise ValueError(names[0])
    except ValueError:
        log.exception("it failed")
    told = capfd.readouterr().err
    lines = told.splitlines()
    assert not [c for c in told if not c.isprintable() and c != "\n"]
    assert len([line for line in lines if "image failed" in line]) == len(names)
    if style == "json":
        assert [json.loads(line).get("path") for line in lines[: len(names)]] == list(names)


def test_what_is_wrong_with_a_setting_is_said_without_its_value(tmp_path: Path) -> None:
    file = tmp_path / "marcod.toml"
    file.write_text(f'[store]\nurl = "mysql://lab:{SECRET}@db/marcod"\n', encoding="utf-8")
    with pytest.raises(Exception, match=r"store\.url") as caught:
        loading.load(file)
    assert SECRET not in str(caught.value)
