"""Files of devices without a mount, for Python and for the command line, here or through the holder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, TypeAlias

import msgspec

from cowfs.copying.host import HostSink, HostSource, total_bytes
from cowfs.copying.records import Batch, batches, records_in
from cowfs.copying.sinks import Copied
from cowfs.errors import UsageError
from cowfs.home.requests.files import (
    CopyIn,
    CopyOut,
    FileRow,
    ReadFiles,
    WantedFile,
    name_of,
)
from cowfs.home.session import Session
from cowfs.steps import Progress, counted, pieces_of

_FILES_PER_REQUEST: Final = 128  # with the longest paths, a request has 0.7 of the bytes that it may have

Path: TypeAlias = str | bytes | os.PathLike[str]


class FileInfo(msgspec.Struct, frozen=True):
    """A file in a device. `mode` has the type bits, as in `stat`; `target` is a symbolic link's, else null.

    `problem` says why a file cannot be looked at, else null; then no more is known than its name, inode and type.
    `device` is the number of a device node, as os.makedev packs it. Bytes of names that are not UTF-8 are surrogates,
    as `os.fsdecode` makes them.
    """

    name: str
    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    size_bytes: int
    device: int
    mtime_ns: int
    target: str | None
    problem: str | None = None

    @classmethod
    def of(cls, row: FileRow) -> FileInfo:
        values = msgspec.structs.asdict(row)
        target = os.fsdecode(row.target) if stat.S_ISLNK(row.mode) and not row.problem else None
        return cls(**{**values, "name": os.fsdecode(row.name), "target": target, "problem": row.problem or None})


def read_files(session: Session, device: str, files: Sequence[WantedFile], out: Callable[[bytes], object]) -> None:
    """Have `out` called with the contents of files, one after the other; any number of files."""
    for begin in range(0, len(files), _FILES_PER_REQUEST):
        session.receive(ReadFiles(device, list(files[begin : begin + _FILES_PER_REQUEST])), out)


def copy_in(
    session: Session, source: Path, request: CopyIn, *, recursive: bool = True, progress: Progress | None = None
) -> Copied:
    """Copy a file of the host, or a directory and all below it, as a `CopyIn` says.

    Raises:
        UsageError: the source is a directory, and `recursive` is false.
        OSError: the source cannot be looked at.
    """
    path = os.fsencode(source)
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode) and not recursive:
        raise UsageError(f"'{os.fsdecode(path)}' is a directory; copy it with -r", errno=errno.EISDIR)
    name = name_of(path)
    request = msgspec.structs.replace(request, has_own_name=bool(name))
    with closing(HostSource().read(path, name or b".")) as records:
        pieces = pieces_of(batches(records))
        return session.send(request, pieces if progress is None else counted(pieces, total_bytes(path), progress))


def copy_out(session: Session, request: CopyOut, target: Path, *, progress: Progress | None = None) -> Copied:
    """Copy a file of a device, or a directory and all below it, to the host.

    Raises:
        CopyError: nothing more can be written there; what a `CopyOut` raises.
    """
    sink = HostSink(os.fsencode(target), has_own_name=bool(name_of(request.path)))

    def take(batch: bytes | Batch) -> None:
        sink.take_all(records_in(batch))
        if progress is not None:
            progress(sink.size_bytes, None)

    with closing(sink):
        session.receive(request, take)
        return sink.finish()
