"""Running requests on a home that this process holds."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from cowfs.host.open_home import OpenHome
from cowfs.host.requests.request import Listing, Request, Upload, Work
from cowfs.layers.interface import finish

R = TypeVar("R")


class Executor:
    """A home opened by this process, as a `Session`."""

    holder_pid: int | None = None

    def __init__(self, home: OpenHome) -> None:
        self.home = home

    @property
    def path(self) -> Path:
        return self.home.path

    def call(self, request: Request[R] | Work[R]) -> R:
        answer = request.run(self.home)
        return finish(answer) if isinstance(answer, Generator) else answer

    def upload(self, request: Upload[R], file: IO[bytes]) -> R:
        return finish(request.run(self.home, file))

    def iterate(self, request: Listing[R]) -> Iterator[R]:
        return (piece for piece in request.run(self.home) if piece is not None)

    def close(self) -> None:
        self.home.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
