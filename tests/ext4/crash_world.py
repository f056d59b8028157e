"""A volume under random operations, a plain model of it, and what every crash in between must leave.

The volume is small and takes the first free block, so that what becomes free is soon used again. Before it begins, its
free blocks hold what must never show in a file.
"""

from __future__ import annotations

import random
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from cowfs.blockdev import FileDevice, MemoryDevice
from cowfs.ext4.tools import commands as tools
from cowfs.ext4.volume import Volume
from cowfs.faults.disk import FaultyDevice
from cowfs.filetree import ROOT_INODE
from cowfs.recording.journal import Journal, RecordingDevice
from cowfs.testing.blockdev import memory_device
from cowfs.units import SECTOR_BYTES

DISK = "disk"
SUPERBLOCK_SECTORS = range(2, 4)
JUNK = b"\xee"
NAME_BYTES = 40


@dataclass(frozen=True)
class File:
    """What an inode of the model is. `version` grows with each change of its content."""

    number: int
    kind: int
    content: bytes = b""  # of a file, or where a symbolic link leads
    xattr: bytes = b""


State = dict[bytes, File]  # by path
"""A tree: every name with what is there; two names of one number are links."""


@dataclass(frozen=True)
class Step:
    """An operation: what it was, how long the journal of the disk was at its end, and the tree then."""

    what: str
    end: int
    state: State
    is_sync: bool


class CrashWorld:
    """A recorded run.

    Args:
        image: a file with an ext4, which is not changed.
        has_faults: some syncs fail, at any write or flush, and are repeated later.
        has_little_memory: the volume caches as little as it may.
    """

    def __init__(self, image: Path, seed: str, *, has_faults: bool = False, has_little_memory: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.journal = Journal()
        disk = memory_device(image.read_bytes())
        with closing(Volume.open(disk, now_ns=_clock())) as volume:
            for run in volume._allocator.free_runs():
                size = volume._fs.block_bytes
                disk.pwrite(run.physical * size, JUNK * (run.length * size))
        self.disk = FaultyDevice(disk)
        self.has_faults = has_faults
        self.failed = 0
        self._recorded = RecordingDevice(self.disk, self.journal, DISK)
        self._clock = _clock()
        self._has_little_memory = has_little_memory
        self.volume = self._opened()
        self.state: State = {b"lost+found": File(0, stat.S_IFDIR)}
        self.steps = [Step("open", len(self.journal.entries), dict(self.state), is_sync=True)]
        self._block_bytes = self.volume.statistics().block_bytes
        self._numbers = 0
        self._open: list[int] = []  # inodes

    def _opened(self) -> Volume:
        volume = Volume.open(self._recorded, now_ns=self._clock)
        if self._has_little_memory:
            volume.limit_memory(0)
        return volume

    # Operations.

    def run(self, count: int) -> None:
        operations: dict[Callable[[], str | None], int] = {
            self.create: 8,
            self.make_directory: 3,
            self.make_many: 1,
            self.symlink: 2,
            self.append: 6,
            self.overwrite: 3,
            self.truncate: 2,
            self.set_xattr: 2,
            self.link: 2,
            self.rename: 6,
            self.unlink: 7,
            self.remove_directory: 2,
            self.remove_many: 1,
            self.release: 1,
            self.sync: 6,
            self.quiesce: 1,
            self.reopen: 1 - self.has_faults,
            self.fail: 6 * self.has_faults,
        }
        while len(self.steps) <= count:
            operation = self.rng.choices(list(operations), list(operations.values()))[0]
            self.volume._allocator._cursor = 0
            what = operation()
            if what is not None:
                is_sync = what in ("sync", "quiesce", "reopen")
                self.steps.append(Step(what, len(self.journal.entries), dict(self.state), is_sync))
        self.volume.close()
        self.steps.append(Step("close", len(self.journal.entries), dict(self.state), is_sync=True))

    def _inode(self, path: bytes) -> int:
        inode = ROOT_INODE
        for name in path.split(b"/") if path else ():
            inode = self.volume.lookup(inode, name).inode
        return inode

    def _pick(self, kind: int) -> bytes | None:
        found = sorted(path for path, file in self.state.items() if file.kind == kind and path != b"lost+found")
        return self.rng.choice(found) if found else None

    def _new_path(self) -> bytes:
        parent = self.rng.choice([b"", b"", self._pick(stat.S_IFDIR) or b""])
        name = b"%d" % self.rng.randrange(30)
        return _join(parent, name.ljust(self.rng.choice([1, NAME_BYTES]), b"-"))

    def _children(self, path: bytes) -> list[bytes]:
        return [other for other in self.state if other.startswith(path + b"/")]

    def _bytes(self, length: int) -> bytes:
        """Every sector says which step it is from."""
        stamp = b"<%07d>" % len(self.steps)
        return (stamp * (length // len(stamp) + 1))[:length]

    def _place(self, path: bytes, file: File) -> None:
        """A file, under all its names."""
        for other, there in self.state.items():
            if there.number == file.number:
                self.state[other] = file
        self.state[path] = file

    def _make(self, kind: int, path: bytes, content: bytes = b"") -> str | None:
        if path in self.state:
            return None
        parent, name = _split(path)
        inode = self._inode(parent)
        if kind == stat.S_IFDIR:
            self.volume.make_directory(inode, name, 0o755, 0, 0)
        elif kind == stat.S_IFLNK:
            self.volume.make_symlink(inode, name, content, 0, 0)
        else:
            made = self.volume.make_node(inode, name, stat.S_IFREG | 0o644, 0, 0)
            if content:
                self.volume.write(made.inode, 0, content)
        self._numbers += 1
        self.state[path] = File(self._numbers, kind, content)
        return f"make {kind:o} {path!r}, {len(content)} bytes"

    def create(self) -> str | None:
        path = self._new_path()
        if path in self.state:
            return None
        self._make(stat.S_IFREG, path)
        self.steps.append(Step(f"create {path!r}", len(self.journal.entries), dict(self.state), is_sync=False))
        content = self._bytes(self.rng.choice([0, 10, 3000, 20_000]))
        self.volume.write(self._inode(path), 0, content)
        self._place(path, replace(self.state[path], content=content))
        return f"write {len(content)} bytes into {path!r}"

    def make_directory(self) -> str | None:
        return self._make(stat.S_IFDIR, self._new_path())

    def symlink(self) -> str | None:
        return self._make(stat.S_IFLNK, self._new_path(), self._bytes(self.rng.choice([8, 200])))

    def make_many(self) -> str | None:
        """Names enough for an index."""
        directory = self._pick(stat.S_IFDIR)
        if directory is None:
            return None
        inode = self._inode(directory)
        for index in range(40):
            name = (b"many-%d" % index).ljust(NAME_BYTES, b"-")
            path = _join(directory, name)
            if path in self.state:
                continue
            self.volume.make_node(inode, name, stat.S_IFREG | 0o644, 0, 0)
            self._numbers += 1
            self.state[path] = File(self._numbers, stat.S_IFREG)
            self.steps.append(Step(f"create {path!r}", len(self.journal.entries), dict(self.state), is_sync=False))
        return f"make many in {directory!r}"

    def remove_many(self) -> str | None:
        directory = self._pick(stat.S_IFDIR)
        if directory is None:
            return None
        inode = self._inode(directory)
        for path in self._children(directory):
            parent, name = _split(path)
            if parent == directory and name.startswith(b"many-"):
                self.volume.unlink(inode, name)
                del self.state[path]
                self.steps.append(Step(f"unlink {path!r}", len(self.journal.entries), dict(self.state), is_sync=False))
        return f"remove many from {directory!r}"

    def append(self) -> str | None:
        path = self._pick(stat.S_IFREG)
        if path is None:
            return None
        file = self.state[path]
        data = self._bytes(self.rng.choice([100, 1024, 10_000]))
        if len(file.content) + len(data) > 100_000:
            return None
        self.volume.write(self._inode(path), len(file.content), data)
        self._place(path, replace(file, content=file.content + data))
        return f"append {len(data)} to {path!r}"

    def overwrite(self) -> str | None:
        path = self._pick(stat.S_IFREG)
        if path is None or len(self.state[path].content) < SECTOR_BYTES:
            return None
        file = self.state[path]
        sectors = len(file.content) // SECTOR_BYTES
        begin = self.rng.randrange(sectors) * SECTOR_BYTES
        data = self._bytes(min(self.rng.randrange(1, 4), sectors - begin // SECTOR_BYTES) * SECTOR_BYTES)
        self.volume.write(self._inode(path), begin, data)
        content = file.content[:begin] + data + file.content[begin + len(data) :]
        self._place(path, replace(file, content=content))
        return f"overwrite {len(data)} at {begin} of {path!r}"

    def truncate(self) -> str | None:
        path = self._pick(stat.S_IFREG)
        if path is None:
            return None
        file = self.state[path]
        size = self.rng.randrange(len(file.content) + 1)
        self.volume.set_attributes(self._inode(path), size_bytes=size)
        self._place(path, replace(file, content=file.content[:size]))
        return f"truncate {path!r} to {size}"

    def set_xattr(self) -> str | None:
        path = self._pick(stat.S_IFREG)
        if path is None:
            return None
        value = self._bytes(self.rng.choice([8, 400]))  # in the inode, in a block
        if self.state[path].xattr and self.rng.random() < 0.5:
            value = b""
            self.volume.remove_xattr(self._inode(path), b"user.x")
        else:
            self.volume.set_xattr(self._inode(path), b"user.x", value)
        self._place(path, replace(self.state[path], xattr=value))
        return f"xattr of {len(value)} bytes at {path!r}"

    def link(self) -> str | None:
        old, new = self._pick(stat.S_IFREG), self._new_path()
        if old is None or new in self.state:
            return None
        parent, name = _split(new)
        self.volume.link(self._inode(old), self._inode(parent), name)
        self.state[new] = self.state[old]
        return f"link {new!r} to {old!r}"

    def rename(self) -> str | None:
        kind = self.rng.choice([stat.S_IFREG, stat.S_IFDIR])
        old = self._pick(kind)
        new = self.rng.choice([self._new_path(), self._pick(kind)])
        if old is None or new is None or new == old or new.startswith(old + b"/") or old.startswith(new + b"/"):
            return None
        there = self.state.get(new)
        if there is not None:
            if there.kind != kind or self._children(new) or there.number == self.state[old].number:
                return None
            if self.rng.random() < 0.3:
                self._hold(new)
        source, target = _split(old), _split(new)
        self.volume.rename(self._inode(source[0]), source[1], self._inode(target[0]), target[1])
        moved = {new + path[len(old) :]: self.state.pop(path) for path in [*self._children(old), old]}
        self.state |= moved
        return f"rename {old!r} to {new!r}"

    def _hold(self, path: bytes) -> None:
        inode = self._inode(path)
        self.volume.open_inode(inode)
        self._open.append(inode)

    def unlink(self) -> str | None:
        path = self._pick(self.rng.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK]))
        if path is None:
            return None
        if self.rng.random() < 0.3:
            self._hold(path)
        parent, name = _split(path)
        self.volume.unlink(self._inode(parent), name)
        del self.state[path]
        return f"unlink {path!r}"

    def remove_directory(self) -> str | None:
        path = self._pick(stat.S_IFDIR)
        if path is None or self._children(path):
            return None
        parent, name = _split(path)
        self.volume.remove_directory(self._inode(parent), name)
        del self.state[path]
        return f"rmdir {path!r}"

    def release(self) -> str | None:
        if not self._open:
            return None
        inode = self._open.pop(self.rng.randrange(len(self._open)))
        self.volume.release_inode(inode)
        return f"release {inode}"

    def sync(self) -> str:
        self.volume.sync()
        return "sync"

    def quiesce(self) -> str:
        self.volume.quiesce()
        return "quiesce"

    def reopen(self) -> str:
        """Unmounted and mounted again: what was open is closed."""
        self.volume.close()
        self._open.clear()
        self.volume = self._opened()
        return "reopen"

    def fail(self) -> str:
        self.disk.fail(
            *self.rng.choice([["write"], ["flush"], ["write", "flush"]]),
            after=self.rng.randrange(5),
            times=1,
            errno=self.rng.choice(["EIO", "ENOSPC"]),
        )
        operation = self.rng.choice([self.sync, self.sync, self.quiesce])
        try:
            return operation()
        except OSError:
            self.failed += 1
            return "a sync that fails"
        finally:
            self.disk.heal()

    # Crashes.

    def crashes(self, *, every: int = 1) -> Iterator[tuple[str, int, bytearray]]:
        """(what it is, position, image): of each n-th position a prefix, and a torn subset of what was not flushed."""
        begin = self.steps[0].end
        torn = bytearray()
        flushed = self.journal.image(DISK, begin)
        for position, image in self.journal.images(DISK, begin):
            if position > begin and self.journal.entries[position - 1].operation == "flush":
                flushed[:] = image
            if (position - begin) % every:
                continue
            yield f"prefix {position}", position, image
            rng = random.Random(f"{self.seed} {position}")
            self.journal.torn_image(DISK, position, rng, whole=SUPERBLOCK_SECTORS, base=flushed, into=torn)
            yield f"torn {position}", position, torn

    def judge(self, what: str, position: int, state: State) -> None:
        """Raises AssertionError unless a volume's tree is one that a crash at a position may leave."""
        ends = [step.end for step in self.steps]
        last = min(bisect_left(ends, position), len(self.steps) - 1)
        durable = max(i for i in range(bisect_right(ends, position)) if self.steps[i].is_sync)
        problems = []
        for index in range(last, durable - 1, -1):
            problem = self._difference(state, index, durable, last)
            if not problem:
                return
            problems.append(f"{index} ({self.steps[index].what}): {problem}")
        raise AssertionError(
            f"seed {self.seed}, {what} of {len(self.journal.entries)}: no state from step {durable} to {last}:\n"
            + "\n".join(problems)
        )

    def _difference(self, found: State, index: int, durable: int, last: int) -> str:
        expected = self.steps[index].state
        if found.keys() != expected.keys():
            return f"names {sorted(found.keys() ^ expected.keys())}"
        numbers: dict[int, int] = {}
        for path, file in expected.items():
            there = found[path]
            if numbers.setdefault(file.number, there.number) != there.number:
                return f"{path!r} is another file"
            if (there.kind, there.xattr, len(there.content)) != (file.kind, file.xattr, len(file.content)):
                return f"{path!r} is {there.kind:o} of {len(there.content)} bytes, not {len(file.content)}"
            if there.content == file.content:
                continue
            problem = self._foreign_sector(file.number, there.content, durable, last)
            if problem is not None:
                return f"{path!r}: sector {problem} has what was never there"
        return ""

    def _foreign_sector(self, number: int, content: bytes, durable: int, last: int) -> int | None:
        """The first sector that no version of a file since the last sync has."""
        versions = {
            file.content
            for step in self.steps[durable : last + 1]
            for file in step.state.values()
            if file.number == number
        }
        for begin in range(0, len(content), SECTOR_BYTES):
            end = min(begin + SECTOR_BYTES, len(content))
            allowed = {version[begin:end].ljust(end - begin, b"\0") for version in versions if len(version) > begin}
            if any(begin - begin % self._block_bytes < len(version) <= begin for version in versions):
                allowed.add(bytes(end - begin))  # what is behind the end in its block becomes zeros at once
            if content[begin:end] not in allowed and not _is_mixed(content[begin:end], allowed):
                return begin // SECTOR_BYTES
        return None


def _is_mixed(content: bytes, allowed: set[bytes]) -> bool:
    """Whether every byte is from one of the versions: a sector that grew, or was cut, holds two of them."""
    return all(any(version[i] == byte for version in allowed) for i, byte in enumerate(content))


def read_state(volume: Volume) -> State:
    """The tree of an open volume, read by names."""
    state: State = {}
    todo = [(b"", ROOT_INODE)]
    while todo:
        path, inode = todo.pop()
        for entry in volume.list_directory(inode):
            if entry.name in (b".", b".."):
                continue
            here = _join(path, entry.name)
            attributes = volume.attributes(entry.inode)
            kind = stat.S_IFMT(attributes.mode)
            content = b""
            if kind == stat.S_IFDIR:
                todo.append((here, entry.inode))
            elif kind == stat.S_IFLNK:
                content = volume.read_symlink(entry.inode)
            else:
                content = volume.read(entry.inode, 0, attributes.size_bytes)
            xattr = volume.get_xattr(entry.inode, b"user.x") if b"user.x" in volume.list_xattrs(entry.inode) else b""
            state[here] = File(entry.inode, kind, content, xattr)
    return state


def fsck(image: bytes | bytearray, mode: str, directory: Path) -> tuple[int, str, MemoryDevice]:
    """e2fsck's status and words for a copy of an image, and what it left."""
    path = directory / "judged.img"
    path.write_bytes(image)
    status, output = tools.run("e2fsck", [mode, str(path)])
    return status, output, memory_device(path.read_bytes())


def make_image(path: Path, options: list[str], size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    status, output = tools.run(
        "mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard,root_owner=0:0", *options, str(path)]
    )
    assert status == 0, output
    FileDevice(path).close()
    return path


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rpartition(b"/")
    return parent, name


def _clock() -> Callable[[], int]:
    ticks = iter(range(1_700_000_000_000_000_000, 1 << 62, 1_000_000))
    return lambda: next(ticks)
