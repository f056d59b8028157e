"""Trees as plain values, put into layers and read back; archives made entry by entry."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cowfs.layers import Change, ChangeKind, LayerRoot
from cowfs.layers.archive import Applied, apply_archive, write_archive
from cowfs.steps import finish

TIME_NS = 1_600_000_000_123_456_789
NO_ID = 0xFFFFFFFF


@dataclass(frozen=True)
class Node:
    """A file of any kind; `twin` is the first path of an inode that has several."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = TIME_NS
    content: bytes = b""  # of a file; the target of a symbolic link
    rdev: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    twin: bytes = b""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


Tree = dict[bytes, Node]


def file(content: bytes = b"", permissions: int = 0o644, **rest: Any) -> Node:
    return Node(stat.S_IFREG | permissions, content=content, **rest)


def directory(permissions: int = 0o755, **rest: Any) -> Node:
    return Node(stat.S_IFDIR | permissions, **rest)


def symlink(target: bytes, **rest: Any) -> Node:
    return Node(stat.S_IFLNK | 0o777, content=target, **rest)


def fifo(**rest: Any) -> Node:
    return Node(stat.S_IFIFO | 0o600, **rest)


def device(kind: int, major: int, minor: int, **rest: Any) -> Node:
    return Node(kind | 0o660, rdev=os.makedev(major, minor), **rest)


def twin(path: bytes) -> Node:
    """Another name of a path that comes before."""
    return Node(0, twin=path)


def acl_value(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def build(layer: LayerRoot, tree: Tree) -> None:
    """Put a tree into an empty layer, the root's own attributes too."""
    inodes = {b"": layer.inode}
    for path in sorted(tree, key=order):
        node = tree[path]
        parent, _, name = path.rpartition(b"/")
        if not path:
            continue
        if node.twin:
            layer.tree.link(inodes[node.twin], inodes[parent], name)
            inodes[path] = inodes[node.twin]
            continue
        is_link = stat.S_ISLNK(node.mode)
        inodes[path] = layer.tree.restore(
            inodes[parent],
            name,
            node.mode,
            node.uid,
            node.gid,
            rdev=node.rdev,
            target=node.content if is_link else b"",
            content=b"" if is_link else node.content,
            mtime_ns=node.mtime_ns,
        )
    for path, node in tree.items():
        for name, value in node.xattrs.items():
            layer.tree.set_xattr(inodes[path], name, value)
        if node.is_directory:
            mode = stat.S_IMODE(node.mode)
            layer.tree.set_attributes(inodes[path], mode=mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns)


def look(layer: LayerRoot, *, without: str = "$.") -> Tree:
    """The tree in a layer, with its root; without the names at its top that match."""
    found: Tree = {}
    shared: dict[bytes, int] = {}
    pending = [(b"", layer.inode)]
    while pending:
        path, inode = pending.pop()
        found[path] = _node(layer, inode)
        if found[path].is_directory:
            below = [entry for entry in layer.tree.list_directory(inode) if entry.name not in (b".", b"..")]
            if not path:
                below = [entry for entry in below if not re.match(without.encode(), entry.name)]
            prefix = path + b"/" if path else b""
            pending += [(prefix + entry.name, entry.inode) for entry in below]
        elif layer.tree.attributes(inode).nlink > 1:
            shared[path] = inode
    return _with_twins(found, shared)


def look_at_disk(root: Path) -> Tree:
    """A tree on the disk, as `look` sees one in a layer."""
    found: Tree = {}
    shared: dict[bytes, int] = {}
    top = os.fsencode(root)
    pending = [b""]
    while pending:
        path = pending.pop()
        place = os.path.join(top, path)
        status = os.lstat(place)
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(place)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(place)
        found[path] = Node(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            status.st_rdev,
            {name.encode(): os.getxattr(place, name, follow_symlinks=False) for name in _listed_xattrs(place)},
        )
        if found[path].is_directory:
            pending += [os.path.join(path, name) for name in os.listdir(place)]
        elif status.st_nlink > 1:
            shared[path] = status.st_ino
    return _with_twins(found, shared)


def _listed_xattrs(place: bytes) -> list[str]:
    return os.listxattr(place, follow_symlinks=False)


def _with_twins(tree: Tree, shared: dict[bytes, int]) -> Tree:
    first: dict[int, bytes] = {}
    for path in sorted(shared, key=order):
        first.setdefault(shared[path], path)
    twins = {path: first[inode] for path, inode in shared.items() if first[inode] != path}
    return {path: replace(node, twin=twins.get(path, b"")) for path, node in tree.items()}


def _node(layer: LayerRoot, inode: int) -> Node:
    tree = layer.tree
    attributes = tree.attributes(inode)
    content = b""
    if stat.S_ISREG(attributes.mode):
        content = tree.read(inode, 0, attributes.size_bytes)
    elif stat.S_ISLNK(attributes.mode):
        content = tree.read_symlink(inode)
    return Node(
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.mtime_ns,
        content,
        attributes.rdev,
        {name: tree.get_xattr(inode, name) for name in tree.list_xattrs(inode)},
    )


def order(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def paths(layer: LayerRoot) -> set[bytes]:
    return set(look(layer)) - {b""}


def compare(old: Tree, new: Tree) -> list[Change]:
    """What changed, by looking at everything; hard links go by what they lead to."""
    old, new = _resolved(old), _resolved(new)
    changes = {}
    for path in sorted(set(old) | set(new), key=order):
        parent = path.rpartition(b"/")[0]
        if path not in new:
            if new.get(parent, file()).is_directory:
                changes[path] = ChangeKind.DELETE
        elif path not in old or not all(old[above].is_directory for above in _above(path)):
            changes[path] = ChangeKind.ADD
        elif old[path] != new[path]:
            changes[path] = ChangeKind.MODIFY
        if path in changes:
            for above in _above(path):
                changes.setdefault(above, ChangeKind.MODIFY)
    changes.pop(b"", None)
    return [Change(b"/" + path, kind) for path, kind in sorted(changes.items(), key=lambda item: order(item[0]))]


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:length]) for length in range(len(parts))] if path else []


def _resolved(tree: Tree) -> Tree:
    """Twins with what they are, and with whom they are one."""
    groups: dict[bytes, set[bytes]] = {}
    for path, node in tree.items():
        groups.setdefault(node.twin or path, set()).add(path)
    return {
        path: replace(tree[first], twin=b"\0".join(sorted(group))) for first, group in groups.items() for path in group
    }


# Archives.


def entry(
    name: bytes,
    kind: bytes = tarfile.REGTYPE,
    *,
    content: bytes = b"",
    target: bytes = b"",
    records: Mapping[bytes, bytes] | None = None,
    **fields: Any,
) -> bytes:
    """One entry, as the standard library writes a ustar header, after an extended header with `records`."""
    info = tarfile.TarInfo(name.decode("latin-1"))
    info.type, info.linkname, info.size = kind, target.decode("latin-1"), len(content)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    extended = entry(b"pax", tarfile.XHDTYPE, content=pax(records)) if records else b""
    return extended + info.tobuf(tarfile.USTAR_FORMAT, "latin-1") + padded(content)


def pax(records: Mapping[bytes, bytes]) -> bytes:
    lines = []
    for keyword, value in records.items():
        length = next(n for n in range(1, 10**7) if n == len(str(n)) + len(keyword) + len(value) + 3)
        lines.append(b"%d %b=%b\n" % (length, keyword, value))
    return b"".join(lines)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def archive_of(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(1024)


def of_names(*names: str) -> bytes:
    """Empty files and, with a slash at the end, directories."""
    return archive_of(
        *(entry(name.encode(), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE) for name in names)
    )


def apply(layer: LayerRoot, archive: bytes, **options: Any) -> Applied:
    return finish(apply_archive(layer, io.BytesIO(archive), **options))


def write(layer: LayerRoot, changes: list[Change] | None = None, **options: Any) -> bytes:
    return b"".join(write_archive(layer, changes, **options))


def members(archive: bytes) -> list[tarfile.TarInfo]:
    """As the standard library reads them."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as found:
        return found.getmembers()
