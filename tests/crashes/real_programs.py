"""Crash tests of databases and of git: `python -m tests.crashes.real_programs CASE [--states N] [--model M]`.

Not part of the test suite, which would be long: the table in docs/crash-states.md is made of what this prints. A case
stops at its first failing state. What is not installed here is said.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cowfs
from cowfs.crashes.explorer import Explorer
from cowfs.crashes.program import how_ended

Mark = Callable[[str], None]
VALUE_BYTES = 3000
CHANGES = 6
_OPTIONS = cowfs.HomeOptions(
    data_size_bytes=32 << 30, metadata_size_bytes=64 << 20, base_size_bytes=512 << 20, min_free_percent=0
)


class Case(NamedTuple):
    """How to make a database, change it with marks, and check what is left. `version`: what was tested."""

    prepare: Callable[[Path], object]
    work: Callable[[Path, Mark], object]
    check: Callable[[Path, Sequence[str]], object]
    version: Callable[[], str]


def value(number: int) -> bytes:
    return bytes([64 + number % 64]) * VALUE_BYTES


def promised(marks: Sequence[str]) -> int:
    return int(marks[-1]) if marks else 0


def require(is_true: bool, what: str) -> None:
    if not is_true:
        raise AssertionError(what)


def run(words: Sequence[str | Path], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, **options
    )
    require(
        done.returncode == 0,
        f"{words[0]} {words[1]} ended with {how_ended(done.returncode)}: {done.stderr[-500:]}{done.stdout[-200:]}",
    )
    return done.stdout


# --- SQLite ---------------------------------------------------------------------------------------------------------


def sqlite(journal: str, synchronous: str, *, is_durable: bool = True) -> Case:
    """`is_durable`: whether what was committed last must be there, too; else only all of a transaction or none."""

    def open_database(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path / "db", isolation_level=None)
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute(f"PRAGMA synchronous={synchronous}")
        return database

    def prepare(path: Path) -> None:
        database = open_database(path)
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB, n INTEGER)")
        database.execute("INSERT INTO t VALUES (0, ?, 0)", (value(0),))
        database.close()

    def work(path: Path, mark: Mark) -> None:
        database = open_database(path)
        for number in range(1, CHANGES + 1):
            database.execute("BEGIN")
            database.execute("INSERT INTO t VALUES (?, ?, 0)", (number, value(number)))
            database.execute("UPDATE t SET n = ?", (number,))
            database.execute("COMMIT")
            mark(str(number))
        database.close()

    def check(path: Path, marks: Sequence[str]) -> None:
        database = sqlite3.connect(path / "db")
        try:
            (answer,) = database.execute("PRAGMA integrity_check").fetchone()
            require(answer == "ok", f"integrity_check: {answer}")
            rows = database.execute("SELECT k, v, n FROM t ORDER BY k").fetchall()
        finally:
            database.close()
        require([row[0] for row in rows] == list(range(len(rows))), "rows are missing")
        require(all(v == value(k) for k, v, _ in rows), "a value is damaged")
        require({n for _, _, n in rows} == {len(rows) - 1}, "half of a transaction")
        require(
            not is_durable or len(rows) > promised(marks), f"{promised(marks)} was promised, {len(rows) - 1} is there"
        )

    return Case(prepare, work, check, lambda: f"SQLite {sqlite3.sqlite_version}")


# --- git ------------------------------------------------------------------------------------------------------------


def git(fsync: str, *, is_durable: bool = True) -> Case:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def call(path: Path, *words: str) -> str:
        return run(["git", "-C", path, "-c", f"core.fsync={fsync}", "-c", "gc.auto=0", *words], env=environment)

    def prepare(path: Path) -> None:
        call(path, "init", "-q", "-b", "main", ".")
        commit(path, 0)

    def commit(path: Path, number: int) -> None:
        (path / "file").write_bytes(value(number))
        (path / f"file-{number}").write_bytes(value(number))
        call(path, "add", ".")
        call(path, "commit", "-qm", str(number))

    def work(path: Path, mark: Mark) -> None:
        for number in range(1, 4):
            commit(path, number)
            mark(str(number))

    def check(path: Path, marks: Sequence[str]) -> None:
        for lock in (path / ".git").rglob("*.lock"):  # a person would remove it
            lock.unlink()
        call(path, "fsck", "--full", "--strict")
        found = int(call(path, "log", "-1", "--format=%s", "main"))
        require(not is_durable or found >= promised(marks), f"commit {promised(marks)} was promised, {found} is there")
        require(call(path, "show", "main:file").encode() == value(found), "a file is damaged")

    return Case(prepare, work, check, lambda: run(["git", "--version"]).strip())


# --- key-value stores -----------------------------------------------------------------------------------------------


def gdbm() -> Case:
    import dbm.gnu  # noqa: PLC0415 - not installed everywhere

    def prepare(path: Path) -> None:
        with dbm.gnu.open(str(path / "db"), "c") as database:
            database["0"] = value(0)

    def work(path: Path, mark: Mark) -> None:
        with dbm.gnu.open(str(path / "db"), "w") as database:
            for number in range(1, CHANGES + 1):
                database[str(number)] = value(number)
                database.sync()
                mark(str(number))

    def check(path: Path, marks: Sequence[str]) -> None:
        with dbm.gnu.open(str(path / "db"), "r") as database:
            for number in range(promised(marks) + 1):
                require(database.get(str(number)) == value(number), f"{number} is lost or damaged")

    return Case(prepare, work, check, lambda: f"GDBM, Python {sys.version.split()[0]}")


def lmdb(*, sync: bool) -> Case:
    import lmdb as library  # noqa: PLC0415 - as above

    def opened(path: Path) -> Any:
        return library.open(str(path / "db"), map_size=64 << 20, sync=sync)

    def put(database: Any, number: int) -> None:
        with database.begin(write=True) as transaction:
            transaction.put(b"%d" % number, value(number))

    def prepare(path: Path) -> None:
        with opened(path) as database:
            put(database, 0)

    def work(path: Path, mark: Mark) -> None:
        with opened(path) as database:
            for number in range(1, CHANGES + 1):
                put(database, number)
                mark(str(number))

    def check(path: Path, marks: Sequence[str]) -> None:
        """In a child: a file that is shorter than its map ends the process."""
        code = (
            "import lmdb, sys\nwith lmdb.open(sys.argv[1], map_size=64 << 20, readonly=True) as d, d.begin() as t:\n"
            "    print({bytes(k): bytes(v) for k, v in t.cursor()})"
        )
        found = ast.literal_eval(run([sys.executable, "-c", code, path / "db"]))
        for number in range(max(len(found), promised(marks) + 1)):
            require(found.get(b"%d" % number) == value(number), f"{number} is lost or damaged")

    return Case(prepare, work, check, lambda: f"LMDB {'.'.join(map(str, library.version()))}")


def leveldb(*, sync: bool) -> Case:
    import plyvel  # noqa: PLC0415 - as above

    def opened(path: Path, **options: bool) -> Any:
        return plyvel.DB(str(path / "db"), create_if_missing=True, write_buffer_size=8000, **options)

    def prepare(path: Path) -> None:
        database = opened(path)
        database.put(b"0", value(0), sync=True)
        database.close()

    def work(path: Path, mark: Mark) -> None:
        database = opened(path)
        for number in range(1, CHANGES + 1):
            database.put(b"%d" % number, value(number), sync=sync)
            mark(str(number))
        database.close()

    def check(path: Path, marks: Sequence[str]) -> None:
        database = opened(path, paranoid_checks=True)
        try:
            found = dict(database.iterator(verify_checksums=True))
        finally:
            database.close()
        for number in range(max(len(found), promised(marks) + 1)):
            require(found.get(b"%d" % number) == value(number), f"{number} is lost or damaged")

    return Case(prepare, work, check, lambda: f"LevelDB with plyvel {plyvel.__version__}")


# --- PostgreSQL -----------------------------------------------------------------------------------------------------


def postgresql(*, fsync: bool) -> Case:
    """As the user postgres where this is root, which PostgreSQL refuses to be."""
    (programs,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    setting = f"fsync={'on' if fsync else 'off'}"

    def server(path: Path, sql: str) -> str:
        """One backend of its own, without a network."""
        words = [*as_user, programs / "postgres", "--single", "-D", path / "data", "-c", setting, "postgres"]
        done = subprocess.run(list(map(str, words)), input=sql, capture_output=True, text=True, check=False, timeout=50)
        require(done.returncode == 0 and "ERROR" not in done.stderr, done.stderr[-400:])
        return done.stdout

    def prepare(path: Path) -> None:
        (path / "data").mkdir(mode=0o700)
        if as_user:
            shutil.chown(path / "data", "postgres", "postgres")
            path.chmod(0o755)
        run([*as_user, programs / "initdb", "-D", path / "data", "-A", "trust", "--no-sync"], cwd="/")
        server(path, "CREATE TABLE t (k int PRIMARY KEY, v text);\nCHECKPOINT;\n")

    def work(path: Path, mark: Mark) -> None:
        words = [*as_user, programs / "postgres", "--single", "-D", path / "data", "-c", setting, "postgres"]
        with subprocess.Popen(
            list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as backend:
            assert backend.stdin is not None
            assert backend.stdout is not None
            for number in range(1, 4):
                backend.stdin.write(
                    f"INSERT INTO t VALUES ({number}, repeat('{number}', 3000));\nSELECT {number} AS d;\n"
                )
                backend.stdin.flush()
                while f'd = "{number}"' not in backend.stdout.readline():
                    pass
                mark(str(number))
            backend.stdin.close()

    def check(path: Path, marks: Sequence[str]) -> None:
        (path / "data" / "postmaster.pid").unlink(missing_ok=True)
        found = server(path, "SELECT count(*) AS n FROM t WHERE v = repeat(k::text, 3000);\n")
        count = int(found.split('n = "')[1].split('"')[0])
        require(count >= promised(marks), f"{promised(marks)} rows were promised, {count} are there")

    return Case(prepare, work, check, lambda: run([programs / "postgres", "--version"]).strip())


CASES: dict[str, Callable[[], Case]] = {
    "sqlite-rollback-full": lambda: sqlite("DELETE", "FULL"),
    "sqlite-rollback-full-whole": lambda: sqlite("DELETE", "FULL", is_durable=False),
    "sqlite-rollback-extra": lambda: sqlite("DELETE", "EXTRA"),
    "sqlite-persist-full": lambda: sqlite("PERSIST", "FULL"),
    "sqlite-wal-full": lambda: sqlite("WAL", "FULL"),
    "sqlite-rollback-off": lambda: sqlite("DELETE", "OFF"),
    "sqlite-wal-off": lambda: sqlite("WAL", "OFF"),
    "git-fsync-all": lambda: git("all"),
    "git-fsync-all-whole": lambda: git("all", is_durable=False),
    "git-fsync-none": lambda: git("none"),
    "gdbm-sync": gdbm,
    "lmdb-sync": lambda: lmdb(sync=True),
    "lmdb-nosync": lambda: lmdb(sync=False),
    "leveldb-sync": lambda: leveldb(sync=True),
    "leveldb-nosync": lambda: leveldb(sync=False),
    "postgresql-fsync-on": lambda: postgresql(fsync=True),
    "postgresql-fsync-off": lambda: postgresql(fsync=False),
}


def keep(explorer: Explorer, home: cowfs.Home, path: Path) -> None:
    """Write a recording to a file, and the disk before it to another, for `tests.ext4.write_order`."""
    assert explorer.recording is not None
    path.write_bytes(explorer.recording.file)
    home.export_image(f"{explorer.device}.before", path.with_name(f"{path.name}.before"), format="raw")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--model", choices=["ext4", "posix"], default="ext4")
    parser.add_argument("--seconds", type=float, default=math.inf, help="try no more states after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the recording and what was before it there")
    arguments = parser.parse_args()
    case = CASES[arguments.case]()
    tried, found, planned, has_failed = 0, "nothing", 0, False
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cowfs-real-") as directory,
        cowfs.open_home(f"{directory}/home", create=True, options=_OPTIONS, durable=False) as home,
        home.mount() as mount_point,
        Explorer.started(home, mount_point, model=arguments.model, seed=arguments.seed) as explorer,
    ):
        mount_point.parent.chmod(0o755)
        case.prepare(explorer.path)
        with explorer.record() as path:
            case.work(path, explorer.mark)
        if arguments.keep:
            keep(explorer, home, arguments.keep)
        planned = len(explorer.plan(arguments.states))
        try:
            for state in explorer.states(arguments.states):
                tried += 1
                with state.opened() as path:
                    case.check(path, state.marks)
                has_failed = has_failed or state.failure is not None
                if time.monotonic() - begin > arguments.seconds and not has_failed:
                    break
        except Exception as error:
            found = f"{type(error).__name__}: {error}; {'; '.join(getattr(error, '__notes__', []))}"
    seconds = time.monotonic() - begin
    print(
        f"{arguments.case} | {case.version()} | {arguments.model} | seed {arguments.seed} | {tried} tried of {planned} "
        f"| {seconds:.0f} s | found: {found}",
        flush=True,
    )


if __name__ == "__main__":
    main()
