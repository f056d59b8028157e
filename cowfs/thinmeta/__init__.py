"""The dm-thin metadata format: the transactional writer, and the readers and tools around it."""

from cowfs.thinmeta.format import DeviceDetails, Superblock
from cowfs.thinmeta.mapping import ThinMapping
from cowfs.thinmeta.metadata import Metadata

__all__ = ["DeviceDetails", "Metadata", "Superblock", "ThinMapping"]
