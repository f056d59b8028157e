"""A trace that is replayed: what a device was asked elsewhere is asked of each engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.meter import MICROSECONDS_EACH, RATE, Meter, Work, latency_of
from cowfs.benchmarks.workloads.disks import forget, random_bytes
from cowfs.benchmarks.workloads.interface import Measure
from cowfs.errors import UsageError
from cowfs.traces.formats import open_trace
from cowfs.traces.replay import Pace, TargetDisk, check_size, replay
from cowfs.traces.requests import READ
from cowfs.traces.summary import summarize

_DISK: Final = "replay"
_FILLED_BYTES: Final = 64 << 10
_MIB: Final = 1 << 20


class ReplayTrace:
    """Args: path: the trace; size_bytes: of the disks, as much as the trace reaches to when None."""

    x_unit = ""
    warms_up = False
    needs = Offer.DISK

    def __init__(self, path: str, *, pace: Pace, size_bytes: int | None, seed: int) -> None:
        """Raises UsageError: it is not a trace, or reaches beyond the disks; OSError."""
        self._trace = open_trace(path)
        found = summarize(self._trace)
        if not found.requests:
            raise UsageError(f"{path} is a trace without requests; there is nothing to replay")
        self._size_bytes = size_bytes or max(-(-found.furthest_bytes // _MIB), 1) * _MIB
        check_size(self._trace, self._size_bytes, "disks of --size")
        self._pace = pace
        self._seed = seed
        self.name = os.path.basename(path)
        cut = "" if found.is_whole else ", whose end is cut off,"
        self.title = f"How long do the requests of {self.name}{cut} take?"
        at = "as fast as they are answered" if pace == "fast" else "at the times of the trace"
        self.expectation = (
            f"One request after the other, {at}, to a new disk on which only what the trace reads was written before. "
            "An engine that copies nothing pays for provisioning and flushes alone."
        )
        self.parameters: dict[str, Any] = {
            "trace": self.name,
            "requests": found.requests,
            **({} if found.is_whole else {"is_cut_off": True}),
            "traced_seconds": found.seconds,
            "pace": pace,
            "size_bytes": self._size_bytes,
            "seed": seed,
        }

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        """Each round begins with a new disk."""

        def measure(meter: Meter) -> None:
            contender.create(_DISK, self._size_bytes)
            try:
                with contender.disk(_DISK) as path:
                    self._replay(path, meter)
            finally:
                contender.remove(_DISK)

        yield measure

    def _replay(self, path: Path, meter: Meter) -> None:
        with closing(TargetDisk(path)) as disk:
            self._fill(disk)
            figure = RATE if self._pace == "fast" else MICROSECONDS_EACH
            with meter.line("all requests", figure) as work:
                done = replay(self._trace, disk, pace=self._pace, seed=self._seed)
                work.requests = done.requests
                for name, kind in done.kinds.items():
                    work.read_bytes += kind.size_bytes if name == "read" else 0
                    work.written_bytes += kind.size_bytes if name == "write" else 0
                    work.latencies.extend(kind.seconds)
                work.seconds = done.seconds if self._pace == "fast" else sum(work.latencies)
            for name, kind in done.kinds.items():
                line = Work(requests=len(kind.seconds), seconds=sum(kind.seconds), latency=latency_of(kind.seconds))
                line.read_bytes = kind.size_bytes if name == "read" else 0
                line.written_bytes = kind.size_bytes if name == "write" else 0
                meter.add(name, MICROSECONDS_EACH, line)

    def _fill(self, disk: TargetDisk) -> None:
        """Write what the trace reads, so that reads find data, as they did."""
        wanted = {
            block
            for request in self._trace.requests()
            if request.kind == READ
            for block in range(request.offset // _FILLED_BYTES, -(-(request.offset + request.length) // _FILLED_BYTES))
        }
        data = random_bytes(_FILLED_BYTES, self._seed)
        for block in sorted(wanted):
            begin = block * _FILLED_BYTES
            disk.pwrite(begin, data[: disk.size_bytes - begin])
        disk.flush()
        forget(disk.fd)
