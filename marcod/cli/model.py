"""`marcod model`: which models there are and which one is champion."""

import getpass
from datetime import UTC, datetime
from pathlib import Path

import click

from marcod import daemon, registry
from marcod.cli import output
from marcod.settings import Settings
from marcod.store import versions


@click.group()
def model() -> None:
    """List, promote and train model versions."""


@model.command("list")
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


@model.command()
@click.argument("model_text", metavar="NAME:VERSION")
@click.pass_obj
def promote(settings: Settings, model_text: str) -> None:
    """Make a model version champion; running scorers change over between two batches."""
    now = datetime.now(UTC)
    with daemon.opened(settings) as ready:
        version = ready.registry.register(*registry.parse(model_text), now)
        ready.registry.promote(version, actor=getpass.getuser(), now=now)
    click.echo(f"{version} is champion")


@model.command("train-synthetic")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--version", "version", default=1, show_default=True, help="Version of the new bundle")
@click.option("--seed", default=1, show_default=True, help="Everything drawn at random follows from it")
@click.option("--images", default=8_000, show_default=True, help="Rendered drops to train on")
@click.option("--epochs", default=18, show_default=True, help="Passes over them")
def train_synthetic(folder: Path, version: int, seed: int, images: int, epochs: int) -> None:
    """Train the small network on rendered drops and write its bundle below FOLDER.

    This is how the shipped bundle was made. It is for trying the program, not for deciding about crystals.
    """
    from marcod import train

    with output.stages() as report:
        path = train.train_synthetic(folder, version=version, seed=seed, images=images, epochs=epochs, progress=report)
    click.echo(f"wrote {path}")
