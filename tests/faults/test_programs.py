"""Common programs, on a disk that fails: each says so, and what it had promised is there afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

SQLITE = """
import sqlite3, sys
path, mode = sys.argv[1:]
database = sqlite3.connect(path)
database.execute(f"pragma journal_mode={mode}")
database.execute("pragma synchronous=full")
database.execute("create table if not exists t(k integer primary key, v)")
print("ready", flush=True)
sys.stdin.readline()
done = failed = 0
for number in range(40):
    try:
        with database:
            database.execute("insert into t(v) values (?)", ("x" * 2000,))
        done += 1
    except sqlite3.Error:
        failed += 1
print(done, failed, flush=True)
sys.stdin.readline()
print(*database.execute("pragma integrity_check").fetchone(), *database.execute("select count(*) from t").fetchone())
"""


@pytest.fixture
def mounted(account: Account, needs_fuse: None) -> Iterator[MountedHome]:
    mounted = MountedHome(account)
    mounted.run("init", *SMALL)
    mounted.run("create", "web")
    mounted.run("mount", "web", mounted.target)
    yield mounted
    mounted.run("faults", "clear")
    mounted.run("umount", mounted.target)
    mounted.judge()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite(mounted: MountedHome, mode: str) -> None:
    """Every transaction that succeeded is there, and no other; the database is whole."""
    program = mounted.account.start([sys.executable, "-c", SQLITE, mounted.target / "db", mode], stdin=-1, stdout=-1)
    assert program.stdin is not None
    assert program.stdout is not None
    with program:
        assert program.stdout.readline() == "ready\n"
        for words in (
            ["error", "write", "--path", "db-*", "--errno", "ENOSPC", "--probability", "0.1", "--seed", "1"],
            ["error", "fsync", "--probability", "0.05", "--seed", "2"],
            ["error", "write", "--on", "device", "--after", "50", "--times", "2"],
            ["delay", "fsync", "--seconds", "0.001"],
            ["tear", "write", "--path", "db-*", "--errno", "EIO", "--nth", "30"],
        ):
            mounted.run("faults", "add", "web", *words)
        program.stdin.write("\n")
        program.stdin.flush()
        done, failed = map(int, program.stdout.readline().split())
        assert done
        assert failed
        mounted.run("faults", "clear")
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == f"ok {done}\n"


def test_git(mounted: MountedHome) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git; run: sudo apt-get install git")
    repository = mounted.target / "repository"

    def git(*words: object, check: bool = True) -> int:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return mounted.account.run(["git", "-C", repository, *names, *words], check=check).returncode

    mounted.account.run(["git", "init", "-q", repository])
    for number, words in enumerate(
        (
            ["error", "write", "--path", ".git/objects/**", "--nth", "2"],
            ["error", "rename", "--path", "*.lock", "--errno", "EACCES"],
            ["error", "create", "--path", "*.lock", "--errno", "ENOSPC"],
            ["error", "write", "--on", "data", "--errno", "ENOSPC"],
        )
    ):
        mounted.shell(f"echo {number} >> '{repository}/file'")
        mounted.run("faults", "add", "*", *words)
        assert git("add", "file", check=False) or git("commit", "-qm", "with faults", check=False)
        mounted.run("faults", "clear")
        git("fsck", "--strict")
        git("add", "file")
        git("commit", "-qm", "without")
    git("fsck", "--strict")
    assert git("diff", "--quiet", "HEAD") == 0


def test_dd_and_cp(mounted: MountedHome) -> None:
    account, target = mounted.account, mounted.target

    def run(*words: object) -> str:
        return account.run(words, check=False).stderr

    dd = ("dd", "if=/dev/zero", f"of={target}/zeros", "bs=64k", "count=20", "conv=fsync")
    mounted.run("faults", "add", "*", "error", "write", "--errno", "ENOSPC", "--nth", "5")
    assert "error writing" in (said := run(*dd))
    assert "No space left on device" in said
    mounted.run("faults", "add", "*", "error", "fsync", "--nth", "1")
    assert "fsync failed" in run(*dd)
    mounted.run("faults", "add", "*", "error", "flush", "--on", "device", "--times", "1")
    assert "fsync failed" in run(*dd)
    assert "1310720 bytes" in run(*dd)
    original = account.directory / "original"
    account.run(["dd", "if=/dev/urandom", f"of={original}", "bs=1000", "count=300"])
    mounted.run("faults", "add", "*", "short", "write", "--keep-bytes", "100", "--probability", "0.5")
    account.run(["cp", original, target / "copy"])
    account.run(["cmp", original, target / "copy"])
    mounted.run("faults", "add", "*", "error", "read", "--path", "copy", "--bytes", "200K:201K")
    assert "Input/output error" in run("cp", target / "copy", account.directory / "again")
