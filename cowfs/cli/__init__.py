"""The command line. `main` is the console script; the commands are in the modules beside this one."""

from __future__ import annotations

import gc
import signal
from typing import Final, NoReturn

__all__ = ["main"]

# More than a command loads: modules are no garbage, and looking for some among them is a tenth of a command's time.
_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until there is a command that Ctrl-C interrupts: no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cowfs.cli import app

    app.main()
