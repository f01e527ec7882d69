"""A web site that is none of ours, for pages that try what they must not do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!DOCTYPE html><title>elsewhere</title><body>elsewhere"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def foreign_site() -> Iterator[int]:
    """Serve an empty page under every address; returns the port on 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Blank)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join(10)
    server.server_close()
