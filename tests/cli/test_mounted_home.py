"""A whole home in one mount, through the real command line and ordinary programs; as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cowfs.errors import command_line
from cowfs.fuse.open_devices import OPEN_MAX
from tests.cli.mounted_home import MountedHome, has_ended, kill_and_wait
from tests.kit import posix

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


@pytest.fixture
def whole(mounted: MountedHome) -> Iterator[MountedHome]:
    """The devices web and data, both visible below the mount point."""
    mounted.run("create", "data")
    mounted.run("mount", mounted.target)
    yield mounted
    if mounted.is_mounted(mounted.target):
        mounted.run("umount", mounted.target)


def python(home: MountedHome, code: str, *arguments: str | Path) -> str:
    """Run Python as the home's user, in the mount point's parent."""
    return str(home.account.run([sys.executable, "-c", code, *arguments], cwd=home.account.directory).stdout)


@contextmanager
def running(home: MountedHome, code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A program of the home's user that has printed its first line; ended at the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = home.account.start([sys.executable, "-c", code, *arguments], **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


STAY_IN = "import os, sys; os.chdir(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()"
KEEP_OPEN = "import sys; f = open(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()"


def test_the_story(mounted: MountedHome) -> None:
    target = mounted.target
    mounted.run("create", "data")
    answer = mounted.json("mount", target)
    pid = answer["holder_pid"]
    assert answer == {"device": None, "mount_point": str(target), "holder_pid": pid}
    assert mounted.shell("ls 'mount point'") == "data\nweb\n"
    mounted.shell("cd 'mount point' && echo one >web/file && mkdir data/dir && cp web/file data/dir/")

    assert mounted.json("status")["views"] == [
        {"device": None, "mount_point": str(target), "view": "home", "read_only": False}
    ]
    assert "every device" in mounted.run("status").stdout
    assert [row["mounted"] for row in mounted.json("list")] == [[], [f"{target}/data"], [f"{target}/web"]]
    shown = {"device": "web", "mount_point": f"{target}/web", "view": "home", "read_only": False}
    assert mounted.json("inspect", "web")["views"] == [shown]

    # What cannot be done now says what to do.
    assert f"use {target}/web" in mounted.refused(5, "mount", "web", mounted.other_target)
    unmount = f"first run: {command_line('cowfs', 'umount', str(target))}"
    assert unmount in mounted.refused(5, "mount", mounted.other_target)
    assert unmount in mounted.refused(5, "check", "--repair")

    mounted.run("umount", target)
    assert has_ended(pid)
    assert mounted.json("status")["holder_pid"] is None
    mounted.run("mount", "data", target)
    assert mounted.shell("cat 'mount point/dir/file'") == "one\n"
    mounted.run("umount", target)


def test_one_device_is_named_for_what_is_about_one(mounted: MountedHome) -> None:
    for option in ("--raw", "--repair"):
        assert "name it" in mounted.refused(2, "mount", option, mounted.target)
    assert "[NAME] MNT" in mounted.refused(2, "mount")
    assert "[NAME] MNT" in mounted.refused(2, "mount", "a", "b", "c")


def test_posix_in_two_devices_at_once(account: Account, needs_fuse: None) -> None:
    home = MountedHome(account)
    home.run("init", "--data-size", "4G", "--metadata-size", "8M", "--base-size", "1G")  # blocks of 4 KiB
    home.run("create", "web")
    home.run("create", "data")
    cases = posix.applicable(is_root=not account.uid)
    command = [sys.executable, posix.__file__]
    try:
        home.run("mount", home.target)
        processes = [account.start([*command, home.target / name], stdout=subprocess.PIPE) for name in ("web", "data")]
        said = [process.communicate(timeout=240)[0] for process in processes]
        for lines in said:
            assert lines.splitlines()[-1] == f"{len(cases)} passed", lines
        home.run("umount", home.target)
    finally:
        home.clear()
    home.judge()


def test_devices_come_and_go_at_once(whole: MountedHome) -> None:
    """What the kernel has looked up, found or not, does not stay in its cache."""
    shell = whole.shell
    shell("cd 'mount point' && ! test -e monday && echo one >web/file")
    whole.run("snapshot", "web", "monday")
    assert shell("cd 'mount point' && ls && cat monday/file") == "data\nmonday\nweb\none\n"
    shell("cd 'mount point' && echo two >web/file && echo three >monday/file && find . >/dev/null 2>&1 || true")
    assert shell("cat 'mount point'/*/file") == "three\ntwo\n"
    whole.run("remove", "monday")
    assert shell("cd 'mount point' && ls && ! test -e monday && ! test -e monday/file") == "data\nweb\n"
    whole.run("snapshot", "web", "monday")
    assert shell("cat 'mount point/monday/file'") == "two\n"


def test_a_device_gets_another_name_at_once(whole: MountedHome) -> None:
    """Also one that was used lately; what is open in another device stays open."""
    shell = whole.shell
    shell("cd 'mount point' && echo one >web/file && ! test -e shop && cat web/file >/dev/null && ls -l web >/dev/null")
    whole.run("snapshot", "web", "monday")
    with running(whole, KEEP_OPEN, whole.target / "monday" / "file"):
        answer = whole.json("rename", "web", "shop")
        assert (answer["name"], answer["old_name"]) == ("shop", "web")
        assert shell("cd 'mount point' && ls && cat shop/file && ! test -e web && ! test -e web/file") == (
            "data\nmonday\nshop\none\n"
        )
        shell("cd 'mount point' && echo two >shop/file")
        assert "fuser -vm" in whole.refused(5, "rename", "monday", "tuesday")
    rows = {row["name"]: (row["parent"], row["mounted"]) for row in whole.json("list")}
    assert rows["monday"][0] == "shop"
    assert rows["shop"] == ("base", [f"{whole.target}/shop"])
    whole.run("create", "web")
    assert shell("cd 'mount point' && ls web && cat shop/file monday/file") == "lost+found\ntwo\none\n"
    whole.run("rename", "monday", "tuesday")
    whole.run("umount", whole.target)
    whole.run("mount", "shop", whole.target)
    assert shell("cat 'mount point/file'") == "two\n"


def test_a_device_in_use_is_not_renamed(whole: MountedHome) -> None:
    directory = whole.target / "web" / "dir"
    whole.shell("mkdir 'mount point/web/dir' && echo text >'mount point/web/dir/file'")
    for code, where in ((STAY_IN, directory), (KEEP_OPEN, directory / "file")):
        with running(whole, code, where):
            line = whole.refused(5, "rename", "web", "shop")
            assert f"device 'web' is in use at {whole.target}/web, so it cannot be renamed; see by whom" in line
            assert whole.shell("cat 'mount point/web/dir/file'") == "text\n"
    whole.run("layer", "create", "box")
    path = Path(whole.run("layer", "get", "box").stdout.strip())
    assert "first run: cowfs layer put box" in whole.refused(5, "rename", "box", "crate")
    whole.account.run(["touch", path / "file"])
    whole.run("layer", "put", "box")
    whole.run("rename", "box", "crate")
    path = Path(whole.run("layer", "get", "crate").stdout.strip())
    assert path == whole.target / "crate" / "rootfs"
    whole.account.run(["touch", path / "other"])
    whole.run("layer", "put", "crate")
    assert whole.shell("cat 'mount point/crate/id'; ls 'mount point/crate/rootfs'") == "cratefile\nother\n"


def test_a_snapshot_holds_what_was_written_to_its_origin(whole: MountedHome) -> None:
    """Also through mmap, and whatever happens in other devices."""
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'w+b') as file:\n"
        "    file.write(bytes(1 << 16)); file.flush()\n"
        "    memory = mmap.mmap(file.fileno(), 1 << 16)\n"
        "memory[40000:40005] = b'dirty'\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
    )
    with running(whole, code, whole.target / "web" / "f"), running(whole, code, whole.target / "data" / "f"):
        whole.run("snapshot", "web", "monday")
        assert "dirty" in whole.shell("tail -c +40001 'mount point/monday/f' | head -c 5")


def test_what_cannot_be_done_between_devices_and_at_the_root(whole: MountedHome) -> None:
    code = """
import errno, os, sys
os.chdir(sys.argv[1])
open('web/f', 'w').close()
open('data/f', 'w').close()
def number(action, *arguments, **more):
    try: action(*arguments, **more)
    except OSError as error: return errno.errorcode[error.errno]
assert number(os.rename, 'web/f', 'data/g') == 'EXDEV'
assert number(os.link, 'web/f', 'data/g') == 'EXDEV'
assert number(os.rename, 'web/f', 'f') == 'EXDEV'
assert number(os.rename, 'web', 'data/web') == 'EXDEV'
for action, *arguments in (
    (os.mkdir, 'new'), (os.rmdir, 'web'), (os.rename, 'web', 'new'), (os.symlink, 'web', 'new'),
    (os.mkfifo, 'new'), (os.open, 'new', os.O_CREAT | os.O_WRONLY), (os.chmod, '.', 0o777), (os.utime, '.'),
    (os.setxattr, '.', 'user.x', b'1'), (os.removexattr, '.', 'user.x'),
):
    assert number(action, *arguments) in ('EPERM', 'EACCES'), (action, arguments, number(action, *arguments))
assert os.listxattr('.') == []
assert number(os.getxattr, '.', 'user.x') == 'ENODATA'
assert sorted(os.listdir('.')) == ['data', 'web']
os.rename('web/f', 'web/g')
os.chmod('web', 0o750)
assert os.stat('web').st_mode & 0o777 == 0o750
os.fsync(os.open('.', os.O_RDONLY))
os.fsync(os.open('web', os.O_RDONLY))
"""
    python(whole, code, whole.target)


def test_inode_numbers_are_unique_and_last(whole: MountedHome) -> None:
    code = """
import json, os, sys
os.chdir(sys.argv[1])
numbers = {}
for top, directories, files in os.walk('.'):
    for name in ['.', *directories, *files]:
        path = os.path.normpath(os.path.join(top, name))
        numbers[path] = os.lstat(path).st_ino
    listed = {entry.name: entry.inode() for entry in os.scandir(top)}
    assert all(numbers[os.path.normpath(os.path.join(top, name))] == ino for name, ino in listed.items())
assert os.stat('web/..').st_ino == os.stat('.').st_ino
print(json.dumps(numbers))
"""
    whole.shell("cd 'mount point' && for d in web data; do mkdir $d/dir && touch $d/dir/file; done")
    numbers = json.loads(python(whole, code, whole.target))
    assert len(set(numbers.values())) == len(numbers) >= 9
    whole.run("umount", whole.target)
    whole.run("mount", whole.target)
    assert json.loads(python(whole, code, whole.target)) == numbers


def test_free_space_is_that_of_the_device(whole: MountedHome) -> None:
    whole.run("create", "large", "--size", "200M")
    whole.shell("head -c 5000000 /dev/urandom >'mount point/web/file'")

    def figures(where: str) -> tuple[int, int]:
        total, used = whole.shell(f"cd {where} && df --output=size,used -B1 . | tail -1").split()
        return int(total), int(used)

    for _ in range(2):  # what the kernel remembers changes nothing
        by_path = {
            name: whole.shell(f"df --output=size,used -B1 'mount point/{name}' | tail -1").split()
            for name in ("web", "data", "large")
        }
        sizes = {name: (int(total), int(used)) for name, (total, used) in by_path.items()}
        assert sizes["data"][0] == sizes["web"][0] < 64 << 20 < sizes["large"][0] < 200 << 20
        assert sizes["data"][1] < 1 << 20 < 5_000_000 <= sizes["web"][1] < 6_000_000
        for name, expected in sizes.items():
            assert figures(f"'mount point/{name}'") == expected
            assert figures(f"'mount point/{name}/lost+found/..'") == expected
    assert whole.shell("cd / && stat -f -c '%b %S' \"$OLDPWD/mount point\"").split() == [str((1 << 30) // 4096), "4096"]


def test_a_device_in_use_is_not_removed(whole: MountedHome) -> None:
    whole.shell(
        "cd 'mount point' && mkdir web/dir && echo text >web/dir/file && find . -size 0 >/dev/null 2>&1 || true"
    )
    uses = [(STAY_IN, "web"), (STAY_IN, "web/dir"), (KEEP_OPEN, "web/dir/file")]
    for code, path in uses:
        with running(whole, code, whole.target / path) as user:
            line = whole.refused(5, "remove", "web")
            assert f"in use at {whole.target}/web" in line
            if code == STAY_IN:  # it still has its path
                assert os.readlink(f"/proc/{user.pid}/cwd") == str(whole.target / path)
    assert whole.shell("cat 'mount point/web/dir/file'") == "text\n"
    with running(whole, STAY_IN, whole.target / "web"):
        whole.run("remove", "data")  # others are not concerned
    whole.run("remove", "web")
    assert whole.shell("ls 'mount point'") == ""


def test_a_device_marked_for_deletion_is_removed_after_its_last_user(whole: MountedHome) -> None:
    whole.shell("echo text >'mount point/web/file'")
    code = (
        "import sys\n"
        "file = open(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "print(file.read(), flush=True); sys.stdin.readline()\n"
    )
    with running(whole, code, whole.target / "web" / "file") as user:
        assert whole.json("remove", "--deferred", "web") == {"removed": [], "deferred": ["web"]}
        assert whole.shell("ls 'mount point'") == "data\n"
        assert {row["name"]: row["mounted"] for row in whole.json("list")}["web"] == []
        assert user.stdin is not None
        assert user.stdout is not None
        print(file=user.stdin, flush=True)
        assert user.stdout.readline() == "text\n"
        whole.refused(5, "create", "web")
    whole.wait_until(lambda: [row["name"] for row in whole.json("list")] == ["base", "data"])


def test_more_devices_than_are_open_at_a_time(whole: MountedHome) -> None:
    """Volumes that are closed meanwhile lose nothing, not even what is open without a name."""
    count = OPEN_MAX + 8
    code = """
import cowfs, os, sys
home, target, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with cowfs.open_home(home) as devices:
    for number in range(count):
        devices.create(f'd{number}')
os.chdir(target)
os.chdir('d0')
nameless = os.open('nameless', os.O_RDWR | os.O_CREAT)
os.unlink('nameless')
os.write(nameless, b'nameless')
named = os.open('../d1/named', os.O_RDWR | os.O_CREAT)
os.mkdir('dir')
os.chdir('dir')
os.write(named, b'nam')
assert len(os.listdir(target)) == count + 2
for turn in 'ab':
    for number in range(count):
        with open(f'{target}/d{number}/{turn}', 'w') as file:
            file.write(f'{turn} {number}')
for turn in 'ab':
    for number in range(count):
        with open(f'{target}/d{number}/{turn}') as file:
            assert file.read() == f'{turn} {number}'
assert os.pread(nameless, 100, 0) == b'nameless'
os.write(named, b'ed')
assert open(f'{target}/d1/named').read() == 'named'
assert os.getcwd() == f'{target}/d0/dir'
open('last', 'w').close()
assert os.listdir('.') == ['last']
with cowfs.open_home(home) as devices:
    active = sum(devices.inspect(f'd{number}').active for number in range(count))
    for number in range(2, count):
        devices.remove(f'd{number}')
print(active)
"""
    active = int(python(whole, code, whole.home, whole.target, str(count)))
    assert 0 < active <= OPEN_MAX
    assert "Traceback" not in (whole.home / "cowfs.log").read_text()


def test_a_server_that_is_killed_loses_nothing_that_was_synced(whole: MountedHome) -> None:
    pid = whole.json("status")["holder_pid"]
    for name in ("web", "data"):
        whole.shell(f"cd 'mount point/{name}' && echo {name} >file && sync file && echo perhaps >later")
    kill_and_wait(pid)
    assert whole.json("status")["holder_pid"] is None
    whole.run("mount", whole.target)
    assert whole.shell("cd 'mount point' && cat web/file data/file") == "web\ndata\n"


def test_a_server_that_is_asked_to_end_saves_what_is_open(whole: MountedHome) -> None:
    code = (
        "import sys\n"
        "files = [open(path, 'w') for path in sys.argv[1:]]\n"
        "for file in files: file.write('open'); file.flush()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
    )
    pid = whole.json("status")["holder_pid"]
    with running(whole, code, whole.target / "web" / "f", whole.target / "data" / "f"):
        os.kill(pid, signal.SIGTERM)
        whole.wait_until(lambda: has_ended(pid))
    assert not whole.is_mounted(whole.target)
    assert "e2fsck" not in (whole.home / "cowfs.log").read_text()
    whole.run("mount", whole.target)
    assert whole.shell("cat 'mount point'/*/f") == "openopen"


def test_a_read_only_mount_changes_nothing(mounted: MountedHome) -> None:
    mounted.run("mount", "--read-only", mounted.target)
    for path in ("x", "web/x"):
        result = mounted.account.run(["touch", mounted.target / path], check=False)
        assert "Read-only file system" in result.stderr
    mounted.run("snapshot", "web", "web-1")
    assert "lost+found" in mounted.shell("ls 'mount point/web-1'")
    mounted.run("umount", mounted.target)
    for word in ("different", "left_only", "right_only"):
        assert word not in mounted.run("delta", "web", "web-1").stdout


def test_a_device_that_cannot_be_opened_does_not_harm_the_others(mounted: MountedHome) -> None:
    mounted.run("create", "blank")
    mounted.run("mount", "--raw", "blank", mounted.target)
    mounted.shell("head -c 65536 /dev/zero | dd of='mount point/blank' conv=notrunc 2>&1")
    mounted.run("umount", mounted.target)
    mounted.run("mount", mounted.target)
    assert mounted.shell("ls 'mount point'") == "blank\nweb\n"
    assert mounted.account.run(["ls", mounted.target / "blank"], check=False).returncode != 0
    assert "device 'blank'" in (mounted.home / "cowfs.log").read_text()
    assert "lost+found" in mounted.shell("ls 'mount point/web'")
    mounted.run("remove", "blank")
    mounted.run("umount", mounted.target)
