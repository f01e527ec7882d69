"""`marcod retrain`: the next model from what people said, if it is better."""

from typing import Any

import click

from marcod import app, text
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.settings import Settings, TrainSettings
from marcod.training.run_rows import Run

CAUSES = ("person", "schedule", "labels", "drift")
TIERS = ("recalibrate", "normalization", "offsets", "classes", "head", "all", "scratch")
ATTENTION = ("refused", "recommended")
"""Ends of a run that a person should look at."""


@click.command()
@click.option("--recipe", type=Choice(["adapt", "scratch"]), help="How to train  [default: as configured]")
@click.option("--tier", type=Choice(TIERS), help="How much may change  [default: by the labelled crystals]")
@click.option("--source", "sources", multiple=True, help="Learn from this source's labels only; may be given again")
@click.option("--promotion", type=Choice(["gated", "manual"]), help="What passing means  [default: as configured]")
@click.option("--seed", type=click.IntRange(0), help="Everything drawn at random follows from it")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images  [default: as configured]")
@click.option("--again", is_flag=True, help="Train although nothing changed since an earlier run")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard logs into the run's folder")
@click.option("--cause", type=Choice(CAUSES), default="person", hidden=True)
@options.as_json
@pass_settings
def retrain(
    settings: Settings,
    /,
    tier: str | None,
    sources: tuple[str, ...],
    again: bool,
    tensorboard: bool,
    cause: str,
    json_output: bool,
    **chosen: Any,
) -> None:
    """Train on the labels, compare with the champion, and promote what passes the gate.

    A run that was stopped or killed is resumed with the options it was started with. Ends with 3 when the candidate was
    refused or only recommended.
    """
    for folder in (settings.models.folder, settings.train.folder):
        options.check_tree(folder)
    with app.open_app(settings) as ready, app.stop_event_on_signals() as stop, bars.stages() as report:
        from marcod.training import runs

        request = runs.RetrainRequest(
            cause=cause,  # type: ignore[arg-type]
            actor=options.actor(),
            settings=_with(settings.train, chosen),
            tier=tier,  # type: ignore[arg-type]
            sources=sources or None,
            again=again,
            tensorboard=tensorboard,
        )
        context = runs.RunContext(
            db=ready.db,
            registry=ready.registry,
            models=settings.models.folder,
            roots=options.source_roots(settings, ready),
            threads=settings.score.threads,
            stop=stop,
            progress=report,
        )
        run = runs.retrain(context, request)
    output.print_json(output.without_token(run)) if json_output else _print(run)
    output.end(attention=run.state in ATTENTION)


def _with(train: TrainSettings, chosen: dict[str, Any]) -> TrainSettings:
    """Return the settings with the values of the command line."""
    epochs = chosen.pop("epochs")
    values = {name: value for name, value in chosen.items() if value is not None}
    if epochs is not None:
        values |= {"epochs": epochs, "scratch_epochs": epochs}
    return train.model_copy(update=values)


def _print(run: Run) -> None:
    candidate = f", candidate {run.candidate}" if run.candidate else ""
    output.echo(f"training run {run.id} ended {run.state}{candidate}")
    for reason in run.reasons or ():
        output.echo(f"  - {text.printable(reason)}")
    output.echo(f"next: marcod train show {run.id}")
