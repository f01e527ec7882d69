"""Families of networks by the name in a bundle's ``[architecture]``."""

from collections.abc import Mapping
from typing import Any, Final

from marcod.errors import BundleError
from marcod.model.architecture import Architecture
from marcod.model.efficientnet import EfficientNetLite
from marcod.model.inception import Inception

FAMILIES: Final[Mapping[str, type[Architecture]]] = {made.family: made for made in (Inception, EfficientNetLite)}
"""A record without a family is of the first, the only one at that time."""


def architecture(values: Mapping[str, Any]) -> Architecture:
    """Invert :meth:`Architecture.to_dict`. Raises BundleError for a wrong key or too large a network."""
    given = dict(values)
    family = FAMILIES.get(given.pop("family", Inception.family))
    if family is None:
        raise BundleError(
            f"the bundle's [architecture] is of family {values['family']!r}; this version of marcod knows "
            f"{' and '.join(FAMILIES)}"
        )
    try:
        made = family(**given)
        small = made.is_usable()
    except (TypeError, AttributeError) as error:
        raise BundleError(f"the bundle's [architecture] cannot be used: {error}") from error
    if not small:
        raise BundleError("the bundle's [architecture] is too large for any network here")
    return made
