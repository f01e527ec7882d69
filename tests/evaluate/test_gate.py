"""The gate on labs made of random numbers: better passes, worse or unproven does not, and every refusal says why."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_labs import CRYSTALS, Lab, image, lab, record

from marcod.errors import MarcodError
from marcod.evaluate import metrics, paired
from marcod.evaluate.gate import AVERAGE_PRECISION, LOG_LOSS, GateCheck, GateResult, Rules, judge, labels_trusted
from marcod.evaluate.predictions import Predictions

RULES = Rules(resamples=300)


def failed(verdict: GateResult) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def found(verdict: GateResult, name: str) -> GateCheck:
    return next(check for check in verdict.checks if check.name == name)


def test_a_better_model_passes_and_says_so_in_numbers() -> None:
    made = lab(1)
    verdict = judge(made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99), RULES)
    assert verdict.passed, verdict.reasons
    assert len(verdict.reasons) == len(verdict.checks) == 6
    numbers = verdict.numbers
    assert numbers["candidate"][AVERAGE_PRECISION] > numbers["champion"][AVERAGE_PRECISION]
    assert numbers["drops"] == 240
    assert numbers["plates"] == 12
    assert numbers["checks"] == [asdict(check) for check in verdict.checks]
    assert "12 plates; a promotion takes 15, 30 and 2" in verdict.reasons[0]


def test_the_same_model_is_not_better() -> None:
    made = lab(1)
    champion = made.judged(1, 2.0, 1)
    verdict = judge(champion, (record(2, champion[0].threshold.crystal), champion[1]), RULES)
    assert failed(verdict) == {"average precision of crystals"}
    assert "better in 0.0 % of the resampled test sides, and 95.0 % are needed" in verdict.reasons[0]


def test_lost_crystals_are_not_made_up_for_by_a_better_ranking() -> None:
    made = lab(1)
    verdict = judge(made.judged(1, 1.5, 1, recall=0.98), made.judged(2, 3.5, 2, recall=0.7), RULES)
    assert failed(verdict) >= {"crystal recall"}
    assert found(verdict, "average precision of crystals").passed
    assert "2.0 points may be" in found(verdict, "crystal recall").sentence


def test_a_threshold_of_nearly_nothing_is_refused() -> None:
    made = lab(1)
    champion = made.judged(1, 1.5, 1, recall=0.8)
    verdict = judge(champion, made.by(2, made.logits(3.5, 2), 0.0), RULES)
    assert "false alarms" in failed(verdict)
    assert "100.0 % of the drops without crystals are called hits" in found(verdict, "false alarms").sentence


def test_more_false_alarms_than_the_crystals_are_worth_are_refused() -> None:
    made = lab(1)
    champion = made.judged(1, 3.0, 1, recall=0.9)
    verdict = judge(champion, made.by(2, made.logits(3.2, 2), 0.02), RULES)
    assert "crystal precision" in failed(verdict)


def test_a_model_that_flags_nothing_is_refused() -> None:
    made = lab(1)
    verdict = judge(made.judged(1, 1.5, 1), made.by(2, made.logits(3.5, 2), 1.0), RULES)
    assert {"crystal recall", "crystal precision"} <= failed(verdict)
    assert "calls no drop a hit" in found(verdict, "crystal precision").sentence


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (replace(RULES, min_crystals=100), "drops with crystals, 240 drops and 12 plates; a promotion takes 100, 30"),
        (replace(RULES, min_drops=1000), "240 drops and 12 plates; a promotion takes 15, 1000 and 2"),
        (replace(RULES, min_plates=13), "12 plates; a promotion takes 15, 30 and 13"),
    ],
)
def test_too_few_promote_nothing_however_good_it_looks(rules: Rules, sentence: str) -> None:
    made = lab(1)
    verdict = judge(made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99), rules)
    assert failed(verdict) == {"enough drops"}
    assert sentence in verdict.reasons[0]


def test_one_drop_imaged_many_times_is_one_drop() -> None:
    made = lab(1, plates=2, of_plate=20)
    again = tuple(replace(p, drop="d0", group="p0") for p in made.images)
    sides = [(r, replace(p, images=again)) for r, p in (made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99))]
    verdict = judge(sides[0], sides[1], RULES)
    assert (verdict.numbers["drops"], verdict.numbers["crystals"], verdict.numbers["plates"]) == (1, 1, 1)
    assert verdict.numbers["units"] == 40
    assert "enough drops" in failed(verdict)


def test_a_drop_weighs_the_same_however_often_it_was_imaged() -> None:
    labels = [CRYSTALS] * 10 + [CRYSTALS]
    images = tuple(image(i, label, "p", drop="often" if i < 10 else "once") for i, label in enumerate(labels))
    logits = np.full((11, 4), 0.0)
    logits[:10, CRYSTALS] = 9.0
    side = (record(1, 0.9), Predictions(images, logits, ()))
    pair = paired.pair(side, side)
    assert paired.recall(pair, pair.champion, pair.weights[np.newaxis])[0] == pytest.approx(0.5)


@pytest.mark.parametrize("what", ["no crystals", "only crystals", "no drops", "only base"])
def test_what_the_data_cannot_answer_is_refused(what: str) -> None:
    labels = {"no crystals": [0] * 40, "only crystals": [CRYSTALS] * 40, "no drops": [], "only base": [0, 1] * 20}[what]
    source = paired.BASE if what == "only base" else "rock"
    images = tuple(image(i, label, f"p{i % 4}", source) for i, label in enumerate(labels))
    made = Lab(images, np.array(labels, np.intp), np.zeros((len(labels), 4)))
    verdict = judge(made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99), RULES)
    assert not verdict.passed
    words = " ".join(verdict.reasons)
    expected = {
        "no crystals": "no drop with crystals is on the test side",
        "only crystals": "no drop without crystals is on the test side",
    }.get(what, "no labelled drop of the lab's own is on the test side")
    assert expected in words


@pytest.mark.parametrize("sources", [("rock", "mini"), ("rock", paired.BASE)])
def test_a_loss_on_one_imager_is_refused_by_name(sources: tuple[str, str]) -> None:
    made = lab(2, sources=sources)
    other = np.array([p.source != "rock" for p in made.images])
    champion = made.by(1, made.logits(np.where(other, 3.5, 1.0), 1), 0.2)
    candidate = made.by(2, made.logits(np.where(other, 1.2, 3.5), 2), 0.2)
    verdict = judge(champion, candidate, RULES)
    name = "imager base" if paired.BASE in sources else "imager mini rigaku"
    assert name in failed(verdict)
    assert found(verdict, "imager rock rigaku").passed
    assert "5.0 points may be lost, and chance does not explain so many" in found(verdict, name).sentence


def test_the_base_set_is_not_the_labs_own() -> None:
    made = lab(2, sources=("rock", paired.BASE))
    other = np.array([p.source != "rock" for p in made.images])
    champion = made.judged(1, 2.0, 1)
    candidate = made.judged(2, np.where(other, 6.0, 2.0), 1)
    verdict = judge(champion, (record(2, champion[0].threshold.crystal), candidate[1]), RULES)
    assert failed(verdict) == {"average precision of crystals"}
    assert (verdict.numbers["drops"], verdict.numbers["base_drops"]) == (120, 120)


def test_a_few_drops_of_a_new_imager_block_nothing_by_chance() -> None:
    made = lab(1)
    few = tuple(image(i, 0, "new", "new") for i in range(1000, 1004))
    wrong, right = (np.tile(np.eye(4)[c] * 9.0, (4, 1)) for c in (3, 0))
    sides = []
    for version, skill, rows in ((1, 1.5, right), (2, 3.5, np.concatenate([wrong[:2], right[:2]]))):
        made_of, said = made.judged(version, skill, version, recall=0.95 if version == 1 else 0.99)
        sides.append((made_of, Predictions((*said.images, *few), np.concatenate([said.logits, rows]), ())))
    verdict = judge(sides[0], sides[1], RULES)
    check = found(verdict, "imager new rigaku")
    assert (check.numbers["accuracy_lost"], check.passed) == (2, True)
    assert verdict.passed


def test_better_calibration_alone_can_be_the_aim() -> None:
    made = lab(3)
    logits = made.logits(3.0, 1)
    champion = made.by(1, 12 * logits, 0.2)
    candidate = made.by(2, 12 * logits, 0.2, temperature=4.0)
    assert "log loss" not in failed(judge(champion, candidate, replace(RULES, primary=LOG_LOSS)))
    assert "log loss" in failed(judge(candidate, champion, replace(RULES, primary=LOG_LOSS)))


def test_where_both_rank_every_crystal_first_the_log_loss_decides() -> None:
    made = lab(3)
    logits = made.logits(3.0, 1)
    logits[made.labels == CRYSTALS, CRYSTALS] += 100
    unsure, sure = made.by(1, logits, 0.2, temperature=40.0), made.by(2, logits, 0.2)
    verdict = judge(unsure, sure, RULES)
    assert found(verdict, "log loss").passed
    assert "average precision of crystals" not in {check.name for check in verdict.checks}
    assert "log loss" in failed(judge(sure, unsure, RULES))
    worse = made.by(3, made.logits(2.0, 2), 0.2)
    assert "average precision of crystals" in failed(judge(unsure, worse, RULES))


def test_an_unknown_aim_is_an_error() -> None:
    made = lab(3)
    with pytest.raises(ValueError, match="unknown primary measure 'luck'"):
        judge(made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99), replace(RULES, primary="luck"))


def test_a_check_of_the_callers_own_counts() -> None:
    made = lab(1)
    golden = GateCheck("golden", False, "golden image 3 is 0.2 off", {"difference": 0.2})
    verdict = judge(made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99), RULES, extra=[golden])
    assert verdict.reasons == ("golden image 3 is 0.2 off",)
    assert not verdict.passed


def test_labels_that_look_wrong_stop_a_promotion() -> None:
    assert labels_trusted(49, 200, RULES).passed
    check = labels_trusted(50, 200, RULES)
    assert not check.passed
    assert "50 of 200 labels look wrong (25.0 %)" in check.sentence
    assert not labels_trusted(0, 0, RULES).passed


def test_both_must_be_asked_about_the_same_images() -> None:
    made = lab(1, plates=3)
    champion, candidate = made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99)
    fewer = (candidate[0], candidate[1].only(range(59)))
    with pytest.raises(MarcodError, match=r"the candidate was not asked about /rock/59\.jpg"):
        judge(champion, fewer, RULES)
    with pytest.raises(MarcodError, match=r"the champion was not asked about /rock/59\.jpg"):
        judge(fewer, champion, RULES)
    relabelled = (replace(made.images[0], group="elsewhere"), *made.images[1:])
    with pytest.raises(MarcodError, match=r"but /rock/0\.jpg has group 'p0' for one and 'elsewhere' for the other"):
        judge(champion, (candidate[0], replace(candidate[1], images=relabelled)), RULES)


def test_a_image_that_one_cannot_read_counts_for_neither() -> None:
    made = lab(1, plates=3)
    champion, candidate = made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99)
    fewer = replace(candidate[1].only(range(59)), unreadable=("/rock/59.jpg: truncated",))
    verdict = judge(champion, (candidate[0], fewer), RULES)
    assert verdict.numbers["drops"] == 59
    assert verdict.numbers["left_out"] == ["/rock/59.jpg: truncated"]
    assert "could not be read and count for neither: 1" in verdict.checks[0].sentence


def test_one_unit_cannot_carry_two_labels() -> None:
    images = (image(1, 0, "p", unit="u"), image(2, CRYSTALS, "p", unit="u"))
    side = (record(1, 0.5), Predictions(images, np.zeros((2, 4)), ()))
    with pytest.raises(MarcodError, match="the images of 'u' count as one but carry two labels"):
        judge(side, side, RULES)


def test_the_same_seed_gives_the_same_verdict() -> None:
    made = lab(4, plates=4)
    sides = made.judged(1, 2.0, 1), made.judged(2, 2.6, 2)
    assert judge(*sides, RULES) == judge(*sides, RULES)
    other = judge(*sides, replace(RULES, seed=2))
    assert other.numbers["candidate"] == judge(*sides, RULES).numbers["candidate"]


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 3]), st.integers(0, 2), st.booleans()), max_size=12),
    st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_nothing_small_crashes_or_passes(drops: list[tuple[int, int, bool]], seed: int) -> None:
    images = tuple(
        image(i, label, f"p{plate}", paired.BASE if base else "rock") for i, (label, plate, base) in enumerate(drops)
    )
    rng = np.random.default_rng(seed)
    sides = [(record(v, 0.3), Predictions(images, rng.normal(0, 2, (len(drops), 4)), ())) for v in (1, 2)]
    verdict = judge(sides[0], sides[1], Rules(resamples=20))
    assert not verdict.passed
    assert all(check.sentence for check in verdict.checks)


@pytest.mark.parametrize("plates", [2, 10])
@pytest.mark.slow
def test_in_simulated_labs_worse_is_not_promoted_and_clearly_better_is(plates: int) -> None:
    rules = Rules(resamples=60)
    passed = {"worse": 0, "equal": 0, "better": 0}
    mistaken, labs = 0, 40
    for seed in range(labs):
        made = lab(1000 + seed, plates, 240 // plates)
        champion = made.judged(1, 2.0, 2 * seed)
        for name, skill, recall in (("worse", 1.7, 0.98), ("equal", 2.0, 0.97), ("better", 2.8, 0.99)):
            passed[name] += judge(champion, made.judged(2, skill, 2 * seed + 1, recall), rules).passed
        poor = made.mislabelled(0.3, seed)
        mistaken += judge(poor.judged(1, 2.0, 2 * seed), poor.judged(2, 1.5, 2 * seed + 1, 0.98), rules).passed
    assert passed["worse"] < 0.05 * labs
    assert passed["equal"] <= 0.12 * labs
    assert passed["better"] > 0.8 * labs
    assert mistaken < 0.05 * labs


def test_every_look_may_err_less_than_the_one_before() -> None:
    allowed = [1 - Rules(looks=before).needed for before in range(31)]
    assert [allowed[0], allowed[1], allowed[8], allowed[30]] == pytest.approx([0.05, 0.1 / 3, 0.01, 0.1 / 32])
    assert sorted(allowed, reverse=True) == allowed
    assert allowed[0] > 1 - Rules(looks=0.25).needed > allowed[1], "a look at a quarter of the drops"
    assert 0 < 1 - Rules(looks=3000).needed < 1e-4, "no test side is ever used up"


@pytest.mark.slow
def test_a_worse_candidate_does_not_become_champion_by_being_made_again_and_again() -> None:
    by_chance = by_rule = better = 0
    for seed in (4, 6, 9):
        made = lab(1000 + seed)
        champion = made.judged(1, 2.0, 1000 * seed + 1)
        for look in range(30):
            verdict = judge(champion, made.judged(2, 1.9, 1000 * seed + 10 + look), Rules(resamples=80, looks=look))
            by_rule += verdict.passed
            by_chance += found(verdict, "average precision of crystals").numbers["better_in"] >= 0.9
        better += judge(champion, made.judged(2, 4.0, seed, recall=0.99), Rules(resamples=80, looks=1)).passed
    assert (by_rule, better) == (0, 3)
    assert by_chance >= 3


def test_every_further_look_asks_more_and_says_why() -> None:
    made = lab(7, plates=12)
    sides = made.judged(1, 1.5, 1), made.judged(2, 3.5, 2, recall=0.99)
    first, some, tenth = (judge(*sides, replace(RULES, looks=before)) for before in (0, 0.7, 9))
    checks = [found(verdict, "average precision of crystals") for verdict in (first, some, tenth)]
    assert all(check.passed for check in checks)
    assert checks[0].sentence.endswith("95.0 % are needed")
    assert checks[1].sentence.endswith("96.2 % are needed, because of 0.7 looks at this test side before")
    assert checks[2].sentence.endswith("99.09 % are needed, because of 9 looks at this test side before")
    assert [check.numbers["looks"] for check in checks] == [0, 0.7, 9]


def test_a_candidate_that_only_many_looks_refuse_is_reported_that_new_drops_help() -> None:
    made = lab(7, plates=12)
    sides = made.judged(1, 2.0, 1), made.judged(2, 2.5, 2, recall=0.99)
    sure = found(judge(*sides, RULES), "average precision of crystals").numbers["better_in"]
    assert isinstance(sure, float)
    assert 0.95 < sure < 0.9999
    often = found(judge(*sides, replace(RULES, looks=30_000)), "average precision of crystals")
    assert not often.passed
    assert often.sentence.endswith("; at a first look that would do: label drops on more plates")


def test_half_of_the_false_alarms_that_are_saved_is_spent_on_finding_more() -> None:
    is_crystal = np.arange(300) < 100
    scores = np.where(is_crystal, np.linspace(0.0, 0.99, 300) * 3, np.linspace(0.0, 0.8, 300))
    wanted = metrics.recall_threshold(scores[is_crystal], 0.5)
    flagged = (scores[~is_crystal] >= wanted).sum()
    threshold = paired.crystal_threshold(scores, is_crystal, 0.5, (flagged + 20) / 200)
    assert (scores[~is_crystal] >= threshold).sum() == flagged + 10
    for few in (0.0, flagged / 200):
        assert paired.crystal_threshold(scores, is_crystal, 0.5, few) == wanted
    assert paired.crystal_threshold(scores, np.zeros(300, np.bool_), 0.5, 0.1) == 0.0
    assert paired.crystal_threshold(scores[:100], is_crystal[:100], 0.5, 0.1) == wanted


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.floats(0, 1))
def test_a_lower_threshold_flags_no_more_than_the_champion(
    drops: list[tuple[float, bool]], false_alarms: float
) -> None:
    scores, crystal = np.array([s for s, _ in drops]), np.array([c for _, c in drops], np.bool_)
    threshold = paired.crystal_threshold(scores, crystal, 0.9, false_alarms)
    wanted = metrics.recall_threshold(scores[crystal], 0.9)
    assert threshold <= wanted
    if threshold < wanted:
        assert (scores[~crystal] >= threshold).sum() <= false_alarms * (~crystal).sum() + 1e-6
