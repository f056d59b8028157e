"""Waiting for events of a pool in this process, and what a server's log says of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cowfs.home.serving.events import event_service, wait_for_event
from cowfs.pool import Pool, PoolTable, load_backend
from cowfs.units import Sectors

BLOCK_BYTES = 65536


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    for name, size in (("metadata", 2 << 20), ("data", 16 * BLOCK_BYTES)):
        with (tmp_path / name).open("xb") as file:
            file.truncate(size)
    table = PoolTable(
        Sectors(16 * 128),
        str(tmp_path / "metadata"),
        str(tmp_path / "data"),
        Sectors(128),
        low_water_blocks=4,
        error_if_no_space=True,
    )
    pool = load_backend("emulated").open_pool("tank", table, durable=False)
    pool.create_thin(1)
    yield pool
    pool.close()


def fill(pool: Pool, blocks: int) -> None:
    thin = pool.activate("a", 1, 32 * 128)
    try:
        thin.pwrite(0, bytes(blocks * BLOCK_BYTES))
    except OSError:
        assert blocks > 16
    finally:
        thin.close()


async def test_an_event_ends_the_wait_while_others_go_on(pool: Pool, autojump_clock: MockClock) -> None:
    order: list[str] = []
    before = pool.event_counter

    async def wait() -> None:
        order.append(f"event {await wait_for_event(pool, before)}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(10)
        order.append("written")
        fill(pool, 13)
    assert order == ["written", f"event {before + 1}"]


async def test_the_log_reports_low_water_and_the_end(
    pool: Pool, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            await nursery.start(event_service(pool))
            await trio.sleep(10)
            assert not caplog.messages
            fill(pool, 13)
            await trio.sleep(10)
            fill(pool, 17)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "pool tank: mode write",
        "pool tank: mode out of data space",
    ]
    assert "192 KiB of data" in caplog.messages[0]
