"""``python -m twinflows``: the command line."""

from twinflows.command.cli import main

main()
