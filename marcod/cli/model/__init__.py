"""`marcod model`: bring model versions in, judge them, and choose which one serves. One file a kind of work."""

import click

from marcod.cli.model import importing, judging, training, versions


@click.group()
def model() -> None:
    """Import, judge, calibrate, promote and train model versions."""


for command in (
    versions.list_,
    versions.show,
    versions.verify,
    versions.promote,
    versions.rollback,
    versions.challenge,
    versions.remove,
    importing.import_,
    judging.evaluate,
    judging.calibrate,
    training.train_synthetic,
):
    model.add_command(command)
