"""Random operations on an emulated pool and on the plain model agree in data, figures and errors."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cowfs.blockdev import MemoryDevice
from cowfs.errors import MissingRequirement
from cowfs.pool import PoolMode, PoolTable, ThinStatus
from cowfs.testing.blockdev import memory_device
from cowfs.testing.clock import ManualClock
from cowfs.testing.judges import recount_findings, require_clean
from cowfs.testing.model import PoolModel
from cowfs.units import SECTOR_BYTES, Sectors
from cowfs_emulated import EmulatedPool

BLOCK_SECTORS = 128
BLOCK_BYTES = BLOCK_SECTORS * SECTOR_BYTES
THIN_BLOCKS = 24
METADATA_BLOCKS = 512

thin_ids = st.integers(0, 5)
picks = st.integers(0, 5)
offsets = st.integers(0, THIN_BLOCKS * BLOCK_BYTES - 1)
block_ranges = st.tuples(st.integers(0, THIN_BLOCKS - 1), st.integers(1, 6)).map(
    lambda pair: (pair[0] * BLOCK_BYTES, min(pair[1], THIN_BLOCKS - pair[0]) * BLOCK_BYTES)
)
byte_ranges = st.tuples(offsets, st.integers(1, 3 * BLOCK_BYTES)).map(
    lambda pair: (pair[0], min(pair[1], THIN_BLOCKS * BLOCK_BYTES - pair[0]))
)
ranges = st.one_of(block_ranges, byte_ranges)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.serial = 0

    @initialize(
        data_blocks=st.integers(4, 40),
        skip_zeroing=st.booleans(),
        error_policy=st.booleans(),
        passdown=st.booleans(),
    )
    def open_fresh(self, data_blocks: int, skip_zeroing: bool, error_policy: bool, passdown: bool) -> None:
        self.metadata = MemoryDevice(METADATA_BLOCKS * 4096)
        # Old bytes everywhere: whatever is provisioned must still read as zeros.
        self.data = memory_device(b"\xee" * (data_blocks * BLOCK_BYTES))
        self.table = PoolTable(
            Sectors(data_blocks * BLOCK_SECTORS),
            "metadata",
            "data",
            Sectors(BLOCK_SECTORS),
            skip_block_zeroing=skip_zeroing,
            error_if_no_space=error_policy,
            no_discard_passdown=not passdown,
        )
        self.model = PoolModel(data_blocks, BLOCK_BYTES)
        self.thins: dict[int, Any] = {}
        self.open()
        self.create_thin(0)
        self.write(0, (0, 3 * BLOCK_BYTES))

    def open(self) -> None:
        self.pool = EmulatedPool(self.metadata, self.data, self.table, name="pool", clock=self.clock)
        self.thins.clear()
        self.model.active.clear()

    def both(self, on_pool: Callable[[], object], on_model: Callable[[], object]) -> None:
        """Do it on both sides; they agree in the errno, or in success."""
        assert outcome(on_pool) == outcome(on_model)

    def message(self, on_pool: Callable[[], object], on_model: Callable[[], object]) -> None:
        """A message commits what was before it, also when it is refused itself."""
        self.model.commit()
        self.both(on_pool, on_model)

    def device(self, thin_id: int) -> Any:
        if thin_id not in self.thins:
            self.thins[thin_id] = self.pool.activate(f"thin-{thin_id}", thin_id, THIN_BLOCKS * BLOCK_SECTORS)
            self.model.active.add(thin_id)
        return self.thins[thin_id]

    def existing(self, pick: int) -> int:
        """One of the thins there are; the last one is kept, so that there always is one."""
        ids = sorted(self.model.state.thins)
        return ids[pick % len(ids)]

    def pattern(self, length: int) -> bytes:
        self.serial += 1
        return (self.serial.to_bytes(4, "big") * (length // 4 + 1))[:length]

    # --- messages

    @rule(thin_id=thin_ids)
    def create_thin(self, thin_id: int) -> None:
        self.message(lambda: self.pool.create_thin(thin_id), lambda: self.model.create_thin(thin_id))

    @rule(thin_id=thin_ids, origin_id=thin_ids)
    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self.message(
            lambda: self.pool.create_snap(thin_id, origin_id), lambda: self.model.create_snap(thin_id, origin_id)
        )

    @rule(thin_id=thin_ids, origin=picks)
    def snapshot(self, thin_id: int, origin: int) -> None:
        if thin_id not in self.model.state.thins:
            self.create_snap(thin_id, self.existing(origin))

    @rule(thin_id=thin_ids)
    def delete(self, thin_id: int) -> None:
        if list(self.model.state.thins) == [thin_id]:
            return
        self.message(lambda: self.pool.delete(thin_id), lambda: self.model.delete(thin_id))

    @rule(old=st.integers(0, 2), new=st.integers(0, 2))
    def set_transaction_id(self, old: int, new: int) -> None:
        self.message(lambda: self.pool.set_transaction_id(old, new), lambda: self.model.set_transaction_id(old, new))

    @rule()
    def reserve(self) -> None:
        self.message(self.pool.reserve_metadata_snap, self.model.reserve_metadata_snap)

    @rule()
    def release(self) -> None:
        self.message(self.pool.release_metadata_snap, self.model.release_metadata_snap)

    # --- data

    @rule(pick=picks, where=block_ranges)
    def write_blocks(self, pick: int, where: tuple[int, int]) -> None:
        self.write(pick, where)

    @rule(pick=picks, where=byte_ranges)
    def write(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        offset, length = where
        data = self.pattern(length)
        device = self.device(thin_id)
        self.both(lambda: device.pwrite(offset, data), lambda: self.model.write(thin_id, offset, data))

    @rule(pick=picks, where=ranges)
    def discard(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        self.device(thin_id).discard(*where)
        self.model.discard(thin_id, *where)

    @rule(pick=picks, where=ranges)
    def zero(self, pick: int, where: tuple[int, int]) -> None:
        """Partial blocks may need a fresh block when they are shared, so that is left out here."""
        thin_id = self.existing(pick)
        if not self.model.out_of_data_space:
            offset, length = where
            first, end = -(-offset // BLOCK_BYTES) * BLOCK_BYTES, (offset + length) // BLOCK_BYTES * BLOCK_BYTES
            if first < end:
                self.device(thin_id).zero(first, end - first)
                self.model.discard(thin_id, first, end - first)

    @rule(pick=picks, where=ranges)
    def read(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        assert self.device(thin_id).pread(*where) == self.model.read(thin_id, *where)

    @rule(thin_id=thin_ids)
    def flush(self, thin_id: int) -> None:
        if thin_id in self.thins:
            self.thins[thin_id].flush()
            # A flush of a thin that did not change commits nothing of the others.
            if not self.pool._engine.metadata.changed:
                self.model.commit()

    @rule(thin_id=thin_ids)
    def close_thin(self, thin_id: int) -> None:
        if thin_id in self.thins:
            self.thins.pop(thin_id).close()
            self.model.active.discard(thin_id)

    # --- commits, crashes, sizes

    @rule()
    def commit(self) -> None:
        self.pool.commit()
        self.model.commit()

    @rule()
    def wait(self) -> None:
        self.clock.advance(1.5)
        self.pool.tick()
        assert not self.pool._engine.metadata.changed
        self.pool.commit()
        self.model.commit()

    @rule()
    def suspend_and_resume(self) -> None:
        self.pool.suspend()
        self.model.commit()
        self.pool.resume()

    @rule()
    def crash_and_reopen(self) -> None:
        self.metadata = memory_device(self.metadata.pread(0, self.metadata.size_bytes))
        self.data = memory_device(self.data.pread(0, self.data.size_bytes))
        self.model.crash()
        assert recount_findings(self.metadata, strict=True) == []
        self.open()

    @rule()
    def close_and_reopen(self) -> None:
        self.pool.close()
        self.model.commit()
        self.model.out_of_data_space = False
        assert recount_findings(self.metadata, strict=True) == []
        self.open()

    @precondition(lambda self: self.model.state.data_blocks < 60)
    @rule(blocks=st.integers(1, 8))
    def grow_data(self, blocks: int) -> None:
        total = self.model.state.data_blocks + blocks
        self.data.resize(total * BLOCK_BYTES)
        self.table = self.table.replace(length_sectors=Sectors(total * BLOCK_SECTORS))
        self.pool.reload(self.table)
        self.pool.resume()
        self.model.grow(total)

    @rule()
    def shrinking_data_is_refused(self) -> None:
        self.pool.reload(self.table.replace(length_sectors=Sectors((self.model.state.data_blocks - 1) * BLOCK_SECTORS)))
        assert outcome(self.pool.resume) == errno.EINVAL
        self.pool.reload(self.table)
        self.pool.resume()
        self.model.commit()
        self.model.out_of_data_space = False

    @precondition(lambda self: self.metadata.size_bytes < 2 * METADATA_BLOCKS * 4096)
    @rule(blocks=st.integers(1, 64))
    def grow_metadata(self, blocks: int) -> None:
        self.metadata.resize(self.metadata.size_bytes + blocks * 4096)
        self.pool.suspend()
        self.pool.resume()
        self.model.commit()
        assert self.pool.status().total_metadata_blocks == self.metadata.size_bytes // 4096

    @rule(thin_id=thin_ids, blocks=st.integers(1, THIN_BLOCKS - 1))
    def resize_thin(self, thin_id: int, blocks: int) -> None:
        """A shorter table hides the tail; a longer one shows it again."""
        if thin_id in self.thins:
            device = self.thins[thin_id]
            device.resize(blocks * BLOCK_SECTORS)
            assert outcome(lambda: device.pread(blocks * BLOCK_BYTES, 1)) == errno.EINVAL
            device.resize(THIN_BLOCKS * BLOCK_SECTORS)

    # --- what always holds

    @invariant()
    def figures_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        state = self.model.state
        status = self.pool.status(flush=False)
        assert status.used_data_blocks == self.model.used_blocks()
        assert status.total_data_blocks == state.data_blocks
        assert status.transaction_id == state.transaction_id
        assert (status.held_root is not None) == state.held
        assert status.mode == (PoolMode.OUT_OF_DATA_SPACE if self.model.out_of_data_space else PoolMode.WRITE)
        assert self.pool.thin_ids() == sorted(state.thins)
        for thin_id, thin in state.thins.items():
            highest = thin.highest()
            assert self.pool.thin_status(thin_id) == ThinStatus(
                Sectors(len(thin.mappings) * BLOCK_SECTORS),
                None if highest is None else Sectors((highest + 1) * BLOCK_SECTORS - 1),
            )

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        size = THIN_BLOCKS * BLOCK_BYTES
        for thin_id in self.model.state.thins:
            assert self.device(thin_id).pread(0, size) == self.model.read(thin_id, 0, size)
        self.pool.close()
        try:
            require_clean(self.metadata, strict=True)
        except MissingRequirement as error:
            pytest.skip(str(error))


def outcome(call: Callable[[], object]) -> int:
    """0, or the errno."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


# Without shrinking: a step is cheap, but a minute of them is more than a failing test should take. Add Phase.shrink to
# look into a failure.
PoolMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestPoolAgreesWithModel = PoolMachine.TestCase
