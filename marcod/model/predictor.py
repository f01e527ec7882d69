"""Predictors: a network, or a committee of networks, behind the same calls.

Callers prepare the bytes of images and predict what they get. What an input looks like is the predictor's own
matter: a network takes the pixels of one square, or of all squares of a whole image; a committee those of all its
members, laid one after another.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marcod.domain import CRYSTALS
from marcod.errors import BundleError
from marcod.model import squares
from marcod.model.probabilities import softmax

if TYPE_CHECKING:
    from marcod.model import engines
    from marcod.model.bundle import BundleRecord

Batch = NDArray[np.float32] | Sequence[NDArray[np.float32]]
"""Prepared images: of one shape in one array, or one after another."""


class Predictor(ABC):
    """Model that scores images in batches.

    :meth:`prepare` and :meth:`inputs` may run in many threads; the rest belongs to one thread at a time.
    """

    def __init__(self, record: "BundleRecord", batch_size: int) -> None:
        from marcod.model import bundle

        self.record, self.batch_size = record, batch_size
        self._fold = bundle.folding(record)

    @property
    def threshold(self) -> float:
        """The folded crystal probability from which a drop is called a hit."""
        return self.record.threshold.crystal

    @property
    @abstractmethod
    def networks(self) -> "tuple[NetworkPredictor, ...]":
        """The networks that see the image: a committee's members in its order, or a network itself alone."""

    @property
    @abstractmethod
    def engine(self) -> str:
        """The engine of the scores here: ``tensorflow``, another backend of Keras, or ``openvino``."""

    @property
    @abstractmethod
    def by_parts(self) -> bool:
        """True if threads of a processor take parts of a batch, so that more images at once are hardly faster."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one prepared image; of a square one where whole images are looked at."""

    @abstractmethod
    def inputs(self, data: bytes, wanted: Collection[int]) -> dict[int, NDArray[np.float32]]:
        """Prepare an image's bytes for the wanted ones of :attr:`networks`, decoded once. Raises ImageError."""

    @abstractmethod
    def prepare(self, data: bytes) -> NDArray[np.float32]:
        """Prepare an image's bytes, float32. Raises ImageError."""

    @abstractmethod
    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Return logits float32 [n, classes] of prepared images, before the temperature."""

    def predict(self, batch: Batch) -> NDArray[np.float32]:
        """Predict probabilities float32 [n, classes] of prepared images, n up to ``batch_size``.

        The networks are compiled for one shape, whatever n is. Raises ValueError on other shapes.
        """
        return softmax(self.logits(batch) / self.record.temperature)

    def fold(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fold probabilities of the model's own classes [n, classes] to float32 [n, 4], columns as domain.CLASSES."""
        return np.asarray(probabilities @ self._fold, np.float32)

    @abstractmethod
    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Check the shape of a prepared image."""

    def _check(self, batch: Batch) -> None:
        strange = [image.shape for image in batch if not self._fits(image.shape)]
        if strange or len(batch) > self.batch_size:
            shape = strange[0] if strange else self.input_shape
            raise ValueError(
                f"a batch must be [up to {self.batch_size}, {self.input_shape}], not {(len(batch), *shape)}"
            )


class NetworkPredictor(Predictor):
    """Predictor of one network; an input is its pixels, float32 [size, size, 3] in -1..1.

    Where it looks at whole images, an input is their squares, float32 [squares, size, size, 3].
    """

    def __init__(
        self,
        record: "BundleRecord",
        weights: Mapping[str, NDArray[np.float32]],
        batch_size: int = 8,
        engine: "engines.Setting" = "auto",
        quantized: "engines.QuantizedNetwork | None" = None,
    ) -> None:
        # Here, not above: reading a record must not cost the time that importing decoders takes.
        from marcod import images
        from marcod.model import engines, families, preprocess

        super().__init__(record, batch_size)
        architecture = families.architecture(record.architecture)
        self._preprocessing = preprocess.Preprocessing.from_dict(record.preprocessing)
        if architecture.classes != len(record.classes) or architecture.input_size != self._preprocessing.size:
            raise BundleError(
                f"bundle {record.name} contradicts itself: {architecture.classes} outputs at {architecture.input_size} "
                f"pixels, but {len(record.classes)} classes and images of {self._preprocessing.size} pixels"
            )
        self._pixels = (architecture.input_size, architecture.input_size, 3)
        self._whole = self._preprocessing.coverage == "whole"
        self._crystals = self._fold[:, CRYSTALS] > 0
        self._inspect, self._decoded = images.inspect, preprocess.decoded
        self._shape = preprocess.prepare_whole if self._whole else preprocess.prepare
        self._engine = engines.compiled(engine, architecture, weights, batch_size, record.precision, quantized)

    @property
    def engine(self) -> str:
        return self._engine.name

    @property
    def by_parts(self) -> bool:
        return self._engine.by_parts

    @property
    def networks(self) -> "tuple[NetworkPredictor, ...]":
        return (self,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, *self._pixels) if self._whole else self._pixels

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        with self.decoded(data) as rgb:
            return self.shape(rgb)

    def inputs(self, data: bytes, wanted: Collection[int]) -> dict[int, NDArray[np.float32]]:
        return {0: self.prepare(data)} if 0 in wanted else {}

    def ratio(self, data: bytes) -> int:
        """Return the part, 1 in so many, of its width and height at which an image is decoded. Raises ImageError."""
        header = self._inspect(data)
        return self._preprocessing.ratio(header.width, header.height)

    def decoded(self, data: bytes) -> AbstractContextManager[NDArray[np.uint8]]:
        """Yield an image as this network needs it, uint8 [height, width, 3], for the block alone. Raises ImageError."""
        return self._decoded(data, self._preprocessing)

    def shape(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Crop, resize and scale a decoded image to an input."""
        return self._shape(rgb, self._preprocessing, self._engine.resize)

    @property
    def looks_at_whole_images(self) -> bool:
        """True if an input is all squares of an image."""
        return self._whole

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        self._check(batch)
        if not self._whole:
            return self._engine.scoring(batch)
        every = [square for image in batch for square in image]
        found = np.empty((len(every), len(self.record.classes)), np.float32)
        for start in range(0, len(every), self.batch_size):
            part = every[start : start + self.batch_size]
            found[start : start + len(part)] = self._engine.scoring(part)
        ends = np.cumsum([len(image) for image in batch])
        return np.stack([squares.combined(own, self._crystals) for own in np.split(found, ends[:-1])])

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if not self._whole:
            return shape == self._pixels
        return shape[1:] == self._pixels and 0 < shape[0] <= squares.MOST


class CommitteePredictor(Predictor):
    """Predictor of a committee; an input is the pixels of all members, one after another, float32 [numbers].

    In front of them is for each member how many squares it has beyond the first.
    """

    def __init__(self, record: "BundleRecord", members: Sequence[NetworkPredictor], batch_size: int = 8) -> None:
        super().__init__(record, batch_size)
        assert record.committee is not None
        self._committee, self._members = record.committee, tuple(members)
        self._sizes = [int(np.prod(member.input_shape)) for member in members]

    @property
    def networks(self) -> tuple[NetworkPredictor, ...]:
        return self._members

    @property
    def engine(self) -> str:
        return self._members[0].engine

    @property
    def by_parts(self) -> bool:
        return all(member.by_parts for member in self._members)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (len(self._sizes) + sum(self._sizes),)

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        found = self.inputs(data, range(len(self._members)))
        flat = [found[index].reshape(-1) for index in range(len(self._members))]
        more = [len(pixels) // size - 1 for pixels, size in zip(flat, self._sizes, strict=True)]
        return np.concatenate([np.array(more, np.float32), *flat])

    def inputs(self, data: bytes, wanted: Collection[int]) -> dict[int, NDArray[np.float32]]:
        # Once for all that decode at the same size: another size's pixels would change a member's own scores.
        alike: dict[int, list[int]] = {}
        for index in wanted:
            alike.setdefault(self._members[index].ratio(data), []).append(index)
        found: dict[int, NDArray[np.float32]] = {}
        for indices in alike.values():
            with self._members[indices[0]].decoded(data) as rgb:
                found |= {index: self._members[index].shape(rgb) for index in indices}
        return found

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        return self._committee.logits(self.scores(batch))

    def scores(self, batch: Batch) -> NDArray[np.float32]:
        """Return the members' probabilities of prepared images, float32 [n, members, 4] as domain.CLASSES."""
        self._check(batch)
        apart = zip(*(self._apart(image) for image in batch), strict=True)
        pairs = zip(self._members, apart, strict=True)
        return np.stack([member.fold(member.predict(own)) for member, own in pairs], axis=1)

    def _apart(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Take a prepared image apart into those of the members."""
        counts = [1 + int(more) for more in image[: len(self._sizes)]]
        sizes = [count * size for count, size in zip(counts, self._sizes, strict=True)]
        parts = np.split(image[len(self._sizes) :], np.cumsum(sizes)[:-1])
        shapes = [member.input_shape for member in self._members]
        return [
            part.reshape(-1, *s[1:]) if len(s) > 3 else part.reshape(s) for part, s in zip(parts, shapes, strict=True)
        ]

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 1 and shape[0] >= self.input_shape[0]

    def combine(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Return probabilities float32 [n, 4] from the members' own, [n, members, 4] as domain.CLASSES."""
        return softmax(self._committee.logits(scores) / self.record.temperature)
