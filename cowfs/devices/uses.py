"""Who uses the devices of a home, and since when: the one ledger, and the one message for a busy device.

    end = uses.begin("web", "tree", "/mnt")
    uses.of("web")                      [DeviceUse("web", "tree", "/mnt", 1700000000.0)]
    raise uses.busy("web", "removed")
    end()

A use is noted by the code that begins it: a mounted view, the layer driver, a reader of a layer, the Python API for
a disk. Mounts by the kernel, and nodes, outlive the process that made them, so the kernel is asked for them instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from cowfs.devices.reports import DeviceUse, UseKind
from cowfs.error_record import plain_text
from cowfs.errors import DeviceBusy, UsageError, command_line

# What a message names first where a device has several uses: what ends the others with it.
_ORDER: Final[tuple[UseKind, ...]] = ("layer", "tree", "raw", "kernel", "node", "disk", "writer", "reader", "home")


class DeviceUses:
    """The uses that this process knows of. One thread at a time.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._uses: dict[str, list[DeviceUse]] = {}

    def begin(self, device: str, kind: UseKind, where: str | None = None) -> Callable[[], None]:
        """Note a use; returns what ends it, of which only the first call counts."""
        use = DeviceUse(device, kind, plain_text(where) if where is not None else None, self._clock())
        self._uses.setdefault(device, []).append(use)

        def end() -> None:
            uses = self._uses.get(device, [])
            left = [other for other in uses if other is not use]
            if left:
                self._uses[device] = left
            else:
                self._uses.pop(device, None)

        return end

    @contextmanager
    def using(self, device: str, kind: UseKind, where: str | None = None) -> Iterator[None]:
        """A use for the length of a `with` block."""
        end = self.begin(device, kind, where)
        try:
            yield
        finally:
            end()

    def of(self, device: str, kind: UseKind | None = None) -> list[DeviceUse]:
        """The uses of a device, the oldest first; all kinds when None."""
        return [use for use in self._uses.get(device, ()) if kind is None or use.kind == kind]

    def all(self) -> list[DeviceUse]:
        """Every use, by device."""
        return [use for device in sorted(self._uses) for use in self._uses[device]]

    def busy(self, device: str, purpose: str, alternative: str = "") -> DeviceBusy:
        """The error for a device of which it is known that it is in use."""
        return busy(device, self.of(device), purpose, alternative)


def require_idle(device: str, uses: Iterable[DeviceUse], purpose: str, alternative: str = "") -> None:
    """Raises DeviceBusy for a device that has any of these uses.

    Args:
        purpose: what it is needed for, such as `removed`.
        alternative: what can be done instead, with what joins it to the remedy.
    """
    if found := list(uses):
        raise busy(device, found, purpose, alternative)


def require_files(device: str, uses: Iterable[DeviceUse], what: str) -> None:
    """Raises UsageError for a device that is shown as a disk, whose files are not known.

    Args:
        what: is for files only, such as `a recording`.
    """
    for use in uses:
        if use.kind == "raw":
            raise UsageError(
                f"device '{device}' is mounted at {use.where} as a disk (--raw), and {what} is of files; mount the "
                "device without --raw"
            )


def busy(device: str, uses: Iterable[DeviceUse], purpose: str, alternative: str = "") -> DeviceBusy:
    """The error for a device in use, which names one use, where one is known, and what ends it."""
    use = min(uses, key=lambda use: _ORDER.index(use.kind), default=None)
    if use is None:
        return DeviceBusy(f"device '{device}' is in use, so it cannot be {purpose}; unmount it first{alternative}")
    where = f" at {use.where}" if use.where else ""
    unmount = f"first run: {command_line('cowfs', 'umount', str(use.where))}"
    how, remedy = {
        "layer": (f"mounted as a layer{where}", f"first run: {command_line('cowfs', 'layer', 'put', device)}"),
        "tree": (f"mounted{where}", unmount),
        "raw": (f"mounted{where}", unmount),
        "kernel": (f"mounted{where}", unmount),
        "node": (f"active as the node {use.where}", f"first run: {command_line('cowfs', 'deactivate', device)}"),
        "disk": ("in use as a disk", "close it first"),
        "writer": ("being copied into", "try again when that is done"),
        "reader": ("being read as a layer", "try again when that is done"),
        "home": (f"in use{where}", f"see by whom with: {command_line('fuser', '-vm', str(use.where))}"),
    }[use.kind]
    return DeviceBusy(f"device '{device}' is {how}, so it cannot be {purpose}; {remedy}{alternative}")
