"""Images of disks, archives and directories brought in and out, for Python and for the command line.

What is no raw disk is read through qemu-img, which gets the format that was found, never one that it guesses, and only
files that the user named: an image that refers to others is refused, unless that is asked for.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

import msgspec

from cowfs.blockdev import FileDevice, data_ranges
from cowfs.copying.host import HostSource
from cowfs.copying.records import batches
from cowfs.errors import CowfsError, MissingRequirement, UsageError
from cowfs.home.layers import as_file
from cowfs.home.requests.devices import Inspect
from cowfs.home.requests.images import (
    CHANGE,
    OFFSET_BYTES,
    RANGE_BYTES,
    Chain,
    ExportArchive,
    ExportChain,
    ExportDisk,
    Exported,
    ImportArchive,
    ImportChain,
    ImportDisk,
    Imported,
    ImportFiles,
)
from cowfs.home.requests.request import Attachment
from cowfs.home.session import Session
from cowfs.steps import pieces_of
from cowfs.units import SECTOR_BYTES

Format: TypeAlias = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory"]
Progress: TypeAlias = Callable[[int, int], object]

FORMATS: Final[tuple[Format, ...]] = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "tar", "directory")
_DISKS: Final = ("qcow2", "vmdk", "vdi", "vhdx")
_ZERO_CHECK_BYTES: Final = 64 << 10
_ZEROS: Final = bytes(_ZERO_CHECK_BYTES)
_MAGIC: Final[tuple[tuple[int, bytes, Format], ...]] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (257, b"ustar", "tar"),
)
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


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
        kind = format or _format_of(path)
        if kind == "directory":
            return _import_directory(session, path, name, size_bytes)
        if kind == "tar":
            with open(path, "rb") as archive, as_file(archive, session.path) as file:
                return session.call(ImportArchive(name, size_bytes, archive=Attachment(file)))
        if size_bytes is not None:
            raise UsageError(f"the size of a device made of a disk is that of the disk; leave out a size for {path}")
        if kind in _DISKS:
            with _converted(path, kind, follow_backing=follow_backing) as disk:
                return _import_disk(session, disk, name, progress)
        with closing(FileDevice(path, read_only=True)) as device:
            return _import_disk(session, device, name, progress)
    except CowfsError:
        raise
    except OSError as error:
        raise CowfsError(
            f"cannot import {path}: {error.strerror or error}; nothing was made", errno=error.errno
        ) from error


def _format_of(path: str) -> Format:
    if os.path.isdir(path):
        return "directory"
    with open(path, "rb") as file:
        head = file.read(1024)
    for magic, what in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(
                f"{path} is compressed ({what}); unpack it first, or say what its bytes are with --format raw"
            )
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    return "raw"


def _import_directory(session: Session, path: str, name: str, size_bytes: int | None) -> Imported:
    with closing(HostSource().read(os.fsencode(path), b".")) as records:
        copied = session.send(ImportFiles(name, size_bytes), pieces_of(batches(records)))
    report = session.call(Inspect(name))
    return Imported(name, report.id, report.size_bytes, report.mapped_bytes, copied.problems)


def _import_disk(session: Session, device: FileDevice, name: str, progress: Progress | None) -> Imported:
    size_bytes = -(-device.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return session.send(ImportDisk(name, size_bytes), _ranges(device, progress))


def _ranges(device: FileDevice, progress: Progress | None) -> Iterator[bytes]:
    """What is not zeros, in whole data blocks of the least size, so that no more is mapped than must be."""
    for begin, end in data_ranges(device):
        first = begin // _ZERO_CHECK_BYTES * _ZERO_CHECK_BYTES
        for offset in range(first, end, RANGE_BYTES):
            if progress is not None:
                progress(offset, device.size_bytes)
            data = device.pread(offset, min(RANGE_BYTES, device.size_bytes - offset))
            for at, length in _not_zeros(data):
                yield (offset + at).to_bytes(OFFSET_BYTES, "little") + data[at : at + length]


def _not_zeros(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of blocks that are not zeros."""
    begin = None
    for at in range(0, len(data), _ZERO_CHECK_BYTES):
        block = data[at : at + _ZERO_CHECK_BYTES]
        if block == _ZEROS[: len(block)]:
            if begin is not None:
                yield begin, at - begin
                begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(data) - begin


# Images of other formats.


class _Extent(msgspec.Struct, frozen=True):
    filename: str = ""


class _Specific(msgspec.Struct, frozen=True, rename="kebab"):
    extents: list[_Extent] = []
    data_file: str | None = None


class _FormatSpecific(msgspec.Struct, frozen=True):
    data: _Specific = _Specific()


class _ImageInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """What `qemu-img info --output=json` says."""

    backing_filename: str | None = None
    encrypted: bool = False
    format_specific: _FormatSpecific = _FormatSpecific()


@contextmanager
def _converted(path: str, kind: str, *, follow_backing: bool) -> Iterator[FileDevice]:
    """The disk in an image, in a file without a name.

    Raises:
        UsageError: the image is encrypted or damaged, or refers to other files.
        MissingRequirement: qemu-img is not there.
    """
    info = msgspec.json.decode(_qemu_img(path, "info", "--output=json", "-f", kind, path), type=_ImageInfo)
    if info.encrypted:
        raise UsageError(f"the image {path} is encrypted; decrypt it first: qemu-img convert")
    others = [extent.filename for extent in info.format_specific.data.extents]
    others += [info.format_specific.data.data_file or path, info.backing_filename or path]
    other = next((other for other in others if other and os.path.realpath(other) != path), None)
    if other is not None and not follow_backing:
        raise UsageError(f"the image {path} needs the file {other}, which was not read; --follow-backing reads it too")
    if kind == "qcow2":
        _qemu_img(path, "check", "-f", kind, path)
    with tempfile.TemporaryDirectory(prefix="cowfs-import-") as directory:
        disk = os.path.join(directory, "disk")
        _qemu_img(path, "convert", "-f", kind, "-O", "raw", path, disk)
        with closing(FileDevice(disk, read_only=True)) as device:
            yield device


def _qemu_img(about: str, *words: str) -> bytes:
    program = shutil.which("qemu-img")
    if program is None:
        raise MissingRequirement("qemu-img is not installed", remedy="apt-get install qemu-utils", errno=errno.ENOENT)
    done = subprocess.run([program, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[0]
        raise UsageError(f"qemu-img {words[0]} of {about} failed: {said.removeprefix('qemu-img: ')}")
    return done.stdout


# Out.


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
    kind = format or {".qcow2": "qcow2", ".tar": "tar"}.get(Path(path).suffix, "raw")
    if kind not in ("raw", "qcow2", "tar"):
        raise UsageError(f"devices are exported as raw, qcow2 or tar, not as {kind}")
    try:
        with _new_file(path, force=force) as file:
            if kind == "tar":
                exported = session.receive(ExportArchive(name), file.write)
            elif kind == "raw":
                exported = _export_disk(session, name, file, progress)
            else:
                with tempfile.NamedTemporaryFile(prefix=".cowfs-export-", dir=os.path.dirname(path)) as disk:
                    exported = _export_disk(session, name, disk, progress)
                    _qemu_img(path, "convert", "-f", "raw", "-O", "qcow2", disk.name, file.name)
            file.flush()
            os.fsync(file.fileno())
    except CowfsError:
        raise
    except OSError as error:
        raise CowfsError(
            f"cannot export '{name}' to {path}: {error.strerror or error}; nothing was left there", errno=error.errno
        ) from error
    return exported


# Chains.

_CHAIN_FILE: Final = "chain.json"


def export_chain(session: Session, name: str, target: str | os.PathLike[str]) -> Chain:
    """As `Home.export_chain`."""
    path = os.path.abspath(target)
    temporary = None
    try:
        if os.path.lexists(path):
            raise UsageError(f"{path} exists; name a directory that does not", errno=errno.EEXIST)
        temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(path)[:100]}.", dir=os.path.dirname(path))
        current: list[IO[bytes]] = []
        with ExitStack() as stack:

            def take(piece: bytes) -> None:
                number = CHANGE.unpack_from(piece)[0]
                if not current or current[-1].name != _blocks(temporary, number):
                    stack.close()
                    current.append(stack.enter_context(open(_blocks(temporary, number), "xb")))
                current[-1].write(piece)

            chain = session.receive(ExportChain(name), take)
        Path(temporary, _CHAIN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(chain)) + b"\n")
        os.rename(temporary, path)
        temporary = None
    except CowfsError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}; nothing was left there"
        raise CowfsError(f"cannot export '{name}' to {path}: {reason}", errno=error.errno) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return chain


def import_chain(session: Session, source: str | os.PathLike[str]) -> list[Imported]:
    """As `Home.import_chain`."""
    path = os.path.abspath(source)
    try:
        chain = msgspec.json.decode(Path(path, _CHAIN_FILE).read_bytes(), type=Chain)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is no chain of devices, or damaged: {error}") from None
    except OSError as error:
        reason = f"{error.strerror}; name a directory that 'export --chain' made"
        raise CowfsError(f"cannot read {path}/{_CHAIN_FILE}: {reason}", errno=error.errno) from error
    return session.send(ImportChain(chain), _pieces(path, len(chain.devices)))


def _pieces(path: str, count: int) -> Iterator[bytes]:
    for number in range(count):
        try:
            file = open(_blocks(path, number), "rb")  # noqa: SIM115
        except FileNotFoundError:
            continue  # a device that is as its parent is
        with file:
            while header := file.read(CHANGE.size):
                length = CHANGE.unpack(header)[3] if len(header) == CHANGE.size and header[4] else 0
                data = file.read(length) if length <= RANGE_BYTES else b""
                if len(header) != CHANGE.size or len(data) != length:
                    raise UsageError(f"{file.name} is damaged, or breaks off; nothing was made")
                yield header + data


def _blocks(directory: str | None, number: int) -> str:
    return os.path.join(directory or "", f"{number:06}.blocks")


@contextmanager
def _new_file(path: str, *, force: bool) -> Iterator[IO[bytes]]:
    """A file that has its name when the block ends. Raises UsageError for a name that is taken."""
    taken = UsageError(f"{path} exists; name another file, or overwrite it with --force", errno=errno.EEXIST)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UsageError(f"{path} exists and is not a regular file; name another one", errno=errno.EEXIST)
        if not force:
            raise taken
    directory, last = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{last[:100]}.", dir=directory)
    try:
        os.close(fd)
        with open(temporary, "r+b") as file:
            yield file
        if force:
            os.rename(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise taken from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _export_disk(session: Session, name: str, file: IO[bytes], progress: Progress | None) -> Exported:
    fd = file.fileno()
    total = session.call(Inspect(name)).mapped_bytes if progress is not None else 0
    done = 0

    def take(piece: bytes) -> None:
        nonlocal done
        offset, data = int.from_bytes(piece[:OFFSET_BYTES], "little"), piece[OFFSET_BYTES:]
        for at, length in _not_zeros(data):
            _write(fd, memoryview(data)[at : at + length], offset + at)
        done += len(data)
        if progress is not None:
            progress(min(done, total), total)

    exported = session.receive(ExportDisk(name), take)
    os.ftruncate(fd, exported.size_bytes)
    return exported


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
