"""`marcod model`: bring model versions in, judge them, and choose which one serves. One file a kind of work."""

from typing import Final

import click

from marcod.cli.common.lazy import LazyGroup

COMMANDS: Final = {
    "model.judging:calibrate": "Derive a new version of MODEL (NAME:VERSION) that finds a wished share of crystals.",
    "model.versions:challenge": "Let a second version score every new image too, behind the champion.",
    "model.combining:combine": (
        "Make a committee of model versions: one version whose score is made of those of its members."
    ),
    "model.converting:convert": (
        "Derive a version of MODEL (NAME:VERSION) of lower precision or for whole images, and compare the two."
    ),
    "model.judging:evaluate": "Judge MODEL (NAME:VERSION) on labelled images, with the MARCO paper's tables.",
    "model.fetching:fetch": "Get a published model by name, prove it by checksum, and import it.",
    "model.importing:import": "Make a bundle of the published MARCO SavedModel or of another model of its family.",
    "model.versions:list": "List the model versions in the database and the bundles on this host.",
    "model.versions:promote": "Make a model version champion, once it has scored its golden images here.",
    "model.versions:remove": "Remove a model version and its bundle from the lab's own folder.",
    "model.versions:rollback": (
        "Make the previous champion champion again; waiting images move as they do with promote."
    ),
    "model.versions:show": (
        "Show everything about a model version, also by its alias: champion, challenger or previous."
    ),
    "model.versions:train-synthetic": (
        "Train the model that comes with marcod on rendered drops, and write its bundle below FOLDER."
    ),
    "model.versions:verify": "Check bundles: their checksums, their digests in the database, and their golden images.",
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def model() -> None:
    """Import, judge, calibrate, promote and train model versions."""
