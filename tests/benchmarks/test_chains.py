"""Reads through chains end after a while, however long one takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.benchmarks.engines.interface import Contender
from cowfs.benchmarks.meter import Meter
from cowfs.benchmarks.workloads import snapshots

MIB = 1 << 20


class Copies(Contender):
    """Devices are files; a snapshot is a copy."""

    def create(self, name: str, size_bytes: int) -> None:
        (self.directory / name).write_bytes(bytes(size_bytes))

    def snapshot(self, origin: str, name: str) -> None:
        (self.directory / name).write_bytes((self.directory / origin).read_bytes())

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        yield self.directory / name


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 50), (1000.0, 120)])
def test_reads_end_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    monkeypatch.setattr(snapshots, "_READ_SECONDS", seconds)
    contender = Copies("copies", tmp_path)
    meter = Meter(contender)
    with snapshots.Chains(lengths=[1, 2], size_bytes=MIB, requests=120, seed=1).prepared(contender) as measure:
        measure(meter)
    reads = [line.sample for line in meter.lines if line.name.startswith("random read")]
    assert [sample.requests for sample in reads] == [expected, expected]
    assert [sample.read_bytes for sample in reads] == [expected * 4096] * 2
    assert not list(tmp_path.iterdir())
