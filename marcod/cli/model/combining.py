"""`marcod model combine`: several bundles become one version, a committee."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marcod import app
from marcod.app import App
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.errors import MarcodError
from marcod.model.registry import parse
from marcod.settings import Settings
from marcod.store import results
from marcod.store.versions import Version
from marcod.training import snapshot_rows

if TYPE_CHECKING:
    from marcod.model.bundle import BundleRecord
    from marcod.model.combining import CommitteeMember, Evidence


MOST = 2000
FEWEST = 50
"""Images of the lab that the constants are fixed on."""


def _numbers(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise click.BadParameter("write one number per member with commas between, such as 2,1") from error


@click.command()
@click.argument("model_texts", metavar="NAME:VERSION...", nargs=-1, required=True)
@click.option("--name", default="committee", show_default=True, help="Name of the committee")
@click.option(
    "--weights",
    callback=_numbers,
    metavar="NUMBERS",
    help="Weight of each member, such as 2,1  [default: all the same]",
)
@click.option(
    "--drops", default=400, show_default=True, type=click.IntRange(8), help="Rendered drops to fix the constants on"
)
@click.option("--from-database", is_flag=True, help="Fix the constants on this lab's images that all members scored")
@click.option("--challenge", is_flag=True, help="Let it score new images next to the champion from now on")
@options.as_json
@pass_settings
def combine(
    settings: Settings,
    model_texts: tuple[str, ...],
    name: str,
    weights: tuple[float, ...] | None,
    drops: int,
    from_database: bool,
    challenge: bool,
    json_output: bool,
) -> None:
    """Make a committee of model versions: one version whose score is made of those of its members.

    Members' crystal logits are standardized by constants, fixed once on rendered drops or with --from-database on
    scores that are stored, and averaged. Members score an image once, for themselves and for every committee.
    """
    options.check_tree(settings.models.folder)
    parse(f"{name}:1")
    if weights is not None and len(weights) != len(model_texts):
        raise click.UsageError(f"{len(model_texts)} models are named, and --weights has {len(weights)} numbers")
    with app.open_app(settings) as ready:
        named = [ready.registry.resolve_registered(text, ready.db.now()) for text in model_texts]
        path = _made(settings, ready, named, weights, name, None if from_database else drops)
        version = ready.registry.register(name, path.name, ready.db.now())
        if challenge:
            ready.registry.challenge(version, actor=options.actor(), now=ready.db.now())
    _print(version, path, challenge=challenge, json_output=json_output)


def _made(
    settings: Settings,
    ready: App,
    named: Sequence[Version],
    weights: Sequence[float] | None,
    name: str,
    drops: int | None,
) -> Path:
    """Return the folder of the new committee, or of one that was made in the same way before."""
    from marcod.model import combining  # loads TensorFlow

    parts = [
        combining.part(
            ready.registry.path(v.name, v.version), ready.registry.load(v, settings.score.most_images), weight
        )
        for v, weight in zip(named, weights or [1.0] * len(named), strict=True)
    ]
    combining.check(parts)
    if drops is None:
        evidence = _stored(ready, named)
    else:
        if (known := _same(ready, name, parts, combining.about(drops))) is not None:
            return known
        with bars.progress("rendered drops", drops) as done:
            evidence = combining.rendered(parts, drops, done)
    number = ready.registry.next_number(name)
    record = combining.record(name, number, parts, combining.fix(parts, evidence))
    return combining.write(settings.models.folder, record, parts)


def _same(ready: App, name: str, parts: "Sequence[CommitteeMember]", about: str) -> Path | None:
    """Find a committee of this name with these very members and weights, fixed on the same drops."""
    wanted = [(one.record.digest, one.weight) for one in parts]
    for known in ready.registry.known():
        rule = known.record.committee if known.record is not None else None
        same = rule is not None and rule.fixed_on == about and [(m.digest, m.weight) for m in rule.members] == wanted
        if same and known.problem is None and parse(known.name)[0] == name:
            return known.folder
    return None


def _stored(ready: App, named: Sequence[Version]) -> "Evidence":
    """Read what all members gave images of this lab. Raises MarcodError where those are too few."""
    import numpy as np

    from marcod.model.combining import Evidence

    ids = [version.id for version in named]
    drawn = ready.db.read(snapshot_rows.sample_scored, ids, MOST, 1)
    if len(drawn) < FEWEST:
        names = " and ".join(map(str, named))
        raise MarcodError(
            f"{names} have all scored {len(drawn)} images of this lab, and {FEWEST} are needed; `marcod rescore --all "
            "--model NAME:VERSION` scores more, or leave --from-database out"
        )
    known = ready.db.read(results.stored, ids, list(drawn))
    scores = [
        [known[image_id][index, content].probabilities for index in range(len(ids))]
        for image_id, content in drawn.items()
        if all((index, content) in known.get(image_id, {}) for index in range(len(ids)))
    ]
    return Evidence(np.array(scores, np.float32), f"{len(scores)} images of this lab, without test plates")


def _print(version: Version, path: Path, *, challenge: bool, json_output: bool) -> None:
    from marcod.model import bundle

    record = bundle.read(path)
    if json_output:
        output.print_json(_facts(record, path, challenge=challenge))
        return
    assert record.committee is not None
    output.echo(f"{version} is in {path}, its constants fixed on {record.committee.fixed_on}")
    for member, share in zip(record.committee.members, record.committee.shares, strict=True):
        output.echo(f"  {share:4.0%} {member}")
    output.echo(f"crystal threshold {record.threshold.crystal:g}, {record.threshold.measured_on}")
    if challenge:
        output.echo(f"{version} is challenger")
        return
    output.echo(f"next: `marcod model challenge {version}` lets it score new images next to the champion, to compare")


def _facts(record: "BundleRecord", path: Path, *, challenge: bool) -> dict[str, Any]:
    assert record.committee is not None
    return {
        "model": f"{record.name}:{record.version}",
        "folder": path,
        "digest": record.digest,
        "fixed_on": record.committee.fixed_on,
        "members": [{"model": str(m), **m.model_dump(exclude={"name", "version"})} for m in record.committee.members],
        "crystal_threshold": record.threshold.crystal,
        "synthetic": record.synthetic,
        "trained_on": record.trained_on,
        "challenger": challenge,
    }
