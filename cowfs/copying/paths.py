"""A path in a file tree, resolved within a root as in a chroot: no `..` and no symbolic link leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from cowfs.filetree import Attributes, FileTree

_SYMLINKS_MAX: Final = 40  # in one path, as in the kernel


class Place(NamedTuple):
    """What a path leads to: a name in a directory, and what has it (None: nothing yet).

    `name` is empty where the path ends in the root, in `.` or in `..`: the directory `parent` itself.
    """

    parent: int
    name: bytes
    found: Attributes | None


def resolve(tree: FileTree, root: int, path: bytes, *, follow: bool) -> Place:
    """Where a path leads, from the root whether it begins with a slash or not.

    Args:
        follow: a symbolic link that the path ends in, which a slash at the end always does.

    Raises:
        OSError: ENOENT, ENOTDIR or ELOOP before the end of the path, or what the tree raises.
    """
    pending = path.split(b"/")[::-1]
    above, name = root, b""
    found: Attributes | None = tree.attributes(root)
    links = 0
    while pending:
        part = pending.pop()
        if found is None and part:
            raise _error(errno.ENOENT)
        if found is not None and not stat.S_ISDIR(found.mode):
            raise _error(errno.ENOTDIR)
        if found is None or part in (b"", b"."):
            continue
        above, name = found.inode, part
        if part == b"..":
            found, name = tree.lookup(above, b"..") if above != root else found, b""
            above = found.inode
            continue
        try:
            found = tree.lookup(above, part)
        except FileNotFoundError:
            found = None
            continue
        if stat.S_ISLNK(found.mode) and (follow or pending):
            links += 1
            if links > _SYMLINKS_MAX:
                raise _error(errno.ELOOP)
            target = tree.read_symlink(found.inode)
            pending += target.split(b"/")[::-1]
            above, name = root if target.startswith(b"/") else above, b""
            found = tree.attributes(above)
    return Place(found.inode if found is not None and not name else above, name, found)


def find_destination(tree: FileTree, root: int, path: bytes) -> Place:
    """As `resolve`: a symbolic link to a directory is followed, and any other one is what the path leads to."""
    place = resolve(tree, root, path, follow=False)
    if place.found is not None and stat.S_ISLNK(place.found.mode):
        try:
            behind = resolve(tree, root, path, follow=True)
        except OSError:
            return place
        if behind.found is not None and stat.S_ISDIR(behind.found.mode):
            return behind
    return place


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
