"""Guard of every request: the host it names, the origin of what changes something, its size, and answers' headers."""

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marcod import telemetry
from marcod.settings import WebSettings

log = telemetry.logger(__name__)

BODY_LIMIT: Final = 256 * 1024
"""Bytes of a request: 1,536 labels in JSON have about 190,000."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
METHODS: Final = SAFE_METHODS | {"POST"}
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Headers of every answer; one that says nothing about keeping it is not kept."""


class _RefusedError(Exception):
    """A request that no page of ours sends, with the status and the sentence of the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Safety:
    """Outermost application: refuses forged requests, and lets no error out but as one sentence."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._app = app
        self._public = settings.public_url
        self._hosts = LOOPBACK | ({_host(settings.public_url)} if settings.public_url else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        try:
            self._check(scope)
            await self._app(scope, _Bounded(receive), answer)
        except _RefusedError as refused:
            log.warning("request refused", path=scope["path"], reason=str(refused))
            await self._refuse(refused.status, str(refused), scope, receive, answer)
        except Exception:
            log.exception("request failed", path=scope["path"])
            await self._refuse(500, "marcod failed at this; its log tells why", scope, receive, answer)

    async def _refuse(self, status: int, sentence: str, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if not answer.started:
            await PlainTextResponse(sentence + "\n", status)(scope, receive, answer)

    def _check(self, scope: Scope) -> None:
        headers, method = Headers(scope=scope), scope["method"]
        if method not in METHODS:
            raise _RefusedError(405, f"{method} is not served")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _host(f"//{hosts[0]}") not in self._hosts:
            raise _RefusedError(
                400, "the page is not served under this host name; web.public_url says under which it is"
            )
        if method in SAFE_METHODS:
            return
        if not self._is_own(headers, f"{scope['scheme']}://{hosts[0]}"):
            raise _RefusedError(403, "this request does not come from a page of this marcod")
        if (
            scope["path"].startswith("/api/")
            and headers.get("content-type", "").partition(";")[0] != "application/json"
        ):
            raise _RefusedError(415, "the body must be application/json")
        if not headers.get("content-length", "0").isdigit():
            raise _RefusedError(400, "Content-Length is no number")
        if int(headers.get("content-length", "0")) > BODY_LIMIT:
            raise _too_large()

    def _is_own(self, headers: Headers, asked: str) -> bool:
        """Tell if a page of ours sent this. A browser sends Sec-Fetch-Site to https and localhost, Origin always."""
        site, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
        if origins and (len(origins) > 1 or origins[0].lower() not in (asked.lower(), self._public)):
            return False
        return site == ["same-origin"] if site else bool(origins)


class _Bounded:
    """Body of a request, refused once it is too long, whatever it said of its length."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._seen = receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > BODY_LIMIT:
            raise _too_large()
        return message


class _Answer:
    """Answer that carries the headers of safety."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


def _too_large() -> _RefusedError:
    return _RefusedError(413, f"a request has at most {BODY_LIMIT // 1024} kB")


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
