"""Patterns of host names stand for the hosts that a person reads in them, and for no others."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcod import app
from marcod.settings import hosts, layers, loading
from marcod.settings.faults import FaultsError

LETTERS = st.text("abgpu-_0129", min_size=1, max_size=4)
NUMBERS = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(1, 4))


def brackets(ranges: list[tuple[int, int, int]]) -> str:
    return (
        "["
        + ",".join(
            f"{low:0{width}}-{low + more:0{width}}" if more else f"{low:0{width}}" for low, more, width in ranges
        )
        + "]"
    )


PARTS = st.one_of(
    LETTERS.map(lambda text: (text, re.escape(text))),
    st.just(("*", ".*")),
    st.just(("?", ".")),
    st.lists(NUMBERS, min_size=1, max_size=3).map(
        lambda ranges: (
            brackets(ranges),
            "(?:"
            + "|".join(
                f"{n:0{max(width, len(str(low)))}}" for low, more, width in ranges for n in range(low, low + more + 1)
            )
            + ")",
        )
    ),
)
NAMES = st.text("abgpu-_0123459", min_size=1, max_size=10)


@given(st.lists(PARTS, min_size=1, max_size=5), NAMES)
def test_a_pattern_means_what_its_numbers_written_out_mean(parts: list[tuple[str, str]], name: str) -> None:
    """An oracle that writes every number of every range out."""
    pattern, written_out = ("".join(part) for part in zip(*parts, strict=True))
    assert hosts.matches(pattern, name) == (re.fullmatch(written_out, name) is not None)


@given(st.lists(PARTS, min_size=1, max_size=4), st.data())
def test_every_name_that_is_made_of_a_pattern_matches(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    pattern, written_out = ("".join(part) for part in zip(*parts, strict=True))
    name = data.draw(st.from_regex(re.compile(written_out.replace(".", "[a-z0-9-]"), re.ASCII), fullmatch=True))
    assert hosts.matches(pattern, name)
    assert hosts.matches(pattern.upper(), f"{name}.cluster.example.org")


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_or_is_refused(text: str) -> None:
    try:
        hosts.require(text)
    except ValueError:
        return
    assert re.fullmatch(r"(?:[A-Za-z0-9._*?-]|\[[0-9,-]+\])+", text)
    hosts.matches(text, "gpu01.example.org")


@pytest.mark.parametrize(
    ("pattern", "host", "same"),
    [
        ("gpu*", "gpu01.cluster.example.org", True),
        ("gpu*", "login.gpu.example.org", False),
        ("gpu*.example.org", "gpu01.cluster.example.org", True),
        ("gpu01", "gpu01.example.org", True),
        ("gpu01.example.org", "gpu01", False),
        ("node[01-16,20]", "node07", True),
        ("node[01-16,20]", "node7", False),
        ("node[1-16]", "node7", True),
        ("node[1-16]", "node07", False),
        ("node[01-16,20]", "node20", True),
        ("node[01-16,20]", "node17", False),
        ("n[8-11]x", "n10x", True),
        ("*[1-5]", "n15", True),
    ],
)
def test_patterns_of_clusters(pattern: str, host: str, same: bool) -> None:
    assert hosts.matches(pattern, host) is same


@pytest.mark.parametrize(
    "pattern", ["", "gpu[", "gpu[]", "gpu[a-c]", "gpu[16-1]", "gpu 1", "gpu{1,2}", "^gpu$", "gpu[1-2"]
)
def test_other_text_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"write a host as|is neither"):
        hosts.require(pattern)


FILE = """
[sources.minstrel]
root = "/mnt/minstrel"
layout = "rigaku"
[sources.hwi]
root = "/mnt/hwi"
layout = "hwi"
[hosts."gpu*".sources.minstrel]
root = "/scratch/all"
[hosts."gpu[01-04]".sources.minstrel]
root = "/scratch/few"
[hosts."other".sources.hwi]
root = "/elsewhere"
"""


def roots(tmp_path: Path, host: str, **overrides: Any) -> dict[str, str]:
    (tmp_path / "marcod.toml").write_text(FILE)
    found = layers.read(tmp_path / "marcod.toml", overrides, host)
    return {name: table["root"] for name, table in found.values["sources"].items()}


def test_a_host_finds_a_source_where_its_last_table_says(tmp_path: Path) -> None:
    assert roots(tmp_path, "login") == {"minstrel": "/mnt/minstrel", "hwi": "/mnt/hwi"}
    assert roots(tmp_path, "gpu09.example.org") == {"minstrel": "/scratch/all", "hwi": "/mnt/hwi"}
    assert roots(tmp_path, "gpu03") == {"minstrel": "/scratch/few", "hwi": "/mnt/hwi"}


def test_the_command_line_and_variables_are_stronger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"sources": {"minstrel": {"root": "/given"}}}
    assert roots(tmp_path, "gpu03", **given)["minstrel"] == "/given"
    monkeypatch.setenv("MARCOD_SOURCES__MINSTREL__ROOT", "/variable")
    assert roots(tmp_path, "gpu03")["minstrel"] == "/variable"


def test_this_host_has_its_own_roots(tmp_path: Path) -> None:
    config = tmp_path / "marcod.toml"
    here = socket.gethostname().partition(".")[0]
    config.write_text(FILE + f'[hosts."{here}".sources.hwi]\nroot = "/here"\n')
    assert app.roots(loading.load(config))["hwi"] == Path("/here")
    assert loading.load(config).sources["minstrel"].root == Path("/mnt/minstrel")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[hosts."node*".sources.minstrl]\nroot = "/a"', "there is no source 'minstrl'; did you mean minstrel?"),
        ('[hosts."gpu[9-1]".sources.minstrel]\nroot = "/a"', "is neither a number nor a range"),
        (
            '[hosts."node*".sources.minstrel]\nroot = "/a"\nrot = 1',
            "rot is not a setting; keys of [hosts.node*.sources.minstrel] are root",
        ),
        ('[hosts."node*".sources.minstrel]\n', "hosts.node*.sources.minstrel.root is missing"),
        ('[hosts."node*".score]\nbatch_size = 4', "hosts.node*.score is not a setting"),
        ('[hosts."node*".sources.minstrel]\nroot = 5', "root"),
    ],
)
def test_what_is_wrong_in_a_table_of_hosts_is_said_with_its_line(tmp_path: Path, table: str, said: str) -> None:
    config = tmp_path / "marcod.toml"
    config.write_text(FILE + table + "\n")
    with pytest.raises(FaultsError) as refused:
        loading.load(config)
    [fault] = refused.value.faults
    assert said in str(fault)
    assert fault.line is not None
    assert fault.line > FILE.count("\n")
