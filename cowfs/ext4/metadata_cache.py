"""A write-back cache of metadata blocks, between the device and libext2fs or the engine's directory and extent code.

Dirty blocks stay in memory until `write_out`, which writes them in ascending order, neighbours in one go; so a
block changed a thousand times between two syncs is written once. Clean blocks are kept up to a bound. File data
never comes here, and a block that is freed must be forgotten before it may carry data.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError

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
        self._dirty: dict[int, bytes] = {}
        self.limit(1)

    def limit(self, share: float) -> None:
        """Keep no more than this part of what a volume may keep that is open alone."""
        self._clean_max = max(int(_CLEAN_BYTES_MAX * share), _BYTES_MIN) // self.block_bytes
        self._dirty_max = max(int(_DIRTY_BYTES_MAX * share), _BYTES_MIN) // self.block_bytes
        while len(self._clean) > self._clean_max:
            self._clean.popitem(last=False)

    @property
    def overfull(self) -> bool:
        """Whether it is time to write out, at the next moment when that is convenient."""
        return len(self._dirty) > self._dirty_max

    def read(self, block: int) -> bytes:
        data = self._dirty.get(block)
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
        if self._dirty.get(block) is None:
            if self._clean.get(block) == data:
                return
            self._check(block)
            self._clean.pop(block, None)
        self._dirty[block] = data

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
        """Drop freed blocks, dirty or not."""
        if not self._dirty and not self._clean:
            return
        if count < len(self._dirty) + len(self._clean):
            for number in range(block, block + count):
                self._dirty.pop(number, None)
                self._clean.pop(number, None)
            return
        for known in (self._dirty, self._clean):
            for number in [number for number in known if block <= number < block + count]:
                del known[number]

    def write_out(self) -> None:
        """Write all dirty blocks. After a failure the unwritten ones are still dirty, and it may be tried again."""
        if not self._dirty:
            return
        self._before_write()
        run: list[int] = []
        for block in sorted(self._dirty):
            if run and (block != run[-1] + 1 or len(run) * self.block_bytes >= _RUN_BYTES_MAX):
                self._write_run(run)
                run = []
            run.append(block)
        self._write_run(run)

    def _write_run(self, run: list[int]) -> None:
        dirty = self._dirty
        self.device.pwrite(run[0] * self.block_bytes, b"".join([dirty[block] for block in run]))
        for block in run:
            self._keep(block, dirty.pop(block))

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
