"""How long does it take from nothing to a mounted snapshot: four commands, `init`, `create`, `snapshot`, `mount`?

Expected: each command is a Python start with imports, some 100 ms; init runs mke2fs (some 30 ms) and copies what it
wrote; mount starts a second process with pyfuse3 and trio (200 ms): some 700 ms in all.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.rig.harness import Bench, timed

LIMIT_SECONDS = 1.0


def run(bench: Bench) -> None:
    numbers = itertools.count()
    cowfs = str(Path(sys.executable).with_name("cowfs"))
    steps: dict[str, list[float]] = {}

    def from_nothing() -> float:
        directory = bench.directory / str(next(numbers))
        target = directory / "mnt"
        target.mkdir(parents=True)
        home = [cowfs, "--home", str(directory / "home")]
        commands = {
            "init": [*home, "init"],
            "create": [*home, "create", "web"],
            "snapshot": [*home, "snapshot", "web", "web-1"],
            "mount": [*home, "mount", "web-1", str(target)],
        }
        try:
            for name, command in commands.items():
                run_command = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
                steps.setdefault(name, []).append(timed(run_command))
        finally:
            subprocess.run([cowfs, "umount", str(target)], check=True)
        return sum(times[-1] for times in steps.values())

    (found,) = bench.compare("init, create, snapshot, mount", {"cowfs": from_nothing}, unit="s").values()
    for name, times in steps.items():
        print(f"    of which {name}: {min(times):.3f} to {max(times):.3f} s")
    bench.goal("seconds from nothing to a mounted snapshot", found.median, at_most=LIMIT_SECONDS)
