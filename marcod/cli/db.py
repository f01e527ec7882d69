"""`marcod db`: the database's schema."""

import click

from marcod.cli import output
from marcod.errors import SchemaError
from marcod.settings import Settings
from marcod.store import migrate
from marcod.store.engine import Database


@click.group()
def db() -> None:
    """Check and upgrade the database."""


@db.command()
@click.pass_obj
def upgrade(settings: Settings) -> None:
    """Bring the schema up to date; does nothing when it is."""
    database = Database(settings.store.url.get_secret_value())
    migrate.upgrade(database)
    click.echo(f"the schema of {database} is current")
    database.close()


@db.command()
@output.as_json
@click.pass_obj
def check(settings: Settings, json_output: bool) -> None:
    """Say how the schema stands to this marcod; exit code 1 unless it is current."""
    database = Database(settings.store.url.get_secret_value())
    state = migrate.state(database)
    if json_output:
        output.print_json({"database": str(database), "schema": state})
    else:
        click.echo(f"the schema of {database} is {state}")
    database.close()
    if state is migrate.SchemaState.UNKNOWN:
        raise SchemaError("install the marcod that made this schema")
    if state is not migrate.SchemaState.CURRENT:
        raise SchemaError("run `marcod db upgrade`")
