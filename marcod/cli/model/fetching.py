"""`marcod model fetch`: a published model becomes a bundle on this host, and champion over the shipped one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marcod import app
from marcod.app import App
from marcod.cli.common import bars, options, output
from marcod.cli.common.configured import pass_settings
from marcod.database import probe
from marcod.domain import TrainedOn
from marcod.errors import BundleError, StoreError
from marcod.model import bundle, engines, published, registry
from marcod.model.published import Published
from marcod.model.registry import ModelInfo
from marcod.settings import Settings
from marcod.settings.environment import use_the_cpu_alone
from marcod.store import versions
from marcod.store.promotions import Promotion
from marcod.store.versions import Version

if TYPE_CHECKING:
    from marcod.model.convert import ImportedModel


@click.command()
@click.argument("name", required=False)
@click.option(
    "--from", "given", type=options.PLACE, help="Take it from this wheel, zip or folder; nothing is downloaded"
)
@click.option("--no-promote", is_flag=True, help="Leave the champion as it is")
@click.option("--list", "listing", is_flag=True, help="Show the published models that there are")
@options.as_json
@pass_settings
def fetch(
    settings: Settings, name: str | None, given: Path | None, no_promote: bool, listing: bool, json_output: bool
) -> None:
    """Get a published model by name, prove it by checksum, and import it.

    It becomes champion in the place of the bundle that came with marcod; any other champion stays. The file is
    downloaded by pip, so an index, a proxy and certificates that pip is configured with count here too, and it is kept
    in the user's cache. On a host without a network give the file with --from.
    """
    if listing == (name is not None) or (listing and (given is not None or no_promote)):
        raise click.UsageError("name one published model, or give --list alone")
    if name is None:
        _print_catalogue(json_output)
        return
    model = published.find(name)
    engines.require_keras("importing a published model")
    if model.kind == "trunk":
        _fetch_trunk(model, given, json_output)
        return
    with app.open_app(settings) as ready:
        if lacking := ready.db.read(probe.lacking_rights):
            raise StoreError(
                f"this user has no right to {', '.join(lacking[:3])} in the database {ready.db}, where the model is "
                "registered; use an account that may write"
            )
        known = ready.registry.known()
    here = _copy_here(model, known)
    imported = None if here else _imported(settings, model, given, known)
    with app.open_app(settings) as ready:
        done = _promoted(ready, model, imported, promote=not no_promote)
    _print(done, imported, json_output)


def _fetch_trunk(model: Published, given: Path | None, json_output: bool) -> None:
    """Get the weights that a model is trained from; they stay in the user's cache, and no database knows of them."""
    use_the_cpu_alone()
    with bars.stages() as report:
        trunk = published.read_trunk(model, given=given, progress=report)
    numbers = sum(values.size for values in trunk.weights.values())
    if json_output:
        facts = {"name": model.name, "kind": model.kind, "arrays": len(trunk.weights), "numbers": numbers}
        output.print_json({**facts, "origin": trunk.origin.model_dump(), "licence": trunk.licence_text})
        return
    output.echo(f"{model.title}: {len(trunk.weights)} arrays of {numbers:,} numbers, proven by SHA-256")
    output.echo(f"licence: {model.licence}; {_first_copyright(trunk.licence_text)}")
    output.echo(f"please cite: {model.citation}")
    output.echo("next: `marcod model train-synthetic FOLDER` trains the model that comes with marcod from it")


def _first_copyright(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.startswith("Copyright")), "no copyright line")


@dataclass(frozen=True)
class _Done:
    """A published model on this host, the champion before and now, and whether scores of the former one stay.

    ``coming`` says how far a promotion is that could not be done at once.
    """

    known: ModelInfo
    model: Published
    former: Version
    champion: Version
    former_has_scores: bool
    coming: Promotion | None = None

    @property
    def promoted(self) -> bool:
        return self.champion != self.former


def _copy_here(model: Published, known: Sequence[ModelInfo]) -> ModelInfo | None:
    """Return the oldest version that is this published model and can serve; one of another origin is none."""
    copies = [k for k in known if k.problem is None and k.record is not None and published.is_copy(k.record, model)]
    whole = (k for k in sorted(copies, key=lambda k: registry.parse(k.name)) if _is_whole(k))
    return next(whole, None)


def _is_whole(known: ModelInfo) -> bool:
    try:
        return known.folder is not None and bundle.verify(known.folder) == known.record
    except BundleError:
        return False


def _imported(settings: Settings, model: Published, given: Path | None, known: Sequence[ModelInfo]) -> "ImportedModel":
    options.check_tree(settings.models.folder)
    use_the_cpu_alone()
    with bars.stages() as report:
        return published.import_published(
            model,
            settings.models.folder,
            given=given,
            taken=[registry.parse(k.name) for k in known],
            progress=report,
        )


def _promoted(ready: App, model: Published, imported: "ImportedModel | None", *, promote: bool) -> _Done:
    """Make the model champion where the champion is the very bundle that came with the program."""
    known = ready.registry.known()
    here = _copy_here(model, known)
    if here is None:
        raise BundleError(f"{model.name} was removed meanwhile; run `marcod model fetch {model.name}` again")
    former = ready.db.read(versions.champion)
    scored = any(k.registered is not None and k.registered.has_scores for k in known if k.name == str(former))
    if not (promote and _is_shipped(former)):
        return _Done(here, model, former, former, scored)
    now = ready.db.now()
    version = ready.registry.resolve_registered(here.name, now)
    left = ready.registry.promote(version, actor=options.actor(), now=now, instead_of=str(former))
    return _Done(here, model, former, version if left is None else former, scored, left)


def _is_shipped(version: Version) -> bool:
    return version.digest == bundle.read(registry.shipped_folder().joinpath(*registry.SHIPPED)).digest


def _print(done: _Done, imported: "ImportedModel | None", json_output: bool) -> None:
    if json_output:
        output.print_json(_facts(done, imported))
        return
    if imported is None:
        output.echo(f"{done.known.name} is here already, in {done.known.folder}")
    else:
        parity = imported.report["parity"]
        output.echo(f"wrote {imported.path}")
        output.echo(
            f"it scores as the original does: largest difference {parity['largest_difference']:.2g} over "
            f"{parity['images']} rendered drops, allowed is {parity['tolerance']:g}"
        )
    output.echo(f"licence: {done.model.licence}")
    output.echo(f"please cite: {done.model.citation}")
    for line in _outcome(done):
        output.echo(line)


def _facts(done: _Done, imported: "ImportedModel | None") -> dict[str, Any]:
    record = done.known.record
    assert record is not None
    return {
        "model": done.known.name,
        "folder": done.known.folder,
        "digest": record.digest,
        "fetched": imported is not None,
        "promoted": done.promoted,
        "champion": str(done.champion),
        "former_champion": str(done.former),
        "licence": record.licence,
        "citation": record.citation,
        "origin": record.origin and record.origin.model_dump(),
        "trained_on": record.trained_on,
        "report": registry.metrics(done.known),
        "outcome": list(_outcome(done)),
    }


def _outcome(done: _Done) -> Iterator[str]:
    name = done.known.name
    if done.promoted:
        yield f"{name} is champion, instead of {done.former}"
        if done.former_has_scores:
            yield f"next: `marcod rescore --all` scores what {done.former} scored before"
        yield from _committee(done.known)
        return
    if done.coming is not None:
        yield f"{done.coming.sentence}; {done.champion} answers until then"
        yield f"`marcod model promote {name}` goes on with it, or a running `marcod run` does"
        return
    if str(done.champion) == name:
        yield f"{name} is champion"
        yield from _committee(done.known)
        return
    learned = "; it learned from this lab's labels" if TrainedOn.LAB in done.champion.trained_on else ""
    yield f"{done.champion} stays champion{learned}"
    yield f"next: `marcod model challenge {name}` lets it score new images next to the champion, to compare"
    if not learned:
        yield f"or: `marcod model promote {name}` makes it champion"


def _committee(known: ModelInfo) -> Iterator[str]:
    """Yield the command that lets a committee of this model and the shipped one challenge the champion."""
    other = None if known.record is None else registry.companion(known.record.family)
    if other is not None:
        command = f"marcod model combine {known.name} {other} --weights 1,2 --challenge"
        yield f"or: `{command}` lets a committee of both score new images next to the champion"


def _print_catalogue(json_output: bool) -> None:
    models = published.catalogue()
    if json_output:
        output.print_json([model.model_dump(mode="json") for model in models.values()])
        return
    for model in models.values():
        output.echo(f"{model.name}: {model.title}")
        for what, text in (
            ("kind", model.kind),
            ("distribution", f"{model.distribution} {model.version}"),
            ("file", f"{model.file}, {model.size:,} bytes"),
            ("SHA-256", model.sha256),
            *([("classes", ", ".join(model.classes))] if model.classes else []),
            ("trained on", model.training_data),
            ("licence", model.licence),
            ("citation", model.citation),
        ):
            output.echo(f"  {what}: {text}")
