"""Replaying: what a disk gets, when, and what is refused before it gets anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowfs.errors import UsageError
from cowfs.traces.replay import TargetDisk, replay
from cowfs.traces.requests import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    ZERO,
    Reading,
    Trace,
    TracedRequest,
    TraceEnd,
    TraceHeader,
)

MIB = 1 << 20


def trace_of(requests: list[TracedRequest]) -> Trace:
    def read() -> Reading:
        yield from requests
        return TraceEnd()

    return Trace("t.trace", "trace", TraceHeader(), read)


def disk_of(path: Path, size_bytes: int = MIB) -> TargetDisk:
    path.write_bytes(b"\xff" * size_bytes)
    return TargetDisk(path)


class Clock:
    """Time that passes by sleeping, and by each request."""

    def __init__(self, request_ns: int = 0) -> None:
        self.now_ns = 10**12
        self.slept: list[float] = []
        self._request_ns = request_ns

    def __call__(self) -> int:
        self.now_ns += self._request_ns
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)


REQUESTS = [
    TracedRequest(0, WRITE, 0, 4096),
    TracedRequest(10**9, READ, 0, 512),
    TracedRequest(2 * 10**9, WRITE, 8192, 100_000, sync=True),
    TracedRequest(2 * 10**9, FLUSH, 0, 0),
    TracedRequest(3 * 10**9, DISCARD, 4096, 4096),
    TracedRequest(3 * 10**9, ZERO, 500_000, 1000),
]


def test_the_content_depends_on_the_seed_alone(tmp_path: Path) -> None:
    content = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        disk = disk_of(tmp_path / name)
        replay(trace_of(REQUESTS), disk, seed=seed)
        disk.close()
        content[name] = (tmp_path / name).read_bytes()
    a, c = content["a"], content["c"]
    assert a == content["b"]
    for data in (a, c):
        assert data[4096:8192] == bytes(4096)
        assert data[500_000:501_000] == bytes(1000)
        assert data[108_192:500_000] == b"\xff" * (500_000 - 108_192)
    assert a[:4096] != c[:4096]
    assert a[:4096] != a[8192:12288]
    assert len(set(a[8192:108_192])) == 256


def test_figures(tmp_path: Path) -> None:
    clock = Clock(request_ns=1000)
    found = replay(trace_of(REQUESTS), disk_of(tmp_path / "disk"), clock=clock, sleep=clock.sleep)
    assert not clock.slept
    assert found.requests == 6
    assert {kind: (len(one.seconds), one.size_bytes) for kind, one in found.kinds.items()} == {
        "read": (1, 512),
        "write": (2, 104_096),
        "flush": (1, 0),
        "discard": (1, 4096),
        "zero": (1, 1000),
    }
    assert list(found.kinds["write"].seconds) == pytest.approx([1e-6, 1e-6])
    assert found.traced_seconds == 3
    assert found.seconds == pytest.approx(12e-6)


def test_at_its_own_pace_nothing_is_early(tmp_path: Path) -> None:
    clock = Clock()
    found = replay(trace_of(REQUESTS), disk_of(tmp_path / "disk"), pace="own", clock=clock, sleep=clock.sleep)
    assert clock.slept == [1, 1, 1]
    assert (found.seconds, found.most_late_seconds) == (3, 0)


def test_what_is_late_is_sent_at_once(tmp_path: Path) -> None:
    clock = Clock(request_ns=10**9)
    found = replay(trace_of(REQUESTS), disk_of(tmp_path / "disk"), pace="own", clock=clock, sleep=clock.sleep)
    assert found.most_late_seconds > 5
    assert not clock.slept


def test_a_disk_that_is_too_small_gets_nothing(tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "disk")
    requests = [*REQUESTS, TracedRequest(4 * 10**9, READ, MIB - 512, 1024)]
    with pytest.raises(UsageError) as caught:
        replay(trace_of(requests), disk)
    assert "its read number 7 ends at" in str(caught.value)
    assert f"byte {MIB + 512}" in str(caught.value)
    assert (tmp_path / "disk").read_bytes() == b"\xff" * MIB


def test_a_trace_without_requests(tmp_path: Path) -> None:
    found = replay(trace_of([]), disk_of(tmp_path / "disk"))
    assert (found.requests, found.seconds, found.kinds) == (0, 0, {})
