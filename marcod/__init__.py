"""marcod: scores protein-crystallization drop images as the plate imagers deliver them."""

from typing import Final

__version__: Final = "0.1.0"
