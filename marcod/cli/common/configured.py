"""Settings of a call, loaded when a command first needs them, so that a broken file never stands before its help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from marcod.settings import Settings
    from marcod.settings.examined import Examined

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@dataclass
class Configured:
    """Choices on the command line that decide which settings a command gets; the object of every Click context."""

    file: Path | None = None
    overrides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def examined(self) -> "Examined":
        """The configuration as far as it is right, and everything that is wrong in it."""
        from marcod.settings import loading

        return loading.examine(self.file, self.overrides)

    @cached_property
    def settings(self) -> "Settings":
        """Load the settings and set up the log by them. Raises FaultsError."""
        from marcod import telemetry
        from marcod.settings.faults import FaultsError

        if self.examined.faults:
            raise FaultsError(self.examined.faults)
        found = self.examined.settings
        telemetry.configure(found.log.level, found.log.format)
        return found


def configured(ctx: click.Context) -> Configured:
    """Return what the command line chose."""
    found = ctx.find_object(Configured)
    assert found is not None
    return found


def pass_settings(command: "Callable[Concatenate[Settings, Given], Answer]") -> Callable[Given, Answer]:
    """Give the command the settings as its first argument. They load once all its arguments are known to be right."""

    @wraps(command)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Any:
        return command(configured(click.get_current_context()).settings, *args, **kwargs)

    return call
