"""`python -m cowfs`."""

from cowfs.cli import main

main()
