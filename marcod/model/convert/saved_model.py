"""Published SavedModel: read without being run, then run on images for comparison.

Guarantees:

* Nothing of a SavedModel is run before every operation in it has been found among those of the published graph.
* What then runs is only what leads from an image's bytes to its scores, on the CPU.
* No operation that reads, writes or restores files is ever part of it, because the variables are fed from the
  checkpoint that was read beforehand.

Source: the graph of the published SavedModel (TensorFlow 1.5, Apache-2.0).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tensorflow.core.protobuf import saved_model_pb2

from marcod.errors import BundleError
from marcod.model.convert.checkpoint import first_line
from marcod.text import some

GRAPH_FILE: Final = "saved_model.pb"
SIGNATURE: Final = "serving_default"
GRAPH_BYTES: Final = 64 << 20
"""Largest graph that is parsed; the published one, without weights in it, has 2 MB."""

_BATCH: Final = 4

_SERVING: Final = frozenset(
    {
        "Add", "All", "Assert", "AvgPool", "BiasAdd", "Cast", "ConcatV2", "Const", "Conv2D", "DecodeJpeg",
        "Enter", "Equal", "Exit", "ExpandDims", "FloorDiv", "FusedBatchNorm", "Greater", "GreaterEqual",
        "HashTableV2", "Identity", "InitializeTableV2", "Less", "LookupTableFindV2", "LoopCond", "MaxPool",
        "Maximum", "Merge", "Minimum", "Mul", "Neg", "NextIteration", "NoOp", "Pack", "Pad", "Range", "Relu",
        "Reshape", "ResizeBilinear", "Shape", "Slice", "Softmax", "Squeeze", "StridedSlice", "Sub", "Switch",
        "TensorArrayGatherV3", "TensorArrayReadV3", "TensorArrayScatterV3", "TensorArraySizeV3", "TensorArrayV3",
        "TensorArrayWriteV3", "TopKV2", "Unpack", "VariableV2",
    }
)  # fmt: skip
"""Operations of the published graph between an image's bytes and its scores; none touches a file."""

_BYSTANDERS: Final = frozenset(
    {
        "Assign", "Fill", "L2Loss", "MergeV2Checkpoints", "ParseExample", "Placeholder", "RestoreV2", "SaveV2",
        "ShardedFilename", "StringJoin", "TruncatedNormal",
    }
)  # fmt: skip
"""Further operations of the published graph, which start, save and restore it. They may be there and never run."""


@dataclass(frozen=True)
class PublishedGraph:
    """The part of a graph that may run: from bytes to scores, with its tensors' names and the classes by logit."""

    way: Any
    image_bytes: str
    classes_output: str
    scores_output: str
    initializer: str
    classes: tuple[str, ...]


def read(folder: Path) -> PublishedGraph:
    """Parse and examine the graph of the SavedModel in ``folder``. Raises BundleError for any other than MARCO's."""
    meta = _serving_graph(_parsed(folder / GRAPH_FILE))
    inputs, outputs = _signature(meta)
    graph = meta.graph_def
    _refuse_operations(graph)
    table, indices = _lookup(graph, outputs["classes"])
    if _node_of(indices) != _node_of(outputs["scores"]) or _nodes(graph)[_node_of(indices)].op != "TopKV2":
        raise _foreign("its classes do not belong to its scores")
    initializer, classes = _table_contents(graph, table)
    way = _extract(graph, (*outputs.values(), initializer), stop=inputs["image_bytes"])
    return PublishedGraph(way, inputs["image_bytes"], outputs["classes"], outputs["scores"], initializer, classes)


def score(
    graph: PublishedGraph,
    variables: Mapping[str, NDArray[np.float32]],
    images: Sequence[bytes],
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Probabilities float32 [n, classes] that the graph itself gives images from their bytes.

    The graph sorts each image's scores; here they are back in the order of its classes. Raises BundleError when
    the graph cannot be run.
    """
    used = [node.name for node in graph.way.node if node.op == "VariableV2"]
    if unknown := [name for name in used if name not in variables]:
        raise BundleError(f"the graph uses the variable {unknown[0]}, which this network does not have")
    rows: list[NDArray[np.float32]] = []
    try:
        with _session(graph, {name: variables[name] for name in used}) as run:
            for start in range(0, len(images), _BATCH):
                names, scores = run(list(images[start : start + _BATCH]))
                rows.extend(_by_class(n, s, graph.classes) for n, s in zip(names, scores, strict=True))
                if progress is not None:
                    progress(len(rows))
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise BundleError(f"the SavedModel's graph cannot be run: {first_line(error)}") from error
    return np.stack(rows)


def _parsed(file: Path) -> Any:
    try:
        if file.stat().st_size > GRAPH_BYTES:
            raise _foreign(f"its {GRAPH_FILE} is larger than {GRAPH_BYTES:,} bytes")
        return saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise BundleError(f"{GRAPH_FILE} is damaged: it is not a SavedModel ({error})") from error
    except OSError as error:
        raise BundleError(f"{GRAPH_FILE} cannot be read: {error.strerror}") from error


def _foreign(why: str) -> BundleError:
    return BundleError(f"this SavedModel is not the published MARCO model: {why}")


def _serving_graph(model: Any) -> Any:
    found = [meta for meta in model.meta_graphs if list(meta.meta_info_def.tags) == ["serve"]]
    if len(found) != 1:
        raise _foreign(f"it has {len(found)} graphs tagged 'serve', where there must be one")
    return found[0]


def _signature(meta: Any) -> tuple[dict[str, str], dict[str, str]]:
    if SIGNATURE not in meta.signature_def:
        raise _foreign(f"it has no signature {SIGNATURE}")
    signature = meta.signature_def[SIGNATURE]
    inputs = {key: tensor.name for key, tensor in signature.inputs.items()}
    outputs = {key: tensor.name for key, tensor in signature.outputs.items()}
    if set(inputs) != {"image_bytes"} or set(outputs) != {"classes", "scores"}:
        raise _foreign(
            f"its signature takes {', '.join(sorted(inputs)) or 'nothing'} and gives "
            f"{', '.join(sorted(outputs)) or 'nothing'}, and must take image_bytes and give classes and scores"
        )
    nodes = _nodes(meta.graph_def)
    for tensor in (*inputs.values(), *outputs.values()):
        if _node_of(tensor) not in nodes:
            raise _foreign(f"its signature names {tensor}, which its graph does not have")
    return inputs, outputs


def _refuse_operations(graph: Any) -> None:
    bodies = [node for function in graph.library.function for node in function.node_def]
    if strange := sorted({node.op for node in (*graph.node, *bodies)} - _SERVING - _BYSTANDERS):
        raise _foreign(f"its graph holds operations that MARCO's does not: {some(strange, 5)}")


def _nodes(graph: Any) -> dict[str, Any]:
    return {node.name: node for node in graph.node}


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _lookup(graph: Any, classes_output: str) -> tuple[str, str]:
    """Find the table of the classes' names, and the tensor of indices looked up in it."""
    nodes = _nodes(graph)
    find = nodes[_node_of(classes_output)]
    if find.op != "LookupTableFindV2" or len(find.input) < 2:
        raise _foreign("its classes do not come out of a table of names")
    indices = find.input[1]
    cast = nodes.get(_node_of(indices))
    if cast is not None and cast.op == "Cast":
        indices = cast.input[0]
    if _node_of(indices) not in nodes:
        raise _foreign("its table of names is asked with nothing")
    return _node_of(find.input[0]), indices


def _table_contents(graph: Any, table: str) -> tuple[str, tuple[str, ...]]:
    """Find the operation that fills the table, and the names by index."""
    fills = [n for n in graph.node if n.op == "InitializeTableV2" and n.input and _node_of(n.input[0]) == table]
    if len(fills) != 1 or len(fills[0].input) < 3:
        raise _foreign("the names of its classes are not in the graph")
    try:
        indices, names = _constants(graph, fills[0].input[1:3])
        by_index = {int(index): bytes(name).decode() for index, name in zip(indices, names, strict=True)}
    except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
        raise _foreign("the names of its classes cannot be read") from error
    classes = tuple(by_index[i] for i in sorted(by_index))
    readable = all(name.strip() and name.isprintable() for name in classes)
    if sorted(by_index) != list(range(len(names))) or len(set(classes)) != len(names) or not readable:
        raise _foreign(f"the names of its classes are not one a class: {', '.join(map(ascii, classes))}")
    return fills[0].name, classes


def _constants(graph: Any, tensors: Sequence[str]) -> list[Any]:
    """Values that depend on nothing but constants."""
    with tf.Graph().as_default() as loaded:
        full = [t if ":" in t else f"{t}:0" for t in tensors]
        tf.graph_util.import_graph_def(_extract(graph, full, stop=""), name="")
        with tf.compat.v1.Session(graph=loaded, config=_cpu_only()) as session:
            values: list[Any] = session.run(full)
            return values


def _extract(graph: Any, wanted: Sequence[str], *, stop: str) -> Any:
    """Cut out the part of a graph that ``wanted`` needs, without what is before ``stop`` and without device names."""
    nodes, kept = _nodes(graph), dict[str, Any]()
    waiting = [_node_of(name) for name in wanted]
    while waiting:
        name = waiting.pop()
        if name in kept or name == _node_of(stop):
            continue
        if name not in nodes:
            raise _foreign(f"its graph lacks {name}, which its scores depend on")
        kept[name] = nodes[name]
        waiting.extend(_node_of(i) for i in nodes[name].input)
    if outside := sorted({node.op for node in kept.values()} - _SERVING):
        raise _foreign(f"its scores depend on {outside[0]}, on which MARCO's do not")
    part = tf.compat.v1.GraphDef(versions=graph.versions)
    part.node.extend(kept.values())
    for node in part.node:
        node.device = ""
    return part


def _cpu_only() -> Any:
    """Configure the reference: it computes where rounding is exact and the same everywhere."""
    return tf.compat.v1.ConfigProto(device_count={"GPU": 0})


@contextmanager
def _session(
    graph: PublishedGraph, variables: Mapping[str, NDArray[np.float32]]
) -> Iterator[Callable[[list[bytes]], Any]]:
    """Return a function from images' bytes to class names and scores, sorted row by row as in the graph."""
    fed = _without_variables(graph.way)
    with tf.Graph().as_default() as loaded:
        images = tf.compat.v1.placeholder(tf.string, [None])
        places = {name: tf.compat.v1.placeholder(tf.float32, value.shape) for name, value in variables.items()}
        replaced = {graph.image_bytes: images, **{f"{name}:0": place for name, place in places.items()}}
        tf.graph_util.import_graph_def(fed, input_map=replaced, name="")
        with tf.compat.v1.Session(graph=loaded, config=_cpu_only()) as session:
            session.run(graph.initializer)
            values = {place: variables[name] for name, place in places.items()}
            yield lambda batch: session.run((graph.classes_output, graph.scores_output), {images: batch, **values})


def _without_variables(part: Any) -> Any:
    fed = tf.compat.v1.GraphDef(versions=part.versions)
    fed.node.extend(node for node in part.node if node.op != "VariableV2")
    for node in fed.node:
        # It asks to stand beside a variable, of which none is left.
        node.attr.pop("_class", None)
    return fed


def _by_class(names: Any, scores: Any, classes: Sequence[str]) -> NDArray[np.float32]:
    found = {bytes(name).decode(errors="replace"): float(score) for name, score in zip(names, scores, strict=True)}
    if set(found) != set(classes):
        raise _foreign(f"it gives scores for {', '.join(sorted(found))}, and not for {', '.join(classes)}")
    return np.array([found[name] for name in classes], np.float32)
