"""Plates as people look at them: maps, histories, reports, metadata and printable pages."""
