"""Random operations on an emulated pool and on the plain model agree in data, figures and errors."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

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
from tests.conftest import profile
from tests.emulated.conftest import readable

BLOCK_SECTORS = 128
BLOCK_BYTES = BLOCK_SECTORS * SECTOR_BYTES
THIN_BLOCKS = 24
METADATA_BLOCKS = 512
REPEAT_WITH = """repeat with:
from tests.emulated.test_state_machine import PoolMachine
machine = PoolMachine()"""

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

_Step = TypeVar("_Step", bound=Callable[..., None])


def recorded(method: _Step) -> _Step:
    """Record what is done; an error then says how to do it again, also one that does not happen a second time."""

    @functools.wraps(method)
    def run(self: PoolMachine, *positional: Any, **named: Any) -> None:
        if not self.in_step:
            words = ", ".join(f"{name}={value!r}" for name, value in named.items())
            self.steps.append(f"machine.{method.__name__}({words})")
        with self.repeatable():
            method(self, *positional, **named)

    return run  # type: ignore[return-value]


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.serial = 0
        self.steps: list[str] = []
        self.in_step = False

    @contextlib.contextmanager
    def repeatable(self) -> Iterator[None]:
        """One step; its error carries a program that does all steps again."""
        if self.in_step:
            yield
            return
        self.in_step = True
        try:
            yield
        except Exception as error:
            error.add_note("\n".join([REPEAT_WITH, *self.steps]))
            raise
        finally:
            self.in_step = False

    @initialize(
        data_blocks=st.integers(4, 40),
        skip_zeroing=st.booleans(),
        error_policy=st.booleans(),
        passdown=st.booleans(),
    )
    @recorded
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
    @recorded
    def create_thin(self, thin_id: int) -> None:
        self.both(lambda: self.pool.create_thin(thin_id), lambda: self.model.create_thin(thin_id))

    @rule(thin_id=thin_ids, origin_id=thin_ids)
    @recorded
    def create_snap(self, thin_id: int, origin_id: int) -> None:
        self.both(lambda: self.pool.create_snap(thin_id, origin_id), lambda: self.model.create_snap(thin_id, origin_id))

    @rule(thin_id=thin_ids, origin=picks)
    @recorded
    def snapshot(self, thin_id: int, origin: int) -> None:
        if thin_id not in self.model.state.thins:
            self.create_snap(thin_id, self.existing(origin))

    @rule(thin_id=thin_ids)
    @recorded
    def delete(self, thin_id: int) -> None:
        if list(self.model.state.thins) == [thin_id]:
            return
        self.both(lambda: self.pool.delete(thin_id), lambda: self.model.delete(thin_id))

    @rule(old=st.integers(0, 2), new=st.integers(0, 2))
    @recorded
    def set_transaction_id(self, old: int, new: int) -> None:
        self.both(lambda: self.pool.set_transaction_id(old, new), lambda: self.model.set_transaction_id(old, new))

    @rule()
    @recorded
    def reserve(self) -> None:
        self.both(self.pool.reserve_metadata_snap, self.model.reserve_metadata_snap)

    @rule()
    @recorded
    def release(self) -> None:
        self.both(self.pool.release_metadata_snap, self.model.release_metadata_snap)

    # --- data

    @rule(pick=picks, where=block_ranges)
    @recorded
    def write_blocks(self, pick: int, where: tuple[int, int]) -> None:
        self.write(pick, where)

    @rule(pick=picks, where=byte_ranges)
    @recorded
    def write(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        offset, length = where
        data = self.pattern(length)
        device = self.device(thin_id)
        self.both(lambda: device.pwrite(offset, data), lambda: self.model.write(thin_id, offset, data))

    @rule(pick=picks, where=ranges)
    @recorded
    def discard(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        self.device(thin_id).discard(*where)
        self.model.discard(thin_id, *where)

    @rule(pick=picks, where=ranges)
    @recorded
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
    @recorded
    def read(self, pick: int, where: tuple[int, int]) -> None:
        thin_id = self.existing(pick)
        assert self.device(thin_id).pread(*where) == self.model.read(thin_id, *where)

    @rule(thin_id=thin_ids)
    @recorded
    def flush(self, thin_id: int) -> None:
        if thin_id in self.thins:
            self.thins[thin_id].flush()
            # A flush of a thin that did not change commits nothing of the others.
            if not self.pool._engine.metadata.changed:
                self.model.commit()

    @rule(thin_id=thin_ids)
    @recorded
    def close_thin(self, thin_id: int) -> None:
        if thin_id in self.thins:
            self.thins.pop(thin_id).close()
            self.model.active.discard(thin_id)

    # --- commits, crashes, sizes

    @rule()
    @recorded
    def commit(self) -> None:
        self.pool.commit()
        self.model.commit()

    @rule()
    @recorded
    def wait(self) -> None:
        self.clock.advance(1.5)
        self.pool.tick()
        assert not self.pool._engine.metadata.changed
        self.pool.commit()
        self.model.commit()

    @rule()
    @recorded
    def suspend_and_resume(self) -> None:
        self.pool.suspend()
        self.model.commit()
        self.pool.resume()

    @rule()
    @recorded
    def crash_and_reopen(self) -> None:
        self.metadata = memory_device(self.metadata.pread(0, self.metadata.size_bytes))
        self.data = memory_device(self.data.pread(0, self.data.size_bytes))
        self.model.crash()
        assert recount_findings(self.metadata, strict=True) == []
        self.open()

    @rule()
    @recorded
    def close_and_reopen(self) -> None:
        self.pool.close()
        self.model.commit()
        self.model.out_of_data_space = False
        assert recount_findings(self.metadata, strict=True) == []
        self.open()

    @precondition(lambda self: self.model.state.data_blocks < 60)
    @rule(blocks=st.integers(1, 8))
    @recorded
    def grow_data(self, blocks: int) -> None:
        total = self.model.state.data_blocks + blocks
        self.data.resize(total * BLOCK_BYTES)
        self.table = self.table.replace(length_sectors=Sectors(total * BLOCK_SECTORS))
        self.pool.reload(self.table)
        self.pool.resume()
        self.model.grow(total)

    @rule()
    @recorded
    def shrinking_data_is_refused(self) -> None:
        self.pool.reload(self.table.replace(length_sectors=Sectors((self.model.state.data_blocks - 1) * BLOCK_SECTORS)))
        assert outcome(self.pool.resume) == errno.EINVAL
        self.pool.reload(self.table)
        self.pool.resume()
        self.model.commit()
        self.model.out_of_data_space = False

    @precondition(lambda self: self.metadata.size_bytes < 2 * METADATA_BLOCKS * 4096)
    @rule(blocks=st.integers(1, 64))
    @recorded
    def grow_metadata(self, blocks: int) -> None:
        self.metadata.resize(self.metadata.size_bytes + blocks * 4096)
        self.pool.suspend()
        self.pool.resume()
        self.model.commit()
        assert readable(self.pool.status()).total_metadata_blocks == self.metadata.size_bytes // 4096

    @rule(thin_id=thin_ids, blocks=st.integers(1, THIN_BLOCKS - 1))
    @recorded
    def resize_thin(self, thin_id: int, blocks: int) -> None:
        """A shorter table hides the tail; a longer one shows it again."""
        if thin_id in self.thins:
            device = self.thins[thin_id]
            device.resize(blocks * BLOCK_SECTORS)
            assert outcome(lambda: device.pread(blocks * BLOCK_BYTES, 1)) == errno.EINVAL
            device.resize(THIN_BLOCKS * BLOCK_SECTORS)

    # --- what always holds

    @invariant()
    @recorded
    def figures_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        state = self.model.state
        status = readable(self.pool.status(flush=False))
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

    @recorded
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
    max_examples=max(100, profile().max_examples),
    stateful_step_count=max(60, profile().stateful_step_count),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
TestPoolAgreesWithModel = PoolMachine.TestCase


def test_an_error_tells_how_to_repeat_it() -> None:
    machine = PoolMachine()
    machine.open_fresh(data_blocks=9, skip_zeroing=True, error_policy=True, passdown=False)
    machine.snapshot(thin_id=3, origin=0)
    machine.model.state.transaction_id = 5
    with pytest.raises(AssertionError) as caught:
        machine.figures_agree()
    (note,) = caught.value.__notes__
    *_, first, second, last = note.splitlines()
    assert first == "machine.open_fresh(data_blocks=9, skip_zeroing=True, error_policy=True, passdown=False)"
    assert (second, last) == ("machine.snapshot(thin_id=3, origin=0)", "machine.figures_agree()")
    again: dict[str, Any] = {}
    exec("\n".join(note.splitlines()[1:-1]), again)
    assert again["machine"].model.state.thins.keys() == {0, 3}
    again["machine"].teardown()
