"""Faults of a configuration: all at once, each with its place, its word, the nearest right one, and no secret."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from marcod.domain import PlateFormat
from marcod.layouts import NAMES
from marcod.settings import USED_BY, keys, loading
from marcod.settings.faults import Fault, FaultsError

SECRET = "hunter2"

BROKEN = f"""\
store.url = "mysql://lab:{SECRET}@db/x"
wach = 1
settle_s = 3
[watch]
setle_s = 5
quiet_s = "ten"
rescan_s = -1
batch_size = 7
[mail]
pasword = "{SECRET}"
password = [ "{SECRET}" ]
security = "startls"
[notify.a]
to = [
  "lab@example.org",
  "labexample.org",
]
events = [ "hit" ]
[notify.b]
to = ["lab@example.org"]
sources = ["minstrell"]
[sources.minstrel]
root = "/"
timezone = "berlin"
observer = "Polling "
profiles = {{ 1 = "visble", x = "vu" }}
[sources."Rock Imager"]
root = "/"
layout = "formulatrix"
[source.b]
"""

EXPECTED = {
    # line: what is said of which key, the wrong word, the nearest right one, how the example begins
    1: ("store.url: start it with sqlite", None, None, "url = "),
    2: ("wach is not a setting", "wach", "watch", "[watch]"),
    3: ("settle_s is not a setting", "settle_s", "watch.settle_s", "settle_s = 10.0  # in [watch]"),
    5: ("watch.setle_s is not a setting", "setle_s", "settle_s", "settle_s = 10.0  # in [watch]"),
    6: ('watch.quiet_s = "ten": it must be a valid number', "ten", None, "quiet_s = 1800.0"),
    7: ("watch.rescan_s = -1: it must be greater than 0", "-1", None, "rescan_s = 60.0"),
    8: ("watch.batch_size is not a setting", "batch_size", "score.batch_size", 'batch_size = "auto"  # in [score]'),
    10: ("mail.pasword is not a setting", "pasword", "password", "password = "),
    11: ("mail.password: it must be a valid string", None, None, "password = "),
    12: ('mail.security = "startls": it must be one of', "startls", "starttls", 'security = "starttls"'),
    16: ("notify.a.to.1: 'labexample.org' is no address", "labexample.org", None, 'to = ["lab@example.org"]'),
    18: ('notify.a.events.0 = "hit": it must be one of', "hit", "hits", 'events = ["hits"]'),
    20: ("notify.b.to: addresses need mail.host", None, None, 'host = "mail.example.org"  # in [mail]'),
    21: ("notify.b.sources: there is no source 'minstrell'", "minstrell", "minstrel", 'sources = ["minstrel"]'),
    22: ("sources.minstrel.layout is missing", None, None, 'layout = "rigaku"  # in [sources.minstrel]'),
    24: ("sources.minstrel.timezone: 'berlin' is not", "berlin", "Europe/Berlin", 'timezone = "Europe/Berlin"'),
    25: ('sources.minstrel.observer = "Polling "', "Polling ", "polling", 'observer = "polling"'),
    27: ("sources.Rock Imager: write this name with lower-case letters", None, None, "[sources.NAME]"),
    30: ("source is not a setting", "source", "sources", "[sources.NAME]"),
}
KEY_AND_VALUE = {"sources.minstrel.profiles.1", "sources.minstrel.profiles.x"}


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no file of this machine reaches these tests."""
    for name in [*(name for name in os.environ if name.startswith("MARCOD_")), "CREDENTIALS_DIRECTORY"]:
        monkeypatch.delenv(name) if name in os.environ else None
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def _file(folder: Path, text: str | bytes) -> Path:
    path = folder / "marcod.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _faults(folder: Path, text: str | bytes) -> tuple[Fault, ...]:
    return loading.examine(_file(folder, text)).faults


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    faults = _faults(tmp_path, BROKEN)
    assert {fault.place for fault in faults} == {str(tmp_path / "marcod.toml")}
    profiles = [fault for fault in faults if fault.line == 26]
    assert {fault.text.split(":")[0].split(" = ")[0] for fault in profiles} == KEY_AND_VALUE
    assert ("visble", "visible") in {(fault.word, fault.nearest) for fault in profiles}
    others = {fault.line: fault for fault in faults if fault.line != 26}
    assert sorted(others) == sorted(EXPECTED)
    assert len(faults) == len(EXPECTED) + len(KEY_AND_VALUE)
    for line, (text, word, nearest, example) in EXPECTED.items():
        fault = others[line or 0]
        assert fault.text.startswith(text)
        assert (fault.word, fault.nearest) == (word, nearest)
        assert (fault.example or "").startswith(example)
    assert SECRET not in repr(faults)


def test_an_unknown_word_that_is_near_none_is_answered_with_those_there_are(tmp_path: Path) -> None:
    section, key = _faults(tmp_path, "[databse]\nurl = 3\n[score]\nzz = 1\n")
    assert section.text.startswith("databse is not a setting; sections are store, models, ")
    assert key.text.startswith("score.zz is not a setting; keys of [score] are engine, batch_size, ")


def test_what_only_follows_from_another_fault_is_not_reported(tmp_path: Path) -> None:
    follows = """
[mail]
host = 5
user = "x"
security = "tsl"
[notify.a]
to = ["lab@example.org"]
sources = ["m"]
[notify.b]
url = 5
[sources.m]
root = 5
layout = "xchem"
"""
    assert [fault.line for fault in _faults(tmp_path, follows)] == [3, 5, 10, 12]


def test_the_right_parts_of_a_broken_file_are_kept(tmp_path: Path) -> None:
    kept = """\
[watch]
settle_s = 3
quiet_s = "x"
[sources.a]
root = "/a"
layout = "xchem"
[sources.b]
layout = "xchem"
"""
    found = loading.examine(_file(tmp_path, kept))
    assert (found.settings.watch.settle_s, found.settings.watch.quiet_s) == (3, 1800)
    assert set(found.settings.sources) == {"a"}
    with pytest.raises(FaultsError) as caught:
        loading.load(tmp_path / "marcod.toml")
    assert caught.value.faults == found.faults
    assert "line 3: watch.quiet_s" in str(caught.value)
    assert "there are more faults; `marcod config check` shows all" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[watch]\nsettle_s 5\n", 2, "not valid TOML, column 10: Expected '='"),
        ("[watch]\n\nroot = /mnt\n", 3, "not valid TOML, column 8: Invalid value"),
        (f'[store]\nurl = "postgresql://lab:{SECRET}@db/x\n', 2, "not valid TOML"),
        ('a = """\n\n', 3, "not valid TOML"),
        ("[watch]\n[watch]\n", 2, "not valid TOML"),
        (b"# ok\n# \xff\n", 2, "not UTF-8"),
    ],
)
def test_a_file_that_is_not_a_toml(tmp_path: Path, text: str | bytes, line: int, said: str) -> None:
    [fault] = _faults(tmp_path, text)
    assert fault.line == line
    assert said in fault.text
    assert fault.text.endswith("shows once this is mended") is (said != "not UTF-8")
    assert SECRET not in repr(fault)


def test_a_heading_without_its_bracket_is_shown_with_it(tmp_path: Path) -> None:
    [fault] = _faults(tmp_path, '[watch]\n[sources.rigaku\nroot = "/a"\n')
    assert (fault.line, fault.example) == (2, "[sources.rigaku]")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MARCOD_WATCH__SETLE_S", "MARCOD_WATCH__SETTLE_S"),
        ("MARCOD_SETTLE_S", "MARCOD_WATCH__SETTLE_S"),
        ("MARCOD_STOR__URL", "MARCOD_STORE__URL"),
        ("MARCOD_STOR__ULR", "MARCOD_STORE__URL"),
        ("MARCOD_CONFG", "MARCOD_CONFIG"),
        ("MARCOD_XYZZY", None),
    ],
)
def test_an_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str | None) -> None:
    monkeypatch.setenv(name, f"postgresql://lab:{SECRET}@db/x")
    [fault] = loading.examine().faults
    assert (fault.place, fault.word, fault.nearest) == (f"variable {name}", name, nearest)
    assert SECRET not in repr(fault)


def test_variables_and_credentials_are_named_by_their_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "MARCOD_STORE__URL").write_text(f"mysql://lab:{SECRET}@db/x")
    (credentials / "MARCOD_MAIL__PASWORD").write_text(SECRET)
    (credentials / "MARCOD_MAIL__PASSWORD").write_bytes(b"\xff")
    (credentials / "another.service").write_text("no business of ours")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("MARCOD_WATCH__SETTLE_S", "ten")
    monkeypatch.setenv("MARCOD_NOTIFY__LIMS__TO", "lab@example.org")
    monkeypatch.setenv("MARCOD_SOURCES__M__ROOTT", "/mnt")
    faults = loading.examine(None, {"log": {"level": "inof"}}).faults
    told = {fault.place: (fault.text.split(": ")[-1], fault.nearest, fault.example) for fault in faults}
    assert told.pop(f"credential {credentials}/MARCOD_MAIL__PASWORD")[1] == "MARCOD_MAIL__PASSWORD"
    assert "not UTF-8" in told.pop(f"credential {credentials}/MARCOD_MAIL__PASSWORD")[0]
    assert "start it with sqlite" in told.pop(f"credential {credentials}/MARCOD_STORE__URL")[0]
    assert told.pop("variable MARCOD_WATCH__SETTLE_S")[2] == "MARCOD_WATCH__SETTLE_S=10.0"
    assert told.pop("variable MARCOD_NOTIFY__LIMS__TO")[2] == """MARCOD_NOTIFY__LIMS__TO='["lab@example.org"]'"""
    assert told.pop("the command line")[1] == "info"
    [(place, (_, nearest, _))] = told.items()
    assert (place, nearest) == ("variable MARCOD_SOURCES__M__ROOTT", "root")
    assert SECRET not in repr(faults)


def test_credentials_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "none"))
    [fault] = loading.examine().faults
    assert fault.place == str(tmp_path / "none")
    assert "CREDENTIALS_DIRECTORY" in fault.text


def test_a_missing_file_names_the_one_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _file(tmp_path, "[watch]\nsettle_s = 3\n")
    [fault] = loading.examine(tmp_path / "marcd.toml").faults
    assert (fault.place, fault.nearest) == ("the command line", str(right))
    monkeypatch.setenv("MARCOD_CONFIG", str(tmp_path / "marcd.toml"))
    [fault] = loading.examine().faults
    assert (fault.place, fault.nearest) == ("variable MARCOD_CONFIG", str(right))


@pytest.mark.parametrize("key", [key for key, _, _ in keys.described()])
def test_every_key_has_an_example_that_works(key: str, tmp_path: Path) -> None:
    section, *names, field = key.split(".")
    name = (section, *(["lab"] if names else []), field)
    example = keys.example(name)
    assert example is not None
    given = tomllib.loads(example)[field]
    layout = min(USED_BY.get(field, {"xchem"}))
    named = {
        "sources": {"lab": {"root": "/", "layout": layout}, "minstrel": {"root": "/", "layout": "xchem"}},
        "hosts": {"lab": {}},
        "notify": {"lab": {"to": ["lab@example.org"]}},
        "mail": {"host": "mail.example.org", "security": "tls"},
        "web": {"access": "accounts", "public_url": "https://marcod.example.org"},
    }
    if names and field == "url":
        named["notify"]["lab"] = {}
    table = named.setdefault(section, {})
    (table["lab"] if names else table)[field] = given
    assert loading.examine(None, named).faults == ()


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("formulatrix", "reservoir_subwells = [2]"),
        ("formulatrix", 'light = "uv"'),
        ("rigaku", "pattern = '(?P<plate>.)'"),
        ("rigaku", 'date_format = "%Y"'),
        ("hwi", "wells = 96"),
        ("hwi", 'grid = "8x6"'),
        ("ami", 'profiles = { 1 = "uv" }'),
    ],
)
def test_a_setting_that_the_layout_does_not_use_is_refused(layout: str, line: str, tmp_path: Path) -> None:
    text = f'[sources.lab]\nroot = "/"\nlayout = "{layout}"\n{line}\n'
    (fault,) = _faults(tmp_path, text)
    word = line.partition(" ")[0]
    assert (fault.place, fault.line, fault.word) == (str(tmp_path / "marcod.toml"), 4, word)
    assert fault.text == f"sources.lab.{word}: layout {layout} does not use it; remove it"


def test_every_layout_that_settings_know_exists() -> None:
    assert frozenset().union(*USED_BY.values()) == set(NAMES)


@pytest.mark.parametrize(("grid", "rows", "columns"), [("8x6", 8, 6), ("32x48", 32, 48), ("48X32", 48, 32)])
def test_a_source_may_have_plates_of_any_grid(grid: str, rows: int, columns: int, tmp_path: Path) -> None:
    text = f'[sources.lab]\nroot = "/"\nlayout = "formulatrix"\ngrid = "{grid}"\n'
    assert loading.load(_file(tmp_path, text)).sources["lab"].plate_format == PlateFormat(rows, columns)
    (fault,) = _faults(tmp_path, text.replace(grid, "8x60"))
    assert "1 to 48 rows and columns, not 8x60" in fault.text


def test_a_profile_is_named_by_its_number_or_its_word(tmp_path: Path) -> None:
    text = '[sources.lab]\nroot = "/"\nlayout = "rigaku"\nprofiles = { 1 = "uv", "00" = "visible", HF = "shg" }\n'
    profiles = loading.load(_file(tmp_path, text)).sources["lab"].profiles
    assert profiles == {1: "uv", "00": "visible", "HF": "shg"}


RIGHT = f"""\
store.url = "postgresql://lab:{SECRET}@db/x"
[mail]
host = "mail.example.org"
user = "lab"
password = "{SECRET}"
security = "tls"
[notify.a]
url = "https://lims.example.org/{SECRET}"
secret = '''{SECRET}'''
[sources.minstrel]
root = "/"
layout = "rigaku"
profiles = {{ 1 = "visible" }}
"""
PIECES = (
    "",
    " ",
    "\n",
    "=",
    ".",
    '"',
    "'",
    "[",
    "]",
    "{",
    "}",
    "x",
    "5",
    "# ",
    "store",
    "[mail]\n",
    "url = 1\n",
    "[[a]]\n",
)


@trials(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RIGHT)), st.integers(0, 8), st.sampled_from(PIECES)), max_size=3))
def test_a_file_damaged_anywhere_is_examined_and_shows_no_secret(
    tmp_path: Path, cuts: list[tuple[int, int, str]]
) -> None:
    text = RIGHT
    for at, length, piece in cuts:
        text = text[:at] + piece + text[at + length :]
    found = loading.examine(_file(tmp_path, text))
    assert not found.faults or text != RIGHT
    told = [str(fault) + str(fault.example) for fault in found.faults]
    assert not [line for line in told if SECRET in line]
    assert all(0 < (fault.line or 1) <= text.count("\n") + 1 for fault in found.faults)
