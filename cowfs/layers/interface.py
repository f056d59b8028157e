"""THE interface of the layer driver. Read this first.

Vocabulary. A *layer* is a device of the home, named by the caller's id, whose ext4 holds a directory `rootfs` (the
layer's files) and a file `id` (its name). A layer without a parent is a snapshot of the base device, any other one a
snapshot of its parent; after that the two are independent, so layers go in any order. A *diff* is a tar archive of what
a layer changed against its parent, with *whiteouts* (`.wh.NAME`) for what it deleted.

Lifecycle.

    driver.create("l1", None)           O(1), whatever the parent holds
      finish(driver.apply("l1", None, tar))
      path = driver.get("l1")           its files, at a path; counted
      driver.put("l1")                  as many puts as gets
      finish(driver.changes("l1", None))
      b"".join(pieces_of(driver.diff("l1", None)))
    driver.remove("l1")
    driver.cleanup()

Ids are names of devices (`devices.on_disk.names`). Nothing here awaits. What takes long is a generator (`cowfs.steps`):
between two of its steps, each of which leaves the home whole, its caller may do other things.

Source of the semantics: moby's graph driver interface; errors are those of `cowfs.errors`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple, Protocol

from cowfs.filetree import FileTree
from cowfs.steps import Pieces, Steps


class ChangeKind(enum.IntEnum):
    """The numbers are those of Docker's plugin protocol."""

    MODIFY = 0
    ADD = 1
    DELETE = 2

    @property
    def letter(self) -> str:
        """As `docker diff` prints it: C, A or D."""
        return "CAD"[self]

    @classmethod
    def of_letter(cls, letter: str) -> ChangeKind:
        return cls("CAD".index(letter))


class Change(NamedTuple):
    """A path that differs between a layer and its parent: absolute, bytes, never the root itself.

    A deleted directory is one change; a directory below which something changed is a separate MODIFY.
    """

    path: bytes
    kind: ChangeKind


class LayerUsage(NamedTuple):
    """What a layer adds to its parent.

    `size_bytes` lie in blocks that its parent does not map, so they are what removing the layer gives back while it is
    no parent itself; `inodes` are new, or changed.
    """

    size_bytes: int
    inodes: int


class PathChange(NamedTuple):
    """A path that differs between two trees: absolute, bytes, never the root itself.

    `kind` is A (added), M (modified), D (deleted) or R (renamed: the same inode, under a path that the other tree does
    not have). `old_path` is the path in the other tree where that is another one: what was renamed, and what is in a
    directory that was. `is_modified`: what was renamed differs too.

    A deleted directory is one change, and so are a renamed one and one whose name is that of a file now (M); what is in
    an added one is added.
    """

    path: bytes
    kind: Literal["A", "M", "D", "R"]
    old_path: bytes | None = None
    is_modified: bool = False


class LayerRoot(NamedTuple):
    """The root directory of a layer's files: a directory's inode in an open tree; inode 0 is an empty layer.

    A layer that was never used has no `rootfs` yet.
    """

    tree: FileTree
    inode: int


class IdRange(NamedTuple):
    """`length` ids from `inside` (a container's) are those from `outside` (the host's)."""

    inside: int
    outside: int
    length: int


@dataclass(frozen=True, slots=True)
class IdMaps:
    """How a container's user and group ids appear on the host; empty maps change nothing."""

    uids: Sequence[IdRange] = ()
    gids: Sequence[IdRange] = ()

    @property
    def root(self) -> tuple[int, int]:
        """The host's uid and gid for a container's root."""
        return _outside(0, self.uids), _outside(0, self.gids)

    @property
    def root_group(self) -> int | None:
        """The host's gid for a container's root, None when it is root's own."""
        return self.root[1] or None


def _outside(inside: int, ranges: Sequence[IdRange]) -> int:
    for item in ranges:
        if item.inside <= inside < item.inside + item.length:
            return item.outside + inside - item.inside
    return inside


class Driver(Protocol):
    """A graph driver over one home. One thread at a time; not reentrant between two steps for the same id."""

    def create(self, layer_id: str, parent: str | None, storage_options: Mapping[str, str] | None = None) -> None:
        """Make a layer, as a snapshot of `parent` or of the base device.

        Args:
            storage_options: `size` alone is known: the size of this layer, at least its parent's.

        Raises:
            UsageError: an id or an option that cannot be.
            DeviceExists, UnknownDevice, DeviceBusy: the id is taken; the parent is not there or marked for deletion.
            OutOfDataSpace, OutOfMetadataSpace: less than the minimum is free.
        """
        ...

    def remove(self, layer_id: str) -> None:
        """Remove a layer; one that does not exist is not an error. A busy one is marked, and deleted on last use.

        Raises:
            DeviceBusy: it is in use and deferred deletion is off.
        """
        ...

    def exists(self, layer_id: str) -> bool:
        """Also true for one that is marked for deletion."""
        ...

    def list_layers(self) -> list[str]:
        """Ids in order, without the base device and without those marked for deletion."""
        ...

    def get(self, layer_id: str, mount_label: str = "") -> str:
        """Make a layer's files reachable; the path of its root directory. Each call needs a `put`.

        Raises:
            UnknownDevice; UsageError for the base device, which is not a layer.
        """
        ...

    def put(self, layer_id: str) -> None:
        """End one `get`. A layer that is not mounted is not an error."""
        ...

    def metadata(self, layer_id: str) -> dict[str, str]:
        """`DeviceId`, `DeviceSize` in bytes, `DeviceName`. Raises UnknownDevice."""
        ...

    def status(self) -> list[tuple[str, str]]:
        """What `docker info` shows, in its order. Never fails: what cannot be read is zero."""
        ...

    def changes(self, layer_id: str, parent: str | None) -> Steps[list[Change]]:
        """What differs from `parent` (None: from nothing), sorted by path."""
        ...

    def diff(self, layer_id: str, parent: str | None, *, sparse: bool = False) -> Pieces[bytes]:
        """The changes as a tar archive.

        Args:
            sparse: files with holes as sparse entries, which not every reader of layers takes; else with zeros.
        """
        ...

    def apply(self, layer_id: str, parent: str | None, archive: IO[bytes], *, as_docker: bool = False) -> Steps[int]:
        """Unpack a diff, uncompressed; the sum of the sizes in it, which `diff_size` agrees with.

        Args:
            as_docker: take an archive without its end, which may be cut off; and give files whose names start with
                `.wh.` the names that Docker reads, by which it finds them again.

        Raises:
            UnknownDevice; UsageError for the base device, which is not a layer.
            ArchiveError, FilesystemError, PoolError: as `cowfs.layers.archive.apply_archive`.
        """
        ...

    def diff_size(self, layer_id: str, parent: str | None) -> Steps[int]:
        """Bytes of the files added or modified, hard-linked ones once."""
        ...

    def cleanup(self) -> None:
        """Unmount what is still mounted, save what must be saved. Raises the first error, after doing all of it."""
        ...
