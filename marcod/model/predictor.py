"""Predictors: a network, or a committee of networks, behind the same calls.

Callers prepare an image's bytes, stack what they get, and predict. What an input looks like is the predictor's own
matter: a network takes its pixels, a committee those of all its members, laid one after another.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marcod.errors import BundleError
from marcod.model.probabilities import softmax

if TYPE_CHECKING:
    from marcod.model.bundle import BundleRecord


class Predictor(ABC):
    """Model that scores images in batches of one shape.

    :meth:`prepare` and :meth:`inputs` may run in many threads; the rest belongs to one thread at a time.
    """

    def __init__(self, record: "BundleRecord", batch_size: int) -> None:
        from marcod.model import bundle

        self.record, self.batch_size = record, batch_size
        self._room: NDArray[np.float32] | None = None
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
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one prepared image."""

    @abstractmethod
    def inputs(self, data: bytes, wanted: Collection[int]) -> dict[int, NDArray[np.float32]]:
        """Prepare an image's bytes for the wanted ones of :attr:`networks`, decoded once. Raises ImageError."""

    @abstractmethod
    def prepare(self, data: bytes) -> NDArray[np.float32]:
        """Prepare an image's bytes, float32 of :attr:`input_shape`. Raises ImageError."""

    @abstractmethod
    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits float32 [n, classes] of prepared images, before the temperature."""

    def stack(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Lay up to ``batch_size`` prepared images into one batch, which is valid until the next call.

        Its memory is kept, because the kernel takes longer to find new pages than the images to be copied.
        """
        if self._room is None:
            self._room = np.empty((self.batch_size, *self.input_shape), np.float32)
        return np.stack(prepared, out=self._room[: len(prepared)])

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict probabilities float32 [n, classes] of prepared images [n, ...], n up to ``batch_size``.

        The networks are compiled for one shape, whatever n is. Raises ValueError on other shapes.
        """
        return softmax(self.logits(batch) / self.record.temperature)

    def fold(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fold probabilities of the model's own classes [n, classes] to float32 [n, 4], columns as domain.CLASSES."""
        return np.asarray(probabilities @ self._fold, np.float32)

    def _check(self, batch: NDArray[np.float32]) -> None:
        if batch.shape[1:] != self.input_shape or len(batch) > self.batch_size:
            raise ValueError(f"a batch must be [up to {self.batch_size}, {self.input_shape}], not {batch.shape}")


class NetworkPredictor(Predictor):
    """Predictor of one network; an input is its pixels, float32 [size, size, 3] in -1..1."""

    def __init__(self, record: "BundleRecord", weights: Mapping[str, NDArray[np.float32]], batch_size: int = 8) -> None:
        # Here, not above: reading a record must not cost the seconds that importing TensorFlow takes.
        from marcod import images
        from marcod.model import families, network, preprocess

        super().__init__(record, batch_size)
        architecture = families.architecture(record.architecture)
        self._preprocessing = preprocess.Preprocessing.from_dict(record.preprocessing)
        if architecture.classes != len(record.classes) or architecture.input_size != self._preprocessing.size:
            raise BundleError(
                f"bundle {record.name} contradicts itself: {architecture.classes} outputs at {architecture.input_size} "
                f"pixels, but {len(record.classes)} classes and images of {self._preprocessing.size} pixels"
            )
        self._pixels = (architecture.input_size, architecture.input_size, 3)
        self._inspect, self._decoded, self._shape = images.inspect, preprocess.decoded, preprocess.prepare
        self._logits = network.compiled(architecture, weights, batch_size, record.precision)

    @property
    def networks(self) -> "tuple[NetworkPredictor, ...]":
        return (self,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._pixels

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
        return self._shape(rgb, self._preprocessing)

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._check(batch)
        return self._logits(batch)


class CommitteePredictor(Predictor):
    """Predictor of a committee; an input is the pixels of all members, one after another, float32 [numbers]."""

    def __init__(self, record: "BundleRecord", members: Sequence[NetworkPredictor], batch_size: int = 8) -> None:
        super().__init__(record, batch_size)
        assert record.committee is not None
        self._committee, self._members = record.committee, tuple(members)
        self._ends = np.cumsum([int(np.prod(member.input_shape)) for member in members]).tolist()

    @property
    def networks(self) -> tuple[NetworkPredictor, ...]:
        return self._members

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self._ends[-1],)

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        found = self.inputs(data, range(len(self._members)))
        return np.concatenate([found[index].reshape(-1) for index in range(len(self._members))])

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

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._committee.logits(self.scores(batch))

    def scores(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the members' probabilities of prepared images, float32 [n, members, 4] as domain.CLASSES."""
        self._check(batch)
        scores = [
            member.fold(member.predict(np.ascontiguousarray(part).reshape(len(batch), *member.input_shape)))
            for member, part in zip(self._members, np.split(batch, self._ends[:-1], axis=1), strict=True)
        ]
        return np.stack(scores, axis=1)

    def combine(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Return probabilities float32 [n, 4] from the members' own, [n, members, 4] as domain.CLASSES."""
        return softmax(self._committee.logits(scores) / self.record.temperature)
