"""`marcod scan`: one pass over a source."""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from marcod import app, layouts, telemetry, text
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.cli.common.survey_report import source_of
from marcod.errors import ConfigError
from marcod.settings import Settings, SourceSettings
from marcod.store import versions
from marcod.watch.folders import recorded_names
from marcod.watch.ingest import WatchedSource, open_sources, require_roots
from marcod.watch.scan import ScanReport, scan_once


@click.command()
@click.argument("root", required=False, type=options.FOLDER)
@click.option("--layout", type=Choice(layouts.NAMES), help="Path grammar of ROOT [default: the one that reads it]")
@click.option("--source", "name", help="Name of the source [default: made from ROOT, or all configured ones]")
@click.option("--settle", "settle_s", type=click.FloatRange(min=0), help="Seconds a file must stand still")
@options.as_json
@pass_settings
def scan(
    settings: Settings,
    root: Path | None,
    layout: str | None,
    name: str | None,
    settle_s: float | None,
    json_output: bool,
) -> None:
    """Look once at every file of ROOT, or of the configured sources, and queue what is new.

    Exit code 3 when images are not read, or read with a warning, and a person should look.
    """
    chosen = _chosen(settings, root, layout, name)
    require_roots(chosen)
    app.check_sources(settings.model_copy(update={"sources": {**settings.sources, **chosen.sources}}))
    wait_s = settings.watch.settle_s if settle_s is None else settle_s
    reports = {}
    with app.open_app(chosen) as ready:
        _refuse_to_rename(ready, settings, chosen)
        for source in _opened(ready, settings, chosen, quiet=json_output):
            with bars.progress(f"scanning {source.name}", None) as done:
                reports[source.name] = scan_once(ready.db, source, wait_s, progress=lambda seen: done(seen.found))
        champion = ready.db.read(versions.champion)
    output.print_json(reports) if json_output else _print_all(reports)
    output.warn_of_synthetic_champion(champion, to_errors=json_output)
    output.end(attention=any(one.attention for report in reports.values() for one in report.findings))


def _opened(ready: app.App, settings: Settings, chosen: Settings, *, quiet: bool) -> list[WatchedSource]:
    """Register the sources, and say of each that had another name until now."""
    before = {name: recorded_names(ready.db, given.root) for name, given in chosen.sources.items()}
    with telemetry.warnings_alone():
        sources = open_sources(ready.db, chosen, datetime.now(UTC), settings.sources)
    for name, former in before.items():
        now = recorded_names(ready.db, chosen.sources[name].root)
        for gone in former if name in now and not quiet else ():
            if gone not in now:
                output.echo(f"{name}: what was recorded as source {gone} belongs to it now")
    return sources


def _chosen(settings: Settings, root: Path | None, layout: str | None, name: str | None) -> Settings:
    if root is None:
        sources = settings.sources if name is None else {k: v for k, v in settings.sources.items() if k == name}
        if not sources:
            raise ConfigError(
                f"source {name!r} is not configured; {text.offer(name, sorted(settings.sources), 'sources')}"
                if name
                else "no source is configured; give ROOT, or `marcod setup`"
            )
    else:
        sources = _adhoc(settings, root.absolute(), layout, name)
    return settings.model_copy(update={"sources": sources})


def _adhoc(settings: Settings, root: Path, layout: str | None, name: str | None) -> dict[str, SourceSettings]:
    """ROOT as a source: the configured one that has this root, else one of its own."""
    same = {key: given for key, given in settings.sources.items() if given.root.resolve() == root.resolve()}
    if same and (layout is None or all(given.layout == layout for given in same.values())):
        return same
    if name in settings.sources:
        raise ConfigError(
            f"source {name!r} is configured with root {settings.sources[name].root}; give another --source"
        )
    source = source_of(root) if layout is None else SourceSettings(root=root, layout=layout)
    return {name or _name_of(root): source}


def _refuse_to_rename(ready: app.App, settings: Settings, chosen: Settings) -> None:
    """Refuse to change a source whose options are in a configuration that was not read."""
    for name in chosen.sources.keys() - settings.sources.keys():
        root = chosen.sources[name].root
        names = [found for found in recorded_names(ready.db, root) if found not in settings.sources]
        if names and name not in names:
            raise ConfigError(
                f"{root} is recorded as source {names[0]!r}; give the --config in which that source stands, or scan it "
                f"as --source {names[0]}"
            )


def _name_of(root: Path) -> str:
    """Derive a source's name from a folder: its own name and a few digits of its path's hash."""
    resolved = root.resolve()
    slug = re.sub(r"[^a-z0-9]+", "-", resolved.name.lower()).strip("-") or "root"
    return f"{slug}-{hashlib.sha256(str(resolved).encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


def _print_all(reports: Mapping[str, ScanReport]) -> None:
    for source_name, report in reports.items():
        _print(source_name, report)
    if any(report.new + report.changed for report in reports.values()):
        output.echo("`marcod score` scores what is queued, unless `marcod run` is doing so already")


def _print(source_name: str, report: ScanReport) -> None:
    output.say(
        output.console(),
        f"{source_name}: {text.count(report.found, 'file')}, {report.new} new, "
        f"{report.changed} changed, {report.unchanged} unchanged, {report.unscored} of another modality, "
        f"{report.pending} still arriving",
    )
    for reason, count in sorted(report.ignored.items()):
        output.echo(f"  ignored {count}: {reason}")
    for path in report.unreadable:
        output.echo(f"    {text.printable(path)}")
    for folder in report.folders_unreadable:
        output.echo(f"  folder cannot be read: {text.printable(folder)}")
    for one in report.findings:
        output.echo(f"  {'needs attention: ' if one.attention else ''}{text.printable(one.text)}")
        output.echo(f"    {text.printable(one.advice)}")
