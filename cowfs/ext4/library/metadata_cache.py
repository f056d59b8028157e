"""A write-back cache of metadata blocks, between the device and libext2fs or the engine's directory and extent code.

Dirty blocks stay in memory until `write_out`, which writes them in ascending order, neighbours in one go; so a
block changed a thousand times between two syncs is written once. With a journal they are committed first: then they
are durable, in the journal, and come to their places by `write_committed`, whatever was changed since. Clean blocks are
kept up to a bound. File data never comes here, and a block that is freed must be forgotten before it may carry data.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterable

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.library.block_runs import Run, blocks_within

_CLEAN_BYTES_MAX = 64 << 20
_DIRTY_BYTES_MAX = 64 << 20
_BYTES_MIN = 1 << 18
_RUN_BYTES_MAX = 4 << 20


class MetadataCache:
    """Metadata blocks of one volume.

    Args:
        before_write: called before blocks reach the device, so that the volume can be marked as being in use.
    """

    def __init__(self, device: BlockDevice, block_bytes: int, before_write: Callable[[], None]) -> None:
        self.device = device
        self.block_bytes = block_bytes
        self._blocks = device.size_bytes // block_bytes
        self._before_write = before_write
        self._clean: OrderedDict[int, bytes] = OrderedDict()
        self.dirty: dict[int, bytes] = {}
        self.committed: dict[int, bytes] = {}
        self._forgotten: set[int] = set()  # of the committed: freed since the last commit
        self.limit(1)

    def limit(self, share: float) -> None:
        """Keep no more than this part of what a volume may keep that is open alone."""
        self._clean_max = max(int(_CLEAN_BYTES_MAX * share), _BYTES_MIN) // self.block_bytes
        self._dirty_max = max(int(_DIRTY_BYTES_MAX * share), _BYTES_MIN) // self.block_bytes
        while len(self._clean) > self._clean_max:
            self._clean.popitem(last=False)

    @property
    def overfull(self) -> bool:
        """Whether it is time to write out or to commit, at the next moment when that is convenient."""
        return len(self.dirty) > self._dirty_max

    @property
    def is_much_committed(self) -> bool:
        """Whether it is time to write what is committed."""
        return len(self.committed) > self._dirty_max

    def read(self, block: int) -> bytes:
        data = self.dirty.get(block)
        if data is not None:
            return data
        data = self.committed.get(block)
        if data is not None:
            return data
        clean = self._clean
        data = clean.get(block)
        if data is not None:
            clean.move_to_end(block)
            return data
        self._check(block)
        data = self.device.pread(block * self.block_bytes, self.block_bytes)
        self._keep(block, data)
        return data

    def write(self, block: int, data: bytes) -> None:
        """`data` is one whole block; writing what is there already changes nothing."""
        assert len(data) == self.block_bytes
        if self.dirty.get(block) is None:
            if data in (self.committed.get(block), self._clean.get(block)):
                return
            self._check(block)
            self._clean.pop(block, None)
        self.dirty[block] = data

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Any byte range, through the cache."""
        first, skip = divmod(offset, self.block_bytes)
        end = -(-(offset + length) // self.block_bytes)
        data = b"".join(map(self.read, range(first, end)))
        return data[skip : skip + length]

    def write_bytes(self, offset: int, data: bytes) -> None:
        position = 0
        while position < len(data):
            block, skip = divmod(offset + position, self.block_bytes)
            piece = data[position : position + self.block_bytes - skip]
            if len(piece) < self.block_bytes:
                old = self.read(block)
                self.write(block, old[:skip] + piece + old[skip + len(piece) :])
            else:
                self.write(block, piece)
            position += len(piece)

    def forget(self, block: int, count: int) -> None:
        """Drop freed blocks, dirty or not. What is committed of them stays, until a commit has freed them."""
        for known in (self.dirty, self._clean):
            for number in _within(known, block, count):
                del known[number]
        self._forgotten.update(_within(self.committed, block, count))

    def write_out(self) -> None:
        """Write all dirty blocks. After a failure the unwritten ones are still dirty, and it may be tried again."""
        if not self.dirty:
            return
        self._before_write()
        self._write(self.dirty)

    def note_commit(self, freed: Iterable[Run]) -> None:
        """All dirty blocks are in the journal, and durable; what is free now is written no more."""
        self.committed.update(self.dirty)
        self.dirty.clear()
        for block in blocks_within(self.committed, freed):
            del self.committed[block]
        self._forgotten.clear()

    def write_committed(self) -> None:
        """Write to their places all blocks that are in the journal. Fails and is repeated like `write_out`."""
        self._write(self.committed)

    def _write(self, blocks: dict[int, bytes]) -> None:
        run: list[int] = []
        for block in sorted(blocks):
            if run and (block != run[-1] + 1 or len(run) * self.block_bytes >= _RUN_BYTES_MAX):
                self._write_run(blocks, run)
                run = []
            run.append(block)
        if run:
            self._write_run(blocks, run)

    def _write_run(self, blocks: dict[int, bytes], run: list[int]) -> None:
        self.device.pwrite(run[0] * self.block_bytes, b"".join([blocks[block] for block in run]))
        for block in run:
            data = blocks.pop(block)
            if block not in self.dirty and block not in self._forgotten:
                self._keep(block, data)

    def _check(self, block: int) -> None:
        if not 0 <= block < self._blocks:
            raise FilesystemError(
                f"ext4 is damaged: it refers to block {block} of {self._blocks}; run a check with repair",
                errno=errno.EUCLEAN,
            )

    def _keep(self, block: int, data: bytes) -> None:
        clean = self._clean
        clean[block] = data
        if len(clean) > self._clean_max:
            clean.popitem(last=False)


def _within(known: dict[int, bytes], block: int, count: int) -> list[int]:
    """The known blocks among `count` from `block`."""
    if count < len(known):
        return [number for number in range(block, block + count) if number in known]
    return [number for number in known if block <= number < block + count]
