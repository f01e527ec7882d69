"""Plain-text e-mail through the configured mail server.

Guarantees:
- No name or address adds a header or a recipient.
- TLS is verified where it is configured.
- A message has the same Message-ID each time it is sent.
"""

import contextlib
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Final

from marcod.notify.connection import Connection
from marcod.notify.render import Rendered
from marcod.settings import MailSettings
from marcod.store.outbox import DeliveryResult
from marcod.text import printable

TIMEOUT_S: Final = 10.0
"""For connecting and for each step; a whole mail may take WHOLE of these, since some servers make senders wait."""

WHOLE: Final = 3
FAREWELL_S: Final = 1.0
_REFUSALS: Final = range(550, 554)
"""Of a sender or recipient (RFC 5321, section 4.2.3). The other 5xx may be a password that is being changed."""

LONGEST_REPLY: Final = 200


def send(
    mail: MailSettings,
    to: Sequence[str],
    rendered: Rendered,
    message: str,
    clock: Callable[[], datetime],
    timeout_s: float = TIMEOUT_S,
) -> DeliveryResult:
    """Send one mail to all addresses; ``message`` is its id. Only a refused sender or recipient is final."""
    assert mail.host is not None
    try:
        written = _written(mail.sender, to, rendered, message, clock())
        refused = _hand_over(mail, to, written, timeout_s)
    except TimeoutError:
        return DeliveryResult(False, f"{mail.host} did not answer in time")
    except ssl.SSLCertVerificationError as error:
        return DeliveryResult(False, f"the certificate of {mail.host} is not trusted: {error.verify_message}")
    except smtplib.SMTPRecipientsRefused as error:
        final = all(code in _REFUSALS for code, _ in error.recipients.values())
        return DeliveryResult(False, f"{mail.host} refuses {_listed(error.recipients)}", final=final)
    except smtplib.SMTPResponseException as error:
        said = f"{mail.host} answers {error.smtp_code} {_reply(error.smtp_error)}"
        return DeliveryResult(False, said, final=error.smtp_code in _REFUSALS)
    except smtplib.SMTPException as error:
        if isinstance(error.__context__, TimeoutError):
            return DeliveryResult(False, f"{mail.host} did not answer in time")
        return DeliveryResult(False, f"{mail.host} does not do its part: {_reply(str(error) or type(error).__name__)}")
    except OSError as error:
        return DeliveryResult(False, f"{mail.host} cannot be reached: {error.strerror or type(error).__name__}")
    except (ValueError, MessageError):
        return DeliveryResult(False, "an address in notify or mail.sender cannot be used", final=True)
    return DeliveryResult(True, f"{mail.host} refused {_listed(refused)}" if refused else None)


def _written(sender: str, to: Sequence[str], rendered: Rendered, message: str, now: datetime) -> EmailMessage:
    written = EmailMessage(policy=SMTP)
    for address in (sender, *to):
        if "@" not in parseaddr(address)[1] or not address.isprintable():
            raise ValueError(address)
    written["From"] = sender
    written["To"] = ", ".join(to)
    written["Subject"] = rendered.subject
    written["Date"] = format_datetime(now)
    written["Message-ID"] = f"<{message}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    written["Auto-Submitted"] = "auto-generated"
    written["X-Marcod-Message"] = message
    written.set_content(rendered.text)
    return written


def _hand_over(
    mail: MailSettings, to: Sequence[str], written: EmailMessage, timeout_s: float
) -> dict[str, tuple[int, bytes]]:
    """Deliver a mail. Returns the recipients that were refused where others were not."""
    ends = time.monotonic() + WHOLE * timeout_s
    with contextlib.closing(Connection(mail.host or "", mail.port, timeout_s)) as line, contextlib.ExitStack() as stack:
        with line.limited_to(ends - time.monotonic()):
            server = stack.enter_context(contextlib.closing(_Server(line, mail, timeout_s)))
            if mail.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if mail.user is not None:
                server.login(mail.user, mail.password.get_secret_value() if mail.password is not None else "")
            refused = server.send_message(written, to_addrs=[parseaddr(address)[1] for address in to])
        # The server has accepted the mail, whatever it answers to QUIT.
        with contextlib.suppress(OSError, smtplib.SMTPException), line.limited_to(min(FAREWELL_S, timeout_s)):
            server.quit()
        return refused


class _Server(smtplib.SMTP):
    """SMTP over an open connection, as smtplib has no total limit for connecting, TLS and the greeting."""

    def __init__(self, line: Connection, mail: MailSettings, timeout_s: float) -> None:
        self._line, self._tls = line, mail.security == "tls"
        # With the host's name here, which smtplib also verifies after STARTTLS.
        super().__init__(mail.host or "", mail.port, timeout=timeout_s)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        if self._tls:
            return ssl.create_default_context().wrap_socket(self._line.socket, server_hostname=host)
        return self._line.socket


def _listed(recipients: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address} ({code} {_reply(said)})" for address, (code, said) in sorted(recipients.items()))


def _reply(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return printable(text, instead=" ")[:LONGEST_REPLY]
