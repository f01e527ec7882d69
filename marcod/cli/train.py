"""`marcod train`: what became of every attempt to make a better model, and why."""

import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.settings import Settings
from marcod.training import run_rows, run_words, shadow
from marcod.training.run_rows import Run, SnapshotCounts

FURTHER: Final = {
    "partly": "not tested",
    "unreadable": "images that could not be read",
    "base": "base set",
    "natural_shares": "shares of the classes as images come",
    "mix": "share of the new weights",
    "seeds": "seeds, and their losses on the validation side",
    "label_noise": "share of labels that look wrong",
    "doubted_labels": "labels that look wrong",
}
INTERNAL: Final = ("gate", "material", "model")
"""Numbers that marcod itself goes by; only --json shows them."""

WIDEST_REASON: Final = 100


@click.group()
def train() -> None:
    """Show training runs: what each was made of, how the gate judged it, and why."""


@train.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def list_(settings: Settings, limit: int, json_output: bool) -> None:
    """List training runs, the latest first."""
    with app.reading(settings) as ready:
        runs = ready.db.read(run_rows.listed, limit)
    if json_output:
        output.print_json([output.without_token(run) for run in runs])
        return
    if not runs:
        output.echo("there is no training run yet; `marcod retrain` makes one")
        return
    columns = ("run", "started (UTC)", "took", "state", "cause", "recipe", "parent", "candidate", "why")
    cells = [
        (r.id, _minute(r.started_at), _took(r), r.state, r.cause, _recipe(r), r.parent, r.candidate, _why(r))
        for r in runs
    ]
    spare = (("took",), ("cause",), ("recipe",), ("parent",))
    listings.show("", columns, cells, spare=spare, prose=True)


def _minute(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _took(run: Run) -> str:
    seconds = int(((run.ended_at or run.beat_at) - run.started_at).total_seconds())
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds % 60:02}s"


def _recipe(run: Run) -> str:
    return run.recipe if run.tier is None else f"{run.recipe}, {run.tier}"


def _why(run: Run) -> str:
    """Return the most important fact about a run in one line."""
    found = run.error or next(iter(run.reasons or ()), run.step or "")
    return textwrap.shorten(found, WIDEST_REASON, placeholder=" …")


@train.command()
@click.argument("run_id", metavar="RUN", type=int)
@options.as_json
@pass_settings
def show(settings: Settings, run_id: int, json_output: bool) -> None:
    """Show everything about a training run: its data, every check of the gate with its numbers, and the reasons."""
    with app.reading(settings) as ready:
        run = ready.db.read(run_rows.get, run_id)
        data = None if run.dataset_id is None else ready.db.read(run_rows.data, run.dataset_id)
    uses, curves = run_rows.gate_uses(run), _curves(run)
    if json_output:
        output.print_json({**output.without_token(run), "data": data, "gate_uses": uses, "curves": curves})
        return
    listings.show(f"Training run {run.id}", ("", ""), [*_facts(run, curves), *_data(data, uses)], prose=True)
    if run.numbers:
        _print_numbers(run.numbers)
    if run.reasons:
        output.echo(f"\nWhy {run.state}:")
        for reason in run.reasons:
            output.echo(f"  - {reason}")
    if uses > run_rows.USED_OFTEN:
        output.echo(
            f"\nThis test side has judged {text.count(uses, 'candidate')}, and the gate asks more of each further one: "
            "label drops on more plates; earlier candidates count by the share of the drops that they were judged on.",
        )


def _curves(run: Run) -> list[Path]:
    """List the plots of the curves, where the run's folder is on this host."""
    folder = Path(run.folder)
    return sorted(folder.glob("*.png")) if folder.is_dir() else []


def _facts(run: Run, curves: list[Path]) -> Iterator[tuple[str, object]]:
    yield "state", f"{run.state}: {run_words.MEANING.get(run.state, '').format(candidate=run.candidate)}"
    if run.error:
        yield "error", run.error
    if run.step:
        yield "step", run.step
    yield "cause", f"{run.cause}, by {run.actor}"
    yield "recipe", _recipe(run)
    if run.options:
        yield "options", run.options
    yield "parent", run.parent or "none"
    yield "candidate", run.candidate or "none"
    yield "started", f"{_minute(run.started_at)} UTC on {run.host} as process {run.pid}"
    if run.ended_at is None:
        yield "last seen", f"{run.beat_at:%Y-%m-%d %H:%M:%S} UTC"
    else:
        yield "ended", f"{_minute(run.ended_at)} UTC, after {_took(run)}"
    yield "folder", run.folder
    yield "curves", ", ".join(str(file) for file in curves) or "none in its folder on this host"


def _data(data: SnapshotCounts | None, uses: int) -> Iterator[tuple[str, object]]:
    if data is None:
        yield "data", "none taken"
        return
    counted = f"{text.count(data.images, 'image')} of {text.count(data.drops, 'drop')}"
    yield "data", f"{counted}, {data.crystals} with crystals, taken {_minute(data.taken_at)} UTC"
    if data.missing or data.changed:
        yield "left out", f"{text.count(data.missing, 'file')} missing, {data.changed} changed since they were recorded"
    for side, counts in data.counts.items():
        yield f"data, {side}", counts
    yield "data digest", data.digest
    yield "test side", f"digest {data.gate_digest}, has judged {text.count(uses, 'candidate')}"


def _print_numbers(numbers: Mapping[str, Any]) -> None:
    """Print the gate's numbers; a run keeps them alone, or under "gate" next to others."""
    gate = numbers.get("gate", numbers)
    sides = [gate.get(side) or {} for side in run_words.SIDES]
    if any(sides):
        known = [(title, [side.get(key) for side in sides]) for key, title in run_words.HEADLINE.items()]
        rows = [
            (title, *map(run_words.number, values)) for title, values in known if any(v is not None for v in values)
        ]
        models = [str(side.get("model", name)) for side, name in zip(sides, run_words.SIDES, strict=True)]
        heads = [f"{name} {model}" for name, model in zip(run_words.SIDES, models, strict=True)]
        listings.show("\nOn the test side", ("", *heads), rows)
    if checks := gate.get("checks"):
        rows = [(c["name"], "passed" if c["passed"] else "refused", run_words.numbers(c["numbers"])) for c in checks]
        listings.show("\nChecks", ("check", "", "numbers"), rows, prose=True)
    further = {k: v for k, v in numbers.items() if k not in INTERNAL} if numbers is not gate else {}
    if rows := [(FURTHER.get(k, k.replace("_", " ")), v) for k, v in further.items() if v not in (None, "", [], {})]:
        listings.show("\nFurther numbers", ("", ""), rows, prose=True)


@train.command()
@options.as_json
@pass_settings
def settle(settings: Settings, json_output: bool) -> None:
    """Decide about candidates that scored new images in shadow long enough. The trainer does this by itself."""
    with app.open_app(settings) as ready:
        ended = shadow.settle(ready.db, ready.registry, actor=options.actor(), now=ready.db.now())
    if json_output:
        output.print_json([output.without_token(run) for run in ended])
        return
    for run in ended:
        output.echo(f"training run {run.id}: {run.candidate} {run.state}: {text.printable((run.reasons or [''])[0])}")
    if not ended:
        output.echo("no candidate's time in shadow is over")
