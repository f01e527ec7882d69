"""Every definition by brute force or known values, with ties, single classes and empty sets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marcod.evaluate import metrics
from marcod.model import probabilities

PAIRS = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=2, max_size=40)
BOTH = PAIRS.filter(lambda pairs: len({p for _, p in pairs}) == 2)


def arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in pairs], np.float32), np.array([p for _, p in pairs])


def scored(count: int = 500, seed: int = 1, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are often right, and the truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return probabilities.softmax(rng.normal(0, 1, (count, classes)) + 1.5 * np.eye(classes)[labels]), labels


def at_most(k: int, n: int, p: float) -> float:
    """The chance of ``k`` or fewer successes in ``n`` trials, by the definition."""
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    )
    return math.fsum(map(math.exp, logs))


@settings(max_examples=40, deadline=None)
@given(BOTH)
def test_curves_count_what_scores_at_a_threshold_or_above(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    curve = metrics.curve(scores, positive)
    assert curve.thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    above = [scores >= threshold for threshold in curve.thresholds]
    assert curve.true_positives.tolist() == [(hits & positive).sum() for hits in above]
    assert curve.false_positives.tolist() == [(hits & ~positive).sum() for hits in above]
    assert curve.recall == pytest.approx([hits[positive].mean() for hits in above])
    assert curve.false_positive_rate == pytest.approx([hits[~positive].mean() for hits in above])
    assert curve.precision == pytest.approx([positive[hits].mean() for hits in above])


@settings(deadline=None)
@given(BOTH)
def test_average_precision_is_the_mean_precision_at_the_positives(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    at_each = [positive[scores >= score].mean() for score in scores[positive]]
    assert metrics.average_precision(scores, positive) == pytest.approx(np.mean(at_each))


@settings(deadline=None)
@given(BOTH)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    wins = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert metrics.auc(scores, positive) == pytest.approx(np.mean(wins))


@settings(deadline=None)
@given(BOTH, st.sampled_from([0.5, 0.94, 0.987, 1.0]))
def test_the_operating_point_is_the_first_that_reaches_the_recall(
    pairs: list[tuple[float, bool]], wanted: float
) -> None:
    scores, positive = arrays(pairs)
    rate, threshold = metrics.false_positive_rate_at(wanted, metrics.curve(scores, positive)) or (None, None)
    enough = [t for t in set(scores.tolist()) if (scores[positive] >= t).mean() >= wanted - 1e-9]
    assert threshold == pytest.approx(max(enough))
    assert rate == pytest.approx((scores[~positive] >= max(enough)).mean())


def test_one_side_alone_has_no_area() -> None:
    scores, all_of_them = np.array([0.2, 0.7], np.float32), np.ones(2, bool)
    assert metrics.auc(scores, all_of_them) is metrics.auc(scores, ~all_of_them) is None
    assert metrics.average_precision(scores, all_of_them) == 1.0
    assert metrics.average_precision(scores, ~all_of_them) is None
    assert metrics.false_positive_rate_at(0.9, metrics.curve(scores, all_of_them)) is None
    assert metrics.false_positive_rate_at(0.9, metrics.curve(scores, ~all_of_them)) is None
    assert metrics.auc(scores[:0], all_of_them[:0]) is None


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_the_confusion_counts_rows_by_truth_and_columns_by_prediction(count: int) -> None:
    scores, labels = scored(count)
    predicted = scores.argmax(axis=1)
    expected = [[int(((labels == t) & (predicted == p)).sum()) for p in range(4)] for t in range(4)]
    assert metrics.confusion(labels, predicted, 4).tolist() == expected


@pytest.mark.parametrize("count", [1, 7, 500])
def test_losses_are_means_over_the_rows(count: int) -> None:
    scores, labels = scored(count)
    rows = list(zip(scores.tolist(), labels.tolist(), strict=True))
    expected = np.mean([-math.log(row[label]) for row, label in rows])
    assert metrics.log_loss(scores, labels) == pytest.approx(expected, rel=1e-5)
    squared = np.mean([sum((p - (i == label)) ** 2 for i, p in enumerate(row)) for row, label in rows])
    assert metrics.brier(scores, labels) == pytest.approx(squared, rel=1e-5)


def test_a_probability_of_nothing_has_a_finite_loss() -> None:
    scores = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert metrics.log_loss(scores, np.array([1, 0])) == pytest.approx((-math.log(1e-12) + math.log(2)) / 2)
    assert metrics.brier(scores, np.array([1, 0])) == pytest.approx((2 + 0.5) / 2)


def test_percentages_of_an_empty_row_are_unknown() -> None:
    percent = metrics.row_percent(np.array([[1, 3], [0, 0]]))
    assert percent[0].tolist() == [25.0, 75.0]
    assert np.isnan(percent[1]).all()


def test_calibration_error_of_a_known_case() -> None:
    scores = np.tile(np.array([[0.8, 0.2, 0.0, 0.0]], np.float32), (10, 1))
    labels = np.array([0] * 5 + [1] * 5, np.int32)
    assert metrics.calibration_error(scores, labels) == pytest.approx(0.3, abs=1e-6)
    assert metrics.calibration_error(scores, np.array([0] * 8 + [1] * 2, np.int32)) == pytest.approx(0.0, abs=1e-6)


def test_the_reliability_diagram_adds_up_to_the_error() -> None:
    scores, labels = scored()
    bins = metrics.reliability(scores, labels)
    assert sum(b.count for b in bins) == len(labels)
    gaps = sum(b.count * abs((b.sure or 0) - (b.right or 0)) for b in bins)
    assert metrics.calibration_error(scores, labels) == pytest.approx(gaps / len(labels))
    assert all((b.sure is None) == (b.count == 0) and b.low <= (b.sure or b.low) <= b.high for b in bins)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 59), (3, 59), (30, 59), (59, 59), (495, 500), (44_000, 47_062)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_at_the_ends_of_the_exact_interval_each_tail_is_half_of_the_rest(k: int, n: int, confidence: float) -> None:
    low, high = metrics.clopper_pearson(k, n, confidence) or (math.nan, math.nan)
    tail = (1 - confidence) / 2
    assert low == 0 if k == 0 else 1 - at_most(k - 1, n, low) == pytest.approx(tail, rel=1e-6)
    assert high == 1 if k == n else at_most(k, n, high) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0, 0.3085), (1, 10, 0.0025, 0.4450), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1)],
)
def test_exact_intervals_as_tables_print_them(k: int, n: int, low: float, high: float) -> None:
    assert metrics.clopper_pearson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 59), (30, 59), (495, 500)])
def test_chances_add_up(k: int, n: int, p: float) -> None:
    assert metrics.binomial_at_most(k, n, p) == pytest.approx(at_most(k, n, p), rel=1e-9)


def test_no_draws_no_interval() -> None:
    assert metrics.clopper_pearson(0, 0) is None
    assert metrics.binomial_at_most(-1, 5, 0.5) == 0.0
    assert metrics.binomial_at_most(5, 5, 0.5) == metrics.binomial_at_most(2, 5, 0.0) == 1.0
    assert metrics.binomial_at_most(2, 5, 1.0) == 0.0


@pytest.mark.parametrize("groups", [np.arange(40), np.arange(40) // 4])
def test_resampling_draws_whole_groups_and_follows_from_the_seed(groups: np.ndarray) -> None:
    weights = np.concatenate(list(metrics.resamples(groups, 300, seed=5)))
    assert weights.shape == (300, 40)
    assert (weights.sum(axis=1) == 40).all()
    for group in range(int(groups.max()) + 1):
        of_group = weights[:, groups == group]
        assert (of_group == of_group[:, :1]).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(40), abs=0.3)
    again = np.concatenate(list(metrics.resamples(groups, 300, seed=5)))
    assert np.array_equal(weights, again)


def test_large_sets_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [len(part) for part in metrics.resamples(np.arange(10), 100, seed=1)]
    monkeypatch.setattr(metrics, "RESAMPLED_AT_ONCE", 70)
    parts = [len(part) for part in metrics.resamples(np.arange(10), 100, seed=1)]
    assert (whole, sum(parts), max(parts)) == ([100], 100, 7)


@settings(deadline=None)
@given(BOTH)
def test_weights_count_like_copies(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = arrays(pairs)
    weights = np.random.default_rng(len(pairs)).integers(0, 3, (5, len(pairs)))
    areas = zip(*metrics.Ranks.of(scores, positive).areas(weights.astype(float)), strict=True)
    for row, (area, precise) in zip(weights, areas, strict=True):
        copies, marks = np.repeat(scores, row), np.repeat(positive, row)
        assert metrics.auc(copies, marks) == (None if np.isnan(area) else pytest.approx(area))
        assert metrics.average_precision(copies, marks) == (None if np.isnan(precise) else pytest.approx(precise))


def test_percentiles_leave_out_what_is_undefined() -> None:
    assert metrics.percentiles(np.append(np.linspace(0, 1, 101), math.nan)) == pytest.approx((0.025, 0.975))
    assert metrics.percentiles(np.array([math.nan])) is None


@given(st.integers(2, 3000), st.integers(2, 300))
def test_a_thinned_curve_keeps_its_ends(length: int, points: int) -> None:
    steps = np.random.default_rng(length).random(length).cumsum()
    chosen = metrics.Curve(steps, steps, steps).thinned(steps, points)
    assert len(chosen) <= max(points, 2)
    assert (chosen[0], chosen[-1]) == (0, length - 1)
    assert (np.diff(chosen) > 0).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_threshold_keeps_its_recall_and_is_the_highest(scores: list[float], recall: float) -> None:
    values = np.array(scores, np.float32)
    threshold = metrics.recall_threshold(values, recall)
    assert (values >= threshold).mean() >= recall - 1e-9
    assert (values >= threshold + 2e-4).mean() < recall or threshold + 2e-4 > 1


def test_no_crystals_no_threshold() -> None:
    assert metrics.recall_threshold(np.zeros(0, np.float32), 0.95) == 0.0


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("fold", [None, np.eye(6, 4) + np.eye(6, 4, -4)])
@pytest.mark.slow
def test_the_temperature_is_found_again(true_temperature: float, fold: np.ndarray | None) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (5_000, 4 if fold is None else 6)).astype(np.float32)
    shares = probabilities.softmax(logits)
    odds = (shares if fold is None else shares @ fold).cumsum(axis=1)
    labels = (rng.random((len(logits), 1)) > odds).sum(axis=1).clip(0, 3)
    found = metrics.fit_temperature(logits * true_temperature, labels, fold)
    assert found == pytest.approx(true_temperature, rel=0.1)


def test_what_a_bundle_says_of_a_set_of_four_classes() -> None:
    scores, labels = scored(400)
    said = metrics.measure(np.log(scores) * 2, labels, temperature=2.0, threshold=0.4)
    crystals, hits = labels == 1, scores[:, 1] >= 0.4
    precision, recall = crystals[hits].mean(), hits[crystals].mean()
    assert (said["crystal_precision"], said["crystal_recall"]) == pytest.approx((precision, recall), abs=5e-5)
    wins = [(a > b) + (a == b) / 2 for a in scores[crystals, 1] for b in scores[~crystals, 1]]
    assert said["crystal_auc"] == pytest.approx(np.mean(wins), abs=5e-5)
    assert said["accuracy"] == pytest.approx((scores.argmax(axis=1) == labels).mean(), abs=5e-5)
    assert said["log_loss"] != said["log_loss_without_temperature"]
    assert metrics.measure(np.zeros((3, 4)), np.zeros(3, int), 1.0, 0.5)["crystal_auc"] is None


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_weights_are_how_often_a_row_is_there(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count).filter(any)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits, labels = rng.normal(0, 2, (count, 4)), rng.integers(0, 4, count)
    repeated = np.repeat(np.arange(count), times)
    weighted = metrics.log_loss(probabilities.softmax(logits), labels, times / 7)
    assert weighted == pytest.approx(
        metrics.log_loss(probabilities.softmax(logits[repeated]), labels[repeated]), rel=1e-6
    )
    loss_at = [
        metrics.log_loss(probabilities.softmax(logits[repeated] / t), labels[repeated])
        for t in (
            metrics.fit_temperature(logits, labels, weights=times * 3.0),
            metrics.fit_temperature(logits[repeated], labels[repeated]),
        )
    ]
    assert loss_at[0] == pytest.approx(loss_at[1], rel=1e-6)
