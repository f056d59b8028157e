"""How fast is the raw view over FUSE, beside the least that pyfuse3 can do and beside qemu's FUSE export?

Expected: a request through pyfuse3 and trio costs some 40 us before any handler runs, the half of it in the scheduler,
which the raw view avoids while requests come one after the other. The pool adds some 5 us to a 4 KiB request (a lookup
and the checks around it), so 1.4 of a bare handler; at 1 MiB the copying dominates both, so 1.0. qemu-storage-daemon
handles one request at a time too, in C, but looks up qcow2 clusters and does its I/O in other threads: slower for small
requests, comparable for large ones.

Reads are cold for FUSE (the kernel's cached pages are dropped first) and warm for the files underneath. Writes end with
an fsync, which is part of the time: when the clock stops, all three have the data on the disk.
"""

from __future__ import annotations

from bench.rig.harness import Bench
from cowfs.benchmarks.engines.homes import EMULATED
from cowfs.benchmarks.engines.served import BARE, QCOW2
from cowfs.benchmarks.workloads.disks import DiskRequests

ROUNDS = 15
# Lines of the workload, and how much of qemu's figure is wanted.
OF_QEMU = {
    "sequential read of 1 MiB": 1.0,
    "sequential write of 1 MiB, then fsync": 1.0,
    "random read of 4 KiB, depth 1": 2.5,
    "random write of 4 KiB, depth 1, then fsync": 1.5,
}


def run(bench: Bench) -> None:
    workload = DiskRequests(size_bytes=bench.size(256, 16) << 20, requests=bench.size(1 << 13, 1 << 9), seed=1)
    found = bench.ask(workload, [EMULATED, BARE, QCOW2], rounds=ROUNDS)
    for line, of_qemu in OF_QEMU.items():
        rounds = found.get(line, {})
        for peer, at_least in ((BARE, 0.7), (QCOW2, of_qemu)):
            if {EMULATED.name, peer.name} <= rounds.keys():
                name = f"{line}: {EMULATED.name} / {peer.name}"
                bench.goal_ratio(name, rounds[EMULATED.name], rounds[peer.name], at_least=at_least)
