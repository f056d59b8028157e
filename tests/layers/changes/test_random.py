"""Random histories on both sides of a branch: the two ways to compare say what the oracle says, at every point."""

from __future__ import annotations

import errno
import stat
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cowfs.filetree import RENAME_EXCHANGE
from cowfs.layers.changes import names as names_module
from tests.layers.changes.conftest import FEATURES, Lab, Layer, make_pool, remove_tree

NAMES = [b"a", b"a.b", b"b", b"c" * 250, b"d\xff"]
names = st.sampled_from(NAMES)
indices = st.integers(0, 30)
sides = st.sampled_from([0, 0, 0, 1])  # the layer mostly; its parent changes too
lengths = st.sampled_from([0, 1, 100, 4096, 5000, 70_000, 300_000])
EXPECTED_ERRORS = {
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EINVAL,
    errno.EPERM,
    errno.ENODATA,
    errno.ENOSPC,
}


class Histories(RuleBasedStateMachine):
    """Directories and names are chosen by index from what there is, so that most operations hit something."""

    @initialize(features=st.sampled_from(sorted(FEATURES)), chunk=st.sampled_from([4, 256]))
    def start(self, features: str, chunk: int) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="cowfs-changes-")
        self.chunk = mock.patch.object(names_module, "_CHUNK_INODES", chunk)
        self.chunk.start()
        self.lab = Lab(make_pool(Path(self.directory.name)))
        self.parent = self.lab.base(FEATURES[features])
        for path in (b"/a", b"/a/a", b"/b", b"/b/a", b"/b/b"):
            self.parent.mkdir(path)
        for index, path in enumerate((b"/a.b", b"/a/b", b"/a/a/a", b"/b/a/a", b"/b/a/a.b", b"/b/b/b")):
            self.parent.write(path, b"%d" % index * 1000 * index)
        self.layer = self.parent.branch()

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        self.chunk.stop()
        try:
            if hasattr(self, "layer"):
                self.compare()
                self.layer.close()
                self.parent.close()
        finally:
            self.lab.pool.close()
            self.directory.cleanup()

    # What operations work on.

    def side(self, side: int) -> Layer:
        return (self.layer, self.parent)[side]

    def a_directory(self, layer: Layer, index: int) -> int:
        volume, found = layer.volume, [layer.root]
        for directory in found:
            found += [
                entry.inode
                for entry in volume.list_directory(directory)
                if stat.S_ISDIR(entry.mode) and entry.name not in (b".", b"..")
            ]
            if len(found) > index:
                break
        return found[index % len(found)]

    def an_entry(self, layer: Layer, where: int, index: int) -> tuple[int, bytes, int] | None:
        """(directory, name, inode)"""
        directory = self.a_directory(layer, where)
        entries = [entry for entry in layer.volume.list_directory(directory) if entry.name not in (b".", b"..")]
        if not entries:
            return None
        entry = entries[index % len(entries)]
        return directory, entry.name, entry.inode

    # Operations; one that cannot be is skipped.

    @rule(side=sides, where=indices, name=names, kind=st.sampled_from(["file", "directory", "link", "fifo", "device"]))
    def make(self, side: int, where: int, name: bytes, kind: str) -> None:
        volume, parent = self.side(side).volume, self.a_directory(self.side(side), where)
        with allowed():
            if kind == "file":
                volume.make_node(parent, name, stat.S_IFREG | 0o644, 1, 2)
            elif kind == "directory":
                volume.make_directory(parent, name, 0o755, 1, 2)
            elif kind == "link":
                volume.make_symlink(parent, name, name * 3, 1, 2)
            elif kind == "fifo":
                volume.make_node(parent, name, stat.S_IFIFO | 0o600, 1, 2)
            else:
                volume.make_node(parent, name, stat.S_IFCHR | 0o600, 1, 2, 0x105)

    @rule(
        side=sides, where=indices, index=indices, length=lengths, at=st.sampled_from([0, 10, 5000]), back=st.booleans()
    )
    def write(self, side: int, where: int, index: int, length: int, at: int, back: bool) -> None:
        layer = self.side(side)
        if entry := self.an_entry(layer, where, index):
            with allowed():
                before = layer.volume.attributes(entry[2])
                byte = bytes([1 + before.mtime_ns // 1000 % 250])
                layer.volume.write(entry[2], at, byte * length)
                if back:
                    layer.volume.set_attributes(entry[2], mtime_ns=before.mtime_ns)

    @rule(side=sides, where=indices, index=indices, size=lengths)
    def resize(self, side: int, where: int, index: int, size: int) -> None:
        if entry := self.an_entry(self.side(side), where, index):
            with allowed():
                self.side(side).volume.set_attributes(entry[2], size_bytes=size)

    @rule(side=sides, where=indices, index=indices, mode=st.sampled_from([None, 0o600, 0o4755]), uid=indices)
    def set_owner_or_mode(self, side: int, where: int, index: int, mode: int | None, uid: int) -> None:
        if entry := self.an_entry(self.side(side), where, index):
            self.side(side).volume.set_attributes(entry[2], mode=mode, uid=uid if mode is None else None)

    @rule(side=sides, where=indices, index=indices, access=st.booleans())
    def set_times(self, side: int, where: int, index: int, access: bool) -> None:
        if entry := self.an_entry(self.side(side), where, index):
            volume, now = self.side(side).volume, self.lab.clock()
            ctime = volume.attributes(entry[2]).ctime_ns
            if access:
                volume.set_attributes(entry[2], atime_ns=now, ctime_ns=ctime)  # as reading does
            else:
                volume.set_attributes(entry[2], mtime_ns=now)

    @rule(side=sides, where=indices, index=indices, to=indices, name=names, exchange=st.booleans())
    def rename(self, side: int, where: int, index: int, to: int, name: bytes, exchange: bool) -> None:
        layer = self.side(side)
        if entry := self.an_entry(layer, where, index):
            with allowed():
                flags = RENAME_EXCHANGE if exchange else 0
                layer.volume.rename(entry[0], entry[1], self.a_directory(layer, to), name, flags)

    @rule(side=sides, where=indices, index=indices, to=indices, name=names)
    def link(self, side: int, where: int, index: int, to: int, name: bytes) -> None:
        layer = self.side(side)
        if entry := self.an_entry(layer, where, index):
            with allowed():
                layer.volume.link(entry[2], self.a_directory(layer, to), name)

    @rule(side=sides, where=indices, index=indices)
    def remove(self, side: int, where: int, index: int) -> None:
        layer = self.side(side)
        if entry := self.an_entry(layer, where, index):
            remove_tree(layer.volume, entry[0], entry[1])

    @rule(side=sides, where=indices, index=indices, same_content=st.booleans(), back=st.booleans())
    def replace(self, side: int, where: int, index: int, same_content: bool, back: bool) -> None:
        """Delete a file and make it anew: mostly the same inode number."""
        volume = self.side(side).volume
        entry = self.an_entry(self.side(side), where, index)
        if not entry or not stat.S_ISREG(volume.attributes(entry[2]).mode):
            return
        before, content = volume.attributes(entry[2]), volume.read(entry[2], 0, 1 << 20)
        volume.unlink(entry[0], entry[1])
        inode = volume.make_node(entry[0], entry[1], before.mode, before.uid, before.gid).inode
        volume.write(inode, 0, content if same_content else bytes(len(content)))
        if back:
            volume.set_attributes(inode, mtime_ns=before.mtime_ns)

    @rule(
        side=sides, where=indices, index=indices, length=st.sampled_from([0, 10, 2000, 20_000]), security=st.booleans()
    )
    def set_xattr(self, side: int, where: int, index: int, length: int, security: bool) -> None:
        if entry := self.an_entry(self.side(side), where, index):
            volume = self.side(side).volume
            name, value = b"security.capability" if security else b"user.x", b"%d" % (self.lab.clock() % 9) * length
            with allowed():
                volume.set_xattr(entry[2], name, value)

    @rule(side=sides, where=indices, index=indices)
    def remove_xattr(self, side: int, where: int, index: int) -> None:
        if entry := self.an_entry(self.side(side), where, index):
            with allowed():
                self.side(side).volume.remove_xattr(entry[2], b"user.x")

    @rule(side=sides, where=indices, count=st.sampled_from([15, 60]))
    def fill_directory(self, side: int, where: int, count: int) -> None:
        """With long names, until it has an index, and several blocks."""
        volume, parent = self.side(side).volume, self.a_directory(self.side(side), where)
        for number in range(count):
            with allowed():
                volume.make_node(parent, b"%03d" % number + b"n" * 240, stat.S_IFREG | 0o600, 0, 0)

    @rule(side=sides, where=indices, step=st.sampled_from([1, 2, 7]))
    def thin_out_directory(self, side: int, where: int, step: int) -> None:
        volume, parent = self.side(side).volume, self.a_directory(self.side(side), where)
        filling = [entry for entry in volume.list_directory(parent) if len(entry.name) == 243]
        for entry in filling[::step]:
            remove_tree(volume, parent, entry.name)

    @rule(where=indices, name=names)
    def make_directories(self, where: int, name: bytes) -> None:
        """A chain of them, and files beside."""
        parent = self.a_directory(self.layer, where)
        with allowed():
            for number in range(12):
                self.layer.volume.make_node(parent, b"f%d" % number, stat.S_IFREG | 0o600, 0, 0)
                parent = self.layer.volume.make_directory(parent, name, 0o755, 0, 0).inode

    # Looking.

    @rule()
    def compare(self) -> None:
        self.lab.compare(self.layer, self.parent)

    @rule()
    def branch(self) -> None:
        """What was the layer becomes the parent of a new one."""
        self.compare()
        before, self.parent = self.parent, self.layer
        self.layer = self.parent.branch()
        before.close()


class allowed:
    """Let pass what a file system refuses."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, OSError) and error.errno in EXPECTED_ERRORS


TestHistories = Histories.TestCase
TestHistories.settings = hypothesis.settings(
    hypothesis.settings(),
    max_examples=max(hypothesis.settings().max_examples // 5, 20),
    stateful_step_count=max(hypothesis.settings().stateful_step_count, 30),
    suppress_health_check=list(hypothesis.HealthCheck),
)
