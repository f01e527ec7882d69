"""Surveys of folders on the screen, and the source that a survey is sure of."""

import shlex
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from marcod import layouts, survey, text
from marcod.cli.common import bars, listings, output
from marcod.domain import path_text
from marcod.errors import ConfigError
from marcod.settings import SourceSettings
from marcod.survey import Survey, propose
from marcod.survey.imager import Occurrences, SurveyedImager

PATIENCE_S: Final = 120.0
"""A look that takes longer hangs on its file server."""

WIDTH: Final = 78
_COLUMNS: Final = ("layout", "images", "plates", "inspections", "last well", "drops", "profiles")


def look_at(folder: Path) -> Survey:
    """Look at a folder, with progress on a terminal. Raises ConfigError when it cannot be listed or never answers."""
    from marcod.deadline import SERVER, SilentError, within

    with bars.progress(f"looking at {path_text(str(folder))}", None) as done:
        try:
            return within(PATIENCE_S, partial(survey.look, folder, progress=done))
        except SilentError as error:
            raise ConfigError(f"{folder} {error}; {SERVER}") from error
        except OSError as error:
            raise ConfigError(f"{folder} cannot be listed: {error.strerror}; mount it or correct the path") from error


def source_of(root: Path) -> SourceSettings:
    """Return and print the source that a folder certainly is, with every setting that a survey is sure of.

    Raises ConfigError, after showing what was seen, when no layout or several read the folder, or only a part of an
    export was named.
    """
    seen = look_at(root)
    if (imager := seen.clear) is None:
        show(seen, to_errors=True)
        raise ConfigError(_how_to_scan(seen))
    proposal = propose.propose(imager, "scanned")
    chosen = ", ".join(f"{key} = {propose.toml(value)}" for key, value in proposal.values.items() if key != "root")
    output.echo(f"{path_text(str(root))} looks like {layouts.title(imager.layout)}: {chosen}", err=True)
    return SourceSettings.model_validate(proposal.values)


def _how_to_scan(seen: Survey) -> str:
    commands = [f"`marcod scan {_quoted(i.root)} --layout {i.layout}`" for i in seen.imagers]
    if seen.conflicts:
        folder, names = seen.conflicts[0].folder, " and ".join(seen.conflicts[0].layouts)
        return f"{folder} holds images of {names} side by side; choose one with --layout"
    if not commands:
        return f"no layout reads {seen.folder}; {advice(seen)}"
    if len(seen.imagers) == 1 and (rivals := seen.imagers[0].rivals):
        return (
            f"{' and '.join(rivals)} would read the same files of {seen.folder}; choose: say {commands[0]} or another"
        )
    if seen.imager_above is not None:
        return f"{seen.folder} is a part of an export, whose root is above it; say {commands[0]}"
    if len(commands) == 1:
        return f"{seen.folder} is not an imager's root by itself; say {commands[0]}"
    return f"{seen.folder} holds {len(commands)} imagers' exports; say one of {', '.join(commands)}"


def advice(seen: Survey) -> str:
    """Return the next step where no layout reads a folder."""
    if seen.conflicts:
        return "let each imager write into a folder of its own, or choose one layout by hand"
    if not seen.files:
        return "it holds no files, as an unmounted share does"
    if seen.families:
        return "the names above come near; `marcod explain FILE` tells what is missing"
    return "describe its names by a pattern: layout regex, docs/imagers.md, Your own names"


def next_step(seen: Survey) -> str:
    """List the next steps with the folder."""
    if seen.imagers:
        return f"`marcod setup {_quoted(seen.folder)}` adds it to the configuration"
    return f"no layout reads it; {advice(seen)}" if not seen.conflicts else advice(seen)


def show(seen: Survey, *, to_errors: bool = False) -> None:
    """Print a survey, readable at 80 columns."""
    console = output.console(to_errors=to_errors)
    say = partial(output.echo, err=to_errors)
    say(path_text(str(seen.folder)), style="bold")
    for line in _head(seen):
        say(f"  {line}")
    if seen.imagers:
        say()
        console.print(listings.table("", _COLUMNS, [_row(imager) for imager in seen.imagers]))
    lines = [line for imager in seen.imagers for line in _about(imager, seen)] + list(_doubts(seen))
    if seen.imagers and lines:
        say()
    for line in lines:
        say(f"  {line}")


def _head(seen: Survey) -> Iterator[str]:
    files = propose.one_or_many(f"{seen.files:,} files")
    folders = propose.one_or_many(f"{seen.folders:,} folders")
    if not seen.cut:
        yield f"{files} in {folders}: all that is there"
    else:
        yield f"a sample of {files} in {folders}, since {'; '.join(seen.cut)};"
        yield "every number below is a lower bound"
    if seen.links:
        yield propose.one_or_many(f"{seen.links:,} links") + " to folders, which are not followed"
    if seen.unreadable:
        yield f"cannot be read: {_names(map(path_text, seen.unreadable))}"


def _row(imager: SurveyedImager) -> tuple[object, ...]:
    profiles = ", ".join(f"{p.name} {' '.join(p.extensions)}" for p in imager.profiles[:3])
    return (
        imager.layout,
        imager.images,
        imager.plates,
        imager.inspections,
        imager.last_well,
        ", ".join(map(str, imager.drops)),
        profiles + (", ..." if len(imager.profiles) > 3 else ""),
    )


def _about(imager: SurveyedImager, seen: Survey) -> Iterator[str]:
    """Yield remarks about one imager, in addition to the numbers of the table."""
    if imager.root != seen.folder:
        yield f"{imager.layout}: the root to name is {path_text(str(imager.root))}"
    for found in imager.aside:
        yield f"{found.count:,} set aside: {found.what}"
    for found in imager.warnings:
        yield from _counted("with a warning", found)
    for found in imager.not_understood:
        yield from _counted("not understood", found)


def _counted(what: str, found: Occurrences) -> Iterator[str]:
    yield f"{found.count:,} {what}: {text.printable(found.what)}"
    yield f"    such as {_short(found.examples[0])}"


def _doubts(seen: Survey) -> Iterator[str]:
    """Yield everything that keeps the survey from being sure."""
    for conflict in seen.conflicts:
        yield f"{path_text(str(conflict.folder))}: images of {' and '.join(conflict.layouts)} side by side"
    if not seen.imagers or any(family.alone < family.images for family in seen.families):
        for family in seen.families:
            others = f", {family.images - family.alone:,} of them read by another layout too"
            yield f"{family.layout} reads {family.images:,}{others if family.alone < family.images else ''}"
            for near in family.near_misses if not family.images else ():
                yield from _counted("come near", near)
    understood = {example for imager in seen.imagers for found in imager.not_understood for example in found.examples}
    if seen.not_understood is not None and not understood:
        yield f"{seen.not_understood.count:,} image files that no layout reads"
        yield f"    such as {_names(map(_short, seen.not_understood.examples))}"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _short(path: str) -> str:
    """Return the end of a long path, which holds the names."""
    return path if len(path) <= WIDTH - 12 else f"...{path[-(WIDTH - 15) :]}"


def _quoted(folder: Path) -> str:
    """Quote a folder as an argument of a shell command."""
    return shlex.quote(path_text(str(folder)))
