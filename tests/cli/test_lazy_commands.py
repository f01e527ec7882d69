"""Commands that are imported when they are called: every table of them is true, and no list imports one."""

from collections.abc import Iterator

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from marcod.cli import cli
from marcod.cli.common.lazy import LazyCommand, loaded

WHOLE = 10_000
"""Characters that no first sentence has."""


def _lazy(group: click.Group, way: str) -> Iterator[tuple[str, LazyCommand]]:
    """Yield every command below the group that is imported when it is called, with its words."""
    for name, command in group.commands.items():
        if isinstance(command, LazyCommand):
            yield f"{way} {name}", command
        if isinstance(below := loaded(command), click.Group):
            yield from _lazy(below, f"{way} {name}")


LAZY = dict(_lazy(cli, "marcod"))


@pytest.mark.parametrize("words", sorted(LAZY))
def test_a_list_of_commands_says_of_each_what_the_command_says_itself(words: str) -> None:
    command = LAZY[words].load()
    assert command.name == words.rsplit(maxsplit=1)[-1]
    assert LAZY[words].get_short_help_str(WHOLE) == command.get_short_help_str(WHOLE)
    assert LAZY[words].hidden == command.hidden


def test_completion_goes_into_a_group_that_is_not_imported() -> None:
    complete = BashComplete(cli, {}, "marcod", "_MARCOD_COMPLETE")
    assert {item.value for item in complete.get_completions(["plate"], "e")} == {"export"}
    assert {item.value for item in complete.get_completions(["model"], "r")} == {"remove", "rollback"}
    assert "--json" in {item.value for item in complete.get_completions(["label", "suspects"], "--")}


def test_an_unknown_command_names_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["modle"])
    assert result.exit_code == 2
    assert "model" in result.stderr
