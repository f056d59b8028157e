"""What does one process take that has 50 layers mounted at once, and what does the view of a home cost beside a mount?

Each layer is a snapshot of one that holds Python's standard library without its tests; all files of all layers are
looked at, a few are read and written, and in each one is open without a name, so that no volume may be closed.

Expected: Python and the packages take some 40 MiB; a volume's bitmaps and descriptors, 10 GiB each, some 0.5 MiB; what
the kernel knows costs 0.1 KiB an inode here; and all volumes together cache what one may, 90 MiB at most: below
200 MiB.

A request in the view of a home passes one more coroutine, some 5 us of 50 to 100. A walk by absolute path asks
for the device's name, but in a burst not every time: a few percent of the cached walks of a mount of one device, which
ask nothing, are lost in 32 questions a tenth of a second.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cowfs
from bench.rig.harness import Bench, timed
from cowfs.benchmarks import accounting

LAYERS = 50
LIMIT_MIB = 200
WHOLE, SINGLE = "view of a home", "mount of one device"


def run(bench: Bench) -> None:
    with mounted(bench.directory / "layers") as (home, target):
        measure_layers(bench, home, target)
    with ExitStack() as stack:
        _, whole = stack.enter_context(mounted(bench.directory / "whole"))
        _, single = stack.enter_context(mounted(bench.directory / "single", "layer"))
        roots = {WHOLE: whole / "layer", SINGLE: single}
        files = bench.size(1000, 50)

        def create(root: Path) -> Callable[[], float]:
            numbers = itertools.count()
            return lambda: files / timed(lambda: make_files(root / f"created-{next(numbers)}", files))

        def stat(root: Path) -> Callable[[], float]:
            make_files(root / "walked", files)
            paths = [str(root / "walked" / str(number)) for number in range(files)] * 20
            return lambda: len(paths) / timed(lambda: [os.lstat(path) for path in paths])

        for question, action in (("create and write 4 KiB", create), ("stat by absolute path", stat)):
            contenders = {name: action(root) for name, root in roots.items()}
            found = bench.compare(question, contenders, unit="files/s")
            bench.goal_ratio(f"{question}, {WHOLE} / {SINGLE}", found[WHOLE], found[SINGLE], at_least=0.8)


def measure_layers(bench: Bench, home: Path, target: Path) -> None:
    count = bench.size(LAYERS, 5)
    copied = target / "layer" / "lib"
    unwanted = shutil.ignore_patterns("test", "site-packages", "dist-packages", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), copied, ignore=unwanted, symlinks=True)
    with cowfs.open_home(home) as devices:
        for number in range(count):
            devices.snapshot("layer", f"layer-{number}")
        pid = devices.status().holder_pid
    assert pid is not None
    layers = [target / f"layer-{number}" for number in range(count)]
    with ExitStack() as stack:
        seconds = timed(lambda: [stack.enter_context(nameless(layer)) for layer in layers])
        bench.figure("first file in a layer, its volume opened", 1000 * seconds / count, "ms")
        bench.figure(f"resident memory, {count} layers open", mib(accounting.memory_bytes([pid])), "MiB")
        for layer in layers:
            use(layer)
        peak = mib(accounting.peak_memory_bytes([pid]))
        bench.figure(f"peak resident memory, {count} layers used", peak, "MiB")
    bench.goal(f"peak resident memory with {count} layers", peak, at_most=LIMIT_MIB)


@contextmanager
def mounted(directory: Path, *device: str) -> Iterator[tuple[Path, Path]]:
    """A new home with the device `layer`, all of it or one device mounted: its directory and the mount point."""
    home, target = directory / "home", directory / "mnt"
    target.mkdir(parents=True)
    command = [sys.executable, "-m", "cowfs", "--home", str(home)]
    subprocess.run([*command, "init"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command, "create", "layer"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command, "mount", *device, str(target)], check=True)
    try:
        yield home, target
    finally:
        subprocess.run([*command, "umount", str(target)], check=True)


@contextmanager
def nameless(layer: Path) -> Iterator[int]:
    """A file that is open and has no name."""
    path = layer / "nameless"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    try:
        yield fd
    finally:
        os.close(fd)


def use(layer: Path) -> None:
    for top, _, names in os.walk(layer):
        for name in names:
            os.lstat(os.path.join(top, name))
    for path in (layer / "lib" / "json").iterdir():
        path.read_bytes()
    make_files(layer / "made", 20)


def make_files(directory: Path, count: int) -> None:
    directory.mkdir()
    data = bytes(4096)
    for number in range(count):
        (directory / str(number)).write_bytes(data)


def mib(size_bytes: int | None) -> float:
    assert size_bytes is not None
    return size_bytes / (1 << 20)
