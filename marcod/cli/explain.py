"""`marcod explain`: what marcod reads from a path, and what lies in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from marcod import layouts, survey, text
from marcod.cli.common import options, output
from marcod.cli.common.options import Choice
from marcod.domain import DropImage, IgnoreReason, NotADrop, path_text
from marcod.errors import ConfigError
from marcod.layouts import Layout
from marcod.survey.imager import companions

Answers = list[tuple[Layout, DropImage | NotADrop]]


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--layout", type=Choice(layouts.NAMES), help="Only this family [default: all]")
@click.option("--pattern", help="Regular expression with named groups, for --layout regex")
@options.as_json
@click.pass_context
def explain(
    ctx: click.Context, paths: tuple[str, ...], layout: str | None, pattern: str | None, json_output: bool
) -> None:
    """Show what each imager family reads from PATHS; no file needs to exist.

    Of a whole path, as it is copied from a file manager, it also says which folder is to be named as the source's root.
    A PATH that is a folder is looked at: a sample of its files tells which imager wrote them. The exit code is 2 where
    no family knows one of PATHS, as that of `marcod scan` is.
    """
    options = layouts.LayoutOptions(pattern=pattern)
    names = [layout] if layout else [n for n in layouts.NAMES if n != "regex" or pattern]
    families = [layouts.make(name, options) for name in names]
    answers: dict[str, Any] = {}
    unread = False
    for path in dict.fromkeys(paths):
        if os.path.isdir(path):  # noqa: PTH112 - a Path raises on names that are too long, and makes "." of ""
            seen = answers[path] = _survey(Path(path), layout, show=not json_output)
            unread |= not any(layout in (None, imager.layout) for imager in seen.imagers)
            continue
        root, relative = _split(path)
        verdicts = layouts.explain(relative, families, companions(Path(root)) if root else layouts.no_companions)
        answers[path] = list(_rows(root, relative, verdicts))
        unread |= all(isinstance(a, NotADrop) and a.reason is IgnoreReason.NOT_THIS_LAYOUT for _, a in verdicts)
        if not json_output:
            _print(path, root, relative, verdicts, only=layout is not None)
    if json_output:
        output.print_json(answers)
    ctx.exit(ConfigError.exit_code if unread else 0)


def _survey(folder: Path, layout: str | None, *, show: bool) -> survey.Survey:
    """Look at a folder and say what to do with it, and how many files a layout reads that was asked for."""
    from marcod.cli.common import survey_report

    seen = survey_report.look_at(folder)
    if show:
        survey_report.show(seen)
        if layout is not None:
            read = sum(family.images for family in seen.families if family.layout == layout)
            output.echo(f"  {layout} reads {read:,} of them; explain one of its files to see why it reads no more")
        output.echo(f"  {survey_report.next_step(seen)}")
    return seen


def _split(path: str) -> tuple[str, str]:
    """Split a path into root and relative path where a root makes it readable; else return no root."""
    whole = os.path.abspath(path) if os.path.lexists(path) else path  # noqa: PTH100 - a Path would lose "//"
    root = survey.root_of(whole) if whole.startswith("/") else None
    return (root, whole[len(root.rstrip("/")) + 1 :]) if root is not None else ("", path)


def _rows(root: str, relative: str, verdicts: Answers) -> Iterator[dict[str, object]]:
    for family, answer in verdicts:
        found = {"layout": family.name, "drop_image": isinstance(answer, DropImage), **_fields(answer)}
        yield found | ({"root": root, "path": relative} if root and isinstance(answer, DropImage) else {})


def _fields(answer: DropImage | NotADrop) -> dict[str, object]:
    plain = {name: getattr(answer, name) for name in answer.__dataclass_fields__ if name != "layout"}
    if not isinstance(answer, DropImage):
        return plain
    return {"well": answer.well, **plain, "warnings": tuple(map(str, answer.warnings))}


def _print(path: str, root: str, relative: str, rows: Answers, *, only: bool) -> None:
    output.echo(text.printable(path), style="bold")
    matches = [(family, answer) for family, answer in rows if isinstance(answer, DropImage)]
    for family, answer in matches:
        output.echo(f"  {family.name}")
        for name, value in _fields(answer).items():
            if value not in (None, ()):
                output.echo(f"    {name:20} {text.printable(str(value))}")
        if root:
            output.echo(f"    {'root':20} {path_text(root)}")
            output.echo(f"    {'path below it':20} {path_text(relative)}")
    if matches:
        return
    telling = [(f, a) for f, a in rows if not isinstance(a, DropImage) and (only or a.reason != "not_this_layout")]
    if not telling:
        if not os.path.lexists(path):
            output.echo("  there is no such file or folder here, so only the path itself was read")
        output.echo("  no family reads this as a drop image; --layout NAME tells why not for one of them")
    for family, refusal in telling:
        output.echo(f"  {family.name}: {refusal.reason}: {text.printable(refusal.detail)}")
