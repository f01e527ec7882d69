"""Writes docs/reference.md from the program itself: every command with its options, every setting with its default.

``make docs`` runs it; a test fails when the page is not what the program says.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from marcod.cli import cli
from marcod.cli.common.lazy import loaded
from marcod.settings import keys

PAGE = Path(__file__).with_name("reference.md")

IN_STATE_FOLDER = {
    "store.url": "a file in the state folder",
    "models.folder": "`models` in the state folder",
    "train.folder": "`training` in the state folder",
    "web.cache_folder": "`page` in the state folder",
}
"""Defaults that differ from host to host."""


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the program by `make docs`; do not edit.",
        "## Settings",
        "In TOML below its section, or as a variable: `MARCOD_WATCH__SETTLE_S=5`. `sources.NAME` stands for any name.",
        "\n".join(_settings()),
        "## Commands",
        "Every command answers `--help`. Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration, "
        "3 done, but something is left for people to look at, 75 work is left for another try.",
        *_commands(cli, "marcod"),
    ]
    return "\n\n".join(parts) + "\n"


def _settings() -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key, meaning, default in keys.described():
        yield f"| `{key}` | {IN_STATE_FOLDER.get(key, '' if default in (None, [], {}) else default)} | {meaning} |"


def _commands(group: click.Group, name: str) -> Iterator[str]:
    for word in sorted(group.commands):
        command = loaded(group.commands[word])
        if isinstance(command, click.Group) and not command.invoke_without_command:
            yield from _commands(command, f"{name} {word}")
        else:
            settings_of_all = {**cli.context_settings, "terminal_width": 100}
            context = click.Context(command, info_name=f"{name} {word}", **settings_of_all)
            yield f"### {name} {word}\n\n```\n{command.get_help(context)}\n```"
        if isinstance(command, click.Group) and command.invoke_without_command:
            yield from _commands(command, f"{name} {word}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
