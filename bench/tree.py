"""How fast is a mounted tree, beside fuse2fs and beside passthrough_ll, the C example of libfuse?

All three keep their files in one directory. fuse2fs is libext2fs behind libfuse, in C; it writes no journal, and fsync
there brings less to the disk than here, where it commits the journal and the pool. passthrough_ll hands each request to
the file system below it and keeps none itself: the least that a FUSE server in C does, with the kernel caching as here.

Expected: a request costs two system calls and two switches between client and server, and here some 20 us of libfuse,
pyfuse3 and trio, and a handler in Python. A switch takes 5 us or less on one processor, and ten times as much to
another one that sleeps: which it is decides most of a cheap request, and it is the kernel's choice. Where it is one
processor, C needs a half to a fifth of our time. What the kernel caches (names, missing names, pages) is asked for
once, but not by fuse2fs. Large requests are a copy here and there: level with passthrough_ll or better.

`--part 1` and `--part 2` take less than four minutes each. What the servers need of a processor is in `requests`, the
raw view beside qemu in `raw`. Files are written cold and read as said: "cold" is cold for FUSE alone.

A peer that is not here is left out. fuse2fs is Debian's package of that name; passthrough_ll is compiled from Debian's
libfuse3-dev (/usr/share/doc/libfuse3-dev/examples, from the source of fuse3).
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.rig.engines import PASSTHROUGH, set_up
from bench.rig.harness import Bench, timed
from cowfs.benchmarks.engines.homes import EMULATED
from cowfs.benchmarks.engines.interface import Contender
from cowfs.benchmarks.engines.served import FUSE2FS

TREE_BYTES = 10 << 30
PAGE = 4096
MIB = 1 << 20
SEED = 1

Action = Callable[[Path], float]


def run(bench: Bench) -> None:
    with mounted_trees(bench) as mounts:
        ask = Rows(bench, {contender.name: root for contender, root in mounts})
        if bench.part != 2:
            small_files(ask, bench.size(500, 50))
        if bench.part != 1:
            one_file(ask, bench.size(4000, 100), bench.size(64, 4))
            trees(ask, bench)


class Rows:
    """The questions: each asked of all mounts in turn, with the least that is wanted beside either peer."""

    def __init__(self, bench: Bench, roots: dict[str, Path]) -> None:
        self._bench = bench
        self._roots = roots
        self._numbers = itertools.count()

    def __call__(
        self, question: str, unit: str, action: Action, *, of_fuse2fs: float, of_passthrough: float | None = None
    ) -> None:
        """Args: action: what is measured, in a new directory; units per second."""

        def contender(root: Path) -> Callable[[], float]:
            def once() -> float:
                directory = root / f"round{next(self._numbers)}"
                directory.mkdir()
                try:
                    return action(directory)
                finally:
                    shutil.rmtree(directory)

            return once

        found = self._bench.compare(
            question, {name: contender(root) for name, root in self._roots.items()}, unit=f"{unit}/s"
        )
        for peer, at_least in ((FUSE2FS.name, of_fuse2fs), (PASSTHROUGH.name, of_passthrough)):
            if {EMULATED.name, peer} <= found.keys() and at_least is not None:
                name = f"{question}: {EMULATED.name} / {peer}"
                self._bench.goal_ratio(name, found[EMULATED.name], found[peer], at_least=at_least)


# --- small files


def small_files(ask: Rows, count: int) -> None:
    def paths(directory: Path) -> list[str]:
        return [f"{directory}/{number}" for number in range(count)]

    def made(directory: Path, data: bytes = b"") -> list[str]:
        for path in paths(directory):
            create(path, data)
        return paths(directory)

    def rate(action: Callable[[str], object], of: list[str]) -> float:
        return count / timed(lambda: [action(path) for path in of])

    def read(directory: Path) -> float:
        files = made(directory, bytes(PAGE))
        for path in files:
            read_file(path)
        return rate(read_file, files)

    def rename(path: str) -> None:
        os.rename(path, path + "-renamed")

    def make_and_remove(path: str) -> None:
        os.mkdir(path)
        os.rmdir(path)

    ask("create", "files", lambda top: rate(create, paths(top)), of_fuse2fs=1.5, of_passthrough=0.7)
    with_data = bytes(PAGE)
    ask(
        "create and write 4 KiB",
        "files",
        lambda top: rate(lambda path: create(path, with_data), paths(top)),
        of_fuse2fs=2,
        of_passthrough=0.7,
    )
    ask("open and read 4 KiB, cached", "files", read, of_fuse2fs=5, of_passthrough=1.5)
    ask("missing names", "names", lambda top: rate(os.path.exists, paths(top)), of_fuse2fs=3, of_passthrough=0.6)
    ask("rename", "files", lambda top: rate(rename, made(top)), of_fuse2fs=2.5, of_passthrough=0.5)
    ask("unlink", "files", lambda top: rate(os.unlink, made(top)), of_fuse2fs=2.5, of_passthrough=0.5)
    ask("mkdir and rmdir", "pairs", lambda top: rate(make_and_remove, paths(top)), of_fuse2fs=1.5, of_passthrough=0.5)


def create(path: str, data: bytes = b"") -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    if data:
        os.write(fd, data)
    os.close(fd)


def read_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, PAGE)
    os.close(fd)


# --- one file


def one_file(ask: Rows, requests: int, size_mib: int) -> None:
    pages = size_mib * MIB // PAGE
    generator = random.Random(SEED)
    offsets = [generator.randrange(pages) * PAGE for _ in range(requests)]
    page, large = os.urandom(PAGE), os.urandom(MIB)

    def write_all(fd: int) -> None:
        for number in range(size_mib):
            os.pwrite(fd, large, number * MIB)

    def read_all(fd: int) -> None:
        for number in range(size_mib):
            os.pread(fd, MIB, number * MIB)

    def write_random(fd: int) -> None:
        for offset in offsets:
            os.pwrite(fd, page, offset)

    def read_random(fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in offsets:
            os.pread(fd, PAGE, offset)

    def write_and_sync(fd: int) -> None:
        for offset in offsets[:synced]:
            os.pwrite(fd, page, offset)
            os.fsync(fd)

    def on_file(count: int, action: Callable[[int], None], *, is_written: bool = True) -> Action:
        def measured(directory: Path) -> float:
            fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
            try:
                if is_written:
                    write_all(fd)
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                return count / timed(lambda: action(fd))
            finally:
                os.close(fd)

        return measured

    synced = requests // 8
    ask("random 4 KiB write", "requests", on_file(requests, write_random), of_fuse2fs=1.2, of_passthrough=0.8)
    ask("random 4 KiB read, cold", "requests", on_file(requests, read_random), of_fuse2fs=1, of_passthrough=0.8)
    ask("4 KiB write and fsync", "pairs", on_file(synced, write_and_sync), of_fuse2fs=0.7, of_passthrough=0.5)
    sequential = on_file(size_mib, write_all, is_written=False)
    ask("sequential 1 MiB write", "MiB", sequential, of_fuse2fs=4, of_passthrough=0.9)
    ask("sequential 1 MiB read, cold", "MiB", on_file(size_mib, read_all), of_fuse2fs=4, of_passthrough=1.9)


# --- trees


def trees(ask: Rows, bench: Bench) -> None:
    files = bench.size(1500, 60)
    archive, repository = bench.directory / "files.tar", bench.directory / "repository"
    make_tree(repository, files)
    with tarfile.open(archive, "w") as tar:
        tar.add(repository, "tree")
    git = ["git", "-C", str(repository), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "files"]):
        subprocess.run([*git, *words], check=True)

    def untar(top: Path) -> float:
        return files / timed(lambda: subprocess.run(["tar", "-xf", str(archive), "-C", str(top)], check=True))

    def clone(top: Path) -> float:
        command = ["git", "clone", "-q", "--no-hardlinks", str(repository), str(top / "clone")]
        return 1 / timed(lambda: subprocess.run(command, check=True))

    def remove(top: Path) -> float:
        untar(top)
        return files / timed(lambda: subprocess.run(["rm", "-r", str(top / "tree")], check=True))

    ask(f"untar of {files} files", "files", untar, of_fuse2fs=1.3, of_passthrough=0.7)
    ask(f"git clone of {files} files", "clones", clone, of_fuse2fs=1.5, of_passthrough=0.7)
    ask(f"rm -r of {files} files", "files", remove, of_fuse2fs=1.5, of_passthrough=0.7)


def make_tree(top: Path, files: int) -> None:
    """Files of 0 to 16 KiB, thirty in a directory."""
    generator = random.Random(SEED)
    for number in range(files):
        path = top / f"directory{number // 30}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(generator.randrange(16 << 10)))


# --- mounts


@contextmanager
def mounted_trees(bench: Bench) -> Iterator[list[tuple[Contender, Path]]]:
    """A tree of each engine that works here."""
    with ExitStack() as stack:
        contenders = set_up(bench, [EMULATED, FUSE2FS, PASSTHROUGH], stack)
        for contender in contenders:
            contender.create("tree", TREE_BYTES)
        yield [(contender, stack.enter_context(contender.tree("tree"))) for contender in contenders]
