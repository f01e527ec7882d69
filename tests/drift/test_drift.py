"""Drift in simulated labs: quiet weeks stay quiet, and what is broken is told by its own signal. All synthetic."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from factories import utc
from hypothesis import given, settings
from hypothesis import strategies as st

from marcod import images
from marcod.domain import CLASSES
from marcod.drift import comparison, statistics
from marcod.drift.days import Observation
from marcod.drift.statistics import Ages

INSPECTED = (0, 1, 3, 7, 14)
SPREAD = {"brightness": (0.40, 0.02, 0.05), "contrast": (0.18, 0.015, 0.04), "focus": (-2.1, 0.1, 0.3)}
"""Usual value, and its standard deviation from plate to plate and from drop to drop."""

Fault = Callable[[Observation, random.Random], Observation]


@dataclass(frozen=True)
class Lab:
    """An imager that starts ``plates`` plates a day and looks at each on the days of INSPECTED.

    ``crystals_at_14`` is the mean share of crystals on the 14th day; the higher ``alike``, the less it differs.
    """

    plates: int = 2
    drops: int = 24
    crystals_at_14: float = 0.2
    alike: float = 1.0

    def days(self, first: int, count: int, rng: random.Random, fault: Fault | None = None) -> Ages:
        """What is seen on days ``first`` to ``first + count - 1``."""
        seen: Ages = {}
        for start in range(first - INSPECTED[-1], first + count):
            for number in range(self.plates):
                plate = Plate(start * self.plates + number, self, rng)
                for age in INSPECTED:
                    if first <= start + age < first + count:
                        for look in plate.looks(self, age, rng):
                            statistics.add_observation(seen, fault(look, rng) if fault else look)
        return seen


class Plate:
    """One plate's own light and contents, which all its drops share."""

    def __init__(self, plate_id: int, lab: Lab, rng: random.Random) -> None:
        self._id = plate_id
        self._means = [rng.gauss(mean, plate) for mean, plate, _ in SPREAD.values()]
        self._yield = rng.gammavariate(lab.alike, 1 / lab.alike)
        self._precipitate = rng.betavariate(2, 3)

    def looks(self, lab: Lab, age: int, rng: random.Random) -> list[Observation]:
        crystals = min(0.9, self._yield * lab.crystals_at_14 * age / 14)
        return [self._look(age, crystals, rng) for _ in range(lab.drops)]

    def _look(self, age: int, crystals: float, rng: random.Random) -> Observation:
        sure = 0.6 + 0.4 * rng.betavariate(4, 2)
        drawn = rng.random()
        label = 1 if drawn < crystals else 3 if rng.random() < self._precipitate else 0
        others = (1 - sure) / 3
        scores = tuple(sure if i == label else others for i in range(4))
        drops = [drop for *_, drop in SPREAD.values()]
        measures = [rng.gauss(mean, drop) for mean, drop in zip(self._means, drops, strict=True)]
        return Observation(1, self._id, utc(), age + 0.2, str(CLASSES[label]), scores, *measures)


def findings(reference: Ages, window: Ages, days: int = 7) -> dict[str, comparison.DriftFinding]:
    found = comparison.judge(reference, window, source="minstrel", days=days, tests=2, least_images=100, level=1e-4)
    return {finding.signal: finding for finding in found}


def alarms(reference: Ages, window: Ages) -> set[str]:
    return {name for name, finding in findings(reference, window).items() if finding.alarm}


def lamp(look: Observation, rng: random.Random) -> Observation:
    """15 % less light."""
    return replace(look, brightness=look.brightness * 0.85, contrast=look.contrast * 0.85)


def blur(look: Observation, rng: random.Random) -> Observation:
    """What a Gaussian blur of 3 pixels does to an image of 612 x 512."""
    return replace(look, focus=look.focus - 0.28)


def shutter(look: Observation, rng: random.Random) -> Observation:
    """No light at all."""
    return replace(look, brightness=0.0, contrast=0.0, focus=-6.0)


def damage(look: Observation, rng: random.Random) -> Observation:
    """One image in twenty cannot be read."""
    return Observation(look.source_id, look.plate_id, look.at, look.age_d) if rng.random() < 0.05 else look


def doubt(look: Observation, rng: random.Random) -> Observation:
    """The model is a tenth less sure of everything."""
    top = max(look.probabilities)
    less = max(0.3, top - 0.12)
    return replace(look, probabilities=tuple(less if p == top else (1 - less) / 3 for p in look.probabilities))


@pytest.mark.parametrize(
    ("fault", "days", "signals"),
    [
        (lamp, 7, {"brightness"}),
        (blur, 7, {"focus"}),
        (shutter, 2, {"brightness", "contrast", "focus", "empty"}),
        (damage, 7, {"failures"}),
        (doubt, 7, {"confidence"}),
    ],
)
@pytest.mark.slow
def test_a_fault_is_reported_by_its_own_signal(fault: Fault, days: int, signals: set[str]) -> None:
    lab = Lab()
    for seed in range(3):
        rng = random.Random(seed)
        reference = lab.days(0, 6, rng)
        found = findings(reference, lab.days(100, days, rng, fault), days)
        sounding = {name for name, finding in found.items() if finding.alarm}
        assert signals <= sounding <= signals | {"contrast"}
        assert all("minstrel" in found[name].detail for name in sounding)


@pytest.mark.slow
def test_two_hundred_quiet_weeks_raise_no_alarm_and_chance_is_not_overrated() -> None:
    """Nor is a difference called rarer than it is: a chance of one in twenty comes as often at most, give or take."""
    lab = Lab(drops=4)
    unlikely = 0
    for seed in range(20):
        rng = random.Random(seed)
        reference = lab.days(0, 6, rng)
        for week in range(10):
            found = findings(reference, lab.days(100 + 20 * week, 7, rng))
            assert len(found) == len({signal.name for signal in comparison.SIGNALS})
            assert not any(finding.alarm for finding in found.values())
            unlikely += sum(found[name].p_value < 0.05 for name in SPREAD)
    assert unlikely <= 0.05 * 200 * len(SPREAD)


@pytest.mark.slow
def test_older_plates_with_more_crystals_are_no_drift() -> None:
    """Hardly a new plate for a week: most drops of the window are old and hold crystals, as old ones always did."""
    rng = random.Random(5)
    lab = Lab(plates=6, drops=8, crystals_at_14=0.7, alike=6.0)
    reference = lab.days(0, 6, rng)
    window = statistics.total([_old(lab.days(100, 7, rng)), {0: lab.days(107, 1, rng)[0]}])
    assert _crystals(window) > 2 * _crystals(reference)
    assert alarms(reference, window) == set()
    crystals = findings(reference, window)["crystals"]
    assert crystals.reference == pytest.approx(crystals.value, abs=0.1)
    assert {"crystals", "classes"} <= alarms(_ageless(reference), _ageless(window))


def _old(ages: Ages) -> Ages:
    return {age: cell for age, cell in ages.items() if statistics.AGE_STARTS[age] >= 8}


def _ageless(ages: Ages) -> Ages:
    return statistics.total({0: cell} for cell in ages.values())


def _crystals(ages: Ages) -> float:
    plates = [plate for cell in ages.values() for plate in cell.plates.values()]
    return sum(plate.classes[1] for plate in plates) / sum(plate.images for plate in plates)


@pytest.mark.slow
def test_a_trifle_is_not_an_alarm_however_many_images_prove_it() -> None:
    lab = Lab(plates=12, drops=8)
    rng = random.Random(3)
    reference = lab.days(0, 8, rng)
    found = findings(
        reference, lab.days(100, 7, rng, lambda look, rng: replace(look, brightness=look.brightness + 0.012))
    )
    assert found["brightness"].p_value < 1e-4
    assert not found["brightness"].alarm


@pytest.mark.slow
def test_one_plate_that_could_not_be_read_is_not_drift() -> None:
    rng = random.Random(4)
    lab = Lab(plates=1, drops=96)
    reference, window = lab.days(0, 4, rng), lab.days(100, 4, rng)
    for number in range(lab.drops):
        statistics.add_observation(window, Observation(1, 9999, utc(), 0.1 + number / 1000))
    assert findings(reference, window)["failures"].shift > 0.02
    assert alarms(reference, window) == set()


@pytest.mark.slow
def test_ages_without_a_reference_and_too_few_images_are_not_judged() -> None:
    lab = Lab()
    rng = random.Random(6)
    reference, window = lab.days(0, 6, rng), lab.days(100, 7, rng, lamp)
    assert findings({0: reference[0]}, {3: window[3]}) == {}
    assert "brightness" in findings({0: reference[0]}, window)
    few = lab.days(100, 1, rng, lamp)
    assert findings(reference, {0: few[0]}) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 60), st.floats(-1, 2), st.booleans()), max_size=30))
def test_days_add_up_and_survive_the_database(seen: list[tuple[int, float, float, bool]]) -> None:
    looks = [
        Observation(1, plate, utc(), age)
        if failed
        else Observation(1, plate, utc(), age, "Clear", (1, 0, 0, 0), value, value, value)
        for plate, age, value, failed in seen
    ]
    halves: list[Ages] = [{}, {}]
    whole: Ages = {}
    for number, look in enumerate(looks):
        statistics.add_observation(halves[number % 2], look)
        statistics.add_observation(whole, look)
    kept = [statistics.from_json(json.loads(json.dumps(statistics.to_json(half)))) for half in halves]
    summed = statistics.total(kept)
    assert {age: _counts(cell) for age, cell in summed.items()} == {age: _counts(cell) for age, cell in whole.items()}
    for age, cell in whole.items():
        for plate_id, sums in cell.plates.items():
            assert summed[age].plates[plate_id].measures == pytest.approx(sums.measures, abs=1e-3)
            assert summed[age].plates[plate_id].reliefs.tolist() == sums.reliefs.tolist()


def _counts(cell: statistics.Cell) -> tuple[int, int, dict[str, list[int]]]:
    return cell.images, cell.failed, {name: counts.tolist() for name, counts in cell.histograms.items()}


def test_ages_of_plates() -> None:
    ages = [statistics.AGE_NAMES[statistics.age_of(age)] for age in (0, 0.99, 1, 2.5, 3, 7.9, 8, 30.9, 31, 400)]
    assert ages == ["0", "0", "1-2", "1-2", "3-7", "3-7", "8-30", "8-30", ">30", ">30"]


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(0.0, 5, 1.0), (2.228139, 10, 0.05), (12.706205, 1, 0.05), (-3.169273, 10, 0.01), (4.587, 10, 0.001)],
)
def test_students_t_as_in_the_tables(t: float, freedom: int, p: float) -> None:
    assert comparison.t_test(t, freedom) == pytest.approx(p, rel=1e-3)
    assert comparison.t_test(t, 10**7) == pytest.approx(math.erfc(abs(t) / math.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize(
    ("freedom", "p_values"),
    [
        (1, (0.9993633804398584, 0.8144528418445154, 0.2422378831816865, 0.09033447060173304, 0.010609347265246538)),
        (2, (0.9992928933955565, 0.7924856608401779, 0.1296117202215107, 0.019803941180393126, 0.0002776620905946788)),
        (
            10,
            (0.9992217833749147, 0.7703206075657989, 0.0314468442366088, 3.715592281685693e-05, 4.018522850688414e-14),
        ),
        (
            35,
            (0.9992077936766935, 0.7659517527630446, 0.01725574317860353, 3.820462621366441e-08, 6.936729810108352e-37),
        ),
        (120, (0.9992037760838626, 0.7646962111751769, 0.013769534925030228, 1.583570602957e-10, 2.436378048761e-91)),
    ],
)
def test_students_t_as_by_its_continued_fraction(freedom: int, p_values: tuple[float, ...]) -> None:
    """These are the numbers of Abramowitz and Stegun 26.5.8, by which earlier alarms were raised."""
    found = [comparison.t_test(t, freedom) for t in (0.001, -0.3, 2.5, -7.0, 60.0)]
    assert found == pytest.approx(p_values, rel=1e-9, abs=0)


@pytest.mark.slow
def test_the_numbers_of_findings_are_as_by_plain_sums() -> None:
    """Value, reference, p-value, shift and images, which sums of lists gave of the same images."""
    rng = random.Random(7)
    lab = Lab()
    reference = lab.days(0, 40, rng)
    found = findings(reference, lab.days(100, 7, rng, lambda look, rng: damage(blur(look, rng), rng)))
    numbers = {n: (f.value, f.reference, f.p_value, f.shift, f.images) for n, f in found.items()}
    expected = {
        "brightness": (0.40082100946449783, 0.3985491319555106, 1.0, 0.02313462048832272, 1570),
        "contrast": (0.182070477924651, 0.1787294996848204, 0.6556399925512832, 0.03408870753715498, 1570),
        "focus": (-2.3957466071572804, -2.108531042511515, 1.4894318291448515e-24, 0.35126857749469215, 1570),
        "empty": (0.0069249687058395275, 0.009949006049951366, 0.933800320454371, 0.0030240373441118382, 1570),
        "failures": (0.06525974025974025, 0.0006102693602693388, 1.1418432649114397e-31, 0.06464947089947091, 1680),
        "confidence": (0.8684122878760058, 0.8678725303690256, 1.0, 0.020535761677282376, 1570),
        "crystals": (0.11679259848201537, 0.10317756572206697, 1.0, 0.016213840233545627, 1570),
        "classes": (0.3168656579089549, 0.3772585434152775, 0.8923742130831878, 0.060392885506322595, 1570),
    }
    assert numbers.keys() == expected.keys()
    for name, values in expected.items():
        assert numbers[name] == pytest.approx(values, rel=1e-9, abs=0)


def _image(seed: int) -> np.ndarray:
    """Blobs and noise as a prepared image, float32 [96, 96, 3] in -1..1, never clipped."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:96]
    grey = 0.5 + 0.2 * np.sin(x / 7) * np.cos(y / 9) + rng.normal(0, 0.02, (96, 96))
    return np.repeat((grey * 2 - 1)[:, :, None], 3, axis=2).astype(np.float32)


def test_exposure_moves_brightness_and_not_focus_and_blur_the_other_way_round() -> None:
    sharp = _image(1)
    dark = (sharp + 1) * np.float32(0.85) - 1
    soft = sum(np.roll(sharp, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / np.float32(9)
    usual, dimmed, blurred = images.appearance(sharp), images.appearance(dark), images.appearance(soft)
    assert dimmed.brightness == pytest.approx(0.85 * usual.brightness, rel=1e-3)
    assert dimmed.contrast == pytest.approx(0.85 * usual.contrast, rel=1e-3)
    assert dimmed.focus == pytest.approx(usual.focus, abs=0.01)
    assert blurred.brightness == pytest.approx(usual.brightness, rel=1e-3)
    assert blurred.focus < usual.focus - 0.1


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_an_even_image_has_no_contrast_and_no_edges(value: float) -> None:
    looks = images.appearance(np.full((80, 80, 3), value, np.float32))
    assert looks.brightness == pytest.approx((value + 1) / 2, abs=1e-6)
    assert (looks.contrast, looks.focus) == (pytest.approx(0, abs=1e-6), pytest.approx(-6, abs=1e-3))
