"""Replaying a volume's journal: what a crash left there comes to its place, and the volume is as after a clean unmount.

    recover(device)      writes it: afterwards no recovery is needed
    recovered(device)    a view of the device with it, for reading only; nothing is written
    readable(device)     the same if that is possible, and otherwise the device as it is

Both leave a volume alone that has nothing to replay. What the journal does not record is left to e2fsck.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.format import checksums, layout
from cowfs.ext4.journal.journal_file import JournalFile
from cowfs.ext4.journal.journal_format import DamagedJournal
from cowfs.ext4.journal.journal_replay import Copy, Replay, read_log
from cowfs.ext4.library.filesystem import Filesystem, os_error

_STATE_OFFSET: Final = 0x3A
_INCOMPAT_OFFSET: Final = 0x60
_CHECKSUM_OFFSET: Final = 0x3FC
_RUN_BYTES_MAX: Final = 1 << 20


def needs_recovery(device: BlockDevice) -> bool:
    """Whether a volume's journal has to be replayed. Raises FilesystemError (EINVAL): no ext4 there."""
    return bool(layout.read_superblock(device).incompat & layout.INCOMPAT_RECOVER)


def recover(device: BlockDevice) -> None:
    """Replay the journal of a volume, where it needs that.

    Raises:
        FilesystemError: the journal is damaged (EUCLEAN) or of a kind that cowfs does not know.
        OSError: what the device says. It may be tried again.
    """
    if not needs_recovery(device):
        return
    found = _Found(device)
    run: list[bytes] = []
    begin = 0
    for block in sorted(found.replay.copies):
        if run and (block != begin + len(run) or len(run) * found.block_bytes >= _RUN_BYTES_MAX):
            device.pwrite(begin * found.block_bytes, b"".join(run))
            run = []
        begin = block if not run else begin
        run.append(found.content(block))
    if run:
        device.pwrite(begin * found.block_bytes, b"".join(run))
    device.flush()
    found.file.write_superblock(found.file.superblock.packed_empty(found.replay.sequence))
    device.flush()
    superblock = device.pread(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES)
    device.pwrite(layout.SUPERBLOCK_OFFSET, _without_mark(superblock, has_error=found.has_error))
    device.flush()


def recovered(device: BlockDevice) -> BlockDevice:
    """The device as it will be when its journal is replayed; itself where there is nothing to replay.

    Raises like `recover`.
    """
    return RecoveredDevice(device, _Found(device)) if needs_recovery(device) else device


def readable(device: BlockDevice) -> tuple[BlockDevice, list[str]]:
    """The device with its journal where that can be replayed, else as it is; and what is wrong with the volume.

    Raises:
        FilesystemError (EINVAL): no ext4 there.
    """
    superblock = layout.read_superblock(device)
    problems = _problems(superblock, device.pread(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES))
    if superblock.size_bytes > device.size_bytes:
        problems.append(f"it has {superblock.size_bytes} bytes, and its device only {device.size_bytes}")
    try:
        return recovered(device), problems
    except FilesystemError as error:
        problem = f"its journal cannot be replayed, so the last changes may be missing or half done: {error.message}"
        return device, [problem, *problems]


def _problems(superblock: layout.Superblock, raw: bytes) -> list[str]:
    problems = []
    if superblock.ro_compat & layout.RO_COMPAT_METADATA_CSUM and raw[_CHECKSUM_OFFSET:] != _superblock_checksum(raw):
        problems.append("its superblock has a wrong checksum")
    if superblock.state & layout.STATE_ERROR:
        problems.append("it is marked as damaged")
    if not superblock.state & layout.STATE_VALID and not superblock.incompat & layout.INCOMPAT_RECOVER:
        problems.append("it was not cleanly unmounted")
    return problems


class _Found:
    """What is to be replayed."""

    def __init__(self, device: BlockDevice) -> None:
        self.replay, self.file, self.block_bytes, blocks = _read(device)
        for block in self.replay.copies:
            if not block < blocks or self.file.holds(block):
                raise DamagedJournal(f"has a copy of block {block}, which is outside the volume or the journal's own")

    @property
    def has_error(self) -> bool:
        return bool(self.file.superblock.error)

    def content(self, block: int) -> bytes:
        copy: Copy = self.replay.copies[block]
        return copy.restored(self.file.read(copy.journal_block))


def _read(device: BlockDevice) -> tuple[Replay, JournalFile, int, int]:
    fs = Filesystem(device, read_only=True, now_ns=lambda: 0, before_recovery=True)
    try:
        if not JournalFile.is_in(fs):
            raise DamagedJournal("is to be replayed, and is not in the volume")
        file = JournalFile(fs)
        return read_log(file.superblock, file.read), file, fs.block_bytes, fs.blocks
    finally:
        fs.free()


def _without_mark(raw: bytes, *, has_error: bool) -> bytes:
    """A superblock that does not ask for a replay any more."""
    changed = bytearray(raw)
    state, incompat, ro_compat = (
        *struct.unpack_from("<H", raw, _STATE_OFFSET),
        *struct.unpack_from("<II", raw, _INCOMPAT_OFFSET),
    )
    if has_error:
        struct.pack_into("<H", changed, _STATE_OFFSET, state | layout.STATE_ERROR)
    struct.pack_into("<I", changed, _INCOMPAT_OFFSET, incompat & ~layout.INCOMPAT_RECOVER)
    if ro_compat & layout.RO_COMPAT_METADATA_CSUM:
        changed[_CHECKSUM_OFFSET:] = _superblock_checksum(changed)
    return bytes(changed)


def _superblock_checksum(raw: bytes | bytearray) -> bytes:
    return checksums.crc32c(0xFFFFFFFF, raw[:_CHECKSUM_OFFSET]).to_bytes(4, "little")


class RecoveredDevice:
    """A `BlockDevice`, read-only, with the blocks of a journal in their places."""

    def __init__(self, inner: BlockDevice, found: _Found) -> None:
        self._inner = inner
        self._found = found
        self._superblock = _without_mark(
            self._read(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES), has_error=found.has_error
        )

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def from_journal(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of the bytes that are the journal's, where those on the device may be others."""
        size = self._found.block_bytes
        return ((block * size, (block + 1) * size) for block in self._found.replay.copies)

    def pread(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        begin = max(offset, layout.SUPERBLOCK_OFFSET)
        end = min(offset + length, layout.SUPERBLOCK_OFFSET + layout.SUPERBLOCK_BYTES)
        if begin >= end:
            return data
        piece = self._superblock[begin - layout.SUPERBLOCK_OFFSET : end - layout.SUPERBLOCK_OFFSET]
        return data[: begin - offset] + piece + data[end - offset :]

    def _read(self, offset: int, length: int) -> bytes:
        size = self._found.block_bytes
        copies = self._found.replay.copies
        first, end = offset // size, -(-(offset + length) // size)
        if end - first < len(copies):
            replaced = [block for block in range(first, end) if block in copies]
        else:
            replaced = [block for block in copies if first <= block < end]
        if not replaced:
            return self._inner.pread(offset, length)
        data = bytearray(self._inner.pread(offset, length))
        for block in replaced:
            begin, stop = max(block * size, offset), min((block + 1) * size, offset + length)
            content = self._found.content(block)
            data[begin - offset : stop - offset] = content[begin - block * size : stop - block * size]
        return bytes(data)

    def _refuse(self, *_arguments: object, **_names: object) -> None:
        raise os_error(errno.EROFS)

    pwrite = zero = discard = copy = _refuse

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        self._inner.close()


def without_recovery(error: FilesystemError) -> FilesystemError:
    """What a read-only mount says when the journal cannot be replayed."""
    return FilesystemError(f"it cannot be read before its journal is replayed; {error.message}", errno=errno.EROFS)
