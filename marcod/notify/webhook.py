"""Webhook delivery: one signed POST over verified TLS, without redirects, within a time limit.

Guarantees:
- Reasons name the host alone, never the URL's path or the secret.
- Only the status of the receiver's answer is kept.
- Proxies of the environment are not used.
"""

import base64
import hashlib
import hmac
import http.client
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from marcod import __version__
from marcod.notify.connection import Connection
from marcod.notify.render import Rendered
from marcod.settings import NotifySettings
from marcod.store.outbox import DeliveryResult

TIMEOUT_S: Final = 10.0
"""Limit from connecting to the answer's status."""

POLITE_S: Final = 1.0
"""Limit for reading the rest of an answer, which is not needed."""

MOST_READ: Final = 65_536
_REFUSALS: Final = frozenset({400, 410, 413, 415, 422})
"""Refusals of this message. Any other status may be a proxy that restarts or a password that is being changed."""


def post(
    target: NotifySettings,
    rendered: Rendered,
    message: str,
    clock: Callable[[], datetime],
    timeout_s: float = TIMEOUT_S,
) -> DeliveryResult:
    """Send a message; ``message`` is its id. Only a refusal of the message is final."""
    assert target.url is not None
    url = urlsplit(target.url.get_secret_value())
    host = url.hostname or "the receiver"
    body = rendered.document if target.format == "json" else rendered.text.encode()
    try:
        status, retry_after = _exchange(url, _headers(target, url, body, message, clock()), body, timeout_s)
    except TimeoutError:
        return DeliveryResult(False, f"{host} did not answer within {timeout_s:.0f} s")
    except ssl.SSLCertVerificationError as error:
        return DeliveryResult(False, f"the certificate of {host} is not trusted: {error.verify_message}")
    except (OSError, http.client.HTTPException) as error:
        return DeliveryResult(False, f"{host} cannot be reached: {_reason(error)}")
    except ValueError:
        return DeliveryResult(False, f"the url for {host} cannot be used", final=True)
    return _judged(status, retry_after, host, clock())


def signature(secret: str, body: bytes, at: datetime) -> str:
    """Compute X-Marcod-Signature: HMAC-SHA256 (RFC 2104) of the time in Unix seconds, a full stop, the body."""
    stamp = str(int(at.timestamp()))
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def _headers(target: NotifySettings, url: SplitResult, body: bytes, message: str, now: datetime) -> dict[str, str]:
    kind = "application/json" if target.format == "json" else "text/plain; charset=utf-8"
    headers = {
        "Content-Type": kind,
        "User-Agent": f"marcod/{__version__}",
        "X-Marcod-Message": message,
        "Idempotency-Key": message,
        "Connection": "close",
    }
    if target.secret is not None:
        headers["X-Marcod-Signature"] = signature(target.secret.get_secret_value(), body, now)
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return headers


def _exchange(url: SplitResult, headers: Mapping[str, str], body: bytes, timeout_s: float) -> tuple[int, str | None]:
    """Return the status of the answer and its Retry-After."""
    ends = time.monotonic() + timeout_s
    connection = _connection(url)
    path = quote(url.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(url.query, safe="/?%:@!$&'()*+,;=~-._[]") if url.query else ""
    with closing(Connection(connection.host, connection.port, timeout_s)) as line, closing(connection):
        with line.limited_to(ends - time.monotonic()):
            connection.sock = line.socket
            if url.scheme == "https":
                connection.sock = ssl.create_default_context().wrap_socket(line.socket, server_hostname=connection.host)
            connection.request("POST", path + query, body, dict(headers))
            response = connection.getresponse()
        # Read the rest to be polite; only the status counts.
        with suppress(OSError, http.client.HTTPException), line.limited_to(min(POLITE_S, timeout_s)):
            response.read(MOST_READ)
        return response.status, response.headers.get("Retry-After")


def _connection(url: SplitResult) -> http.client.HTTPConnection:
    """Make an unconnected connection; its class decides which port the Host header omits."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port or kind.default_port)


def _judged(status: int, retry_after: str | None, host: str, now: datetime) -> DeliveryResult:
    if 200 <= status < 300:
        return DeliveryResult(True)
    said = f"{host} answers {status} {http.client.responses.get(status, '')}".rstrip()
    if 300 <= status < 400:
        said += ", and redirects are not followed; configure the new address"
    if status in _REFUSALS:
        return DeliveryResult(False, said, final=True)
    return DeliveryResult(False, said, wait_s=_retry_after_s(retry_after, now))


def _retry_after_s(said: str | None, now: datetime) -> float:
    """Parse a Retry-After header (RFC 9110, section 10.2.3) into seconds; 0 without a valid one."""
    if said is None:
        return 0.0
    if said.strip().isascii() and said.strip().isdigit():
        return float(said.strip()[:9])
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "TLS failed").lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
        return "it hung up"
    return "its answer is not HTTP"
