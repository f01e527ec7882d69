"""Audit log: one row per act of a person or of the service that somebody may ask about later.

Rows are written in the transaction of their act. Models, roles and sources keep theirs for ever; see ``retention``.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from marcod.database.schema import audit


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the audit log."""

    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any] | None


def write(
    connection: Connection, actor: str, action: str, subject: str, detail: dict[str, object], now: datetime
) -> None:
    """Write one entry in the caller's transaction."""
    values = {"at": now, "actor": actor, "action": action, "subject": subject, "detail": detail}
    connection.execute(sa.insert(audit).values(values))


def history(connection: Connection, name: str) -> list[AuditEntry]:
    """List the entries about the version ``NAME:VERSION``, the latest first."""
    columns = (audit.c.at, audit.c.actor, audit.c.action, audit.c.subject, audit.c.detail)
    about = sa.or_(audit.c.subject == name, audit.c.detail["from"].as_string() == name)
    rows = connection.execute(sa.select(*columns).where(about).order_by(audit.c.id.desc()))
    return [AuditEntry(*row) for row in rows]
