"""The built-in questions, with their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowfs.benchmarks.workloads.disks import DiskRequests, FirstWrites
from cowfs.benchmarks.workloads.interface import Workload
from cowfs.errors import UsageError

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20


def built_in(*, seed: int, quick: bool) -> list[Workload]:
    """In the order in which they are asked. `quick`: sizes that only show that they run."""

    def size(full: int, small: int) -> int:
        return small if quick else full

    return [
        FirstWrites(
            size_bytes=size(64, 8) * _MIB,
            writes=size(64, 8),
            sizes=[4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB],
            seed=seed,
        ),
        DiskRequests(size_bytes=size(64, 4) * _MIB, requests=size(1000, 50), seed=seed),
    ]


def choose(names: Sequence[str], workloads: Sequence[Workload]) -> list[Workload]:
    """Those with these names, in that order; all of them without a name. Raises UsageError."""
    by_name = {workload.name: workload for workload in workloads}
    for name in names:
        if name not in by_name:
            raise UsageError(f"there is no question '{name}'; there are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(workloads)
