"""How fast is the raw view over FUSE, beside the least that pyfuse3 can do and beside qemu's FUSE export?

Expected: a request through pyfuse3 and trio costs some 40 us before any handler runs, the half of it in the scheduler,
which the raw view avoids while requests come one after the other. The pool adds some 5 us to a 4 KiB request (a lookup
and the checks around it), so 1.4 of a bare handler; at 1 MiB the copying dominates both, so 1.0. qemu-storage-daemon
handles one request at a time too, in C, but looks up qcow2 clusters and does its I/O in other threads: slower for small
requests, comparable for large ones.

Reads are cold for FUSE (the kernel's cached pages are dropped first) and warm for the files underneath. Writes end with
an fsync, which is part of the time: when the clock stops, all three have the data on the disk. The writes alone, which
reach the server before write(2) returns but no disk, are measured as well, without a goal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.rig.harness import Bench, timed
from bench.rig.pools import random_order

T = TypeVar("T")

MIB = 1 << 20
PAGE = 4096
DATA = os.urandom(MIB)
START_SECONDS = 30.0
COWFS, BARE, QEMU = "cowfs raw view", "bare pyfuse3 handler", "qemu-storage-daemon, qcow2"
ROUNDS = 15


def run(bench: Bench) -> None:
    size_bytes = bench.size(256, 16) * MIB
    requests = bench.size(1 << 13, 1 << 9)
    with ExitStack() as stack:
        files = {
            COWFS: stack.enter_context(cowfs_raw(bench.directory / "cowfs", size_bytes)),
            BARE: stack.enter_context(bare_handler(bench.directory / "bare", size_bytes)),
            QEMU: stack.enter_context(qemu_export(bench.directory / "qemu", size_bytes)),
        }
        opened = {name: stack.enter_context(opened_file(path)) for name, path in files.items()}
        for fd in opened.values():
            write_all(fd, size_bytes)
        offsets = [page * PAGE for page in random_order(size_bytes // PAGE)[:requests]]
        large = partial(ask, bench, opened, size_bytes // MIB)
        small = partial(ask, bench, opened, requests)
        large("sequential read, 1 MiB each", lambda fd: read_all(fd, size_bytes))
        large("sequential write and fsync, 1 MiB each", lambda fd: synced(fd, write_all, size_bytes))
        small("random read, 4 KiB each", lambda fd: read_pages(fd, offsets), of_qemu=2.5)
        small("random write and fsync, 4 KiB each", lambda fd: synced(fd, write_pages, offsets), of_qemu=1.5)
        large("sequential write, 1 MiB each", lambda fd: write_all(fd, size_bytes), has_goals=False)
        small("random write, 4 KiB each", lambda fd: write_pages(fd, offsets), has_goals=False)


def ask(
    bench: Bench,
    opened: dict[str, int],
    requests: int,
    question: str,
    action: Callable[[int], None],
    *,
    has_goals: bool = True,
    of_qemu: float = 1.0,
) -> None:
    """One question to all three, with its two goals; `of_qemu` is how much of qemu's figure is wanted."""

    def contender(fd: int) -> Callable[[], float]:
        def once() -> float:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return requests / timed(lambda: action(fd))

        return once

    contenders = {name: contender(fd) for name, fd in opened.items()}
    found = bench.compare(question, contenders, unit="requests/s", rounds=ROUNDS)
    if has_goals:
        bench.goal_ratio(f"{question}, cowfs / bare", found[COWFS], found[BARE], at_least=0.7)
        bench.goal_ratio(f"{question}, cowfs / qemu", found[COWFS], found[QEMU], at_least=of_qemu)


def read_all(fd: int, size_bytes: int) -> None:
    for offset in range(0, size_bytes, MIB):
        os.pread(fd, MIB, offset)


def write_all(fd: int, size_bytes: int) -> None:
    for offset in range(0, size_bytes, MIB):
        os.pwrite(fd, DATA, offset)


def read_pages(fd: int, offsets: list[int]) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for offset in offsets:
        os.pread(fd, PAGE, offset)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)


def write_pages(fd: int, offsets: list[int]) -> None:
    data = DATA[:PAGE]
    for offset in offsets:
        os.pwrite(fd, data, offset)


def synced(fd: int, write: Callable[[int, T], None], what: T) -> None:
    write(fd, what)
    os.fsync(fd)


@contextmanager
def opened_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def cowfs_raw(directory: Path, size_bytes: int) -> Iterator[Path]:
    home, target = directory / "home", directory / "mnt"
    target.mkdir(parents=True)
    cowfs = [sys.executable, "-m", "cowfs", "--home", str(home)]
    sizes = ["--data-size", str(2 * size_bytes + (256 << 20)), "--metadata-size", "64M", "--base-size", "16M"]
    subprocess.run([*cowfs, "init", *sizes], check=True)
    subprocess.run([*cowfs, "create", "disk", "--size", str(size_bytes)], check=True)
    subprocess.run([*cowfs, "mount", "disk", str(target), "--raw"], check=True)
    try:
        yield target / "disk"
    finally:
        subprocess.run([*cowfs, "umount", str(target)], check=True)


@contextmanager
def bare_handler(directory: Path, size_bytes: int) -> Iterator[Path]:
    target = directory / "mnt"
    target.mkdir(parents=True)
    backing = directory / "backing"
    with backing.open("wb") as file:
        file.truncate(size_bytes)
    with served([sys.executable, "-m", "cowfs.benchmarks.engines.bare_handler", str(backing), str(target)], target):
        yield target / "disk"


@contextmanager
def qemu_export(directory: Path, size_bytes: int) -> Iterator[Path]:
    directory.mkdir()
    image, target = directory / "image.qcow2", directory / "disk"
    target.touch()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size_bytes)], check=True)
    command = [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=file,node-name=file,filename={image}",
        "--blockdev",
        "driver=qcow2,node-name=disk,file=file",
        "--export",
        f"type=fuse,id=disk,node-name=disk,mountpoint={target},writable=on",
    ]
    with served(command, target):
        yield target


@contextmanager
def served(command: list[str], target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the background, from the moment its mount answers until it has ended."""
    server = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not os.path.ismount(target):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not mount {target}")
            time.sleep(0.02)
        yield server
    finally:
        if os.path.ismount(target):
            unmount = ["umount"] if os.geteuid() == 0 else [shutil.which("fusermount3") or "fusermount3", "-u"]
            subprocess.run([*unmount, str(target)], check=True)
        server.terminate()
        server.wait(START_SECONDS)
