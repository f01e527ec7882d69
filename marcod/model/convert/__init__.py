"""Models as others publish them, turned into bundles that score exactly as the original does."""

from marcod.model.convert.imports import TOLERANCE, ImportedModel, import_model
from marcod.model.convert.sources import Limits

__all__ = ["TOLERANCE", "ImportedModel", "Limits", "import_model"]
