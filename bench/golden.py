"""How long does a copy of a home take, for a test that begins with a prepared one?

Expected: by reference, or for a fresh home, a few flushes of small files; elsewhere the time of copying what the home
holds, as `cp --sparse=always` takes. The goal is for a fresh home, without the start of Python.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from functools import partial
from pathlib import Path

import cowfs
from bench.rig.harness import Bench, timed


def run(bench: Bench) -> None:
    numbers = itertools.count()
    options = cowfs.HomeOptions()
    fresh, full = bench.directory / "fresh", bench.directory / "full"
    held_bytes = bench.size(512 << 20, 8 << 20)
    for path in (fresh, full):
        with cowfs.open_home(path, create=True, options=options) as home:
            home.create("web")
            with home.device("web") as disk:
                for offset in range(0, held_bytes if path == full else 0, 1 << 20):
                    disk.pwrite((1 << 30) + offset, offset.to_bytes(4, "little") * (1 << 18))

    def clone(home: cowfs.Home) -> float:
        target = bench.directory / f"clone-{next(numbers)}"
        seconds = timed(lambda: home.clone(target))
        shutil.rmtree(target)
        return 1000 * seconds

    def copy(path: Path) -> float:
        target = bench.directory / f"copy-{next(numbers)}"
        seconds = timed(lambda: subprocess.run(["cp", "-r", "--sparse=always", path, target], check=True))
        shutil.rmtree(target)
        return 1000 * seconds

    with cowfs.open_home(fresh) as home:
        found = bench.compare(
            "a fresh home", {"clone": partial(clone, home), "cp -r --sparse=always": partial(copy, fresh)}, unit="ms"
        )
        bench.goal("ms for a clone of a fresh home", found["clone"].median, at_most=30, spread=found["clone"].spread)
    with cowfs.open_home(full) as home:
        bench.compare(
            f"a home with {held_bytes >> 20} MiB",
            {"clone": partial(clone, home), "cp -r --sparse=always": partial(copy, full)},
            unit="ms",
        )
