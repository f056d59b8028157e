"""SIGTERM and Ctrl-C in a command: it is ended and what it began is undone, or it has done what it was asked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

_INTERRUPTED: Final = 130
_ENDED: Final = 143
STATUSES: Final = (_INTERRUPTED, _ENDED)


class Ended(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: temporary files and guests are removed."""


@contextmanager
def kept() -> Iterator[None]:
    """What signals do in this block is undone at its end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def interrupt_by_signals() -> None:
    """Have SIGTERM, and Ctrl-C where it is not ignored, raise from here on."""
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: object) -> NoReturn:
    raise Ended  # servers, which trio runs, note the signal instead


def exit_status(error: BaseException) -> int:
    """Of a command that a signal has ended."""
    return _ENDED if isinstance(error.__cause__ or error, Ended) else _INTERRUPTED


def outcome_stands() -> None:
    """From here on the command has done what it was asked, so that a signal changes nothing any more.

    One that has arrived before raises here, and not later.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
