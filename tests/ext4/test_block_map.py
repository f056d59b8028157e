"""The block map against a dict."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.ext4.files.data import _contiguous
from cowfs.ext4.names.directory import _balanced
from cowfs.ext4.space import extents, indirect
from cowfs.ext4.space.block_map import MAX_EXTENT_BLOCKS, BlockMap
from tests.ext4.conftest import FEATURE_SETS, Image, make_file

Model = dict[int, tuple[int, bool]]


def check(map_: BlockMap, model: Model) -> None:
    found: Model = {}
    end = 0
    for segment in map_:
        assert segment.logical >= end
        assert 1 <= segment.length <= MAX_EXTENT_BLOCKS - (not segment.written)
        end = segment.logical + segment.length
        for index in range(segment.length):
            found[segment.logical + index] = (segment.physical + index, segment.written)
    assert found == model
    assert map_.end == end


steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert unwritten", "remove", "write", "unwrite"]),
        st.integers(0, 60),
        st.integers(1, 20),
        st.integers(1000, 1040),
    ),
    max_size=40,
)


@given(steps)
def test_random_changes(steps: list[tuple[str, int, int, int]]) -> None:
    map_, model = BlockMap(), Model()
    for action, logical, count, physical in steps:
        span = range(logical, logical + count)
        if action.startswith("insert"):
            if any(block in model for block in span):
                continue
            written = action == "insert"
            map_.insert(logical, count, physical + logical, written=written)
            model |= {block: (physical + block, written) for block in span}
        elif action == "remove":
            runs = map_.remove(logical, count)
            gone = [model.pop(block)[0] for block in span if block in model]
            assert [run.physical + index for run in runs for index in range(run.length)] == gone
        else:
            map_.set_written(logical, count, written=action == "write")
            model |= {block: (model[block][0], action == "write") for block in span if block in model}
        check(map_, model)
        segments = map_.segments(10, 40)
        assert sum(segment.length for segment in segments) == 40
        for segment in segments + _contiguous(segments):
            for index in range(segment.length):
                expected = model.get(segment.logical + index)
                if segment.written:
                    assert expected == (segment.physical + index, True)
                else:
                    assert expected is None or not expected[1]


def test_long_runs_are_cut() -> None:
    map_ = BlockMap()
    map_.insert(0, 30_000, 100_000)
    map_.insert(30_000, 50_000, 130_000)
    assert [segment.length for segment in map_] == [32768, 32768, 14464]
    map_.insert(80_000, 3, 180_000)
    assert map_.end == 80_003
    assert len(map_) == 3
    assert map_.block(79_999) == 179_999


@pytest.mark.parametrize("features", ["default", "1k-blocks", "no-extents", "no-extents-1k"])
def test_stored_and_loaded(make_image: Callable[..., Image], rng: random.Random, features: str) -> None:
    image = make_image(options=FEATURE_SETS[features])
    volume = image.volume
    fs = volume._fs
    make_file(volume, b"f")
    inode = volume._inodes.get(make_file(volume, b"g"))
    for size in (0, 1, 4, 5, 300, 3000):
        map_, logical = BlockMap(), 0
        for _ in range(size):
            logical += rng.choice([1, 2, 3, 700])
            map_.insert(logical, count := rng.randrange(1, 4), rng.randrange(2000, 12_000))
            logical += count
        is_tree = fs.has_extents
        needed = extents.nodes_needed(fs, map_) if is_tree else indirect.nodes_needed(fs, map_)
        nodes = list(range(5000, 5000 + needed))
        if is_tree:
            root = extents.store(fs, inode.checksum_seed, map_, nodes)
            again, found = extents.load(fs, inode.number, inode.checksum_seed, root)
        else:
            root = indirect.store(fs, map_, nodes)
            again, found = indirect.load(fs, inode.number, root)
        assert sorted(found) == nodes
        blocks = [(segment.logical + i, segment.physical + i) for segment in map_ for i in range(segment.length)]
        assert [
            (segment.logical + i, segment.physical + i) for segment in again for i in range(segment.length)
        ] == blocks
        fs.cache.forget(5000, needed)


@given(st.lists(st.integers(12, 264), min_size=2, max_size=60))
def test_balanced_cut(sizes: list[int]) -> None:
    middle = _balanced(sizes)
    assert 1 <= middle < len(sizes)
    assert abs(sum(sizes[:middle]) - sum(sizes[middle:])) <= max(sizes)
