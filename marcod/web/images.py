"""Images of drops, by id alone: found in the database, read below their source's folder, decoded, and encoded again.

Guarantees:

- No path comes from a browser, and no file outside its source's folder is read, whatever links lie on the way.
- No byte of a share reaches a browser as it is, but as a download of a known kind of image.
- A share that hangs holds up its own images alone, and not those that are kept on disk.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from marcod import images, telemetry
from marcod.database.schema import drop, image, plate, source
from marcod.deadline import SilentError
from marcod.domain import text_path
from marcod.errors import ImageError, NotFoundError
from marcod.files import EscapesRootError
from marcod.settings import Settings
from marcod.store.sources import root_of
from marcod.text import printable
from marcod.web.access import User
from marcod.web.heat import HeatMaps, HeatUnavailableError, heat_order
from marcod.web.image_address import TAG_LENGTH, UNREAD, ImageSize, address, tag_of
from marcod.web.image_cache import ImageCache
from marcod.web.lanes import Lanes
from marcod.web.queries import visible
from marcod.web.site import site_of, user_of

log = telemetry.logger(__name__)

THUMB_PX: Final = 160
VIEW_PX: Final = 1024
VIEW_QUALITY: Final = 85
ORIGINAL_QUALITY: Final = 92

KEPT: Final = "private, max-age=31536000, immutable"
BRIEFLY: Final = "private, max-age=60"
"""Of bytes that no scorer has read yet, so that nothing but the file's time names them."""

CHANGED: Final = "private, no-cache"
"""Of bytes that are other ones than the database knows: the watcher or the scorer will find out."""

WHOLE_WIDTH: Final = "X-Whole-Width"
"""Header of an image at 1024 pixels: the width of the whole one, from which a scale bar is drawn."""

JPEG: Final = "image/jpeg"
ENCODINGS: Final[dict[ImageSize, Callable[[bytes], bytes]]] = {
    ImageSize.THUMB: lambda data: images.thumbnail(data, THUMB_PX),
    ImageSize.VIEW: lambda data: images.thumbnail(data, VIEW_PX, quality=VIEW_QUALITY),
    ImageSize.ORIGINAL: lambda data: images.thumbnail(data, images.PIXEL_LIMIT, quality=ORIGINAL_QUALITY),
}
KEPT_SIZES: Final = (ImageSize.THUMB, ImageSize.VIEW)
_TAG: Final = re.compile(rf"[0-9a-f{UNREAD}][0-9a-f]{{15}}", re.ASCII)
_EXTENSIONS: Final = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image as the database has it; ``root`` and ``path`` are as on disk of this host."""

    id: int
    source: str
    root: Path
    path: str
    content_hash: str | None
    tag: str
    gone: bool
    drop_id: int
    inspection_id: int

    @property
    def bytes_name(self) -> str:
        """A name of the bytes that the database knows."""
        return self.content_hash or "" if not self.tag.startswith(UNREAD) else f"{self.id}-{self.tag}"

    def kept_as(self, size: ImageSize) -> str:
        """Return the name under which a small image of these bytes is kept."""
        return f"{self.bytes_name}-{size}.jpg"

    def read(self) -> bytes:
        """Read the file. Raises ImageError and OSError."""
        return images.read(self.root / self.path, self.root)


@dataclass(frozen=True, slots=True)
class Imaging:
    """Small images that are kept, the threads that read files, and the drawer of heat maps, shared by all requests."""

    cache: ImageCache
    lanes: Lanes
    heat: HeatMaps

    @classmethod
    def of(cls, settings: Settings) -> "Imaging":
        """Make them as the settings say."""
        cache = ImageCache(settings.web.cache_folder, settings.web.cache_mb * 2**20)
        return cls(cache, Lanes(), HeatMaps(cache))


def imaging_of(request: Request) -> Imaging:
    """Return what requests for images share."""
    found: Imaging = request.app.state.imaging
    return found


class ImageGoneError(NotFoundError):
    """The file of this image is gone."""


def stored(connection: Connection, user: User, settings: Settings, image_id: int) -> ServedImage:
    """Look an image up. Raises NotFoundError for one that is not there, or not for this person."""
    columns = (
        image.c.id, source.c.name, root_of(connection), image.c.path, image.c.content_hash, image.c.size,
        image.c.mtime_ns, image.c.unread, image.c.gone_at, image.c.drop_id, image.c.inspection_id,
    )  # fmt: skip
    row = connection.execute(
        sa.select(*columns)
        .join(source, source.c.id == image.c.source_id)
        .join(drop, drop.c.id == image.c.drop_id)
        .join(plate, plate.c.id == drop.c.plate_id)
        .where(image.c.id == image_id, visible(user))
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is nothing at this address")
    its = settings.sources.get(row.name)
    root = its.root if its is not None else Path(text_path(row.root or ""))
    tag = tag_of(row.content_hash, row.size, row.mtime_ns, unread=row.unread)
    gone = row.gone_at is not None
    return ServedImage(
        row.id, row.name, root, text_path(row.path), row.content_hash, tag, gone, row.drop_id, row.inspection_id
    )


async def send(request: Request) -> Response:
    """Answer with one size of an image."""
    image_id, size, tag = _asked(request)
    site, user = site_of(request), user_of(request)
    found = await run_in_threadpool(site.db.read, stored, user, site.settings, image_id)
    if found.tag != tag:
        return RedirectResponse(address(image_id, size, found.tag), 307)
    if size is not ImageSize.HEAT and request.headers.get("if-none-match") == _etag(tag, size):
        return Response(status_code=304, headers={"Cache-Control": _keeping(tag), "ETag": _etag(tag, size)})
    try:
        return await _answer(request, found, size)
    except (ImageGoneError, EscapesRootError, ImageError, OSError, SilentError, HeatUnavailableError) as error:
        return _refused(found, error)


def _asked(request: Request) -> tuple[int, ImageSize, str]:
    """Read an address. Raises NotFoundError for one that no page of ours has."""
    given, size, tag = (request.path_params[name] for name in ("image", "size", "tag"))
    sound = given.isascii() and given.isdigit() and len(given) < 19 and _TAG.fullmatch(tag)
    if not sound or size not in list(ImageSize):
        raise NotFoundError("there is nothing at this address")
    return int(given), ImageSize(size), tag


async def _answer(request: Request, found: ServedImage, size: ImageSize) -> Response:
    shop = imaging_of(request)
    if size in KEPT_SIZES and (kept := await run_in_threadpool(shop.cache.get, found.kept_as(size))):
        return _jpeg(kept, found.tag, size)
    if size is ImageSize.HEAT:
        return await _heat(request, found)
    if found.gone:
        return await _former(request, found, size)
    try:
        data = await shop.lanes.of(found.source).run(found.read)
        if size is ImageSize.FILE:
            return await shop.lanes.of(found.source).run(partial(_download, found, data))
        return await shop.lanes.of(found.source).run(partial(_encoded, request, found, data, size))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not await shop.lanes.of(found.source).run(found.root.is_dir):
            raise SilentError(0.0) from error
        return await _former(request, found, size)


async def _heat(request: Request, found: ServedImage) -> Response:
    """Draw where the model that is shown for the drop looks. Raises HeatUnavailableError."""
    site, shop = site_of(request), imaging_of(request)
    order = await run_in_threadpool(heat_order, site, user_of(request), found.drop_id, found.inspection_id)
    etag = f'"{found.tag}-{order.digest[:TAG_LENGTH]}"'
    headers = {"Cache-Control": CHANGED, "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    drawn = await shop.heat.draw(found.bytes_name, order, lambda: shop.lanes.of(found.source).run(found.read))
    return Response(drawn, media_type=JPEG, headers=headers)


def _encoded(request: Request, found: ServedImage, data: bytes, size: ImageSize) -> Response:
    """Encode an image, and keep it where its bytes are those that the database knows."""
    made = ENCODINGS[size](data)
    digest = hashlib.sha256(data).hexdigest()
    same = digest == found.content_hash or found.tag.startswith(UNREAD)
    if size in KEPT_SIZES:
        imaging_of(request).cache.put(found.kept_as(size) if same else f"{digest}-{size}.jpg", made)
    return _jpeg(made, found.tag, size) if same else _jpeg(made, digest[:16], size, CHANGED)


async def _former(request: Request, found: ServedImage, size: ImageSize) -> Response:
    """Answer for a file that is gone with the last small image of it. Raises ImageGoneError where there is none."""
    for known in (size, ImageSize.THUMB) if size in (*KEPT_SIZES, ImageSize.ORIGINAL) else ():
        name = f"{found.content_hash}-{known}.jpg"
        if found.content_hash and (kept := await run_in_threadpool(imaging_of(request).cache.get, name)):
            return _jpeg(kept, found.content_hash[:16], known, CHANGED)
    raise ImageGoneError


def _keeping(tag: str) -> str:
    return BRIEFLY if tag.startswith(UNREAD) else KEPT


def _etag(tag: str, size: ImageSize) -> str:
    return f'"{tag}-{size}"'


def _jpeg(data: bytes, tag: str, size: ImageSize, keeping: str | None = None) -> Response:
    headers = {"Cache-Control": keeping or _keeping(tag), "ETag": _etag(tag, size)}
    if size is ImageSize.VIEW and (width := images.whole_width(data)):
        headers[WHOLE_WIDTH] = str(width)
    return Response(data, media_type=JPEG, headers=headers)


def _download(found: ServedImage, data: bytes) -> Response:
    """Send the file of a known kind to be saved, never to be shown. Raises ImageError for another kind."""
    extension = _EXTENSIONS[images.inspect(data).format]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(found.path).stem)[-100:] or "image"
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.{extension}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": CHANGED,
    }
    return Response(data, media_type="application/octet-stream", headers=headers)


def _refused(found: ServedImage, error: Exception) -> Response:
    """Answer with one sentence that names no path."""
    if isinstance(error, ImageGoneError):
        return JSONResponse({"error": "the file of this image is gone"}, 410)
    if isinstance(error, HeatUnavailableError):
        return JSONResponse({"error": str(error)}, 503)
    log.warning("image not shown", image=found.id, error=printable(str(error)))
    if isinstance(error, EscapesRootError):
        return JSONResponse({"error": "there is nothing at this address"}, 404)
    if isinstance(error, ImageError):
        return JSONResponse({"error": "this file is no image that can be shown"}, 415)
    sentence = f"the folder of {found.source} does not answer; the image may be there again in a minute"
    return JSONResponse({"error": sentence}, 503, {"Retry-After": "10"})


ROUTES: Final[list[BaseRoute]] = [Route("/image/{image}/{size}/{tag}", send)]
