"""Scripts of pool operations: text that plays the same on every backend, and its outcomes.

A script begins with the geometry and continues with one operation a line. Messages are the kernel's own words; thins
are named by id, activated when first used, and have the geometry's length until they are resized:

    geometry block=128 data=40 metadata=256 thin=3088 low_water=4 error_if_no_space skip_block_zeroing
    create_thin 1
    write 1 OFFSET LENGTH SEED        LENGTH bytes made from SEED
    read 1 OFFSET LENGTH              outcome: a digest
    discard 1 OFFSET LENGTH           flush 1          suspend 1        resume 1
    resize 1 SECTORS                  deactivate 1     thin_status 1    extents 1
    exhaust 1 SEED                    writes block by block until the pool is full; outcome: how many were written
    exhaust_metadata ID               creates thins from this id on until refused; outcome: how many there were
    create_snap 2 1                   delete 2         set_transaction_id 0 7
    reserve_metadata_snap             release_metadata_snap
    status                            thin_ids         events           suspend_pool     resume_pool
    grow_data BLOCKS                  grow_metadata BLOCKS              reopen           commit
    contents                          outcome: a digest of each thin, to a block after the last one that is mapped

The kernel commits by its clock, too: after a change that comes more than a second after its worker's last commit. So
that scripts do not depend on it, the first change of each transaction is flushed, which sets that clock back, and
`Player.open_seconds` is how long ago; the transaction has to end before a second is over. With `commit_each` in the
geometry every write and discard is followed by a commit instead.

The outcome of an operation is a line too: what it gave, or `E` and the name of the errno.

    python -m cowfs.testing.script --backend dmthin DIRECTORY...

plays the file `script` of each directory on the pool files `metadata` and `data` beside it, and writes `outcomes`.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from cowfs.errors import OutOfDataSpace, PoolModeError, UsageError
from cowfs.pool import (
    Backend,
    Pool,
    PoolMode,
    PoolStatus,
    PoolTable,
    ThinDevice,
    ThinStatus,
    UnreadableStatus,
    load_backend,
)
from cowfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES, Sectors

_READ_BYTES = 1 << 16
_WRITE_BYTES = 1 << 20  # what a kernel takes in one request, and asks for all blocks of before it maps the first
# What leaves a transaction open; everything else commits, if it is carried out.
_LEAVING_OPEN = ("write", "discard", "exhaust", "read", "flush", "events", "deactivate", "suspend", "resume", "resize")
_EXHAUST_COMMIT_BLOCKS = 8
_NOISE = memoryview(random.Random("cowfs script").randbytes(4 << 20))  # noqa: S311
_NOISE_STEP_BYTES = 4099


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and features of a script's pool: blocks for `data` and `metadata`, sectors for `block` and `thin`."""

    block: int = 128
    data: int = 40
    metadata: int = 256
    thin: int = 24 * 128
    low_water: int = 0
    skip_block_zeroing: bool = False
    ignore_discard: bool = False
    no_discard_passdown: bool = True
    error_if_no_space: bool = True
    commit_each: bool = False

    def format(self) -> str:
        words = ["geometry"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is True:
                words.append(field.name)
            elif value is not False:
                words.append(f"{field.name}={value}")
        return " ".join(words)

    @classmethod
    def parse(cls, line: str) -> Geometry:
        """Raises UsageError when the line is not a geometry."""
        head, *words = line.split()
        pairs = dict(word.partition("=")[::2] for word in words)
        flags = [field.name for field in fields(cls) if field.type == "bool"]
        sizes = [field.name for field in fields(cls) if field.type == "int"]
        try:
            if head != "geometry" or set(pairs) - {*flags, *sizes}:
                raise ValueError
            values: dict[str, Any] = {name: int(pairs[name]) for name in sizes if name in pairs}
        except ValueError:
            raise UsageError(f"'{line}' is not the geometry that a script begins with") from None
        return cls(**values, **{name: name in pairs for name in flags})

    def table(self, directory: Path) -> PoolTable:
        return PoolTable(
            Sectors(self.data * self.block),
            str(directory / "metadata"),
            str(directory / "data"),
            Sectors(self.block),
            self.low_water,
            skip_block_zeroing=self.skip_block_zeroing,
            ignore_discard=self.ignore_discard,
            no_discard_passdown=self.no_discard_passdown,
            error_if_no_space=self.error_if_no_space,
        )


def make_files(directory: Path, geometry: Geometry) -> None:
    """Empty pool files in a new directory."""
    directory.mkdir(parents=True)
    for name, size in (
        ("metadata", geometry.metadata * METADATA_BLOCK_BYTES),
        ("data", geometry.data * geometry.block * SECTOR_BYTES),
    ):
        with (directory / name).open("wb") as file:
            file.truncate(size)


class Player:
    """Plays a script on a pool in a directory, which it opens; `close` closes it.

    Args:
        clock: seconds, of the kind by which the backend commits.
    """

    def __init__(
        self,
        backend: Backend,
        directory: Path,
        geometry: Geometry,
        *,
        name: str = "script-pool",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._geometry = geometry
        self._name = name
        data_blocks = (directory / "data").stat().st_size // (geometry.block * SECTOR_BYTES)
        self._table = geometry.table(directory).replace(length_sectors=Sectors(data_blocks * geometry.block))
        self._active: dict[int, ThinDevice] = {}
        self._suspended = False
        self._clock = clock
        self._set_back: float | None = None  # when the backend's clock was, in this transaction
        self.longest_open_seconds = 0.0
        self._room = 0  # data blocks that can be allocated, at least; never too many, since nothing but `_write` does
        self.pool = self._open()

    def _open(self) -> Pool:
        self._suspended = False
        return self._backend.open_pool(self._name, self._table)

    def play_all(self, lines: Iterable[str]) -> list[str]:
        return [self.play(line) for line in lines]

    def play(self, line: str) -> str:
        """Carry out one operation; its outcome."""
        verb, *words = line.split()
        operation = getattr(self, f"_do_{verb}", None)
        outcome = "ok"
        try:
            if operation is not None:
                outcome = str(operation(*map(int, words)) or "ok")
            else:
                self.pool.message(line)
        except OSError as error:
            return "E " + errno.errorcode.get(error.errno or 0, "unknown")
        if verb not in _LEAVING_OPEN:
            self._set_back = None
        return outcome

    @property
    def open_seconds(self) -> float:
        """How long the transaction is open; 0 when it holds no change.

        `longest_open_seconds` is the most that this was after a change: with a second or more, the backend may have
        committed by its clock.
        """
        return 0.0 if self._set_back is None else self._clock() - self._set_back

    def close(self) -> None:
        self._active.clear()
        self.pool.close()

    def _thin(self, thin_id: int) -> ThinDevice:
        if thin_id not in self._active:
            self._active[thin_id] = self.pool.activate(f"thin-{thin_id}", thin_id, self._geometry.thin)
        return self._active[thin_id]

    # ------------------------------------------------------------------------------------------ thins

    def _do_write(self, thin_id: int, offset: int, length: int, seed: int) -> None:
        self._write(self._thin(thin_id), offset, pattern(seed, length))

    def _write(self, thin: ThinDevice, offset: int, data: memoryview) -> None:
        """In large pieces where there is room, else block by block with a commit before each: how much of a failed
        write is done is not specified, nor how soon a full pool finds freed blocks.
        """
        end = offset + len(data)
        blocks = list(_pieces(offset, end, thin.block_bytes))
        if self._has_room(len(blocks)):
            with suppress(OSError):
                for begin, piece_end in _pieces(
                    offset, end, max(1, _WRITE_BYTES // thin.block_bytes) * thin.block_bytes
                ):
                    with self._change(thin):
                        thin.pwrite(begin, data[begin - offset : piece_end - offset])
                return
        failures = []
        for begin, piece_end in blocks:
            self._commit()
            try:
                with self._change(thin):
                    thin.pwrite(begin, data[begin - offset : piece_end - offset])
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _has_room(self, blocks: int) -> bool:
        """Whether so many data blocks can surely be allocated; commits when that is the way to find out."""
        if self._room < blocks and not self._suspended:
            status = self.pool.status()
            if not isinstance(status, UnreadableStatus):
                self._room = status.total_data_blocks - status.used_data_blocks
        self._room -= blocks
        return self._room >= 0

    @contextmanager
    def _change(self, thin: ThinDevice) -> Iterator[None]:
        """Around a change of a thin: the first one of a transaction is flushed."""
        if self._geometry.commit_each:
            yield
            self.pool.commit()
            return
        if self._set_back is None:
            begin, before = self._clock(), self._superblock()
            try:
                yield
            except OSError:
                self.pool.commit()
                raise
            status = self.pool.status(flush=False)
            if not isinstance(status, PoolStatus) or status.mode is not PoolMode.WRITE:
                self.pool.commit()  # which does not set the clock back
                return
            thin.flush()
            if self._superblock() != before:  # else it had nothing to commit
                self._set_back = begin
        else:
            yield
        self.longest_open_seconds = max(self.longest_open_seconds, self.open_seconds)

    def _superblock(self) -> bytes:
        with open(self._table.metadata_device, "rb", buffering=0) as file:
            return file.read(METADATA_BLOCK_BYTES)

    def _commit(self) -> None:
        self.pool.commit()
        self._set_back = None

    def _do_exhaust(self, thin_id: int, seed: int) -> str:
        thin = self._thin(thin_id)
        for written, begin in enumerate(range(0, thin.size_bytes, thin.block_bytes)):
            if written % _EXHAUST_COMMIT_BLOCKS == 0:
                self._commit()
            try:
                self._write(thin, begin, pattern(seed, min(thin.block_bytes, thin.size_bytes - begin)))
            except OutOfDataSpace:
                return f"{written} blocks"
        return "fits"

    def _do_read(self, thin_id: int, offset: int, length: int) -> str:
        return _digest(self._thin(thin_id).pread(offset, length))

    def _do_discard(self, thin_id: int, offset: int, length: int) -> None:
        thin = self._thin(thin_id)
        with self._change(thin):
            thin.discard(offset, length)

    def _do_flush(self, thin_id: int) -> None:
        self._thin(thin_id).flush()

    def _do_suspend(self, thin_id: int) -> None:
        self._thin(thin_id).suspend()

    def _do_resume(self, thin_id: int) -> None:
        self._thin(thin_id).resume()

    def _do_resize(self, thin_id: int, length_sectors: int) -> None:
        self._thin(thin_id).resize(length_sectors)

    def _do_deactivate(self, thin_id: int) -> None:
        thin = self._active.pop(thin_id, None)
        if thin is not None:
            thin.close()

    def _do_thin_status(self, thin_id: int) -> str:
        self.pool.commit()  # some backends must commit to tell
        status = self.pool.thin_status(thin_id)
        return status.value if isinstance(status, UnreadableStatus) else status.format()

    def _do_extents(self, thin_id: int) -> str:
        self.pool.commit()
        found = self._thin(thin_id).extents()
        return " ".join(f"{extent.vblock}:{extent.dblock}+{extent.length}" for extent in found) or "none"

    # ------------------------------------------------------------------------------------------ the pool

    def _do_status(self) -> str:
        if self._suspended:
            # It does not commit then, and shows what the kernel's refused messages left in its open transaction.
            return "suspended"
        status = self.pool.status()
        if isinstance(status, UnreadableStatus):
            return status.value
        if status.held_root is not None:  # which block it is, is the backend's own choice
            status = msgspec.structs.replace(status, held_root=1)
        return status.format()

    def _do_events(self) -> str:
        return str(self.pool.event_counter)

    def _do_commit(self) -> None:
        self._commit()

    def _do_exhaust_metadata(self, first_id: int) -> str:
        for thin_id in count(first_id):
            try:
                self.pool.create_thin(thin_id)
            except PoolModeError:
                return f"{thin_id - first_id} thins"
        raise AssertionError

    def _do_thin_ids(self) -> str:
        self.pool.commit()
        return " ".join(map(str, self.pool.thin_ids())) or "none"

    def _do_suspend_pool(self) -> None:
        self.pool.suspend()
        self._suspended = True

    def _do_resume_pool(self) -> None:
        self.pool.resume()
        self._suspended = False

    def _do_grow_data(self, blocks: int) -> None:
        """Grow by `blocks`."""
        length = self._table.length_sectors + blocks * self._geometry.block
        os.truncate(self._table.data_device, length * SECTOR_BYTES)
        self._table = self._table.replace(length_sectors=Sectors(length))
        self.pool.reload(self._table)
        self._do_resume_pool()

    def _do_grow_metadata(self, blocks: int) -> None:
        size = os.stat(self._table.metadata_device).st_size
        os.truncate(self._table.metadata_device, size + blocks * METADATA_BLOCK_BYTES)
        self.pool.suspend()
        self._do_resume_pool()

    def _do_reopen(self) -> None:
        self.close()
        self.pool = self._open()
        # A pool whose metadata is used up opens rw, and a commit makes it ro; a write before that leaks a block, unless
        # the backend declares otherwise.
        self.pool.commit()

    def _do_contents(self) -> str:
        self.pool.commit()
        return " ".join(f"{thin_id}={self._whole(thin_id)}" for thin_id in self.pool.thin_ids()) or "none"

    def _whole(self, thin_id: int) -> str:
        """Digest of a thin, read through an active device of its own."""
        status = self.pool.thin_status(thin_id)
        highest = status.highest_mapped_sector if isinstance(status, ThinStatus) else self._geometry.thin
        if highest is None:
            return "unmapped"
        device = self.pool.activate(f"whole-{thin_id}", thin_id, self._geometry.thin, read_only=True)
        digest = hashlib.sha256()
        try:
            end = min((highest + 1 + self._geometry.block) * SECTOR_BYTES, device.size_bytes)
            for offset in range(0, end, _READ_BYTES):
                digest.update(device.pread(offset, min(_READ_BYTES, end - offset)))
        finally:
            device.close()
        return digest.hexdigest()[:16]


def pattern(seed: int, length: int) -> memoryview:
    """`length` bytes that tell which write they come from: a stretch of noise, which repeats after some MiB."""
    begin = seed * _NOISE_STEP_BYTES % (len(_NOISE) // 2)
    if length <= len(_NOISE) - begin:
        return _NOISE[begin : begin + length]  # fresh memory is dear in a guest
    return memoryview(bytes(_NOISE[begin:]) * (length // (len(_NOISE) - begin) + 1))[:length]


def _pieces(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """A range cut at the multiples of a size."""
    while begin < end:
        piece_end = min(end, (begin // size + 1) * size)
        yield begin, piece_end
        begin = piece_end


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def play_directory(backend: Backend, directory: Path) -> list[str]:
    """Play a directory's `script` on its pool files; the outcomes, also written line by line to `outcomes`."""
    head, *lines = (directory / "script").read_text().splitlines()
    player = Player(backend, directory, Geometry.parse(head), name=f"{directory.name}-pool")
    outcomes = []
    try:
        with (directory / "outcomes").open("w", buffering=1) as file:
            for line in lines:
                outcomes.append(player.play(line))
                print(outcomes[-1], file=file)
    finally:
        player.close()
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cowfs.testing.script", description=__doc__)
    parser.add_argument("--backend", required=True)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    backend = load_backend(options.backend)
    for directory in options.directories:
        print(directory, len(play_directory(backend, directory)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
