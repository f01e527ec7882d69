"""`marcod model`: bring model versions in, judge them, and choose which one serves. One file a kind of work."""

from typing import Final

import click

from marcod.cli.common.lazy import LazyGroup

_HERE: Final = "marcod.cli.model"
COMMANDS: Final = {
    "calibrate": (
        f"{_HERE}.judging:calibrate",
        "Derive a new version of MODEL (NAME:VERSION) that finds a wished share of crystals.",
    ),
    "challenge": (
        f"{_HERE}.versions:challenge",
        "Let a second version score every new image too, behind the champion.",
    ),
    "evaluate": (
        f"{_HERE}.judging:evaluate",
        "Judge MODEL (NAME:VERSION) on labelled images, with the MARCO paper's tables.",
    ),
    "fetch": (
        f"{_HERE}.fetching:fetch",
        "Get a published model by name, prove it by checksum, and import it.",
    ),
    "import": (
        f"{_HERE}.importing:import_",
        "Make a bundle of the published MARCO SavedModel or of another model of its family.",
    ),
    "list": (f"{_HERE}.versions:list_", "List the model versions in the database and the bundles on this host."),
    "promote": (
        f"{_HERE}.versions:promote",
        "Make a model version champion, once it has scored its golden images here.",
    ),
    "remove": (f"{_HERE}.versions:remove", "Remove a model version and its bundle from the lab's own folder."),
    "rollback": (
        f"{_HERE}.versions:rollback",
        "Make the previous champion champion again; waiting images move as they do with promote.",
    ),
    "show": (
        f"{_HERE}.versions:show",
        "Show everything about a model version, also by its alias: champion, challenger or previous.",
    ),
    "train-synthetic": (
        f"{_HERE}.versions:train_synthetic",
        "Train the small network on rendered drops and write its bundle below FOLDER.",
    ),
    "verify": (
        f"{_HERE}.versions:verify",
        "Check bundles: their checksums, their digests in the database, and their golden images.",
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def model() -> None:
    """Import, judge, calibrate, promote and train model versions."""
