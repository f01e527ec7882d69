"""Upkeep of a database that runs for years: backup, recounts of derived rows, and thinning."""
