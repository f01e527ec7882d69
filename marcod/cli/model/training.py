"""Training from rendered drops."""

from pathlib import Path

import click

from marcod.cli import output


@click.command("train-synthetic")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--version", "version", default=1, show_default=True, help="Version of the new bundle")
@click.option("--seed", default=1, show_default=True, help="Everything drawn at random follows from it")
@click.option("--images", default=8_000, show_default=True, help="Rendered drops to train on")
@click.option("--epochs", default=18, show_default=True, help="Passes over them")
def train_synthetic(folder: Path, version: int, seed: int, images: int, epochs: int) -> None:
    """Train the small network on rendered drops and write its bundle below FOLDER.

    This is how the shipped bundle was made. It is for trying the program, not for deciding about crystals.
    """
    output.check_tree(folder)
    from marcod.training import shipped_model

    with output.stages() as report:
        path = shipped_model.train_synthetic(
            folder, version=version, seed=seed, images=images, epochs=epochs, progress=report
        )
    output.echo(f"wrote {path}")
