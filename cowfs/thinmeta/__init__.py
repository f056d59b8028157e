"""The dm-thin metadata format: the transactional writer, and the readers and tools around it.

format                          blocks to typed values and back
metadata, mapping               a pool's metadata in a transaction; one thin's mapping. On store, btree
space_maps, counts              which blocks are used, and how often
walk                            reading untrusted metadata
check, check_trees,
check_space_maps, findings      a full recount; recount: its counters
repair, repair_roots, builder   clean metadata from what can be read; written in one pass
delta, usage, xml               what differs, who occupies what, thin_dump's text
"""

from cowfs.thinmeta.format import DeviceDetails, Superblock
from cowfs.thinmeta.mapping import ThinMapping
from cowfs.thinmeta.metadata import Metadata

__all__ = ["DeviceDetails", "Metadata", "Superblock", "ThinMapping"]
