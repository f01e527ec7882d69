"""Where the network looks: gradients against finite differences, and heat where the only thing to see is."""

import io
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, random_weights

from marcod.domain import CLASSES, DropClass
from marcod.errors import BundleError
from marcod.model import backend, heatmap, network, preprocess, squares
from marcod.model.bundle import BundleRecord
from marcod.model.heatmap import Heat, NetworkAttribution, SmoothGradNoise
from marcod.model.predictor import NetworkPredictor, Predictor
from marcod.model.probabilities import softmax

Weights = dict[str, np.ndarray]

FOLDING = {"needle": "Crystals", "block": "Crystals", "skin": "Other", "clear": "Clear"}
QUICK = SmoothGradNoise(samples=5, noise=0.1, seed=7)


@pytest.fixture(scope="module")
def record(tiny_predictor: Predictor) -> BundleRecord:
    """A model of four classes of its own; two are crystals and none precipitate."""
    folding = {name: DropClass(counts) for name, counts in FOLDING.items()}
    return tiny_predictor.record.model_copy(update={"classes": tuple(folding), "folding": folding})


@pytest.fixture(scope="module")
def looking(record: BundleRecord, tiny_weights: Weights) -> NetworkAttribution:
    return NetworkAttribution(record, tiny_weights, batch_size=4)


@pytest.fixture(scope="module")
def gradient(tiny_weights: Weights, tiny_predictor: Predictor) -> backend.Saliency:
    return network.saliency(TINY, tiny_weights, tiny_predictor.record.temperature)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (4, 75, 75, 3)).astype(np.float32)


def drop(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8)


def png_of(rgb: np.ndarray) -> bytes:
    """An image file of exactly these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def one(index: int) -> np.ndarray:
    return np.arange(4) == index


@pytest.mark.parametrize("members", [[False, True, False, False], [True, True, False, True]])
def test_gradients_are_those_of_finite_differences(
    gradient: backend.Saliency, tiny_predictor: Predictor, images: np.ndarray, members: list[bool]
) -> None:
    chosen, temperature, step = np.array(members), tiny_predictor.record.temperature, 1e-3

    def score(batch: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(tiny_predictor.logits(batch)[:, chosen].astype(np.float64) / temperature, axis=1)

    logits, slopes = gradient(images, chosen)
    # Along the gradient itself, where the difference stands out of the rounding of float32.
    along = slopes / np.sqrt((slopes**2).sum(axis=(1, 2, 3), keepdims=True))
    expected = (score(images + step * along) - score(images - step * along)) / (2 * step)
    assert np.allclose((slopes * along).sum(axis=(1, 2, 3)), expected, rtol=0.03)
    assert np.abs(logits - tiny_predictor.logits(images)).max() < 1e-5


def test_own_classes_share_the_gradient_by_their_probability(
    gradient: backend.Saliency, images: np.ndarray, tiny_predictor: Predictor
) -> None:
    logits, both = gradient(images, one(0) | one(1))
    shares = softmax(logits[:, :2] / tiny_predictor.record.temperature)[:, :, None, None, None]
    apart = shares[:, 0] * gradient(images, one(0))[1] + shares[:, 1] * gradient(images, one(1))[1]
    assert np.abs(both - apart).max() < 1e-4 * np.abs(both).max()


def test_heat_covers_the_centre_square_and_comes_with_the_folded_score(
    looking: NetworkAttribution, tiny_predictor: Predictor
) -> None:
    heard: list[int] = []
    heat = looking.explain(png_of(drop()), DropClass.CRYSTALS, QUICK, heard.append)
    own = tiny_predictor.predict(preprocess.prepare(drop(), preprocess.Preprocessing(75, "area"))[np.newaxis])[0]
    expected = {DropClass.CRYSTALS: own[0] + own[1], DropClass.OTHER: own[2], DropClass.CLEAR: own[3]}
    assert np.allclose(heat.probabilities, [expected.get(c, 0.0) for c in CLASSES], atol=1e-5)
    assert heat.values.shape == (75, 75)
    assert heat.values.dtype == np.float32
    assert (heat.values.min() >= 0, heat.values.max()) == (True, 1)
    assert heard == [4, 5]


def test_the_same_seed_gives_the_same_bytes(looking: NetworkAttribution) -> None:
    def png(recipe: SmoothGradNoise) -> bytes:
        return heatmap.draw(drop(), looking.explain(png_of(drop()), DropClass.CRYSTALS, recipe), ["A01"], text={})

    assert png(QUICK) == png(QUICK)
    assert png(QUICK) != png(SmoothGradNoise(samples=5, noise=0.1, seed=8))


def test_another_class_looks_elsewhere(looking: NetworkAttribution) -> None:
    crystals, clear = (looking.explain(png_of(drop()), c, QUICK).values for c in (DropClass.CRYSTALS, DropClass.CLEAR))
    assert np.abs(crystals - clear).max() > 0.1


def test_batches_change_nothing(looking: NetworkAttribution, record: BundleRecord, tiny_weights: Weights) -> None:
    four = looking.explain(png_of(drop()), DropClass.CRYSTALS, QUICK)
    one_by_one = NetworkAttribution(record, tiny_weights, batch_size=1).explain(
        png_of(drop()), DropClass.CRYSTALS, QUICK
    )
    assert np.abs(four.values - one_by_one.values).max() < 1e-3
    assert np.abs(four.probabilities - one_by_one.probabilities).max() < 1e-5


def test_a_class_that_the_model_does_not_have_is_refused(looking: NetworkAttribution) -> None:
    with pytest.raises(BundleError, match="no class of tiny counts as Precipitate; its classes are needle, block"):
        looking.explain(png_of(drop()), DropClass.PRECIPITATE, QUICK)


@pytest.mark.parametrize(("size", "expected"), [(599, 4), (160, 16), (1600, 1)])
def test_batches_shrink_as_images_grow(
    tiny_predictor: Predictor, tiny_weights: Weights, size: int, expected: int
) -> None:
    tables = {"architecture": {**TINY.to_dict(), "input_size": size}, "preprocessing": {"size": size, "resize": "area"}}
    assert NetworkAttribution(tiny_predictor.record.model_copy(update=tables), tiny_weights).batch_size == expected


def brightness_weights() -> Weights:
    weights = {}
    for name, value in random_weights(TINY).items():
        if name.endswith("/weights"):
            weights[name] = np.full_like(value, 1 / np.prod(value.shape[:-1]))
        else:
            weights[name] = np.full_like(value, 1.0 if name.endswith("moving_variance") else 0.0)
    weights["Inception/Conv2d_1a_3x3/BatchNorm/moving_mean"] += 0.5
    return weights


@pytest.fixture(scope="module")
def brightness(tiny_predictor: Predictor) -> NetworkAttribution:
    """A network that averages what passes its first layer, and nothing dark does."""
    return NetworkAttribution(tiny_predictor.record, brightness_weights(), batch_size=4)


def test_heat_is_where_the_only_thing_to_see_is(brightness: NetworkAttribution) -> None:
    rgb = np.zeros((75, 75, 3), np.uint8)
    rgb[20:36, 44:60] = 255
    heat = brightness.explain(png_of(rgb), DropClass.CRYSTALS, SmoothGradNoise(samples=3, noise=0.05)).values
    near = np.zeros((75, 75), bool)
    near[15:41, 39:65] = True
    assert heat[22:34, 46:58].max() == 1
    assert heat[~near].max() < 0.01


def test_nothing_to_see_gives_no_heat(brightness: NetworkAttribution) -> None:
    heat = brightness.explain(
        png_of(np.zeros((75, 75, 3), np.uint8)), DropClass.CRYSTALS, SmoothGradNoise(samples=1, noise=0.0)
    )
    assert not heat.values.any()


def drawn(width: int, height: int, caption: list[str], text: Mapping[str, str], notice: str = "") -> Image.Image:
    rgb = np.full((height, width, 3), 100, np.uint8)
    values = np.zeros((75, 75), np.float32)
    values[:30] = 1
    heat = Heat(values, np.full(4, 0.25, np.float32))
    return Image.open(io.BytesIO(heatmap.draw(rgb, heat, caption, notice=notice, text=text)))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (60, 60), (1, 1)])
def test_the_image_keeps_its_own_resolution(width: int, height: int) -> None:
    made = drawn(width, height, ["Plate 1, well A01"], {})
    assert made.width == min(width, height)
    assert made.height > min(width, height)


def test_heat_is_coloured_and_the_rest_stays_grey() -> None:
    pixels = np.asarray(drawn(200, 200, ["Plate 1"], {}))
    red, green, blue = (int(v) for v in pixels[20, 100])
    assert red > blue + 50
    assert green > blue
    assert pixels[150, 100].tolist() == [100, 100, 100]


def test_a_notice_and_long_captions_take_more_rows() -> None:
    plain = drawn(300, 200, ["Plate 1"], {})
    assert drawn(300, 200, ["Plate 1"], {}, notice="Synthetic.").height > plain.height
    assert drawn(300, 200, ["Plate 1 " * 20], {}).height > plain.height


def test_the_file_says_what_it_is() -> None:
    text = {"marcod:model": "tiny:3", "marcod:file": "Pl\u00e4tte/\u767d.jpg"}
    made = drawn(60, 60, ["Plate 1"], text)
    assert made.format == "PNG"
    assert made.text == text  # type: ignore[attr-defined]


def whole_record(record: BundleRecord) -> BundleRecord:
    return record.model_copy(update={"preprocessing": {**record.preprocessing, "coverage": "whole"}})


def test_the_square_that_gave_the_crystal_probability_is_explained(
    record: BundleRecord, tiny_weights: Weights, looking: NetworkAttribution
) -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (90, 200, 3), np.uint8)
    heat = NetworkAttribution(whole_record(record), tiny_weights, batch_size=4).explain(
        png_of(rgb), DropClass.CRYSTALS, QUICK
    )
    assert heat.square is not None
    assert heat.square[1] == squares.needed(90, 200) == 3
    alone = [
        looking.explain(png_of(np.ascontiguousarray(place.of(rgb))), DropClass.CRYSTALS, QUICK)
        for place in squares.places(90, 200, 3)
    ]
    best = int(np.argmax([one.probabilities[1] for one in alone]))
    assert heat.square[0] == best
    assert np.abs(heat.values - alone[best].values).max() < 1e-3
    own = NetworkPredictor(whole_record(record), tiny_weights, 4)
    assert heat.probabilities == pytest.approx(own.fold(own.predict([own.prepare(png_of(rgb))]))[0], abs=1e-5)


def test_heat_lies_at_the_place_of_what_is_seen(tiny_predictor: Predictor) -> None:
    """The only thing to see is at the edge of a wide image, where the central square has nothing of it."""
    rgb = np.zeros((75, 150, 3), np.uint8)
    rgb[20:36, 124:140] = 255
    weights = brightness_weights()
    # Towards crystals, so that the square with the light is the one with the highest probability.
    head = next(name for name in weights if name.endswith("/weights") and "Logits" in name)
    weights[head][..., 1] *= 9
    whole = NetworkAttribution(whole_record(tiny_predictor.record), weights, batch_size=4)
    heat = whole.explain(png_of(rgb), DropClass.CRYSTALS, SmoothGradNoise(samples=3, noise=0.05))
    assert heat.square == (2, 3)
    drawn_ = heatmap.over(rgb, heat).astype(int)
    coloured = np.abs(drawn_ - rgb).sum(axis=2) > 20
    assert coloured[20:36, 124:140].mean() > 0.5
    assert not coloured[:, :110].any()
    made = Image.open(io.BytesIO(heatmap.draw(rgb, heat, ["Plate 1"], text={})))
    assert made.width == 150
    assert np.array_equal(np.asarray(made)[:75], drawn_)


def test_members_that_look_at_different_squares_are_laid_over_the_whole_image() -> None:
    one = Heat(np.ones((30, 30), np.float32), np.full(4, 0.25, np.float32), (1, 2))
    other = Heat(np.full((60, 60), 0.5, np.float32), np.full(4, 0.25, np.float32))
    square, laid = heatmap._together([one, other], png_of(np.zeros((90, 120, 3), np.uint8)))
    assert square is None
    assert [values.shape for values in laid] == [(60, 80), (60, 80)]
    assert (laid[0][:, :20].max(), laid[0][:, 20:].min()) == (0, 1)
    assert (laid[1][:, :10].max(), laid[1][:, 10:70].min(), laid[1][:, 70:].max()) == (0, 0.5, 0)
    same, kept = heatmap._together([other, other], b"")
    assert (same, kept[0].shape) == ((0, 1), (60, 60))
    both = Heat(sum(laid, np.zeros((60, 80), np.float32)), one.probabilities, None)
    assert heatmap.over(np.zeros((90, 120, 3), np.uint8), both).shape == (90, 120, 3)
