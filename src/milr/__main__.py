"""`python -m milr` is `milr`."""

from milr.cli import main

main()
