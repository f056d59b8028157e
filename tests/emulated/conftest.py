"""Pools on devices in memory, for tests that look below the pool interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cowfs.blockdev import MemoryDevice
from cowfs.errors import MissingRequirement
from cowfs.faults.disk import FaultyDevice
from cowfs.pool import PoolStatus, PoolTable, UnreadableStatus
from cowfs.recording.journal import Journal, RecordingDevice
from cowfs.testing.blockdev import memory_device
from cowfs.testing.clock import ManualClock
from cowfs.testing.judges import require_clean
from cowfs.units import SECTOR_BYTES, Sectors
from cowfs_emulated import EmulatedPool, EmulatedThin

BLOCK_SECTORS = 128
BLOCK = BLOCK_SECTORS * SECTOR_BYTES


def readable(status: PoolStatus | UnreadableStatus) -> PoolStatus:
    assert isinstance(status, PoolStatus)
    return status


@dataclass
class Bench:
    """A pool on two recorded devices that can be made to fail; the data device starts full of old bytes."""

    data_blocks: int = 64
    metadata_blocks: int = 512
    features: dict[str, Any] = field(default_factory=dict)
    durable: bool = True

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.journal = Journal()
        self.metadata_store = MemoryDevice(self.metadata_blocks * 4096)
        self.data_store = memory_device(b"\xee" * (self.data_blocks * BLOCK))
        self.metadata = FaultyDevice(RecordingDevice(self.metadata_store, self.journal, "metadata"))
        self.data = FaultyDevice(RecordingDevice(self.data_store, self.journal, "data"))
        self.table = PoolTable(
            Sectors(self.data_blocks * BLOCK_SECTORS), "metadata", "data", Sectors(BLOCK_SECTORS), **self.features
        )
        self.pool = self.open()

    def open(self) -> EmulatedPool:
        return EmulatedPool(self.metadata, self.data, self.table, name="pool", clock=self.clock, durable=self.durable)

    def reopen(self) -> EmulatedPool:
        """A new process after a crash: what was written is there, what was not committed is not mapped."""
        self.metadata.heal()
        self.data.heal()
        self.pool = self.open()
        return self.pool

    def status(self, *, flush: bool = True) -> PoolStatus:
        return readable(self.pool.status(flush=flush))

    def thin(self, thin_id: int = 0, blocks: int = 32) -> EmulatedThin:
        if thin_id not in self.pool.thin_ids():
            self.pool.create_thin(thin_id)
        thin = self.pool.activate(f"thin-{thin_id}", thin_id, blocks * BLOCK_SECTORS)
        assert isinstance(thin, EmulatedThin)
        return thin

    def during(self, call: Callable[[], object]) -> list[tuple[str, str, int, int]]:
        """What a call does to the devices: (device, operation, offset, length)."""
        begin = len(self.journal.entries)
        call()
        return [(e.device, e.operation, e.offset, e.length) for e in self.journal.entries[begin:]]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches; in the end their pools are closed and their metadata is judged."""
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        names = {"data_blocks", "metadata_blocks", "durable"}
        own = {name: options.pop(name) for name in names & set(options)}
        benches.append(Bench(features=options, **own))
        return benches[-1]

    yield make
    for bench in benches:
        bench.metadata.heal()
        bench.data.heal()
        bench.pool.close()
        try:
            require_clean(bench.metadata_store, strict=True)
        except MissingRequirement as error:
            pytest.skip(str(error))


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
