"""Files in a mounted tree: archives, repositories, a database; small files after a snapshot."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from cowfs.benchmarks.engines.interface import Contender, Offer
from cowfs.benchmarks.engines.plain import synced
from cowfs.benchmarks.engines.tools import find_tool, run_tool
from cowfs.benchmarks.meter import RATE, TIME, Meter, Work
from cowfs.benchmarks.workloads.disks import random_bytes
from cowfs.benchmarks.workloads.interface import Measure

_PAGE: Final = 4096
_SIZE_BYTES: Final = 1 << 30
_LARGEST_FILE_BYTES: Final = 16 << 10
_IN_A_DIRECTORY: Final = 30
_GIT: Final = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false")


class TreeWork:
    """Args: files: in the archive and in the repository; commits: of the database; wheel_files: in a wheel that pip
    installs, 0 for none.
    """

    name = "tree"
    title = "How quick is a mounted tree for programs: tar, git, SQLite?"
    expectation = (
        "The kernel's own file systems answer from memory and write at the sync. Through FUSE a file takes some five "
        "requests (look-up, create, write, attributes, close), of 20 to 100 us each. A commit of SQLite is two syncs."
    )
    needs = Offer.TREE
    x_unit = ""
    warms_up = False

    def __init__(self, *, files: int, commits: int, wheel_files: int, seed: int) -> None:
        self._files = files
        self._commits = commits
        self._wheel_files = wheel_files if importlib.util.find_spec("pip") else 0
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "files": self._files,
            "commits": self._commits,
            "wheel_files": self._wheel_files,
            "seed": self._seed,
            "sqlite": sqlite3.sqlite_version,
        }

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        archive = make_archive(self._files, self._seed)
        contender.create("tree", _SIZE_BYTES)
        with (
            tempfile.TemporaryDirectory(prefix="repository-", dir=contender.directory.parent) as repository,
            contender.tree("tree") as top,
        ):
            _make_repository(Path(repository), archive)

            def measure(meter: Meter) -> None:
                own = top / "round"
                own.mkdir()
                try:
                    self._measure(meter, own, archive, Path(repository))
                finally:
                    shutil.rmtree(own, ignore_errors=True)

            yield measure
        contender.remove("tree")

    def _measure(self, meter: Meter, top: Path, archive: bytes, repository: Path) -> None:
        with meter.line("untar and sync, files", RATE) as work:
            unpack(archive, top)
            synced(top)
            work.requests = self._files
            work.written_bytes = _content_bytes(archive)
        if find_tool("git"):
            with meter.line("git clone, files", RATE) as work:
                run_tool("git", "clone", "-q", "--no-hardlinks", repository, top / "clone")
                work.requests = self._files
        with meter.line("rm -r, files", RATE) as work:
            run_tool("rm", "-r", top / "tree")
            work.requests = self._files
        with closing(sqlite3.connect(top / "database", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("CREATE TABLE entries (key INTEGER PRIMARY KEY, value BLOB)")
            value = random_bytes(200, self._seed)
            with meter.line("SQLite commits, WAL, synchronous FULL", RATE) as work:
                for key in range(self._commits):
                    database.execute("INSERT INTO entries VALUES (?, ?)", (key, value))
                work.requests = self._commits
        if self._wheel_files:
            with meter.line("pip install from a local wheel, files", RATE) as work:
                _pip_install(top, self._wheel_files, self._seed)
                work.requests = self._wheel_files


class SmallFiles:
    """Args: files: that there are; changed: of them, after each snapshot."""

    name = "small-files"
    title = "What do small changes cost in a tree that was just snapshotted?"
    expectation = (
        "A changed file of 4 KiB touches its data, its inode, and the journal: in blocks of 64 KiB that a snapshot "
        "shares, each is a copy of 64 KiB, unless several lie in one block. What is written for each byte is decided "
        "by the size of blocks and by where the file system puts things."
    )
    needs = Offer.TREE | Offer.SNAPSHOTS
    x_unit = ""
    warms_up = True

    def __init__(self, *, files: int, changed: int, seed: int) -> None:
        self._files = files
        self._changed = changed
        self._seed = seed

    @property
    def parameters(self) -> dict[str, Any]:
        return {"files": self._files, "changed": self._changed, "seed": self._seed}

    @contextmanager
    def prepared(self, contender: Contender) -> Iterator[Measure]:
        page = random_bytes(_PAGE, self._seed)
        names = [f"directory-{number // _IN_A_DIRECTORY}/file-{number}" for number in range(self._files)]
        chosen = random.Random(self._seed).sample(names, self._changed)
        snapshots: list[str] = []
        contender.create("tree", _SIZE_BYTES)
        with contender.tree("tree") as top:
            for name in names:
                (top / name).parent.mkdir(exist_ok=True)
                (top / name).write_bytes(page)
            synced(top)

            def measure(meter: Meter) -> None:
                with meter.line("take a snapshot of the mounted tree", TIME):
                    name = f"snapshot-{len(snapshots)}"
                    contender.snapshot("tree", name)
                    snapshots.append(name)
                with meter.line("overwrite files of 4 KiB and sync", RATE) as work:
                    _overwrite(top, chosen, page, work)
                with meter.line("and once more", RATE) as work:
                    _overwrite(top, chosen, page, work)

            yield measure
        for name in [*snapshots, "tree"]:
            contender.remove(name)


def _overwrite(top: Path, names: list[str], page: bytes, work: Work) -> None:
    for name in names:
        with (top / name).open("r+b", buffering=0) as file:
            file.write(page)
    synced(top)
    work.requests += len(names)
    work.written_bytes += len(names) * len(page)


def make_archive(files: int, seed: int) -> bytes:
    """A tar archive `tree` of files of 0 to 16 KiB, thirty in a directory; the same for the same seed."""
    generator = random.Random(seed)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(files):
            data = generator.randbytes(generator.randrange(_LARGEST_FILE_BYTES))
            member = tarfile.TarInfo(f"tree/directory-{number // _IN_A_DIRECTORY}/file-{number}")
            member.size = len(data)
            member.uid, member.gid = os.geteuid(), os.getegid()
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _pip_install(top: Path, files: int, seed: int) -> None:
    """Have pip install a wheel of Python modules into a directory. Raises CowfsError."""
    wheel = top / "bench_package-1-py3-none-any.whl"
    generator = random.Random(seed)
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(files):
            lines = generator.randrange(2, 60)
            archive.writestr(f"bench_package/module_{number}.py", "value = 1\n" * lines)
        about = "bench_package-1.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: bench-package\nVersion: 1\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--no-cache-dir")
    run_tool(sys.executable, "-m", "pip", "install", *options, "--target", top / "packages", wheel)


def _content_bytes(archive: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return sum(member.size for member in tar)


def unpack(archive: bytes, top: Path) -> None:
    """By tar, as people do. Raises CalledProcessError."""
    subprocess.run([find_tool("tar") or "tar", "-x", "-C", os.fspath(top)], input=archive, check=True)


def _make_repository(path: Path, archive: bytes) -> None:
    if not find_tool("git"):
        return
    unpack(archive, path)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "files"]):
        run_tool("git", "-C", path, *_GIT, *words)
