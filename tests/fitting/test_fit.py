"""The training loop on the smallest network: what a kill costs, when it ends and what comes out of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import keras
import numpy as np
import pytest
from tiny import TINY
from training_images import HEADS, IN_TF_DATA, coloured, learnable, paper

from marcod.errors import BundleError, MarcodError
from marcod.fitting import checkpoint, fit
from marcod.fitting.checkpoint import TrainingState, Weights
from marcod.fitting.fit import FitOptions, Fitted, StoppedError, Training, Validation
from marcod.model import network
from marcod.model.weights import is_auxiliary

STEPS, PATIENCE = 4, 2
RECIPE = replace(paper(epochs=9), average_every=3, average_share=0.4, patience=PATIENCE)
KILLED_AT = (2, 2 * STEPS)
"""In the middle of the first pass, and between the last step of the second and its end."""


def contrary() -> Validation:
    """Judges who want each colour called otherwise, so that training makes the loss worse."""
    pixels, labels = coloured(8, TINY.input_size, seed=5)
    return Validation(pixels.astype(np.float32) / 127.5 - 1, (labels + 1) % 4, np.ones(8, np.float32))


@dataclass
class Story:
    """A training that ran through, and the same one killed twice; weights and averages are those after each step."""

    place: Path
    begin: Weights
    weights: list[Weights] = field(default_factory=list)
    averages: list[Weights] = field(default_factory=list)
    whole: Fitted = field(init=False)
    resumed: Fitted = field(init=False)
    kills: int = 0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One compiled network for all; between two kills nothing is left of it but the checkpoint."""
    place, stop = tmp_path_factory.mktemp("run") / "fit.npz", Event()
    steps: list[int] = []
    last = [0]

    def after_step(_: str, done: int, __: int) -> None:
        if done == last[0]:
            # At the end of a pass the options is told a second time.
            return
        last[0] = done
        if hasattr(told, "whole"):
            steps.append(len(steps) + 1)
            if len(steps) in KILLED_AT:
                stop.set()
            return
        told.weights.append(network.variables(training.model))
        told.averages.append(training.average)

    keras.utils.set_random_seed(1)
    options = FitOptions(place, stop, progress=after_step)
    training = Training(HEADS, RECIPE, learnable(8 * STEPS), seed=1, validation=contrary(), options=options)
    told = Story(place, network.variables(training.model))
    fresh = [keras.ops.convert_to_numpy(v) for v in training.model.optimizer.variables]
    told.whole = training.run()
    checkpoint.save(place, TrainingState(0, 0, told.begin, {}, {}, fresh))
    last[0] = 0
    while not hasattr(told, "resumed"):
        forget(training)
        try:
            told.resumed = training.run()
        except StoppedError:
            stop.clear()
            told.kills += 1
    return told


def forget(training: Training) -> None:
    """Leave nothing in memory from which a killed training could go on."""
    for variable in (*training.model.variables, *training.model.optimizer.variables):
        variable.assign(np.full(variable.shape, 7))
    training.average = {name: np.full_like(value, 7) for name, value in training.average.items()}


@pytest.mark.story
def test_a_killed_training_goes_on_as_if_nothing_had_been(story: Story) -> None:
    assert story.kills == len(KILLED_AT)
    assert story.resumed.weights.keys() == story.whole.weights.keys()
    for name, value in story.whole.weights.items():
        np.testing.assert_allclose(story.resumed.weights[name], value, rtol=0, atol=1e-6)
    known = [{k: v for k, v in point.items() if k not in ("seconds", "loss")} for point in story.whole.curve]
    again = [{k: v for k, v in point.items() if k not in ("seconds", "loss")} for point in story.resumed.curve]
    assert [point.keys() for point in again] == [point.keys() for point in known]
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(again, known, strict=True))
    losses = [point.get("loss") for point in story.resumed.curve]
    assert losses[1] is None
    assert losses[2:] == pytest.approx([point["loss"] for point in story.whole.curve[2:]], abs=1e-5)


@pytest.mark.story
def test_a_training_that_was_done_is_not_done_again(story: Story) -> None:
    seen: list[int] = []
    options = FitOptions(story.place, progress=lambda *_: seen.append(1))
    found = fit.fit(HEADS, RECIPE, learnable(8 * STEPS), seed=9, validation=contrary(), options=options)
    assert seen == []
    assert found.curve == story.resumed.curve
    assert all(np.array_equal(found.weights[name], value) for name, value in story.resumed.weights.items())


@pytest.mark.story
def test_what_comes_out_is_the_average_of_the_best_pass(story: Story) -> None:
    judged = [point["validation_loss"] for point in story.whole.curve]
    best = int(np.argmin(judged))
    assert len(judged) == best + 1 + PATIENCE < RECIPE.epochs
    assert len(story.averages) == len(judged) * STEPS
    expected = story.averages[(best + 1) * STEPS - 1]
    assert all(np.array_equal(value, expected[name]) for name, value in story.whole.weights.items())


@pytest.mark.story
def test_the_average_follows_the_weights_whatever_the_length_of_a_pass(story: Story) -> None:
    expected = story.weights[0]
    for done, now in enumerate(story.weights, start=1):
        if done % RECIPE.average_every == 0:
            share = max(RECIPE.average_share, 1 / (1 + done // RECIPE.average_every))
            expected = {name: value + share * (now[name] - value) for name, value in expected.items()}
        for name, average in story.averages[done - 1].items():
            np.testing.assert_allclose(average, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.story
def test_with_the_paper_s_recipe_the_loss_of_the_first_steps_falls(story: Story) -> None:
    losses = [point["loss"] for point in story.whole.curve]
    assert losses[-1] < 0.9 * losses[0]
    rates = [point["rate"] for point in story.whole.curve]
    assert rates[:3] == pytest.approx([RECIPE.rate, RECIPE.rate * 0.94, RECIPE.rate * 0.94])


@pytest.mark.story
def test_the_training_head_is_trained_with_the_other(story: Story) -> None:
    assert set(story.whole.weights) == set(story.begin)
    heads = [name for name in story.begin if name.endswith("biases")]
    assert sum(map(is_auxiliary, heads)) == 1
    assert len(heads) == 2
    assert all(np.abs(story.whole.weights[name] - story.begin[name]).max() > 1e-5 for name in heads)


@pytest.mark.story
def test_a_checkpoint_that_does_not_fit_is_refused(story: Story, tmp_path: Path) -> None:
    place = tmp_path / "fit.npz"
    place.write_bytes(story.place.read_bytes())
    training = Training(
        HEADS, replace(RECIPE, optimizer="adam", auxiliary=0), learnable(8), seed=1, options=FitOptions(place)
    )
    with pytest.raises(MarcodError, match=r"fit\.npz is of another kind of training; remove it to start again"):
        training.run()
    place.write_bytes(story.place.read_bytes()[:5000])
    with pytest.raises(MarcodError, match=r"the checkpoint .*fit\.npz is damaged: .*; remove it to start again"):
        training.run()


@pytest.mark.story
@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings(IN_TF_DATA)
def test_half_precision_keeps_weights_and_logits_in_single(tiny_weights: Weights) -> None:
    """And a training head that the weights lack begins at random."""
    before = keras.config.dtype_policy()
    recipe = paper(epochs=1)
    found = fit.fit(HEADS, recipe, learnable(8), seed=1, weights=tiny_weights, precision="mixed_bfloat16")
    assert keras.config.dtype_policy() is before
    assert {value.dtype for value in found.weights.values()} == {np.dtype(np.float32)}
    assert set(found.weights) - set(tiny_weights) == {name for name in found.weights if is_auxiliary(name)}
    moved = [np.abs(found.weights[name] - value).max() for name, value in tiny_weights.items()]
    assert 0 < max(moved) < 0.5
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network.build(TINY)
    finally:
        keras.config.set_dtype_policy(before)
    assert {str(output.dtype) for output in model.outputs} == {"float32"}
    assert model.get_layer("Mixed_7c.Branch_0.Conv2d_0a_1x1").compute_dtype == "bfloat16"


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings(IN_TF_DATA)
def test_a_training_that_diverges_says_so() -> None:
    beyond = replace(learnable(8), weights=np.full(8, 1e38, np.float32))
    with pytest.raises(MarcodError, match="its loss is no number any more in pass 1"):
        fit.fit(TINY, replace(paper(epochs=1), auxiliary=0), beyond, seed=1)


def test_a_training_that_scales_its_loss_goes_on_too(tmp_path: Path) -> None:
    """With float16 the optimizer has variables of its own, which must be there before the first step."""
    place = tmp_path / "fit.npz"
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        recipe = replace(paper(epochs=1), auxiliary=0)
        training = Training(TINY, recipe, learnable(8), seed=1, options=FitOptions(place))
        values = [keras.ops.convert_to_numpy(v) for v in training.model.optimizer.variables]
        weights = network.variables(training.model)
        checkpoint.save(place, TrainingState(1, 0, weights, weights, {}, values))
        found = training.run()
    finally:
        keras.config.set_dtype_policy(before)
    assert "dynamic_scale" in {v.name for v in training.model.optimizer.variables}
    assert all(np.array_equal(found.weights[name], value) for name, value in weights.items())


def test_weights_of_another_architecture_are_refused(tiny_weights: Weights) -> None:
    name = "Inception/Logits/Conv2d_1c_1x1/biases"
    lacking = {other: value for other, value in tiny_weights.items() if other != name}
    with pytest.raises(BundleError, match=f"lack {name}"):
        fit.fit(TINY, replace(paper(epochs=1), auxiliary=0), learnable(8), seed=1, weights=lacking)
