"""A block device for tests. One that fails is in `cowfs.faults.disk`, one that records in `cowfs.recording.journal`."""

from __future__ import annotations

from cowfs.blockdev import MemoryDevice


def memory_device(image: bytes | bytearray) -> MemoryDevice:
    """A device in memory that holds a copy of an image."""
    return MemoryDevice(bytearray(image))
