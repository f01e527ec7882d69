"""Evaluation as tables of text, the same ones for the terminal and the page.

Shares are in percent, intervals in brackets, the paper's value next to them, and a dash stands for an undefined number.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from marcod.evaluate.results import (
    FEWEST,
    PAPER_ACCURACY,
    PAPER_DETECTION,
    PAPER_PERCENT,
    Confusion,
    Detection,
    Estimate,
    Evaluation,
    ImagerResults,
    Ranking,
)
from marcod.text import count

DASH: Final = "-"


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Table to show: the first column names the row, the others are numbers; ``note`` explains it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def all_tables(of: Evaluation) -> list[ResultTable]:
    """Return every table in reading order."""
    shown = [_headline(of), _confusion(of.confusion, of.data.counted), _counts(of.confusion)]
    if any(count > 1 for count in of.confusion.sources):
        shown.append(_deviation(of.confusion))
    shown += [_operating((of.crystals, of.precipitate)), _detection(of), _imagers(of.imagers), _reliability(of)]
    if of.own is not None:
        shown.append(_own(of.own))
    return shown


def facts(of: Evaluation) -> list[tuple[str, str]]:
    """List names and texts of what was judged on what."""
    model, data = of.model, of.data
    groups = count(data.groups, "group")
    counted = f"{data.counted} counted, of {count(data.drops, 'drop')} in {groups} (plates where known)"
    return [
        ("Model", f"{model.name}, digest {model.digest[:12]}"),
        ("Temperature", f"{model.temperature:g}"),
        ("Crystal threshold", f"{model.threshold:g} ({model.threshold_measured_on})"),
        ("Labelled set", data.description),
        ("Images", f"{data.images} scored, {counted}"),
        ("Sources", ", ".join(data.sources) or "not named"),
        ("Evaluated", f"{of.evaluated_at:%Y-%m-%d %H:%M} UTC, seed {of.seed}"),
    ]


def warnings(of: Evaluation) -> list[str]:
    """List the warnings that a reader needs before trusting a number."""
    sentences = []
    if of.model.synthetic:
        notice = " ".join(of.model.notice.split()) or "It learned from rendered drops alone."
        sentences.append(f"Synthetic model. {notice}")
    if of.data.unreadable:
        images = count(len(of.data.unreadable), "image")
        sentences.append(_named(f"{images} could not be read and counted nowhere", of.data.unreadable))
    if of.data.missing:
        files = count(len(of.data.missing), "labelled file is", "labelled files are")
        sentences.append(_named(f"{files} not there and counted nowhere", of.data.missing))
    if of.data.groups < 10:
        groups = count(of.data.groups, "group")
        sentences.append(f"Only {groups} (plates): intervals over groups are too narrow to be trusted.")
    return sentences


def _named(sentence: str, names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return f"{sentence}: {', '.join(listed[:most])}{', ...' if len(listed) > most else ''}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def decimals(value: float | None, digits: int = 3) -> str:
    """Format a plain number."""
    return DASH if value is None else f"{value:.{digits}f}"


def _interval(estimate: Estimate, *, as_percent: bool) -> str:
    if estimate.low is None or estimate.high is None:
        return DASH
    if as_percent:
        return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def _with_interval(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _headline(of: Evaluation) -> ResultTable:
    right, counted = sum(row[i] for i, row in enumerate(of.confusion.counts)), of.data.counted
    rows = [
        ("accuracy", percent(of.accuracy.value), _interval(of.accuracy_over_groups, as_percent=True),
         f"{right} of {counted}", f"{PAPER_ACCURACY} %"),
    ]  # fmt: skip
    for ranking in (of.crystals, of.precipitate):
        name, counts = ranking.drop_class.value.lower(), f"{ranking.positives} of {counted}"
        numbers = (
            ("AUC", ranking.auc, decimals(ranking.paper_auc)),
            ("average precision", ranking.average_precision, ""),
        )
        for kind, found, paper in numbers:
            interval = _interval(found, as_percent=False)
            rows.append((f"{name} {kind}", decimals(found.value), interval, counts, paper))
    rows += [
        ("expected calibration error", decimals(of.calibration.error), "", "", ""),
        ("log loss", decimals(of.calibration.log_loss), "", "", ""),
        ("Brier score (0 to 2)", decimals(of.calibration.brier), "", "", ""),
    ]
    return ResultTable(
        "headline",
        "Overall",
        ("number", "value", "95 % interval", "counted", "paper"),
        tuple(rows),
        "Intervals: bootstrap over groups (plates, else drops), 1,000 resamples.",
    )


def _confusion(of: Confusion, counted: int) -> ResultTable:
    rows = [
        (name, *(_cell(*cell) for cell in zip(percents, papers, strict=True)), str(sum(counts)))
        for name, counts, percents, papers in zip(of.classes, of.counts, of.percent, PAPER_PERCENT, strict=True)
    ]
    return ResultTable(
        "confusion",
        "Confusion (the paper's Table 4)",
        ("true \\ predicted", *of.classes, "counted"),
        tuple(rows),
        f"Rows are the true class: each cell's share of the row, the paper's in brackets; {counted} counted in all.",
    )


def _cell(share: float | None, paper: float) -> str:
    return f"{DASH if share is None else f'{share:.1f} %'} [{paper:.1f}]"


def _counts(of: Confusion) -> ResultTable:
    rows = [(name, *(str(count) for count in counts)) for name, counts in zip(of.classes, of.counts, strict=True)]
    return ResultTable("counts", "Confusion, counts", ("true \\ predicted", *of.classes), tuple(rows))


def _deviation(of: Confusion) -> ResultTable:
    rows = [
        (name, *(DASH if cell is None else f"{cell:.1f}" for cell in row), str(sources))
        for name, row, sources in zip(of.classes, of.deviation, of.sources, strict=True)
    ]
    return ResultTable(
        "deviation",
        "Standard deviation across sources, in percent points (the paper's Table 5)",
        ("true \\ predicted", *of.classes, "sources"),
        tuple(rows),
        f"Sample standard deviation of each cell over the sources with at least {FEWEST} images of the row's class.",
    )


def _operating(rankings: Iterable[Ranking]) -> ResultTable:
    rows = [
        (
            ranking.drop_class.value,
            percent(at.recall),
            percent(at.false_positive_rate),
            decimals(at.threshold, 4),
            percent(at.paper),
        )
        for ranking in rankings
        for at in ranking.operating
    ]
    return ResultTable(
        "operating",
        "Operating points of the ROC curves (the paper's Fig. 3)",
        ("class", "recall reached", "false positive rate", "threshold", "paper's rate"),
        tuple(rows),
        "The lowest false positive rate at which the recall is reached on this set.",
    )


def _detection(of: Evaluation) -> ResultTable:
    paper = {name: percent(share) for name, share in PAPER_DETECTION.items()}
    judged = [_detection_column(detection) for detection in of.detection]
    rules = [d.rule if d.threshold is None else f"{d.rule} {d.threshold:g}" for d in of.detection]
    return ResultTable(
        "detection",
        "Crystals against everything else (the paper's Table 6)",
        ("found by", *rules, "paper"),
        tuple((name, *(column[name] for column in judged), paper.get(name, "")) for name in judged[0]),
        "In brackets exact (Clopper-Pearson) 95 % intervals, in percent; they take drops as independent.",
    )


def _detection_column(of: Detection) -> dict[str, str]:
    return {
        "crystals found": str(of.found),
        "crystals missed": str(of.missed),
        "false alarms": str(of.false_alarms),
        "precision": _with_interval(of.precision),
        "recall": _with_interval(of.recall),
        "accuracy": _with_interval(of.accuracy),
        "F1": decimals(of.f1),
    }


def _imagers(parts: Iterable[ImagerResults]) -> ResultTable:
    rows = [
        (
            part.name or "not named",
            str(part.counted),
            str(part.crystals),
            percent(part.accuracy.value),
            decimals(part.crystal_auc),
            decimals(part.precipitate_auc),
            percent(part.crystal_recall.value),
            percent(part.crystal_precision.value),
            decimals(part.calibration_error),
        )
        for part in parts
    ]
    return ResultTable(
        "imagers",
        "By imager",
        ("imager", "counted", "crystals", "accuracy", "cryst. AUC", "prec. AUC", "recall", "precision", "ECE"),
        tuple(rows),
        "Recall and precision of crystals at the version's threshold.",
    )


def _reliability(of: Evaluation) -> ResultTable:
    rows = [
        (f"{b.low:.2f} to {b.high:.2f}", str(b.count), percent(b.sure), percent(b.right))
        for b in of.calibration.bins
        if b.count
    ]
    return ResultTable(
        "reliability",
        "Reliability of the highest probability",
        ("probability", "counted", "mean probability", "share right"),
        tuple(rows),
        "Calibrated probabilities have the two last columns equal; empty bins are left out.",
    )


def _own(of: Confusion) -> ResultTable:
    rows = [
        (f"{i + 1} {name}", *(str(cell) for cell in counts), DASH if percents[i] is None else f"{percents[i]:.1f} %")
        for i, (name, counts, percents) in enumerate(zip(of.classes, of.counts, of.percent, strict=True))
    ]
    return ResultTable(
        "own",
        "Confusion in the model's own classes",
        ("true \\ predicted", *(str(i + 1) for i in range(len(of.classes))), "right"),
        tuple(rows),
        "Rows are the true class; a column is the class whose row has its number.",
    )
