"""A model from a stranger runs no code, names no file outside, and promises no more than it holds."""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from marcod.errors import BundleError
from marcod.model import bundle, families
from marcod.model.convert import keras_file


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file together with its checksum, as somebody who makes a bundle can."""
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_bytes(data)
    record = folder / "bundle.toml"
    record.write_text(record.read_text().replace(old, hashlib.sha256(data).hexdigest()))


def array(shape: tuple[int, ...], kind: str = "<f4", body: bytes = b"") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue() + body


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(f"{name}.npy", data)
    return made.getvalue()


def pickled() -> bytes:
    made = io.BytesIO()
    np.save(made, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return made.getvalue()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (archive(a=array((10**12,))), "as it says"),
        (archive(a=array((10**9, 10**9))), "as it says"),
        (archive(a=array((4,), "<f8", bytes(32))), "floating-point"),
        (archive(a=pickled()), "floating-point"),
        (archive(a=b"\x93NUMPY\x01\x00\x10\x00{'descr': __import"), "cannot be loaded"),
        (archive(a=b"no array"), "cannot be loaded"),
        (b"PK\x05\x06" + bytes(18), "."),
    ],
)
def test_weights_that_promise_too_much_are_not_read(tiny_bundle: Path, weights: bytes, message: str) -> None:
    rewrite(tiny_bundle, "weights.npz", weights)
    with pytest.raises(BundleError, match=message):
        bundle.load(tiny_bundle)


def test_weights_are_bounded_however_well_they_are_packed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "WEIGHTS_BYTES", 4 << 20)
    rewrite(tiny_bundle, "weights.npz", archive(a=array((1 << 20, 2), body=bytes(8 << 20))))
    with pytest.raises(BundleError, match="larger than"):
        bundle.load_weights(tiny_bundle)


@pytest.mark.parametrize("name", ["../../../outside.jpg", "/etc/hostname", "expected.json/../../outside.jpg", "pipe"])
def test_a_golden_image_is_one_of_the_bundle(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle.parent.parent / "outside.jpg").write_bytes(b"secret")
    rewrite(tiny_bundle, "golden/expected.json", json.dumps({name: [0.25] * 4}).encode())
    with pytest.raises(BundleError, match="is not in the bundle"):
        bundle.load(tiny_bundle)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[]", b"[1]", b'{"random-0.jpg": {"a": 1}}', b"null"])
def test_a_strange_list_of_golden_images_is_a_sentence(tiny_bundle: Path, data: bytes) -> None:
    rewrite(tiny_bundle, "golden/expected.json", data)
    with pytest.raises(BundleError):
        bundle.load(tiny_bundle)


def test_a_bundle_holds_no_links_and_no_devices(tiny_bundle: Path, tmp_path: Path) -> None:
    image = tiny_bundle / "golden" / "random-0.jpg"
    outside = image.rename(tmp_path / "outside.jpg")
    image.symlink_to(outside)
    with pytest.raises(BundleError, match="link or a special file"):
        bundle.verify(tiny_bundle)
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(BundleError, match="link or a special file"):
        bundle.install(tiny_bundle, tmp_path / "models")


@pytest.mark.parametrize("data", [b"a = " + b"[" * 100_000, b"#" * (2 << 20)], ids=["deep", "large"])
def test_a_record_is_bounded(tiny_bundle: Path, data: bytes) -> None:
    (tiny_bundle / "bundle.toml").write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged|larger"):
        bundle.read(tiny_bundle)


@pytest.mark.parametrize(
    "more",
    [{"input_size": 100_000}, {"classes": 10**6}, {"width": 1000.0}, {"width": -1.0}, {"limits": {"Mixed": 10**6}}],
)
def test_a_network_is_bounded(more: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="too large"):
        families.architecture({"input_size": 160, "classes": 4} | more)


def test_packed_arrays_of_a_keras_file_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "model.weights.h5"
    with h5py.File(file, "w") as made:
        made.create_dataset("layers/a/vars/0", (1 << 30,), "float32", chunks=(1 << 20,), compression="gzip")
    assert file.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="unpack to 4,294,967,296 bytes"):
        keras_file._load(None, file)
