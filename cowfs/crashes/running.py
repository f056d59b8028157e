"""Programs of a crash test while they run: each has a limit of time, and what it has started ends with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple


class Ended(NamedTuple):
    """How a program ended. `status`: of exit, below zero for a signal. `in_time`: False where it had to be killed."""

    status: int
    in_time: bool


class Programs:
    """Runs programs, from any thread. Each has a separate process group, which is killed when the program has ended.

    Args:
        seconds: how long one may take.
    """

    def __init__(self, environment: Mapping[str, str], seconds: float) -> None:
        self.seconds = seconds
        self._environment = environment
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._is_ending = False

    def run(
        self, arguments: Sequence[str], output: IO[bytes] | None = None, variables: Mapping[str, str] | None = None
    ) -> Ended:
        """Run one to its end.

        Args:
            output: for what it prints; what this process prints to by default.
            variables: of its environment, besides that of all.

        Raises:
            OSError: it cannot be started.
        """
        with self._lock:
            if self._is_ending:
                raise InterruptedError("the crash test is ending")
            process = subprocess.Popen(
                arguments,
                env={**self._environment, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                process_group=0,
            )
            self._running.add(process.pid)
        with process:
            try:
                in_time = _ends_within(process.pid, self.seconds)
            finally:
                with self._lock:
                    self._running.discard(process.pid)
                    os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        return Ended(process.returncode, in_time)

    def end(self) -> None:
        """Kill what runs, and start nothing more."""
        with self._lock:
            self._is_ending = True
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)


def _ends_within(pid: int, seconds: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)
