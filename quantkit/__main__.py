"""`python -m quantkit` is the command line."""

from quantkit.cli.app import main

main()
