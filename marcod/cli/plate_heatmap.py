"""`marcod plate heatmap`: where the network looks in one drop."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marcod import app, files, images, text
from marcod.cli import plate as plates_cli
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.domain import CLASSES, DropClass, Precision, parse_well, well_name
from marcod.errors import BundleError, ImageError, MarcodError, NotFoundError
from marcod.model import bundle
from marcod.plates import reports
from marcod.plates.plate_map import PlateMap
from marcod.settings import Settings
from marcod.store import versions
from marcod.store.verdicts import DropVerdict

if TYPE_CHECKING:
    from marcod.model.heatmap import Heat, SmoothGradNoise


def _well(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, int]:
    try:
        return parse_well(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


LOWER_PRECISION = 0.15
"""Largest difference of a probability between a score of lower precision and the float32 network that is explained."""


@click.command()
@plates_cli.choosing
@click.argument("well", callback=_well)
@click.option("--drop", "number", type=click.IntRange(1), help="Which drop, where the well has several")
@click.option(
    "--class", "target", type=Choice(list(DropClass), case_sensitive=False), default=DropClass.CRYSTALS,
    show_default=True, help="Whose score is explained",
)  # fmt: skip
@click.option("--samples", default=32, show_default=True, type=click.IntRange(1, 1024), help="Noisy copies")
@click.option(
    "--noise", default=0.15, show_default=True, type=click.FloatRange(0, 1), help="As a share of the image's range"
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the noise")
@click.option("--out", type=options.OutFile(".png"), help="PNG file [default: one named here]")
@options.as_json
@pass_settings
def heatmap(
    settings: Settings,
    /,
    well: tuple[int, int],
    number: int | None,
    target: DropClass,
    samples: int,
    noise: float,
    seed: int,
    out: Path | None,
    json_output: bool,
    **chosen: Any,
) -> None:
    """Draw where the network looks in the drop of WELL, as a heat map over the grey image (SmoothGrad)."""
    with app.reading(settings) as ready:
        shown = plates_cli.load(ready.db, **chosen)
        drop = _drop(shown, well, number)
        found = ready.db.read(reports.located, drop.image.image_id)
        folder = ready.registry.path(shown.version.name, shown.version.version)
        closed = options.protected_folders(settings, ready)
    root = app.roots(settings).get(shown.summary.source, Path(found.root))
    out = out or Path(_file_name(shown, drop, target))
    # Before the work, not after it.
    options.check_writable(out)
    files.refuse_inside(out, closed)
    data = _read(root, found)
    record = bundle.verify(folder)
    if record.digest != shown.version.digest:
        raise BundleError(f"the bundle in {folder} is not the one registered as {shown.version}; restore it")

    from marcod.model import heatmap, preprocess  # they load TensorFlow

    recipe = heatmap.SmoothGradNoise(samples, noise, seed)
    try:
        rgb = preprocess.decode(data)
        attribution = heatmap.attribution(folder, ready.registry.member_folder)
    except ImageError as error:
        raise MarcodError(f"{root / found.path} cannot be read: {error}") from error
    with bars.progress("heat map", samples) as done:
        heat = attribution.explain(data, target, recipe, done)
    _compare(shown, drop, heat, record.precision)
    facts = _facts(shown, drop, root / found.path, found, target, recipe)
    about = {f"marcod:{name}": str(value) for name, value in facts.items()}
    notice = versions.SYNTHETIC_NOTICE if shown.version.synthetic else ""
    caption = _caption(shown, drop, target, recipe)
    drawn = heatmap.draw(rgb, heat, caption, notice=notice, text={"Software": "marcod", **about})
    files.save(out, drawn, closed)
    _print({"out": str(out.resolve()), **facts}, json_output=json_output)


def _drop(shown: PlateMap, well: tuple[int, int], number: int | None) -> DropVerdict:
    """Return the chosen drop, which must have been scored. Raises NotFoundError or MarcodError."""
    plate = f"plate {shown.summary.plate_key}, inspection {shown.summary.inspection_key}"
    in_well = [d for d in shown.drops if (d.image.well_row, d.image.well_column) == well]
    if not in_well:
        offered = text.offer(well_name(*well), (d.image.well for d in shown.drops), "wells with drops")
        raise NotFoundError(f"{plate} has no image of well {well_name(*well)}; {offered}")
    there = ", ".join(str(d.image.drop_number) for d in in_well)
    name = in_well[0].image.well
    if number is None and len(in_well) > 1:
        raise NotFoundError(f"well {name} has the drops {there}; choose one with --drop")
    chosen = [d for d in in_well if number in (None, d.image.drop_number)]
    if not chosen:
        raise NotFoundError(f"well {name} of {plate} has no drop {number}, only {there}")
    if chosen[0].image.failed and chosen[0].image.label is None:
        raise MarcodError(f"the image {chosen[0].image.path} could not be scored; `marcod queue failed` tells why")
    if chosen[0].image.label is None:
        raise MarcodError(
            f"{shown.version} has not scored well {name} yet; "
            f"`marcod rescore --plate {shown.summary.plate_key} --model {shown.version}` does"
        )
    return chosen[0]


def _read(root: Path, found: reports.Located) -> bytes:
    """Read the bytes that were scored. Raises MarcodError when the file is gone, unreadable or changed."""
    path = root / found.path
    try:
        data = images.read(path, root)
    except FileNotFoundError as error:
        what = path if root.is_dir() else f"the folder {root} of its source"
        raise MarcodError(f"{what} is gone, so the heat map has no image to be drawn on") from error
    except OSError as error:
        raise MarcodError(f"{path} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise MarcodError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != found.content_hash:
        raise MarcodError(
            f"{path} has changed since it was scored (SHA-256 differs); `marcod scan` takes the new image in"
        )
    return data


def _compare(shown: PlateMap, drop: DropVerdict, heat: "Heat", precision: Precision) -> None:
    """Require that the gradients are of the network that gave the score. Raises BundleError.

    Gradients are float32 whatever the precision of the score.
    """
    allowed = bundle.GOLDEN_TOLERANCES[precision] if precision is Precision.FLOAT32 else LOWER_PRECISION
    stored = [_probability(drop, each) for each in CLASSES]
    now = [float(p) for p in heat.probabilities]
    if any(abs(p - s) > allowed for p, s in zip(now, stored, strict=True)):
        raise BundleError(
            f"{shown.version} gives {drop.image.path} {now[1]:.4f} for crystals here, "
            f"but {drop.image.p_crystals:.4f} is stored; the heat would not explain the score"
        )


def _probability(drop: DropVerdict, target: DropClass) -> float:
    return float(getattr(drop.image, f"p_{target.lower()}") or 0.0)


def _facts(
    shown: PlateMap, drop: DropVerdict, path: Path, found: reports.Located, target: DropClass, recipe: "SmoothGradNoise"
) -> dict[str, Any]:
    """All that is needed to make the image again, for people, programs and the PNG itself."""
    return {
        "source": shown.summary.source,
        "plate_key": shown.summary.plate_key,
        "inspection_key": shown.summary.inspection_key,
        "well": drop.image.well,
        "drop_number": drop.image.drop_number,
        "file": text.printable(str(path)),
        "sha256": found.content_hash,
        "model": str(shown.version),
        "model_digest": shown.version.digest,
        "model_synthetic": shown.version.synthetic,
        "class": target.value,
        "probability": _probability(drop, target),
        "label": drop.image.label,
        "samples": recipe.samples,
        "noise": recipe.noise,
        "seed": recipe.seed,
    }


def _caption(shown: PlateMap, drop: DropVerdict, target: DropClass, recipe: "SmoothGradNoise") -> list[str]:
    summary = shown.summary
    where = f"{summary.barcode or summary.plate_key}, well {drop.image.well}, drop {drop.image.drop_number}"
    return [
        text.printable(f"{where}: {target.value} {_probability(drop, target):.3f}"),
        text.printable(f"source {summary.source}, inspection {summary.inspection_key}; model {shown.version}"),
        f"SmoothGrad: {recipe.samples} samples, noise {recipe.noise:g}, seed {recipe.seed}",
    ]


def _file_name(shown: PlateMap, drop: DropVerdict, target: DropClass) -> str:
    plate, drop_text = shown.summary.barcode or shown.summary.plate_key, f"{drop.image.well}.{drop.image.drop_number}"
    name = f"heatmap-{plate}-{shown.summary.inspection_key}-{drop_text}-{target}"
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) + ".png"


def _print(facts: Mapping[str, Any], *, json_output: bool) -> None:
    if json_output:
        output.print_json(facts)
        return
    output.echo(f"{text.printable(facts['out'])}: where {facts['model']} looks in {facts['file']}")
    output.echo(f"{facts['class']} {facts['probability']:.3f}; likeliest class {facts['label']}")
    output.warn_of_synthetic(scored=facts["model_synthetic"])
