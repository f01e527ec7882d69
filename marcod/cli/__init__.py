"""The command line: parses, calls one function, prints. One file per noun.

Errors that marcod raises on purpose become one line and an exit code: 1 failed, 2 usage or configuration. Modules
that load TensorFlow are imported inside the commands that need them, so that the others answer at once.
"""

import os
import sys
from pathlib import Path

import click

from marcod import __version__, settings, telemetry
from marcod.cli import (
    config,
    db,
    demo,
    doctor,
    drift,
    explain,
    heatmap,
    hits,
    install,
    label,
    model,
    notify,
    output,
    plate,
    queue,
    rescore,
    retrain,
    review,
    run,
    scan,
    score,
    status,
    suspects,
    train,
)
from marcod.errors import MarcodError


class _Commands(click.Group):
    """Turns marcod's errors into one sentence, for every command below it."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MarcodError as error:
            click.echo(f"marcod: {output.harmless(str(error))}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="marcod")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file [default: MARCOD_CONFIG, ~/.config/marcod/marcod.toml, /etc/marcod/marcod.toml]",
)
@click.option("--database", metavar="URL", help="Database for this call, instead of the configured one")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Lowest level logged")
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None, database: str | None, log_level: str | None) -> None:
    """Score protein-crystallization drop images as the plate imagers deliver them."""
    overrides: dict[str, dict[str, str]] = {}
    if database:
        overrides["store"] = {"url": database}
    if log_level:
        overrides["log"] = {"level": log_level}
    loaded = settings.load(config_path, overrides)
    telemetry.configure(loaded.log.level, loaded.log.format)
    ctx.obj, ctx.meta["overrides"] = loaded, overrides


for command in (
    run.run,
    demo.demo,
    scan.scan,
    explain.explain,
    score.score,
    status.status,
    drift.drift,
    doctor.doctor,
    rescore.rescore,
    retrain.retrain,
    hits.hits,
    plate.plate,
    queue.queue,
    label.label,
    review.review,
    model.model,
    train.train,
    notify.notify,
    db.db,
    config.config,
    install.install_systemd,
):
    cli.add_command(command)


plate.plate.add_command(heatmap.heatmap)
label.label.add_command(suspects.suspects)


def main() -> None:
    """Run the command line."""
    # What is written, from the database to a report, is its user's and, for reading, the group's; a tighter one stays.
    os.umask(os.umask(0o077) | 0o027)
    try:
        cli(prog_name="marcod")
    except BrokenPipeError:
        sys.stderr.close()
