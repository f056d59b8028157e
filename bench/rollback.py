"""Does a rollback take longer when the device is larger? And how long do 200 snapshots by one command take?

Expected: no. A rollback is a snapshot, two small files, and the deletion of a thin, of which only the root of the tree
is its own: some ten metadata blocks and fifteen fsyncs whatever is mapped. What the device alone held is freed besides.
200 snapshots are one commit, and 200 small files that are flushed side by side; to that comes the start of Python.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import cowfs
from bench.rig.harness import Bench, timed
from cowfs.benchmarks.workloads.large_homes import make_mapped_home

ROLLBACKS_PER_ROUND = 20
AT_ONCE = 200
LIMIT_SECONDS = 1.0


def run(bench: Bench) -> None:
    _rollbacks(bench)
    _many_at_once(bench)


def _rollbacks(bench: Bench) -> None:
    sizes = {"16 k": 1 << 14, "16 M": bench.size(1 << 24, 1 << 16)}
    homes = {}
    try:
        for name, mapped in sizes.items():
            home = bench.directory / name.replace(" ", "")
            make_mapped_home(home, mapped)
            homes[f"{name} mapped blocks"] = cowfs.open_home(home)

        def milliseconds(home: cowfs.Home, keeping: itertools.count[int] | None) -> float:
            def roll_back() -> None:
                for _ in range(ROLLBACKS_PER_ROUND):
                    keep = None if keeping is None else f"kept-{next(keeping)}"
                    home.rollback("web", "snapshot", keep=keep)

            return 1000 * timed(roll_back) / ROLLBACKS_PER_ROUND

        for question, keeping in (("one rollback", None), ("one rollback --keep", itertools.count())):
            contenders = {name: partial(milliseconds, home, keeping) for name, home in homes.items()}
            small, large = bench.compare(question, contenders, unit="ms").values()
            bench.goal_ratio(f"{question}, 16 M / 16 k", large, small, at_most=1.5)
    finally:
        for opened in homes.values():
            opened.close()


def _many_at_once(bench: Bench) -> None:
    home = bench.directory / "home"
    count = bench.size(AT_ONCE, 20)
    options = cowfs.HomeOptions(base_size_bytes=64 << 20, metadata_size_bytes=64 << 20)
    with cowfs.open_home(home, create=True, options=options) as opened:
        opened.create("web")
    numbers = itertools.count()

    def snapshots() -> float:
        words = ["snapshot", "web", f"web-{next(numbers)}-{{}}", "--count", str(count)]
        command = [str(Path(sys.executable).with_name("cowfs")), "--home", str(home), *words]
        return timed(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))

    (found,) = bench.compare(f"{count} snapshots by one command", {"cowfs": snapshots}, unit="s").values()
    bench.goal(f"seconds for {count} snapshots", found.median, at_most=LIMIT_SECONDS)
