"""A person with a broken configuration: help answers, `config` tells all that is wrong, and one round mends it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from marcod.cli import cli
from marcod.cli.common.lazy import loaded
from marcod.settings import keys
from marcod.settings.environment import child_environment

SECRET = "hunter2"
BROKEN = f"""\
[store]
url = "postgresql://lab:{SECRET}@localhost:1/marcod"
[watch]
setle_s = 5
[sources.minstrel]
root = "/nowhere/minstrel"
layout = "rigakku"
observer = "pollin"
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "marcod.toml"
    path.write_text(BROKEN)
    return path


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    return tmp_path / "none.toml"


def _call(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), *arguments], prog_name="marcod")


def _commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, command in group.commands.items():
        if isinstance(below := loaded(command), click.Group):
            yield from _commands(below, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", list(_commands(cli)), ids=" ".join)
def test_every_help_answers(broken: Path, words: tuple[str, ...]) -> None:
    result = _call(broken, *words, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {' '.join(('marcod', *words))}")


def _process(config: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "marcod", "--config", str(config), *arguments]
    environment = child_environment(**variables)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.slow
def test_a_command_refuses_in_one_line_and_says_where_more_stands(broken: Path) -> None:
    result = _process(broken, "queue", "status", MARCOD_STORE__ULR=SECRET)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"marcod: {broken}, line 4: watch.setle_s is not a setting; did you mean settle_s?")
    assert line.endswith("(there are more faults; `marcod config check` shows all)")


@pytest.mark.slow
def test_check_tells_all_faults_and_mending_them_is_enough(broken: Path) -> None:
    result = _process(broken, "config", "check", MARCOD_STORE__ULR=SECRET)
    assert (result.returncode, result.stdout) == (2, "")
    heads = [line for line in result.stderr.splitlines() if not line.startswith("  ")]
    examples = [line.strip().partition("  #")[0] for line in result.stderr.splitlines() if line.startswith("  ")]
    assert [head.split(": ")[0] for head in heads] == [
        f"{broken}, line 4",
        f"{broken}, line 6",
        f"{broken}, line 7",
        f"{broken}, line 8",
        "variable MARCOD_STORE__ULR",
    ]
    assert "/nowhere/minstrel of source 'minstrel' does not exist" in heads[1]
    assert [head.rpartition("did you mean ")[2] for head in (heads[0], *heads[2:])] == [
        "settle_s?", "rigaku?", "polling?", "MARCOD_STORE__URL?",
    ]  # fmt: skip
    assert SECRET not in result.stderr
    lines = BROKEN.splitlines()
    for number, example in zip((4, 7, 8), (examples[0], *examples[2:]), strict=False):
        lines[number - 1] = example
    lines[5] = f'root = "{broken.parent}"'
    broken.write_text("\n".join(lines))
    assert _call(broken, "config", "check").stdout.startswith("configuration is fine: 1 source,")


def test_check_tells_programs_too(broken: Path) -> None:
    result = _call(broken, "config", "check", "--json")
    assert result.exit_code == 2
    faults = json.loads(result.stdout)["faults"]
    assert [(fault["line"], fault["word"], fault["nearest"]) for fault in faults] == [
        (4, "setle_s", "settle_s"),
        (6, "/nowhere/minstrel", None),
        (7, "rigakku", "rigaku"),
        (8, "pollin", "polling"),
    ]
    assert all(fault["place"] == str(broken) and fault["example"] for fault in faults)


def test_roots_in_one_another_are_reported_with_other_faults(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    tables = {"outer": (tmp_path / "in", "rigakku"), "inner": (tmp_path / "in" / "a", "xchem")}
    lines = [f'[sources.{name}]\nroot = "{root}"\nlayout = "{layout}"\n' for name, (root, layout) in tables.items()]
    config = tmp_path / "marcod.toml"
    config.write_text("".join(lines))
    told = _call(config, "config", "check").stderr
    assert f"{config}, line 5: the root {tmp_path}/in/a" in told
    assert "there is no layout 'rigakku'" in told
    assert f"the root {tmp_path}/in/a of source 'inner' lies inside {tmp_path}/in of source 'outer'" in told


def test_show_prints_what_is_right_and_all_that_is_wrong(broken: Path) -> None:
    result = _call(broken, "config", "show")
    assert result.exit_code == 2
    shown = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "postgresql://lab:***@localhost:1/marcod" in shown["store.url"]
    assert shown["watch.settle_s"].split()[1] == "10"
    assert {key for key, _, _ in keys.described() if "NAME" not in key} <= set(shown)
    assert "rigakku" in shown["sources.minstrel.layout"]
    assert [line.split(": ")[1] for line in result.stderr.splitlines() if not line.startswith("  ")] == [
        "watch.setle_s is not a setting; did you mean settle_s?",
        'sources.minstrel.observer = "pollin"',
    ]
    record = json.loads(_call(broken, "config", "show", "--json").stdout)
    assert [fault["line"] for fault in record["faults"]] == [4, 8]
    assert record["watch"]["settle_s"] == 10.0
    assert SECRET not in result.output + json.dumps(record)


def test_a_file_that_is_not_there_is_said_and_the_defaults_shown(missing: Path) -> None:
    result = _call(missing, "config", "show")
    assert result.exit_code == 2
    assert "watch.settle_s" in result.stdout
    assert f"configuration file {missing} does not exist" in result.stderr
    assert _call(missing, "config", "check").exit_code == 2
    assert _call(missing, "queue", "status", "--help").exit_code == 0
    assert f"{missing} does not exist" in _call(missing, "queue", "status").stderr


def test_an_unknown_role_names_the_nearest(broken: Path) -> None:
    result = _call(broken, "run", "--roles", "watch,scor")
    assert result.exit_code == 2
    assert "role 'scor' is not one of watch, score, schedule, trainer, web; did you mean score?" in result.stderr


@pytest.mark.parametrize("command", ["scan", "explain"])
def test_an_unknown_layout_on_the_command_line_names_the_nearest_first(broken: Path, command: str) -> None:
    result = _call(broken, command, str(broken.parent), "--layout", "rigakku")
    assert result.exit_code == 2
    assert "'rigakku' is not one of 'rigaku', 'formulatrix', " in result.stderr


@pytest.mark.parametrize("command", ["run", "scan"])
def test_an_unknown_layout_in_the_configuration_names_the_nearest_first(tmp_path: Path, command: str) -> None:
    config = tmp_path / "marcod.toml"
    text = f'[store]\nurl = "sqlite:///{tmp_path}/x.db"\n[sources.a]\nroot = "{tmp_path}"\nlayout = "rigakku"\n'
    config.write_text(f'{text}[models]\nfolder = "{tmp_path}/models"\n')
    result = _call(config, command)
    assert result.exit_code == 2
    assert "source 'a': There is no layout 'rigakku'; the layouts are rigaku, formulatrix, " in result.stderr


def test_a_wrong_option_is_reported_before_a_wrong_file(broken: Path) -> None:
    result = _call(broken, "queue", "status", "--jsn")
    assert result.exit_code == 2
    assert "--json" in result.stderr
    assert "setle_s" not in result.stderr
