"""One e-mail in plain text through the configured mail server.

Promises that no name or address adds a header or a recipient, that TLS is verified where it is configured, and that a
message has the same Message-ID however often it is sent.
"""

import contextlib
import smtplib
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import Final

from marcod.notify.deadline import hung_up_after
from marcod.notify.words import Letter
from marcod.settings import MailSettings
from marcod.store.outbox import Outcome

TIMEOUT_S: Final = 10.0
"""For connecting and for each step; a whole mail may take WHOLE of these, since some servers make senders wait."""

WHOLE: Final = 3
LONGEST_REPLY: Final = 200


def send(
    mail: MailSettings,
    to: Sequence[str],
    letter: Letter,
    message: str,
    clock: Callable[[], datetime],
    timeout_s: float = TIMEOUT_S,
) -> Outcome:
    """Send one mail to all addresses; ``message`` is its name. Refused for good is what the server answers with 5xx."""
    assert mail.host is not None
    try:
        written = _written(mail.sender, to, letter, message, clock())
        refused = _hand_over(mail, to, written, timeout_s)
    except TimeoutError:
        return Outcome(False, f"{mail.host} did not answer in time")
    except ssl.SSLCertVerificationError as error:
        return Outcome(False, f"the certificate of {mail.host} is not trusted: {error.verify_message}")
    except smtplib.SMTPRecipientsRefused as error:
        final = all(500 <= code < 600 for code, _ in error.recipients.values())
        return Outcome(False, f"{mail.host} refuses {_listed(error.recipients)}", final=final)
    except smtplib.SMTPResponseException as error:
        said = f"{mail.host} answers {error.smtp_code} {_reply(error.smtp_error)}"
        return Outcome(False, said, final=500 <= error.smtp_code < 600)
    except smtplib.SMTPException as error:
        return Outcome(False, f"{mail.host} does not do its part: {_reply(str(error) or type(error).__name__)}")
    except OSError as error:
        return Outcome(False, f"{mail.host} cannot be reached: {error.strerror or type(error).__name__}")
    except (ValueError, MessageError):
        return Outcome(False, "an address in notify or mail.sender cannot be used", final=True)
    return Outcome(True, f"{mail.host} refused {_listed(refused)}" if refused else None)


def _written(sender: str, to: Sequence[str], letter: Letter, message: str, now: datetime) -> EmailMessage:
    written = EmailMessage(policy=SMTP)
    for address in (sender, *to):
        if "@" not in parseaddr(address)[1] or not address.isprintable():
            raise ValueError(address)
    written["From"] = sender
    written["To"] = ", ".join(to)
    written["Subject"] = letter.subject
    written["Date"] = format_datetime(now)
    written["Message-ID"] = f"<{message}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    written["Auto-Submitted"] = "auto-generated"
    written["X-Marcod-Message"] = message
    written.set_content(letter.text)
    return written


def _hand_over(
    mail: MailSettings, to: Sequence[str], written: EmailMessage, timeout_s: float
) -> dict[str, tuple[int, bytes]]:
    """The recipients that were refused where others were not."""
    server = _server(mail, timeout_s)
    try:
        with hung_up_after(WHOLE * timeout_s, lambda: server.sock):
            if mail.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if mail.user is not None:
                server.login(mail.user, mail.password.get_secret_value() if mail.password is not None else "")
            refused = server.send_message(written, to_addrs=[parseaddr(address)[1] for address in to])
        # It is the server's now, whatever it says to a farewell.
        with contextlib.suppress(OSError, smtplib.SMTPException):
            server.quit()
        return refused
    finally:
        server.close()


def _server(mail: MailSettings, timeout_s: float) -> smtplib.SMTP:
    """Connected."""
    host = mail.host or ""
    if mail.security == "tls":
        return smtplib.SMTP_SSL(host, mail.port, timeout=timeout_s, context=ssl.create_default_context())
    return smtplib.SMTP(host, mail.port, timeout=timeout_s)


def _listed(recipients: dict[str, tuple[int, bytes]]) -> str:
    return ", ".join(f"{address} ({code} {_reply(said)})" for address, (code, said) in sorted(recipients.items()))


def _reply(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST_REPLY]
