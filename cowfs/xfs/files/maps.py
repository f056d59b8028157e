"""Which blocks of the device hold which blocks of a file: extents, in the inode or in a tree."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from cowfs.errors import FilesystemError
from cowfs.xfs.files.blocks import Blocks, Cache
from cowfs.xfs.format import headers
from cowfs.xfs.format.extents import Extent, TreeNode, unpack_block, unpack_extents, unpack_root
from cowfs.xfs.format.inode import FORM_EXTENTS, FORM_TREE, Inode
from cowfs.xfs.format.superblock import damaged

_EXTENTS_MAX: Final = 1 << 18
_LEVELS_MAX: Final = 9


class ExtentMap:
    """The extents of a fork, ascending and disjoint."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self.extents = extents
        self._begins = [extent.logical for extent in extents]

    def from_block(self, logical: int) -> Iterator[Extent]:
        """The extents from the one on that holds a block of the file, or follows it."""
        index = max(bisect_right(self._begins, logical) - 1, 0)
        for number in range(index, len(self.extents)):
            extent = self.extents[number]
            if extent.logical + extent.length > logical:
                yield extent

    def run(self, logical: int) -> tuple[int, int] | None:
        """(fsblock of a block of the file, count of blocks from it on that follow each other); None for a hole."""
        for extent in self.from_block(logical):
            skipped = logical - extent.logical
            return (extent.fsblock + skipped, extent.length - skipped) if skipped >= 0 else None
        return None


class Maps:
    """The maps of forks that were used lately."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._maps: Cache[tuple[int, bool], ExtentMap] = Cache(_EXTENTS_MAX, lambda found: len(found.extents) + 16)

    def data(self, inode: Inode) -> ExtentMap:
        """Raises FilesystemError: damage."""
        key = (inode.number, False)
        found = self._maps.get(key)
        if found is None:
            found = self._maps.put(key, self._load(inode, inode.form, inode.fork, inode.extents, "data"))
        return found

    def attributes(self, inode: Inode) -> ExtentMap:
        key = (inode.number, True)
        found = self._maps.get(key)
        if found is None:
            form, fork, count = inode.attribute_form, inode.attribute_fork, inode.attribute_extents
            found = self._maps.put(key, self._load(inode, form, fork, count, "attribute"))
        return found

    def limit(self, share: float) -> None:
        self._maps.limit(share)

    def clear(self) -> None:
        self._maps.clear()

    def _load(self, inode: Inode, form: int, fork: bytes, count: int, fork_name: str) -> ExtentMap:
        found: list[Extent] = []
        if form == FORM_EXTENTS:
            extents = unpack_extents(fork, count)
            if extents is None:
                raise _damaged_fork(inode, fork_name, f"{count} extents are more than there is room for")
            self._take(inode, fork_name, found, extents, count)
        elif form == FORM_TREE:
            root = unpack_root(fork)
            if root is None or root.level >= _LEVELS_MAX:
                raise _damaged_fork(inode, fork_name, "the root of its tree of extents cannot be")
            for node in self._leaves(inode, fork_name, root):
                self._take(inode, fork_name, found, node.extents, count)
        else:
            raise _damaged_fork(inode, fork_name, f"its form is {form}")
        if len(found) != count:
            raise _damaged_fork(inode, fork_name, f"there are {len(found)} extents instead of {count}")
        return ExtentMap(found)

    def _leaves(self, inode: Inode, fork_name: str, node: TreeNode) -> Iterator[TreeNode]:
        """In order. Ends: levels go down, and what is reached twice does not ascend."""
        for fsblock in node.children:
            block, offset = self._blocks.read_checked(headers.TREE, [fsblock], inode.number)
            child = unpack_block(block, has_checksums=self._blocks.sb.has_checksums)
            if child is None or child.level != node.level - 1:
                place = self._blocks.sb.place(offset)
                raise _damaged_fork(inode, fork_name, f"the tree of extents has a wrong level or count in {place}")
            if child.level:
                yield from self._leaves(inode, fork_name, child)
            else:
                yield child

    def _take(
        self, inode: Inode, fork_name: str, found: list[Extent], extents: Sequence[Extent], count_max: int
    ) -> None:
        """Add checked extents."""
        end = found[-1].logical + found[-1].length if found else 0
        is_elsewhere = inode.is_realtime and fork_name == "data"
        offset_of = self._blocks.sb.offset_of
        for extent in extents:
            if extent.logical < end or not extent.length:
                raise _damaged_fork(inode, fork_name, "its extents overlap or are empty")
            if not is_elsewhere and offset_of(extent.fsblock, extent.length) is None:
                reason = f"an extent of {extent.length} blocks from {extent.fsblock} is not in the file system"
                raise _damaged_fork(inode, fork_name, reason)
            end = extent.logical + extent.length
        found.extend(extents)
        if len(found) > count_max:
            raise _damaged_fork(inode, fork_name, f"there are more than {count_max} extents")


def _damaged_fork(inode: Inode, fork_name: str, reason: str) -> FilesystemError:
    return damaged(f"{fork_name} fork of inode {inode.number}: {reason}")
