"""Work on a home's metadata as a whole: check, repair, dump, restore, delta.

Reading works on a home that is in use, and on metadata that no pool accepts. What replaces metadata needs the home to
itself: the new metadata is written into a separate file, checked there, and only then renamed over the old one, which
stays beside it as `metadata.replaced`. So whatever fails, and whenever the process dies, one whole file is in place.
Metadata on a device is copied to `metadata.replaced` first and overwritten in place; a death in the middle of that
leaves two whole files beside a device that says it is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cowfs.blockdev import BlockDevice, FileDevice, data_ranges
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.devices.on_disk.making import read_settings
from cowfs.devices.on_disk.records import TransactionFile
from cowfs.devices.pools.pool_files import backing_space, device_size, open_device
from cowfs.errors import HomeError, InvalidRequest, MetadataCorrupt, PoolIoError
from cowfs.home.session import locked, metadata_of
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

if TYPE_CHECKING:
    from typing import BinaryIO

    from cowfs.thinmeta.findings import CheckReport
    from cowfs.thinmeta.format import Superblock
    from cowfs.thinmeta.repair import RepairReport
    from cowfs.thinmeta.xml import TextSink

_NEW_SUFFIX: Final = ".new"
_REPLACED_SUFFIX: Final = ".replaced"
_COPY_BYTES: Final = 1 << 20

Progress = Callable[[int, int], None]


def check_home(home: Path, backend: str, *, progress: Progress | None = None) -> CheckReport:
    """Recount the metadata of a home, in use or not, opened by a pool or refused by it."""
    from cowfs.thinmeta.check import check

    with metadata_of(home, backend) as metadata:
        return check(metadata, progress=progress)


def dump_home(home: Path, backend: str, out: TextSink, *, progress: Progress | None = None) -> None:
    """Write the metadata of a home as thin_dump's XML."""
    from cowfs.thinmeta.xml import dump

    with metadata_of(home, backend) as metadata:
        dump(metadata, out, progress=progress)


def repair_home(home: Path, *, block_bytes: int | None = None, progress: Progress | None = None) -> CheckReport:
    """Make the metadata of a home clean: clear the needs-check flag, or write new metadata from the mappings.

    What mapping trees can still be read is taken as the truth; the result names what is lost. Where the metadata is
    clean, the data file gives back to the disk below what it occupies in free blocks.

    Args:
        block_bytes: size of the pool's data blocks, needed where the superblock, which has it, is lost.

    Raises:
        HomeBusy: the home is mounted.
        MetadataCorrupt: nothing is left to start from.
        InvalidRequest: the superblock is lost and `block_bytes` was not given.
    """
    from cowfs.thinmeta.check import check, clear_needs_check

    with _locked(home, "repairing metadata") as files:
        with closing(open_device(files.metadata, read_only=False)) as device:
            report = check(device, progress=progress)
            if report.clean:
                clear_needs_check(device)
                given_back = _give_back_free_blocks(files, device)
                return msgspec.structs.replace(
                    report, repaired=report.needs_check, needs_check=False, given_back_bytes=given_back
                )
        with _replacing_metadata(files) as new, closing(open_device(files.metadata)) as old:
            made = _repair(files, old, new, block_bytes, progress)
    losses = [str(loss) for loss in made.losses]
    return msgspec.structs.replace(report, clean=True, repaired=True, needs_check=False, losses=losses)


def _give_back_free_blocks(files: HomeFiles, metadata: BlockDevice) -> int:
    """Punch free blocks out of the data file; the bytes that this gives back to the disk below.

    What a change wrote that was lost before its commit is there until its blocks are used again. That can be all that a
    full disk has left, and to remove or trim a device takes some of it. After a repair that lost something, blocks stay
    as they are: the metadata that it replaced may still lead to them.
    """
    from cowfs.thinmeta.metadata import Metadata

    if read_settings(files).no_discard_passdown or os.path.lexists(files.own_metadata + _REPLACED_SUFFIX):
        return 0
    opened = Metadata.open(metadata, read_only=True)
    block_bytes = opened.data_block_sectors * SECTOR_BYTES
    before, _ = backing_space(files.data)
    with closing(open_device(files.data, read_only=False)) as data:
        free_from = 0
        for first, length in chain(opened.used_data_runs(), [(opened.data_blocks, 0)]):
            for begin, end in data_ranges(data, free_from * block_bytes, first * block_bytes):
                data.discard(begin, end - begin)
            free_from = first + length
        data.flush()
    return max(before - backing_space(files.data)[0], 0)


def _repair(
    files: HomeFiles, old: BlockDevice, new: BlockDevice, block_bytes: int | None, progress: Progress | None
) -> RepairReport:
    from cowfs.thinmeta.repair import repair

    if _superblock(old) is not None:
        return repair(old, new, progress=progress)
    if block_bytes is None:
        raise InvalidRequest(
            f"the superblock in {files.metadata} is lost, and with it the size of the pool's data blocks; "
            "give it with --block-size (64K unless the home was made with another)"
        )
    return repair(
        old,
        new,
        transaction_id=_last_transaction(files),
        data_block_sectors=block_bytes // SECTOR_BYTES,
        data_blocks=device_size(files.data) // block_bytes,
        progress=progress,
    )


def _last_transaction(files: HomeFiles) -> int | None:
    """The pool's transaction id as the home last noted it; without it, its last change would be undone."""
    try:
        return msgspec.json.decode(files.read(files.transaction) or b"", type=TransactionFile).open_transaction_id
    except msgspec.MsgspecError:
        return None


def restore_home(home: Path, source: BinaryIO, *, progress: Progress | None = None) -> CheckReport:
    """Replace the metadata of a home by what an XML of thin_dump says.

    Raises:
        HomeBusy: the home is mounted.
        UsageError, InvalidRequest: the XML is malformed, or does not fit the home.
    """
    from cowfs.thinmeta.check import check
    from cowfs.thinmeta.xml import restore

    with _locked(home, "restoring metadata") as files, _replacing_metadata(files) as new:
        restore(source, new, progress=progress)
        _check_block_size(files, new)
        return check(new)


@contextmanager
def _locked(home: Path, purpose: str) -> Iterator[HomeFiles]:
    """A home to itself, whose metadata is ours to replace."""
    with locked(home, purpose) as files:
        pool = read_settings(files).thin_pool
        if pool:
            raise HomeError(
                f"{purpose} is for the maker of pool '{pool}', which the home {files.home} only uses; "
                "take the tools of its maker, such as 'lvconvert --repair'"
            )
        yield files


def _check_block_size(files: HomeFiles, new: BlockDevice) -> None:
    """The data file keeps its content, so its blocks must stay as large as they were, where that is still known."""
    with closing(open_device(files.metadata)) as device:
        old = _superblock(device)
    given = _superblock(new)
    if old is None or given is None:
        return
    if given.data_block_sectors != old.data_block_sectors:
        raise InvalidRequest(
            f"the XML is of a pool with data blocks of {given.data_block_sectors} sectors, and those of "
            f"{files.home} have {old.data_block_sectors}; "
            "nothing was changed"
        )


@contextmanager
def _replacing_metadata(files: HomeFiles) -> Iterator[FileDevice]:
    """A new metadata device of the old one's size, which takes its place when the block ends well and it is clean."""
    from cowfs.thinmeta.check import check

    path = files.own_metadata + _NEW_SUFFIX
    with suppress(FileNotFoundError):  # left by a crash
        os.unlink(path)
    files.make_sparse(path, device_size(files.metadata))
    try:
        with closing(open_device(path, read_only=False)) as device:
            yield device
            device.flush()
            report = check(device, data_size_blocks=_data_blocks(files, device))
            if not report.clean:
                first = report.findings[0]
                message = f"the new metadata is not clean, {report.summary}: {first}; nothing was changed"
                raise MetadataCorrupt(message, block=first.block, path=first.path)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    replaced = files.own_metadata + _REPLACED_SUFFIX
    with suppress(FileNotFoundError):
        os.unlink(replaced)
    if files.metadata == files.own_metadata:
        _link(files.metadata, replaced)
        files.rename(path, files.metadata)
    else:
        files.make_sparse(replaced, device_size(files.metadata))
        _copy(files.metadata, replaced)
        _copy(path, files.metadata)
        files.remove(path)


def _link(path: str, replaced: str) -> None:
    try:
        os.link(path, replaced)
    except OSError as error:
        raise HomeError(f"cannot keep {path} as {replaced}: {error.strerror}", errno=error.errno) from error


def _copy(source: str, target: str) -> None:
    """Copy a metadata device. The superblock is written last: until then, the target says that it is damaged."""
    with closing(open_device(source)) as old, closing(open_device(target, read_only=False)) as new:
        new.zero(0, METADATA_BLOCK_BYTES)
        new.flush()
        for offset in range(METADATA_BLOCK_BYTES, old.size_bytes, _COPY_BYTES):
            data = old.pread(offset, min(_COPY_BYTES, old.size_bytes - offset))
            if any(data):
                new.pwrite(offset, data)
            else:
                new.zero(offset, len(data))
        new.flush()
        new.pwrite(0, old.pread(0, METADATA_BLOCK_BYTES))
        new.flush()


def _superblock(metadata: BlockDevice) -> Superblock | None:
    """None when it is damaged."""
    from cowfs.thinmeta.format import Superblock

    try:
        return Superblock.unpack(metadata.pread(0, METADATA_BLOCK_BYTES))
    except (MetadataCorrupt, PoolIoError):
        return None


def _data_blocks(files: HomeFiles, metadata: BlockDevice) -> int | None:
    """How many blocks the data file can hold."""
    superblock = _superblock(metadata)
    if superblock is None:
        return None
    return device_size(files.data) // (superblock.data_block_sectors * SECTOR_BYTES)
