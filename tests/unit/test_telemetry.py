"""Log lines, systemd's socket, heartbeats."""

import json
import socket
from pathlib import Path

import pytest

from marcod import telemetry


def test_lines_are_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "auto")
    with telemetry.bound(batch=7):
        telemetry.logger("marcod.scoring.scorer").info("batch scored", scored=16)
    telemetry.logger("marcod.scoring.scorer").debug("not shown")
    [line] = capsys.readouterr().err.splitlines()
    written = json.loads(line)
    assert written["event"] == "batch scored"
    assert (written["module"], written["scored"], written["batch"]) == ("scoring.scorer", 16, 7)


def test_a_line_break_in_a_name_makes_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    for style in ("json", "console"):
        telemetry.configure("info", style)
        telemetry.logger("marcod.watch").info("ignored", path="a\nforged line level=error\x1b[2J")
        output = capsys.readouterr().err
        assert output.count("\n") == 1
        assert "\x1b[2J" not in output


@pytest.mark.parametrize("abstract", [True, False])
def test_systemd_is_notified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    address = f"marcod-test-{tmp_path.name}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + address if abstract else address)
        assert telemetry.notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not telemetry.notify("READY=1")


def test_silent_loops_are_found() -> None:
    hearts = telemetry.Heartbeats()
    hearts.beat("watch", 0.0)
    hearts.beat("score", 50.0)
    assert hearts.stale(100.0, {}, 60.0) == ["watch"]
    assert hearts.stale(100.0, {"watch": 100.0, "score": 40.0}, 60.0) == ["score"]
    hearts.forget("watch")
    assert hearts.stale(1000.0, {}, 60.0) == ["score"]
