"""Where a value comes from, and what is refused."""

from pathlib import Path

import pytest

from marcod.domain import Modality
from marcod.errors import ConfigError
from marcod.settings import keys, loading
from marcod.settings.environment import child_environment
from marcod.settings.loading import redacted_url


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no file of this machine reaches these tests."""
    for name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "MARCOD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _file(folder: Path, text: str) -> Path:
    path = folder / "marcod.toml"
    path.write_text(text)
    return path


def test_everything_has_a_working_default(tmp_path: Path) -> None:
    loaded = loading.load()
    assert loaded.store.url.get_secret_value() == f"sqlite:///{tmp_path}/state/marcod/marcod.sqlite"
    assert loaded.sources == {}


def test_layers_from_the_weakest_to_the_strongest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = _file(tmp_path, "[watch]\nsettle_s = 1\nrescan_s = 1\nquiet_s = 1\n")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "MARCOD_WATCH__SETTLE_S").write_text("2")
    (credentials / "MARCOD_WATCH__RESCAN_S").write_text("2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("MARCOD_WATCH__SETTLE_S", "3")
    loaded = loading.load(path)
    assert (loaded.watch.settle_s, loaded.watch.rescan_s, loaded.watch.quiet_s) == (3, 2, 1)
    assert loading.load(path, {"watch": {"settle_s": 4}}).watch.settle_s == 4


def test_a_source_in_full(tmp_path: Path) -> None:
    text = """
[sources.rock-imager]
root = "~/store"
layout = "formulatrix"
observer = "polling"
profiles = { 1 = "visible", 2 = "uv" }
timezone = "Europe/Berlin"
"""
    source = loading.load(_file(tmp_path, text)).sources["rock-imager"]
    assert source.root == tmp_path / "home" / "store"
    assert source.profiles == {1: Modality.VISIBLE, 2: Modality.UV}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[watch]\nsetle_s = 1\n", r"watch\.setle_s is not a setting"),
        ("wach = 1\n", "wach is not a setting"),
        ("[watch]\nsettle_s = -1\n", r"line 2: watch\.settle_s = -1: it must be greater"),
        ("[watch\n", "is not valid TOML"),
        ('[sources.a]\nlayout = "rigaku"\n', r"sources\.a\.root is missing"),
        ('[sources.a]\nroot = "/"\nlayout = "rigaku"\ntimezone = "Mars"\n', "'Mars' is not a time zone name"),
        (
            '[sources.a]\nroot = "/"\nlayout = "rigaku"\naccept = ["thumbnail"]\n',
            "'thumbnail' is no reason or warning that can be accepted; there are barcode_differs, ",
        ),
        ('[sources."A b"]\nroot = "/"\nlayout = "rigaku"\n', "lower-case letters"),
        ('store.url = "mysql://x"\n', "start it with sqlite:/// or postgresql://"),
        ('store.url = "sqlite:////"\n', "it names a folder; name a file in it"),
        ('store.url = "postgresql://u:p@h:99999/d"\n', "a port is a number from 1 to 65535"),
        ('store.url = "postgresql://h:0"\n', "a port is a number from 1 to 65535"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        loading.load(_file(tmp_path, text))
    assert "\n" not in str(caught.value).removesuffix("\n")
    assert str(tmp_path / "marcod.toml") in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        loading.load(tmp_path / "none.toml")
    monkeypatch.setenv("MARCOD_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="does not exist"):
        loading.load()


@pytest.mark.parametrize("name", ["MARCOD_WATCH__SETLE_S", "MARCOD_SETTLE_S", "MARCOD_X"])
def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name} is not a setting"):
        loading.load()


def test_passwords_are_not_shown() -> None:
    loaded = loading.load(overrides={"store": {"url": "postgresql://lab:p%40ss@db/marcod"}})
    assert redacted_url(loaded) == "postgresql://lab:***@db/marcod"
    assert "p%40ss" not in repr(loaded)


def test_every_setting_is_described() -> None:
    rows = keys.described()
    assert all(meaning for _, meaning, _ in rows)
    assert {"store.url", "watch.settle_s", "sources.NAME.root"} <= {key for key, _, _ in rows}


def test_a_child_gets_no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARCOD_WATCH__SETTLE_S", "3")
    environment = child_environment(NOTIFY_SOCKET="@x")
    assert "MARCOD_WATCH__SETTLE_S" not in environment
    assert environment["NOTIFY_SOCKET"] == "@x"
