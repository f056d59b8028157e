"""What every command that serves a mount does first."""

from __future__ import annotations

import os

from cowfs.cli.log import log_server
from cowfs.cli.settings import Settings


def begin_serving(settings: Settings, target: str) -> None:
    """Log as servers do, and look for no program at or below the mount point, where a server would wait for itself.

    Args:
        target: the mount point, without symbolic links.
    """
    from cowfs.home.serving.surroundings import outside

    log_server(settings.log)
    if programs := os.environ.get("PATH"):
        os.environ["PATH"] = os.pathsep.join(outside(programs.split(os.pathsep), target))
