"""Click groups that import a command when it is called, so that no command pays for the libraries of another."""

import gc
import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyCommand(click.Command):
    """Name and help of a command that is not imported yet: all that a list of commands and a completion show."""

    def __init__(self, target: str, help_line: str) -> None:
        module, _, name = target.rpartition(":")
        super().__init__(name, help=help_line)
        self._module = module or name

    def load(self) -> click.Command:
        """Import and return the command itself: the module's attribute of its name, or of that and ``_``."""
        found = vars(importlib.import_module(f"marcod.cli.{self._module}"))
        attribute = str(self.name).replace("-", "_")
        command = found.get(attribute) or found[f"{attribute}_"]
        assert isinstance(command, click.Command), f"{attribute} of {self._module} is not a command"
        return command


class LazyGroup(click.Group):
    """A group whose ``lazy`` commands load when called; each is ``module:name`` with the first sentence of its help.

    Modules are named below ``marcod.cli``, and may be left out where they are named like the command. Commands can be
    added in the usual ways too.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        for target, help_line in lazy.items():
            self.add_command(LazyCommand(target, help_line))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        found = None if command is None else loaded(command)
        if not gc.isenabled():
            # As the program began; from here on there is garbage.
            gc.freeze()
            gc.enable()
        return name, found, rest


def loaded(command: click.Command) -> click.Command:
    """Return the command itself for one that may not be imported yet."""
    return command.load() if isinstance(command, LazyCommand) else command
