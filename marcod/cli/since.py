"""Times as people give them: an age or a date."""

import re
from datetime import UTC, datetime, timedelta

import click

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse(_ctx: click.Context, _param: click.Parameter, text: str | None) -> datetime | None:
    """The callback of an option ``AGE|DATE``: ``90m``, ``24h``, ``7d``, ``2w`` before now, or a date in UTC."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    try:
        if match:
            return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter("give an age such as 90m, 24h, 7d, 2w, or a date such as 2026-05-01") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
