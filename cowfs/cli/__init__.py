"""The command line. `main` is the console script; the commands are in the modules beside this one."""

from cowfs.cli.app import main

__all__ = ["main"]
