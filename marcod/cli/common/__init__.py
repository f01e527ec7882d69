"""Helpers that several commands share: options, tables, progress bars and drawings."""
