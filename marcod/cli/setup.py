"""`marcod setup`: look at the folders of imagers and add them to the configuration."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import click

from marcod import layouts, text
from marcod import settings as configuration
from marcod.cli.common import listings, options, output, survey_report
from marcod.cli.common.configured import configured
from marcod.cli.common.options import Choice
from marcod.domain import Modality, path_text
from marcod.errors import ConfigError, MarcodError
from marcod.settings import Settings, SourceSettings, loading, writer
from marcod.survey import Survey, mounts, propose
from marcod.survey.imager import SurveyedImager
from marcod.survey.propose import Answers, Proposal

_NEXT: Final = (
    ("marcod config check", "is everything in its place?"),
    ("marcod model fetch marco", "the published MARCO in the place of the model for trying"),
    ("marcod scan", "take in what lies there now; `marcod score` scores it"),
    ("marcod run", "watch and score; `marcod install-systemd` does it for good"),
)


@dataclass(frozen=True, slots=True)
class _Found:
    """Surveys of the folders, the sources to add, and the roots that are configured already, by source."""

    surveys: list[Survey]
    proposals: list[Proposal]
    known: dict[str, str]


@click.command()
@click.argument("folders", nargs=-1, type=options.PLACE)
@click.option("--name", help="Name of the source [default: made from the folder]")
@click.option("--yes", is_flag=True, help="Write without asking anything")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing")
@options.as_json
@click.pass_context
def setup(
    ctx: click.Context, folders: tuple[Path, ...], name: str | None, yes: bool, dry_run: bool, json_output: bool
) -> None:
    """Look at the FOLDERS that imagers write to, and add them to the configuration.

    A sample of each folder tells which imager writes there, how many plates, wells, drops, profiles and inspections
    there are, and which settings fit. The new tables are added at the end of the configuration file, whose text stays
    as it is. Nothing is written in the folders themselves.
    """
    asks = not (yes or json_output) and sys.stdin.isatty()
    if not (asks or yes or dry_run):
        raise ConfigError("setup asks before it writes; without a terminal give --yes, or --dry-run to see it only")
    if name is not None and not configuration.is_plain_name(name):
        raise ConfigError(f"--name {name!r}: use lower-case letters, digits, - and _")
    path = writer.file_to_write(configured(ctx).file)
    sources, is_broken = _sources(path, dry_run=dry_run)
    if not folders:
        folders = tuple(_ask_for_folders()) if asks else ()
    if not folders:
        raise ConfigError(f"name the folders that imagers write to{_likely()}")
    found = _look_at_all(folders, sources, name, asks=asks, quiet=json_output)
    if is_broken:
        output.echo(
            f"{path} has faults; `marcod config check` lists them. Correct them first.", style="yellow", err=True
        )
    written = _add(path, found.proposals, asks=asks, dry_run=dry_run, check=not is_broken, quiet=json_output)
    if json_output:
        output.print_json(_for_programs(path, found, written=written))
    elif written:
        _say_what_is_next(path)
    if not found.proposals and not found.known:
        ctx.exit(ConfigError.exit_code)


def _sources(path: Path, *, dry_run: bool) -> tuple[Mapping[str, SourceSettings], bool]:
    """Return the configured sources, and whether the file has faults of its own.

    Raises ConfigError for such a file, unless nothing is to be written.
    """
    if not path.exists():
        return {}, False
    try:
        return loading.load(path).sources, False
    except ConfigError as error:
        if dry_run:
            return loading.examine(path).settings.sources, True
        raise ConfigError(f"{error}. Correct that first, or name another file with --config") from error


def _likely() -> str:
    found = ", ".join(str(place) for place, _ in mounts.likely_folders()[:5])
    return f"; mounted here are {found}" if found else ""


def _ask_for_folders() -> Iterator[Path]:
    """Ask for folders until an empty line, after showing where they may be."""
    for place, kind in mounts.likely_folders():
        output.echo(f"  {path_text(str(place))} ({kind})")
    text = click.prompt("Folder that an imager writes to", type=str)
    while text:
        yield Path(text).expanduser()
        text = click.prompt("Another one (Enter: no more)", default="", show_default=False)


def _look_at_all(
    folders: Iterable[Path], sources: Mapping[str, SourceSettings], name: str | None, *, asks: bool, quiet: bool
) -> _Found:
    """Survey the folders, show what is there, and make a source of every imager that is not configured yet."""
    found = _Found([], [], {})
    for folder in folders:
        seen = _survey(folder, quiet=quiet)
        found.surveys.append(seen)
        for imager in seen.imagers:
            if (known := _configured_as(imager.root, sources)) is not None:
                found.known[known] = str(imager.root)
                _say_known(known, sources[known], imager, quiet=quiet)
            elif not any(proposal.values["root"] == imager.root for proposal in found.proposals):
                taken = [*sources, *(proposal.name for proposal in found.proposals)]
                found.proposals.append(_proposal(imager, name, taken, sampled=bool(seen.cut), asks=asks))
    if name is not None and len(found.proposals) > 1:
        raise ConfigError(f"--name names one source, and {len(found.proposals)} were found; leave it out")
    return found


def _survey(folder: Path, *, quiet: bool) -> Survey:
    """Survey a folder, or the root above it where only a part of an export was named."""
    seen = survey_report.look_at(folder)
    if (above := seen.imager_above) is not None:
        if not quiet:
            output.echo(f"{path_text(str(folder))} is a part of an export; its root is above it")
        seen = survey_report.look_at(above.root)
    if not quiet:
        survey_report.show(seen)
        if not seen.imagers:
            output.echo(f"  no source can be made of it: {survey_report.advice(seen)}")
        output.echo()
    return seen


def _configured_as(root: Path, sources: Mapping[str, SourceSettings]) -> str | None:
    return next((name for name, given in sources.items() if given.root.resolve() == root.resolve()), None)


def _say_known(name: str, given: SourceSettings, imager: SurveyedImager, *, quiet: bool) -> None:
    if given.layout not in (imager.layout, "regex"):
        raise ConfigError(
            f"{imager.root} is configured as source {name!r} with layout {given.layout}, and {imager.layout} reads it; "
            f"correct sources.{name}.layout"
        )
    if not quiet:
        output.echo(
            f"{path_text(str(imager.root))} is configured already, as source {name!r} (layout {given.layout})\n"
        )


def _proposal(imager: SurveyedImager, name: str | None, taken: list[str], *, sampled: bool, asks: bool) -> Proposal:
    if name in taken:
        raise ConfigError(f"there is a source {name!r} already, with another root; give another --name")
    chosen = name or propose.name_for(imager, taken)
    answers = _ask_about(imager) if asks else None
    return propose.propose(imager, chosen, answers, sampled=sampled)


def _ask_about(imager: SurveyedImager) -> Answers:
    """Ask what no path tells and the survey makes doubtful."""
    output.echo(f"{path_text(str(imager.root))} ({layouts.title(imager.layout)})", style="bold")
    profiles = {name: _ask_light(imager, name) for name in propose.unmapped(imager)}
    reservoir = None
    if propose.may_have_reservoir(imager):
        question = f"  Is subwell {propose.RESERVOIR}, which has images, the reservoir (three-lens plates)?"
        reservoir = click.confirm(question, default=False)
    return Answers(reservoir, profiles, _ask_zone() if imager.dated else None)


def _ask_light(imager: SurveyedImager, name: str) -> Modality:
    [profile] = [profile for profile in imager.profiles if profile.name == name]
    lights = Choice([light.value for light in Modality])
    question = f"  Light of profile {name} ({profile.images:,} {' '.join(profile.extensions)})"
    return Modality(click.prompt(question, type=lights, default=profile.modality.value))


def _ask_zone() -> str | None:
    """Ask for a time zone until it is one; None when the person does not know."""
    while True:
        question = f"  Time zone of its clock, such as {propose.local_zone()} (Enter: UTC)"
        if not (zone := click.prompt(question, default="", show_default=False).strip()):
            return None
        try:
            return ZoneInfo(zone).key
        except (ValueError, OSError, KeyError):
            output.echo(f"  {text.printable(zone)} is not a time zone's name")


def _add(path: Path, proposals: list[Proposal], *, asks: bool, dry_run: bool, check: bool, quiet: bool) -> bool:
    """Show the tables, check the file that they would make, and write it once a person agrees."""
    if not proposals:
        return False
    from marcod import app

    tables = "\n".join(proposal.text() for proposal in proposals)
    addition = writer.Addition(path, tables)
    if check:
        addition.check(app.check_sources)
    if not quiet:
        for note in (note for proposal in proposals for note in proposal.notes):
            output.echo(f"Mind: {note}", style="yellow")
        click.echo(f"{'This would be' if asks or dry_run else 'This is'} added to {path}:\n\n{tables}")
    if dry_run:
        return False
    if asks and not click.confirm(f"Add it to {path}?", default=True):
        raise MarcodError("nothing was written")
    addition.write()
    if not quiet:
        output.echo(f"{path} is written\n")
    return True


def _say_what_is_next(path: Path) -> None:
    fetched = not _is_scored_by_synthetic(loading.load(path))
    steps = [(f"  {command}", meaning) for command, meaning in _NEXT if not (fetched and "fetch" in command)]
    listings.show("Next:", ("", ""), steps, prose=True)


def _is_scored_by_synthetic(settings: Settings) -> bool:
    """Return True where the champion is the small model, as on a new host; no database is created."""
    from marcod.database import probe
    from marcod.database.engine import Database
    from marcod.store import versions

    url = settings.store.url.get_secret_value()
    if (file := probe.sqlite_file(url)) is not None and not file.exists():
        return True
    try:
        with closing(Database(url)) as db:
            return db.read(versions.champion).synthetic
    except MarcodError:
        return True


def _for_programs(path: Path, found: _Found, *, written: bool) -> dict[str, object]:
    sources = [{"name": p.name, "settings": p.values, "toml": p.text(), "notes": p.notes} for p in found.proposals]
    about = {"config": str(path), "written": written, "configured": found.known}
    return {**about, "sources": sources, "surveys": found.surveys}
