"""Long operations in short steps: generators, between two steps of which others have their turn.

    Steps[T]      yields None after each step, and returns a T
    Pieces[P]     yields pieces of its answer, too, as soon as each is made

Each step leaves the home whole. Here they are run at once; `cowfs.home.executor` runs them beside other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import closing
from typing import Any, TypeAlias, TypeVar

P = TypeVar("P")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U", bound=Sized)
Y = TypeVar("Y")

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all, None where that is not known) by what takes long."""

Steps: TypeAlias = Generator[None, None, T]
Pieces: TypeAlias = Generator[P | None, None, None]


def finish(steps: Steps[T]) -> T:
    """Run a long operation to its end."""
    return exchange(steps, lambda _step: None)


def exchange(operation: Generator[Y, S, T], turn: Callable[[Y], S]) -> T:
    """Run an operation to its end; what it yields is given to `turn`, and what that returns is sent to it."""
    reply: Any = None
    with closing(operation):
        while True:
            try:
                step = operation.send(reply)
            except StopIteration as end:
                answer: T = end.value
                return answer
            reply = turn(step)


def pieces_of(steps: Pieces[P]) -> Generator[P, None, None]:
    """The pieces alone. Left early, the operation ends there."""
    try:
        for piece in steps:
            if piece is not None:
                yield piece
    finally:
        steps.close()


def counted(pieces: Iterable[U], total_bytes: int, progress: Progress) -> Iterator[U]:
    """Pieces of bytes as they are sent, saying how many went."""
    done = 0
    for piece in pieces:
        progress(min(done, total_bytes), total_bytes)
        yield piece
        done += len(piece)
