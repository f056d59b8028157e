"""Counters equal arithmetic, for requests whose effects are known, and what the devices below were seen to do."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from cowfs.pool import CountingPool, PoolTable, ThinCounters, load_backend
from cowfs.units import SECTOR_BYTES, Sectors
from tests.emulated.conftest import BLOCK, Bench


def counted(bench: Bench, thin_id: int = 0) -> dict[str, int]:
    """The counters of a thin that are not 0."""
    found = msgspec.to_builtins(bench.pool.counters().thins[thin_id])
    assert set(found) == set(ThinCounters.__struct_fields__)  # nothing that is not known
    return {name: value for name, value in found.items() if value}


def test_provisioning(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (4 * BLOCK))
    assert counted(bench) == {"writes": 1, "written_bytes": 4 * BLOCK, "provisioned_blocks": 4}
    thin.pwrite(5 * BLOCK + 512, b"a" * BLOCK)  # two new blocks, both in part
    assert counted(bench) == {
        "writes": 2,
        "written_bytes": 5 * BLOCK,
        "provisioned_blocks": 6,
        "zeroed_bytes": 2 * BLOCK,
    }
    thin.pwrite(0, b"b" * 4096)  # in place
    assert counted(bench)["provisioned_blocks"] == 6
    assert counted(bench)["written_bytes"] == 5 * BLOCK + 4096


def test_break_sharing(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (8 * BLOCK))
    bench.pool.create_snap(1, 0)
    thin.pwrite(0, b"b" * (2 * BLOCK))  # whole: nothing is copied
    assert counted(bench)["copied_blocks"] == 2
    assert "copied_bytes" not in counted(bench)
    thin.pwrite(4 * BLOCK + 4096, b"c" * 4096)
    assert counted(bench)["copied_blocks"] == 3
    assert counted(bench)["copied_bytes"] == BLOCK
    pool = bench.pool.counters().pool
    assert pool.data_written_bytes == 10 * BLOCK + 4096 + BLOCK
    assert pool.write_amplification().copied == BLOCK / (10 * BLOCK + 4096)
    assert pool.write_amplification().zeroed == 0


def test_reads_discards_flushes(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (8 * BLOCK))
    thin.pread(512, 4096)
    thin.pread(0, 16 * BLOCK)
    thin.discard(BLOCK // 2, 4 * BLOCK)  # three whole blocks
    thin.zero(6 * BLOCK, 4 * BLOCK)  # of which two are mapped
    thin.flush()
    found = counted(bench)
    assert (found["reads"], found["read_bytes"]) == (2, 4096 + 16 * BLOCK)
    assert (found["discards"], found["discarded_bytes"], found["unmapped_blocks"]) == (2, 8 * BLOCK, 5)
    assert (found["writes"], found["flushes"]) == (1, 1)
    assert bench.pool.counters().pool.freed_blocks == 5


def test_what_changes_no_mapping_writes_no_metadata(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (4 * BLOCK))
    thin.flush()
    before = bench.pool.counters().pool
    thin.pwrite(512, b"b" * (2 * BLOCK))
    thin.pread(0, 16 * BLOCK)
    thin.discard(BLOCK // 2, BLOCK)  # no whole block
    thin.flush()
    bench.pool.commit()
    after = bench.pool.counters().pool
    assert after.metadata_written_bytes == before.metadata_written_bytes
    assert after.commits == before.commits
    assert after.data_flushes == (before.data_flushes or 0) + 1


def test_the_pool_is_the_sum_also_of_deleted_thins(bench: Bench) -> None:
    first, second = bench.thin(), bench.thin(1)
    first.pwrite(0, b"a" * BLOCK)
    second.pwrite(0, b"a" * (3 * BLOCK))
    second.close()
    again = bench.pool.activate("again", 1, 1 << 12)
    again.pwrite(0, b"b" * BLOCK)
    assert counted(bench, 1)["written_bytes"] == 4 * BLOCK
    again.close()
    bench.pool.delete(1)
    counters = bench.pool.counters()
    assert set(counters.thins) == {0}
    assert counters.pool.requests.written_bytes == 5 * BLOCK
    assert counters.pool.requests.provisioned_blocks == 4
    assert counters.pool.freed_blocks == 3


def test_what_reaches_the_devices(bench: Bench, rng: random.Random) -> None:
    """The counters of random requests are what was seen of the devices meanwhile."""
    thin = bench.thin()
    bench.pool.commit()

    def work() -> None:
        for step in range(200):
            thin.pwrite(rng.randrange(20 * BLOCK), rng.randbytes(rng.randrange(1, 3 * BLOCK)))
            if step == 100:
                bench.pool.create_snap(step, 0)
        thin.flush()

    before = bench.pool.counters().pool
    seen = bench.during(work)
    after = bench.pool.counters().pool

    def total(device: str, *operations: str) -> int:
        return sum(length for where, operation, _, length in seen if where == device and operation in operations)

    def risen(field: str) -> int:
        return int(getattr(after, field)) - int(getattr(before, field))

    assert risen("data_written_bytes") == total("data", "write", "copy", "zero")
    assert risen("metadata_written_bytes") == total("metadata", "write") > 0
    assert risen("data_flushes") == sum(where == "data" and operation == "flush" for where, operation, _, _ in seen)
    superblocks = sum(where == "metadata" and operation == "write" and not at for where, operation, at, _ in seen)
    assert risen("commits") == superblocks


def test_what_the_host_counted(tmp_path: Path, rng: random.Random) -> None:
    """The bytes that the counters report are those that this process handed to the kernel: to the byte."""
    for name, size in (("data", 64 * BLOCK), ("metadata", 4 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    sectors = Sectors(BLOCK // SECTOR_BYTES)
    table = PoolTable(Sectors(64 * sectors), str(tmp_path / "metadata"), str(tmp_path / "data"), sectors)
    with closing(load_backend("emulated").open_pool("counted", table, durable=False)) as pool:
        assert isinstance(pool, CountingPool)
        pool.create_thin(0)
        thin = pool.activate("thin", 0, 24 * sectors)
        pool.commit()
        before, host_before = pool.counters().pool, written_by_this_process()
        for step in range(120):
            thin.pwrite(rng.randrange(20 * BLOCK), rng.randbytes(rng.randrange(1, 3 * BLOCK)))
            if step == 60:
                pool.create_snap(1, 0)
        pool.commit()
        host = written_by_this_process() - host_before
        after = pool.counters().pool
    counted = [
        (last or 0) - (first or 0)
        for first, last in (
            (before.data_written_bytes, after.data_written_bytes),
            (before.metadata_written_bytes, after.metadata_written_bytes),
        )
    ]
    assert after.requests.copied_bytes
    assert after.requests.zeroed_bytes
    assert sum(counted) == host
    amplification = after.write_amplification()
    causes = (1, amplification.copied, amplification.zeroed, amplification.metadata)
    assert amplification.total == pytest.approx(sum(cause or 0 for cause in causes))


def written_by_this_process() -> int:
    """By write(2) and its like, copy_file_range(2) too: proc(5), wchar."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar:"))
    return int(line.split()[1])
