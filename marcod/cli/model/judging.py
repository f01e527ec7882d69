"""Judging a model version on labelled images, and deriving one with another temperature and threshold."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import click

from marcod import app, files, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.domain import Split
from marcod.evaluate import calibration, labelled, results, tables
from marcod.evaluate.calibration import Fit
from marcod.evaluate.labelled import LabelledSet
from marcod.evaluate.predictions import Predictions, predict
from marcod.evaluate.tables import decimals
from marcod.model import bundle
from marcod.model.bundle import BundleRecord
from marcod.model.predictor import Predictor
from marcod.settings import Settings
from marcod.store.versions import Version

ALL = "all"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The labelled images that the options choose; ``default`` is the split without an option."""

    default: Split
    csv: Path | None
    root: Path | None
    skip_missing: bool
    from_database: bool
    split: str | None
    source: str | None

    def __post_init__(self) -> None:
        if (self.csv is None) != self.from_database:
            raise click.UsageError("Say where the labels are: either --labels CSV or --from-database.")
        if self.csv is None and (self.root is not None or self.skip_missing):
            raise click.UsageError("--root and --skip-missing belong to --labels.")
        if self.csv is not None and self.source is not None:
            raise click.UsageError("--source belongs to --from-database; a CSV file may have a column of that name.")
        if self.csv is not None and self.split is not None:
            raise click.UsageError("--split belongs to --from-database; all lines of a CSV file are used.")

    def read(self, settings: Settings, ready: app.App, version: Version | None, record: BundleRecord) -> LabelledSet:
        """Return the images, with what a registered version gave them. Raises ConfigError or NotFoundError."""
        if self.csv is not None:
            return labelled.from_csv(self.csv, self.root, record, skip_missing=self.skip_missing)
        side = None if self.split == ALL else Split(self.split or self.default)
        return labelled.from_database(
            ready.db,
            record,
            None if version is None else version.id,
            split=side,
            source=self.source,
            roots=app.roots(settings),
        )


def _wanted(sides: Iterable[str], default: Split) -> Callable[[options.Command], options.Command]:
    """Add the options that choose labelled images; the command gets them as one ``Wanted``."""
    names = [str(side) for side in sides]
    return options.together(
        click.option("--labels", "csv", type=options.FILE, metavar="CSV", help="A file with columns image and label"),
        click.option("--root", type=options.FOLDER, help="Where the images in CSV are"),
        click.option("--skip-missing", is_flag=True, help="Leave out labelled files that are not there"),
        click.option("--from-database", is_flag=True, help="The labels in the database"),
        click.option("--split", type=Choice(names), help=f"Which plates of the database  [default: {default}]"),
        click.option("--source", help="Only this source of the database"),
    )


@click.command()
@click.argument("model_text", metavar="MODEL")
@_wanted((*Split, ALL), Split.TEST)
@click.option(
    "--html", "html_file", type=options.OutFile(), metavar="FILE", help="Write a page with plots, complete in itself"
)
@click.option("--seed", default=1, show_default=True, help="The bootstrap intervals follow from it")
@options.as_json
@pass_settings
def evaluate(
    settings: Settings, /, model_text: str, html_file: Path | None, seed: int, json_output: bool, **wanted: Any
) -> None:
    """Judge MODEL (NAME:VERSION) on labelled images, with the MARCO paper's tables.

    Scores that the database has are used; the other images are scored now, and no score is written.
    """
    chosen = Wanted(Split.TEST, **wanted)
    with app.reading(settings) as ready:
        closed = options.protected_folders(settings, ready)
        if html_file is not None:
            files.refuse_inside(html_file, closed)
        model, given, said = _predictions(settings, ready, model_text, chosen)
    judged = results.evaluate(
        said, model.record, given.description, missing=given.missing, seed=seed, now=datetime.now(UTC)
    )
    if html_file is not None:
        from marcod.evaluate import page

        files.save(html_file, page.html(judged), closed)
    if json_output:
        output.print_json(judged)
        return
    _print_evaluation(judged)
    if html_file is not None:
        output.echo(f"wrote {html_file}")


@click.command()
@click.argument("model_text", metavar="MODEL")
@_wanted((Split.VALIDATION, Split.TRAIN), Split.VALIDATION)
@click.option(
    "--recall",
    required=True,
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of crystals to find, such as 0.98",
)
@click.option(
    "--confidence",
    metavar="SHARE",
    type=click.FloatRange(0.5, 1, max_open=True),
    help="Promise it with this confidence, such as 0.95 [default: on average over new drops]",
)
@options.as_json
@pass_settings
def calibrate(
    settings: Settings, /, model_text: str, recall: float, confidence: float | None, json_output: bool, **wanted: Any
) -> None:
    """Derive a new version of MODEL (NAME:VERSION) that finds a wished share of crystals.

    Its temperature and crystal threshold are fitted on labelled images; the weights stay. It is not promoted.
    """

    options.check_tree(settings.models.folder)

    def check(given: LabelledSet) -> None:
        calibration.require_crystals(given.images, recall, confidence)

    with app.open_app(settings) as ready:
        model, given, said = _predictions(settings, ready, model_text, Wanted(Split.VALIDATION, **wanted), check)
        fitted = calibration.fit(said, model.record, given.description, recall=recall, confidence=confidence)
        number = ready.registry.next_number(model.record.name)
        path = calibration.write(settings.models.folder, model.folder, model.load(), number, fitted)
    derived = f"{model.record.name}:{number}"
    if json_output:
        output.print_json({"model": derived, "parent": str(model), "folder": path, "calibration": fitted})
        return
    _print_calibration(fitted, said.unreadable)
    output.echo(f"wrote {derived} to {path}\nnext: marcod model evaluate {derived} on data not used here, "
               f"then marcod model promote {derived}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The model version meant, and a way to load it that costs its seconds once and only when needed."""

    folder: Path
    record: BundleRecord
    load: Callable[[], Predictor]

    def __str__(self) -> str:
        return f"{self.record.name}:{self.record.version}"


def _predictions(
    settings: Settings,
    ready: app.App,
    model_text: str,
    wanted: Wanted,
    check: Callable[[LabelledSet], object] = lambda given: None,
) -> tuple[ChosenModel, LabelledSet, Predictions]:
    """Predict the chosen images; ``check`` may refuse them before the work."""
    registry, batch_size = ready.registry, settings.score.most_images
    # Once: an alias may change its version meanwhile.
    name = ":".join(registry.resolve(model_text))
    version = registry.look_up(name) if ready.db.read_only else registry.resolve_registered(name, datetime.now(UTC))
    folder = registry.path(*name.split(":"))

    def load() -> Predictor:
        return registry.load_new(folder, batch_size) if version is None else registry.load(version, batch_size)

    model = ChosenModel(folder, bundle.read(folder), cache(load))
    given = wanted.read(settings, ready, version, model.record)
    check(given)
    with bars.progress(f"scoring with {model}", len(given.images)) as done:
        said = predict(given.images, model.record, model.load, threads=settings.score.threads, done=done)
    return model, given, said


def _print_evaluation(judged: results.Evaluation) -> None:
    listings.show("", ("", ""), [(f"{name}:", fact) for name, fact in tables.facts(judged)], prose=True)
    for warning in tables.warnings(judged):
        output.echo(warning, style="yellow")
    for shown in tables.all_tables(judged):
        output.echo()
        listings.show(shown.title, shown.columns, shown.rows, right=True)
        if shown.note:
            output.echo(shown.note, style="dim")


def _print_calibration(fitted: Fit, unreadable: tuple[str, ...]) -> None:
    before, after = fitted.before, fitted.after
    crystals = text.count(fitted.crystals, "drop with crystals", "drops with crystals")
    rows = [
        ("temperature", f"{before.temperature:g}", f"{after.temperature:g}"),
        ("crystal threshold", f"{before.threshold:g}", f"{after.threshold:g}"),
        ("expected calibration error", decimals(before.calibration_error), decimals(after.calibration_error)),
        ("log loss", decimals(before.log_loss), decimals(after.log_loss)),
        (f"missed, of {crystals}", str(before.crystals_missed), str(after.crystals_missed)),
        (f"called hits, of {fitted.counted}", tables.percent(before.flagged), tables.percent(after.flagged)),
    ]  # fmt: skip
    listings.show("Calibration", ("", "before", "after"), rows, right=True)
    output.echo(fitted.promise)
    if unreadable:
        count = text.count(len(unreadable), "image")
        output.echo(f"{count} could not be read, the first: {unreadable[0]}", style="yellow")
