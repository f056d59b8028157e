"""A process that removes what another one leaves, however that one ends: by kill -9, too.

    janitor = Janitor(PROGRAM, directory)
    janitor.close()

The janitor waits for the end of a pipe, whose other end the process that made it has, and no other. Then it runs
`remove_left(directory)` of the file PROGRAM. Until then it is an interpreter that has loaded next to nothing; the
program may import what of cowfs needs no other package.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent


class Janitor:
    """From now on, an absolute `directory` does not outlive this process.

    Args:
        program: the path of a file with a function `remove_left(directory: Path)`.
    """

    def __init__(self, program: str, directory: str | os.PathLike[str]) -> None:
        from cowfs.forking import close_in_children  # noqa: PLC0415 - the program imports nothing of cowfs

        reader, self._writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, program, directory],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(reader)
        close_in_children(self, lambda janitor: os.close(janitor._writer))

    def close(self) -> None:
        """Have it do its work now, and end."""
        os.close(self._writer)
        self._process.wait()


def main(arguments: Sequence[str]) -> None:
    program, directory = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the process that made it, and not before
    while os.read(0, 1 << 10):
        pass
    if os.path.isdir(directory):
        sys.path.append(os.fspath(_PACKAGE.parent))
        runpy.run_path(program)["remove_left"](Path(directory))


if __name__ == "__main__":
    main(sys.argv[1:])
