"""Models as others publish them, turned into bundles that score exactly as the original does."""

from marcod.model.convert.imports import TOLERANCE, ImportedModel, import_model
from marcod.model.convert.sources import ArchiveLimits

__all__ = ["TOLERANCE", "ArchiveLimits", "ImportedModel", "import_model"]
