"""What a disk holds after a power cut, against a model of plain bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cowfs.blockdev import BlockDevice, MemoryDevice
from cowfs.recording import unsynced as unsynced_module
from cowfs.recording.unsynced import Unsynced

SIZE_BYTES = 64 << 10
SECTOR = 512


def changes(disk: BlockDevice, rng: random.Random, count: int) -> None:
    for number in range(count):
        offset = rng.randrange(SIZE_BYTES - 16 * SECTOR)
        length = rng.randrange(1, 16 * SECTOR)
        kind = rng.randrange(6)
        if kind == 0:
            disk.zero(offset, length)
        elif kind == 1:
            disk.discard(offset, length)
        elif kind == 2:
            disk.copy(offset + 8 * SECTOR, offset, min(length, 8 * SECTOR))
        else:
            disk.pwrite(offset, bytes([number % 255 + 1]) * length)


def content(disk: BlockDevice) -> bytes:
    return disk.pread(0, SIZE_BYTES)


@pytest.fixture
def inner() -> MemoryDevice:
    return MemoryDevice(bytearray(b"\xff" * SIZE_BYTES))


@pytest.mark.parametrize("seed", range(20))
def test_without_a_choice_all_since_the_last_flush_is_lost(inner: MemoryDevice, seed: int) -> None:
    rng = random.Random(seed)
    unsynced = Unsynced()
    disk = unsynced.over(unsynced.under(inner))
    for _ in range(3):
        changes(disk, rng, rng.randrange(30))
        disk.flush()
    before = content(disk)
    changes(disk, rng, 20)
    assert content(disk) != before
    unsynced.power_off()
    changes(disk, rng, 10)
    disk.flush()  # too late
    changes(disk, rng, 10)
    assert unsynced.power_on(inner) > 0
    assert content(inner) == before
    assert unsynced.power_on(inner) == 0


@pytest.mark.parametrize("seed", range(40))
def test_with_a_choice_each_sector_is_as_it_was_at_some_time(inner: MemoryDevice, seed: int) -> None:
    """Since the last flush before the power failed."""
    rng = random.Random(seed)
    unsynced = Unsynced()
    disk = unsynced.over(unsynced.under(inner))
    changes(disk, rng, 20)
    disk.flush()
    seen = [content(disk)]

    def note(act: Callable[[], object]) -> None:
        act()
        seen.append(content(disk))

    for _ in range(15):
        note(lambda: changes(disk, rng, 1))
    unsynced.power_off()
    for _ in range(3):
        for _ in range(5):
            note(lambda: changes(disk, rng, 1))
        disk.flush()
    unsynced.power_on(inner, random.Random(seed))
    found = content(inner)
    for at in range(0, SIZE_BYTES, SECTOR):
        assert found[at : at + SECTOR] in {image[at : at + SECTOR] for image in seen}


def test_the_choice_is_that_of_the_seed() -> None:
    found = []
    for seed in [*range(30), *range(30)]:
        inner = MemoryDevice(bytearray(SIZE_BYTES))
        unsynced = Unsynced()
        disk = unsynced.over(unsynced.under(inner))
        for number in range(8):
            disk.pwrite(number * 8192, bytes([number + 1]) * 4096)
        unsynced.power_off()
        disk.flush()
        unsynced.power_on(inner, random.Random(seed))
        found.append(content(inner))
    assert found[:30] == found[30:]
    assert len(set(found)) > 20
    sectors = [[image[at : at + SECTOR].strip(b"\0") != b"" for at in range(0, 4096, SECTOR)] for image in found]
    assert any(any(of_one) and not all(of_one) for of_one in sectors), "no write was torn"
    assert any(all(of_one) for of_one in sectors)
    assert any(not any(of_one) for of_one in sectors)


def test_what_a_flush_has_finished_is_there(inner: MemoryDevice) -> None:
    """Also one after the power has failed, in every state in which something later is there."""
    for seed in range(60):
        unsynced = Unsynced()
        disk = unsynced.over(unsynced.under(inner))
        disk.pwrite(0, bytes(2 * SECTOR))
        disk.flush()
        unsynced.power_off()
        disk.pwrite(0, b"1" * SECTOR)
        disk.flush()
        disk.pwrite(SECTOR, b"2" * SECTOR)
        disk.flush()
        unsynced.power_on(inner, random.Random(seed))
        assert inner.pread(SECTOR, 1) == b"\0" or inner.pread(0, 1) == b"1"


def test_a_large_change_is_kept_in_pieces_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsynced_module, "_MOST_KEPT_BYTES", 2 << 20)
    inner = MemoryDevice(bytearray(b"x" * (4 << 20)))
    unsynced = Unsynced()
    disk = unsynced.over(unsynced.under(inner))
    disk.pwrite(0, b"first")
    disk.discard(0, 4 << 20)
    unsynced.power_off()
    unsynced.power_on(inner)
    assert inner.pread(0, 5) != b"first"  # the disk has flushed on its own, as a disk may
