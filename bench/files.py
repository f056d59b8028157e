"""How fast are files brought in and out without a mount, beside cp through one?

The tree is Python's library, as it is on this machine. Both sides run whole programs, which end when the files are in
the volume and committed: `cowfs cp -r`, and `cp -a` followed by `sync -f`. "Through the holder" is the same command
while another device of the home is mounted.

Expected: in a mount each file costs some six requests, of 45 us each, and its data a copy more. Without one a file is a
record, read by one process and put in its place by the same code that a mount has behind it: a third of the time, and
through the holder, where the two work at the same time, less.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from bench.rig.harness import Bench, timed

ALONE, HELD, MOUNT = "cowfs cp -r", "cowfs cp -r, through the holder", "cp -a in a mount"


def run(bench: Bench) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    source = library / "json" if bench.quick else library
    subprocess.run(["cp", "-a", source, bench.directory / "warm"], check=True)
    shutil.rmtree(bench.directory / "warm")
    homes = {name: _Home(bench.directory / str(number)) for number, name in enumerate((ALONE, HELD, MOUNT))}
    homes[HELD].mount("other")
    homes[MOUNT].mount("web")
    numbers = itertools.count()
    try:

        def copy_in(home: _Home) -> Callable[[], float]:
            return lambda: timed(lambda: home.run("cp", "-r", str(source), f"web:/{next(numbers)}"))

        def copy_in_mount(home: _Home) -> Callable[[], float]:
            def copy() -> None:
                subprocess.run(["cp", "-a", source, home.target / str(next(numbers))], check=True)
                subprocess.run(["sync", "-f", home.target], check=True)

            return lambda: timed(copy)

        found = bench.compare(
            "copy Python's library in",
            {ALONE: copy_in(homes[ALONE]), HELD: copy_in(homes[HELD]), MOUNT: copy_in_mount(homes[MOUNT])},
            unit="s",
        )
        for name in (ALONE, HELD):
            bench.goal_ratio(f"copy in, {name} / {MOUNT}", found[name], found[MOUNT], at_most=0.5)

        for home in homes.values():
            if home is homes[MOUNT]:
                subprocess.run(["cp", "-a", source, home.target / "library"], check=True)
            else:
                home.run("cp", "-r", str(source), "web:/library")

        def copy_out(home: _Home) -> Callable[[], float]:
            return lambda: timed(
                lambda: home.run("cp", "-r", "web:/library", str(bench.directory / f"out-{next(numbers)}"))
            )

        def copy_out_of_mount(home: _Home) -> Callable[[], float]:
            target = bench.directory / "out"
            command = ["cp", "-a", str(home.target / "library")]
            return lambda: timed(lambda: subprocess.run([*command, f"{target}-{next(numbers)}"], check=True))

        bench.compare(
            "copy Python's library out",
            {ALONE: copy_out(homes[ALONE]), HELD: copy_out(homes[HELD]), MOUNT: copy_out_of_mount(homes[MOUNT])},
            unit="s",
        )
    finally:
        for name in (HELD, MOUNT):
            homes[name].run("umount", str(homes[name].target))


class _Home:
    """A home with the devices web and other."""

    def __init__(self, directory: Path) -> None:
        self.target = directory / "mnt"
        self.target.mkdir(parents=True)
        self._command = [sys.executable, "-m", "cowfs", "--home", str(directory / "home")]
        for words in (["init"], ["create", "web"], ["create", "other"]):
            self.run(*words)

    def run(self, *words: str) -> None:
        subprocess.run([*self._command, *words], check=True, stdout=subprocess.DEVNULL)

    def mount(self, device: str) -> None:
        self.run("mount", device, str(self.target))
