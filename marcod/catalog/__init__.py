"""Catalog of what the imagers delivered: plates, drops, inspections and images, by their natural keys.

``deliveries`` records new and changed files; ``rereading`` reads recorded paths again after a plate's setup changed;
``plate_setups`` keeps each plate's grid and reservoirs; ``merging`` and ``source_changes`` change a whole source.
"""
