"""What a test's own model needs beside a ``prepare`` to be decoded for and scored with as a network is."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


class OneNetwork:
    """A network of the test's own, which overrides ``prepare``."""

    engine = "double"
    by_parts = False

    @property
    def networks(self) -> tuple["OneNetwork", ...]:
        return (self,)

    def inputs(self, data: bytes, wanted: Collection[int]) -> dict[int, NDArray[np.float32]]:
        return {index: self.prepare(data) for index in wanted}

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        raise NotImplementedError
