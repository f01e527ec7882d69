"""`marcod model`: bring model versions in, judge them, and choose which one serves. One file a kind of work."""

import click

from marcod.cli.model import training, versions


@click.group()
def model() -> None:
    """Import, judge, calibrate, promote and train model versions."""


for command in (
    versions.list_,
    versions.promote,
    training.train_synthetic,
):
    model.add_command(command)
