"""What marcod notifies: a real web server and a real mail server on this host, which keep what they get."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, ClassVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session


@dataclass(frozen=True)
class Request:
    """One POST as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hook:
    """A web server. ``answers`` are given in turn, then 204; while ``held`` is set none is given."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    released: threading.Event = field(default_factory=threading.Event)
    dribbling: bool = False
    port: int = 0

    def __post_init__(self) -> None:
        self.released.set()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests.append(Request(handler.path, dict(handler.headers.items()), body))
        self.came.release()
        self.released.wait()
        if self.dribbling:
            self._dribble(handler)
            return
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    def _dribble(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte now and then, until the other side has had enough."""
        pause = threading.Event()
        try:
            handler.wfile.write(b"HTTP/1.1")
            while True:
                handler.wfile.write(b"x")
                pause.wait(0.02)
        except OSError:
            handler.close_connection = True


@contextmanager
def web_server(context: ssl.SSLContext | None = None) -> Iterator[Hook]:
    """A running server, with TLS where a context is given."""
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    hook.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hook
    finally:
        hook.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Post:
    """A mail server's handler; addresses in ``refused`` get that answer to RCPT, or to MAIL."""

    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    answer: str = "250 OK"
    port: int = 0

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.refused.get(address, "250 OK")

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.answer.startswith("250"):
            content = envelope.content if isinstance(envelope.content, bytes) else b""
            mail = message_from_bytes(content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            self.mails.append((envelope.rcpt_tos, mail))
        return self.answer


class _AnyPort(Controller):
    """Looks whether it runs on the port that the system gave."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mail_server(context: ssl.SSLContext | None = None, *, greets_over_tls: bool = False) -> Iterator[Post]:
    """A running server, with TLS where a context is given: STARTTLS, or before the greeting. No password is right."""
    post = Post()
    more: dict[str, Any] = {} if context is None else {"tls_context": context, "require_starttls": True}
    if greets_over_tls:
        more = {"ssl_context": context}
    refuse = lambda *_: AuthResult(success=False, handled=False)  # noqa: E731
    controller = _AnyPort(post, hostname="127.0.0.1", port=0, server_hostname="mail.test", authenticator=refuse, **more)
    controller.start()
    post.port = controller.port
    try:
        yield post
    finally:
        controller.stop()


class _Dripping(StreamRequestHandler):
    script: ClassVar[tuple[tuple[bytes, bytes], ...]]

    def handle(self) -> None:
        pause = threading.Event()
        with suppress(OSError):
            for awaited, reply in self.script:
                self._await(awaited)
                self.wfile.write(reply)
            while True:
                self.wfile.write(b"x")
                pause.wait(0.02)

    def _await(self, awaited: bytes) -> None:
        came = b""
        while not came.endswith(awaited):
            came += self.rfile.read(1) or awaited


@contextmanager
def dripping_server(*script: tuple[bytes, bytes]) -> Iterator[int]:
    """The port of a server that says its part, each after it got those bytes, then a byte now and then for ever."""

    class Server(ThreadingTCPServer):
        daemon_threads = True

    handler = type("Dripping", (_Dripping,), {"script": script})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def hung_host() -> Iterator[int]:
    """The port of a server on 127.0.0.1 to which nobody can connect, because its queue is full."""
    with socket.socket() as listening, socket.socket() as queued:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        queued.connect(listening.getsockname())
        yield listening.getsockname()[1]
