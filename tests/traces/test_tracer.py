"""Recording: every request once, whatever the reader does, and nothing of it afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowfs.blockdev import BlockDevice, MemoryDevice
from cowfs.faults.disk import FaultyDevice
from cowfs.in_place import put_in_place
from cowfs.traces.formats import open_trace
from cowfs.traces.requests import DISCARD, FLUSH, READ, WRITE, ZERO, TraceHeader
from cowfs.traces.tracer import MOST_WAITING_BYTES, Tracer

SIZE = 1 << 16


class Ticks:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


def begun(ended: list[str] | None = None) -> tuple[int, Tracer]:
    noted = [] if ended is None else ended
    return Tracer.begun(TraceHeader("web", SIZE), clock=Ticks(), on_end=lambda: noted.append("ended"))


def drain(fd: int) -> bytes:
    data = bytearray()
    while piece := os.read(fd, 1 << 20):
        data += piece
    os.close(fd)
    return bytes(data)


class Device(MemoryDevice):
    """Zeroing and copying use other methods, as those of thins do."""

    def zero(self, offset: int, length: int) -> None:
        self.pwrite(offset, bytes(length))

    def copy(self, source_offset: int, target_offset: int, length: int) -> None:
        self.pwrite(target_offset, self.pread(source_offset, length))


def test_each_request_is_noted_once(tmp_path: Path) -> None:
    device = Device(SIZE)
    before = dict(vars(device))
    fd, tracer = begun()
    take_back = put_in_place(device, tracer.device)
    device.pwrite(0, b"x" * 10)
    device.pread(5, 7)
    device.zero(0, 4096)
    device.discard(4096, 8192)
    device.copy(0, 8192, 512)
    device.flush()
    take_back()
    device.pwrite(0, b"not noted")
    assert vars(device) == before
    assert not list(tracer.end())
    path = tmp_path / "t.trace"
    path.write_bytes(drain(fd))
    trace = open_trace(str(path))
    assert [request[1:4] for request in trace.requests()] == [
        (WRITE, 0, 10),
        (READ, 5, 7),
        (ZERO, 0, 4096),
        (DISCARD, 4096, 8192),
        (READ, 0, 512),
        (WRITE, 8192, 512),
        (FLUSH, 0, 0),
    ]
    times = [request.time_ns for request in trace.requests()]
    assert times == sorted(set(times))
    assert trace.end.is_whole


def test_a_reader_that_is_gone_ends_the_trace() -> None:
    ended: list[str] = []
    fd, tracer = begun(ended)
    os.close(fd)
    for _ in range(10_000):
        tracer.note(READ, 0, 1)
    assert ended == ["ended"]
    assert tracer.is_ended
    assert not list(tracer.end())


def test_a_reader_that_does_not_read_loses_requests_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing waits for it: what is kept for it has a bound."""
    monkeypatch.setattr("cowfs.traces.tracer.MOST_WAITING_BYTES", 4096)
    fd, tracer = begun()
    noted = 0
    while not tracer.lost:
        tracer.note(READ, noted * noted * 12345 % (1 << 40), 1)
        noted += 1
        assert noted < 1 << 22
    assert tracer._waiting_bytes < 4096 + (1 << 17)
    path = tmp_path / "t.trace"
    ending = tracer.end()
    next(ending)  # there is no room
    parts = [os.read(fd, 1 << 20)]
    for _ in ending:
        parts.append(os.read(fd, 1 << 20))  # noqa: PERF401
    path.write_bytes(b"".join(parts) + drain(fd))
    trace = open_trace(str(path))
    recorded = sum(1 for _ in trace.requests())
    assert (recorded + trace.end.lost, trace.end.is_whole) == (noted, True)
    assert trace.end.lost > 0
    assert MOST_WAITING_BYTES >= 1 << 20


@pytest.mark.parametrize("fault_goes_first", [True, False])
def test_beside_a_fault_each_is_taken_back_on_its_own(fault_goes_first: bool) -> None:
    device = MemoryDevice(SIZE)
    before = dict(vars(device))
    made: list[FaultyDevice] = []

    def faulty(original: BlockDevice) -> FaultyDevice:
        made.append(FaultyDevice(original, made[0].faults if made else None))
        return made[-1]

    take_back_fault = put_in_place(device, faulty)
    fd, tracer = begun()
    take_back_trace = put_in_place(device, tracer.device)
    made[0].fail("write")
    with pytest.raises(OSError):
        device.pwrite(0, b"x")
    if fault_goes_first:
        take_back_fault()
        device.pwrite(0, b"x")
        take_back_trace()
    else:
        take_back_trace()
        with pytest.raises(OSError):
            device.pwrite(0, b"x")
        take_back_fault()
    assert vars(device) == before
    tracer.close()
    assert drain(fd).startswith(b"cowfstrc")
