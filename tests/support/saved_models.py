"""SavedModels built like the published one, for small members of the family, with random weights.

The graph is written with TensorFlow 1's own operations from the description of the Keras network, so that its scores
come about in another way than marcod's: from bytes, unfolded, and sorted row by row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tiny import TINY

from marcod.domain import CLASSES
from marcod.model import network
from marcod.model.inception import Inception
from marcod.model.weights import GLOBAL_STEP

FOUR = tuple(c.value for c in CLASSES)
STEP = 1_700_000

raw = tf.raw_ops


def random_variables(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Well-conditioned random numbers for variables of these names and shapes."""
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name == GLOBAL_STEP:
            values[name] = np.array(STEP, np.int64)
        elif name.endswith("weights"):
            values[name] = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        elif name.endswith("moving_variance"):
            values[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            values[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    return values


@cache
def _tiny_variables(classes: int) -> dict[str, np.ndarray]:
    architecture = replace(TINY, classes=classes, auxiliary=True)
    shapes = network.variable_shapes(network.build(architecture, auxiliary=True))
    return random_variables({GLOBAL_STEP: (), **shapes})


def tiny_variables(classes: int = 4) -> dict[str, np.ndarray]:
    """A checkpoint's worth of weights for TINY with an auxiliary head, and a step counter."""
    return dict(_tiny_variables(classes))


def write_checkpoint(prefix: Path, values: Mapping[str, np.ndarray]) -> Path:
    """A checkpoint in the format of TensorFlow 1's savers."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(values)
    raw.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[n]) for n in names],
    )
    return prefix


def write(
    folder: Path,
    *,
    classes: Sequence[str] = FOUR,
    values: Mapping[str, np.ndarray] | None = None,
    half_pixel_centres: bool = False,
    edit: Callable[[Any], object] | None = None,
) -> Path:
    """A SavedModel of TINY. ``edit`` may change its only meta graph; ``values`` are other variables than its own."""
    model = saved_model_pb2.SavedModel.FromString(_graph(tuple(classes), half_pixel_centres))
    if edit is not None:
        edit(model.meta_graphs[0])
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    write_checkpoint(folder / "variables" / "variables", tiny_variables(len(classes)) if values is None else values)
    return folder


def add_operation(op: str, name: str = "strange", inputs: Sequence[str] = ()) -> Callable[[Any], object]:
    """An edit that puts one more node into the graph."""
    return lambda meta: meta.graph_def.node.add(name=name, op=op, input=list(inputs))


@cache
def _graph(classes: tuple[str, ...], half_pixel_centres: bool) -> bytes:
    architecture = replace(TINY, classes=len(classes), auxiliary=True)
    variables = {n: v for n, v in tiny_variables(len(classes)).items() if n != GLOBAL_STEP}
    layers = network.build(architecture, auxiliary=True).get_config()["layers"]
    # Loops of TensorFlow 1 are spelled out in the graph; TensorFlow 2 would hide them in functions.
    tf.compat.v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            image_bytes = tf.compat.v1.placeholder(tf.string, [None], name="tf_example")
            images = _prepared(image_bytes, architecture.input_size, half_pixel_centres)
            logits = _network(layers, _variables(variables), images)
            names, scores = _sorted(raw.Softmax(logits=logits), classes)
    finally:
        tf.compat.v1.enable_control_flow_v2()
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.CopyFrom(graph.as_graph_def())
    signature = meta.signature_def["serving_default"]
    signature.inputs["image_bytes"].name = image_bytes.name
    signature.outputs["classes"].name = names.name
    signature.outputs["scores"].name = scores.name
    data: bytes = model.SerializeToString()
    return data


def _prepared(image_bytes: Any, size: int, half_pixel_centres: bool) -> Any:
    """Images float32 [n, size, size, 3] from bytes [n], one after the other in a loop."""
    count = tf.shape(image_bytes)[0]
    given = tf.TensorArray(tf.string, count).unstack(image_bytes)

    def one(index: Any, made: Any) -> tuple[Any, Any]:
        image = raw.Mul(x=tf.cast(tf.io.decode_jpeg(given.read(index), channels=3), tf.float32), y=1 / 255)
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        side = raw.Minimum(x=height, y=width)
        top, left = (raw.FloorDiv(x=raw.Sub(x=length, y=side), y=2) for length in (height, width))
        square = tf.slice(image, tf.stack([top, left, 0]), tf.stack([side, side, 3]))
        resized = raw.ResizeBilinear(
            images=tf.expand_dims(square, 0), size=[size, size], half_pixel_centers=half_pixel_centres
        )
        scaled = raw.Mul(x=raw.Sub(x=tf.squeeze(resized, [0]), y=0.5), y=2.0)
        return raw.Add(x=index, y=1), made.write(index, scaled)

    start = (tf.constant(0), tf.TensorArray(tf.float32, count))
    _, made = tf.compat.v1.while_loop(lambda index, _: raw.Less(x=index, y=count), one, start)
    return made.stack()


def _variables(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of TensorFlow 1, set to nothing by an initializer; only the checkpoint has their true values."""
    found = {}
    for name, value in values.items():
        variable = raw.VariableV2(shape=value.shape, dtype=tf.float32, name=name)
        raw.Assign(ref=variable, value=tf.fill(value.shape, 0.0), name=f"{name}/Assign")
        found[name] = tf.identity(variable, name=f"{name}/read")
    return found


def _network(layers: Sequence[Any], variables: Mapping[str, Any], images: Any) -> Any:
    """The logits, by the Keras network's description and without Keras."""
    tensors = {"image": images}
    for layer in layers:
        config, name = layer["config"], layer["config"]["name"]
        if layer["class_name"] == "InputLayer":
            continue
        inputs = [tensors[source] for source in _sources(layer["inbound_nodes"][0]["args"][0])]
        owner = f"{Inception.root}/{name.replace('.', '/')}"
        tensors[name] = _OPERATIONS[layer["class_name"]](inputs, config, variables, owner)
    return tensors["Logits.Conv2d_1c_1x1.Squeeze"]


def _sources(argument: Any) -> list[str]:
    given = argument if isinstance(argument, (list, tuple)) else [argument]
    return [tensor["config"]["keras_history"][0] for tensor in given]


def _conv(inputs: list[Any], config: dict[str, Any], variables: Mapping[str, Any], owner: str) -> Any:
    strides, padding = [1, *config["strides"], 1], config["padding"].upper()
    x = raw.Conv2D(input=inputs[0], filter=variables[f"{owner}/weights"], strides=strides, padding=padding)
    return raw.BiasAdd(value=x, bias=variables[f"{owner}/biases"]) if config["use_bias"] else x


def _batch_norm(inputs: list[Any], config: dict[str, Any], variables: Mapping[str, Any], owner: str) -> Any:
    beta, mean, variance = (variables[f"{owner}/{kind}"] for kind in ("beta", "moving_mean", "moving_variance"))
    scale = tf.constant(1.0, shape=beta.shape)
    return raw.FusedBatchNorm(
        x=inputs[0], scale=scale, offset=beta, mean=mean, variance=variance, epsilon=0.001, is_training=False
    ).y


def _pool(operation: Callable[..., Any], argument: str) -> Callable[..., Any]:
    def pool(inputs: list[Any], config: dict[str, Any], *_: Any) -> Any:
        ksize, strides = [1, *config["pool_size"], 1], [1, *config["strides"], 1]
        return operation(**{argument: inputs[0]}, ksize=ksize, strides=strides, padding=config["padding"].upper())

    return pool


def _average_all(inputs: list[Any], *_: Any) -> Any:
    _, height, width, _ = inputs[0].shape
    return raw.AvgPool(value=inputs[0], ksize=[1, height, width, 1], strides=[1, 1, 1, 1], padding="VALID")


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv2D": _conv,
    "BatchNormalization": _batch_norm,
    "ReLU": lambda inputs, *_: raw.Relu(features=inputs[0]),
    "MaxPooling2D": _pool(raw.MaxPool, "input"),
    "AveragePooling2D": _pool(raw.AvgPool, "value"),
    "GlobalAveragePooling2D": _average_all,
    "Concatenate": lambda inputs, *_: tf.concat(inputs, 3),
    "Reshape": lambda inputs, *_: tf.squeeze(inputs[0], [1, 2]),
}


def _sorted(probabilities: Any, classes: Sequence[str]) -> tuple[Any, Any]:
    """Class names and scores, the best first, the names out of a table as in the published graph."""
    best = raw.TopKV2(input=probabilities, k=len(classes))
    table = raw.HashTableV2(key_dtype=tf.int64, value_dtype=tf.string)
    keys = tf.cast(tf.range(len(classes)), tf.int64)
    raw.InitializeTableV2(table_handle=table, keys=keys, values=tf.constant(list(classes)))
    names = raw.LookupTableFindV2(
        table_handle=table, keys=tf.cast(best.indices, tf.int64), default_value=tf.constant("UNK")
    )
    return names, best.values
