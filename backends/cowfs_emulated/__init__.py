"""Thin pools in user space: the kernel's thin-pool target emulated on plain files, its metadata byte for byte."""

from cowfs_emulated.backend import EmulatedBackend
from cowfs_emulated.pool import EmulatedPool
from cowfs_emulated.thin import EmulatedThin

BACKEND = EmulatedBackend()

__all__ = ["BACKEND", "EmulatedBackend", "EmulatedPool", "EmulatedThin"]
