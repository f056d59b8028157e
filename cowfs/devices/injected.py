"""What a test puts in the place of the system, of chance and of mkfs."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable

import msgspec

from cowfs.devices.base.base_device import BaseFilesystem
from cowfs.devices.on_disk.files import System


class Injected(msgspec.Struct, frozen=True):
    """How a device set reaches what is not its own.

    Attributes:
        filesystem: of the base device, how it is made; the one that the home has, or ext4, when None.
        system: the calls that change a home's files.
        new_uuid: called once for each file system made.
        clock: seconds since 1970, for the ledger of uses.
    """

    filesystem: BaseFilesystem | None = None
    system: System = os
    new_uuid: Callable[[], str] = lambda: str(uuid.uuid4())
    clock: Callable[[], float] = time.time
