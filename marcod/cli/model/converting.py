"""`marcod model convert`: a version of the same weights that calculates in a lower precision or sees whole images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marcod import app, text
from marcod.app import App
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.domain import Precision
from marcod.settings import Settings
from marcod.store.versions import Version
from marcod.training import snapshot_rows

if TYPE_CHECKING:
    from marcod.model.squares import Coverage
    from marcod.training.conversion import Comparison

DRAWN = 4
"""Images that are scored for one to calibrate on, so that rare classes are among them."""

SHOWN = 20
"""Images whose hit changed that are printed; all of them are in metrics.json."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Conversion that is asked for; None leaves precision or coverage as it is."""

    precision: Precision | None
    coverage: "Coverage | None"
    images: int
    calibrate: int


@click.command()
@click.argument("model_text", metavar="MODEL")
@click.option(
    "--precision",
    type=Choice([str(p) for p in Precision if p is not Precision.FLOAT32]),
    help="Numbers that the new version calculates with",
)
@click.option(
    "--coverage",
    type=Choice(["centre", "whole"]),
    help="Look at the central square, or at as many squares as the whole image needs",
)
@click.option(
    "--images", default=1000, show_default=True, type=click.IntRange(0), help="Images without a label to compare on"
)
@click.option(
    "--calibrate",
    default=300,
    show_default=True,
    type=click.IntRange(50),
    help="Images that int8 takes its number ranges from, evenly over sources and classes",
)
@options.as_json
@pass_settings
def convert(
    settings: Settings, model_text: str, precision: str | None, coverage: "Coverage | None", images: int,
    calibrate: int, json_output: bool,
) -> None:  # fmt: skip
    """Derive a version of MODEL (NAME:VERSION) of lower precision or for whole images, and compare the two.

    Both score the lab's labelled images and others. The new version has a threshold of its own; it is not promoted, and
    cannot be where it loses crystals.
    """
    options.check_tree(settings.models.folder)
    with app.open_app(settings) as ready:
        version = ready.registry.resolve_registered(model_text, ready.db.now())
        asked = _Asked(None if precision is None else Precision(precision), coverage, images, calibrate)
        path, compared = _made(settings, ready, version, asked)
        made = ready.registry.register(path.parent.name, path.name, ready.db.now())
    if json_output:
        output.print_json(
            {
                "model": str(made),
                "parent": str(version),
                "folder": path,
                "threshold": compared.threshold.model_dump(),
                "conversion": compared.conversion.model_dump(),
                "sentence": compared.sentence,
                "flips": compared.flips,
            }
        )
        return
    _print(made, version, path, compared)


def _made(settings: Settings, ready: App, version: Version, asked: _Asked) -> "tuple[Path, Comparison]":
    from marcod.model import bundle, quantization  # loads TensorFlow
    from marcod.training import conversion

    folder = ready.registry.path(version.name, version.version)
    conversion.require_convertible(bundle.read(folder), asked.precision, asked.coverage)
    if asked.precision is Precision.INT8:
        quantization.require()
    parent = ready.registry.load(version, settings.score.most_images)
    number = ready.registry.next_number(version.name)
    record = conversion.converted(parent.record, number, asked.precision, asked.coverage)
    roots, seed, threads = app.roots(settings), settings.train.seed, settings.score.threads
    chosen = conversion.lab_images(ready.db, parent.record, version, roots, asked.images, seed)
    with bars.stages() as report:

        def told(text: str) -> Callable[[int, int], None]:
            return lambda done, total: report(text, done, total)

        if asked.precision is Precision.INT8:
            drawn = ready.db.read(snapshot_rows.sample, parent.record.modality, DRAWN * asked.calibrate, seed)
            scoring = told("scoring images to calibrate on")
            chosen = conversion.with_calibration(
                chosen, parent, drawn, roots, asked.calibrate, threads=threads, progress=scoring
            )
            report("calibrating int8, which takes minutes", 0, 1)
        made, quantized = conversion.network(folder, record, parent, chosen)
        comparing = told(f"scoring with {version} and {record.name}:{record.version}")
        compared = conversion.compare(parent, made, chosen, settings.train, threads=threads, progress=comparing)
    return conversion.write(settings.models.folder, folder, made, compared, quantized), compared


def _print(made: Version, parent: Version, path: Path, compared: "Comparison") -> None:
    found = compared.conversion
    listings.show(f"{made}, compared with {parent}", ("", ""), list(_facts(compared)), prose=True)
    if compared.flips:
        rows = [
            (str(flip.label or ""), f"{flip.parent:.4f}", f"{flip.converted:.4f}", flip.file)
            for flip in compared.flips[:SHOWN]
        ]
        listings.show("Images whose hit changed", ("label", str(parent), str(made), "file"), rows)
    output.echo(compared.sentence)
    output.echo(f"wrote {made} to {path}")
    if found.refusal is not None:
        output.echo(f"{made} cannot become champion, because crystals may be lost", style="yellow")
    else:
        output.echo(f"next: `marcod model challenge {made}` lets it score new images next to the champion, to compare")


def _facts(compared: "Comparison") -> list[tuple[str, str]]:
    found = compared.conversion
    if found.agreement is None or found.largest is None or found.mean is None:
        return [("images:", "none of this lab outside its test plates, so nothing was compared")]
    return [
        ("images:", f"{found.images}, the same class for {100 * found.agreement:.2f} %"),
        ("probabilities:", f"changed by {found.mean:.4f} in the mean, by {found.largest:.3f} at most"),
        ("hits:", f"{found.hits} of the parent, {found.hits_changed} changed"),
        ("threshold:", f"{compared.threshold.crystal:g}; {compared.threshold.measured_on}"),
        ("crystals:", f"{text.count(found.crystals, 'labelled drop')}, {found.crystals_lost} lost"),
    ]
