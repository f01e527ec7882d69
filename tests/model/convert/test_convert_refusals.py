"""Whatever is wrong with a source is named in one sentence, and the folder of models stays as it was."""

import hashlib
import http.server
import json
import re
import shutil
import stat
import struct
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import saved_models
import tensorflow as tf
from saved_models import add_operation
from test_convert import import_tiny, keras_file, tree

from marcod.errors import BundleError, ConfigError, MarcodError
from marcod.model.convert import ArchiveLimits, saved_model, sources
from marcod.model.convert.checkpoint import Checkpoint, refuse_misfits

pytestmark = pytest.mark.story

Variables = dict[str, np.ndarray]
Refused = Callable[..., str]

BIAS = "Inception/Logits/Conv2d_1c_1x1/biases"
NORM = "Inception/Conv2d_1a_3x3/BatchNorm/moving_variance"


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Import in vain and return the sentence; nothing may have changed anywhere."""
    models, scratch = tmp_path / "models", tmp_path / "scratch"
    (models / "marco" / "1").mkdir(parents=True)
    (models / "marco" / "1" / "bundle.toml").write_text("another one")
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def attempt(source: object, *, error: type[MarcodError] = BundleError, **options: Any) -> str:
        before = tree(models), sorted(models.rglob("*"))
        with pytest.raises(error) as caught:
            import_tiny(str(source), models, **options)
        assert (tree(models), sorted(models.rglob("*"))) == before
        assert list(scratch.iterdir()) == []
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert len(sentence) < 700
        return sentence

    return attempt


def without(*names: str) -> Callable[[Variables], Variables]:
    return lambda v: {n: x for n, x in v.items() if n not in names}


def with_value(name: str, value: np.ndarray) -> Callable[[Variables], Variables]:
    return lambda v: {**v, name: value}


VARIABLES: dict[str, tuple[Callable[[Variables], Mapping[str, np.ndarray]], str]] = {
    "dropped": (without(BIAS), f"1 missing: {BIAS}"),
    "extra": (with_value("Inception/Extra/weights", np.ones(2, np.float32)), "1 extra: Inception/Extra/weights"),
    "shape": (with_value(NORM, np.ones(9, np.float32)), f"1 of another shape: {NORM} is (9,), not (8,)"),
    "not a number": (
        with_value(BIAS, np.array([0, np.nan, 0, 0], np.float32)),
        f"1 variables hold values that are not finite numbers: {BIAS}",
    ),
    "another type": (with_value(BIAS, np.ones(4, np.float64)), f"the variable {BIAS} is float64"),
}


@pytest.mark.parametrize("kind", VARIABLES)
def test_variables_that_do_not_fit_are_named(tmp_path: Path, refused: Refused, kind: str) -> None:
    change, message = VARIABLES[kind]
    source = saved_models.write(tmp_path / "sm", values=change(saved_models.tiny_variables()))
    assert message in refused(source)


def test_many_misfits_are_one_sentence() -> None:
    wanted = {f"layer{i}": (i, 2) for i in range(9)}
    found = {f"slim{i}": (i, 2) for i in range(1, 8)} | {"layer8": (8,), "layer7": (7, 2)}
    with pytest.raises(BundleError) as caught:
        refuse_misfits(found, wanted)
    assert str(caught.value) == (
        "the variables are not those of this network; "
        "7 missing: layer0, layer1, layer2, layer3, layer4 and 2 more; "
        "7 extra: slim1, slim2, slim3, slim4, slim5 and 2 more; "
        "1 of another shape: layer8 is (8,), not (8, 2)"
    )


def _drop_signature(meta: Any) -> None:
    del meta.signature_def["serving_default"]


def _rename_input(meta: Any) -> None:
    signature = meta.signature_def["serving_default"]
    signature.inputs["image"].CopyFrom(signature.inputs["image_bytes"])
    del signature.inputs["image_bytes"]


def _point_nowhere(meta: Any) -> None:
    meta.signature_def["serving_default"].outputs["scores"].name = "nowhere:0"


def _call_a_function(meta: Any) -> None:
    body = meta.graph_def.library.function.add()
    body.signature.name = "helpful"
    body.node_def.add(name="write", op="WriteFile")


def _score_from_a_file(meta: Any) -> None:
    """Operations that a saver needs, now on the way from image to score."""
    softmax = next(n for n in meta.graph_def.node if n.op == "Softmax")
    meta.graph_def.node.add(name="r", op="RestoreV2", input=["tf_example", "tf_example", "tf_example"])
    softmax.input[0] = "r"


def _edit_constant(op: str, old: bytes, new: bytes) -> Callable[[Any], object]:
    def edit(meta: Any) -> None:
        nodes = [n for n in meta.graph_def.node if n.op == op and old in n.SerializeToString()]
        assert nodes
        for node in nodes:
            node.ParseFromString(node.SerializeToString().replace(old, new))

    return edit


def _table_of_numbers(meta: Any) -> None:
    meta.signature_def["serving_default"].outputs["classes"].name = "TopKV2:1"


GRAPHS: dict[str, tuple[Callable[[Any], object], str]] = {
    "no serve tag": (lambda m: m.meta_info_def.tags.append("gpu"), "0 graphs tagged 'serve'"),
    "no signature": (_drop_signature, "no signature serving_default"),
    "another input": (_rename_input, "takes image and gives classes, scores, and must take image_bytes"),
    "signature to nowhere": (_point_nowhere, "names nowhere:0, which its graph does not have"),
    "reads files": (add_operation("ReadFile"), "does not: ReadFile"),
    "writes files": (add_operation("WriteFile"), "does not: WriteFile"),
    "runs Python": (add_operation("PyFunc"), "does not: PyFunc"),
    "writes in a function": (_call_a_function, "does not: WriteFile"),
    "restores while scoring": (_score_from_a_file, "depend on RestoreV2"),
    "no names": (_table_of_numbers, "do not come out of a table of names"),
    "a name twice": (_edit_constant("Const", b"Other", b"Clear"), "not one a class: 'Clear', 'Crystals', 'Clear'"),
    "a name unreadable": (_edit_constant("Const", b"Other", b"Ot\x00er"), "not one a class"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_that_are_not_marco_s_are_never_run(tmp_path: Path, refused: Refused, kind: str) -> None:
    edit, message = GRAPHS[kind]
    sentence = refused(saved_models.write(tmp_path / "sm", edit=edit))
    assert sentence.startswith("this SavedModel is not the published MARCO model: ")
    assert message in sentence


def test_a_class_name_changed_by_one_byte_asks_what_it_is(tmp_path: Path, refused: Refused) -> None:
    source = saved_models.write(tmp_path / "sm", edit=_edit_constant("Const", b"Crystals", b"Crystalz"))
    assert "--class NAME=FOLDED each: Crystalz" in refused(source, error=ConfigError)


def test_other_preprocessing_is_found_by_the_scores(tmp_path: Path, refused: Refused) -> None:
    source = saved_models.write(tmp_path / "sm", half_pixel_centres=True)
    sentence = refused(source)
    assert "on synthetic-" in sentence
    assert re.search(r"differs by 0\.0\d", sentence)
    assert "1e-05 is allowed" in sentence


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Add(tf.Module):  # type: ignore[misc]
        @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return x + 1

    module, folder = Add(), tmp_path_factory.mktemp("foreign")
    tf.saved_model.save(module, str(folder), signatures=module.__call__)
    return folder


def test_a_foreign_saved_model(foreign: Path, refused: Refused) -> None:
    assert "its signature takes x and gives output_0" in refused(foreign)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def test_a_flipped_byte_of_the_graph_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """A graph has no checksum: what a flip makes of it is another graph, no graph, or the same but for a remark."""
    folder = saved_models.write(tmp_path / "sm")
    data = (folder / "saved_model.pb").read_bytes()
    refusals = []
    for position in range(0, len(data), len(data) // 60):
        (folder / "saved_model.pb").write_bytes(flipped(data, position))
        try:
            saved_model.read(folder)
        except BundleError as error:
            refusals.append(str(error))
    assert len(refusals) > 6
    assert all("MARCO" in sentence or "damaged" in sentence for sentence in refusals)


def test_half_a_graph(tmp_path: Path, refused: Refused) -> None:
    folder = saved_models.write(tmp_path / "sm")
    data = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(data[: len(data) // 2])
    assert "saved_model.pb is damaged" in refused(folder)


def test_a_flipped_byte_of_the_data_names_its_variable(tmp_path: Path, refused: Refused) -> None:
    folder = saved_models.write(tmp_path / "sm")
    file = folder / "variables" / "variables.data-00000-of-00001"
    data = file.read_bytes()
    file.write_bytes(flipped(data, len(data) // 2))
    sentence = refused(folder)
    assert "the checkpoint variables is damaged or incomplete: its variable Inception/" in sentence
    file.unlink()
    assert "is damaged or incomplete" in refused(folder)


def test_every_flipped_byte_of_the_index_is_noticed(tmp_path: Path) -> None:
    prefix = saved_models.write_checkpoint(tmp_path / "model", saved_models.tiny_variables())
    index = tmp_path / "model.index"
    data = index.read_bytes()
    noticed = []
    for position in range(0, len(data), len(data) // 50):
        index.write_bytes(flipped(data, position))
        try:
            assert Checkpoint(prefix).shapes.keys() == saved_models.tiny_variables().keys()
        except BundleError as error:
            noticed.append(str(error))
    assert len(noticed) > 40
    assert all("model is damaged or incomplete: model.index cannot be read" in sentence for sentence in noticed)


def test_a_flipped_byte_of_a_bundle(tmp_path: Path, tiny_bundle: Path, refused: Refused) -> None:
    for name in ("weights.npz", "golden/random-1.jpg", "metrics.json"):
        data = (tiny_bundle / name).read_bytes()
        (tiny_bundle / name).write_bytes(flipped(data, len(data) // 2))
        assert f"{name} has changed since it was written" in refused(tiny_bundle)
        (tiny_bundle / name).write_bytes(data)


def test_a_bundle_whose_golden_images_lie_elsewhere(tiny_bundle: Path, refused: Refused) -> None:
    old = (tiny_bundle / "golden/expected.json").read_bytes()
    new = json.dumps({"../../../random.jpg": [0.25] * 4}).encode()
    (tiny_bundle / "golden/expected.json").write_bytes(new)
    record = (tiny_bundle / "bundle.toml").read_text()
    digests = [hashlib.sha256(text).hexdigest() for text in (old, new)]
    (tiny_bundle / "bundle.toml").write_text(record.replace(*digests))
    assert "'../../../random.jpg' is not one of its files" in refused(tiny_bundle, name="other")


def test_what_a_bundle_says_itself_is_not_said_again(tiny_bundle: Path, refused: Refused) -> None:
    assert "without the options" in refused(tiny_bundle, error=ConfigError, licence="mine")
    assert "tiny" not in refused(tiny_bundle, error=ConfigError, name="No Name")


def zip_with(path: Path, *members: zipfile.ZipInfo | str, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for member in members:
            archive.writestr(member, data)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info


MEMBERS: dict[str, tuple[list[zipfile.ZipInfo | str], str]] = {
    "parent": (["ok.txt", "../x"], "its member '../x' could land outside"),
    "parent inside": (["a/../../x"], "its member 'a/../../x' could land outside"),
    "backslashes": (["..\\x"], r"its member '..\\x' could land outside"),
    "absolute": (["/etc/marcod-x"], "its member '/etc/marcod-x' has an absolute path"),
    "drive": (["C:/x"], "its member 'C:/x' has an absolute path"),
    "symlink": ([special("link", stat.S_IFLNK)], "its member 'link' is a link or a special file"),
    "device": ([special("null", stat.S_IFCHR)], "its member 'null' is a link or a special file"),
    "twice": (["a", "a"], "its member 'a' is there twice"),
    "control characters": (["a\x1b[31m"], r"its member 'a\x1b[31m' could land"),
    "too many": ([f"{i}" for i in range(9)], "has 9 members; more than 8 are not unpacked"),
    "file as folder": (["a", "a/b"], "cannot be unpacked: a/b: "),
    "no model": (["a.txt"], "holds no model: neither saved_model.pb"),
    "nothing": ([], "holds no model"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_zips_that_are_not_unpacked(tmp_path: Path, refused: Refused, kind: str) -> None:
    members, message = MEMBERS[kind]
    before = set(tmp_path.iterdir())
    archive = zip_with(tmp_path / "model.zip", *members, data=b"/etc/passwd")
    sentence = refused(archive, limits=ArchiveLimits(members=8))
    assert sentence.startswith("model.zip ")
    assert message in sentence
    assert set(tmp_path.iterdir()) - before == {archive}


def test_a_zip_bomb_is_left_alone(tmp_path: Path, refused: Refused) -> None:
    archive = zip_with(tmp_path / "model.zip", "small", "large", data=bytes(3 << 20))
    assert archive.stat().st_size < 10_000
    assert "with its member large it is larger" in refused(archive, limits=ArchiveLimits(unpacked_bytes=4 << 20))


def test_a_zip_that_lies_about_sizes(tmp_path: Path, refused: Refused) -> None:
    archive = zip_with(tmp_path / "model.zip", "large", data=bytes(3 << 20))
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<I", 3 << 20), struct.pack("<I", 5)))
    assert "its member large cannot be read" in refused(archive, limits=ArchiveLimits(unpacked_bytes=4 << 20))


def test_a_zip_with_a_flipped_byte(tmp_path: Path, refused: Refused) -> None:
    archive = zip_with(tmp_path / "model.zip", "saved_model.pb", data=bytes(range(256)) * 40)
    data = archive.read_bytes()
    archive.write_bytes(flipped(data, 60))
    assert "its member saved_model.pb cannot be read" in refused(archive)
    archive.write_bytes(data[:-30])
    assert "neither a zip" in refused(archive)


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("model.zip", b"not a zip", BundleError, "neither a zip nor"),
        ("model.zip", b"", BundleError, "neither a zip nor"),
        ("missing.zip", None, ConfigError, "there is no file or folder"),
        ("", None, BundleError, "holds no model"),
    ],
)
def test_sources_that_are_none(
    tmp_path: Path, refused: Refused, name: str, data: bytes | None, error: type[MarcodError], message: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    if data is not None:
        (folder / name).write_bytes(data)
    assert message in refused(folder / name, error=error)


def test_two_checkpoints_in_one_folder(tmp_path: Path, refused: Refused) -> None:
    for step in (1, 2):
        saved_models.write_checkpoint(tmp_path / "given" / f"model-{step}", {"a": np.ones(1, np.float32)})
    assert "holds 2 checkpoints; name one of them: model-2.index" in refused(tmp_path / "given")


@pytest.mark.parametrize("name", ["Marco", "../up", "", "a/b", "."])
def test_names_that_are_no_folder_s(tmp_path: Path, refused: Refused, name: str) -> None:
    assert "name" in refused(tmp_path, error=ConfigError, name=name)


def test_folders_of_images_without_images(tmp_path: Path, refused: Refused) -> None:
    source = saved_models.write(tmp_path / "sm")
    images = tmp_path / "images"
    images.mkdir()
    assert "no JPEG below" in refused(source, error=ConfigError, images=images)
    (images / "a.jpg").write_bytes(b"text")
    assert "a.jpg cannot be used for comparison" in refused(source, error=ConfigError, images=images)


class _Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and a few answers that a bad server gives."""

    def do_GET(self) -> None:
        if self.path in ("/short", "/huge"):
            self.send_response(200)
            if self.path == "/short":
                self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(100 if self.path == "/short" else 1 << 20))
        elif self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def test_a_download_is_what_the_server_has(tmp_path: Path, server: tuple[str, Path]) -> None:
    url, folder = server
    made = shutil.make_archive(str(folder / "model"), "zip", saved_models.write(tmp_path / "sm"))
    calls: list[tuple[str, int, int]] = []
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = sources.fetch(f"{url}/model.zip?token=secret", scratch, ArchiveLimits(), lambda *call: calls.append(call))
    assert found.kind is sources.ModelFormat.SAVED_MODEL
    assert found.name == f"{url}/model.zip"
    assert found.sha256 == hashlib.sha256(Path(made).read_bytes()).hexdigest()
    assert tree(found.path) == tree(tmp_path / "sm")
    assert calls
    assert calls[-1][0] == "downloading, MB"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent.zip", "the server answers 404"),
        ("/large.zip", "has 3,000 bytes; more than 2,000 are not downloaded"),
        ("/huge", "it is larger than the 2,000 bytes"),
        ("/short", "the connection ended after 100 of 1,000 bytes"),
        ("/elsewhere", "the server answers 302"),
        ("/text.txt", "is not a zip"),
    ],
)
def test_downloads_that_fail(refused: Refused, server: tuple[str, Path], path: str, message: str) -> None:
    url, folder = server
    (folder / "large.zip").write_bytes(bytes(3000))
    (folder / "text.txt").write_text("hello")
    sentence = refused(url + path, limits=ArchiveLimits(download_bytes=2000))
    assert url + path in sentence
    assert message in sentence


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/model.zip", "https:///model.zip"])
def test_other_places_are_not_asked(refused: Refused, url: str) -> None:
    assert "https:// or http:// alone" in refused(url, error=ConfigError)


def test_nobody_listens(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "cannot download http://127.0.0.1:1/x.zip: " in refused("http://127.0.0.1:1/x.zip?token=secret")


@pytest.mark.parametrize("login", ["user:secret", "user:se/cret", "user:1/cret", "user:1#cret", "user:1?cret"])
def test_a_url_with_a_login_is_refused_without_repeating_it(refused: Refused, login: str) -> None:
    sentence = refused(f"http://{login}@127.0.0.1:1/x.zip", error=ConfigError)
    assert "not fetched from a URL with a login" in sentence
    assert "cret" not in sentence


def test_another_network_in_a_keras_file(tmp_path: Path, refused: Refused) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "m.keras")
    assert "the Keras file is not our network: it takes 3 pixels" in refused(tmp_path / "m.keras")


def test_keras_files_that_are_not_quite_ours(tmp_path: Path, refused: Refused) -> None:
    folder = tmp_path / "inside"
    with zipfile.ZipFile(keras_file(tmp_path, saved_models.tiny_variables(), auxiliary=False)) as archive:
        archive.extractall(folder)
    config, weights = ((folder / name).read_bytes() for name in ("config.json", "model.weights.h5"))
    for old, new, message in (
        (b"Mixed_5b.Branch_0.Conv2d_0a_1x1", b"Mixed_5b.Branch_0.Conv2d_0x_1x1", "Conv2d_0x_1x1 with 8 filters where"),
        (b'"class_name": "Conv2D"', b'"class_name": "Lambda"', "it takes 75 pixels and has"),
        (b'"layers"', b'"strata"', "does not describe a network of ours"),
        (b"{", b"", "does not describe a network of ours"),
    ):
        assert old in config
        (folder / "config.json").write_bytes(config.replace(old, new))
        assert message in refused(folder)
    (folder / "config.json").write_bytes(config)
    (folder / "model.weights.h5").write_bytes(weights[: len(weights) // 2])
    assert "the Keras file's weights cannot be read" in refused(folder)
