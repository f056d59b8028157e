"""Replacements for methods of a home's active devices: for faults, and for traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from cowfs.devices.active import ActiveDevices
from cowfs.in_place import Make, put_in_place
from cowfs.pool import ThinDevice

if TYPE_CHECKING:
    from cowfs.fuse.translate import View

Wanted: TypeAlias = Callable[[str], Make | None]
"""The stand-in for the device of a name; None for a device without one."""


class StandIns:
    """Puts something before devices while it is wanted, before such too that become active meanwhile.

    Args:
        active: the devices of the home.
    """

    def __init__(self, active: ActiveDevices) -> None:
        self._active = active
        self._wanted: dict[str, Wanted] = {}
        self._standing: dict[tuple[str, str], tuple[ThinDevice, Callable[[], None]]] = {}
        self._view: View | None = None

    def show(self, view: View) -> None:
        """Say what the mount of the home shows."""
        self._view = view

    def want(self, purpose: str, wanted: Wanted | None) -> None:
        """Install the stand-ins of a purpose, in place of its earlier ones; remove those when None.

        To be called again when the answers of `wanted` are others.
        """
        if wanted is None:
            self._wanted.pop(purpose, None)
        else:
            self._wanted[purpose] = wanted
        active = self._active.thins()
        for (of_purpose, name), (thin, take_back) in list(self._standing.items()):
            is_current = active.get(name) is thin
            if of_purpose == purpose and not (is_current and wanted is not None and wanted(name) is not None):
                del self._standing[of_purpose, name]
                take_back()
                self._tell_view(thin)
        for name, thin in active.items():
            self._note_activation(name, thin)
        self._active.on_activation = self._note_activation if self._wanted else None

    def _note_activation(self, name: str, thin: ThinDevice) -> None:
        for purpose, wanted in self._wanted.items():
            standing = self._standing.get((purpose, name))
            make = wanted(name)
            if make is not None and (standing is None or standing[0] is not thin):
                self._standing[purpose, name] = thin, put_in_place(thin, make)
                self._tell_view(thin)

    def _tell_view(self, thin: ThinDevice) -> None:
        if self._view is not None:
            self._view.take_methods_of(thin)
