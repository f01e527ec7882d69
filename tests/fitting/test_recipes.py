"""The numbers of the recipes: the paper's, and how a step follows from them."""

import keras
import numpy as np
import pytest

from marcod.fitting import recipes
from marcod.fitting.recipes import ADAPT, GENTLE, PAPER, Cosine, Recipe, Staircase


def test_the_paper_s_recipe() -> None:
    """Bruno et al., PLOS ONE 2018, "Model training"; the weight of the second head is Inception-v3's."""
    assert (PAPER.optimizer, PAPER.rate, PAPER.batch_size, PAPER.epochs) == ("rmsprop", 0.045, 64, 260)
    assert PAPER.decay == Staircase(factor=0.94, epochs=2)
    assert (recipes.PAPER_DECAY, recipes.PAPER_MOMENTUM, recipes.PAPER_EPSILON) == (0.9, 0.9, 0.1)
    assert PAPER.auxiliary == 0.4
    assert PAPER.patience is not None
    distortions = PAPER.augmentation
    assert distortions.patch is None
    assert distortions.brightness == 32 / 255
    assert distortions.contrast == distortions.saturation == (0.5, 1.5)
    assert distortions.hue == 0.2
    assert not distortions.quarter_turns


@pytest.mark.parametrize("steps", [1, 25, 6500])
def test_the_paper_s_rate_falls_at_once_every_two_epochs(steps: int) -> None:
    rate = PAPER.schedule(steps)
    for epochs, factor in ((0, 1), (2, 0.94), (4, 0.94**2), (100, 0.94**50)):
        assert float(rate(epochs * steps)) == pytest.approx(0.045 * factor, rel=1e-5)
        assert float(rate((epochs + 2) * steps - 1)) == pytest.approx(0.045 * factor, rel=1e-5)


def test_a_step_is_tensorflow_1_s_rmsprop() -> None:
    """The mean square of the gradients begins with ones, and epsilon is added under the root."""
    value = keras.Variable(np.array([1.0, -2.0], np.float32))
    optimizer = PAPER.make_optimizer(1, [value])
    expected, square, momentum = np.array([1.0, -2.0]), np.ones(2), np.zeros(2)
    rng = np.random.default_rng(1)
    for step in range(6):
        gradient = rng.normal(0, [0.1, 3.0])
        optimizer.apply([keras.ops.convert_to_tensor(gradient.astype(np.float32))], [value])
        square = 0.9 * square + 0.1 * gradient**2
        momentum = 0.9 * momentum + 0.045 * 0.94 ** (step // 2) * gradient / np.sqrt(square + 0.1)
        expected = expected - momentum
        np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected, rtol=1e-5)


def test_a_small_network_gets_the_paper_s_recipe_in_proportion() -> None:
    whole = recipes.scratch(599, epochs=260, batch_size=64, quarter_turns=False)
    assert whole == PAPER
    small = recipes.scratch(160, epochs=30, batch_size=32, quarter_turns=True)
    assert small.rate == pytest.approx(0.045 * 160 / 599)
    assert (small.epochs, small.batch_size, small.optimizer) == (30, 32, "rmsprop")
    assert small.augmentation.patch == GENTLE.patch
    assert small.augmentation.quarter_turns
    assert small.augmentation.brightness == PAPER.augmentation.brightness
    assert recipes.scratch(900, epochs=1, batch_size=2, quarter_turns=False).rate == 0.045


@pytest.mark.parametrize(
    ("recipe", "steps"), [(ADAPT, 70), (ADAPT, 2), (ADAPT.of(epochs=18, batch_size=32, quarter_turns=True), 250)]
)
def test_a_cosine_rises_first_and_ends_at_next_to_nothing(recipe: Recipe, steps: int) -> None:
    rate, total = recipe.schedule(steps), recipe.epochs * steps
    assert isinstance(recipe.decay, Cosine)
    top = min(recipe.decay.warmup_steps, total // 10)
    assert float(rate(0)) == pytest.approx(recipe.rate / 20)
    assert float(rate(top)) == pytest.approx(recipe.rate)
    falling = [float(rate(step)) for step in np.linspace(top, total, 12).round()]
    assert falling == sorted(falling, reverse=True)
    assert falling[6] == pytest.approx(recipe.rate / 2, rel=0.3)
    assert falling[-1] < recipe.rate / 20


def test_adam_begins_without_a_past() -> None:
    value = keras.Variable(np.zeros(2, np.float32))
    optimizer = ADAPT.make_optimizer(10, [value])
    past = [np.abs(keras.ops.convert_to_numpy(v)).max() for v in optimizer.variables if "momentum" in v.path]
    assert max(past) == 0
