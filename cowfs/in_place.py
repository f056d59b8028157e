"""Standing in the place of a device's methods, so that those who use the device already meet another one.

    take_back = put_in_place(device, make)

It is attributes of the object that do it, where Python looks before it looks in the class: a device in whose place
nothing stands costs what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from cowfs.blockdev import BlockDevice, Buffer, WritesThrough
from cowfs.units import METADATA_BLOCK_BYTES

Make: TypeAlias = Callable[[BlockDevice], BlockDevice]
_METHODS: Final = ("pread", "pwrite", "zero", "discard", "copy", "flush")
_WRITE_THROUGH: Final = "pwrite_and_flush"  # of a device that has it: two steps while another one stands in its place
_STACK: Final = "_stand_ins"


def put_in_place(device: BlockDevice, make: Make, *, innermost: bool = False) -> Callable[[], None]:
    """Have everyone who uses a device meet another one, by methods that belong to the object alone.

    Several may stand before one device, the last outermost; each is taken back on its own, in any order.

    Args:
        make: given the device as it was before, makes what stands in its place. It is called again when one that stood
            below it is taken back, or put there.
        innermost: stand below those that stand there already, next to the device.

    Returns:
        What takes it back.
    """
    stack: _Stack = vars(device).get(_STACK) or _Stack(device)
    stack.add(make, innermost=innermost)
    return lambda: stack.remove(make)


class _Stack:
    """What stands in the place of the methods of one device."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._names = (*_METHODS, _WRITE_THROUGH) if isinstance(device, WritesThrough) else _METHODS
        self._own = {name: vars(device)[name] for name in self._names if name in vars(device)}
        self._makes: list[Make] = []
        setattr(device, _STACK, self)

    def add(self, make: Make, *, innermost: bool) -> None:
        if innermost and self._makes:
            self._makes.insert(0, make)
            self._stand_anew()
        else:
            self._makes.append(make)
            self._stand(make)

    def remove(self, make: Make) -> None:
        self._makes.remove(make)
        self._stand_anew()
        if not self._makes:
            delattr(self._device, _STACK)

    def _stand_anew(self) -> None:
        for name in self._names:
            if name in self._own:
                setattr(self._device, name, self._own[name])
            else:
                delattr(self._device, name)
        for make in self._makes:
            self._stand(make)

    def _stand(self, make: Make) -> None:
        stand_in: Any = make(_Original(self._device))
        for name in _METHODS:
            setattr(self._device, name, getattr(stand_in, name))
        if _WRITE_THROUGH in self._names:
            setattr(self._device, _WRITE_THROUGH, self._write_through)

    def _write_through(self, offset: int, data: Buffer) -> None:
        self._device.pwrite(offset, data)
        self._device.flush()


class _Original:
    """A device by the methods that it has now."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.block_bytes = int(getattr(device, "block_bytes", METADATA_BLOCK_BYTES))
        self.pread = device.pread
        self.pwrite = device.pwrite
        self.zero = device.zero
        self.discard = device.discard
        self.copy = device.copy
        self.flush = device.flush
        self.close = device.close

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes
