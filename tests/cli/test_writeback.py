"""Mounts for which the kernel gathers what is written: what it keeps comes to where it has to be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

# Runs the Python that comes line by line, and says each time how that went.
PROGRAM = """
import errno, os, sys
os.chdir(sys.argv[1])
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""

WRITE = """
fd = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND); [os.write(fd, b"%05d\\n" % n) for n in range(3000)]
pages = os.open("pages", os.O_WRONLY); [os.pwrite(pages, b"x" * 4096, n * 8192) for n in range(64)]
cut = os.open("cut", os.O_RDWR); os.pwrite(cut, b"y" * 9000, 0); os.ftruncate(cut, 5000)
nested = open("dir/nested", "w"); nested.write("z" * 70000); nested.flush()
""".strip().splitlines()
LOG = "".join(f"{n:05d}\n" for n in range(3000))
PAGES = ("x" * 4096 + "o" * 4096) * 64


class Program:
    """A program that has the directory of the device as its working directory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")


@contextmanager
def program(home: MountedHome, root: Path) -> Iterator[Program]:
    process = home.account.start([sys.executable, "-c", PROGRAM, root], **PIPES)
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["home", "alone"])
def root(mounted: MountedHome, request: pytest.FixtureRequest) -> Path:
    """The directory of the device web, which is mounted with its home or alone."""
    mounted.run("mount", "--writeback", *(["web"] if request.param == "alone" else []), mounted.target)
    root = mounted.target if request.param == "alone" else mounted.target / "web"
    mounted.account.run(["sh", "-ec", f"cd '{root}' && mkdir dir && head -c 9000 /dev/zero >cut"])
    mounted.account.run(["python", "-c", f"open({str(root / 'pages')!r}, 'w').write('o' * {64 * 8192})"])
    return root


def is_written(home: MountedHome, device: str) -> bool:
    """Whether a device holds all of WRITE."""
    found = {name: home.run("cat", f"{device}:/{name}").stdout for name in ("log", "pages", "cut", "dir/nested")}
    assert {name: len(text) for name, text in found.items()} == {
        "log": len(LOG), "pages": len(PAGES), "cut": 5000, "dir/nested": 70000
    }  # fmt: skip
    return found == {"log": LOG, "pages": PAGES, "cut": "y" * 5000, "dir/nested": "z" * 70000}


def test_what_the_kernel_had_gathered_is_in_a_snapshot_and_there_at_the_end(mounted: MountedHome, root: Path) -> None:
    """Nothing was synced and nothing is closed; what compares devices, and what reads one, has it too."""
    mounted.run("snapshot", "web", "before")
    with program(mounted, root) as writer:
        assert [writer.do(line) for line in WRITE] == ["done"] * 4
        mounted.run("snapshot", "web", "monday")
        assert is_written(mounted, "monday")
        assert writer.do("os.write(fd, b'later')") == "done"
        assert mounted.run("cat", "web:/log").stdout == LOG + "later"
        assert writer.do("os.pwrite(pages, b'later', 0)") == "done"
        changed = mounted.json("changes", "monday", "web")
        assert {os.path.basename(change["path"]) for change in changed} == {"log", "pages"}
        assert writer.do("os.pwrite(pages, b'at last', 0)") == "done"
        pid = mounted.json("status")["holder_pid"]
        mounted.shell(f"kill -{signal.SIGTERM:d} {pid}")
        mounted.wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert mounted.json("status")["holder_pid"] is None
    assert mounted.run("cat", "monday:/log").stdout == LOG
    assert mounted.run("cat", "web:/log").stdout == LOG + "later"
    assert mounted.run("cat", "web:/pages").stdout == "at last" + PAGES[7:]
    assert mounted.run("cat", "before:/pages").stdout == "o" * len(PAGES)


def test_a_rollback_keeps_nothing_of_what_it_takes_back(mounted: MountedHome, root: Path) -> None:
    """`--keep` has what the kernel had gathered, the device nothing of it, also where a file stays open."""
    mounted.run("snapshot", "web", "monday")
    with program(mounted, root) as writer:
        assert [writer.do(line) for line in WRITE] == ["done"] * 4
        mounted.run("rollback", "--force", "--keep", "former", "web", "monday")
        assert writer.do("os.fsync(pages)") in {"ESTALE", "EIO", "done"}
        assert writer.do("os.pwrite(pages, b'lost', 0); os.fsync(pages)") in {"ESTALE", "EIO"}
    assert is_written(mounted, "former")
    assert mounted.run("cat", "web:/pages").stdout == "o" * len(PAGES)
    assert mounted.account.run(["ls", root]).stdout.split() == ["cut", "dir", "lost+found", "pages"]
    assert mounted.account.run(["cat", root / "pages"]).stdout == "o" * len(PAGES)
    mounted.run("umount", mounted.target)


def test_times_and_sizes_are_as_they_were_told(mounted: MountedHome) -> None:
    """Of files that were written, closed or not, set to a time, cut; and two append to one file."""
    look = "import os\nfor n in sorted(os.listdir('.')): s = os.stat(n); print(n, s.st_size, s.st_mtime_ns)"
    mounted.run("mount", "--writeback", "web", mounted.target)
    with program(mounted, mounted.target) as one, program(mounted, mounted.target) as other:
        for writer in (one, other):
            assert writer.do('both = os.open("both", os.O_WRONLY | os.O_CREAT | os.O_APPEND)') == "done"
        for number in range(20):
            assert one.do(f"os.write(both, b'one {number}\\n')") == "done"
            assert other.do(f"os.write(both, b'other {number}\\n')") == "done"
        assert one.do('f = open("written", "w"); f.write("x" * 100000); f.close()') == "done"
        assert (
            one.do('f = open("set", "w"); f.write("x" * 5000); f.flush(); os.utime("set", ns=(1, 123456789))') == "done"
        )
        assert one.do('f.close(); g = os.open("synced", os.O_RDWR | os.O_CREAT); os.write(g, b"x" * 5000)') == "done"
        assert one.do("os.fsync(g)") == "done"
    told = mounted.account.run(["python", "-c", look], cwd=mounted.target).stdout
    mounted.run("umount", mounted.target)
    mounted.run("mount", "web", mounted.target)
    assert mounted.account.run(["python", "-c", look], cwd=mounted.target).stdout == told
    assert "set 5000 123456789\n" in told
    assert mounted.account.run(["cat", mounted.target / "both"]).stdout == "".join(
        f"one {number}\nother {number}\n" for number in range(20)
    )
    mounted.run("umount", mounted.target)


def test_a_full_pool_is_told_at_fsync_and_at_close(account: Account, needs_fuse: None) -> None:
    """And what was there before is as it was; what is freed can be written again."""
    home = MountedHome(account)
    sizes = ("--data-size", "24M", "--metadata-size", "4M", "--base-size", "64M")
    home.run("init", *sizes, "--no-space", "error")
    home.run("create", "web")
    home.run("mount", "--writeback", "web", home.target)
    try:
        home.shell("echo kept >'mount point/kept'; head -c 4M /dev/zero >'mount point/four'; sync 'mount point/four'")
        with program(home, home.target) as writer:
            assert writer.do('fd = os.open("synced", os.O_WRONLY | os.O_CREAT)') == "done"
            assert writer.do("for n in range(4): os.pwrite(fd, bytes(1 << 20), n << 20)") == "done"
            assert writer.do("for n in range(4, 32): os.pwrite(fd, bytes(1 << 20), n << 20)") in {"done", "ENOSPC"}
            assert writer.do("os.fsync(fd)") == "ENOSPC"
            assert writer.do('other = os.open("closed", os.O_WRONLY | os.O_CREAT)') == "done"
            assert writer.do("os.write(other, bytes(1 << 20))") == "done"
            assert writer.do("os.close(other)") == "ENOSPC"
            assert writer.do("os.close(fd); os.unlink('synced'); os.unlink('four')") == "done"
        home.run("trim", "web")
        home.shell("head -c 4M /dev/zero >'mount point/again'; sync 'mount point/again'; cat 'mount point/kept'")
        home.run("umount", home.target)
    finally:
        home.clear()
    home.judge()


@pytest.mark.parametrize("option", ["--raw", "--read-only", "--kernel"])
def test_what_it_is_not_for(mounted: MountedHome, option: str) -> None:
    assert "--writeback is for" in mounted.refused(2, "mount", "--writeback", option, "web", mounted.target)
