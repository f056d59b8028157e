"""Takes down what a run has left that was ended by kill -9: its servers, its mounts and its directory.

It is a process of its own that waits for the end of a pipe, whose other end the run has, and no other. A run that ends
in any other way has taken everything down itself, and it finds nothing. Volume groups and thins are not among it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

_LEASES_SECONDS: Final = 5.0  # in which the mounts of cowfs end by themselves
_PAUSE_SECONDS: Final = 0.05
_UNMOUNTERS: Final = (("umount", "--recursive"), ("umount", "--lazy"), ("fusermount3", "-u", "-z"))


class Janitor:
    """From now on, an absolute `directory` does not outlive this process."""

    def __init__(self, directory: str) -> None:
        reader, self._writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, directory],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(reader)

    def close(self) -> None:
        """Have it do its work now, and end."""
        os.close(self._writer)
        self._process.wait()


def main(arguments: Sequence[str]) -> None:
    (directory,) = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the run, and not before
    while os.read(0, 1):
        pass
    if not os.path.isdir(directory):
        return
    deadline = time.monotonic() + _LEASES_SECONDS
    while _servers(directory) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    for unmounter in _UNMOUNTERS:
        for target in reversed(_mounts(directory)):
            with suppress(OSError):
                subprocess.run([*unmounter, target], stdin=subprocess.DEVNULL, check=False)
    for pid in _servers(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def _mounts(directory: str) -> list[str]:
    """Mount points below a directory. One that has to be escaped in the table cannot be: the directory is made here."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        targets = [line.split(" ")[1] for line in file]
    return [target for target in targets if target.startswith(f"{directory}/")]


def _servers(directory: str) -> list[int]:
    """Processes whose command line names something below the directory, which has a name that nothing else has."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if f"{directory}/".encode() in file.read():
                    found.append(int(name))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
