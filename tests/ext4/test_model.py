"""Random operations against a plain dict model, judged by e2fsck at the end of every run."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cowfs.filetree import RENAME_EXCHANGE, RENAME_NOREPLACE, ROOT_INODE
from tests.ext4.conftest import FEATURE_SETS, MIB, Image

NAMES = [b"a", b"b", b"c" * 255, b"d\xff"]
names = st.sampled_from(NAMES)
offsets = st.one_of(st.integers(0, 20_000), st.sampled_from([0, 1023, 4095, 4096, 4097, 65_536, 3 * MIB, 2**32 + 1]))
lengths = st.sampled_from([1, 2, 100, 1024, 4095, 4096, 4097, 20_000])
sizes = st.one_of(st.integers(0, 30_000), st.sampled_from([0, 4096, 8192, 2**33]))


@dataclass
class Node:
    """What an inode must be. `content` has only what is not zero, by offset, for files that may be huge."""

    inode: int
    mode: int
    links: int = 1
    size: int = 0
    content: dict[int, int] = field(default_factory=dict)
    entries: dict[bytes, Node] = field(default_factory=dict)
    parent: Node | None = None
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    pins: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def nlink(self) -> int:
        if self.is_directory:
            return 2 + sum(entry.is_directory for entry in self.entries.values()) if self.links else 0
        return self.links

    def write(self, offset: int, data: bytes) -> None:
        for index, byte in enumerate(data, offset):
            self.content[index] = byte
        self.size = max(self.size, offset + len(data))

    def resize(self, size: int) -> None:
        self.content = {offset: byte for offset, byte in self.content.items() if offset < size}
        self.size = size

    def expected(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        return bytes(self.content.get(index, 0) for index in range(offset, offset + length))


def errno_of(function: Callable[..., object], *arguments: object) -> int:
    """The errno that a call fails with, or 0."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


class Tree(RuleBasedStateMachine):
    """Paths are chosen as (directory, name): directories are numbered as they are made, gone ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cowfs-model-"))
        self.counter = 0

    @initialize(features=st.sampled_from(["default", "1k-blocks", "no-extents-1k", "small-inodes", "no-checksums"]))
    def start(self, features: str) -> None:
        self.image = Image(self.directory / "volume.img", 24 * MIB, FEATURE_SETS[features])
        self.volume = self.image.open()
        self.root = Node(ROOT_INODE, stat.S_IFDIR | 0o755)
        found = self.volume.lookup(ROOT_INODE, b"lost+found")
        self.root.entries[b"lost+found"] = Node(found.inode, found.mode, parent=self.root)
        self.directories = [self.root]
        self.orphans: list[Node] = []
        for which, name, kind in (
            (0, b"a", stat.S_IFDIR),
            (0, b"b", stat.S_IFREG),
            (1, b"a", stat.S_IFDIR),
            (1, b"b", stat.S_IFDIR),
            (2, b"b", stat.S_IFREG),
        ):
            self.make(which, name, kind)
        self.write(0, b"b", 0, 20_000, 7)
        self.write(2, b"b", 5000, 100, 9)

    def teardown(self) -> None:
        try:
            if hasattr(self, "image"):
                self.check_everything()
                self.image.reopen()
                self.volume = self.image.volume
                for orphan in self.orphans:
                    orphan.pins = 0
                self.orphans.clear()
                self.check_everything()
                self.image.close()
                self.image.require_clean()
        finally:
            shutil.rmtree(self.directory)

    def pick(self, which: int) -> Node:
        return self.directories[which % len(self.directories)]

    def expect(self, number: int, function: Callable[..., object], *arguments: object) -> None:
        """The call must fail with an errno; 0: it must succeed."""
        got = errno_of(function, *arguments)
        assert got == number, f"{os.strerror(got)} where {os.strerror(number)} was expected"

    def drop(self, node: Node) -> None:
        node.links = 0 if node.is_directory else node.links - 1
        if node.links == 0:
            if node.is_directory and node in self.directories:
                self.directories.remove(node)
            if node.pins:
                self.orphans.append(node)

    @rule(which=st.integers(0, 9), name=names, kind=st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFDIR]))
    def make(self, which: int, name: bytes, kind: int) -> None:
        parent = self.pick(which)
        exists = name in parent.entries
        if kind == stat.S_IFDIR:
            self.expect(errno.EEXIST * exists, self.volume.make_directory, parent.inode, name, 0o755, 1, 2)
        else:
            self.expect(errno.EEXIST * exists, self.volume.make_node, parent.inode, name, kind | 0o640, 1, 2)
        if not exists:
            made = self.volume.lookup(parent.inode, name)
            node = Node(made.inode, made.mode, parent=parent)
            assert stat.S_IFMT(made.mode) == kind
            parent.entries[name] = node
            if kind == stat.S_IFDIR:
                self.directories.append(node)

    @rule(which=st.integers(0, 9), name=names, length=st.sampled_from([1, 59, 60, 500]))
    def make_symlink(self, which: int, name: bytes, length: int) -> None:
        parent = self.pick(which)
        if name in parent.entries:
            return
        made = self.volume.make_symlink(parent.inode, name, b"t" * length, 1, 2)
        parent.entries[name] = Node(made.inode, made.mode, size=length, target=b"t" * length)

    @rule(which=st.integers(0, 9), count=st.integers(1, 120))
    def make_many(self, which: int, count: int) -> None:
        """Enough names for the directory to be indexed and split."""
        parent = self.pick(which)
        for _ in range(count):
            self.counter += 1
            name = b"%d-" % self.counter + b"n" * (self.counter * 7 % 120)
            made = self.volume.make_node(parent.inode, name, stat.S_IFREG | 0o600, 0, 0)
            parent.entries[name] = Node(made.inode, made.mode)

    @rule(which=st.integers(0, 9), step=st.integers(1, 3))
    def remove_many(self, which: int, step: int) -> None:
        parent = self.pick(which)
        for name in [name for name in parent.entries if b"-" in name][::step]:
            self.volume.unlink(parent.inode, name)
            self.drop(parent.entries.pop(name))

    @rule(which=st.integers(0, 9), name=names)
    def unlink(self, which: int, name: bytes) -> None:
        parent = self.pick(which)
        node = parent.entries.get(name)
        number = errno.ENOENT if node is None else errno.EISDIR if node.is_directory else 0
        self.expect(number, self.volume.unlink, parent.inode, name)
        if not number:
            self.drop(parent.entries.pop(name))

    @rule(which=st.integers(0, 9), name=names)
    def remove_directory(self, which: int, name: bytes) -> None:
        parent = self.pick(which)
        node = parent.entries.get(name)
        number = 0
        if node is None:
            number = errno.ENOENT
        elif not node.is_directory:
            number = errno.ENOTDIR
        elif node.entries:
            number = errno.ENOTEMPTY
        self.expect(number, self.volume.remove_directory, parent.inode, name)
        if not number:
            self.drop(parent.entries.pop(name))

    @rule(which=st.integers(0, 9), name=names, to=st.integers(0, 9), new=names)
    def link(self, which: int, name: bytes, to: int, new: bytes) -> None:
        node, target = self.pick(which).entries.get(name), self.pick(to)
        if node is None:
            return
        number = errno.EEXIST if new in target.entries else errno.EPERM if node.is_directory else 0
        self.expect(number, self.volume.link, node.inode, target.inode, new)
        if not number:
            target.entries[new] = node
            node.links += 1

    @rule(
        which=st.integers(0, 9),
        name=names,
        to=st.integers(0, 9),
        new=names,
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, which: int, name: bytes, to: int, new: bytes, flags: int) -> None:
        source, target = self.pick(which), self.pick(to)
        number = self.rename_error(source, name, target, new, flags)
        self.expect(number, self.volume.rename, source.inode, name, target.inode, new, flags)
        if number or source.entries[name] is target.entries.get(new):
            return
        moved = source.entries.pop(name)
        replaced = target.entries.pop(new, None)
        target.entries[new] = moved
        if moved.is_directory:
            moved.parent = target
        if flags == RENAME_EXCHANGE:
            assert replaced is not None
            source.entries[name] = replaced
            if replaced.is_directory:
                replaced.parent = source
        elif replaced is not None:
            self.drop(replaced)

    def rename_error(self, source: Node, name: bytes, target: Node, new: bytes, flags: int) -> int:
        moved, replaced = source.entries.get(name), target.entries.get(new)
        if moved is None:
            return errno.ENOENT
        if flags == RENAME_NOREPLACE and replaced is not None:
            return errno.EEXIST
        if flags == RENAME_EXCHANGE and replaced is None:
            return errno.ENOENT
        if moved.is_directory and source is not target and self.is_below(target, moved):
            return errno.EINVAL
        if replaced is None or replaced is moved:
            return 0
        if flags == RENAME_EXCHANGE:
            below = replaced.is_directory and source is not target and self.is_below(source, replaced)
            return errno.EINVAL if below else 0
        if moved.is_directory and not replaced.is_directory:
            return errno.ENOTDIR
        if replaced.is_directory and not moved.is_directory:
            return errno.EISDIR
        return errno.ENOTEMPTY if replaced.is_directory and replaced.entries else 0

    def is_below(self, node: Node | None, top: Node) -> bool:
        while node is not None:
            if node is top:
                return True
            node = node.parent
        return False

    def file(self, which: int, name: bytes) -> Node | None:
        node = self.pick(which).entries.get(name)
        return node if node is not None and stat.S_ISREG(node.mode) else None

    @rule(which=st.integers(0, 9), name=names, offset=offsets, length=lengths, seed=st.integers(1, 255))
    def write(self, which: int, name: bytes, offset: int, length: int, seed: int) -> None:
        node = self.file(which, name)
        if node is None:
            return
        data = bytes((seed + index) % 255 + 1 for index in range(length))
        got = errno_of(self.volume.write, node.inode, offset, data)
        if got:
            assert got == errno.ENOSPC
            assert self.volume.statistics().blocks_free < 100
        else:
            node.write(offset, data)

    @rule(which=st.integers(0, 9), name=names, size=sizes)
    def resize(self, which: int, name: bytes, size: int) -> None:
        node = self.file(which, name)
        if node is not None:
            assert self.volume.set_attributes(node.inode, size_bytes=size).size_bytes == size
            node.resize(size)

    @rule(which=st.integers(0, 9), name=names, cut=st.integers(1, 9000), more=st.integers(1, 9000))
    def cut_and_grow(self, which: int, name: bytes, cut: int, more: int) -> None:
        node = self.file(which, name)
        if node is not None:
            size = max(node.size - cut, 0)
            self.resize(which, name, size)
            self.resize(which, name, size + more)
            assert self.volume.read(node.inode, size, more) == bytes(more)

    @rule(which=st.integers(0, 9), name=names, key=st.sampled_from([b"user.a", b"trusted.b"]), length=lengths)
    def set_xattr(self, which: int, name: bytes, key: bytes, length: int) -> None:
        node = self.pick(which).entries.get(name)
        if node is None:
            return
        got = errno_of(self.volume.set_xattr, node.inode, key, b"v" * length)
        if got:
            assert got == errno.ENOSPC
            assert length > 500
        else:
            node.xattrs[key] = b"v" * length

    @rule(which=st.integers(0, 9), name=names)
    def remove_xattr(self, which: int, name: bytes) -> None:
        node = self.pick(which).entries.get(name)
        if node is not None:
            self.expect(errno.ENODATA * (b"user.a" not in node.xattrs), self.volume.remove_xattr, node.inode, b"user.a")
            node.xattrs.pop(b"user.a", None)

    @rule(which=st.integers(0, 9), name=names)
    def unlink_open(self, which: int, name: bytes) -> None:
        node = self.file(which, name)
        if node is not None:
            self.open(which, name)
            self.unlink(which, name)

    @rule(which=st.integers(0, 9), name=names)
    def open(self, which: int, name: bytes) -> None:
        node = self.pick(which).entries.get(name)
        if node is not None:
            self.volume.open_inode(node.inode)
            node.pins += 1

    @precondition(lambda self: bool(getattr(self, "orphans", None)))
    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        node = self.orphans[which % len(self.orphans)]
        if stat.S_ISREG(node.mode):
            assert self.volume.read(node.inode, 0, 50_000) == node.expected(0, 50_000)
        self.volume.release_inode(node.inode)
        node.pins -= 1
        if node.pins == 0:
            self.orphans.remove(node)

    @rule()
    def sync(self) -> None:
        self.volume.sync()

    @rule()
    def crash(self) -> None:
        """The process is gone just after a sync: the journal has everything, and no process holds orphans."""
        self.volume.sync()
        self.volume._fs.free()
        self.image.volume_or_none = None
        self.image.close()
        self.volume = self.image.open()
        for node in self.nodes():
            node.pins = 0
        self.orphans.clear()
        self.check_everything()

    def nodes(self) -> Iterator[Node]:
        """Everything with a name; what has several comes several times."""
        todo = [self.root]
        while todo:
            node = todo.pop()
            yield node
            todo += node.entries.values()

    @rule()
    def quiesce_and_check(self) -> None:
        if not self.orphans:
            self.volume.quiesce()
            self.image.require_clean()

    @invariant()
    def root_is_there(self) -> None:
        if hasattr(self, "root"):
            assert self.volume.attributes(ROOT_INODE).nlink == self.root.nlink

    def check_everything(self) -> None:
        todo, seen = [self.root], set[int]()
        while todo:
            node = todo.pop()
            assert self.volume.attributes(node.inode).nlink == node.nlink
            if node.inode in seen:
                continue
            seen.add(node.inode)
            self.check_node(node)
            todo += node.entries.values()
        for orphan in self.orphans:
            assert self.volume.attributes(orphan.inode).nlink == 0

    def check_node(self, node: Node) -> None:
        attributes = self.volume.attributes(node.inode)
        assert attributes.mode == node.mode
        found = {name: self.volume.get_xattr(node.inode, name) for name in self.volume.list_xattrs(node.inode)}
        assert found == node.xattrs
        if node.is_directory:
            listed = [(entry.name, entry.inode) for entry in self.volume.list_directory(node.inode)]
            parent = node.parent or node
            expected = {b".": node.inode, b"..": parent.inode} | {
                name: entry.inode for name, entry in node.entries.items()
            }
            assert len(listed) == len(expected)
            assert dict(listed) == expected
        elif stat.S_ISLNK(node.mode):
            assert self.volume.read_symlink(node.inode) == node.target
        elif stat.S_ISREG(node.mode):
            assert attributes.size_bytes == node.size
            assert self.volume.read(node.inode, 0, 100_000) == node.expected(0, 100_000)
            for offset in (3 * MIB - 10, 2**32 - 10, node.size - 100):
                if offset > 0:
                    assert self.volume.read(node.inode, offset, 30_000) == node.expected(offset, 30_000)


TestTree = Tree.TestCase
TestTree.settings = hypothesis.settings(
    max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
