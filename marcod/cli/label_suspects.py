"""`marcod label suspects`: labels worth a second look."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from marcod import app, text
from marcod.cli.common import bars, listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.domain import Modality
from marcod.errors import MarcodError
from marcod.model import bundle
from marcod.settings import Settings
from marcod.training import snapshot

if TYPE_CHECKING:
    from marcod.evaluate.label_issues import LabelIssues
    from marcod.training.out_of_fold import SnapshotIssues


@click.command()
@click.option("--source", "sources", multiple=True, help="Only labels of this source; may be given again")
@click.option("--person", help="Only drops that this person labelled")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many")
@options.as_json
@pass_settings
def suspects(settings: Settings, sources: tuple[str, ...], person: str | None, limit: int, json_output: bool) -> None:
    """List labels that look wrong, the most doubtful first, and how often each person's labels are doubted.

    Every label is compared with the prediction of a last layer trained on the labels of other plates. About half of
    such doubts are right, so a person looks again; nothing is changed.
    """
    with app.reading(settings) as ready:
        champion = ready.registry.find("champion")
        path = ready.registry.path(champion.name, champion.version)
        roots = options.source_roots(settings, ready)
        taken = snapshot.take(
            ready.db, modality=Modality(champion.modality), roots=roots, now=datetime.now(UTC), sources=sources or None
        )
        if not taken.items:
            raise MarcodError("there is no labelled image to look at; `marcod label import` imports labels")

        from marcod.training import committees, out_of_fold  # they load TensorFlow

        network = committees.learner(bundle.read(path), ready.registry, settings.train)
        folder = ready.registry.path(network.name, str(network.version))
        with bars.progress("looking at labelled images", len(taken.items)) as done:
            found = out_of_fold.find(
                taken, folder, roots, threads=settings.score.threads, seed=settings.train.seed, done=done
            )
    rows = [row for row in _rows(found) if person is None or person in row["persons"]]
    if json_output:
        output.print_json({"labels": len(found.items), "suspects": rows[:limit], **_summary(found.issues)})
        return
    _print(found, rows, limit)


def _rows(found: "SnapshotIssues") -> list[dict[str, Any]]:
    rows = []
    for suspect in found.issues.suspects:
        item = found.items[suspect.index]
        rows.append(
            {
                "source": item.source,
                "plate": item.plate_key,
                "well": item.well,
                "drop": item.drop_number,
                "path": item.path,
                "given": suspect.given,
                "likely": suspect.likely,
                "margin": round(suspect.margin, 4),
                "probabilities": [round(p, 4) for p in suspect.probabilities],
                "persons": item.persons,
            }
        )
    return rows


def _summary(issues: "LabelIssues") -> dict[str, Any]:
    people = [
        {
            "person": p.person,
            "labels": p.labels,
            "judged": p.judged,
            "doubted_share": p.share,
            "interval": p.interval,
            "swaps": list(p.confused) if p.swapped and p.confused else None,
        }
        for p in issues.by_person
    ]
    return {"judged": issues.judged, "noise": round(issues.noise, 4), "people": people}


def _print(found: "SnapshotIssues", rows: list[dict[str, Any]], limit: int) -> None:
    cells = [
        (
            f"{row['margin']:+.2f}",
            row["plate"],
            f"{row['well']}.{row['drop']}",
            row["given"],
            row["likely"],
            ", ".join(row["persons"]),
            row["source"],
        )
        for row in rows[:limit]
    ]
    title = f"{len(rows)} of {text.count(len(found.items), 'label')} look wrong; about half of such doubts are right"
    listings.show(
        title,
        ("margin", "plate", "drop", "label", "likely", "labelled by", "source"),
        cells,
        spare=(("source",), ("margin",)),
    )
    people = [
        (p.person, p.labels, p.judged, "" if p.share is None else f"{100 * p.share:.0f} %", _swap(p))
        for p in found.issues.by_person
    ]
    listings.show("", ("person", "labels", "judged", "doubted", ""), people)
    if found.unreadable:
        first = text.printable(found.unreadable[0])
        output.echo(f"{text.count(len(found.unreadable), 'image')} could not be read, the first: {first}", err=True)


def _swap(person: Any) -> str:
    if person.confused is None or not person.swapped:
        return ""
    return "seems to swap {} and {}".format(*person.confused)
