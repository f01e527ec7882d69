"""Keys of the page: what each action is called, and the two maps that come with marcod.

A key is the browser's ``event.key``, so that it is the same on every keyboard layout; one letter is lower case.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

KeyMap = Literal["letters", "digits"]
KeyAction = Literal[
    "crystals", "precipitate", "clear", "other", "skip", "undo", "next", "previous", "first", "last",
    "earlier", "later", "light", "zoom", "heat", "follow", "harvested", "note", "compare", "keep", "goto", "choose",
    "help",
]  # fmt: skip
ACTIONS: Final[tuple[KeyAction, ...]] = get_args(KeyAction)

MEANINGS: Final[dict[KeyAction, str]] = {
    "crystals": "Crystals",
    "precipitate": "Precipitate",
    "clear": "Clear",
    "other": "Other",
    "skip": "Skip this drop of the review",
    "undo": "Take the last label back and go to it",
    "next": "Next drop",
    "previous": "Previous drop",
    "first": "First drop",
    "last": "Last drop",
    "earlier": "The drop at the inspection before; on a map the drop above",
    "later": "The drop at the inspection after; on a map the drop below",
    "light": "The drop in another light: visible, UV, SHG",
    "zoom": "All pixels of the image, or the whole image",
    "heat": "Where the model looks for crystals",
    "follow": "Follow the drop, or stop",
    "harvested": "Harvested, or not",
    "note": "Write a note",
    "compare": "Compare with another inspection, or the two drops chosen",
    "keep": "Keep this drop in view next to the following ones, or not",
    "goto": "Go to a well: A1, or A1.2",
    "choose": "Choose all drops shown, or none",
    "help": "This list",
}
"""Every action in the words of the page's list of keys."""

_COMMON: Final[dict[KeyAction, tuple[str, ...]]] = {
    "undo": ("u", "Backspace", "Ctrl+z"),
    "first": ("Home",),
    "last": ("End",),
    "next": ("ArrowRight",),
    "previous": ("ArrowLeft",),
    "earlier": ("ArrowUp",),
    "later": ("ArrowDown",),
    "skip": ("s",),
    "light": ("v",),
    "zoom": ("z",),
    "heat": ("h",),
    "follow": ("f",),
    "harvested": ("m",),
    "note": ("n",),
    "compare": ("b",),
    "keep": ("r",),
    "goto": ("g",),
    "choose": ("a",),
    "help": ("?",),
}

MAPS: Final[dict[KeyMap, dict[KeyAction, tuple[str, ...]]]] = {
    "letters": _COMMON
    | {
        "crystals": ("x",),
        "precipitate": ("p",),
        "clear": ("c",),
        "other": ("o",),
        "next": ("ArrowRight", "k"),
        "previous": ("ArrowLeft", "j"),
    },
    "digits": _COMMON
    | {
        "crystals": ("1",),
        "precipitate": ("2",),
        "clear": ("3",),
        "other": ("4",),
        "next": ("ArrowRight", "d"),
        "previous": ("ArrowLeft", "a"),
        "first": ("Home", "q"),
        "last": ("End", "e"),
        "choose": ("w",),
    },
}
"""``letters`` is that of `marcod review`; ``digits`` has letters for moving, as SynchWeb and xtalPiMS have."""


def keys_of(chosen: KeyMap, changed: Mapping[KeyAction, str]) -> dict[KeyAction, tuple[str, ...]]:
    """Return the keys of every action, the one to be shown first; a changed key replaces those of its action.

    Raises ValueError for a key of two actions.
    """
    found = {action: (changed[action],) if action in changed else MAPS[chosen][action] for action in ACTIONS}
    owner: dict[str, KeyAction] = {}
    for action, keys in found.items():
        for key in keys:
            if key in owner:
                raise ValueError(f"the key {key} would do both {owner[key]} and {action}; give one of them another key")
            owner[key] = action
    return found
