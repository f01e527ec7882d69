"""`marcod retrain`: the next model from what people said, if it is better."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marcod import app, text
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.errors import ConfigError
from marcod.settings import Settings, TrainSettings, environment
from marcod.settings.environment import StepTask
from marcod.training.run_rows import Run

if TYPE_CHECKING:
    from marcod.fitting.together import Team

CAUSES = ("person", "schedule", "labels", "drift")
TIERS = ("recalibrate", "normalization", "offsets", "classes", "head", "all", "scratch")
ATTENTION = ("refused", "recommended")
"""Ends of a run that a person should look at."""


MOST_SEEDS = 100


def _seeds(_ctx: click.Context, _param: click.Parameter, given: str | None) -> tuple[int, ...] | None:
    """Parse ``--seeds``."""
    try:
        return None if given is None else text.numbers_of(given, MOST_SEEDS)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--recipe", type=Choice(["adapt", "scratch"]), help="How to train  [default: as configured]")
@click.option("--tier", type=Choice(TIERS), help="How much may change  [default: by the labelled crystals]")
@click.option("--source", "sources", multiple=True, help="Learn from this source's labels only; may be given again")
@click.option("--promotion", type=Choice(["gated", "manual"]), help="What passing means  [default: as configured]")
@click.option("--seed", type=click.IntRange(0), help="Everything drawn at random follows from it")
@click.option("--seeds", callback=_seeds, metavar="1..8", help="Train with each of these; the validation side chooses")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images  [default: as configured]")
@click.option("--processes", type=click.IntRange(1, 1024), help="Train by so many processes of one device each")
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
    processes: int | None,
    seeds: tuple[int, ...] | None,
    cause: str,
    json_output: bool,
    **chosen: Any,
) -> None:
    """Train on the labels, compare with the champion, and promote what passes the gate.

    A run that was stopped or killed is resumed with the options it was started with. Ends with 3 when the candidate was
    refused or only recommended, with 75 when the run was stopped or one of its processes died, and waits to be resumed.
    Started by `srun` as several tasks, it trains by as many processes, and ends with 0 where it would with 3. With
    --seeds each of --processes trains a seed of its own.
    """
    for folder in (settings.models.folder, settings.train.folder):
        options.check_tree(folder)
    task = environment.slurm_task()
    if task is not None and processes not in (None, task.of):
        raise ConfigError(f"srun started {task.of} tasks, and each is a process; leave --processes {processes} out")
    if task is not None and task.number:
        return _follow(settings, task)
    with (
        _team(settings, task, processes or 1) as team,
        app.open_app(settings) as ready,
        app.stop_event_on_signals() as stop,
        bars.stages() as report,
    ):
        from marcod.training import runs

        request = runs.RetrainRequest(
            cause=cause,  # type: ignore[arg-type]
            actor=options.actor(),
            settings=_with(settings.train, chosen),
            tier=tier,  # type: ignore[arg-type]
            sources=sources or None,
            again=again,
            tensorboard=tensorboard,
            seeds=seeds,
        )
        context = runs.RunContext(
            db=ready.db,
            registry=ready.registry,
            models=settings.models.folder,
            roots=options.source_roots(settings, ready),
            threads=settings.score.threads,
            stop=stop,
            progress=report,
            team=team,
        )
        run = runs.retrain(context, request)
    output.print_json(output.without_token(run)) if json_output else _print(run)
    # To Slurm a task with another exit code than 0 has failed: it would end the others.
    output.end(attention=run.state in ATTENTION and task is None)
    return None


def _board(settings: Settings, task: StepTask) -> Path:
    return settings.train.folder / f"processes-{task.name}.json"


def _follow(settings: Settings, task: StepTask) -> None:
    """Train as one of the other tasks of a job step, which know neither database nor images' sources."""
    from marcod.fitting import together

    with app.stop_event_on_signals() as stop:
        together.follow(_board(settings, task), task.number, stop)


@contextmanager
def _team(settings: Settings, task: StepTask | None, processes: int) -> Iterator["Team"]:
    """Yield the processes that train together: those of this host, or the tasks of a job step."""
    size = processes if task is None else task.of
    if size > 1:
        environment.leave_memory_to_workers()
    from marcod.fitting import together

    if size > 1:
        together.require()
    if task is None:
        yield together.Team(size)
        return
    with together.Board(_board(settings, task)).kept() as board:
        yield together.Team(size, board, task.node)


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
