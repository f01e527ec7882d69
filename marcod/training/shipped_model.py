"""Training of the shipped bundle: EfficientNet-lite0, pretrained on ImageNet, fine-tuned on rendered drops.

Every image comes from a seed; training, validation and test seeds never meet, and no photograph of a drop takes part.
The layers up to the last block stay as they were published. Temperature scaling is Guo et al., arXiv 1706.04599.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import synthetic
from marcod.domain import CLASSES, DropClass, TrainedOn
from marcod.errors import BundleError
from marcod.evaluate import metrics
from marcod.fitting import adapt, batches, tail
from marcod.fitting.fit import Progress
from marcod.fitting.tail import TailRecipe
from marcod.model import bundle, network, preprocess, probabilities
from marcod.model.efficientnet import LITE0
from marcod.model.predictor import NetworkPredictor
from marcod.model.preprocess import Preprocessing
from marcod.model.published import Trunk
from marcod.store.versions import JUDGED

NAME: Final = "lite0"
PREPROCESSING: Final = Preprocessing(LITE0.input_size, "area", decode_ratio=4)
RECIPE: Final = TailRecipe()

THRESHOLD: Final = 0.07
"""Constant of the recipe, so that the command makes the same bundle without photographs."""

RECALL: Final = 0.953
"""Share of the photographs' crystals that the threshold finds."""

EVIDENCE: Final = (
    f"a constant of the recipe: at it the model that comes with marcod {JUDGED}, in images of 13 public sources that "
    "took no part in training. Run `marcod model calibrate` on the lab's own labels"
)
NOTICE: Final = (
    f"Trained on rendered drops alone, from a network pretrained on ImageNet. At its threshold it {JUDGED}.\n"
    "It replaces neither MARCO nor a calibration on the lab's own labels."
)

# A million seeds for each purpose, so that no image is ever in two sets.
TRAINING, VALIDATION, TEST, GOLDEN = 1_000_000, 2_000_000, 3_000_000, 4_000_000

SHARE: Final = 0.5
"""Share of the fine-tuned weights; the rest is the trunk's, which keeps what rendered drops would make it forget."""

HALF: Final = 1e-3
"""Largest change of a probability by storing weights in half precision."""

VIEWS: Final = 2
"""Grids of each image to train on: as it is, and turned or mirrored."""


@dataclass(frozen=True)
class Examples:
    """Rendered drops as grids of features float16 [n, side, side, channels], with class indices int32 [n]."""

    grids: NDArray[np.float16]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Options:
    """Extent of a training: drops to train on, drops each to validate and test with, passes, processes that draw."""

    images: int = 6000
    held_out: int = 1500
    epochs: int = RECIPE.epochs
    processes: int = 2
    seed: int = 1


def draw(tasks: list[tuple[int, DropClass | None]], processes: int) -> Iterator[tuple[bytes, DropClass]]:
    """Draw drops by seed and class, in order.

    More than one process are spawned, since a fork of a process that runs TensorFlow may hang.
    """
    with ExitStack() as stack:
        drawn: Iterable[tuple[bytes, DropClass]] = map(synthetic.drop_jpeg_of, tasks)
        if processes > 1:
            # They only draw; TensorFlow, which decodes, would take each of them seconds to load.
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            drawn = pool.imap(synthetic.drop_jpeg_of, tasks, chunksize=8)
        yield from drawn


def render_examples(
    trunk: Mapping[str, NDArray[np.float32]],
    first_seed: int,
    count: int,
    *,
    balanced: bool,
    views: int = 1,
    processes: int = 2,
    progress: Progress | None = None,
) -> Examples:
    """Render ``count`` drops from the seeds following ``first_seed``, balanced or in natural shares, as grids.

    Each gives ``views`` rows one after another: as it is, and turned or mirrored.
    """
    tasks = [(first_seed + i, CLASSES[i % len(CLASSES)] if balanced else None) for i in range(count)]
    labels: list[int] = []

    def prepared() -> Iterator[NDArray[np.float32]]:
        for i, (data, label) in enumerate(draw(tasks, processes)):
            image = preprocess.read(data, PREPROCESSING)
            for view in range(views):
                labels.append(CLASSES.index(label))
                yield turned(image, first_seed + i, view)
            if progress is not None:
                progress("rendering", i + 1, count)

    grids = tail.extract_grids(LITE0, trunk, prepared())
    return Examples(grids, np.array(labels, np.int32))


def turned(image: NDArray[np.float32], seed: int, view: int) -> NDArray[np.float32]:
    """Return the image itself for view 0, else one of its seven other positions, drawn from the seed."""
    if view == 0:
        return image
    position = int(np.random.default_rng((seed, view)).integers(1, 8))
    found = np.rot90(image, position % 4)
    return found[:, ::-1] if position >= 4 else found


def start_weights(trunk: Trunk) -> dict[str, NDArray[np.float32]]:
    """Return the trunk's weights with a head of zeros for the four classes."""
    shapes = network.variable_shapes(network.build_tail(LITE0))
    return {**{n: np.zeros(s, np.float32) for n, s in shapes.items() if n not in trunk.weights}, **trunk.weights}


def train_synthetic(
    models: Path,
    trunk: Trunk,
    *,
    version: int = 1,
    options: Options = Options(),
    progress: Progress | None = None,
) -> Path:
    """Render, train, calibrate and measure the network, and write it as bundle ``lite0``.

    Takes about 25 minutes on two cores with the defaults. Raises BundleError when the version exists.
    """
    start = start_weights(trunk)
    make = partial(render_examples, start, processes=options.processes, progress=progress)
    training = make(TRAINING, options.images, balanced=True, views=VIEWS)
    validation = make(VALIDATION, options.held_out, balanced=False)
    test = make(TEST, options.held_out, balanced=False)
    weights = fine_tuned(start, training, options, progress)
    return finish(models, weights, validation, test, trunk, version=version, recipe=describe(options))


def describe(options: Options) -> str:
    """Describe a training in the words of its bundle."""
    return f"seed {options.seed}, {options.epochs} epochs over {options.images} rendered drops in {VIEWS} positions"


def fine_tuned(
    start: Mapping[str, NDArray[np.float32]], training: Examples, options: Options, progress: Progress | None = None
) -> dict[str, NDArray[np.float32]]:
    """Fine-tune the last layers, and go back half of the way to where all but the head began (arXiv 2109.01903)."""
    found = tail.train_tail(
        LITE0, start, training.grids, batches.one_hot(training.labels, len(CLASSES)),
        replace(RECIPE, epochs=options.epochs), seed=options.seed, done=_report(progress, options.epochs),
    )  # fmt: skip
    return network.with_head(adapt.interpolated(start, found, SHARE), *network.head(found))


def _report(progress: Progress | None, epochs: int) -> Callable[[int, float], None]:
    return lambda epoch, loss: None if progress is None else progress(f"training, loss {loss:.3f}", epoch, epochs)


def finish(
    models: Path,
    weights: Mapping[str, NDArray[np.float32]],
    validation: Examples,
    test: Examples,
    trunk: Trunk,
    *,
    version: int,
    recipe: str,
) -> Path:
    """Calibrate ``weights`` on validation drops, measure them on test drops, and write the bundle.

    ``recipe`` describes how the weights were trained. The weights are stored in half precision. Raises BundleError when
    that changes a probability of a test drop by more than :data:`HALF`.
    """
    weights = _with_natural_shares(weights, validation.labels)
    stored = _halved(weights)
    logits = {name: tail.logits(LITE0, stored, part.grids) for name, part in (("v", validation), ("t", test))}
    temperature = metrics.fit_temperature(logits["v"], validation.labels)
    pair = (logits["t"], tail.logits(LITE0, weights, test.grids))
    rounding = float(np.abs(np.subtract(*(probabilities.softmax(one / temperature) for one in pair))).max())
    if rounding > HALF:
        raise BundleError(f"half precision would change a probability by {rounding:.2g}, and {HALF:g} is allowed")
    record = _record(version, temperature, recipe, trunk)
    measured = {
        "notice": NOTICE,
        "synthetic": True,
        "recipe": recipe,
        "half_precision_changes": rounding,
        "first_seeds": {"training": TRAINING, "validation": VALIDATION, "test": TEST, "golden": GOLDEN},
        "validation": metrics.measure(logits["v"], validation.labels, temperature, THRESHOLD),
        "test": metrics.measure(logits["t"], test.labels, temperature, THRESHOLD),
    }
    return bundle.write(models, record, stored, measured, _golden(record, stored))


def _record(version: int, temperature: float, recipe: str, trunk: Trunk) -> bundle.BundleRecord:
    return bundle.new_record(
        name=NAME,
        version=version,
        classes=[c.value for c in CLASSES],
        folding={c.value: c for c in CLASSES},
        temperature=temperature,
        threshold=bundle.Threshold(crystal=THRESHOLD, recall=RECALL, measured_on=EVIDENCE),
        training_data=f"{trunk.about}; then synthetic: {recipe}, drops from seed {TRAINING} on",
        licence="Apache-2.0",
        licence_text=trunk.licence_text,
        citation=trunk.citation,
        origin=trunk.origin,
        trained_on=(TrainedOn.RENDERED,),
        notice=NOTICE,
        architecture=LITE0.to_dict(),
        preprocessing=PREPROCESSING.to_dict(),
    )


def _with_natural_shares(
    weights: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int32]
) -> dict[str, NDArray[np.float32]]:
    """Shift the last bias from the equal shares of training to the shares of ``labels``, so scores are calibrated."""
    shares = np.maximum(np.bincount(labels, minlength=len(CLASSES)), 1) / len(labels)
    return network.shifted(weights, np.log(shares * len(CLASSES)).astype(np.float32))


def _halved(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.floating[Any]]]:
    """Round kernels to half precision, which halves the bundle; statistics and biases are few and stay."""
    return {name: value.astype(np.float16) if value.ndim > 1 else value for name, value in weights.items()}


def _golden(record: bundle.BundleRecord, weights: Mapping[str, NDArray[np.floating[Any]]]) -> list[bundle.Golden]:
    """Return one synthetic drop of each class with its present scores."""
    predictor, found = NetworkPredictor(record, weights, len(CLASSES)), []
    for index, label in enumerate(CLASSES):
        data, _ = synthetic.drop_jpeg(GOLDEN + len(synthetic.SIZES) * index, label)
        scores = predictor.predict(predictor.prepare(data)[np.newaxis])[0]
        found.append(bundle.Golden(f"synthetic-{label.value.lower()}.jpg", data, scores.tolist()))
    return found
