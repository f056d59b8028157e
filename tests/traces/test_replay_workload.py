"""A trace as a workload of `cowfs bench`: what the engine gets, and the lines that are measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.benchmarks.engines.interface import Contender
from cowfs.benchmarks.meter import Meter
from cowfs.benchmarks.workloads.replay import ReplayTrace
from cowfs.errors import UsageError
from cowfs.traces import file
from cowfs.traces.requests import FLUSH, READ, WRITE, TracedRequest, TraceHeader

MIB = 1 << 20


class OneFile(Contender):
    """Disks that are files; `content` is what the last one held in the end."""

    content = b""

    def create(self, name: str, size_bytes: int) -> None:
        (self.directory / name).write_bytes(bytes(size_bytes))

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        yield self.directory / name

    def remove(self, name: str) -> None:
        self.content = (self.directory / name).read_bytes()
        (self.directory / name).unlink()


@pytest.fixture
def trace(tmp_path: Path) -> str:
    requests = [
        TracedRequest(0, READ, 65536, 4096),
        TracedRequest(10, WRITE, 2 * MIB, 8192),
        TracedRequest(20, FLUSH, 0, 0),
        TracedRequest(30, WRITE, 0, 512),
    ]
    path = tmp_path / "t.trace"
    path.write_bytes(file.encode_header(TraceHeader("web")) + file.encode_block(requests) + file.encode_end(0))
    return str(path)


@pytest.mark.parametrize("pace", ["fast", "own"])
def test_each_round_asks_a_new_disk_the_same(trace: str, tmp_path: Path, pace: str) -> None:
    workload = ReplayTrace(trace, pace="fast" if pace == "fast" else "own", size_bytes=None, seed=1)
    contender = OneFile("file", tmp_path)
    contents = []
    with workload.prepared(contender) as measure:
        for _ in range(2):
            meter = Meter(contender)
            measure(meter)
            contents.append(contender.content)
    first, again = contents
    assert first == again
    assert len(first) == 3 * MIB  # as far as the trace reaches
    assert any(first[65536:131072])  # what it reads was written before
    assert not any(first[131072 : 2 * MIB])
    assert any(first[2 * MIB : 2 * MIB + 8192])
    lines = {line.name: line for line in meter.lines}
    assert {name: line.sample.requests for name, line in lines.items()} == {
        "all requests": 4,
        "read": 1,
        "write": 2,
        "flush": 1,
    }
    assert lines["all requests"].figure.unit == ("1/s" if pace == "fast" else "us")
    assert lines["all requests"].sample.written_bytes == lines["write"].sample.written_bytes == 8704
    assert lines["read"].sample.latency_us is not None


def test_what_cannot_be_replayed_is_refused_before_it_begins(trace: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be replayed on disks of --size: its write number 2 ends at"):
        ReplayTrace(trace, pace="fast", size_bytes=2 * MIB, seed=1)
    empty = tmp_path / "empty.trace"
    empty.write_bytes(file.encode_header(TraceHeader()) + file.encode_end(0))
    with pytest.raises(UsageError, match="a trace without requests"):
        ReplayTrace(str(empty), pace="fast", size_bytes=None, seed=1)


def test_a_trace_that_is_cut_off_says_so(trace: str) -> None:
    assert "cut off" not in ReplayTrace(trace, pace="fast", size_bytes=None, seed=1).title
    with open(trace, "r+b") as found:
        found.truncate(Path(trace).stat().st_size - 1)
    workload = ReplayTrace(trace, pace="fast", size_bytes=None, seed=1)
    assert workload.title == "How long do the requests of t.trace, whose end is cut off, take?"
    assert workload.parameters["is_cut_off"] is True
    assert workload.parameters["requests"] == 4
