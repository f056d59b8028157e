"""Access control lists: stored by xfs as attributes of the root namespace, shown as `system.posix_acl_*`.

xfs:    count 4 | tag 4, id 4, permissions 2, 2 unused | ...       big endian
shown:  version 2, 4 bytes | tag 2, permissions 2, id 4 | ...      little endian, as in linux/posix_acl_xattr.h
"""

from __future__ import annotations

import struct
from typing import Final

SHOWN_NAMES: Final = {b"SGI_ACL_FILE": b"system.posix_acl_access", b"SGI_ACL_DEFAULT": b"system.posix_acl_default"}
_COUNT: Final = struct.Struct(">I")
_ENTRY: Final = struct.Struct(">IIHH")
_SHOWN_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = struct.pack("<I", 2)
_WITH_ID: Final = (2, 8)  # a user, a group
_TAGS: Final = (1, 2, 4, 8, 16, 32)
_NO_ID: Final = 0xFFFFFFFF


def shown(stored: bytes) -> bytes | None:
    """A list as getxattr(2) shows it; None where the stored one cannot be."""
    if len(stored) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(stored)
    if _COUNT.size + count * _ENTRY.size > len(stored):
        return None
    found = [_VERSION]
    for tag, number, permissions, _ in _ENTRY.iter_unpack(stored[_COUNT.size : _COUNT.size + count * _ENTRY.size]):
        if tag not in _TAGS or permissions > 0o7:
            return None
        found.append(_SHOWN_ENTRY.pack(tag, permissions, number if tag in _WITH_ID else _NO_ID))
    return b"".join(found)
