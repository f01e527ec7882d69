"""Words to choose from on the command line."""

from collections.abc import Iterable
from typing import TypeVar

import click

Word = TypeVar("Word", bound=str)


class Choice(click.Choice[Word]):
    """One of some words; a word that is none of them is answered with all, the nearest first."""

    def __init__(self, choices: Iterable[Word], *, case_sensitive: bool = True) -> None:
        super().__init__(choices, case_sensitive=case_sensitive)

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        """Make the sentence about a wrong word."""
        from marcod import text

        words = text.nearest(str(value), [str(choice) for choice in self.choices])
        return f"{str(value)!r} is not one of {', '.join(map(repr, words))}."
