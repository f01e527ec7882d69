"""Health of a running marcod: a snapshot of its state, the doctor's checks, and metrics for Prometheus."""
