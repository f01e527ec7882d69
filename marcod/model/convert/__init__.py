"""Models as others publish them, turned into bundles that score exactly as the original does."""

from marcod.model.convert.imports import TOLERANCE, Imported, import_model
from marcod.model.convert.sources import Limits

__all__ = ["TOLERANCE", "Imported", "Limits", "import_model"]
