"""`marcod drift`: whether the imagers' images are as they were."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from marcod import app, text
from marcod.cli.common import listings, options, output
from marcod.cli.common.configured import pass_settings
from marcod.drift import monitor as drifts
from marcod.drift.comparison import DriftFinding
from marcod.errors import NotFoundError
from marcod.settings import Settings


@click.command()
@click.option("--source", metavar="NAME", help="Only this imager")
@click.option("--days", type=click.IntRange(0, 90), default=0, help="Also list this many last days")
@click.option("--clear", "cleared", metavar="NAME", help="Close this imager's alarms; today's images count no more")
@click.option("--new-reference", is_flag=True, help="With --clear: what comes from tomorrow on is the new normal")
@options.as_json
@pass_settings
def drift(
    settings: Settings, source: str | None, days: int, cleared: str | None, new_reference: bool, json_output: bool
) -> None:
    """Compare what each imager delivers with what it used to deliver.

    Brightness, contrast and focus of the images, empty and unreadable ones, and what the champion says of them, for
    plates of the same age. The exit code is 3 while an alarm is open.
    """
    if new_reference and cleared is None:
        raise click.UsageError("--new-reference goes with --clear NAME")
    now = datetime.now(UTC)
    if cleared is not None:
        with app.open_app(settings) as ready:
            # What was shown may not be recorded yet, where no process keeps the schedule.
            drifts.run(ready.db, settings.drift, now, ready.registry.champion_view())
            count = drifts.clear(ready.db, cleared, new_reference=new_reference, actor=options.actor(), now=now)
        output.echo(f"{text.count(count, 'alarm')} of {text.printable(cleared)} cleared", err=json_output)
    with app.reading(settings) as ready:
        report = drifts.look(ready.db, settings.drift, now, ready.registry.champion_view())
        chosen = [imager for imager in report.imagers if source in (None, imager.source)]
        if source is not None and not chosen:
            offered = text.offer(source, (imager.source for imager in report.imagers), "sources with new images")
            raise NotFoundError(f"{report.model} has scored nothing new of a source {source!r} yet; {offered}")
        past = {i.source: drifts.history(ready.db, i.source, days, now) for i in chosen} if days else {}
    if json_output:
        output.print_json({"model": report.model, "imagers": [_record(imager, past) for imager in chosen]})
    else:
        _print(chosen, past, report.model, enabled=settings.drift.enabled)
    output.end(attention=any(imager.alarms for imager in chosen))


def _record(imager: drifts.ImagerDrift, past: dict[str, list[drifts.DayLine]]) -> dict[str, Any]:
    days = {"days": past.get(imager.source, [])} if past else {}
    return asdict(imager) | days


def _print(
    chosen: list[drifts.ImagerDrift], past: dict[str, list[drifts.DayLine]], model: str, *, enabled: bool
) -> None:
    if not chosen:
        output.echo(
            f"{model} has scored nothing new yet: no image that arrived soon after it was photographed, since this "
            "model became champion",
        )
    for imager in chosen:
        name = text.printable(imager.source)
        output.echo(f"{name}, {imager.modality}, {imager.model}: {imager.state}, {imager.note}")
        for alarm in imager.alarms:
            output.echo(f"  {text.printable(alarm.detail)}, since {alarm.day}")
        if imager.findings:
            listings.show("", _COLUMNS, [_row(f) for f in imager.findings], spare=(("days", "images"), ("p",)))
        if imager.source in past:
            listings.show("", _DAY_COLUMNS, [_day(line) for line in past[imager.source]], prose=True)
    if not enabled:
        output.echo("the schedule does not look at this, because drift.enabled is false")


_COLUMNS = ("signal", "now", "was", "p", "shift", "alarm from", "plates", "images", "days", "")


def _row(finding: DriftFinding) -> tuple[object, ...]:
    name = f"{finding.signal}: {finding.part}" if finding.part else finding.signal
    numbers = (f"{finding.value:.3f}", f"{finding.reference:.3f}", f"{finding.p_value:.1e}")
    shift = (f"{finding.shift:.3f}", f"{finding.least:.2f}")
    return (name, *numbers, *shift, finding.plates, finding.images, finding.days, "ALARM" if finding.alarm else "")


_DAY_COLUMNS = ("day", "images", "unreadable", "plates", "brightness", "contrast", "focus", "confidence", "classes")


def _day(line: drifts.DayLine) -> tuple[object, ...]:
    classes = ", ".join(f"{count} {name}" for name, count in line.classes.items())
    means = (line.brightness, line.contrast, line.focus, line.confidence)
    return (line.day, line.images, line.failures, line.plates, *means, classes)
