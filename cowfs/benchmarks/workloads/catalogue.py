"""The built-in questions, with their sizes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, TypeVar

from cowfs.benchmarks.workloads.disks import DiskRequests, FirstWrites
from cowfs.benchmarks.workloads.interface import Workload
from cowfs.benchmarks.workloads.large_homes import SnapshotsAmongMany, SnapshotsOfMapped
from cowfs.benchmarks.workloads.layers import LayerWork
from cowfs.benchmarks.workloads.lives import Churn, FromNothing, Provisioning
from cowfs.benchmarks.workloads.snapshots import Chains, SnapshotsByNumber, SnapshotsBySize
from cowfs.benchmarks.workloads.trees import SmallFiles, TreeWork
from cowfs.errors import UsageError

T = TypeVar("T")

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


class Scale(enum.Enum):
    """How large the questions are: only to show that they run; for minutes; for half an hour and more."""

    QUICK = 0
    STANDARD = 1
    FULL = 2


def built_in(*, seed: int, scale: Scale = Scale.STANDARD) -> list[Workload]:
    """In the order in which they are asked."""

    def of(quick: T, standard: T, full: T) -> T:
        return (quick, standard, full)[scale.value]

    return [
        FirstWrites(
            size_bytes=of(4, 64, 256) * _MIB,
            writes=of(4, 64, 256),
            sizes=[4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB],
            seed=seed,
        ),
        SmallFiles(files=of(30, 300, 3000), changed=of(10, 60, 600), seed=seed),
        SnapshotsBySize(sizes=[size * _MIB for size in of([1, 4], [1, 8, 64], [1, 8, 64, 512])], seed=seed),
        SnapshotsByNumber(numbers=of([1, 10], [1, 10, 100], [1, 10, 100, 1000]), seed=seed),
        SnapshotsOfMapped(sizes=of([_MIB], [_MIB, _GIB], [_MIB, _GIB, 32 * _GIB, 1024 * _GIB])),
        SnapshotsAmongMany(numbers=of([1, 20], [1, 200], [1, 100, 1000, 10_000])),
        Chains(
            lengths=of([1, 4], [1, 32], [1, 32, 320, 1000]),
            size_bytes=of(2, 16, 64) * _MIB,
            requests=of(50, 500, 5000),
            seed=seed,
        ),
        Provisioning(size_bytes=of(4, 32, 256) * _MIB, writes=of(4, 32, 256), seed=seed),
        DiskRequests(size_bytes=of(4, 32, 256) * _MIB, requests=of(50, 1000, 10000), seed=seed),
        TreeWork(files=of(30, 200, 3000), commits=of(10, 100, 1000), wheel_files=of(0, 100, 1000), seed=seed),
        LayerWork(files=of(30, 300, 3000), changed=of(3, 10, 10), seed=seed),
        Churn(cycles=of(1, 3, 20), size_bytes=of(4, 8, 64) * _MIB, seed=seed),
        FromNothing(size_bytes=256 * _MIB),
    ]


def choose(names: Sequence[str], workloads: Sequence[Workload]) -> list[Workload]:
    """Those with these names, in that order; all of them without a name. Raises UsageError."""
    by_name = {workload.name: workload for workload in workloads}
    for name in names:
        if name not in by_name:
            raise UsageError(f"there is no question '{name}'; there are {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(workloads)
