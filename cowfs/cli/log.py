"""Where messages of the program's parts are shown: set up once for a command line, here.

a command       warnings are lines `cowfs: ...` on standard error; -v shows more of them, -q only errors
a server        everything from INFO, with times, on standard error, which is the home's cowfs.log in the background
--log FILE      everything from INFO, with times, is appended to FILE; a server then writes nothing else
"""

from __future__ import annotations

import logging
import os
from typing import Final

from cowfs.cli import output
from cowfs.cli.settings import LogOptions
from cowfs.errors import UsageError

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Lines(logging.Handler):
    """Messages as errors are written, each once: a home may be opened twice."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            output.print_line(f"cowfs: {text}")


def log_command(options: LogOptions) -> None:
    """Set the log up for a command. Raises UsageError when the file cannot be written."""
    lines = _Lines(_level(options, 0))
    _handle(lines, *_files(options))


def log_server(options: LogOptions) -> None:
    """Set the log up for a process that serves. Raises UsageError when the file cannot be written."""
    handlers = _files(options)
    if not handlers:
        handlers = [logging.StreamHandler()]
        handlers[0].setLevel(_level(options, 1))
        handlers[0].setFormatter(logging.Formatter(_FORMAT))
    _handle(*handlers)


def _level(options: LogOptions, step: int) -> int:
    """What is shown: that of `step` without -v, and one step more for each."""
    return logging.ERROR if options.quiet else _LEVELS[min(step + options.verbosity, len(_LEVELS) - 1)]


def _files(options: LogOptions) -> list[logging.Handler]:
    if options.file is None:
        return []
    try:
        fd = os.open(options.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--log: cannot write to {options.file}: {error.strerror}", errno=error.errno) from error
    handler = logging.StreamHandler(os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace"))
    handler.setLevel(_level(options, 1))
    handler.setFormatter(logging.Formatter(_FORMAT))
    return [handler]


_ours: list[logging.Handler] = []


def _handle(*handlers: logging.Handler) -> None:
    """Have these handlers, in place of those of an earlier call."""
    root = logging.getLogger()
    while _ours:
        root.removeHandler(_ours.pop())
    for handler in handlers:
        root.addHandler(handler)
        _ours.append(handler)
    root.setLevel(min(handler.level for handler in handlers))
