"""The paths of the inodes that the kernel asks about, for rules that name files.

Names are learnt as requests bring them. An inode that came before the first rule, or in the listing of a directory, is
looked for in the whole tree, once. A file that has lost its names keeps the last path as long as its number is not used
anew.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable

Place = tuple[int, bytes]
Listed = tuple[int, bytes, int]
"""A name in a directory: the directory's inode, the name, and the inode that it is of."""


class Names:
    """The names of one device.

    Args:
        root: the inode of its root directory.
        listing: every name in the tree.
    """

    def __init__(self, root: int, listing: Callable[[], Iterable[Listed]]) -> None:
        self.root = root
        self._listing = listing
        self._inodes: dict[Place, int] = {}
        self._places: defaultdict[int, dict[Place, None]] = defaultdict(dict)
        self._last: dict[int, list[str]] = {}

    def learn(self, directory: int, name: bytes, inode: int) -> None:
        """A name is of an inode now."""
        place = (directory, name)
        if self._inodes.get(place) not in (None, inode):
            self.remove(directory, name)
        self._inodes[place] = inode
        self._places[inode][place] = None
        self._last.pop(inode, None)

    def remove(self, directory: int, name: bytes) -> None:
        """A name is gone."""
        inode = self._inodes.get((directory, name))
        if inode is not None:
            paths = self.paths(inode)
            self._forget((directory, name))
            if inode not in self._places:
                self._last[inode] = paths

    def rename(self, old: Place, new: Place, *, is_exchange: bool) -> None:
        """A name became another one, or two changed places."""
        moved, other = self._inodes.get(old), self._inodes.get(new)
        if is_exchange and other is not None:
            self._forget(new)
        else:
            self.remove(*new)
        if moved is not None:
            self._forget(old)
            self.learn(*new, moved)
        if is_exchange and other is not None:
            self.learn(*old, other)

    def _forget(self, place: Place) -> None:
        inode = self._inodes.pop(place)
        del self._places[inode][place]
        if not self._places[inode]:
            del self._places[inode]

    def paths(self, inode: int) -> list[str]:
        """The paths of an inode; none for one that is nowhere in the tree."""
        unknown: set[int] = set()
        found = self._paths(inode, (), unknown)
        if not unknown:
            return found
        for directory, name, listed in self._listing():
            self.learn(directory, name, listed)
        unknown.clear()
        found = self._paths(inode, (), unknown)
        self._last |= {nowhere: [] for nowhere in unknown}
        return found

    def path_in(self, directory: int, name: bytes) -> list[str]:
        """The paths of a name in a directory."""
        return [_join(above, name) for above in self.paths(directory)]

    def _paths(self, inode: int, below: tuple[int, ...], unknown: set[int]) -> list[str]:
        """The paths of an inode above `below`; what is not known goes to `unknown`.

        A tree that others change too may seem to lead in a circle.
        """
        if inode == self.root:
            return ["/"]
        if inode in below:
            return []
        if inode not in self._places:
            if inode not in self._last:
                unknown.add(inode)
            return self._last.get(inode, [])
        return [
            _join(above, name)
            for directory, name in self._places[inode]
            for above in self._paths(directory, (*below, inode), unknown)
        ]


def _join(above: str, name: bytes) -> str:
    return f"{above if above == '/' else above + '/'}{os.fsdecode(name)}"
