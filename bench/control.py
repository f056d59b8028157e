"""How many control operations a second do raw ioctls make, beside a `dmsetup` process for each of them?

Both sides do the same to pools of the same kind, in one User-Mode Linux, in turn: messages that make and delete a thin
and a snapshot, the pool's status line, and a thin device that is set up and removed again.

Expected: a process costs the guest tens of milliseconds, mostly page faults, and the kernel's work, of which a commit
of the metadata is the most, one or two: at least five times as many operations.
"""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec

from bench.rig.guest_control import OURS, THEIRS
from bench.rig.harness import Bench, rounds_of
from cowfs.benchmarks.results import Line


def run(bench: Bench) -> None:
    command = [
        *(sys.executable, "-m", "cowfs", "uml", "--"),
        *(sys.executable, "-m", "bench.rig.guest_control", json.dumps(bench.quick)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    lines = msgspec.json.decode(done.stdout, type=list[Line])
    bench.question.lines += lines
    for line, found in rounds_of(lines).items():
        bench.goal_ratio(f"{line}: {OURS} / {THEIRS}", found[OURS], found[THEIRS], at_least=5.0)
