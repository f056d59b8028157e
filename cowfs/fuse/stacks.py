"""What a process does, for its log: the stack of every thread and of every trio task."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

import trio

_log = logging.getLogger(__name__)
_LOCKED_SECONDS = 5.0  # how much longer the interpreter may be held by one call before threads alone are dumped


class StackWatch:
    """Logs all stacks once, a while after `start`, unless `stop` came first.

    Where one call holds the interpreter, so that nothing can be logged, faulthandler writes the threads' stacks to
    standard error, which is the log of a server.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """In a trio task. A second call does nothing."""
        if self._timer is not None:
            return
        self._timer = threading.Timer(self._seconds, self._log, [trio.lowlevel.current_root_task()])
        self._timer.daemon = True
        self._timer.start()
        with contextlib.suppress(ValueError, OSError):  # standard error is not a file
            faulthandler.dump_traceback_later(self._seconds + _LOCKED_SECONDS)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join(_LOCKED_SECONDS)
            faulthandler.cancel_dump_traceback_later()

    def _log(self, root: trio.lowlevel.Task | None) -> None:
        faulthandler.cancel_dump_traceback_later()
        _log.warning("asked to end %g s ago, and still at work:\n%s", self._seconds, describe_stacks(root))


def describe_stacks(root: trio.lowlevel.Task | None) -> str:
    """The stacks of all threads, and of the tasks below a root task; in any thread."""
    lines: list[str] = []
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        lines += [f"thread {names.get(number, number)}:", *_indented(traceback.format_stack(frame))]
    for task in _tasks_below(root):
        lines += [f"task {task.name}:", *_indented(_task_stack(task))]
    return "\n".join(lines)


def _tasks_below(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    if task is None:
        return
    yield task
    for nursery in list(task.child_nurseries):
        for child in tuple(nursery.child_tasks):
            yield from _tasks_below(child)


def _task_stack(task: trio.lowlevel.Task) -> list[str]:
    """Empty for the one that runs: that is in its thread's."""
    frames: list[tuple[FrameType, int]] = []
    with contextlib.suppress(Exception):  # it may go on meanwhile
        frames += task.iter_await_frames()
    return traceback.StackSummary.extract(iter(frames)).format()


def _indented(stack: list[str]) -> list[str]:
    return [f"  {line}" for entry in stack for line in entry.rstrip("\n").split("\n")]
