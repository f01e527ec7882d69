"""Entry point of the program. A stop is orderly even before anything large is loaded."""

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line."""
    if "run" in sys.argv:
        # Loading takes seconds; a service that is stopped meanwhile has begun nothing, and has not failed.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # What is imported stays; looking through it for garbage takes a tenth of a short command's time.
    gc.disable()
    from marcod import cli

    try:
        cli.main()
    except SystemExit as ended:
        if "run" in sys.argv:
            _end(ended.code)
        raise


def _end(code: object) -> None:
    """End now: the service has stopped in order, and threads that hang on a share or a device are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
