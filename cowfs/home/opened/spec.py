"""Which home, and how it is to be opened or made: the one description that `opening.open_here` takes."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cowfs.devices.opening import OpenOptions

if TYPE_CHECKING:
    from cowfs.devices.on_disk.options import HomeOptions
    from cowfs.devices.opening import Progress


class Make(enum.Enum):
    """When a home is made."""

    NEVER = "an absent home is an error"
    WHERE_ABSENT = "in a new or empty directory; a home that is present is opened"
    ALWAYS = "in a new or empty directory; a home that is present is an error"


class HomeSpec(msgspec.Struct, frozen=True):
    """Which home, and how it is to be opened or made.

    Attributes:
        path: the home's directory.
        backend: the backend that implements the pool, a name of the entry-point group `cowfs.backends`.
        read_only: change nothing, not even what a crash left.
        untouched: leave no trace either, not even the lock's file; with `read_only`.
        durable: False gives up flushes, for homes that live no longer than a test.
        storage_options: of the layer driver, `dm.KEY=VALUE`. They also say how a home is made, and make it grow.
        virtual_clock: time passes only by requests, for tests.
        make: whether a home is made.
        options: how, where the storage options say nothing; `durable` counts in place of theirs.
        progress: called with (what is done next, steps done, steps in all) while a home is made.
        verify: False leaves out the check of the base device, to get at the devices of a damaged home.
        runtime_directory: where a process of this user's may serve the layers of the home, if that cannot be written.
    """

    path: Path
    backend: str = "emulated"
    read_only: bool = False
    untouched: bool = False
    durable: bool = True
    storage_options: tuple[str, ...] = ()
    virtual_clock: bool = False
    make: Make = Make.NEVER
    options: HomeOptions | None = None
    progress: Progress | None = None
    verify: bool = True
    runtime_directory: Path | None = None

    def how_opened(self) -> OpenOptions:
        """How the device set is opened, apart from storage options."""
        return OpenOptions(read_only=self.read_only, untouched=self.untouched, durable=self.durable, verify=self.verify)
