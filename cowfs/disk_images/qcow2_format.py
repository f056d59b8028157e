"""What is where in a qcow2 image. Source: qemu, docs/interop/qcow2.rst; all numbers are big-endian.

    header ──► L1 table ──► L2 tables ──► clusters of data
           └─► refcount table ──► refcount blocks, one number for each cluster of the file

A cluster is the unit of everything. An L2 table is one cluster of entries of 8 bytes, each the place of one cluster of
the disk; the L1 table has the places of the L2 tables.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

MAGIC: Final = b"QFI\xfb"
ENTRY_BYTES: Final = 8

HEADER: Final = Struct(">4sIQIIQIIQQIIQ")
"""magic, version, backing file (place, bytes of its name), cluster bits, bytes of the disk, encryption, L1 table
(entries, place), refcount table (place, clusters), internal snapshots (how many, place).
"""

HEADER_OF_VERSION_3: Final = Struct(">QQQII")
"""After `HEADER`: features that a reader must know, may know, and forgets; bits of a refcount as a power of two; bytes
of the whole header.
"""

PLACE: Final = 0x00FF_FFFF_FFFF_FE00
USED_ONCE: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZEROS: Final = 1
