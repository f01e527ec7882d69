"""`marcod model import`: a model from elsewhere becomes a bundle on this host."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marcod import app
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.domain import CLASSES, DropClass
from marcod.errors import ON_A_WHOLE_HOST, ConfigError, HostLacksError
from marcod.model import bundle, engines
from marcod.settings import Settings
from marcod.settings.environment import use_the_cpu_alone
from marcod.store import versions

if TYPE_CHECKING:
    from marcod.model.convert import ImportedModel


@click.command("import")
@click.argument("source", metavar="PATH_OR_URL")
@click.option("--name", help="Name of the model here [default: marco, or a bundle's own]")
@click.option("--version", type=click.IntRange(1), help="Its version [default: the next free number]")
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Compare on JPEGs of this folder too, up to 24",
)
@click.option(
    "--class", "classes", multiple=True, metavar="NAME=FOLDED", help="What a class of the model's own counts as; repeat"
)
@click.option("--licence", help="Licence of the weights [default: Apache-2.0, the published model's]")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Crystal probability that makes a drop a hit")
@options.as_json
@pass_settings
def import_(
    settings: Settings,
    source: str,
    name: str | None,
    version: int | None,
    images: Path | None,
    classes: Sequence[str],
    licence: str | None,
    threshold: float | None,
    json_output: bool,
) -> None:
    """Make a bundle of the published MARCO SavedModel or of another model of its family.

    PATH_OR_URL is a SavedModel's folder or zip, a TensorFlow checkpoint, a .keras file of this program's network, or a
    bundle. Nothing is written unless every compared image scores as in the original. It serves once promoted.
    """
    folder = settings.models.folder
    options.check_tree(folder)
    folding = folding_of(classes)
    with app.open_app(settings) as ready:
        taken = [(r.version.name, r.version.version) for r in ready.db.read(versions.listed)]
        taken += [(name, version) for name, version, _ in ready.registry.on_disk()]
    if not engines.installed("tensorflow") and (Path(source) / bundle.RECORD_FILE).is_file():
        _install(Path(source), folder, plain=not (name or version or images or folding or licence or threshold))
        return
    use_the_cpu_alone()
    from marcod.model import convert

    with bars.stages() as report:
        done = convert.import_model(
            source,
            folder,
            name=name,
            version=version,
            images=images,
            folding=folding,
            licence=licence,
            threshold=threshold,
            taken=taken,
            progress=report,
        )
    _print(done, json_output)


def _install(source: Path, folder: Path, *, plain: bool) -> None:
    """Copy a bundle as it is, which takes no TensorFlow."""
    if not plain:
        raise HostLacksError(f"without TensorFlow a bundle is imported without options; {ON_A_WHOLE_HOST}")
    path = bundle.install(source, folder)
    record = bundle.read(path)
    output.echo(f"wrote {path}")
    output.echo(f"next: marcod model promote {record.name}:{record.version}")


def folding_of(texts: Sequence[str]) -> dict[str, DropClass]:
    """Classes and what they count as, from ``NAME=FOLDED`` each. Raises ConfigError."""
    four = {c.value.lower(): c for c in CLASSES}
    folding = {}
    for text in texts:
        name, equals, folded = text.rpartition("=")
        if not (name and equals) or folded.lower() not in four:
            raise ConfigError(f"{text!r} does not fold a class; write NAME=FOLDED with one of {', '.join(CLASSES)}")
        folding[name] = four[folded.lower()]
    return folding


def _print(done: "ImportedModel", json_output: bool) -> None:
    record = done.record
    model = f"{record.name}:{record.version}"
    if json_output:
        output.print_json({"model": model, "folder": done.path, "digest": record.digest, "report": done.report})
        return
    output.echo(f"wrote {done.path}")
    parity = done.report.get("parity")
    if parity is not None:
        output.echo(
            f"largest difference from the original: {parity['largest_difference']:.2g} over {parity['images']} "
            f"images, allowed is {parity['tolerance']:g}"
        )
    elif "parity_missing" in done.report:
        output.echo(f"not compared with an original: {done.report['parity_missing']}")
    output.echo(f"next: marcod model promote {model}")
