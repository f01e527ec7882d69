"""Which model versions there are, and which one serves."""

import getpass
from datetime import UTC, datetime

import click

from marcod import daemon, registry
from marcod.cli import output
from marcod.settings import Settings
from marcod.store import versions


@click.command("list")
@output.as_json
@click.pass_obj
def list_(settings: Settings, json_output: bool) -> None:
    """List the model versions in the database and the bundles on this host."""
    with daemon.opened(settings) as ready:
        registered = ready.db.read(versions.listed)
        folders = {f"{name}:{version}": path for name, version, path in ready.registry.on_disk()}
    known = {str(version): (version, aliases) for version, aliases in registered}
    rows = []
    for name in sorted({*known, *folders}):
        version, aliases = known.get(name, (None, ()))
        synthetic = None if version is None else version.synthetic
        threshold = None if version is None else version.crystal_threshold
        rows.append((name, ", ".join(aliases), threshold, synthetic, str(folders.get(name, "not on this host"))))
    if json_output:
        keys = ("model", "aliases", "crystal_threshold", "synthetic", "folder")
        output.print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    output.console().print(output.table("", ("model", "alias", "crystal threshold", "synthetic", "folder"), rows))


@click.command()
@click.argument("model_text", metavar="NAME:VERSION")
@click.pass_obj
def promote(settings: Settings, model_text: str) -> None:
    """Make a model version champion; running scorers change over between two batches."""
    now = datetime.now(UTC)
    with daemon.opened(settings) as ready:
        version = ready.registry.register(*registry.parse(model_text), now)
        ready.registry.promote(version, actor=getpass.getuser(), now=now)
    click.echo(f"{version} is champion")
