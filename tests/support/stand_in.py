"""A small stand-in for a published model in a wheel, and a package index on this host that misbehaves as asked."""

import hashlib
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from marcod.model.published import Published
from marcod.model.published.catalogue import Content

NAME = "stand-in"
FILE = "stand_in-1.0-py3-none-any.whl"
FILES = {
    "saved_model.pb": b"a graph" * 1000,
    "variables/variables.data-00000-of-00001": bytes(range(256)) * 4000,
    "variables/variables.index": b"an index",
}
METADATA = "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\nRequires-Dist: no-such-thing-anywhere==9\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
EXPLODES = "raise SystemExit('the code of a distribution was run')\n"


def write_wheel(folder: Path) -> Path:
    """A wheel with a model in it, code that must not run, and a dependency that nobody has."""
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        archive.writestr("stand_in/__init__.py", EXPLODES)
        for name, data in FILES.items():
            archive.writestr(f"stand_in/savedmodel/{name}", data)
        for name, text in (("METADATA", METADATA), ("WHEEL", WHEEL), ("RECORD", "")):
            archive.writestr(f"stand_in-1.0.dist-info/{name}", text)
    return folder / FILE


def entry(wheel: Path) -> Published:
    """The stand-in's own entry of a catalogue."""
    whole = content(wheel.read_bytes())
    return Published(
        name=NAME, title="A stand-in", distribution=NAME, version="1.0", file=FILE,
        size=whole.size, sha256=whole.sha256, folder="stand_in/savedmodel", classes=("Clear", "Crystals"),
        licence="CC0-1.0", citation="Nobody (2026)", training_data="nothing",
        files={name: content(data) for name, data in FILES.items()},
    )  # fmt: skip


def content(data: bytes) -> Content:
    return Content(size=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass
class Index:
    """A package index. ``answer`` gives the bytes of the file and how many of them it announces; None: no answer.

    ``sent`` is set once the file was sent, as far as it is; with ``keeps_open`` the connection stays then, as on a slow
    line. ``over`` ends those.
    """

    answer: Callable[[], tuple[bytes, int] | None]
    asked: list[str] = field(default_factory=list)
    keeps_open: bool = False
    sent: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
