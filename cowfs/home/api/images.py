"""Images of disks, archives and directories brought in and out, for Python and for the command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, Final

from cowfs.blockdev import FileDevice
from cowfs.disk_images.disk import DiskImage, open_disk
from cowfs.disk_images.formats import Format, format_of
from cowfs.disk_images.qcow2_reading import Run
from cowfs.disk_images.writing import DiskWriter
from cowfs.errors import CowfsError, UsageError, command_line
from cowfs.home.requests.devices import Inspect
from cowfs.home.requests.disks import OFFSET_BYTES, ExportDisk, Exported, ImportDisk, Imported, importing
from cowfs.home.requests.request import Attachment
from cowfs.home.session import Session
from cowfs.new_files import new_file
from cowfs.steps import Progress
from cowfs.units import SECTOR_BYTES

_KINDS: Final[dict[str, Format]] = {".qcow2": "qcow2", ".tar": "tar"}
_NOT_WRITTEN: Final = {
    **dict.fromkeys((".vmdk", ".vdi", ".vhd", ".vhdx"), "write a .qcow2 file, and convert it by 'qemu-img convert'"),
    **dict.fromkeys((".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip"), "write a file that is not compressed first"),
}


def import_image(
    session: Session,
    source: str | os.PathLike[str],
    name: str,
    *,
    format: Format | None = None,  # noqa: A002
    size_bytes: int | None = None,
    follow_backing: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """As `Home.import_image`."""
    path = os.path.realpath(source)
    try:
        with importing(path):
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)):
                raise UsageError(
                    f"{path} is not a file, directory or disk; its data can be read from standard input, as in: "
                    f"{command_line('cowfs', 'import', '-', name, '--format', 'raw')}"
                )
            kind = format or format_of(path)
            if kind == "directory":
                from cowfs.home.api.archives import import_directory

                return import_directory(session, path, name, size_bytes, progress)
            if kind == "tar":
                from cowfs.home.api.archives import import_archive

                return import_archive(session, path, name, size_bytes, progress)
            _require_no_size(size_bytes, path)
            with open_disk(path, kind, follow_others=follow_backing) as disk:
                return _import_disk(session, disk, name, path, progress)
    except CowfsError:
        raise
    except OSError as error:
        raise CowfsError(
            f"cannot import {path}: {error.strerror or error}; nothing was made", errno=error.errno
        ) from error


def import_stream(
    session: Session,
    stream: IO[bytes],
    name: str,
    *,
    format: Format,  # noqa: A002
    size_bytes: int | None = None,
) -> Imported:
    """As `Home.import_stream`."""
    from cowfs.home.api.layers import as_file

    if format not in ("raw", "tar"):
        raise UsageError(f"what is read from a stream is raw or tar, not {format}; write it to a file, and import that")
    if format == "raw":
        _require_no_size(size_bytes, "a stream")
    with importing("the stream"), as_file(stream, session.path) as file:
        if format == "tar":
            from cowfs.home.requests.images import ImportArchive

            return session.call(ImportArchive(name, size_bytes, archive=Attachment(file)))
        with closing(FileDevice.of_descriptor(os.dup(file.fileno()), "the stream", read_only=True)) as device:
            begin = os.lseek(device.fd, 0, os.SEEK_CUR)
            length_bytes = device.size_bytes - begin
            return _import_disk(
                session, DiskImage(device, length_bytes, [Run(0, begin, length_bytes)]), name, "the stream", None
            )


def _require_no_size(size_bytes: int | None, source: str) -> None:
    if size_bytes is not None:
        raise UsageError(f"the size of a device made of a disk is that of the disk; leave out a size for {source}")


def _import_disk(session: Session, disk: DiskImage, name: str, source: str, progress: Progress | None) -> Imported:
    if not disk.size_bytes:
        raise UsageError(f"{source} is empty; the size of a disk is one sector or more")
    size_bytes = -(-disk.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return session.send(ImportDisk(name, size_bytes), _ranges(disk, progress))


def _ranges(disk: DiskImage, progress: Progress | None) -> Iterator[bytes]:
    for offset, data in disk.data(progress):
        yield offset.to_bytes(OFFSET_BYTES, "little")
        yield data


def export_image(
    session: Session,
    name: str,
    target: str | os.PathLike[str],
    *,
    format: Format | None = None,  # noqa: A002
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """As `Home.export_image`."""
    path = os.path.abspath(target)
    ending = os.path.splitext(path)[1].lower()
    if format is None and (instead := _NOT_WRITTEN.get(ending)) is not None:
        raise UsageError(
            f"cannot export '{name}' to {path}: {ending} is a format that is not written; {instead}, or say what to "
            "write with --format"
        )
    kind = format or _KINDS.get(ending, "raw")
    if kind not in ("raw", "qcow2", "tar"):
        raise UsageError(f"devices are exported as raw, qcow2 or tar, not as {kind}")
    try:
        with _new_file(path, force=force) as file:
            if kind == "tar":
                from cowfs.home.api.archives import export_archive

                exported = export_archive(session, name, file, progress)
            else:
                exported = _export_disk(session, name, kind, file, progress)
    except CowfsError:
        raise
    except OSError as error:
        raise CowfsError(
            f"cannot export '{name}' to {path}: {error.strerror or error}; nothing was left there", errno=error.errno
        ) from error
    return exported


@contextmanager
def _new_file(path: str, *, force: bool) -> Iterator[FileDevice]:
    """As `new_file`, as a device that is flushed at the end."""
    with (
        new_file(path, force=force, hint=", or overwrite it with --force", only_regular=True) as file,
        closing(FileDevice.of_descriptor(os.dup(file.fileno()), path)) as device,
    ):
        yield device
        device.flush()


def _export_disk(session: Session, name: str, kind: Format, file: FileDevice, progress: Progress | None) -> Exported:
    writer = DiskWriter(file, kind)
    total = session.call(Inspect(name)).mapped_bytes if progress is not None else 0
    done, offset = 0, None

    def take(piece: bytes) -> None:
        nonlocal done, offset
        if offset is None:
            offset = int.from_bytes(piece, "little")
            return
        writer.write(offset, piece)
        offset = None
        done += len(piece)
        if progress is not None:
            progress(min(done, total), total)

    exported = session.receive(ExportDisk(name), take)
    writer.finish(exported.size_bytes)
    return exported
