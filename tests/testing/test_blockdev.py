"""The devices that tests rely on do what they say."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from functools import partial

import pytest

from cowfs.blockdev import BlockDevice, MemoryDevice
from cowfs.faults.disk import FaultyDevice
from cowfs.recording.journal import Journal, RecordingDevice
from cowfs.testing.blockdev import memory_device


def fails(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


def test_the_nth_write_fails_and_writes_nothing() -> None:
    device = FaultyDevice(MemoryDevice(8192))
    fault = device.fail("write", after=2, times=1, errno="ENOSPC")
    assert [fails(partial(device.pwrite, n, b"x")) for n in range(5)] == [0, 0, errno.ENOSPC, 0, 0]
    assert device.pread(0, 5) == b"xx\0xx"
    assert (fault.seen, fault.hits) == (5, 1)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("read", [5, 0, 0, 5, 0, 0]),
        ("write", [0, 5, 5, 5, 0, 0]),
        ("discard", [0, 0, 0, 0, 5, 0]),
        ("flush", [0, 0, 0, 0, 0, 5]),
    ],
)
def test_each_kind_of_operation_fails_alone(operation: str, expected: list[int]) -> None:
    device = FaultyDevice(MemoryDevice(8192))
    device.fail(operation)
    calls: list[Callable[[], object]] = [
        lambda: device.pread(0, 1),
        lambda: device.pwrite(0, b"x"),
        lambda: device.zero(0, 1),
        lambda: device.copy(0, 4096, 1),
        lambda: device.discard(0, 1),
        device.flush,
    ]
    assert [fails(call) for call in calls] == expected
    device.heal()
    assert [fails(call) for call in calls] == [0] * 6


def test_only_the_range_fails() -> None:
    device = FaultyDevice(MemoryDevice(3 * 4096))
    device.fail("read", range_bytes=(4096, 8192))
    assert [fails(partial(device.pread, o, 2)) for o in (0, 4094, 4095, 8191, 8192)] == [0, 0, 5, 5, 0]


def record(work: Callable[[BlockDevice], object], size: int = 4 * 4096) -> tuple[Journal, MemoryDevice]:
    journal, inner = Journal(), memory_device(b"\x01" * size)
    work(RecordingDevice(inner, journal, "disk"))
    return journal, inner


def work(device: BlockDevice) -> None:
    device.pwrite(100, b"a" * 1000)
    device.flush()
    device.copy(0, 8192, 2048)
    device.zero(0, 512)
    device.discard(12288, 4096)
    device.flush()
    device.pwrite(4096, memoryview(b"b" * 4096))


def test_the_last_image_is_the_device() -> None:
    journal, inner = record(work)
    assert journal.image("disk", len(journal.entries)) == inner.pread(0, inner.size_bytes)
    assert journal.image("disk", 0) == b"\x01" * inner.size_bytes


def test_images_are_every_prefix() -> None:
    journal, _ = record(work)
    seen = [(position, bytes(image)) for position, image in journal.images("disk")]
    assert [position for position, _ in seen] == list(range(len(journal.entries) + 1))
    assert all(image == journal.image("disk", position) for position, image in seen)


def test_a_torn_image_keeps_what_was_flushed_and_tears_at_sectors() -> None:
    journal, inner = record(work)
    end = len(journal.entries)
    assert journal.durable_position("disk", end) == end - 1
    before, after = journal.image("disk", end - 1), inner.pread(0, inner.size_bytes)
    seen = set()
    for seed in range(60):
        image = journal.torn_image("disk", end, random.Random(seed))
        for begin in range(0, len(image), 512):
            assert image[begin : begin + 512] in (before[begin : begin + 512], after[begin : begin + 512])
        seen.add(bytes(image))
    assert bytes(before) in seen
    assert after in seen
    assert len(seen) > 10  # and many between


def test_devices_that_grow_are_followed() -> None:
    inner = MemoryDevice(4096)
    device = FaultyDevice(RecordingDevice(inner, Journal(), "disk"))
    inner.resize(8192)
    assert device.refresh_size() == device.size_bytes == 8192
    device.pwrite(4096, b"x")
    assert isinstance(device, BlockDevice)
