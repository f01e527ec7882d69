"""Who gives a command."""

import getpass
import os


def actor() -> str:
    """The user's name, for the audit and for labels; in a container a user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
