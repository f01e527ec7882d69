"""Images by id: encoded again, kept, and nothing that lies outside a source's folder."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from factories import promote, record, register, sightings, utc
from PIL import Image
from starlette.testclient import TestClient

from marcod.catalog import registration
from marcod.database.engine import Database
from marcod.database.schema import image
from marcod.model import bundle
from marcod.model.registry import SHIPPED, shipped_folder
from marcod.store import results

one_database = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
SECRET = b"root:x:0:0"


def photograph(width: int = 1300, height: int = 1000, kind: str = "JPEG", seed: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 20, width // 20, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(out, kind)
    return out.getvalue()


class Share:
    """A source's folder with the files of one plate, recorded and read once."""

    def __init__(self, db: Database, root: Path) -> None:
        self.db, self.root = db, root
        root.mkdir()
        promote(db, register(db))
        source_id = db.write(lambda c: registration.register_source(c, "imager", str(root), "rigaku", None, utc()))
        self.files = sightings(2)
        for number, file in enumerate(self.files):
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
            (root / file.path).write_bytes(photograph(seed=number))
        record(db, source_id, self.files)

    def path(self, number: int = 1) -> Path:
        return self.root / self.files[number - 1].path

    def hashed(self) -> None:
        """As after scoring: the database knows the bytes."""
        import hashlib

        for number in (1, 2):
            digest = hashlib.sha256(self.path(number).read_bytes()).hexdigest()
            self.put(number, content_hash=digest)

    def put(self, number: int = 1, **values: object) -> None:
        self.db.write(lambda c: c.execute(sa.update(image).where(image.c.id == number).values(**values)))


@pytest.fixture
def share(db: Database, tmp_path: Path) -> Share:
    made = Share(db, tmp_path / "share")
    made.hashed()
    return made


@pytest.fixture
def address(client: TestClient) -> Callable[..., str]:
    """The address of an image as the plate's page has it now."""

    def of(number: int = 1, size: str = "thumb") -> str:
        cells = client.get("/api/plate/1").json()["cells"]
        found = next(cell["thumb"] for cell in cells if cell["image"] == number)
        return str(found).replace("/thumb/", f"/{size}/")

    return of


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "JPEG"
        return opened.size


@pytest.mark.parametrize(("size", "pixels"), [("thumb", (160, 123)), ("view", (1024, 788)), ("original", (1300, 1000))])
def test_an_image_is_encoded_again(
    client: TestClient, share: Share, address: Callable[..., str], size: str, pixels: tuple[int, int]
) -> None:
    answer = client.get(address(1, size))
    assert answer.status_code == 200
    assert size_of(answer.content) == pixels
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert answer.headers.get("X-Whole-Width") == ("1300" if size == "view" else None)
    kept = client.get(address(1, size))
    assert kept.headers.get("X-Whole-Width") == answer.headers.get("X-Whole-Width")
    again = client.get(address(1, size), headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(address(1, size)).status_code == 200


@one_database
def test_what_is_kept_needs_no_share(client: TestClient, share: Share, address: Callable[..., str]) -> None:
    first = client.get(address())
    share.path().unlink()
    assert client.get(address()).content == first.content
    gone = client.get(address(1, "view"))
    assert (gone.status_code, gone.headers["Cache-Control"]) == (200, "private, no-cache")
    assert gone.content == first.content, "the last small image"
    share.path(2).unlink()
    assert client.get(address(2)).status_code == 410
    assert client.get(address(2)).json() == {"error": "the file of this image is gone"}
    share.put(2, gone_at=utc())
    assert client.get(address(2)).status_code == 410


@one_database
def test_other_bytes_than_those_known_are_shown_and_not_kept_for_ever(
    client: TestClient, share: Share, address: Callable[..., str]
) -> None:
    former = client.get(address()).content
    share.path(2).write_bytes(photograph(seed=9))
    changed = client.get(address(2))
    assert (changed.status_code, changed.headers["Cache-Control"]) == (200, "private, no-cache")
    stale = address()
    share.put(1, unread=True)
    moved = client.get(stale)
    assert (moved.status_code, moved.headers["Location"]) == (307, address())
    unread = client.get(address())
    assert (unread.content, unread.headers["Cache-Control"]) == (former, "private, max-age=60")


@one_database
def test_a_file_that_leads_out_of_its_folder_never_leaves(
    client: TestClient, share: Share, address: Callable[..., str], tmp_path: Path
) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(photograph())
    place = address()
    share.path().unlink()
    share.path().symlink_to(outside)
    for size in ("thumb", "view", "original", "file"):
        answer = client.get(place.replace("thumb", size))
        assert (answer.status_code, answer.json()) == (404, {"error": "there is nothing at this address"})
    # A folder on the way that was swapped for a link.
    folder = share.path().parent
    share.path().unlink()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert client.get(address(2)).status_code == 404


@one_database
@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "P1/../../secret.jpg", "P1/1/visible/A01.jpg/x", "."])
def test_a_hostile_path_in_the_database_reads_nothing(
    client: TestClient, share: Share, address: Callable[..., str], tmp_path: Path, path: str
) -> None:
    (tmp_path / "secret.jpg").write_bytes(photograph())
    share.put(1, path=path)
    for size in ("thumb", "original", "file"):
        answer = client.get(address(1, size))
        assert answer.status_code in (404, 410, 415)
        assert SECRET not in answer.content


@one_database
def test_what_cannot_be_shown_is_not_sent(client: TestClient, share: Share, address: Callable[..., str]) -> None:
    for data in (b"", b"<html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", SECRET):
        share.path().write_bytes(data)
        for size in ("thumb", "view", "original", "file"):
            answer = client.get(address(1, size))
            assert (answer.status_code, answer.headers["Content-Type"]) == (415, "application/json")
    share.path().unlink()
    os.mkfifo(share.path())
    assert client.get(address()).status_code == 415
    share.path().unlink()
    share.path().mkdir()
    assert client.get(address()).status_code == 415


@one_database
def test_a_file_is_sent_to_be_saved_and_never_shown(
    client: TestClient, share: Share, address: Callable[..., str]
) -> None:
    data = photograph(kind="TIFF")
    share.path().write_bytes(data)
    answer = client.get(address(1, "file"))
    assert answer.content == data
    assert answer.headers["Content-Disposition"] == 'attachment; filename="A01.tif"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@one_database
@pytest.mark.parametrize(
    "path",
    [
        "/image/1/thumb/0000", "/image/1/thumb/" + "g" * 16, "/image/1/huge/" + "0" * 16, "/image/-1/thumb/" + "0" * 16,
        "/image/999/thumb/" + "0" * 16, "/image/1000000000000000000/thumb/" + "0" * 16,
        "/image/99999999999999999999/thumb/" + "0" * 16, "/image/1/thumb/..%2f..%2fetc%2fpasswd",
        "/image/../../etc/passwd", "/image/%2e%2e/thumb/" + "0" * 16, "/image/1e1/thumb/" + "0" * 16,
    ],
)  # fmt: skip
def test_an_address_of_nothing_is_not_found(client: TestClient, share: Share, path: str) -> None:
    assert client.get(path).status_code == 404


@one_database
def test_a_folder_that_is_not_there_is_no_lost_image(
    client: TestClient, share: Share, address: Callable[..., str]
) -> None:
    share.root.rename(share.root.with_name("unmounted"))
    answer = client.get(address())
    assert answer.status_code == 503
    assert "does not answer" in answer.json()["error"]
    assert str(share.root) not in answer.text


@one_database
def test_a_heat_map_without_the_model_says_so(client: TestClient, share: Share, address: Callable[..., str]) -> None:
    answer = client.get(address(1, "heat"))
    assert answer.status_code == 503
    assert answer.json() == {"error": "this host has no copy of small:1 that can be read, so it draws no heat map"}


def test_gone_files_are_known_by_the_database(client: TestClient, share: Share, address: Callable[..., str]) -> None:
    share.db.write(lambda c: results.mark_gone(c, [1], utc()))
    assert client.get(address()).status_code == 410


@pytest.mark.story
@one_database
def test_a_heat_map_is_drawn_once_by_the_model_that_is_shown(
    client: TestClient, share: Share, address: Callable[..., str]
) -> None:
    name, version = SHIPPED
    record = bundle.read(shipped_folder() / name / version)
    shipped = register(share.db, name=name, version=version, digest=record.digest)
    promote(share.db, shipped, utc(hours=1))
    drawn = client.get(address(1, "heat"))
    assert (drawn.status_code, drawn.headers["Cache-Control"]) == (200, "private, no-cache")
    assert size_of(drawn.content) == (1024, 788)
    assert drawn.content != client.get(address(1, "view")).content
    share.path().unlink()
    assert client.get(address(1, "heat")).content == drawn.content, "kept"
    same = client.get(address(1, "heat"), headers={"If-None-Match": drawn.headers["ETag"]})
    assert same.status_code == 304
