"""Networks in OpenVINO, built from a bundle's own weights: the engine of hosts without TensorFlow and Keras.

The layers are those of :mod:`marcod.model.network` with batch normalization folded, and so are the scores, to rounding.

Guarantees:

* Every number is float32, though processors with bfloat16 would take that unasked; of a version in bfloat16 what layers
  multiply is bfloat16.
* Nothing is downloaded, converted or sent: OpenVINO's Python tools, which report to their maker, are not imported.
"""

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marcod import quiet
from marcod.domain import Precision
from marcod.errors import BundleError
from marcod.model import memory, parts, weights
from marcod.model.architecture import Architecture
from marcod.model.engines import QuantizedNetwork
from marcod.model.network_layers import NetworkLayers, Padding

ov: Final = quiet.import_openvino()
ops: Final = ov.opset13

PIXELS: Final = parts.PIXELS // 2
"""Pixels that one thread takes at a time: one image of the published network is as fast as two, in less memory."""

_DEPTH, _ROWS = 1, 2
_TO_OPENVINO: Final = (3, 2, 0, 1)
_SAME: Final = "same_upper"


def build(architecture: Architecture, values: weights.Weights, images: int) -> Any:
    """Build the network from float32 [images, size, size, 3] in -1..1 to logits float32 [images, classes].

    Raises BundleError when the weights do not fit the architecture, or the input is too small.
    """
    wanted = weights.shapes(architecture, is_folded=True)
    net = _OpenVINOLayers(architecture, dict(weights.matched(wanted, weights.folded(values))), images)
    _, logits = weights.assembled(architecture, net)
    return ov.Model([logits], [net.given], architecture.root)


def compiled(
    architecture: Architecture, values: weights.Weights, batch_size: int, precision: Precision = Precision.FLOAT32
) -> parts.Scoring:
    """Compile the network to a function from float32 [n, size, size, 3] to logits [n, classes].

    One shape is used, whatever n is, so that an image's neighbours change no bit of its score. Raises BundleError as
    :func:`build` does.
    """
    part = parts.size(architecture.input_size, batch_size, PIXELS)
    made = build(architecture, values, part)
    memory.give_back()
    return scoring(made, part, precision)


def quantized(network: QuantizedNetwork, architecture: Architecture, batch_size: int) -> parts.Scoring:
    """Compile a network of 8-bit integers, as :func:`compiled`. Raises BundleError where it is of another shape."""
    try:
        model = ov.Core().read_model(network.graph, ov.Tensor(np.frombuffer(network.numbers, np.uint8)))
        given, made = (tuple(one.shape) for one in (model.input(0), model.output(0)))
    except (RuntimeError, IndexError) as error:
        raise BundleError("the bundle's quantized network cannot be read by this version of OpenVINO") from error
    if given != (1, architecture.input_size, architecture.input_size, 3) or made != (1, architecture.classes):
        raise BundleError(f"the bundle's quantized network is one from {list(given)} to {list(made)}")
    return scoring(model, 1)


def scoring(model: Any, part: int, precision: Precision = Precision.FLOAT32) -> parts.Scoring:
    """Compile a model of ``part`` images so that parts of a batch run at once, each on one thread."""
    threads = parts.threads()
    found = ov.Core().compile_model(model, "CPU", _settings(threads, precision))
    # Each has the memory of all layers, so there are no more than can work at once.
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(threads):
        free.put(found.create_infer_request())

    def score(batch: np.ndarray) -> np.ndarray:
        request = free.get()
        try:
            request.infer([ov.Tensor(np.require(batch, np.float32, ["C", "W"]), shared_memory=True)])
            logits: np.ndarray = request.get_output_tensor().data.copy()
            return logits
        finally:
            free.put(request)

    return parts.at_once(parts.filled(score, lambda n: part), part)


def processor() -> str:
    """Return the name of this host's processor."""
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))


def _settings(threads: int, precision: Precision) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BFLOAT16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        # Other processes work on this host too, and the operating system knows where.
        "ENABLE_CPU_PINNING": False,
    }


class _OpenVINOLayers(NetworkLayers):
    """Factory of layers with folded weights; tensors have the axes image, channel, row, column."""

    def __init__(self, architecture: Architecture, values: weights.Weights, images: int) -> None:
        self._root, self._ceiling = architecture.root, architecture.ceiling
        self._values, self._images = values, images
        self.given: Any = None

    def inputs(self, side: int, channels: int, name: str) -> Any:
        self.given = ops.parameter([self._images, side, side, channels], ov.Type.f32, name)
        return ops.transpose(self.given, _constant(np.array([0, 3, 1, 2])))

    def side(self, x: Any) -> int:
        return int(x.shape[_ROWS])

    def channels(self, x: Any) -> int:
        return int(x.shape[_DEPTH])

    def convolution(
        self,
        x: Any,
        name: str,
        filters: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: Padding = "same",
        *,
        linear: bool = False,
    ) -> Any:
        found = self._convolved(x, name, stride, padding)
        return found if linear else self._rectified(found)

    def depthwise(self, x: Any, name: str, kernel: int, stride: int) -> Any:
        kernels = self._weight(name, "depthwise_weights").transpose(2, 3, 0, 1)[:, :, np.newaxis]
        found = ops.group_convolution(x, _constant(kernels), [stride, stride], [0, 0], [0, 0], [1, 1], auto_pad=_SAME)
        return self._rectified(self._biased(found, name))

    def averaged_convolution(self, x: Any, name: str, filters: int) -> Any:
        return self._rectified(self.average(self._convolved(x, name, 1, "same"), 3, 1, "same"))

    def largest(self, x: Any) -> Any:
        return ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [3, 3], auto_pad="valid").output(0)

    def average(self, x: Any, size: int, stride: int, padding: Padding) -> Any:
        pads = _SAME if padding == "same" else padding
        return ops.avg_pool(x, [stride, stride], [0, 0], [0, 0], [size, size], True, auto_pad=pads)

    def mean(self, x: Any) -> Any:
        return ops.reduce_mean(x, _constant(np.array([2, 3])), keep_dims=True)

    def joined(self, parts: Sequence[Any]) -> Any:
        return ops.concat(list(parts), _DEPTH)

    def added(self, one: Any, other: Any) -> Any:
        return ops.add(one, other)

    def logits(self, x: Any, name: str, classes: int) -> Any:
        return ops.reshape(self._convolved(x, name, 1, "same"), _constant(np.array([self._images, classes])), False)

    def _convolved(self, x: Any, name: str, stride: int, padding: Padding) -> Any:
        kernels = self._weight(name, "weights").transpose(_TO_OPENVINO)
        pads = _SAME if padding == "same" else padding
        found = ops.convolution(x, _constant(kernels), [stride, stride], [0, 0], [0, 0], [1, 1], auto_pad=pads)
        return self._biased(found, name)

    def _biased(self, x: Any, name: str) -> Any:
        return ops.add(x, _constant(self._weight(name, "biases").reshape(1, -1, 1, 1)))

    def _rectified(self, x: Any) -> Any:
        return ops.relu(x) if self._ceiling is None else ops.clamp(x, 0.0, self._ceiling)

    def _weight(self, name: str, suffix: str) -> NDArray[np.float32]:
        return self._values[f"{self._root}/{name}/{suffix}"]


def _constant(values: NDArray[Any]) -> Any:
    return ops.constant(np.ascontiguousarray(values))
