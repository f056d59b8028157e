"""What a request to a home is; the requests themselves are in `operations` and the modules beside it.

Request[R]   answers one R
Listing[P]   answers a sequence of P, piece by piece, so that its length costs no memory
Work[R]      answers one R after a while, in steps between which the home serves others
Upload[R]    the same, reading a file that comes with it
"""

from __future__ import annotations

import typing
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from cowfs.devices.names import BASE
from cowfs.error_record import plain_text
from cowfs.errors import DeviceBusy
from cowfs.host.kernel_nodes import kernel_mounts

if TYPE_CHECKING:
    from cowfs.devices import DeviceRecord, DeviceSet
    from cowfs.devices.volumes import Volumes
    from cowfs.host.kernel_layers import KernelLayers
    from cowfs.layers import IdMaps, Steps
    from cowfs.layers.driver import LayerDriver, Mounter
    from cowfs.layers.options import Settings

R = TypeVar("R", covariant=True)  # noqa: PLC0105
T = TypeVar("T")


class MountedView(msgspec.Struct, frozen=True):
    """A device that is shown at a mount point: by the holder as `tree` or `raw`, or by the `kernel`.

    The view `home` shows every device, each in a directory of its name below the mount point; `device` is null then.
    """

    device: str | None
    mount_point: str
    view: str
    read_only: bool


class Host:
    """A home held by this process: its device set, the views mounted from it, whether others are served."""

    def __init__(
        self, devices: DeviceSet, backend: str, *, is_serving: bool = False, volumes: Volumes | None = None
    ) -> None:
        self.devices = devices
        self.backend = backend
        self.is_serving = is_serving
        self.views: list[MountedView] = []
        self._volumes = volumes
        self._driver: LayerDriver | None = None
        self.settings: Settings | None = None

    @property
    def volumes(self) -> Volumes:
        """The open volumes of the home, whoever uses them."""
        from cowfs.devices.volumes import Volumes

        if self._volumes is None:
            self._volumes = Volumes(self.devices)
        return self._volumes

    @property
    def driver(self) -> LayerDriver:
        """The home as a storage driver has it."""
        if self._driver is None:
            self.drive(None, None, None)
        assert self._driver is not None
        return self._driver

    def drive(self, settings: Settings | None, maps: IdMaps | None, mounter: Mounter | None) -> None:
        """Let the layers be driven by these settings (its defaults when None) from now on.

        Args:
            mounter: who shows their files; the kernel when None, where it can, and always those of xfs.
        """
        from cowfs.layers.driver import LayerDriver

        self.settings = settings
        if self._driver is not None:
            self._driver.cleanup()
        kernel = self._kernel_layers(settings)
        trees = None
        if kernel is not None and (mounter is None or self.devices.base_filesystem == "xfs"):
            mounter = trees = kernel
        self._driver = LayerDriver(self.devices, self.volumes, mounter, trees=trees, settings=settings, maps=maps)

    def _kernel_layers(self, settings: Settings | None) -> KernelLayers | None:
        """What has the kernel mount layers, where that is possible and wanted."""
        from cowfs.pool import NodePool

        if not isinstance(self.devices.pool, NodePool):
            return None
        from cowfs.host.driving import settle_for
        from cowfs.host.kernel_layers import KernelLayers
        from cowfs.layers.options import DriverOptions

        settings = settings or settle_for(self.backend, DriverOptions())
        return KernelLayers(self.devices, self.volumes, settings) if settings.kernel_mounts else None

    def close(self) -> None:
        """Put what was got here, and close the home."""
        try:
            if self._driver is not None:
                self._driver.cleanup()
        finally:
            self.devices.close()

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

    def views_of(self, record: DeviceRecord, views: Sequence[MountedView] | None = None) -> list[MountedView]:
        """The views that show a device, each as if it were of that device alone.

        Args:
            views: all there are, where they are known already.
        """
        name = record.name
        views = self.all_views() if views is None else views
        shown = [view for view in views if view.device == name]
        if name != BASE and not record.deleted:
            whole = (view for view in views if view.device is None)
            shown += [MountedView(name, f"{view.mount_point}/{name}", "home", view.read_only) for view in whole]
        return shown

    def require_unused(self, record: DeviceRecord, purpose: str, alternative: str = "") -> None:
        """Raises DeviceBusy for a device that is mounted, or is in use where the whole home is."""
        active = record.name in self.devices.active()
        views = [view for view in self.views_of(record) if active or view.view != "home"]
        if not views:
            return
        where = views[0].mount_point
        how, remedy = "mounted", f"first run: cowfs umount {where}"
        if views[0].view == "home":
            how, remedy = "in use", f"see by whom with: fuser -vm {where}"
        raise DeviceBusy(
            f"device '{record.name}' is {how} at {where}, so it cannot be {purpose}; {remedy}{alternative}"
        )


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
    """A question whose answer is a sequence. The home may change between two pieces of it.

    A piece that is None is a step on the way to the next one, and no part of the answer.
    """

    @abstractmethod
    def run(self, host: Host) -> Iterator[R | None]: ...


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
