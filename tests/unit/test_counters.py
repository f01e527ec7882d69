"""What a process counts about itself."""

from prometheus_client import generate_latest

from marcod import __version__, counters
from marcod.counters import Batch


def value(name: str, **labels: str) -> float:
    found = counters.REGISTRY.get_sample_value(name, labels)
    assert found is not None, f"{name} {labels} is not there"
    return found


def test_a_batch_is_counted() -> None:
    def batch() -> None:
        outcomes = {("north", "scored"): 3, ("north", "retried"): 1, ("south", "scored"): 2}
        counters.batch(Batch("counted:1", outcomes, 0.3, 1.5, [0.01, 0.04, 0.3], [-2.0, 12.0], lapsed=2))

    batch()
    lapsed = value("marcod_lease_lapses_total")
    decoded = value("marcod_decode_seconds_count")
    early = value("marcod_file_to_score_seconds_bucket", le="0.5")
    batch()
    assert value("marcod_images_total", source="north", outcome="scored") == 6
    assert value("marcod_images_total", source="north", outcome="retried") == 2
    assert value("marcod_images_total", source="south", outcome="quarantined") == 0
    assert value("marcod_batch_seconds_sum", model="counted:1", stage="wait") == 0.6
    assert value("marcod_batch_seconds_bucket", model="counted:1", stage="predict", le="1.0") == 0
    assert value("marcod_batch_seconds_bucket", model="counted:1", stage="predict", le="2.0") == 2
    assert value("marcod_lease_lapses_total") == lapsed + 2
    assert value("marcod_decode_seconds_count") == decoded + 3
    # A clock that is ahead makes no negative time.
    assert value("marcod_file_to_score_seconds_bucket", le="0.5") == early + 1


def test_failures_of_a_loop_are_counted_from_zero() -> None:
    counters.loops(["a loop", "another"])
    counters.loop_failed("a loop")
    assert value("marcod_loop_failures_total", loop="a loop") == 1
    assert value("marcod_loop_failures_total", loop="another") == 0


def test_the_process_and_its_version_are_exported() -> None:
    assert value("marcod_build_info", version=__version__) == 1
    assert "process_resident_memory_bytes" in generate_latest(counters.PROCESS).decode()
    assert "_created" not in generate_latest(counters.REGISTRY).decode()
