"""Backend-specific code (TensorFlow, JAX): compiled inference, gradients, devices; no other module depends on it.

All backends give the same numbers to float32 rounding.
"""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from shutil import which
from typing import Any, Final

import keras
import numpy as np

from marcod import telemetry
from marcod.domain import Precision
from marcod.errors import BundleError, HostLacksError, is_out_of_memory
from marcod.model import parts, processors
from marcod.model.parts import Scoring
from marcod.model.resize import Bilinear

log = telemetry.logger(__name__)

KEPT_BYTES: Final = 16 << 20
"""Largest crop whose copy a thread keeps, which is one of 2,364 pixels a side."""

_of_thread = threading.local()

Saliency = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def scoring(model: Any, batch_size: int | None = None) -> Scoring:
    """Compile ``model`` to a function from float32 [n, size, size, 3] to logits [n, classes].

    Compiled at its first call for some shape. With ``batch_size`` one shape is used, whatever n up to it is, so that an
    image's neighbours change no bit of its score: that size on a GPU and with JAX, parts of it on a CPU.
    """
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_scoring(model, batch_size)
    # JAX has no other way to compile.
    model.compile(jit_compile=True)
    return within_memory(model.predict_on_batch, batch_size)


def _tensorflow_scoring(model: Any, batch_size: int | None) -> Scoring:
    import tensorflow as tf

    constants = [np.asarray(variable) for variable in model.variables]

    # On a CPU this network is slower compiled by XLA.
    @tf.function(jit_compile=False, autograph=False)  # type: ignore[untyped-decorator]
    def run(batch: Any) -> Any:
        return model.stateless_call(constants, [], batch, training=False)[0]

    # Called by its name TensorFlow takes all models for one function, and warns that it is compiled again and again.
    @cache
    def compiled(shape: tuple[int, ...]) -> Any:
        return run.get_concrete_function(tf.TensorSpec(shape, tf.float32))

    def score(batch: np.ndarray) -> np.ndarray:
        logits: np.ndarray = compiled(batch.shape)(_tensor(np.asarray(batch, np.float32))).numpy()
        return logits

    if not takes_parts():
        return within_memory(score, batch_size)
    part = parts.size(model.input_shape[1], batch_size)
    return parts.at_once(parts.filled(score, lambda n: n if batch_size is None else part), part)


def takes_parts() -> bool:
    """Check that each thread of a processor takes a part of a batch: by TensorFlow where there is no GPU."""
    return keras.backend.backend() == "tensorflow" and on_cpu()


def name() -> str:
    """Return the name of Keras' backend."""
    return str(keras.backend.backend())


def bilinear() -> Bilinear | None:
    """Return TensorFlow's own resize where it is the backend, which takes half as long as ours; else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    def resized(square: np.ndarray, size: int) -> np.ndarray:
        with tf.device("/CPU:0"):
            found = tf.raw_ops.ResizeBilinear(
                images=_tensor((_in_one_piece(square) if square.size <= KEPT_BYTES else square)[np.newaxis]),
                size=(size, size),
                align_corners=False,
                half_pixel_centers=False,
            )
        pixels: np.ndarray = np.asarray(found)[0]
        return pixels

    return resized


def _in_one_piece(square: np.ndarray) -> np.ndarray:
    """Copy bytes of an image into memory of this thread, which is valid until its next call."""
    kept: np.ndarray | None = getattr(_of_thread, "square", None)
    if kept is None or len(kept) < square.size:
        kept = _of_thread.square = parts.aligned((square.size,), np.uint8)
    found: np.ndarray = kept[: square.size].reshape(square.shape)
    found[:] = square
    return found


def _tensor(values: np.ndarray) -> Any:
    """Take values into a tensor that must not outlive them: copied only where they do not lie as TensorFlow wants."""
    import tensorflow as tf

    flags = values.flags
    if flags.c_contiguous and flags.writeable and values.ctypes.data % parts.ALIGNED == 0:
        return tf.experimental.dlpack.from_dlpack(values.__dlpack__())
    return tf.constant(values)


def within_memory(score: Callable[[np.ndarray], np.ndarray], batch_size: int | None) -> Scoring:
    """Halve, for good, a batch shape that the device has no memory for.

    Raises what the device raises when it has none for a single image.
    """
    if batch_size is None:
        return parts.filled(score, lambda n: n)
    shape = batch_size

    def score_halved(batch: parts.Images) -> np.ndarray:
        nonlocal shape
        while True:
            try:
                return _of_shape(score, shape, batch)
            except Exception as error:
                if shape == 1 or not is_out_of_memory(error):
                    raise
                shape = (shape + 1) // 2
                log.warning("the device has too little memory, batches are halved", images=shape)

    return score_halved


def _of_shape(score: Callable[[np.ndarray], np.ndarray], shape: int, batch: parts.Images) -> np.ndarray:
    filled = parts.filled(score, lambda n: shape)
    return np.concatenate([filled(batch[start : start + shape]) for start in range(0, len(batch), shape)])


def gradient(model: Any, score: Callable[[Any, Any], Any]) -> Saliency:
    """Return a function of batch and members that gives logits and the slope of ``score(logits, members)``.

    Keras has no gradients of its own. Raises BundleError for a backend that has none here.
    """
    backend = keras.backend.backend()
    if backend not in _GRADIENTS:
        raise BundleError(f"gradients need KERAS_BACKEND {' or '.join(_GRADIENTS)}, not {backend}")
    return _GRADIENTS[backend](model, score)


def _tensorflow_gradient(model: Any, score: Callable[[Any, Any], Any]) -> Saliency:
    import tensorflow as tf

    @tf.function(jit_compile=False, autograph=False)  # type: ignore[untyped-decorator]
    def gradient(batch: Any, members: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(batch)
            logits = model(batch, training=False)
            total = score(logits, members)
        return logits, tape.gradient(total, batch)

    return lambda *given: tuple(found.numpy() for found in gradient(*map(tf.constant, given)))


def _jax_gradient(model: Any, score: Callable[[Any, Any], Any]) -> Saliency:
    import jax

    frozen = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]

    def total(batch: Any, members: Any, frozen: Any, rest: Any) -> Any:
        logits, _ = model.stateless_call(frozen, rest, batch, training=False)
        return score(logits, members), logits

    # The weights are arguments, because as constants they would be compiled into the program.
    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))

    def call(batch: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (_, logits), slopes = gradient(batch, members, frozen, rest)
        return np.asarray(logits), np.asarray(slopes)

    return call


_GRADIENTS: Final[dict[str, Callable[..., Saliency]]] = {"tensorflow": _tensorflow_gradient, "jax": _jax_gradient}


def devices() -> list[tuple[str, int | None]]:
    """List Keras' devices: each name, and its memory in bytes where the backend reports it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return [(device.name, _gpu_memory(index)) for index, device in enumerate(found)]
    import jax

    statistics = [(str(device), device.memory_stats() or {}) for device in jax.devices()]
    return [(name, known.get("bytes_limit")) for name, known in statistics]


def _gpu_memory(index: int) -> int | None:
    """Return all memory of a graphics card by its driver's program, since TensorFlow does not report it."""
    if (program := which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return int(output[index]) * 2**20 if index < len(output) and output[index].isdigit() else None


def on_cpu() -> bool:
    """Check that there is no accelerator to train on."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.get_visible_devices("GPU")
    import jax

    return str(jax.default_backend()) == "cpu"


def training_compiler() -> bool:
    """Return whether XLA compiles a training step: always but on a CPU with TensorFlow, where it is slower."""
    return keras.backend.backend() != "tensorflow" or not on_cpu()


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers with this Keras dtype policy, such as ``mixed_bfloat16``, in this thread."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


_POLICIES: Final = {
    Precision.FLOAT32: "float32",
    Precision.FLOAT16: "mixed_float16",
    Precision.BFLOAT16: "mixed_bfloat16",
}


def policy_of(precision: Precision) -> str:
    """Return the dtype policy of a network of this precision. Raises HostLacksError where this host has none."""
    if lacking := lacks(precision):
        raise HostLacksError(f"{socket.gethostname()} cannot calculate in {precision}: {lacking}")
    return _POLICIES[precision]


def lacks(precision: Precision) -> str | None:
    """Return what this host lacks to calculate in a precision; None if nothing."""
    if precision is Precision.FLOAT32:
        return None
    if precision not in _POLICIES:
        return f"{keras.backend.backend()} has no network of that precision"
    if on_cpu():
        return processors.lacks(precision)
    if keras.backend.backend() == "tensorflow" and _capability() < _LEAST_CAPABILITY[precision]:
        return f"its GPU has compute capability {'.'.join(map(str, _capability()))}"
    return None


_LEAST_CAPABILITY: Final = {Precision.FLOAT16: (7, 0), Precision.BFLOAT16: (8, 0)}


def _capability() -> tuple[int, int]:
    import tensorflow as tf

    (first, *_) = tf.config.get_visible_devices("GPU")
    major, minor = tf.config.experimental.get_device_details(first).get("compute_capability", (0, 0))
    return major, minor


def half_precision() -> str:
    """Return the Keras dtype policy of this device: half precision where the hardware multiplies in it."""
    if on_cpu():
        return "float32"
    if keras.backend.backend() != "tensorflow":
        return "mixed_bfloat16"
    for precision in (Precision.BFLOAT16, Precision.FLOAT16):
        if _capability() >= _LEAST_CAPABILITY[precision]:
            return _POLICIES[precision]
    return "float32"


@contextmanager
def data_parallel() -> Iterator[int]:
    """Build and train a model on all devices, each with its part of a batch; yield their number.

    They are this host's, and with :func:`join` those of all processes. Then each process feeds its own part.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        kind = "CPU" if on_cpu() else "GPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) < 2:
            yield 1
            return
        with tf.distribute.MirroredStrategy(devices).scope():
            yield len(devices)
        return
    devices = keras.distribution.list_devices()
    if len(devices) < 2:
        yield 1
        return
    with keras.distribution.DataParallel(devices=devices, auto_shard_dataset=share().of == 1).scope():
        yield len(devices)


@dataclass(frozen=True, slots=True)
class Share:
    """Part of every batch that this process takes: process ``number`` of so many, from 0."""

    number: int = 0
    of: int = 1

    def part(self, size: int) -> slice:
        """Return this process's rows of ``size``; all have as many, and no process has the rest."""
        rows = size // self.of
        return slice(self.number * rows, (self.number + 1) * rows)


def join(address: str, mine: Share) -> None:
    """Join other processes, of one device each, to train with JAX as one; the first one listens at ``address``.

    To be called before anything is calculated. A process that is lost ends all others.
    """
    import jax
    import tensorflow as tf

    # TensorFlow only reads images here.
    tf.config.set_visible_devices([], "GPU")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(address, mine.of, mine.number)


def leave() -> None:
    """Leave the others, once all of them are done."""
    import jax

    jax.distributed.shutdown()


def share() -> Share:
    """Return this process's part of every batch: all of it, unless it joined others."""
    if keras.backend.backend() != "jax":
        return Share()
    import jax

    return Share(jax.process_index(), jax.process_count())


def agreed(text: str) -> str:
    """Return the first process's text in all of them, at most :data:`_LONGEST` bytes; each waits for all others."""
    if share().of == 1:
        return text
    from jax.experimental import multihost_utils

    given = np.frombuffer(text.encode().ljust(_LONGEST), np.uint8)
    with alone():
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(given))).rstrip().decode()


_LONGEST: Final = 4096


@contextmanager
def alone() -> Iterator[None]:
    """Build and run a model on this process's own device, whatever others do."""
    if share().of == 1:
        yield
        return
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def is_lost_process(error: BaseException) -> bool:
    """Return True for what a step raises when another process is gone; the device's own lack of memory is another."""
    if share().of == 1 or is_out_of_memory(error):
        return False
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError)
