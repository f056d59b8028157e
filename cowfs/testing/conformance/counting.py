"""Counting: for requests whose effects are known, counters and mappings are what arithmetic says.

Each script is a pool with thin 0 of 16 blocks, what happens before it is counted, and what is counted. `B` is a data
block. Hand-computed:

    a new block            is provisioned; where it is not written whole, it is made zeros first
    a shared block         gets another data block (copied); where it is not written whole, B more are read and written
    a block of one's own   is written in place
    a discard              unmaps the whole blocks in it, and writes nothing to the data device

A thin that a snapshot was made of, or that is one, takes blocks that are as old as that for shared, even when the other
side has left them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowfs.pool import Capability, CountingPool, Pool, PoolCounters, ThinDevice
from cowfs.testing.conformance.lab import BLOCK, BLOCK_SECTORS, Lab, expect_equal, fill
from cowfs.testing.conformance.registry import behaviour

B = BLOCK
PAGE = 4096
_BLOCKS = 16


@dataclass
class Bench:
    """What a script works on."""

    lab: Lab
    pool: Pool
    thin: ThinDevice

    def write(self, offset: int, length: int, thin: ThinDevice | None = None) -> None:
        (thin or self.thin).pwrite(offset, b"w" * length)

    def snapshot(self, thin_id: int = 1) -> None:
        self.pool.create_snap(thin_id, 0)

    def opened(self, thin_id: int = 1) -> ThinDevice:
        return self.lab.thin(self.pool, thin_id, _BLOCKS)


@dataclass(frozen=True)
class Effect:
    """What a script does: blocks that change hands, and bytes written to the data device beyond those asked for.

    `moved` blocks have another data block in the end; None for as many as were copied. `freed` lost their last owner;
    None where that is not looked at. `discarded_bytes` were asked to be.
    """

    provisioned: int = 0
    copied: int = 0
    moved: int | None = None
    unmapped: int = 0
    freed: int | None = None
    copied_bytes: int = 0
    zeroed_bytes: int = 0
    discarded_bytes: int = 0


Steps = Callable[[Bench], object]


def _nothing(_bench: Bench) -> None:
    pass


def _expect(
    lab: Lab,
    run: Steps,
    effect: Effect,
    before: Steps = _nothing,
    *,
    origin: str | None = None,
    **features: int | bool,
) -> None:
    """Run a script, and compare its effect in the mappings, in the counters, and on the data device."""
    pool = lab.pool(**features)
    bench = Bench(lab, pool, lab.thin(pool, blocks=_BLOCKS, external_origin=origin))
    before(bench)
    pool.commit()
    mapped, counted = _mappings(pool), _counters(pool)
    run(bench)
    pool.commit()
    mapped_after, counted_after = _mappings(pool), _counters(pool)

    provisioned = moved = unmapped = 0
    for thin_id, blocks in mapped_after.items():
        old = mapped[thin_id]
        provisioned += len(blocks.keys() - old.keys())
        unmapped += len(old.keys() - blocks.keys())
        moved += sum(old.get(vblock, dblock) != dblock for vblock, dblock in blocks.items())
    wanted_moves = effect.copied if effect.moved is None else effect.moved
    expect_equal(
        (provisioned, moved, unmapped),
        (effect.provisioned, wanted_moves, effect.unmapped),
        "blocks mapped anew, elsewhere, and not any more",
    )

    def risen(name: str, *, of_pool: bool = False) -> int | None:
        first, last = (getattr(one if of_pool else one.requests, name) for one in (counted, counted_after))
        return None if last is None or first is None else last - first

    for name, wanted in (
        ("provisioned_blocks", effect.provisioned),
        ("copied_blocks", effect.copied),
        ("unmapped_blocks", effect.unmapped),
        ("copied_bytes", effect.copied_bytes),
        ("zeroed_bytes", effect.zeroed_bytes),
    ):
        if (found := risen(name)) is not None:
            expect_equal(found, wanted, name)
    discarded = risen("discarded_bytes")
    if discarded != effect.unmapped * B:  # the kernel may cut it to whole blocks before the thin gets it
        expect_equal(discarded, effect.discarded_bytes, "discarded_bytes")
    freed = risen("freed_blocks", of_pool=True)
    if freed is not None and effect.freed is not None:
        expect_equal(freed, effect.freed, "freed_blocks")
    asked, written = risen("written_bytes"), risen("data_written_bytes", of_pool=True)
    assert asked is not None
    assert written is not None
    zeros_written = written - asked - effect.copied_bytes
    if zeros_written:  # a sparse file has zeros without their being written
        expect_equal(
            zeros_written, effect.zeroed_bytes, "bytes written to the data device beyond asked and copied ones"
        )


def _counters(pool: Pool) -> PoolCounters:
    assert isinstance(pool, CountingPool)
    return pool.counters().pool


def _mappings(pool: Pool) -> dict[int, dict[int, int]]:
    """By active thin, the data block of each virtual block."""
    return {
        thin.thin_id: {extent.vblock + i: extent.dblock + i for extent in thin.extents() for i in range(extent.length)}
        for thin in pool.active()
    }


def _filled(bench: Bench) -> None:
    fill(bench.thin, 0, 4, 1)


def _shared(bench: Bench) -> None:
    _filled(bench)
    bench.snapshot()


def _shared_with_an_open_snapshot(bench: Bench) -> None:
    _shared(bench)
    bench.opened()


@behaviour("1.12-1")
def new_blocks_written_whole_are_only_provisioned(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(0, 4 * B), Effect(provisioned=4))


@behaviour("1.12-2")
def a_new_block_written_in_part_is_made_zeros_first(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(3 * B + 512, PAGE), Effect(provisioned=1, zeroed_bytes=B))


@behaviour("1.12-3")
def of_a_write_across_new_blocks_the_first_and_the_last_are_made_zeros(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(B - PAGE, B + 2 * PAGE), Effect(provisioned=3, zeroed_bytes=2 * B))


@behaviour("1.12-4", unless=Capability.ZEROED_REUSE)
def without_zeroing_nothing_but_what_was_asked_is_written(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(B - PAGE, B + 2 * PAGE), Effect(provisioned=3), skip_block_zeroing=True)


@behaviour("1.12-5")
def what_a_thin_has_alone_is_written_in_place(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        bench.write(PAGE, PAGE)
        bench.write(2 * B, 2 * B)

    _expect(lab, run, Effect(), _filled)


@behaviour("1.12-6")
def a_shared_block_written_in_part_is_copied_once(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        bench.write(PAGE, PAGE)
        bench.write(8 * PAGE, PAGE)

    _expect(lab, run, Effect(copied=1, copied_bytes=B), _shared)


@behaviour("1.12-7")
def shared_blocks_written_whole_are_not_copied(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(0, 2 * B), Effect(copied=2), _shared)


@behaviour("1.12-8")
def of_a_write_across_shared_blocks_the_first_and_the_last_are_copied(lab: Lab) -> None:
    _expect(lab, lambda bench: bench.write(B - PAGE, B + 2 * PAGE), Effect(copied=3, copied_bytes=2 * B), _shared)


@behaviour("1.12-9")
def both_sides_of_a_snapshot_copy_a_block_that_both_write(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        bench.write(0, PAGE)
        (snapshot,) = (thin for thin in bench.pool.active() if thin.thin_id == 1)
        bench.write(0, PAGE, snapshot)

    _expect(lab, run, Effect(copied=2, copied_bytes=2 * B), _shared_with_an_open_snapshot)


@behaviour("1.12-10")
def a_block_is_copied_once_more_after_each_snapshot(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        bench.write(0, PAGE)
        bench.snapshot(2)
        bench.write(0, PAGE)
        bench.write(B, PAGE)

    _expect(lab, run, Effect(copied=3, moved=2, copied_bytes=3 * B), _shared)


@behaviour("1.12-11")
def new_and_shared_blocks_in_one_write_are_told_apart(lab: Lab) -> None:
    _expect(
        lab,
        lambda bench: bench.write(4 * B - PAGE, 2 * PAGE),
        Effect(provisioned=1, copied=1, copied_bytes=B, zeroed_bytes=B),
        _shared,
    )


@behaviour("1.12-12")
def a_discard_unmaps_whole_blocks_and_writes_no_data(lab: Lab) -> None:
    effect = Effect(unmapped=2, freed=2, discarded_bytes=3 * B)
    _expect(lab, lambda bench: bench.thin.discard(B // 2, 3 * B), effect, _filled)


@behaviour("1.12-13")
def a_block_that_was_discarded_is_new_again(lab: Lab) -> None:
    def before(bench: Bench) -> None:
        _shared(bench)
        bench.thin.discard(0, 2 * B)

    _expect(lab, lambda bench: bench.write(0, B + PAGE), Effect(provisioned=2, zeroed_bytes=B), before)


@behaviour("1.12-14")
def a_block_that_a_deleted_snapshot_has_left_is_still_taken_for_shared(lab: Lab) -> None:
    def before(bench: Bench) -> None:
        _shared(bench)
        bench.pool.delete(1)

    _expect(lab, lambda bench: bench.write(0, PAGE), Effect(copied=1, copied_bytes=B), before)


@behaviour("1.12-15")
def many_scattered_writes_after_a_snapshot(lab: Lab) -> None:
    """50 pages in 10 of 12 shared blocks: one copy for each block."""

    def before(bench: Bench) -> None:
        fill(bench.thin, 0, 12, 1)
        bench.snapshot()

    def run(bench: Bench) -> None:
        for number in range(50):
            bench.write(number % 10 * B + number // 10 * 3 * PAGE, PAGE)

    _expect(lab, run, Effect(copied=10, copied_bytes=10 * B), before)


@behaviour("1.12-16")
def a_discard_of_parts_of_blocks_unmaps_nothing(lab: Lab) -> None:
    effect = Effect(discarded_bytes=B)
    _expect(lab, lambda bench: bench.thin.discard(B // 2, B), effect, _filled)


@behaviour("1.12-17")
def a_discard_of_shared_blocks_unmaps_them_on_one_side_and_frees_none(lab: Lab) -> None:
    effect = Effect(unmapped=2, freed=0, discarded_bytes=2 * B + PAGE)
    _expect(lab, lambda bench: bench.thin.discard(0, 2 * B + PAGE), effect, _shared_with_an_open_snapshot)


@behaviour("1.12-18")
def of_a_block_that_three_share_each_side_makes_a_copy(lab: Lab) -> None:
    """Two snapshots at one moment. The last side is alone with its block, and takes it for shared: by time."""

    def before(bench: Bench) -> None:
        _shared_with_an_open_snapshot(bench)
        bench.snapshot(2)
        bench.opened(2)

    def run(bench: Bench) -> None:
        for thin in bench.pool.active():
            bench.write(B + PAGE, PAGE, thin)

    _expect(lab, run, Effect(copied=3, freed=1, copied_bytes=3 * B), before)


@behaviour("1.12-19")
def a_snapshot_of_a_snapshot_copies_as_one_of_the_origin_does(lab: Lab) -> None:
    def before(bench: Bench) -> None:
        _shared_with_an_open_snapshot(bench)
        bench.pool.create_snap(2, 1)
        bench.opened(2)

    def run(bench: Bench) -> None:
        (last,) = (thin for thin in bench.pool.active() if thin.thin_id == 2)
        bench.write(PAGE, PAGE, last)
        bench.write(2 * PAGE, PAGE, last)  # its own by now
        bench.write(3 * B, B, last)

    _expect(lab, run, Effect(copied=2, freed=0, copied_bytes=B), before)


@behaviour("1.12-20")
def a_block_larger_than_the_write_is_copied_and_made_zeros_whole(lab: Lab) -> None:
    """Blocks of 1 MiB: a page in a shared one, in a new one, and a write from a shared into a new one."""
    large = 16 * B

    def before(bench: Bench) -> None:
        bench.write(0, 2 * large)
        bench.snapshot()

    def run(bench: Bench) -> None:
        bench.write(PAGE, PAGE)
        bench.write(5 * large + PAGE, PAGE)
        bench.write(2 * large - PAGE, 2 * PAGE)

    effect = Effect(provisioned=2, copied=2, copied_bytes=2 * large, zeroed_bytes=2 * large)
    _expect(lab, run, effect, before, block_sectors=16 * BLOCK_SECTORS)


@behaviour("1.12-21")
def without_zeroing_a_shared_block_written_in_part_is_copied_all_the_same(lab: Lab) -> None:
    effect = Effect(copied=1, copied_bytes=B)
    _expect(lab, lambda bench: bench.write(PAGE, PAGE), effect, _shared, skip_block_zeroing=True)


@behaviour("1.12-22")
def a_new_block_over_an_external_origin_is_copied_from_it_where_it_is_written_in_part(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        bench.write(PAGE, PAGE)
        bench.write(2 * B, B)

    origin = lab.origin(b"\x07" * (4 * B))
    _expect(lab, run, Effect(provisioned=2, copied_bytes=B), origin=origin)


@behaviour("1.12-23")
def a_new_block_past_the_end_of_an_external_origin_is_made_zeros(lab: Lab) -> None:
    origin = lab.origin(b"\x07" * (2 * B))
    _expect(lab, lambda bench: bench.write(3 * B, PAGE), Effect(provisioned=1, zeroed_bytes=B), origin=origin)


@behaviour("1.12-24")
def reads_take_no_block_and_write_nothing(lab: Lab) -> None:
    def run(bench: Bench) -> None:
        for offset in (0, 8 * B):  # shared, and not mapped
            bench.thin.pread(offset, 2 * B)

    _expect(lab, run, Effect(), _shared)


@behaviour("1.12-25")
def what_both_sides_have_copied_is_written_in_place(lab: Lab) -> None:
    def before(bench: Bench) -> None:
        _shared_with_an_open_snapshot(bench)
        for thin in bench.pool.active():
            bench.write(0, PAGE, thin)

    def run(bench: Bench) -> None:
        for thin in bench.pool.active():
            bench.write(2 * PAGE, PAGE, thin)

    _expect(lab, run, Effect(), before)


@behaviour("1.12-26")
def the_last_block_of_a_device_is_made_zeros_whole_though_the_device_ends_in_it(lab: Lab) -> None:
    """A device of two and a quarter blocks, of which the quarter is written."""
    pool = lab.pool()
    pool.create_thin(0)
    thin = pool.activate("thin-0", 0, 2 * BLOCK_SECTORS + BLOCK_SECTORS // 4)
    pool.commit()
    counted = _counters(pool)
    thin.pwrite(2 * B, b"w" * (B // 4))
    pool.commit()
    counted_after = _counters(pool)
    expect_equal(_mappings(pool)[0].keys(), {2}, "mapped blocks")
    asked = (counted_after.requests.written_bytes or 0) - (counted.requests.written_bytes or 0)
    written = (counted_after.data_written_bytes or 0) - (counted.data_written_bytes or 0)
    expect_equal(asked, B // 4, "written_bytes")
    expect_equal(written - asked in (0, B), True, "bytes written beyond those asked: none, or the block's zeros")
    if counted_after.requests.zeroed_bytes is not None:
        expect_equal(counted_after.requests.zeroed_bytes - (counted.requests.zeroed_bytes or 0), B, "zeroed_bytes")
