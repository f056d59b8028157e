"""Programs that people use, through the mount; everything is looked at again after unmounting and mounting."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Account
    from tests.realuse.conftest import UsedHome

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def assert_same_trees(account: Account, left: Path, right: Path) -> None:
    """Contents, kinds, permissions, owners, link targets, and times to the nanosecond; sizes of directories aside."""
    account.run(["diff", "-r", "--no-dereference", left, right])
    facts = ["-printf", "%P %y %m %U %G %T@ %l ", "(", "-type", "d", "-printf", "\n", "-o", "-printf", "%s\n", ")"]
    lists = [account.run(["find", tree, "-mindepth", "1", *facts]).stdout.splitlines() for tree in (left, right)]
    assert sorted(lists[0]) == sorted(lists[1])
    assert len(lists[0]) > 500


def test_unpacked_library(used_home: UsedHome, account: Account, library_archive: Path, library: Path) -> None:
    with used_home.mounted() as root:
        account.run(["mkdir", root / "library"])
        account.run(["tar", "-xpf", library_archive, "-C", root / "library"])
        assert_same_trees(account, library, root / "library")
    with used_home.mounted() as root:
        assert_same_trees(account, library, root / "library")
        account.run(
            [
                sys.executable,
                "-I",
                "-c",
                "import sys; sys.path[:] = sys.argv[1:]; import json, email, asyncio",
                root / "library",
                root / "library" / "lib-dynload",
            ]
        )
        account.run(["rm", "-r", root / "library"])


def test_git(used_home: UsedHome, account: Account, library: Path) -> None:
    def git(where: Path, *words: str | Path) -> str:
        identity = ["-c", "user.name=A User", "-c", "user.email=user@example.org", "-c", "gc.auto=0"]
        return str(account.run(["git", "-C", where, *identity, *words]).stdout)

    with used_home.mounted() as root:
        repository = root / "repository"
        account.run(["git", "init", "-q", "-b", "main", repository])
        for package in ("asyncio", "email", "json"):
            account.run(["cp", "-a", library / package, repository])
            git(repository, "add", "-A")
            git(repository, "commit", "-q", "-m", f"add {package}")
        git(repository, "mv", "email", "mail")
        git(repository, "commit", "-q", "-m", "rename")
        git(repository, "checkout", "-q", "-b", "side", "HEAD~2")
        git(repository, "checkout", "-q", "main")
        git(repository, "gc", "-q")
        account.run(["git", "clone", "-q", repository, root / "clone"])  # objects become hard links
        head = git(repository, "rev-parse", "HEAD")
    with used_home.mounted() as root:
        for name in ("repository", "clone"):
            git(root / name, "fsck", "--strict", "--full")
            assert git(root / name, "rev-parse", "HEAD") == head
            assert git(root / name, "status", "--porcelain") == ""


TRANSACTIONS = """
import sqlite3, sys
path, mode = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
assert db.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
db.execute("create table entry (number integer primary key, text blob)")
for number in range(300):
    db.execute("begin immediate")
    db.executemany("insert into entry values (?, ?)", [(10 * number + i, bytes([i]) * (100 * i)) for i in range(10)])
    if number % 3 == 2:
        db.execute("delete from entry where number % 7 = 0")
    db.execute("rollback" if number % 10 == 9 else "commit")
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
db.close()
"""

EXAMINATION = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("pragma integrity_check").fetchone() == ("ok",)
for number, in db.execute("select distinct number / 10 from entry"):
    assert number % 10 != 9, f"transaction {number} was rolled back"
for number, text in db.execute("select number, text from entry"):
    assert text == bytes([number % 10]) * (100 * (number % 10)), number
print(db.execute("select count(*), sum(number) from entry").fetchone())
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite(used_home: UsedHome, account: Account, mode: str) -> None:
    plain = account.directory / "plain.db"
    account.run([sys.executable, "-c", TRANSACTIONS, plain, mode])
    expected = account.run([sys.executable, "-c", EXAMINATION, plain]).stdout
    with used_home.mounted() as root:
        account.run([sys.executable, "-c", TRANSACTIONS, root / "test.db", mode])
    with used_home.mounted() as root:
        assert account.run([sys.executable, "-c", EXAMINATION, root / "test.db"]).stdout == expected


def test_rsync(used_home: UsedHome, account: Account, library: Path) -> None:
    """There and back again; a dry run then finds nothing to do, contents compared."""
    source = account.mkdir("source")
    account.run(["cp", "-a", library / "email", library / "json", source])
    account.run(["ln", source / "json" / "decoder.py", source / "hard"])
    account.run(["ln", "-s", "json/decoder.py", source / "soft"])
    account.run(["ln", "-s", "nowhere", source / "dangling"])
    account.run(["mkfifo", source / "fifo"])
    account.run(["truncate", "-s", "3M", source / "sparse"])
    account.run(["sh", "-c", 'head -c 5000000 /dev/urandom > "$0/random"', source])
    back = account.mkdir("back")
    archive = ["rsync", "-aH", "--checksum", "--sparse"]
    difference = [*archive, "--dry-run", "--itemize-changes", "--delete"]
    with used_home.mounted() as root:
        account.run([*archive, f"{source}/", root / "copy"])
        assert account.run([*difference, f"{source}/", root / "copy"]).stdout == ""
    with used_home.mounted("disk", "--read-only") as root:
        account.run([*archive, f"{root}/copy/", back])
    assert account.run([*difference, f"{source}/", back]).stdout == ""
    assert (back / "hard").stat().st_nlink == 2


SPARSE_WRITE = """
import hashlib, os, random, sys
path, size = sys.argv[1], 5 << 30
offsets = [0, 4095, (1 << 31) - 7, (1 << 32) - 5000, (1 << 32) + 4096 * 17 + 1, size - 10000]
rng = random.Random(5)
with open(path, "wb") as file:
    for offset in offsets:
        file.seek(offset)
        file.write(rng.randbytes(10000))
assert os.stat(path).st_size == size
"""

SPARSE_READ = """
import hashlib, os, random, sys
path, size = sys.argv[1], 5 << 30
offsets = [0, 4095, (1 << 31) - 7, (1 << 32) - 5000, (1 << 32) + 4096 * 17 + 1, size - 10000]
rng = random.Random(5)
pieces = [rng.randbytes(10000) for _ in offsets]
pieces[0] = pieces[0][:4095]
with open(path, "rb") as file:
    for offset, piece in zip(offsets, pieces):
        file.seek(offset)
        found = file.read(len(piece))
        assert hashlib.sha256(found).digest() == hashlib.sha256(piece).digest(), hex(offset)
    for offset in (1 << 20, 3 << 30, (1 << 32) + (1 << 20), size - 20000):
        file.seek(offset)
        assert file.read(10000) == bytes(10000), hex(offset)
    file.seek(size)
    assert file.read(1) == b""
status = os.stat(path)
assert status.st_size == size
assert status.st_blocks * 512 < 1 << 20, f"{status.st_blocks} sectors for six small pieces"
"""


def test_sparse_file_over_4_gib(used_home: UsedHome, account: Account) -> None:
    with used_home.mounted() as root:
        before = used_home.status()["data_used_bytes"]
        account.run([sys.executable, "-c", SPARSE_WRITE, root / "sparse"])
        account.run([sys.executable, "-c", SPARSE_READ, root / "sparse"])
    with used_home.mounted() as root:
        account.run([sys.executable, "-c", SPARSE_READ, root / "sparse"])
        assert int(account.run(["du", "-k", root / "sparse"]).stdout.split()[0]) < 1024
        assert used_home.status()["data_used_bytes"] - before < 16 << 20
