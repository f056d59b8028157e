"""What a request to a home is; the requests themselves are in the modules beside this one.

    Request[R]   answers one R, at once or in steps
    Listing[P]   answers a sequence of P, piece by piece, so that its length costs no memory
    Upload[R]    a request that reads a file which comes with it
    StreamIn[R]  a request that reads bytes, as long as they come: they travel beside the lines
    StreamOut[R] one that gives bytes, before its answer

Each declares what it needs of the content of devices, and what it does to it (`reads` and what comes after it).
The process that runs it sees to the mounted views of these devices: `cowfs.home.executor`.
"""

from __future__ import annotations

import typing
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, SupportsBytes, TypeAlias, TypeVar

import msgspec

from cowfs.errors import UsageError

if TYPE_CHECKING:
    from cowfs.home.opened.open_home import OpenHome
    from cowfs.steps import Pieces, Steps

F = TypeVar("F", bound=Callable[..., object])
R = TypeVar("R", covariant=True)  # noqa: PLC0105
T = TypeVar("T")


class Replaced(NamedTuple):
    """A device that becomes another thin; `force` detaches what is open in it."""

    device: str
    force: bool


class Renaming(NamedTuple):
    """A device that gets another name."""

    device: str
    new_name: str


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """Base of every request.

    `is_local`: no other process can send it. `is_whole`: it is done wholly, or not at all. `only_reads`: it changes
    nothing, so it is asked again where the process that was asked has ended. `reads_all_devices`: `devices_read` is
    every device. `changes_reads`: what is read of a file may be different after it, so that the kernel's cache does not
    count.
    """

    is_local: ClassVar[bool] = False
    is_whole: ClassVar[bool] = True
    only_reads: ClassVar[bool] = False

    def summary(self) -> str:
        """What is asked, in a few words: the operation, and what it is about."""
        words = str(self.__struct_config__.tag).replace("_", " ")
        subject = next((value for value in msgspec.structs.astuple(self) if isinstance(value, str)), "")
        return f"{words} '{subject}'" if subject else words

    reads_all_devices: ClassVar[bool] = False
    changes_reads: ClassVar[bool] = False

    # Names of fields that hold devices, empty for none:
    reads: ClassVar[tuple[str, ...]] = ()
    """Their content is read, or a snapshot made of it: all that applications wrote shall be seen."""
    needs_idle: ClassVar[str] = ""
    """It may not be in use: one that is open only because it was used lately is closed before."""
    gives_up: ClassVar[str] = ""
    """It may be idle after this: it is closed then."""
    unmounts: ClassVar[str] = ""
    """The kernel's mount of it may end with this, which waits until all of it is written."""
    rewrites: ClassVar[str] = ""
    """Its files may be others after this: what the kernel has cached of them counts no more."""
    reopens: ClassVar[str] = ""
    """It has to be closed while this runs; what programs have open in its mount stays open."""

    def check(self, home: OpenHome) -> None:
        """Raise what is known to prevent this, before anything is done about devices. Changes nothing."""

    def device_in(self, field: str) -> str | None:
        """The device that a field holds; none for an empty name."""
        return getattr(self, field) if field else None

    def devices_read(self) -> tuple[str, ...]:
        """Those that `reads` names, or that a request knows by other means."""
        return tuple(dict.fromkeys(filter(None, map(self.device_in, self.reads))))

    def device_given_up(self) -> str | None:
        """The one that `gives_up` names, where it is given up in this case."""
        return self.device_in(self.gives_up)

    def device_renamed(self) -> Renaming | None:
        """A device that may have another name after this: what is open in it stays open, where it is mounted alone."""
        return None

    def device_replaced(self) -> Replaced | None:
        """A device that is another thin after this: nothing that is open in it may reach the new content."""
        return None


class Request(_Message, Generic[R], frozen=True):
    """A question with one answer."""

    @abstractmethod
    def run(self, home: OpenHome) -> R | Steps[R]: ...


class Listing(_Message, Generic[R], frozen=True):
    """A question whose answer is a sequence. The home may change between two pieces of it."""

    only_reads: ClassVar[bool] = True

    @abstractmethod
    def run(self, home: OpenHome) -> Pieces[R]: ...


Piece: TypeAlias = bytes | SupportsBytes
"""A part of a stream: bytes, or what becomes bytes where it goes to another process."""


class StreamIn(_Message, Generic[R], frozen=True):
    """A request that takes bytes in pieces from the client."""

    @abstractmethod
    def run(self, home: OpenHome) -> Generator[bool, Any, R]:
        """Yields True to be sent the next piece, which is empty at the end, and False after a step of the operation."""
        ...


class StreamOut(_Message, Generic[R], frozen=True):
    """A request that gives bytes in pieces, each of at most `MAX_PIECE_BYTES`, and an answer after them."""

    only_reads: ClassVar[bool] = True

    @abstractmethod
    def run(self, home: OpenHome) -> Generator[Piece | None, None, R]: ...


class Attachment:
    """A regular file beside a request, read from its current position. It is not a part of the request's JSON."""

    __slots__ = ("file",)

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file


class Upload(Request[R], Generic[R], frozen=True, kw_only=True, omit_defaults=True):
    """A request that reads a file."""

    archive: Attachment | None = None

    @property
    def file(self) -> IO[bytes]:
        """Raises UsageError when none came."""
        if self.archive is None:
            raise UsageError("no open file came with a request that reads one")
        return self.archive.file


def batched(values: Sequence[T], size: int = 256) -> Iterator[Sequence[T]]:
    """Pieces of a sequence, between which a listing lets others have their turn."""
    return (values[begin : begin + size] for begin in range(0, len(values), size))


class OpenFile(msgspec.Struct, frozen=True):
    """An open file of this process, number `fd`; its receiver closes it."""

    fd: int


MAX_PIECE_BYTES: Final = 16 << 20

AnyRequest: TypeAlias = Request[Any] | Listing[Any] | StreamIn[Any] | StreamOut[Any]


def documented_by(request: type[AnyRequest]) -> Callable[[F], F]:
    """A decorator: the documentation of a method that asks is its request's."""

    def document(method: F) -> F:
        method.__doc__ = request.__doc__
        return method

    return document


def answer_type(kind: type[AnyRequest]) -> Any:
    """What a request answers, or what each piece of a listing is."""
    (base,) = kind.__orig_bases__  # type: ignore[union-attr]
    (argument,) = typing.get_args(base)
    return argument
