"""What Keras' backends do differently must not show; every test here means most when another one is chosen."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import TINY

from marcod.model import backend, bundle, network
from marcod.model.predictor import Predictor


def test_without_an_accelerator_training_is_single_precision() -> None:
    assert backend.on_cpu()
    assert backend.half_precision() == "float32"
    assert backend.training_compiler() == (keras.backend.backend() != "tensorflow")
    with backend.data_parallel() as devices:
        assert devices == 1


def test_several_models_in_one_process_are_no_reason_for_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """One of them too many: TensorFlow warns from the fifth on of functions that it takes for one."""
    image = keras.Input((2, 2, 3))
    model = keras.Model(image, keras.layers.Flatten()(image))
    images = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    with caplog.at_level("WARNING", logger="tensorflow"):
        for _ in range(8):
            np.testing.assert_array_equal(backend.scoring(model)(images), images.reshape(2, 12))
    assert "retracing" not in caplog.text


def test_a_device_with_too_little_memory_gets_half_batches() -> None:
    seen: list[int] = []

    def score(batch: np.ndarray) -> np.ndarray:
        """A device with room for three images; beyond, it really asks for more memory than any machine has."""
        seen.append(len(batch))
        if len(batch) > 3:
            tf.zeros([2**46])
        return batch.sum(axis=(1, 2, 3))[:, np.newaxis]

    scoring = backend.within_memory(score, 16)
    images = np.random.default_rng(1).normal(size=(16, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(scoring(images)[:, 0], images.sum(axis=(1, 2, 3)))
    assert seen == [16, 8, 4, *[2] * 8]
    # For good: a later batch does not try again what failed.
    scoring(images[:5])
    assert seen[11:] == [2, 2, 2]


def test_a_device_without_memory_for_one_image_says_so() -> None:
    def score(batch: np.ndarray) -> np.ndarray:
        return np.asarray(tf.zeros([2**46]))

    with pytest.raises(tf.errors.ResourceExhaustedError):
        backend.within_memory(score, 4)(np.zeros((4, 2, 2, 3), np.float32))


def test_another_failure_of_the_device_is_not_taken_for_a_lack_of_memory() -> None:
    def score(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        raise ValueError("broken")

    seen: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        backend.within_memory(score, 4)(np.zeros((4, 2, 2, 3), np.float32))
    assert seen == [4]


TWO_DEVICES = """
import json
import sys

import numpy as np
import tensorflow as tf

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])

import keras
from training_images import learnable
from marcod.model import backend
from marcod.fitting.batches import batches
from marcod.fitting.recipes import GENTLE


def trained():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.RMSprop(0.002), loss, jit_compile=False)
    losses = []
    for epoch in range(3):
        data, steps = batches(learnable(32), GENTLE, 16, batch_size=8, seed=1, epoch=epoch)
        losses += model.fit(data, steps_per_epoch=steps, verbose=0).history["loss"]
    return losses, np.concatenate([value.ravel() for value in model.get_weights()])


one, expected = trained()
with backend.data_parallel() as devices:
    both, found = trained()
print(json.dumps({"devices": devices, "one": one, "both": both, "apart": float(np.abs(found - expected).max())}))
"""


@pytest.mark.story
def test_two_devices_train_as_one_does() -> None:
    """In a process of its own, since devices are made before TensorFlow begins."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", TWO_DEVICES, str(Path(__file__).parents[1] / "support")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 2
    assert found["apart"] < 1e-5
    assert np.allclose(found["one"], found["both"], atol=1e-5)
    assert found["both"][-1] < 0.9 * found["both"][0]


def test_a_record_names_the_backend_that_made_it(tiny_predictor: Predictor) -> None:
    values = tiny_predictor.record.model_dump(exclude={"created_at", "libraries", "files"})
    libraries = bundle.new_record(**values).libraries
    name = keras.backend.backend()
    assert libraries[name] == importlib.import_module(name).__version__
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
