"""`marcod dataset`: the labelled images that training reads."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marcod import app, text
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.cli.common.options import Choice
from marcod.cli.retrain import TIERS
from marcod.domain import Modality
from marcod.errors import ConfigError, MarcodError
from marcod.settings import Settings

if TYPE_CHECKING:
    from marcod.training.packing import PackReport

SHOWN = 10


@click.group()
def dataset() -> None:
    """Pack the labelled images for training, so that it reads them from a few large files."""


@dataset.command()
@click.argument("folder", required=False, type=options.FOLDER)
@click.option("--tier", type=Choice(TIERS), help="Pack as this tier reads images  [default: by the labelled crystals]")
@click.option("--shard-mb", default=1000, show_default=True, type=click.IntRange(1, 100_000), help="Size of a file")
@options.as_json
@pass_settings
def pack(settings: Settings, folder: Path | None, tier: str | None, shard_mb: int, json_output: bool) -> None:
    """Write the labelled images that train and validate into FOLDER, cropped and shrunk as training keeps them.

    FOLDER is `train.pack` by default. What is packed already is left as it is, so the command goes on where it was
    stopped, and adds what was labelled since. Training takes from there what is in it, and the rest from the files.
    """
    place = folder or settings.train.pack
    if place is None:
        raise ConfigError("name a FOLDER, or set train.pack, from which training will read")
    options.check_tree(place)
    with (
        app.reading(settings) as ready,
        app.stop_event_on_signals() as stop,
        bars.stages() as report,
    ):
        from marcod.model import bundle
        from marcod.model.preprocess import Preprocessing
        from marcod.training import candidate, committees, packing, snapshot, tiers  # they load TensorFlow

        champion = ready.registry.find("champion")
        record = committees.learner(
            bundle.read(ready.registry.path(champion.name, champion.version)), ready.registry, settings.train
        )
        roots = options.source_roots(settings, ready)
        taken = snapshot.take(
            ready.db, modality=Modality(record.modality), roots=roots, now=datetime.now(UTC),
            done=lambda count, total: report("reading labelled images", count, total),
        )  # fmt: skip
        if not taken.items:
            raise MarcodError("there is no labelled image to pack; `marcod label import` imports labels")
        scored = Preprocessing.from_dict(record.preprocessing)
        found = packing.pack(
            taken,
            candidate.kept_as(scored, tier or tiers.tier_for(taken, settings.train)),  # type: ignore[arg-type]
            place,
            roots,
            threads=settings.score.threads,
            done=lambda done, total: report("packing", done, total),
            stopped=stop.is_set,
            shard_bytes=shard_mb * 1_000_000,
        )
    output.print_json(found) if json_output else _print(found, place, settings)
    output.end(attention=bool(found.left_out))


def _print(found: "PackReport", place: Path, settings: Settings) -> None:
    total = text.count(found.before + found.added, "image")
    output.echo(f"{total} in {found.folder}, {found.added} of them new, {found.bytes / 1e6:,.1f} MB")
    output.echo_first((f"  - left out: {sentence}" for sentence in found.left_out), SHOWN)
    if settings.train.pack != place:
        output.echo(f"next: set train.pack to {place}, so that training reads it")
