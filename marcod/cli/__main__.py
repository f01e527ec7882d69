"""``python -m marcod.cli``: the command line without its entry script."""

from marcod.cli import main

main()
