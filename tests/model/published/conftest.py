"""The stand-in's wheel and entry, and the index that pip is configured with."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in
from stand_in import FILE, Index

from marcod.model.published import Published

PAGE = f'<!DOCTYPE html><html><body><a href="/files/{FILE}">{FILE}</a></body></html>'.encode()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.write_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def model(wheel: Path) -> Published:
    return stand_in.entry(wheel)


@pytest.fixture(autouse=True)
def no_wheel_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable names the real wheel, which no test here is about."""
    monkeypatch.delenv("MARCOD_PUBLISHED_WHEEL", raising=False)


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that pip is configured with, as a lab configures its mirror; at first it works."""
    data = wheel.read_bytes()
    made = Index(lambda: (data, len(data)))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            is_file = self.path.endswith(FILE)
            given = made.answer()
            if given is None:
                made.over.wait()
                return
            body, announced = given if is_file else (PAGE, len(PAGE))
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if is_file else "text/html")
            self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if is_file:
                made.sent.set()
                if made.keeps_open:
                    made.over.wait()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    # Of this host's own configuration nothing counts here.
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.over.set()
    server.shutdown()
    server.server_close()
    thread.join()
