"""The built-in questions, with their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowfs.benchmarks.workloads.disks import DiskRequests, FirstWrites
from cowfs.benchmarks.workloads.interface import Workload
from cowfs.benchmarks.workloads.lives import Churn, FromNothing, Provisioning
from cowfs.benchmarks.workloads.snapshots import Chains, SnapshotsByNumber, SnapshotsBySize
from cowfs.benchmarks.workloads.trees import SmallFiles, TreeWork
from cowfs.errors import UsageError

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20


def built_in(*, seed: int, quick: bool) -> list[Workload]:
    """In the order in which they are asked. `quick`: sizes that only show that they run."""

    def size(full: int, small: int) -> int:
        return small if quick else full

    return [
        FirstWrites(
            size_bytes=size(64, 4) * _MIB,
            writes=size(64, 4),
            sizes=[4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB],
            seed=seed,
        ),
        SmallFiles(files=size(300, 30), changed=size(60, 10), seed=seed),
        SnapshotsBySize(sizes=[size * _MIB for size in ([1, 4] if quick else [1, 8, 64])], seed=seed),
        SnapshotsByNumber(numbers=[1, 10] if quick else [1, 10, 100], seed=seed),
        Chains(lengths=[1, 4] if quick else [1, 32], size_bytes=size(16, 2) * _MIB, requests=size(500, 50), seed=seed),
        Provisioning(size_bytes=size(32, 4) * _MIB, writes=32, seed=seed),
        DiskRequests(size_bytes=size(32, 4) * _MIB, requests=size(1000, 50), seed=seed),
        TreeWork(files=size(300, 30), commits=size(100, 10), seed=seed),
        Churn(cycles=size(3, 1), size_bytes=8 * _MIB, seed=seed),
        FromNothing(size_bytes=256 * _MIB),
    ]


def choose(names: Sequence[str], workloads: Sequence[Workload]) -> list[Workload]:
    """Those with these names, in that order; all of them without a name. Raises UsageError."""
    by_name = {workload.name: workload for workload in workloads}
    for name in names:
        if name not in by_name:
            raise UsageError(f"there is no question '{name}'; there are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(workloads)
