"""The command line: parses, calls one function, prints. One file per noun.

Errors that marcod raises on purpose become one line and an exit code: 1 failed, 2 usage or configuration. A command is
imported when it is called, and the settings are loaded when it needs them, so that all others answer at once. Modules
that load TensorFlow are imported inside the commands that need them.
"""

import os
import sys
from pathlib import Path
from typing import Final

import click

from marcod import __version__, quiet
from marcod.cli.common.configured import Configured
from marcod.cli.common.lazy import LazyGroup
from marcod.cli.common.options import FILE, Choice, full_places
from marcod.errors import MarcodError, is_full, os_reason, what_is_left_out

COMMANDS: Final = {
    "config": "Show and check the configuration.",
    "dataset": "Pack the labelled images for training, so that it reads them from a few large files.",
    "db": "Check, upgrade, copy and thin the database, and make its roles.",
    "demo": "Let rendered plates of three imagers arrive, score them with the real daemon, and show the results.",
    "doctor": "Examine configuration, database, sources, models, device, clock, disks and limits; changes nothing.",
    "drift": "Compare what each imager delivers with what it used to deliver.",
    "explain": "Show what each imager family reads from PATHS; no file needs to exist.",
    "hits": "List the hits over all plates, best first.",
    "install:install-systemd": "Write marcod's systemd units and what they need; start nothing.",
    "label": "Label drops, import labels, and list them.",
    "model": "Import, judge, calibrate, promote and train model versions.",
    "notify": "Show and test notifications by webhook and e-mail.",
    "plate": "List, show and export plates.",
    "queue": "Show the queue, retry failed images, and accept that images are gone.",
    "rescore": "Score again what a model version has not scored yet, behind all new images.",
    "retrain": "Train on the labels, compare with the champion, and promote what passes the gate.",
    "review": "Look at the drops from which most is learned, and measure what the model misses.",
    "run": "Watch the configured sources and score what arrives, until stopped.",
    "scan": "Look once at every file of ROOT, or of the configured sources, and queue what is new.",
    "score": "Score everything that waits in the queue, then end.",
    "setup": "Look at the FOLDERS that imagers write to, and add them to the configuration.",
    "source": "Show the recorded sources, and rename, merge or forget them; no image file is touched.",
    "status": (
        "Show on one screen how everything stands: queue, model, workers, sources, drift, notifications, training."
    ),
    "train": "Show training runs: what each was made of, how the gate judged it, and why.",
    "web": "Serve the page: look at plates and drops, and label them, in a browser.",
}
"""Every command by module and name, with the first sentence of its help (a test compares both)."""


class _Commands(LazyGroup):
    """The top group: marcod's errors become one sentence, for every command below it."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MarcodError as error:
            from marcod.cli.common import output

            output.echo(f"marcod: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if (sentence := what_is_left_out(error)) is None:
                raise
            from marcod.cli.common import output

            output.echo(f"marcod: {sentence}", err=True)
            ctx.exit(1)
        except OSError as error:
            if not is_full(error):
                raise
            from marcod.cli.common import output

            place = error.filename or full_places(ctx)
            output.echo(f"marcod: {place} cannot be written: {os_reason(error)}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Commands,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="marcod")
@click.option(
    "--config",
    "config_path",
    type=FILE,
    help="Configuration file [default: MARCOD_CONFIG, ~/.config/marcod/marcod.toml, /etc/marcod/marcod.toml]",
)
@click.option("--database", metavar="URL", help="Database for this call, instead of the configured one")
@click.option("--log-level", type=Choice(["debug", "info", "warning", "error"]), help="Lowest level logged")
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None, database: str | None, log_level: str | None) -> None:
    """Score protein-crystallization drop images as the plate imagers deliver them."""
    overrides: dict[str, dict[str, str]] = {}
    if database:
        overrides["store"] = {"url": database}
    if log_level:
        overrides["log"] = {"level": log_level}
    ctx.obj = Configured(config_path, overrides)


def main() -> None:
    """Run the command line."""
    # Everything written, from the database to a report, is readable by the user and the group; a tighter umask stays.
    os.umask(os.umask(0o077) | 0o027)
    quiet.own_standard_error()
    try:
        cli(prog_name="marcod")
    except BrokenPipeError:
        sys.stderr.close()
