"""Blocks that are freed together are punched in pieces, but for those that are allocated again before that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs_emulated import engine
from cowfs_emulated.reclaiming import Reclaiming
from tests.emulated.conftest import BLOCK, Bench

runs = st.tuples(st.integers(0, 60), st.integers(1, 12))
steps = st.lists(st.tuples(st.sampled_from(["add", "withdraw", "take"]), runs), max_size=30)


@given(steps)
def test_as_a_set_of_blocks(steps: list[tuple[str, tuple[int, int]]]) -> None:
    reclaiming, model = Reclaiming(), set[int]()
    for action, (first, length) in steps:
        blocks = set(range(first, first + length))
        if action == "add" and not blocks & model:
            reclaiming.add([(first, length)])
            model |= blocks
        elif action == "withdraw":
            reclaiming.withdraw(first, length)
            model -= blocks
        elif action == "take":
            taken = [block for begin, count in reclaiming.take(length) for block in range(begin, begin + count)]
            assert taken == sorted(model)[:length]
            model -= set(taken)
        assert bool(reclaiming) == bool(model)
    assert {block for begin, count in reclaiming.take(1000) for block in range(begin, begin + count)} == model


def test_freed_blocks_are_punched_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few blocks at each commit and tick, and at the end the rest; what was given away meanwhile keeps its data."""
    monkeypatch.setattr(engine, "RECLAIM_BYTES", 3 * BLOCK)
    thin, other = bench.thin(1), bench.thin(2, blocks=60)
    thin.pwrite(0, b"x" * 32 * BLOCK)
    bench.pool.commit()
    thin.discard(0, 32 * BLOCK)

    def punched() -> int:
        return sum(bench.data_store.pread(block * BLOCK, BLOCK) == bytes(BLOCK) for block in range(64))

    before = punched()
    bench.pool.commit()
    assert punched() == before + 4
    bench.pool.tick()
    assert punched() == before + 8
    other.pwrite(0, b"y" * 60 * BLOCK)  # into blocks that are still to be punched, too
    for _ in range(20):
        bench.pool.tick()
    assert other.pread(0, 60 * BLOCK) == b"y" * 60 * BLOCK
    bench.pool.close()
    bench.reopen()
    assert bench.thin(2, blocks=60).pread(0, 60 * BLOCK) == b"y" * 60 * BLOCK
