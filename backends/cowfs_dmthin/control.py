"""Device mapper by its ioctls: one function per request, answers as values, errno kept.

Nothing here depends on udev or on names below /dev/mapper: devices are named in the request and found by number.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cowfs.errors import PoolError
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import (
    DM_CONTROL_PATH,
    NO_FLAGS,
    Command,
    DmHeader,
    Flag,
    TargetLine,
    pack_message,
    unpack_dependencies,
    unpack_names,
    unpack_versions,
)

# The largest with which Python lets other threads run during an ioctl.
_FIRST_BUFFER_BYTES = 1024
_LARGEST_BUFFER_BYTES = 1 << 24
# Removal meets transient users of a node, such as blkid run by udev.
_BUSY_TRIES = 50
_BUSY_PAUSE_SECONDS = 0.02
# The UUID of a thin that stays active without a user begins so; other devices of ours have none.
_KEPT_UUID = "cowfs-kept-"


class ControlError(PoolError):
    """The kernel refused a device-mapper request; `errno` is the kernel's."""

    def __init__(self, command: Command, name: str, number: int, detail: str = "") -> None:
        what = command.name.lower().replace("_", " ")
        reason = os.strerror(number).lower()
        super().__init__(
            f"device mapper: {what} of '{name}' failed: {reason}{f' ({detail})' if detail else ''}", errno=number
        )
        self.command = command


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What device mapper knows about a device."""

    name: str
    device_number: int
    open_count: int
    event_number: int
    suspended: bool
    read_only: bool
    has_live_table: bool
    deferred_remove: bool
    is_kept: bool

    @property
    def is_used(self) -> bool:
        """Whether a process has it open, or it is kept active; other idle devices were left by a crash."""
        return self.open_count > 0 or self.is_kept


class Control:
    """The control device, opened on first use. Stateless besides that, so it may be shared."""

    def __init__(self, path: str = DM_CONTROL_PATH) -> None:
        self._path = path
        self._fd = -1

    # ------------------------------------------------------------------------------------------ devices

    def create(self, name: str) -> int:
        """A device without a table; its number."""
        return self._call(Command.DEV_CREATE, name)[0].device_number

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """Remove a device; one that is in use is tried again for a second.

        Args:
            deferred: let the kernel remove it when its last user is gone, if it has one.
        """
        if deferred:
            self._call(Command.DEV_REMOVE, name, flags=Flag.DEFERRED_REMOVE)
            return
        for attempt in range(_BUSY_TRIES):
            try:
                self._call(Command.DEV_REMOVE, name)
            except ControlError as error:
                if error.errno != errno.EBUSY or attempt + 1 == _BUSY_TRIES:
                    raise
                time.sleep(_BUSY_PAUSE_SECONDS)
            else:
                return

    def remove_if_there(self, name: str) -> None:
        """`remove` of a device that may be gone already. What fails for a moment only is tried once more.

        Raises:
            ControlError: EBUSY, when it is in use; it is as it was.
        """
        for is_last in (False, True):
            try:
                self.remove(name)
            except ControlError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno == errno.EBUSY or is_last:
                    raise
            else:
                return

    def cancel_deferred_remove(self, name: str) -> None:
        self.message(name, "@cancel_deferred_remove")

    def keep(self, name: str) -> None:
        """Have a device stay without users, for the time that this kernel runs."""
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        self._call(Command.DEV_RENAME, name, f"{_KEPT_UUID}{digest}".encode() + b"\0", flags=Flag.UUID)
        self.cancel_deferred_remove(name)

    def info(self, name: str) -> DeviceInfo | None:
        """None when there is no device of this name."""
        try:
            header, _ = self._call(Command.DEV_STATUS, name)
        except ControlError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        return DeviceInfo(
            name=name,
            device_number=header.device_number,
            open_count=header.open_count,
            event_number=header.event_number,
            suspended=Flag.SUSPEND in header.flags,
            read_only=Flag.READ_ONLY in header.flags,
            has_live_table=Flag.ACTIVE_PRESENT in header.flags,
            deferred_remove=Flag.DEFERRED_REMOVE in header.flags,
            is_kept=header.uuid.startswith(_KEPT_UUID),
        )

    def devices(self) -> dict[str, int]:
        """Device numbers of all devices by name."""
        return unpack_names(self._call(Command.LIST_DEVICES, "")[1])

    def dependencies(self, name: str) -> list[int]:
        """Numbers of the devices that a device's tables use: the live one, and one that is loaded."""
        header, data = self._call(Command.TABLE_DEPS, name)
        numbers = unpack_dependencies(data)
        if Flag.INACTIVE_PRESENT in header.flags:
            numbers += unpack_dependencies(self._call(Command.TABLE_DEPS, name, flags=Flag.QUERY_INACTIVE)[1])
        return numbers

    def devices_above(self, device_number: int) -> dict[str, int]:
        """Device numbers of the devices whose tables use a device, by name."""
        found = {}
        for name, number in self.devices().items():
            try:
                if device_number in self.dependencies(name):
                    found[name] = number
            except ControlError as error:
                if error.errno != errno.ENXIO:  # gone meanwhile
                    raise
        return found

    # ------------------------------------------------------------------------------------------ tables

    def load(self, name: str, *lines: TargetLine, read_only: bool = False) -> None:
        """Put a table in the inactive slot."""
        flags = Flag.READ_ONLY if read_only else NO_FLAGS
        packed = b"".join(line.pack() for line in lines)
        self._call(Command.TABLE_LOAD, name, packed, flags=flags, target_count=len(lines))

    def clear(self, name: str) -> None:
        """Empty the inactive slot."""
        self._call(Command.TABLE_CLEAR, name)

    def suspend(self, name: str, *, flush: bool = True, freeze: bool = True) -> None:
        """Stop I/O. `flush`: let what is under way finish; `freeze`: also quiesce a mounted file system."""
        flags = Flag.SUSPEND
        if not flush:
            flags |= Flag.NOFLUSH
        if not freeze:
            flags |= Flag.SKIP_LOCKFS
        self._call(Command.DEV_SUSPEND, name, flags=flags)

    def resume(self, name: str) -> None:
        """Make the inactive table live, if there is one, and let I/O go on."""
        self._call(Command.DEV_SUSPEND, name)

    def status(self, name: str, *, flush: bool = True) -> list[TargetLine]:
        header, data = self._call(Command.TABLE_STATUS, name, flags=NO_FLAGS if flush else Flag.NOFLUSH)
        return list(TargetLine.unpack_all(data, header.target_count))

    def table(self, name: str) -> list[TargetLine]:
        header, data = self._call(Command.TABLE_STATUS, name, flags=Flag.STATUS_TABLE | Flag.NOFLUSH)
        return list(TargetLine.unpack_all(data, header.target_count))

    def message(self, name: str, text: str) -> None:
        self._call(Command.TARGET_MSG, name, pack_message(text))

    # ------------------------------------------------------------------------------------------ driver

    def version(self) -> tuple[int, int, int]:
        return self._call(Command.VERSION, "")[0].version

    def target_version(self, target: str) -> tuple[int, int, int] | None:
        """Version of a target, whose module is loaded if need be; None when the kernel has none."""
        try:
            _, data = self._call(Command.GET_TARGET_VERSION, target)
        except ControlError as error:
            # Before interface 4.41 the request is not known.
            if error.errno not in (errno.EINVAL, errno.ENOTTY, errno.ENXIO):
                raise
            _, data = self._call(Command.LIST_VERSIONS, "")
        return unpack_versions(data).get(target)

    def open_events(self) -> int:
        """A descriptor for `arm_events`, which the caller closes."""
        return nodes.open_misc(self._path, "device-mapper", os.O_RDWR)

    def arm_events(self, fd: int) -> None:
        """Make a descriptor readable at the next event of any device; until then it is not."""
        header = DmHeader(DmHeader.SIZE).pack()
        try:
            fcntl.ioctl(fd, Command.DEV_ARM_POLL, bytearray(header))
        except OSError as error:
            raise ControlError(Command.DEV_ARM_POLL, "", error.errno or errno.EIO) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _call(
        self,
        command: Command,
        name: str,
        data: bytes = b"",
        *,
        flags: Flag = NO_FLAGS,
        target_count: int = 0,
        event_number: int = 0,
    ) -> tuple[DmHeader, bytes]:
        """One ioctl; the answer's header and data area. The buffer grows until the answer fits."""
        if self._fd < 0:
            self._fd = nodes.open_misc(self._path, "device-mapper", os.O_RDWR)
        size = max(_FIRST_BUFFER_BYTES, DmHeader.SIZE + len(data))
        while True:
            header = DmHeader(size, name, flags, event_number, target_count)
            buffer = bytearray(size)
            buffer[: DmHeader.SIZE] = header.pack()
            buffer[DmHeader.SIZE : DmHeader.SIZE + len(data)] = data
            try:
                fcntl.ioctl(self._fd, command, buffer)
            except OSError as error:
                raise ControlError(command, name, error.errno or errno.EIO) from error
            answer = DmHeader.unpack(buffer)
            if Flag.BUFFER_FULL not in answer.flags:
                return answer, bytes(buffer[answer.data_start : max(answer.data_start, answer.data_size)])
            if size >= _LARGEST_BUFFER_BYTES:
                raise ControlError(command, name, errno.ENOMEM, f"the answer does not fit {size} bytes")
            size *= 4


def only_line(lines: Iterable[TargetLine], name: str) -> TargetLine:
    """The single target of a table, as pools and thins have it."""
    found = list(lines)
    if len(found) != 1:
        raise ControlError(Command.TABLE_STATUS, name, errno.ENXIO, f"{len(found)} targets where 1 was expected")
    return found[0]
