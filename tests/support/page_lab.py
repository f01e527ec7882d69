"""A lab with a page: rendered plates in a database, the server as a process, and people with real browsers."""

import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np
from factories import drain, promote, record, register, utc
from PIL import Image, ImageDraw
from waiting import wait_until

from marcod.catalog import registration
from marcod.catalog.deliveries import Sighting
from marcod.database.engine import Database
from marcod.domain import PLATE_FORMATS, DropImage, Modality
from marcod.store.queue import Claim
from marcod.store.versions import Version

HEADER: Final = "X-Remote-User"
WIDTH, HEIGHT = 640, 480
HOUR: Final = timedelta(hours=1)


def drop_image(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A synthetic drop: a disc in a well, with some crystals where the seed says so."""
    random = np.random.default_rng(seed)
    width, height = size
    made = Image.new("RGB", size, (168, 164, 150))
    draw = ImageDraw.Draw(made)
    middle = (width / 2 + random.integers(-40, 40), height / 2 + random.integers(-30, 30))
    radius = height * random.uniform(0.25, 0.36)
    box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
    draw.ellipse(box, fill=(196, 192, 178), outline=(60, 58, 52), width=max(3, height // 80))
    for _ in range(6 if seed % 5 == 0 else 0):
        x, y = middle[0] + random.uniform(-0.5, 0.5) * radius, middle[1] + random.uniform(-0.5, 0.5) * radius
        side = radius * random.uniform(0.12, 0.3)
        points = [(x + side * np.cos(a), y + side * np.sin(a)) for a in random.uniform(0, 6.3) + np.arange(4) * 1.571]
        draw.polygon(points, fill=(226, 226, 220), outline=(40, 40, 44))
    return made


@cache
def jpeg(seed: int) -> bytes:
    """The bytes of a synthetic drop; crystals are in those whose seed five divides."""
    out = io.BytesIO()
    drop_image(seed).save(out, "JPEG", quality=80)
    return out.getvalue()


def scores(claim: Claim) -> tuple[float, float, float, float]:
    """Probabilities of a rendered drop by its place on the plate: those in every fifth column are crystals."""
    number = place(claim.path)
    crystals = 0.9 - number / 100 if number % 5 == 0 else number / 300
    rest = 1 - crystals - 0.02
    return (rest - 0.01, crystals, 0.02, 0.01) if number % 2 else (0.01, crystals, 0.02, rest - 0.01)


def place(path: str) -> int:
    """Return column and drop number in one; crystals are where five divides it."""
    return sum(map(int, re.findall(r"\d+", path.rpartition("/")[2])))


class PageLab:
    """A lab's database, its folder of images, and the page's server that can be killed and started again."""

    def __init__(self, db: Database, url: str, folder: Path, **web: Any) -> None:
        """``web`` are settings of the page besides those of a proxy on this host."""
        self.db, self.folder = db, folder
        self.root = folder / "share"
        self.root.mkdir(parents=True)
        self.version: Version = register(db, crystal_threshold=0.5)
        promote(db, self.version)
        self.source_id = db.write(registration.register_source, "imager", str(self.root), "rigaku", None, utc())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.config = folder / "marcod.toml"
        self._write(url, {"access": "proxy", "trusted_proxies": ["127.0.0.1"]} | web)
        self._process: subprocess.Popen[bytes] | None = None

    def _write(self, url: str, web: dict[str, Any]) -> None:
        page = "".join(f"{name} = {json.dumps(value)}\n" for name, value in web.items())
        self.config.write_text(
            f'[store]\nurl = "{url}"\n[web]\n{page}port = {self.port}\npublic_url = "{self.url}"\n'
            f'cache_folder = "{self.folder / "cache"}"\n[review]\naudit_drops = 10\n'
            f'[sources.imager]\nroot = "{self.root}"\nlayout = "rigaku"\num_per_px = 2.5\n'
        )

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def plate(
        self,
        wells: int,
        inspections: Iterable[int] = (1,),
        *,
        plate: str = "P1",
        drops: int = 1,
        grid: int = 96,
        modality: Modality = Modality.VISIBLE,
        seed: int = 0,
        **more: Any,
    ) -> None:
        """Let a plate arrive, and be scored where it is in the model's light; every fifth drop has crystals.

        Images with another ``seed``, which five divides, are those of no other plate.
        """
        for ordinal in inspections:
            at = utc(days=7 * (ordinal - 1))
            files = []
            for number in range(wells * drops):
                row, column = PLATE_FORMATS[grid].position(number // drops + 1)
                values = {"inspection_ordinal": ordinal, "captured_at": at} | more
                seen = DropImage("rigaku", plate, str(ordinal), row, column, number % drops + 1, modality, **values)
                path = f"{plate}/{ordinal}/{modality}/{seen.well}_{seen.drop}.jpg"
                data = jpeg(seed + (number % 4 * 5 if place(path) % 5 == 0 else number % 20 * 5 + 1))
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path).write_bytes(data)
                files.append(Sighting(path, len(data), (self.root / path).stat().st_mtime_ns, seen))
            record(self.db, self.source_id, files, at)
            drain(self.db, self.version, at + HOUR, hashes=self._hash, scores=scores)

    def _hash(self, claim: Claim) -> str:
        return hashlib.sha256((self.root / claim.path).read_bytes()).hexdigest()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        environment = os.environ | {"MARCOD_CONFIG": str(self.config)}
        log = (self.folder / "web.log").open("ab")
        self._process = subprocess.Popen([sys.executable, "-m", "marcod", "web"], env=environment, stderr=log)
        log.close()
        wait_until(self._answers, "the page")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "web.log").read_text()
        try:
            return httpx.get(self.url, headers={HEADER: "nobody"}).status_code < 500
        except httpx.TransportError:
            return False

    def tell(self, path: str, person: str, **body: Any) -> Any:
        """Send what a page of a person sends, and return the answer."""
        answer = httpx.post(self.url + path, json=body, headers={HEADER: person, "Origin": self.url})
        assert answer.status_code == 200, answer.text
        return answer.json()["saved"]

    def say(self, person: str, drop: int, word: str, inspection: int = 1) -> None:
        """Let somebody elsewhere label a drop."""
        given = {"drop": drop, "inspection": inspection, "label": word, "key": uuid4().hex}
        assert self.tell("/api/labels", person, labels=[given])[0]["state"] == "saved"

    def mark(self, person: str, drop: int, kind: str, text: str = "", inspection: int = 1) -> None:
        """Let somebody elsewhere write a note or a mark."""
        self.tell("/api/marks", person, kind=kind, drop=drop, inspection=inspection, text=text, key=uuid4().hex)

    def kill(self) -> None:
        """End the server as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None
