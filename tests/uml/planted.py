"""Bugs to plant in an emulated pool, each a thing that could be wrong, and a backend that has one.

A bug is a function that changes the objects of one open pool, so the honest pool beside it stays honest.

    python -m tests.uml.planted FIRST_SEED STEPS      in a guest: where each is found beside the kernel's pool
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cowfs.errors import InvalidRequest, PoolError, ThinExists
from cowfs.pool import Backend, Capability, Extent, Pool, PoolMode, PoolTable, ProbeResult, ThinStatus, load_backend
from cowfs.testing.differential import SideBySide
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.counts import FREED
from cowfs.thinmeta.mapping import ThinMapping
from cowfs.units import Sectors

MOST_SEEDS = 200  # as many as a full comparison plays
Bug = Callable[[Any], None]
BUGS: dict[str, Bug] = {}


class BuggyBackend:
    """Emulated pools with a bug."""

    name = "buggy"

    def __init__(self, bug: Bug, inner: Backend | None = None) -> None:
        self._bug = bug
        self._inner = inner or load_backend("emulated")

    @property
    def capabilities(self) -> Capability:
        return self._inner.capabilities

    def probe(self) -> ProbeResult:
        return self._inner.probe()

    def for_tests(self, **options: Any) -> BuggyBackend:
        inner: Any = self._inner
        return BuggyBackend(self._bug, inner.for_tests(**options))

    def open_pool(self, name: str, table: PoolTable, *, durable: bool = True) -> Pool:
        pool = self._inner.open_pool(name, table, durable=durable)
        self._bug(pool)
        return pool


def no_bug(pool: Any) -> None:
    """For the comparison of the emulated backend with itself."""


def bug(plant: Bug) -> Bug:
    BUGS[plant.__name__] = plant
    return plant


def around(target: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Put a function in the place of a method; it gets the method first."""

    def replace(function: Callable[..., Any]) -> None:
        setattr(target, name, functools.partial(function, getattr(target, name)))

    return replace


def in_thins(pool: Any, plant: Callable[[Any], None]) -> None:
    """Plant something in every thin device that is activated."""

    @around(pool, "activate")
    def activate(inner: Any, *arguments: Any, **options: Any) -> Any:
        thin = inner(*arguments, **options)
        plant(thin)
        return thin


def in_mappings(pool: Any, kind: type[ThinMapping]) -> None:
    """Give every mapping another class."""
    metadata = pool._engine.metadata

    @around(metadata, "open_thin")
    def open_thin(inner: Any, thin_id: int) -> Any:
        mapping = inner(thin_id)
        mapping.__class__ = kind
        return mapping


# --- sharing


@bug
def equal_times_count_as_shared(pool: Any) -> None:
    class Mapping(ThinMapping):
        __slots__ = ()

        def lookup(self, vblock: int, count: int) -> list[tuple[int, int, int]]:
            self.details.snapshotted_time += 1
            try:
                return super().lookup(vblock, count)
            finally:
                self.details.snapshotted_time -= 1

    in_mappings(pool, Mapping)


@bug
def nothing_counts_as_shared(pool: Any) -> None:
    class Mapping(ThinMapping):
        __slots__ = ()

        def lookup(self, vblock: int, count: int) -> list[tuple[int, int, int]]:
            return [(length, dblock, False) for length, dblock, _ in super().lookup(vblock, count)]

    in_mappings(pool, Mapping)


@bug
def the_origin_does_not_learn_of_its_snapshot(pool: Any) -> None:
    class Mapping(ThinMapping):
        __slots__ = ()

        def mark_snapshotted(self, time: int) -> None:
            pass

    in_mappings(pool, Mapping)


@bug
def the_origin_forgets_its_snapshot_when_it_is_closed(pool: Any) -> None:
    class Mapping(ThinMapping):
        __slots__ = ()

        def mark_snapshotted(self, time: int) -> None:
            self.details.snapshotted_time = time

    in_mappings(pool, Mapping)


@bug
def time_stands_still(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "create_snap")
    def create_snap(inner: Any, *ids: int) -> None:
        inner(*ids)
        metadata._superblock.time -= 1


@bug
def a_copied_leaf_takes_no_references(pool: Any) -> None:
    pool._engine.metadata.subtrees._retain = lambda leaf: None


@bug
def a_block_that_is_replaced_keeps_its_reference(pool: Any) -> None:
    metadata = pool._engine.metadata

    class Mapping(ThinMapping):
        __slots__ = ()

        def insert(self, *run: int) -> None:
            release = metadata.release_values
            metadata.release_values = lambda values: None
            super().insert(*run)
            metadata.release_values = release

    in_mappings(pool, Mapping)


@bug
def a_deleted_thin_drops_each_reference_but_the_last_block_s(pool: Any) -> None:
    metadata = pool._engine.metadata
    metadata.subtrees._release = lambda leaf: metadata.release_values(leaf.values[:-1])


# --- snapshots


@bug
def a_snapshot_of_a_snapshot_is_of_the_first_origin(pool: Any) -> None:
    origins: dict[int, int] = {}

    @around(pool._engine.metadata, "create_snap")
    def create_snap(inner: Any, thin_id: int, origin_id: int) -> None:
        first = origins.get(origin_id, origin_id)
        origin_id = first if first in pool.thin_ids() else origin_id
        inner(thin_id, origin_id)
        origins[thin_id] = origin_id


@bug
def a_snapshot_begins_with_nothing_mapped(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "create_snap")
    def create_snap(inner: Any, thin_id: int, origin_id: int) -> None:
        inner(thin_id, origin_id)
        metadata.open_thin(thin_id).details.mapped_blocks = 0


@bug
def a_snapshot_looks_at_its_origin_first(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "require_snapshot")
    def require_snapshot(inner: Any, thin_id: int, origin_id: int) -> Any:
        metadata.open_thin(origin_id)
        return inner(thin_id, origin_id)


@bug
def a_released_metadata_snapshot_keeps_its_references(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "release_snap")
    def release_snap(inner: Any) -> None:
        metadata.require_snap()
        metadata._superblock.held_root = 0
        metadata.changed = True


@bug
def a_held_metadata_snapshot_protects_no_mappings(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "reserve_snap")
    def reserve_snap(inner: Any) -> None:
        inner()
        metadata._store.counts.decrement(metadata._superblock.mapping_root)


# --- allocation


@bug
def the_lowest_free_block_is_always_next(pool: Any) -> None:
    counts = pool._engine.metadata._maps.data

    @around(counts, "allocate")
    def allocate(inner: Callable[[int], tuple[int, int]], wanted: int) -> tuple[int, int]:
        counts.cursor = 0
        return inner(wanted)


@bug
def the_search_for_a_free_block_does_not_wrap(pool: Any) -> None:
    counts = pool._engine.metadata._maps.data

    @around(counts, "_find_free")
    def find_free(inner: Any, begin: int, end: int) -> Any:
        return None if begin == 0 < counts.cursor else inner(begin, end)


@bug
def the_last_block_of_the_pool_is_not_used(pool: Any) -> None:
    counts = pool._engine.metadata._maps.data

    @around(counts, "_find_free")
    def find_free(inner: Any, begin: int, end: int) -> Any:
        return inner(begin, min(end, counts.nr_blocks - 1))


@bug
def a_freed_block_is_free_before_the_commit(pool: Any) -> None:
    counts = pool._engine.metadata._maps.data
    free_at_once = bytes(0 if byte == FREED else byte for byte in range(256))

    @around(counts, "decrement_run")
    def decrement_run(inner: Any, begin: int, length: int) -> None:
        inner(begin, length)
        for index in counts.dirty:
            counts._bitmaps[index] = counts._bitmaps[index].translate(free_at_once)


# --- data


@bug
def a_fresh_block_is_not_zeroed(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "_fill_around")
        def fill_around(inner: Any, vblock: int, dblock: int, old_dblock: int) -> None:
            if old_dblock >= 0:
                inner(vblock, dblock, old_dblock)

    in_thins(pool, plant)


@bug
def a_shared_block_written_in_part_is_not_copied(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "_fill_around")
        def fill_around(inner: Any, vblock: int, dblock: int, old_dblock: int) -> None:
            inner(vblock, dblock, -1)

    in_thins(pool, plant)


@bug
def a_write_forgets_its_last_byte(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "pwrite")
        def pwrite(inner: Any, offset: int, data: Any) -> None:
            inner(offset, data[: max(1, len(data) - 1)])

    in_thins(pool, plant)


@bug
def a_write_zeroes_the_rest_of_its_last_block(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "pwrite")
        def pwrite(inner: Any, offset: int, data: Any) -> None:
            inner(offset, data)
            rest = -(offset + len(data)) % thin.block_bytes
            if offset + len(data) + rest <= thin.size_bytes:
                inner(offset + len(data), bytes(rest))

    in_thins(pool, plant)


@bug
def reading_provisions(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "pread")
        def pread(inner: Any, offset: int, length: int) -> bytes:
            data: bytes = inner(offset, length)
            if not any(data):
                with suppress(PoolError):
                    thin.pwrite(offset, bytes(min(length, 512)))
            return data

    in_thins(pool, plant)


# --- discard


@bug
def discard_takes_a_partial_first_block(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "discard")
        def discard(inner: Any, offset: int, length: int) -> None:
            begin = offset // thin.block_bytes * thin.block_bytes
            inner(begin, offset + length - begin)

    in_thins(pool, plant)


@bug
def discard_leaves_its_last_block(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "discard")
        def discard(inner: Any, offset: int, length: int) -> None:
            inner(offset, max(1, length - 1))

    in_thins(pool, plant)


@bug
def discard_leaves_the_count_of_mapped_blocks(pool: Any) -> None:
    class Mapping(ThinMapping):
        __slots__ = ()

        def remove(self, begin: int, end: int) -> int:
            removed = super().remove(begin, end)
            self.details.mapped_blocks += removed
            return removed

    in_mappings(pool, Mapping)


@bug
def discard_does_not_bring_back_a_full_pool(pool: Any) -> None:
    @around(pool._engine, "set_mode")
    def set_mode(inner: Any, mode: PoolMode) -> None:
        if pool._suspended or pool._engine.mode is not PoolMode.OUT_OF_DATA_SPACE:
            inner(mode)


# --- messages and their errno


@bug
def creating_a_thin_twice_succeeds(pool: Any) -> None:
    @around(pool, "create_thin")
    def create_thin(inner: Any, thin_id: int) -> None:
        with suppress(ThinExists):
            inner(thin_id)


@bug
def deleting_an_active_thin_is_invalid_instead_of_busy(pool: Any) -> None:
    other_errno(pool, errno.EBUSY)


@bug
def an_unknown_thin_is_invalid_instead_of_no_data(pool: Any) -> None:
    other_errno(pool, errno.ENODATA)


def other_errno(pool: Any, number: int) -> None:
    for name in ("delete", "create_snap"):

        @around(pool, name)
        def message(inner: Any, *ids: int) -> None:
            try:
                inner(*ids)
            except PoolError as error:
                if error.errno != number:
                    raise
                raise InvalidRequest("something is wrong with the id") from error


@bug
def the_transaction_id_is_swapped_without_comparing(pool: Any) -> None:
    @around(pool, "set_transaction_id")
    def set_transaction_id(inner: Any, old: int, new: int) -> None:
        inner(pool._engine.metadata.transaction_id, new)


@bug
def a_thin_does_not_remember_its_transaction_id(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "create_thin")
    def create_thin(inner: Any, thin_id: int) -> None:
        inner(thin_id)
        metadata.open_thin(thin_id).details.transaction_id = 0


@bug
def a_refused_message_commits(pool: Any) -> None:
    @around(pool, "message")
    def message(inner: Any, text: str) -> None:
        pool.commit()
        inner(text)


# --- figures and events


@bug
def one_data_block_too_many_is_used(pool: Any) -> None:
    class Counting(Metadata):
        @property
        def data_used_blocks(self) -> int:
            return super().data_used_blocks + 1

    pool._engine.metadata.__class__ = Counting


@bug
def the_metadata_reserve_is_not_hidden(pool: Any) -> None:
    pool._engine.usable_metadata_blocks = lambda: pool._engine.metadata.metadata_free_blocks


@bug
def the_highest_sector_is_the_one_after(pool: Any) -> None:
    @around(pool, "thin_status")
    def thin_status(inner: Any, thin_id: int) -> Any:
        found = inner(thin_id)
        if not isinstance(found, ThinStatus) or found.highest_mapped_sector is None:
            return found
        return ThinStatus(found.mapped_sectors, Sectors(found.highest_mapped_sector + 1))


@bug
def low_water_is_below_the_mark_only(pool: Any) -> None:
    @around(pool._engine, "_note_low_water")
    def note_low_water(inner: Any, free: int) -> None:
        inner(free + 1)


@bug
def low_water_is_told_again_and_again(pool: Any) -> None:
    @around(pool._engine, "_note_low_water")
    def note_low_water(inner: Any, free: int) -> None:
        pool._engine._low_water_sent = False
        inner(free)


@bug
def running_out_of_space_is_no_event(pool: Any) -> None:
    engine = pool._engine

    @around(engine, "set_mode")
    def set_mode(inner: Any, mode: PoolMode) -> None:
        before = engine.event_counter
        inner(mode)
        engine.event_counter = before


@bug
def extents_are_not_joined(pool: Any) -> None:
    def plant(thin: Any) -> None:
        @around(thin, "extents")
        def extents(inner: Any) -> Any:
            for extent in inner():
                for i in range(extent.length):
                    yield Extent(extent.vblock + i, extent.dblock + i, 1)

    in_thins(pool, plant)


# --- sizes, suspension, space, reopening


@bug
def resizing_a_thin_does_nothing(pool: Any) -> None:
    def plant(thin: Any) -> None:
        thin.resize = lambda length_sectors: None

    in_thins(pool, plant)


@bug
def growing_the_data_forgets_a_block(pool: Any) -> None:
    metadata = pool._engine.metadata

    @around(metadata, "resize_data")
    def resize_data(inner: Any, blocks: int) -> None:
        inner(max(metadata.data_blocks, blocks - 1))


@bug
def growing_the_metadata_does_nothing(pool: Any) -> None:
    pool._engine.metadata.resize_metadata = lambda blocks: None


@bug
def a_suspended_thin_is_served(pool: Any) -> None:
    def plant(thin: Any) -> None:
        thin.suspend = lambda: None

    in_thins(pool, plant)


@bug
def a_full_pool_is_read_only(pool: Any) -> None:
    @around(pool._engine, "set_mode")
    def set_mode(inner: Any, mode: PoolMode) -> None:
        inner(PoolMode.READ_ONLY if mode is PoolMode.OUT_OF_DATA_SPACE else mode)


@bug
def a_full_pool_still_says_rw(pool: Any) -> None:
    @around(pool._engine, "set_mode")
    def set_mode(inner: Any, mode: PoolMode) -> None:
        if mode is not PoolMode.OUT_OF_DATA_SPACE:
            inner(mode)


@bug
def exhausted_metadata_goes_unnoticed(pool: Any) -> None:
    @around(pool._engine, "set_mode")
    def set_mode(inner: Any, mode: PoolMode) -> None:
        if mode is not PoolMode.OUT_OF_METADATA_SPACE:
            inner(mode)


@bug
def closing_does_not_commit(pool: Any) -> None:
    @around(pool, "close")
    def close(inner: Any) -> None:
        pool._engine.commit = lambda: None
        inner()


def main(first_seed: int, steps: int, every: int) -> None:
    """One line of JSON for every nth bug: its name, and [seed, number of the operation] where it was found, or null."""
    for name, plant in list(BUGS.items())[::every]:
        backends = {"buggy": BuggyBackend(plant), "dmthin": load_backend("dmthin")}
        found = SideBySide(backends, Path("/run")).first_difference(range(first_seed, first_seed + MOST_SEEDS), steps)
        print(json.dumps([name, None if found is None else [found.seed, len(found.script)]]), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
