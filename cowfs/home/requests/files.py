"""What can be asked about the files in devices, mounted or not: listing, reading, copying.

Paths and names are bytes, in JSON as base64. They are resolved within the device's root, or the layer's: neither `..`
nor a symbolic link leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from operator import attrgetter
from typing import ClassVar, Final

import msgspec

from cowfs.copying.paths import Place, resolve
from cowfs.copying.records import PIECE_BYTES, Batch, Node, Record, batches, records_in, show
from cowfs.copying.sinks import Copied, same_error
from cowfs.copying.tree import Destination, TreeSink, TreeSource, destination
from cowfs.devices.on_disk.names import BASE
from cowfs.ending import ending_with
from cowfs.errors import CopyError, OutOfDataSpace, OutOfMetadataSpace, PoolError, UsageError
from cowfs.filetree import Attributes, DirectoryEntry, FileTree
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Listing, Request, StreamIn, StreamOut
from cowfs.home.snapshot_keys import COMMITTED, require_no_snapshot
from cowfs.layers.interface import LayerRoot
from cowfs.steps import Pieces, Steps

_RECORDS_PER_STEP: Final = 32
_NAMES_PER_STEP: Final = 256


class FileRow(msgspec.Struct, frozen=True):
    """A file as `lstat` shows it; `mode` has the type bits, `target` is a symbolic link's.

    `problem` says why a file cannot be looked at; then no more is known of it than its name, inode number and type.
    """

    name: bytes
    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    size_bytes: int
    device: int
    mtime_ns: int
    target: bytes
    problem: str = ""


class ListFiles(Listing[FileRow], frozen=True, tag="list_files"):
    """See `cowfs.Home.list_files`."""

    device: str
    path: bytes = b""
    follow: bool = True

    reads = ("device",)

    def run(self, home: OpenHome) -> Pieces[FileRow]:
        with _reading(home, self.device) as root:
            place = _find(root, self.device, self.path, follow=self.follow)
            assert place.found is not None
            if not stat.S_ISDIR(place.found.mode):
                yield _row(root.tree, place.name, place.found)
                return
            with _naming(self.device, self.path):
                yield from _rows(root.tree, place.found.inode)


class ReadFile(StreamOut[int], frozen=True, tag="read_file"):
    """See `cowfs.Home.read_file`."""

    device: str
    path: bytes

    reads = ("device",)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, int]:
        with _reading(home, self.device) as root:
            found = _find(root, self.device, self.path, follow=True).found
            assert found is not None
            with _naming(self.device, self.path):
                if stat.S_ISDIR(found.mode):
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                if not stat.S_ISREG(found.mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                offset = 0
                while piece := root.tree.read(found.inode, offset, PIECE_BYTES):
                    yield piece
                    offset += len(piece)
                return offset


class WantedFile(msgspec.Struct, frozen=True):
    """A regular file and the length that it must have."""

    path: bytes
    size_bytes: int


class ReadFiles(StreamOut[None], frozen=True, tag="read_files"):
    """See `cowfs.Home.read_files`."""

    device: str
    files: list[WantedFile]

    reads = ("device",)

    def run(self, home: OpenHome) -> Generator[bytes | None, None, None]:
        with _reading(home, self.device) as root:
            for wanted in self.files:
                found = _find(root, self.device, wanted.path, follow=False).found
                assert found is not None
                with _naming(self.device, wanted.path):
                    if not stat.S_ISREG(found.mode):
                        raise OSError(errno.EINVAL, "it is not a regular file")
                    if found.size_bytes != wanted.size_bytes:
                        text = f"it has {found.size_bytes} bytes, and {wanted.size_bytes} were expected"
                        raise OSError(errno.EINVAL, text)
                    for offset in range(0, wanted.size_bytes, PIECE_BYTES):
                        yield root.tree.read(found.inode, offset, PIECE_BYTES)


class CopyOut(StreamOut[None], frozen=True, tag="copy_out"):
    """A file, or a directory and all below it, as batches of records; a symbolic link is copied as one.

    Args:
        recursive: allow a directory.

    Raises:
        UnknownDevice, DeviceBusy; CopyError: the path leads to nothing, or a directory that was not allowed.
    """

    device: str
    path: bytes
    recursive: bool = True

    reads = ("device",)

    def run(self, home: OpenHome) -> Generator[Batch | None, None, None]:
        with _reading(home, self.device) as root:
            found = _find_source(root, self.device, self.path, recursive=self.recursive)
            with closing(batches(_read(root, self.device, self.path, found))) as pieces:
                yield from pieces


class CopyIn(StreamIn[Copied], frozen=True, tag="copy_in"):
    """Make files in a device from batches of records; committed at the end, and where the copy ends early.

    Args:
        path: an existing directory, below which the copy is put, or what the copy is to be.
        has_own_name: False where the content of a directory is copied, which an existing one is merged with.
        write_base: allow the base device, whose content every later device begins with.

    Raises:
        UsageError: the base device.
        UnknownDevice, DeviceBusy, HomeError; CopyError: there is no place for it.
        CopyError, PoolError: nothing more can be written.
    """

    is_whole: ClassVar[bool] = False

    device: str
    path: bytes
    has_own_name: bool = True
    write_base: bool = False

    reads = ("device",)
    rewrites = "device"

    def run(self, home: OpenHome) -> Generator[bool, bytes | Batch, Copied]:
        with _changing(home, self.device, write_base=self.write_base) as root:
            records = records_in((yield True))
            with _sink(root, self.device, self._place(root, records)) as sink:
                return (yield from take_batches(sink, records))

    def _place(self, root: LayerRoot, records: list[Record]) -> Destination:
        if not records or not isinstance(records[0], Node):
            raise UsageError("not a batch of files: it does not begin with one")
        name = records[0].name if self.has_own_name else b""
        return _put(root, self.device, self.path, name, is_directory=records[0].is_directory)


class CopyWithin(Request[Copied], frozen=True, tag="copy_within"):
    """Copy a file, or a directory and all below it, to another device, or elsewhere in its own.

    Args:
        recursive: allow a directory.
        write_base: allow the base device, whose content every later device begins with.

    Raises:
        As `CopyOut` and `CopyIn`; CopyError: a directory into itself.
    """

    is_whole: ClassVar[bool] = False

    device: str
    path: bytes
    target_device: str
    target_path: bytes
    recursive: bool = True
    write_base: bool = False

    reads = ("device", "target_device")
    rewrites = "target_device"

    def run(self, home: OpenHome) -> Steps[Copied]:
        # In this order: of a device in use a snapshot is read, so a copy within one does not meet itself.
        with (
            _changing(home, self.target_device, write_base=self.write_base) as target,
            _reading(home, self.device) as source,
        ):
            found = _find_source(source, self.device, self.path, recursive=self.recursive)
            name, is_directory = name_of(self.path), stat.S_ISDIR(found.mode)
            place = _put(target, self.target_device, self.target_path, name, is_directory=is_directory)
            if self.device == self.target_device:
                self._refuse_itself(target.tree, found, place)
            with (
                _sink(target, self.target_device, place) as sink,
                closing(_read(source, self.device, self.path, found)) as records,
            ):
                for count, record in enumerate(records, 1):
                    sink.take(record)
                    if count % _RECORDS_PER_STEP == 0:
                        yield
                return sink.finish()

    def _refuse_itself(self, tree: FileTree, source: Attributes, place: Destination) -> None:
        """Raises CopyError for a file onto itself, and for a directory into itself."""
        names = f"'{self.device}:{show(self.path)}' to '{self.device}:{show(place.path)}'"
        try:
            existing = tree.lookup(place.directory, place.name) if place.name else tree.attributes(place.directory)
        except FileNotFoundError:
            existing = None
        if existing is not None and existing.inode == source.inode:
            raise CopyError(f"cannot copy {names}: they are the same file", errno=errno.EINVAL)
        above = place.directory
        while stat.S_ISDIR(source.mode):
            if above == source.inode:
                raise CopyError(f"cannot copy {names}: the directory would be in itself", errno=errno.EINVAL)
            over = tree.lookup(above, b"..").inode
            if over == above:
                break
            above = over


def take_batches(sink: TreeSink, records: list[Record]) -> Generator[bool, bytes, Copied]:
    """Make the files of a first batch of records, and of those that come after it; as the `run` of a `StreamIn`."""
    while records:
        for count, record in enumerate(records, 1):
            sink.take(record)
            if count % _RECORDS_PER_STEP == 0:
                yield False
        batch = yield True
        records = records_in(batch) if batch else []
    return sink.finish()


def name_of(path: bytes) -> bytes:
    """The name that a copy of a file gets in an existing directory; empty where only the content is copied.

    That is so for the root, and for a path that ends in `.` or `..`.
    """
    name = path.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in (b".", b"..") else name


# Finding.


@contextmanager
def _reading(home: OpenHome, device: str) -> Iterator[LayerRoot]:
    with home.driver.reading(device) as root:
        if not root.inode:
            raise CopyError(f"layer '{device}' has no files yet", errno=errno.ENOENT)
        yield root


@contextmanager
def _changing(home: OpenHome, device: str, *, write_base: bool) -> Iterator[LayerRoot]:
    if device == BASE and not write_base:
        raise UsageError(
            "device 'base' is written only with --write-base: every new device begins as a copy of it; nothing was "
            "changed"
        )
    home.devices.guard.check_writable()
    require_no_snapshot(home.path, device, "written", kind=COMMITTED)
    with home.driver.changing(device) as root:
        yield root


@contextmanager
def _naming(device: str, path: bytes) -> Iterator[None]:
    """Errors of a tree with the file that they are about."""
    try:
        yield
    except (CopyError, PoolError):
        raise
    except OSError as error:
        raise CopyError(f"{device}:{show(path) or '/'}: {error.strerror or error}", errno=error.errno) from error


def _find(root: LayerRoot, device: str, path: bytes, *, follow: bool) -> Place:
    with _naming(device, path):
        place = resolve(root.tree, root.inode, path, follow=follow)
        if place.found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return place


def _find_source(root: LayerRoot, device: str, path: bytes, *, recursive: bool) -> Attributes:
    found = _find(root, device, path, follow=False).found
    assert found is not None
    if stat.S_ISDIR(found.mode) and not recursive:
        raise CopyError(f"'{device}:{show(path) or '/'}' is a directory; copy it with -r", errno=errno.EISDIR)
    return found


def _read(root: LayerRoot, device: str, path: bytes, found: Attributes) -> Generator[Record, None, None]:
    name = name_of(path)
    whole = b"/" + path.strip(b"/")
    yield from TreeSource(root.tree, f"{device}:").read(whole, found, name or b".")


@contextmanager
def _sink(root: LayerRoot, device: str, place: Destination) -> Iterator[TreeSink]:
    sink = TreeSink(root.tree, place, device)
    with ending_with(sink.close):
        try:
            yield sink
        except (CopyError, OutOfDataSpace, OutOfMetadataSpace) as error:
            raise same_error(error, f"{error.message}; {_commit(root.tree)}") from error


def _commit(tree: FileTree) -> str:
    """What there is of a copy that ended early."""
    try:
        tree.sync()
    except OSError:
        return "nor is there space to commit what came before it, so all or a part of the copy is missing"
    return "what came before it is copied"


def _put(root: LayerRoot, device: str, path: bytes, name: bytes, *, is_directory: bool) -> Destination:
    with _naming(device, path):
        return destination(root.tree, root.inode, path, name, is_directory=is_directory)


def _rows(tree: FileTree, directory: int) -> Pieces[FileRow]:
    """All that can be read of a directory, by name, then the first error, if there is one."""
    entries: list[DirectoryEntry] = []
    errors: list[OSError] = []
    try:
        entries.extend(tree.list_directory(directory))
    except OSError as error:
        errors.append(error)
    for count, entry in enumerate(sorted(entries, key=attrgetter("name")), 1):
        if entry.name not in (b".", b".."):
            try:
                yield _row(tree, entry.name, tree.attributes(entry.inode))
            except OSError as error:
                errors.append(error)
                problem = error.strerror or str(error)
                yield FileRow(entry.name, entry.inode, entry.mode, 0, 0, 0, 0, 0, 0, b"", problem)
        if count % _NAMES_PER_STEP == 0:
            yield None
    if errors:
        raise errors[0]


def _row(tree: FileTree, name: bytes, found: Attributes) -> FileRow:
    return FileRow(
        name,
        found.inode,
        found.mode,
        found.nlink,
        found.uid,
        found.gid,
        found.size_bytes,
        found.rdev,
        found.mtime_ns,
        tree.read_symlink(found.inode) if stat.S_ISLNK(found.mode) else b"",
    )
