"""What a request to a home is; the requests themselves are in the modules beside this one.

Request[R]   answers one R
Listing[P]   answers a sequence of P, piece by piece, so that its length costs no memory
Work[R]      answers one R after a while, in steps between which the home serves others
Upload[R]    the same, reading a file that comes with it
"""

from __future__ import annotations

import typing
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from cowfs.host.open_home import OpenHome
    from cowfs.layers import Steps

R = TypeVar("R", covariant=True)  # noqa: PLC0105
T = TypeVar("T")


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """Base of everything that can be sent."""

    def device_to_quiesce(self) -> str | None:
        """A device whose mounted views must be written back before this runs."""
        return None

    def device_to_let_go(self) -> str | None:
        """A device that nobody may use while this runs: the home view closes it, if it can."""
        return None

    def device_to_forget(self) -> str | None:
        """A device whose files the kernel may have cached and that may differ after this."""
        return None


class Work(_Message, Generic[R], frozen=True):
    """A question with one answer that takes a while."""

    @abstractmethod
    def run(self, home: OpenHome) -> Steps[R]: ...


class Upload(_Message, Generic[R], frozen=True):
    """As `Work`, with a regular file to read, from its current position."""

    @abstractmethod
    def run(self, home: OpenHome, file: IO[bytes]) -> Steps[R]: ...


class Request(_Message, Generic[R], frozen=True):
    """A question with one answer."""

    @abstractmethod
    def run(self, home: OpenHome) -> R: ...


class Listing(_Message, Generic[R], frozen=True):
    """A question whose answer is a sequence. The home may change between two pieces of it.

    A piece that is None is a step on the way to the next one, and no part of the answer.
    """

    @abstractmethod
    def run(self, home: OpenHome) -> Iterator[R | None]: ...


def batched(values: Sequence[T], size: int = 256) -> Iterator[Sequence[T]]:
    """Pieces of a sequence, between which a listing lets others have their turn."""
    return (values[begin : begin + size] for begin in range(0, len(values), size))


class OpenFile(msgspec.Struct, frozen=True):
    """An open file of this process, number `fd`; whoever receives it closes it."""

    fd: int


AnyRequest: TypeAlias = Request[Any] | Listing[Any] | Work[Any] | Upload[Any]


def answer_type(kind: type[AnyRequest]) -> Any:
    """What a request answers, or what each piece of a listing is."""
    (base,) = kind.__orig_bases__  # type: ignore[union-attr]
    (argument,) = typing.get_args(base)
    return argument
