"""`marcod explain`: what marcod reads from a path."""

import click

from marcod import layouts
from marcod.cli import output
from marcod.domain import DropImage, NotADrop


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--layout", type=click.Choice(layouts.NAMES), help="Only this family [default: all]")
@click.option("--pattern", help="Regular expression with named groups, for --layout regex")
@output.as_json
def explain(paths: tuple[str, ...], layout: str | None, pattern: str | None, json_output: bool) -> None:
    """Show what each imager family reads from PATHS; no file needs to exist."""
    options = layouts.LayoutOptions(pattern=pattern)
    names = [layout] if layout else [n for n in layouts.NAMES if n != "regex" or pattern]
    families = [layouts.make(name, options) for name in names]
    answers = {path: layouts.explain(path, families) for path in paths}
    if json_output:
        output.print_json(
            {
                path: [{"layout": f.name, "drop_image": isinstance(a, DropImage), **_fields(a)} for f, a in rows]
                for path, rows in answers.items()
            }
        )
        return
    for path, rows in answers.items():
        _print(path, rows, only=layout is not None)


def _fields(answer: DropImage | NotADrop) -> dict[str, object]:
    plain = {name: getattr(answer, name) for name in answer.__dataclass_fields__ if name != "layout"}
    if not isinstance(answer, DropImage):
        return plain
    return {"well": answer.well, **plain, "warnings": tuple(map(str, answer.warnings))}


def _print(path: str, rows: list[tuple[layouts.Layout, DropImage | NotADrop]], *, only: bool) -> None:
    click.secho(output.printable(path), bold=True)
    matches = [(family, answer) for family, answer in rows if isinstance(answer, DropImage)]
    for family, answer in matches:
        click.echo(f"  {family.name}")
        for name, value in _fields(answer).items():
            if value not in (None, ()):
                click.echo(f"    {name:20} {output.printable(str(value))}")
    if matches:
        return
    telling = [(f, a) for f, a in rows if not isinstance(a, DropImage) and (only or a.reason != "not_this_layout")]
    if not telling:
        click.echo("  no family reads this as a drop image; --layout NAME tells why not for one of them")
    for family, refusal in telling:
        click.echo(f"  {family.name}: {refusal.reason}: {output.printable(refusal.detail)}")
