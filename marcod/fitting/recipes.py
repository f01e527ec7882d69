"""Training recipes as values: augmentation, optimizer, learning rate, end.

:data:`PAPER` is the MARCO paper's, complete (Bruno et al., PLOS ONE 2018, arXiv 1803.10342, section "Model training");
:data:`ADAPT` continues from a champion's weights. The bundle that comes with the project has a recipe of its own, in
``tail``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import keras

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes of each image, next to both flips; ranges are uniform.

    ``patch`` is the side of a random square patch as a share of the image's shorter side; None is the paper's: as
    many of the image's own pixels as the network takes. ``brightness`` is added (1 is white), ``hue`` is in turns.
    """

    patch: Range | None
    brightness: float
    contrast: Range
    saturation: Range
    hue: float
    quarter_turns: bool


@dataclass(frozen=True, slots=True)
class Staircase:
    """Rate that is multiplied by ``factor`` at once every so many epochs."""

    factor: float
    epochs: int


@dataclass(frozen=True, slots=True)
class Cosine:
    """Rate that rises over so many steps, a tenth of all at most, and then falls along a cosine.

    It would be down at a hundredth as many steps after the end as it rose.
    """

    warmup_steps: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Training recipe.

    ``auxiliary`` is the weight of the second head's loss, 0 without one. Weights are averaged exponentially: every
    ``average_every`` steps the average moves by ``average_share`` towards them. ``patience`` is the number of epochs
    without a better validation loss after which training ends, with the best epoch's weights.
    """

    name: str
    optimizer: Literal["rmsprop", "adam"]
    rate: float
    decay: Staircase | Cosine
    epochs: int
    batch_size: int
    augmentation: Augmentation
    auxiliary: float = 0.0
    average_every: int = 10
    average_share: float = 0.05
    patience: int | None = None

    def of(self, *, epochs: int, batch_size: int, quarter_turns: bool) -> "Recipe":
        """Return the recipe with a lab's own numbers."""
        augmentation = replace(self.augmentation, quarter_turns=quarter_turns)
        return replace(self, epochs=epochs, batch_size=batch_size, augmentation=augmentation)

    def schedule(self, steps_per_epoch: int) -> Any:
        """Return the learning rate by step, as a Keras schedule."""
        if isinstance(self.decay, Staircase):
            every = self.decay.epochs * steps_per_epoch
            return keras.optimizers.schedules.ExponentialDecay(self.rate, every, self.decay.factor, staircase=True)
        total = self.epochs * steps_per_epoch
        warmup = min(self.decay.warmup_steps, total // 10)
        return keras.optimizers.schedules.CosineDecay(
            self.rate / 20, total, warmup_target=self.rate, warmup_steps=warmup, alpha=0.01
        )

    def make_optimizer(self, steps_per_epoch: int, variables: Sequence[Any]) -> Any:
        """Build a fresh optimizer of these variables.

        Keras adds RMSProp's epsilon under the root, as TensorFlow 1 did for the paper. There the mean square of the
        gradients began with 1, which makes the first steps small; so it does here.
        """
        rate = self.schedule(steps_per_epoch)
        if self.optimizer == "adam":
            optimizer = keras.optimizers.Adam(rate)
        else:
            optimizer = keras.optimizers.RMSprop(rate, rho=PAPER_DECAY, momentum=PAPER_MOMENTUM, epsilon=PAPER_EPSILON)
        # Variables made inside the first step would make TensorFlow trace the step twice, half a minute each.
        optimizer.build(variables)
        for variable in optimizer.variables if self.optimizer == "rmsprop" else ():
            if "velocity" in variable.path:
                variable.assign(keras.ops.ones(variable.shape, variable.dtype))
        return optimizer


PAPER_SIZE: Final = 599
"""Side of the input of the network that the paper's rate is for."""

PAPER_DECAY: Final = 0.9
PAPER_MOMENTUM: Final = 0.9
PAPER_EPSILON: Final = 0.1
AUXILIARY_WEIGHT: Final = 0.4
"""Not in the paper; Inception-v3's in TensorFlow-Slim, from which the published graph was made."""

PAPER: Final = Recipe(
    name="scratch",
    optimizer="rmsprop",
    rate=0.045,
    decay=Staircase(factor=0.94, epochs=2),
    epochs=260,
    batch_size=64,
    augmentation=Augmentation(
        patch=None,
        brightness=32 / 255,
        contrast=(0.5, 1.5),
        saturation=(0.5, 1.5),
        hue=0.2,
        quarter_turns=False,
    ),
    auxiliary=AUXILIARY_WEIGHT,
    patience=20,
)

# Half as wide as the paper's or less, since so short a training does not learn its images by heart.
GENTLE: Final = Augmentation(
    patch=(0.85, 1.0),
    brightness=16 / 255,
    contrast=(0.8, 1.2),
    saturation=(0.7, 1.3),
    hue=0.03,
    quarter_turns=True,
)

ADAPT: Final = Recipe(
    name="adapt",
    optimizer="adam",
    rate=3e-4,
    decay=Cosine(warmup_steps=50),
    epochs=6,
    batch_size=32,
    augmentation=GENTLE,
)


LARGE: Final = 320
"""Side of a network's input from which the paper's patches, of an image's own pixels, show a drop."""


def scratch(size: int, *, epochs: int, batch_size: int, quarter_turns: bool) -> Recipe:
    """Return the paper's recipe for a network that takes ``size`` pixels, with a lab's numbers.

    A smaller network than the paper's gets a rate that is smaller in proportion, because narrower layers diverge at
    the paper's rate. A small one gets patches of nearly the whole drop: 160 of an imager's pixels show a corner
    without a crystal.
    """
    recipe = PAPER.of(epochs=epochs, batch_size=batch_size, quarter_turns=quarter_turns)
    recipe = replace(recipe, rate=PAPER.rate * min(1.0, size / PAPER_SIZE))
    if size > LARGE:
        return recipe
    return replace(recipe, augmentation=replace(recipe.augmentation, patch=GENTLE.patch))
