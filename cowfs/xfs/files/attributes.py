"""Extended attributes of inodes, with access control lists as `system.posix_acl_*`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from cowfs.errors import FilesystemError
from cowfs.xfs.files.blocks import Blocks, os_error
from cowfs.xfs.files.contents import Contents
from cowfs.xfs.files.maps import Maps
from cowfs.xfs.format import acl, headers
from cowfs.xfs.format.attributes import (
    LEAVES,
    BadAttributes,
    StoredAttribute,
    attributes_in_inode,
    attributes_in_leaf,
    children,
)
from cowfs.xfs.format.inode import FORM_LOCAL, Inode
from cowfs.xfs.format.superblock import damaged

_LEVELS_MAX: Final = 5
_LISTS: Final = {b"trusted." + name: shown for name, shown in acl.SHOWN_NAMES.items()}


class Attributes:
    """Attributes by inode; those of the last inode are cached."""

    def __init__(self, blocks: Blocks, maps: Maps, contents: Contents) -> None:
        self._blocks = blocks
        self._maps = maps
        self._contents = contents
        self._last: tuple[int, dict[bytes, StoredAttribute]] = (0, {})

    def names(self, inode: Inode) -> list[bytes]:
        """In order."""
        return sorted(self._all(inode))

    def get(self, inode: Inode, name: bytes) -> bytes:
        """Raises OSError (ENODATA); FilesystemError: damage."""
        found = self._all(inode).get(name)
        if found is None:
            raise os_error(errno.ENODATA)
        value = self._value(inode, found)
        if name not in _LISTS.values():
            return value
        if (shown := acl.shown(value)) is None:
            raise damaged(f"inode {inode.number} has an access control list that cannot be")
        return shown

    def _all(self, inode: Inode) -> dict[bytes, StoredAttribute]:
        """By the name that is shown."""
        if self._last[0] != inode.number:
            self._last = inode.number, {_LISTS.get(found.name, found.name): found for found in self._stored(inode)}
        return self._last[1]

    def _value(self, inode: Inode, found: StoredAttribute) -> bytes:
        if found.value is not None:
            return found.value
        return self._contents.in_blocks(inode, headers.VALUE, found.value_block, found.value_bytes, of_attribute=True)

    def _stored(self, inode: Inode) -> Iterator[StoredAttribute]:
        if not inode.attribute_fork:
            return
        if inode.attribute_form == FORM_LOCAL:
            try:
                yield from attributes_in_inode(inode.attribute_fork)
            except BadAttributes as error:
                raise damaged(f"attributes of inode {inode.number}: {error}") from error
        elif self._maps.attributes(inode).extents:
            yield from self._below(inode, 0, _LEVELS_MAX, set())

    def _below(self, inode: Inode, logical: int, level_max: int, seen: set[int]) -> Iterator[StoredAttribute]:
        """The attributes in a block of the tree and below it; `seen`: blocks that were read already."""
        run = self._maps.attributes(inode).run(logical)
        if run is None or logical in seen:
            raise damaged(f"attributes of inode {inode.number}: block {logical} of them is missing or its own")
        seen.add(logical)
        block, offset = self._blocks.read_checked(headers.ATTRIBUTES, [run[0]], inode.number)
        try:
            if block[8:10] in LEAVES:
                yield from attributes_in_leaf(self._blocks.sb, block)
                return
            level, below = children(self._blocks.sb, block)
            if not 0 < level <= level_max:
                raise BadAttributes(f"its level is {level}")
            for child in below:
                yield from self._below(inode, child, level - 1, seen)
        except BadAttributes as error:
            raise self._damaged(inode, offset, error) from error

    def _damaged(self, inode: Inode, offset: int, error: BadAttributes) -> FilesystemError:
        return damaged(f"{self._blocks.sb.place(offset)}, attributes of inode {inode.number}: {error}")
