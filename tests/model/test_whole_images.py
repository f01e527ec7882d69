"""Networks that look at whole images: each score is the image's own, whatever else is in its batch."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_bundles
from factories import utc
from PIL import Image
from tiny import jpeg

from marcod.database.engine import Database
from marcod.domain import CRYSTALS, Precision
from marcod.errors import BundleError
from marcod.model import bundle, preprocess, squares
from marcod.model.bundle import BundleRecord
from marcod.model.predictor import CommitteePredictor, NetworkPredictor, Predictor
from marcod.model.preprocess import Preprocessing

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def whole_of(record: BundleRecord) -> BundleRecord:
    seen = Preprocessing.from_dict(record.preprocessing)
    return record.model_copy(update={"preprocessing": replace(seen, coverage="whole").to_dict()})


@pytest.fixture(scope="module")
def whole(tiny_predictor: Predictor, tiny_weights: dict[str, np.ndarray]) -> NetworkPredictor:
    return NetworkPredictor(whole_of(tiny_predictor.record), tiny_weights, batch_size=4)


SIZES = [(120, 100), (100, 100), (100, 200), (300, 100), (90, 91), (500, 100)]


def images() -> list[bytes]:
    return [jpeg(seed, *size) for seed, size in enumerate(SIZES)]


def test_a_square_image_scores_as_it_did(whole: NetworkPredictor, tiny_predictor: Predictor) -> None:
    data = jpeg(5, 100, 100)
    assert whole.prepare(data).shape == (1, 75, 75, 3)
    one, other = (p.logits([p.prepare(data)]) for p in (whole, tiny_predictor))
    assert np.array_equal(one, other)


def test_an_image_scores_as_its_squares_do(whole: NetworkPredictor, tiny_predictor: Predictor) -> None:
    """Each is cropped from the decoded image, and scored by the network alone."""
    for data, (width, height) in zip(images(), SIZES, strict=True):
        rgb = preprocess.decode(data)
        places = squares.places(height, width, squares.needed(height, width))
        how = Preprocessing(75, "area")
        own = [preprocess.prepare(np.ascontiguousarray(place.of(rgb)), how) for place in places]
        logits = tiny_predictor.logits(np.stack(own))
        [found] = whole.logits([whole.prepare(data)])
        assert np.array_equal(found, squares.combined(logits, np.arange(4) == CRYSTALS))


def test_an_image_alone_scores_as_in_any_batch(whole: NetworkPredictor) -> None:
    """To the last bit, however its squares fall into the parts that are predicted at once."""
    prepared = [whole.prepare(data) for data in images()]
    alone = [whole.predict([one])[0] for one in prepared]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [5, 4], [2, 5, 0, 1]):
        batch = whole.predict([prepared[i] for i in order])
        assert np.array_equal(batch, np.stack([alone[i] for i in order]))


def test_other_shapes_than_those_of_whole_images_are_refused(
    whole: NetworkPredictor, tiny_predictor: Predictor
) -> None:
    square = tiny_predictor.prepare(jpeg(1))
    with pytest.raises(ValueError, match="a batch must be"):
        whole.logits([square])
    with pytest.raises(ValueError, match="a batch must be"):
        whole.logits([np.stack([square] * 5)])
    with pytest.raises(ValueError, match="a batch must be"):
        whole.logits([square[np.newaxis]] * 5)
    with pytest.raises(ValueError, match="a batch must be"):
        tiny_predictor.logits([square[np.newaxis]])


def test_what_lies_at_the_edge_is_seen(whole: NetworkPredictor, tiny_predictor: Predictor) -> None:
    """The outermost pixels of a wide image change the score of the one and not of the other."""
    rgb = np.full((100, 200, 3), 90, np.uint8)
    edged = rgb.copy()
    edged[:, :30] = 255
    plain, changed = (_png(one) for one in (rgb, edged))
    assert np.array_equal(tiny_predictor.prepare(plain), tiny_predictor.prepare(changed))
    assert not np.array_equal(whole.predict([whole.prepare(plain)]), whole.predict([whole.prepare(changed)]))


def _png(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def test_records_say_nothing_of_the_central_square() -> None:
    """Records from before whole images keep their digests, and their images' looks stay comparable."""
    assert Preprocessing(75, "area").to_dict() == {"size": 75, "resize": "area", "decode_ratio": 1}
    told = Preprocessing(75, "area", coverage="whole")
    assert told.to_dict()["coverage"] == "whole"
    assert Preprocessing.from_dict(told.to_dict()) == told
    assert preprocess.central(told.to_dict()) == Preprocessing(75, "area").to_dict()
    with pytest.raises(BundleError, match="asks for the unknown coverage 'most'"):
        Preprocessing.from_dict({"size": 75, "resize": "area", "coverage": "most"})


def test_a_bundle_for_whole_images_proves_itself_by_an_image_that_is_none_of_its_squares(
    whole: NetworkPredictor, tiny_weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plain = NetworkPredictor(
        whole.record.model_copy(update={"preprocessing": preprocess.central(whole.record.preprocessing)}), tiny_weights
    )

    def difference(data: bytes) -> float:
        central = plain.predict([plain.prepare(data)])
        return float(np.abs(whole.predict([whole.prepare(data)]) - central).max())

    # A random network tells most images hardly apart.
    data = max((jpeg(seed, 300, 100) for seed in range(40)), key=difference)
    assert difference(data) > 2 * bundle.GOLDEN_TOLERANCES[Precision.FLOAT32]
    scores = whole.predict([whole.prepare(data)])[0].tolist()
    path = bundle.write(tmp_path, whole.record, tiny_weights, {}, [bundle.Golden("wide.jpg", data, scores)])
    assert bundle.load(path, 2).predict([whole.prepare(data)])[0].tolist() == scores
    central = whole.record.model_copy(
        update={"version": 9, "preprocessing": preprocess.central(whole.record.preprocessing)}
    )
    wrong = bundle.write(tmp_path, central, tiny_weights, {}, [bundle.Golden("wide.jpg", data, scores)])
    with pytest.raises(BundleError, match=r"does not score its golden image wide\.jpg"):
        bundle.load(wrong)


@on_sqlite
def test_a_committee_may_have_a_member_for_whole_images(db: Database, members: Path) -> None:
    """It scores as the rule makes of its members' own scores, for images of every shape in one batch."""
    registry = random_bundles.LoadOnce(db, members)
    left = bundle.read(members / "left" / "1")
    derived = whole_of(left).model_copy(update={"version": 2, "parent": "left:1"})
    bundle.write_derived(members, derived, members / "left" / "1", {}, [])
    made = registry.load(random_bundles.combine(registry, members, "left:2", "own:1"), 4)
    assert isinstance(made, CommitteePredictor)
    chosen = images()[1:5]
    prepared = [made.prepare(data) for data in chosen]
    found = made.predict(prepared)
    own = [[network.fold(network.predict([network.prepare(data)]))[0] for network in made.networks] for data in chosen]
    assert np.array_equal(found, made.combine(own))
    assert np.array_equal(made.predict([prepared[2]])[0], found[2])
    blank = np.zeros((2, *made.input_shape), np.float32)
    assert np.isfinite(made.predict(blank)).all()
    assert registry.register("committee", "1", utc()).name == "committee"
