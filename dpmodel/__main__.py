"""``python -m dpmodel``: the command line."""

from dpmodel.cli import main

main()
