"""What Keras' backends do differently must not show; every test here means most when another one is chosen."""

import importlib

import keras
import numpy as np
from tiny import TINY

from marcod import bundle, network, train
from marcod.bundle import Predictor


def test_the_running_average_is_of_the_weights_in_training() -> None:
    """JAX takes the weights out of the model while it trains; a callback must still find them."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=lambda y, p: keras.ops.mean(p), jit_compile=False)
    ones = np.ones((40, 1), np.float32)
    model.fit(ones, ones, batch_size=1, epochs=1, shuffle=False, verbose=0, callbacks=[train._RunningAverage()])
    average = -1.0
    for step in (10, 20, 30):
        average += 0.05 * (-(step + 1) - average)
    assert np.isclose(model.get_weights()[0][0, 0], average)


def test_a_record_names_the_backend_that_made_it(tiny_predictor: Predictor) -> None:
    values = tiny_predictor.record.model_dump(exclude={"created_at", "libraries", "files"})
    libraries = bundle.new_record(**values).libraries
    backend = keras.backend.backend()
    assert libraries[backend] == importlib.import_module(backend).__version__
    assert {"keras", "numpy", "pillow", "tensorflow"} <= libraries.keys()


def test_every_backend_starts_from_the_same_weights() -> None:
    keras.utils.set_random_seed(4)
    first = network.variables(network.build(TINY))
    keras.utils.set_random_seed(4)
    again = network.variables(network.build(TINY))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    kernel = first["Inception/Conv2d_4a_3x3/weights"]
    spread = np.sqrt(2 / np.prod(kernel.shape[:-1]))
    assert abs(kernel.std() / spread - 1) < 0.1
    assert np.abs(kernel).max() < 2.3 * spread
