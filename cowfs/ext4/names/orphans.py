"""The orphan list: inodes without a name that are still open, so that a crash does not leak them.

The superblock names the first one; the deletion time field of each holds the number of the next, and the last has 0.
At the next mount, what is on the list and has no links is freed, and what still has links is cut to its size.
"""

from __future__ import annotations

from collections.abc import Callable

from cowfs.errors import FilesystemError
from cowfs.ext4.files.inodes import Inode, InodeTable
from cowfs.ext4.library.filesystem import Filesystem


class Orphans:
    """The list of one volume; the newest is first."""

    def __init__(self, fs: Filesystem, inodes: InodeTable) -> None:
        self._fs = fs
        self._inodes = inodes
        self._list: list[Inode] = []

    def find(self, number: int) -> Inode | None:
        return next((inode for inode in self._list if inode.number == number), None)

    def all(self) -> list[Inode]:
        return list(self._list)

    def add(self, inode: Inode) -> None:
        inode.raw.i_dtime = self._list[0].number if self._list else 0
        inode.touch()
        self._list.insert(0, inode)
        self._set_first()

    def remove(self, inode: Inode) -> None:
        index = self._list.index(inode)
        following = self._list[index + 1].number if index + 1 < len(self._list) else 0
        if index:
            previous = self._list[index - 1]
            previous.raw.i_dtime = following
            previous.touch()
        del self._list[index]
        inode.raw.i_dtime = 0
        inode.touch()
        self._set_first()

    def _set_first(self) -> None:
        self._fs.super.s_last_orphan = self._list[0].number if self._list else 0
        self._fs.superblock_changed()

    def process(self, prepare: Callable[[Inode], None], finish: Callable[[Inode], None]) -> None:
        """Work off the list that the last mount left.

        Args:
            prepare: reads what `finish` needs. Raises FilesystemError (EUCLEAN) for an inode that must stay as it is.
            finish: frees an inode, or cuts it to its size.

        Raises:
            FilesystemError (EUCLEAN): the list leads nowhere or round in a circle.
        """
        number: int = self._fs.super.s_last_orphan
        seen: set[int] = set()
        while number:
            if number in seen or not self._fs.first_inode <= number <= self._fs.inodes:
                raise self._fs.damaged(f"the orphan list leads to inode {number}")
            seen.add(number)
            inode = self._inodes.load(number)
            self._list.append(inode)
            number = inode.raw.i_dtime
        for inode in self.all():
            self._inodes.keep(inode)
            self.remove(inode)
            try:
                prepare(inode)
            except FilesystemError as error:
                self._fs.note_damage(f"inode {inode.number}, which has no name, is not freed: {error.message}")
            else:
                finish(inode)
