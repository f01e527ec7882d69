"""`marcod run`: the service."""

import sys
from typing import get_args

import click

from marcod import __version__, service, text
from marcod.cli.common import output
from marcod.cli.common.configured import configured
from marcod.errors import ConfigError
from marcod.settings import ROLES, USUAL_ROLES, Role
from marcod.settings.keys import nearest


def _roles(_ctx: click.Context, _param: click.Parameter, given: str) -> tuple[Role, ...]:
    wanted = [part.strip() for part in given.split(",") if part.strip()]
    unknown = sorted(set(wanted) - set(get_args(Role)))
    if unknown or not wanted:
        meant = nearest(unknown[0], ROLES) if unknown else None
        hint = f"; did you mean {meant}?" if meant else ""
        raise ConfigError(f"role {', '.join(unknown) or given!r} is not one of {', '.join(ROLES)}{hint}")
    return tuple(role for role in ROLES if role in wanted)


@click.command()
@click.option(
    "--roles",
    default=",".join(USUAL_ROLES),
    show_default=True,
    callback=_roles,
    help="What this process does: watch the imagers' folders, score images, keep the schedule, train (trainer)",
)
@click.pass_context
def run(ctx: click.Context, roles: tuple[Role, ...]) -> None:
    """Watch the configured sources and score what arrives, until stopped.

    The first SIGTERM or Ctrl-C ends in order, the second at once; nothing is lost either way.
    """
    settings = configured(ctx).settings
    if sys.stderr.isatty() and settings.sources:
        # Loading the model takes seconds in which nothing else is said.
        sources = text.count(len(settings.sources), "source")
        doing = "loading the model" if "score" in roles else "starting"
        output.echo(f"marcod {__version__}: {sources}, {doing}", err=True)
    ctx.exit(service.run(settings, roles, _program(ctx.find_root().params)))


def _program(given: dict[str, object]) -> list[str]:
    """Return the command that starts marcod like this process."""
    options = (("--config", "config_path"), ("--database", "database"), ("--log-level", "log_level"))
    chosen = [part for option, name in options if given[name] is not None for part in (option, str(given[name]))]
    return [sys.executable, "-m", "marcod", *chosen]
