"""What a request to a home is; the requests themselves are in `operations` and the modules beside it.

Request[R]   answers one R
Listing[P]   answers a sequence of P, piece by piece, so that its length costs no memory
Work[R]      answers one R after a while, in steps between which the home serves others
Upload[R]    the same, reading a file that comes with it
"""

from __future__ import annotations

import typing
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from cowfs.error_record import plain_text
from cowfs.host.kernel_nodes import kernel_mounts

if TYPE_CHECKING:
    from cowfs.devices import DeviceSet
    from cowfs.layers import Steps

R = TypeVar("R", covariant=True)  # noqa: PLC0105


class MountedView(msgspec.Struct, frozen=True):
    """A device that is shown at a mount point: by the holder as `tree` or `raw`, or by the `kernel`."""

    device: str
    mount_point: str
    view: str
    read_only: bool


class Host:
    """A home held by this process: its device set, the views mounted from it, whether others are served."""

    def __init__(self, devices: DeviceSet, backend: str, *, is_serving: bool = False) -> None:
        self.devices = devices
        self.backend = backend
        self.is_serving = is_serving
        self.views: list[MountedView] = []

    @property
    def home(self) -> Path:
        return self.devices.home

    def all_views(self) -> list[MountedView]:
        """What this process shows, and what the kernel does."""
        kernels = (
            MountedView(name, plain_text(mount.target), "kernel", mount.is_read_only)
            for name, mount in kernel_mounts(self.devices)
        )
        return [*self.views, *kernels]

    def mount_points(self, name: str) -> list[str]:
        return [view.mount_point for view in self.all_views() if view.device == name]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    """Base of everything that can be sent."""

    def device_to_quiesce(self) -> str | None:
        """A device whose mounted views must be written back before this runs."""
        return None

    def device_to_forget(self) -> str | None:
        """A device whose files the kernel may have cached and that may differ after this."""
        return None


class Work(_Message, Generic[R], frozen=True):
    """A question with one answer that takes a while."""

    @abstractmethod
    def run(self, host: Host) -> Steps[R]: ...


class Upload(_Message, Generic[R], frozen=True):
    """As `Work`, with a regular file to read, from its current position."""

    @abstractmethod
    def run(self, host: Host, file: IO[bytes]) -> Steps[R]: ...


class Request(_Message, Generic[R], frozen=True):
    """A question with one answer."""

    @abstractmethod
    def run(self, host: Host) -> R: ...


class Listing(_Message, Generic[R], frozen=True):
    """A question whose answer is a sequence. The home may change between two pieces of it."""

    @abstractmethod
    def run(self, host: Host) -> Iterator[R]: ...


class OpenFile(msgspec.Struct, frozen=True):
    """An open file of this process, number `fd`; whoever receives it closes it."""

    fd: int


AnyRequest: TypeAlias = Request[Any] | Listing[Any] | Work[Any] | Upload[Any]


def answer_type(kind: type[AnyRequest]) -> Any:
    """What a request answers, or what each piece of a listing is."""
    (base,) = kind.__orig_bases__  # type: ignore[union-attr]
    (argument,) = typing.get_args(base)
    return argument
