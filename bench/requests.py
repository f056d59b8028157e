"""How much of a processor does the server of a mounted tree need for an operation, beside fuse2fs and passthrough_ll?

Client and servers share one processor at real-time priority, so that nothing else runs between a request and its
answer; a figure is the least of several windows of a few operations, so that it says what an operation needs, whatever
else the machine does, and hardly moves when others use it. What a client waits for beside that, the switch between two
processes and the disk, is in `tree`. Needs root.

Expected: in C a handler is next to nothing, and a request is its system calls and the switch: 8 to 20 us. Here the
interpreter takes most of the time, and more than when the same handler runs again and again: after a switch to another
process it finds the processor's caches and predictions gone.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.rig.harness import Bench
from bench.tree import MIB, PAGE, SEED, create, mounted_trees, read_file
from cowfs.errors import MissingRequirement
from cowfs.home.api.home import open_home

GATHERED = "emulated, --writeback"
ROUNDS = 3
OPERATIONS = 40
PRIORITY = 10
DATA = bytes(PAGE)
LINE = b"x" * 100

Action = Callable[[], object]
Prepare = Callable[[Path], Action]


def run(bench: Bench) -> None:
    if os.geteuid() != 0:
        raise MissingRequirement("only root has real-time priority", remedy="sudo .venv/bin/python -m bench requests")
    windows = bench.size(8, 2)
    with ExitStack() as stack:
        with in_real_time():  # which the servers inherit
            served: dict[str, tuple[int, Path]] = {}
            for mounted, root in stack.enter_context(mounted_trees(bench)):
                (pid,) = mounted.processes()
                served[mounted.name] = pid, root
            served[GATHERED] = stack.enter_context(gathering_tree(bench.directory / "gathered"))
        for question, prepare in QUESTIONS.items():
            bench.compare(
                question,
                {name: contender(pid, root, prepare, windows) for name, (pid, root) in served.items()},
                unit="us",
                rounds=ROUNDS,
                warm_up=False,
            )


@contextmanager
def gathering_tree(directory: Path) -> Iterator[tuple[int, Path]]:
    """A tree of which the kernel gathers the writes: its server and its root."""
    with open_home(directory, create=True) as home:
        home.create("tree")
        with home.mount("tree", writeback=True) as root:
            assert home.holder_pid is not None
            yield home.holder_pid, root


@contextmanager
def in_real_time() -> Iterator[None]:
    """On one processor, before everything else there; an affinity of the caller's is restored."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, allowed)


def contender(pid: int, root: Path, prepare: Prepare, windows: int) -> Callable[[], float]:
    """Microseconds of the server's processor time for an operation, the least of some windows."""

    def once() -> float:
        return min(window() for _ in range(windows))

    def window() -> float:
        directory = root / "window"
        directory.mkdir()
        action = prepare(directory)
        with in_real_time():
            begin = processor_ns(pid)
            action()
            taken = processor_ns(pid) - begin
        shutil.rmtree(directory, ignore_errors=True)
        return taken / OPERATIONS / 1000

    return once


def processor_ns(pid: int) -> int:
    """Of all threads of a process, also of those that have ended (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


# --- questions: what is prepared in a new directory, and what is measured then


def each(action: Callable[[str], object], made: Callable[[str], object] | None = None) -> Prepare:
    """An action on each of the paths, which are made before where that is said."""

    def prepare(directory: Path) -> Action:
        paths = [f"{directory}/{number}" for number in range(OPERATIONS)]
        for path in paths if made else ():
            made(path)  # type: ignore[misc]
        return lambda: [action(path) for path in paths]

    return prepare


def on_file(action: Callable[[int, int], object]) -> Prepare:
    """An action at random places of a file that is not cached."""
    generator = random.Random(SEED)

    def prepare(directory: Path) -> Action:
        fd = os.open(directory.parent / "file", os.O_RDWR | os.O_CREAT)
        if not os.fstat(fd).st_size:
            for number in range(8):
                os.pwrite(fd, os.urandom(MIB), number * MIB)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        offsets = [generator.randrange(8 * MIB // PAGE) * PAGE for _ in range(OPERATIONS)]

        def act() -> None:
            for offset in offsets:
                action(fd, offset)
            os.close(fd)

        return act

    return prepare


def write_and_sync(fd: int, offset: int) -> None:
    os.pwrite(fd, DATA, offset)
    os.fsync(fd)


def appending(directory: Path) -> Action:
    def act() -> None:
        fd = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _ in range(OPERATIONS):
            os.write(fd, LINE)
        os.close(fd)

    return act


def unpacking(directory: Path) -> Action:
    """As tar does it: files of 0 to 16 KiB in a directory, in pieces of 10 KiB, with owner, mode and times."""
    generator = random.Random(SEED)
    contents = [generator.randbytes(generator.randrange(16 << 10)) for _ in range(OPERATIONS)]

    def act() -> None:
        for number, content in enumerate(contents):
            fd = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
            for begin in range(0, len(content), 10240):
                os.write(fd, content[begin : begin + 10240])
            os.utime(fd, (1, 1))
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o644)
            os.close(fd)

    return act


def removing(directory: Path) -> Action:
    unpacking(directory)()
    return lambda: shutil.rmtree(directory)


def make_and_remove(path: str) -> None:
    os.mkdir(path)
    os.rmdir(path)


def create_with_data(path: str) -> None:
    create(path, DATA)


def create_and_read(path: str) -> None:
    create(path, DATA)
    read_file(path)


QUESTIONS: dict[str, Prepare] = {
    "missing names": each(os.path.exists),
    "create": each(create),
    "create and write 4 KiB": each(create_with_data),
    "open and read 4 KiB, cached": each(read_file, create_and_read),
    "rename": each(lambda path: os.rename(path, path + "-renamed"), create),
    "unlink": each(os.unlink, create),
    "mkdir and rmdir": each(make_and_remove),
    "random 4 KiB write": on_file(lambda fd, offset: os.pwrite(fd, DATA, offset)),
    "random 4 KiB read, cold": on_file(lambda fd, offset: os.pread(fd, PAGE, offset)),
    "4 KiB write and fsync": on_file(write_and_sync),
    "100 bytes appended": appending,
    "untar, a file": unpacking,
    "rm -r, a file": removing,
}
