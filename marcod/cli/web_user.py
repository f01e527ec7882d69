"""`marcod web user`: who may log in to the page, and what each may do."""

import sys
from typing import Any

import click

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice, actor
from marcod.errors import MarcodError
from marcod.settings import Settings

ROLES = ("labeller", "viewer")


@click.group()
def user() -> None:
    """Manage the accounts of the page: add people, change passwords, end sessions."""


@user.command()
@click.argument("name")
@click.option("--role", type=Choice(ROLES), default=ROLES[0], show_default=True, help="A viewer looks and cannot label")
@click.option("--no-password", is_flag=True, help="For people whom a proxy logs in: only the role is kept")
@pass_settings
def add(settings: Settings, name: str, role: str, no_password: bool) -> None:
    """Add a person. The password is asked for, or is the first line of standard input."""
    from marcod.web import accounts
    from marcod.web.people import UserRole

    kept = "" if no_password else accounts.check_password(_password())
    with app.open_app(settings, brief=True) as ready:
        ready.db.write(accounts.add, name, UserRole(role), kept, ready.db.now(), actor())
    output.echo(f"{text.printable(name)} is a {role} of the page")
    if settings.web.access == "local":
        output.echo('The page asks for accounts once web.access = "accounts" is configured', err=True)


@user.command("list")
@options.as_json
@pass_settings
def list_(settings: Settings, json_output: bool) -> None:
    """List the people, their roles and how many sessions each has."""
    from marcod.web import accounts

    with app.reading(settings) as ready:
        found = ready.db.read(accounts.accounts)
    if json_output:
        output.print_json(found)
        return
    rows = [
        (
            one.name,
            one.role,
            "yes" if one.has_password else "no",
            one.sessions,
            "never" if one.seen_at is None else f"{one.seen_at:%Y-%m-%d %H:%M}",
        )
        for one in found
    ]
    listings.show(text.count(len(found), "account"), ("name", "role", "password", "sessions", "last seen (UTC)"), rows)


@user.command()
@click.argument("name")
@pass_settings
def remove(settings: Settings, name: str) -> None:
    """Remove a person and end their sessions; labels keep the name."""
    from marcod.web import accounts

    _write(settings, accounts.remove, name, actor())
    output.echo(f"{text.printable(name)} has no account any more")


@user.command()
@click.argument("name")
@pass_settings
def password(settings: Settings, name: str) -> None:
    """Give a person another password, asked for or the first line of standard input, and end their sessions."""
    from marcod.web import accounts

    kept = accounts.check_password(_password())
    with app.open_app(settings, brief=True) as ready:
        ended = ready.db.write(accounts.set_password, name, kept, ready.db.now(), actor())
    output.echo(f"{text.printable(name)} has another password; {text.count(ended, 'session')} ended")


@user.command()
@click.argument("name")
@pass_settings
def logout(settings: Settings, name: str) -> None:
    """End every session of a person, who has to log in again."""
    from marcod.web import accounts

    ended = _write(settings, accounts.log_out_everywhere, name)
    output.echo(f"{text.count(ended, 'session')} of {text.printable(name)} ended")


def _write(settings: Settings, work: Any, name: str, *more: str) -> Any:
    with app.open_app(settings, brief=True) as ready:
        return ready.db.write(work, name, ready.db.now(), *more)


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True))
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise MarcodError("no password was given; write it as the first line of standard input")
    return line
