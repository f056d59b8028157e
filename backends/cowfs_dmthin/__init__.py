"""Thin pools of the kernel: device mapper's thin-pool and thin targets by raw ioctls, loop devices for files."""

from cowfs_dmthin.backend import DmThinBackend
from cowfs_dmthin.control import Control, ControlError
from cowfs_dmthin.pool import DmPool
from cowfs_dmthin.thin import DmThin

BACKEND = DmThinBackend()

__all__ = ["BACKEND", "Control", "ControlError", "DmPool", "DmThin", "DmThinBackend"]
