"""Scoring of queued images: leases, decoding ahead of the device, and writing the results."""
