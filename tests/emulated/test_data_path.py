"""What a request does to the two devices: how many I/O operations, in which order, and nothing needless."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from functools import partial

import pytest

from cowfs.pool import Extent
from tests.emulated.conftest import BLOCK, Bench

MakeBench = Callable[..., Bench]


def data_operations(bench: Bench, call: Callable[[], object]) -> list[tuple[str, int, int]]:
    return [(operation, offset, length) for device, operation, offset, length in bench.during(call) if device == "data"]


def test_a_sequential_write_to_new_blocks_is_one_write_and_no_metadata_io(bench: Bench) -> None:
    thin = bench.thin()
    assert bench.during(lambda: thin.pwrite(0, b"a" * (16 * BLOCK))) == [("data", "write", 0, 16 * BLOCK)]


def test_an_overwrite_is_one_write(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (16 * BLOCK))
    assert bench.during(lambda: thin.pwrite(BLOCK + 5, b"b" * (3 * BLOCK))) == [("data", "write", BLOCK + 5, 3 * BLOCK)]


def test_only_the_partial_blocks_at_the_ends_of_a_new_run_are_zeroed(bench: Bench) -> None:
    thin = bench.thin()
    operations = data_operations(bench, lambda: thin.pwrite(BLOCK // 2, b"a" * (4 * BLOCK)))
    half = BLOCK // 2
    assert operations == [("zero", 0, BLOCK), ("zero", 4 * BLOCK, BLOCK), ("write", half, 4 * BLOCK)]


def test_a_partial_write_inside_one_new_block_zeroes_it_once(bench: Bench) -> None:
    thin = bench.thin()
    assert data_operations(bench, lambda: thin.pwrite(100, b"a")) == [("zero", 0, BLOCK), ("write", 100, 1)]


def test_whole_blocks_over_shared_ones_copy_nothing(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (4 * BLOCK))
    bench.pool.create_snap(1, 0)
    bench.data.fail("read")
    assert data_operations(bench, lambda: thin.pwrite(0, b"b" * (4 * BLOCK))) == [("write", 4 * BLOCK, 4 * BLOCK)]


def test_a_partial_write_over_shared_blocks_copies_only_the_ends(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (4 * BLOCK))
    bench.pool.create_snap(1, 0)
    operations = data_operations(bench, lambda: thin.pwrite(512, b"b" * (3 * BLOCK)))
    assert [operation for operation, _, _ in operations] == ["copy", "copy", "write"]


def test_reading_across_shared_and_unshared_neighbours_is_one_read(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (2 * BLOCK))
    bench.pool.create_snap(1, 0)
    thin.pwrite(2 * BLOCK, b"b" * (2 * BLOCK))
    fault = bench.data.fail("read", after=1)
    assert thin.pread(0, 4 * BLOCK) == b"a" * (2 * BLOCK) + b"b" * (2 * BLOCK)
    assert fault.seen == 1


def test_unmapped_ranges_are_not_read(bench: Bench) -> None:
    thin = bench.thin()
    bench.data.fail("read")
    assert thin.pread(0, 32 * BLOCK) == bytes(32 * BLOCK)


def test_the_data_is_flushed_before_the_metadata_and_the_superblock_is_last(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * BLOCK)
    operations = bench.during(thin.flush)
    assert operations[0] == ("data", "flush", 0, 0)
    assert operations[-3:] == [("metadata", "flush", 0, 0), ("metadata", "write", 0, 4096), ("metadata", "flush", 0, 0)]
    assert all(
        device == "metadata" and operation == "write" and offset > 0
        for device, operation, offset, _ in operations[1:-3]
    )


def test_a_flush_without_changes_is_one_flush_of_the_data(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * BLOCK)
    thin.flush()
    thin.pwrite(0, b"b" * BLOCK)
    assert bench.during(thin.flush) == [("data", "flush", 0, 0)]


def test_freed_blocks_are_punched_in_runs_after_the_superblock_is_flushed(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (16 * BLOCK))
    thin.flush()
    assert data_operations(bench, lambda: thin.discard(2 * BLOCK, 8 * BLOCK)) == []
    operations = bench.during(bench.pool.commit)
    assert operations[-2:] == [("metadata", "flush", 0, 0), ("data", "discard", 2 * BLOCK, 8 * BLOCK)]


def test_without_passdown_nothing_is_punched(make_bench: MakeBench) -> None:
    bench = make_bench(no_discard_passdown=True)
    thin = bench.thin()
    thin.pwrite(0, b"a" * (16 * BLOCK))
    thin.discard(0, 16 * BLOCK)
    assert data_operations(bench, bench.pool.commit) == [("flush", 0, 0)]


def test_a_failing_punch_costs_nothing_but_space(bench: Bench) -> None:
    thin = bench.thin()
    thin.pwrite(0, b"a" * (16 * BLOCK))
    thin.flush()
    bench.data.fail("discard")
    thin.discard(0, 16 * BLOCK)
    bench.pool.commit()
    status = bench.status()
    assert status.format().split()[2:5] == ["0/64", "-", "rw"]


def test_a_pool_that_is_not_durable_never_flushes(make_bench: MakeBench) -> None:
    bench = make_bench(durable=False)
    thin = bench.thin()

    def use() -> None:
        thin.pwrite(0, b"a" * BLOCK)
        thin.flush()
        thin.pwrite(0, b"b" * BLOCK)
        thin.flush()
        bench.pool.create_snap(1, 0)
        bench.pool.close()

    assert "flush" not in [operation for _, operation, _, _ in bench.during(use)]
    bench.reopen()
    assert bench.thin().pread(0, BLOCK) == b"b" * BLOCK


@pytest.mark.parametrize("durable", [True, False])
def test_a_flush_is_begun_on_the_data_device_where_there_will_be_one(make_bench: MakeBench, durable: bool) -> None:
    bench = make_bench(durable=durable)
    begun: list[str] = []
    bench.data.start_flush = lambda: begun.append("data")  # type: ignore[attr-defined]
    thin = bench.thin()
    thin.pwrite(0, b"a" * BLOCK)
    assert bench.during(thin.start_flush) == []
    assert begun == ["data"] * durable


def test_provisioning_goes_round_the_device_and_skips_what_is_used(bench: Bench) -> None:
    thin = bench.thin(blocks=64)
    for vblock in range(0, 64, 2):
        thin.pwrite(vblock * BLOCK, b"a" * BLOCK)
    thin.pwrite(0, b"b" * (64 * BLOCK))
    used = sorted(e.dblock + i for e in thin.extents() for i in range(e.length))
    assert used == list(range(64))


def test_a_failed_write_gives_its_blocks_back_and_they_can_be_used(make_bench: MakeBench) -> None:
    bench = make_bench(data_blocks=8)
    thin = bench.thin()
    for _ in range(20):
        bench.data.fail("write", times=1)
        with pytest.raises(OSError, match="failed on the data device") as raised:
            thin.pwrite(0, b"a" * (8 * BLOCK))
        assert raised.value.errno == errno.EIO
        bench.data.heal()
    assert bench.status(flush=False).used_data_blocks == 0
    thin.pwrite(0, b"a" * (8 * BLOCK))


@pytest.mark.parametrize("seed", range(4))
def test_every_single_data_fault_leaves_old_or_new_content_and_no_leak(bench: Bench, seed: int) -> None:
    """Single-block writes; each may fail at any of its operations, and then nothing changed."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    thin = bench.thin(blocks=12)
    expected = bytearray(12 * BLOCK)
    snapshots = 0
    for number in range(120):
        vblock, begin = rng.randrange(12), rng.randrange(BLOCK - 512)
        length = rng.choice([512, BLOCK - begin])
        if number % 30 == 29:
            bench.pool.create_snap(snapshots + 1, 0)
            snapshots += 1
        fault = bench.data.fail("read", "write", after=rng.randrange(4), times=1)
        at = vblock * BLOCK + begin
        number_of_error = outcome(partial(thin.pwrite, at, bytes([number]) * length))
        assert number_of_error == (errno.EIO if fault.hits else 0)
        if not number_of_error:
            expected[at : at + length] = bytes([number]) * length
        bench.data.heal()
        assert thin.pread(0, 12 * BLOCK) == expected
    blocks = {
        e.dblock + i for thin_id in bench.pool.thin_ids() for e in _extents(bench, thin_id) for i in range(e.length)
    }
    assert bench.status().used_data_blocks == len(blocks)


def outcome(call: Callable[[], object]) -> int | None:
    """0, or the errno."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


def _extents(bench: Bench, thin_id: int) -> list[Extent]:
    thin = bench.pool.activate(f"look-{thin_id}", thin_id, 12 * 128)
    found = list(thin.extents())
    thin.close()
    return found
