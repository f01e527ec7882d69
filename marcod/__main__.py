"""Where the program begins; before anything large is loaded, a stop is taken in order."""

import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    if "run" in sys.argv:
        # Loading takes seconds; a service that is stopped meanwhile has begun nothing, and has not failed.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from marcod import cli

    cli.main()


if __name__ == "__main__":
    main()
