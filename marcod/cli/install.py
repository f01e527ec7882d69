"""`marcod install-systemd`: marcod as a service."""

from pathlib import Path

import click

from marcod import text
from marcod.cli.common import listings, options, output
from marcod.service import systemd_units


@click.command("install-systemd")
@click.option(
    "--prefix",
    type=options.FOLDER,
    default=Path("/"),
    show_default=True,
    help="Folder that stands for the root of the file system, for packages and images",
)
@click.option(
    "--exec",
    "program",
    type=options.PLACE,
    help="Program that the units start [default: the marcod of this environment]",
)
@click.option("--user", default=systemd_units.USER, show_default=True, help="User and group that the services run as")
@click.option("--dry-run", is_flag=True, help="Only say what would be written")
@options.as_json
def install_systemd(prefix: Path, program: Path | None, user: str, dry_run: bool, json_output: bool) -> None:
    """Write marcod's systemd units and what they need; start nothing.

    One service does everything on one host; the others are for several GPUs or hosts. A second run changes nothing, and
    the configuration is never overwritten. The next steps are printed.
    """
    started = program or systemd_units.this_program()
    files = systemd_units.install(prefix.absolute(), started, user, dry_run=dry_run)
    steps = systemd_units.next_steps(Path("/") / systemd_units.CONFIGURATION)
    if json_output:
        output.print_json({"program": started, "user": user, "files": files, "next": steps})
        return
    verb = "would be written" if dry_run else "written"
    count = sum(file.state in (systemd_units.FileState.NEW, systemd_units.FileState.CHANGED) for file in files)
    rows = [(file.state, file.path) for file in files]
    listings.show(f"{count} of {text.count(len(files), 'file')} {verb}", ("", "file"), rows)
    click.echo("\nNext, as root, on the host itself:\n  " + "\n  ".join(steps))
    output.echo(
        "\nInstead of the last line, for several GPUs or hosts, those that this host needs:\n"
        "  systemctl enable --now marcod-watch.service marcod-score@0.service marcod-trainer.service"
    )
