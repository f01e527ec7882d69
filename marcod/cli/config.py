"""`marcod config`: what is configured, and whether it can work."""

import click

from marcod import daemon, labelling, watch
from marcod import settings as configuration
from marcod.cli import output
from marcod.cli.configured import pass_settings
from marcod.settings import Settings


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@output.as_json
@pass_settings
def show(settings: Settings, json_output: bool) -> None:
    """Print every setting with its value; secrets are hidden."""
    values = settings.model_dump(mode="json")
    values["store"]["url"] = configuration.redacted_url(settings)
    if json_output:
        output.print_json(values)
        return
    rows = [
        (key, _value_of(values, key), description)
        for key, description, _ in configuration.described()
        if key.split(".", 1)[0] not in configuration.NAMED
    ]
    rows += [
        (f"{section}.{name}.{key}", value, "")
        for section in configuration.NAMED
        for name, table in values[section].items()
        for key, value in table.items()
    ]
    output.console().print(output.table("", ("key", "value", "meaning"), rows))


def _value_of(values: dict[str, dict[str, object]], key: str) -> object:
    section, field = key.split(".", 1)
    return values[section][field]


@config.command()
@pass_settings
def check(settings: Settings) -> None:
    """Check that the configuration can work: sources, their layouts, and the lab's own words for labels."""
    watch.require_roots(settings)
    daemon.check_sources(settings)
    labelling.tables_of(settings)
    click.echo(f"configuration is fine: {len(settings.sources)} sources, {configuration.redacted_url(settings)}")
