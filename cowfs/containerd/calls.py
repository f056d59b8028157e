"""A call between the two threads of a snapshotter: one speaks to clients, the other one has the engine.

The engine is synchronous, so a disk or a kernel that does not answer holds it up, and it cannot be interrupted. The
thread that speaks waits a while and then gives the call up. What became of the call is settled once, under a lock, by
the thread that is first:

    decided     the engine has done all of it, durably. From then on that is the answer, however late it is asked for
    given up    the client is told that it was not done. The engine learns that when it wants to decide, and undoes it
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cowfs.containerd.grpc import Asked, CallError

Decide: TypeAlias = Callable[[Any], bool]
"""Called with the answer when all is done and durable; False: the call was given up, and is to be undone."""

EngineMethod: TypeAlias = Callable[[Asked, Decide], Awaitable[bytes]]
"""In the engine's thread, the answer of a call. Raises CallError."""

Read: TypeAlias = Callable[[Asked], "Iterable[bytes] | None"]
"""In any thread, the messages of an answer that is known; None where the engine has to be asked. Raises CallError."""

UNDONE: Final = "it is undone; try again in a moment"
UNCHANGED: Final = "nothing is changed; ask again in a moment"


def always(_answer: Any) -> bool:
    """A `Decide` of a call that is waited for without end."""
    return True


def never(_asked: Asked) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Method:
    """A method that the engine answers.

    Attributes:
        takes_long: whether a call may take as long as there is to read and write; others are given up after a while.
        outcome: what becomes of a call that is given up, for its client.
        goes_on: whether it is done all the same.
    """

    run: EngineMethod
    takes_long: Callable[[Asked], bool] = never
    outcome: str = UNDONE
    goes_on: bool = False


class Reply:
    """What became of one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: bytes | None = None
        self._error: CallError | None = None
        self._is_given_up = False

    @property
    def is_given_up(self) -> bool:
        return self._is_given_up

    def decide(self, answer: bytes) -> bool:
        """Settle that the call is done; whether it is: False where it was given up before."""
        with self._lock:
            if self._is_given_up:
                return False
            self._answer = answer
            return True

    def fail(self, error: CallError) -> None:
        """How the call ended otherwise, unless it was decided before."""
        with self._lock:
            self._error = error

    def give_up(self) -> bool:
        """Settle that the call is not done; whether it is so: False where it was decided before, or has failed."""
        with self._lock:
            self._is_given_up = self._answer is None and self._error is None
            return self._is_given_up

    def result(self) -> bytes:
        """The answer. Raises CallError as the call failed."""
        with self._lock:
            if self._answer is not None:
                return self._answer
            assert self._error is not None
            raise self._error
