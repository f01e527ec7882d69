"""`marcod config`: what is configured, and whether it can work. Both commands answer for a broken configuration too."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from marcod import settings as configuration
from marcod import text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import configured
from marcod.errors import ConfigError, LayoutError
from marcod.settings import Settings, keys
from marcod.settings.examined import Examined
from marcod.settings.faults import Fault, in_order
from marcod.settings.loading import redacted_url
from marcod.watch.folders import not_apart
from marcod.watch.ingest import layout_of, require_roots

WRONG = ConfigError.exit_code


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command()
@options.as_json
@click.pass_context
def show(ctx: click.Context, json_output: bool) -> None:
    """Print every setting with its value; secrets are hidden.

    Of a broken configuration what is right is shown, then everything that is wrong, and the exit code is 2.
    """
    examined = configured(ctx).examined
    values = examined.settings.model_dump(mode="json")
    values["store"]["url"] = redacted_url(examined.settings)
    if json_output:
        faults = [asdict(fault) for fault in examined.faults]
        output.print_json(values | ({"faults": faults} if faults else {}))
    else:
        listings.show("", ("key", "value", "meaning"), list(_rows(values)), prose=True)
        _tell(examined.faults)
    ctx.exit(WRONG if examined.faults else 0)


def _rows(values: dict[str, dict[str, Any]]) -> Iterator[tuple[str, object, str]]:
    for key, description, _ in keys.described():
        section, name = key.split(".", 1)
        if section not in configuration.NAMED:
            yield key, _as_toml(values[section][name]), description
    for section in configuration.NAMED:
        for name, table in values[section].items():
            for key, value in table.items():
                yield f"{section}.{name}.{key}", _as_toml(value), ""


def _as_toml(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


@config.command()
@options.as_json
@click.pass_context
def check(ctx: click.Context, json_output: bool) -> None:
    """Check that the configuration can work: sources, their layouts, and the lab's own vocabularies of labels.

    Lists everything that is wrong, with file, line and an example of what is right; then the exit code is 2.
    """
    examined = configured(ctx).examined
    settings = examined.settings
    faults = in_order([*examined.faults, *_unworkable(examined)])
    database = redacted_url(settings)
    if json_output:
        output.print_json({"sources": sorted(settings.sources), "database": database, "faults": list(faults)})
    elif faults:
        _tell(faults)
    else:
        output.echo(f"configuration is fine: {text.count(len(settings.sources), 'source')}, {database}")
    ctx.exit(WRONG if faults else 0)


def _tell(faults: tuple[Fault, ...]) -> None:
    """Print each fault on one line, and below it an example of what would be right."""
    for fault in faults:
        output.echo(text.printable(str(fault)), err=True)
        if fault.example is not None:
            _print_example(text.printable(fault.example))


def _print_example(example: str) -> None:
    """Print a line that is right as one to copy; where it has no room, its comment stands above it."""
    console = output.console(to_errors=True)
    line, mark, comment = example.partition("  # ")
    if console.is_terminal and mark and len(example) + 4 > console.width:
        for part in output.folded(comment, console.width - 6):
            click.echo(f"    # {part}", err=True)
        example = line
    click.echo(f"    {example}", err=True)


def _unworkable(examined: Examined) -> Iterator[Fault]:
    """Yield what is written well and cannot work: folders, layouts, vocabularies, times."""
    from marcod import layouts
    from marcod.app import roots
    from marcod.labels import files
    from marcod.training import trainer

    settings = examined.settings
    found = []
    for name, source in settings.sources.items():
        found += _refusals(examined, ("sources", name, "root"), partial(require_roots, settings, [name]))
        if source.layout not in layouts.NAMES:
            text = f"there is no layout {source.layout!r}; layouts are {', '.join(layouts.NAMES)}"
            nearest = keys.nearest(source.layout, layouts.NAMES)
            found.append(examined.fault_at(("sources", name, "layout"), text, nearest))
        else:
            key = ("sources", name, "pattern" if source.pattern is not None else "layout")
            found += _refusals(examined, key, partial(layout_of, name, source))
    yield from found
    for name, reason in not_apart(roots(settings)):
        yield examined.fault_at(("sources", name, "root"), reason)
    yield from _refusals(examined, _vocabulary_key(settings), partial(files.tables_of, settings))
    yield from _refusals(examined, ("train", "schedule"), partial(trainer.check, settings.train))


def _vocabulary_key(settings: Settings) -> tuple[str, str]:
    return ("labels", "vocabulary" if settings.labels.vocabularies is None else "vocabularies")


def _refusals(examined: Examined, key: tuple[str, ...], attempt: Callable[[], object]) -> list[Fault]:
    try:
        attempt()
    except (ConfigError, LayoutError) as error:
        return [examined.fault_at(key, str(error))]
    return []
