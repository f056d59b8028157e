"""The story of a home by the real command line: mounted, busy, snapshotted, killed; as root and as an ordinary user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cowfs.errors import command_line
from tests.cli.mounted_home import SMALL, MountedHome, has_ended, kill_and_wait

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


def test_the_story(mounted: MountedHome) -> None:
    target = mounted.target
    answer = mounted.json("mount", "web", target)
    pid = answer["holder_pid"]
    assert answer == {"device": "web", "mount_point": str(target), "holder_pid": pid}
    mounted.shell("echo one > 'mount point/file' && mkdir 'mount point/dir'")

    status = mounted.json("status")
    assert status["holder_pid"] == pid
    view = {"device": "web", "mount_point": str(target), "view": "tree", "read_only": False}
    assert status["views"] == [view]
    assert mounted.json("inspect", "web")["views"] == [view]
    assert [row["mounted"] for row in mounted.json("list")] == [[], [str(target)]]
    assert f"process {pid}" in mounted.run("status").stdout

    # Through the holder: snapshots of what is mounted and of what is not, messages, reports, removal.
    mounted.run("snapshot", "web", "monday")
    mounted.shell("echo two > 'mount point/file'")
    mounted.run("create", "fresh")
    mounted.run("snapshot", "monday", "copy of monday")
    mounted.run("remove", "copy of monday")
    mounted.run("message", "create_snap 100 1")
    mounted.run("message", "delete 100")
    assert mounted.json("check")["clean"]
    assert "</superblock>" in mounted.run("dump").stdout
    assert "<diff" in mounted.run("delta", "web", "monday").stdout
    assert len(mounted.run("table").stdout.splitlines()) == 5
    assert len(mounted.run("dmstatus").stdout.splitlines()) == 5

    # What cannot be done now says where it is mounted.
    remedy = f"first run: {command_line('cowfs', 'umount', str(target))}"
    assert remedy in mounted.refused(5, "remove", "web")
    assert remedy in mounted.refused(5, "mount", "monday", mounted.other_target)
    assert remedy in mounted.refused(5, "check", "--repair")
    dump = mounted.account.directory / "dump.xml"
    dump.write_text(mounted.run("dump").stdout)
    assert remedy in mounted.refused(5, "restore", dump)
    assert "already a mount point" in mounted.refused(6, "mount", "monday", target)

    mounted.account.run(["cowfs", "umount", target])
    assert not mounted.is_mounted(target)
    assert has_ended(pid)
    assert mounted.json("status")["holder_pid"] is None
    assert not (mounted.home / "cowfs.sock").exists()

    for name, text in (("monday", "one\n"), ("web", "two\n")):
        mounted.run("mount", name, target)
        assert mounted.shell("cat 'mount point/file'") == text
        mounted.run("umount", target)


def test_a_snapshot_of_a_busy_device_is_consistent(mounted: MountedHome) -> None:
    """A writer appends numbered records and syncs nothing; each snapshot holds a prefix of them, whole."""
    mounted.run("mount", "web", mounted.target)
    script = (
        "import os, sys\n"
        "with open(sys.argv[1], 'ab', buffering=0) as log:\n"
        "    for n in range(10**9):\n"
        "        log.write(b'%015d\\n' % n)\n"
        "        if n % 10 == 0:\n"
        "            open(f'{sys.argv[1]}.{n % 500}', 'w').write(str(n))\n"
        "        if n == 100: print('running', flush=True)\n"
    )
    writer = mounted.account.start([sys.executable, "-c", script, mounted.target / "log"], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "running\n"
        for number in range(4):
            mounted.run("snapshot", "web", f"busy-{number}")
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()  # type: ignore[union-attr]
    mounted.run("umount", mounted.target)
    lengths = []
    for number in range(4):
        mounted.run("mount", f"busy-{number}", mounted.target)
        text = mounted.shell("cat 'mount point/log'")
        mounted.run("umount", mounted.target)
        lines = text.splitlines()
        assert lines == [f"{n:015d}" for n in range(len(lines))]
        lengths.append(len(lines))
    assert lengths == sorted(lengths)
    assert lengths[0] > 100


def test_what_is_mapped_in_memory_is_in_the_snapshot(mounted: MountedHome) -> None:
    """Pages changed through mmap are still the kernel's; a snapshot fetches them."""
    mounted.run("mount", "web", mounted.target)
    script = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'w+b') as file:\n"
        "    file.write(bytes(1 << 16)); file.flush()\n"
        "    with mmap.mmap(file.fileno(), 1 << 16) as memory:\n"
        "        memory[40000:40005] = b'dirty'\n"
        "        print('changed', flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = mounted.account.start([sys.executable, "-c", script, mounted.target / "mapped"], **options)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "changed\n"
        mounted.run("snapshot", "web", "web-1")
    finally:
        writer.communicate("\n", timeout=60)
    mounted.run("umount", mounted.target)
    mounted.run("mount", "web-1", mounted.target)
    assert "dirty" in mounted.shell("tail -c +40001 'mount point/mapped' | head -c 5")
    mounted.run("umount", mounted.target)


def test_the_raw_view_is_the_disk(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target, "--raw")
    assert mounted.shell("ls 'mount point'") == "web\n"
    assert mounted.json("status")["views"][0]["view"] == "raw"
    mounted.shell("debugfs -w -R 'mkdir made' 'mount point/web' 2>&1")
    mounted.run("snapshot", "web", "web-1")
    mounted.run("umount", mounted.target)
    mounted.run("mount", "web-1", mounted.target)
    assert "made" in mounted.shell("ls 'mount point'")
    mounted.run("umount", mounted.target)


def test_a_snapshot_of_a_busy_disk_holds_what_was_written_to_it(mounted: MountedHome) -> None:
    """Without a sync: the first range was written by who cannot read, the second through mmap, both files are open."""
    mounted.run("create", "disk")
    mounted.run("mount", "--raw", "disk", mounted.target)
    script = (
        "import mmap, os, sys\n"
        "writer = os.open(sys.argv[1], os.O_WRONLY)\n"
        "both = os.open(sys.argv[1], os.O_RDWR)\n"
        "with mmap.mmap(both, 64 << 20) as memory:\n"
        "    for text in (b'first', b'later'):\n"
        "        os.pwrite(writer, text * 100_001, 5_000_001)\n"
        "        memory[20_000_001:20_500_006] = text * 100_001\n"
        "        print(text.decode(), flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = mounted.account.start([sys.executable, "-c", script, mounted.target / "disk"], **options)
    try:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "first\n"
        mounted.run("snapshot", "disk", "disk-1")
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "later\n"
    finally:
        writer.communicate("\n", timeout=60)
    mounted.run("umount", mounted.target)
    for name, text in (("disk-1", "first"), ("disk", "later")):
        mounted.run("mount", "--raw", "--read-only", name, mounted.target)
        for begin in (5_000_001, 20_000_001):
            found = mounted.shell(f"tail -c +{begin + 1} 'mount point/{name}' | head -c 500005")
            assert found == text * 100_001
        mounted.run("umount", mounted.target)
    mounted.run("remove", "disk-1", "disk")  # no file system any more, so nothing for the judge


def test_a_read_only_mount_changes_nothing(mounted: MountedHome) -> None:
    mounted.run("mount", "--read-only", "web", mounted.target)
    result = mounted.account.run(["touch", mounted.target / "x"], check=False)
    assert "Read-only file system" in result.stderr
    mounted.run("snapshot", "web", "web-1")
    mounted.run("umount", mounted.target)
    assert "  <diff" in mounted.run("delta", "web", "web-1").stdout
    for word in ("different", "left_only", "right_only"):
        assert word not in mounted.run("delta", "web", "web-1").stdout


def test_the_base_device_is_written_only_when_asked_for_in_so_many_words(mounted: MountedHome) -> None:
    for view, write in (((), "echo p > '{0}/x'"), (("--raw",), "echo p | dd of='{0}/base' conv=notrunc")):
        said = mounted.run("mount", "base", mounted.target, *view).stderr
        assert said.startswith("cowfs: mounting base for reading only")
        assert said.count("\n") == 1
        assert mounted.json("status")["views"][0]["read_only"]
        refused = mounted.shell(f"({write.format(mounted.target)}) 2>&1 || true")
        assert "Read-only file system" in refused or "Permission denied" in refused
        mounted.run("umount", mounted.target)
    assert mounted.run("mount", "--read-only", "base", mounted.target).stderr == ""
    mounted.run("umount", mounted.target)

    assert mounted.run("mount", "--write-base", "base", mounted.target).stderr == ""
    mounted.shell(f"echo p > '{mounted.target}/x'")
    mounted.run("umount", mounted.target)
    mounted.run("create", "later")
    mounted.run("mount", "later", mounted.target)
    assert mounted.shell(f"cat '{mounted.target}/x'") == "p\n"
    mounted.run("umount", mounted.target)

    for words in (("web",), (), ("base", "--read-only")):
        assert "--write-base is for writing to the base device" in mounted.refused(
            2, "mount", "--write-base", *words[:1], mounted.target, *words[1:]
        )


def test_root_may_have_set_id_bits_and_device_nodes_honoured(mounted: MountedHome) -> None:
    if mounted.account.uid:
        for option in ("--suid", "--dev"):
            refused = mounted.refused(2, "mount", option, "web", mounted.target)
            assert refused == f"cowfs: {option} is for root only; mount as root, or leave it out"
        return
    mounted.run("mount", "--dev", "web", mounted.target)
    os.mknod(mounted.target / "null", 0o20666, os.makedev(1, 3))
    (mounted.target / "null").write_bytes(b"gone")
    mounted.run("umount", mounted.target)
    mounted.run("mount", "web", mounted.target)
    with pytest.raises(PermissionError):
        (mounted.target / "null").read_bytes()
    mounted.run("umount", mounted.target)
    mounted.run("mount", "--suid", mounted.target)
    copy = mounted.target / "web" / "id"
    copy.write_bytes(Path("/usr/bin/id").read_bytes())
    copy.chmod(0o4755)
    stranger = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    mounted.account.directory.chmod(0o755)
    assert "euid=0(root)" in mounted.account.run([*stranger, copy]).stdout
    mounted.run("umount", mounted.target)


def test_a_server_that_is_killed_loses_nothing_that_was_synced(mounted: MountedHome) -> None:
    pid = mounted.json("mount", "web", mounted.target)["holder_pid"]
    mounted.shell("cd 'mount point' && echo kept > file && sync file && mkdir dir && sync dir")
    mounted.shell("cd 'mount point' && echo perhaps > later")
    kill_and_wait(pid)
    # The dead mount is still there. It frees the home at once, and the next mount takes its place.
    assert mounted.json("status")["holder_pid"] is None
    mounted.run("mount", "web", mounted.target)
    assert mounted.shell("cd 'mount point' && cat file && ls -d dir") == "kept\ndir\n"
    mounted.run("umount", mounted.target)


WRITER = """
import os, sys
os.chdir(sys.argv[1])
directory = os.open(".", os.O_RDONLY)
for number in range(100_000):
    with open(f"new-{number}", "w") as file:
        file.write(f"{number}\\n" * 1000)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"new-{number}", f"file-{number}")
    if number >= 20:
        os.unlink(f"file-{number - 20}")
    os.mkdir(f"dir-{number}")
    os.fsync(directory)
    print(number, flush=True)
"""


def test_a_server_that_is_killed_at_work_mounts_again_by_its_journal(mounted: MountedHome) -> None:
    """Each operation was done or not, all that was synced was, and nothing has to be checked, nor found lost."""
    done = -1
    for count in (7, 30):
        pid = mounted.json("mount", "web", mounted.target)["holder_pid"]
        base = mounted.target / f"of-{count}"
        mounted.shell(f"mkdir 'mount point/{base.name}' && sync 'mount point/{base.name}'")
        writer = mounted.account.start(
            [sys.executable, "-c", WRITER, base], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert writer.stdout is not None
        for _ in range(count):
            done = int(writer.stdout.readline())
        kill_and_wait(pid)
        done = max([done, *map(int, writer.stdout.read().split())])
        writer.wait(60)
        assert mounted.needs_replay("web")
        mounted.run("mount", "web", mounted.target)
        names = set(mounted.shell(f"ls 'mount point/{base.name}'").split())
        for number in range(done + 1):
            assert f"dir-{number}" in names
            assert (f"file-{number}" in names) == (number > done - 20) or number == done - 19
            assert f"new-{number}" not in names
        for name in names:
            if name.startswith("file-"):
                content = mounted.shell(f"cat 'mount point/{base.name}/{name}'")
                assert content == f"{name.removeprefix('file-')}\n" * 1000
        if not mounted.account.uid:  # others may not look
            assert mounted.shell("ls 'mount point/lost+found'") == ""
        mounted.run("umount", mounted.target)
        mounted.judge()


def test_the_foreground_server_ends_with_ctrl_c(mounted: MountedHome) -> None:
    command = ["cowfs", "--home", mounted.home, "mount", "--foreground", "web", mounted.target]
    server = mounted.account.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == f"web is mounted at {mounted.target}; Ctrl-C unmounts it\n"
    mounted.shell("echo here > 'mount point/file'")
    assert mounted.json("status")["holder_pid"] == server.pid
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in said
    assert not mounted.is_mounted(mounted.target)
    mounted.run("mount", "web", mounted.target)
    assert mounted.shell("cat 'mount point/file'") == "here\n"
    mounted.run("umount", mounted.target)


def test_a_damaged_file_system_is_not_mounted_until_it_is_repaired(mounted: MountedHome) -> None:
    mounted.run("mount", "--raw", "web", mounted.target)
    # No root directory, and the note that something is wrong.
    for request in ("clri <2>", "ssv state 2"):
        mounted.shell(f"debugfs -w -R '{request}' 'mount point/web' 2>&1")
    mounted.run("umount", mounted.target)
    line = mounted.refused(7, "mount", "web", mounted.target)
    assert "device 'web'" in line
    assert "mount --repair" in line
    mounted.run("mount", "--repair", "web", mounted.target)
    assert "lost+found" in mounted.shell("ls 'mount point'")
    mounted.run("umount", mounted.target)


def test_what_can_be_read_of_a_damaged_file_system(mounted: MountedHome) -> None:
    """Where e2fsck gives up without an option, a mount for reading only shows the rest, and writes nothing."""
    mounted.run("mount", "web", mounted.target)
    mounted.shell("cd 'mount point' && echo kept > kept && echo lost > lost && mkdir dir && echo deep > dir/deep")
    mounted.run("umount", mounted.target)
    mounted.run("mount", "--raw", "web", mounted.target)
    for request in ("sif lost block[5] 1", "ssv state 2"):
        mounted.shell(f"debugfs -w -R '{request}' 'mount point/web' 2>&1")
    mounted.run("umount", mounted.target)
    refused = mounted.refused(7, "mount", "web", mounted.target)
    assert "mount --repair" in refused
    assert "mount --read-only" in refused
    before = {path: path.read_bytes() for path in pool_files(mounted)}
    for where in (["web"], []):
        done = mounted.run("mount", "--read-only", *where, mounted.target)
        if where:
            (line,) = done.stderr.splitlines()
            assert line.startswith(
                "cowfs: device 'web': its file system shows what can be read: it is marked as damaged"
            )
            assert "mount --repair" in line
        found = mounted.shell(f"cd 'mount point/{'' if where else 'web'}' && cat kept dir/deep && ls")
        assert found.split() == ["kept", "deep", "dir", "kept", "lost", "lost+found"]
        with pytest.raises(AssertionError, match="Read-only file system"):
            mounted.shell("touch 'mount point/new'")
        mounted.run("umount", mounted.target)
    assert {path: path.read_bytes() for path in pool_files(mounted)} == before
    mounted.run("mount", "--repair", "web", mounted.target)
    assert mounted.shell("cat 'mount point/kept'") == "kept\n"
    mounted.run("umount", mounted.target)


def pool_files(mounted: MountedHome) -> list[Path]:
    return [mounted.home / "devicemapper" / name for name in ("data", "metadata")]


def test_a_damaged_root_is_one_line(mounted: MountedHome) -> None:
    """Of a file system that says that it is clean, for reading only too, and where all devices are shown."""
    mounted.run("mount", "--raw", "web", mounted.target)
    mounted.shell("debugfs -w -R 'clri <2>' 'mount point/web' 2>&1")
    mounted.run("umount", mounted.target)
    for options in ([], ["--read-only"]):
        line = mounted.refused(7, "mount", *options, "web", mounted.target)
        assert line.startswith("cowfs: device 'web': ext4 is damaged: the root directory, inode 2, cannot be read: ")
        assert line.endswith("; 'mount --repair' runs e2fsck")  # since nothing can be read
    mounted.run("mount", mounted.target)
    refused = mounted.account.run(["ls", mounted.target / "web"], check=False)
    assert "Structure needs cleaning" in refused.stderr
    mounted.run("umount", mounted.target)
    mounted.run("mount", "--repair", "web", mounted.target)
    mounted.run("umount", mounted.target)


def test_no_file_system_is_one_line(mounted: MountedHome) -> None:
    mounted.run("create", "blank")
    mounted.run("mount", "--raw", "blank", mounted.target)
    mounted.shell("head -c 65536 /dev/zero | dd of='mount point/blank' conv=notrunc 2>&1")
    mounted.run("umount", mounted.target)
    line = mounted.refused(7, "mount", "blank", mounted.target)
    assert "device 'blank'" in line
    mounted.run("remove", "blank")


def test_a_mounted_device_is_removed_once_it_is_unmounted(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target)
    assert "--deferred" in mounted.refused(5, "remove", "web")
    assert mounted.json("remove", "--deferred", "web") == {"removed": [], "deferred": ["web"]}
    assert "web (deleted)" in mounted.run("list").stdout
    assert "1 of them deleted" in mounted.run("status").stdout
    assert "marked for deletion" in mounted.refused(5, "create", "web")
    mounted.shell(f"echo still usable >'{mounted.target}/file'")
    mounted.run("umount", mounted.target)
    assert [row["name"] for row in mounted.json("list")] == ["base"]


def test_files_in_use_keep_a_mount(mounted: MountedHome) -> None:
    mounted.run("mount", "web", mounted.target)
    # Not the working directory: the process changes into it at its start, and may not look in.
    command = ["sh", "-c", 'cd "$0" && echo there && exec sleep 1000', mounted.target]
    holder = mounted.account.start(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "there\n"
        assert "in use" in mounted.refused(6, "umount", mounted.target)
        assert mounted.json("status")["holder_pid"]
    finally:
        holder.kill()
        holder.communicate()
    mounted.run("umount", mounted.target)


def test_commands_at_the_same_time_take_turns(mounted: MountedHome) -> None:
    """A home that is free is opened by each in turn; while it is mounted they all go through the holder."""
    for round_number in range(2):
        failures: list[str] = []

        def make(name: str, failures: list[str] = failures) -> None:
            result = mounted.run("snapshot", "web", name, check=False)
            if result.returncode:
                failures.append(result.stderr)

        threads = [threading.Thread(target=make, args=(f"r{round_number}-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        if round_number == 0:
            mounted.run("mount", "web", mounted.target)
    mounted.run("umount", mounted.target)
    assert len(mounted.json("list")) == 2 + 8


def test_root_serves_and_is_served(needs_fuse: None, root_user: Account, ordinary_user: Account) -> None:
    """Root may use the holder of any user's home; others may not use theirs."""
    home = MountedHome(ordinary_user)
    home.run("init", *SMALL)
    home.run("create", "web")
    try:
        home.run("mount", "web", home.target)
        root_user.run(["cowfs", "--home", home.home, "snapshot", "web", "by-root"])
        assert "by-root" in home.run("list").stdout
        home.home.chmod(0o755)
        (home.home / "cowfs.sock").chmod(0o666)
        stranger = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
        result = ordinary_user.run(["true"])
        assert result.returncode == 0
        refused = root_user.run([*stranger, "cowfs", "--home", home.home, "list"], check=False)
        assert refused.returncode == 5
        assert len(refused.stderr.splitlines()) == 1
        home.run("umount", home.target)
    finally:
        home.clear()
    home.judge()


def test_a_mount_does_not_need_the_directory_it_was_started_in(mounted: MountedHome) -> None:
    """Relative paths, and a directory full of files that Python could take for modules."""
    trap = mounted.account.mkdir("trap")
    for name in ("trio", "cowfs", "json", "click", "msgspec"):
        (trap / f"{name}.py").write_text("raise SystemExit('imported from the current directory')\n")
    mounted.account.run(["cowfs", "--home", "../a home", "mount", "web", "../mount point"], cwd=trap)
    assert mounted.is_mounted(mounted.target)
    mounted.account.run(["cowfs", "umount", "../mount point"], cwd=trap)
    assert not mounted.is_mounted(mounted.target)


def test_a_home_with_a_long_path(account: Account, needs_fuse: None) -> None:
    home = MountedHome(account)
    deep = account.directory
    for _ in range(3):
        deep = deep / ("deep" * 15)
        deep.mkdir()
        os.chown(deep, account.uid, account.gid)
    home.home = deep / "home"
    assert len(str(home.home)) > 150
    home.run("init", *SMALL)
    home.run("create", "web")
    try:
        home.run("mount", "web", home.target)
        home.run("snapshot", "web", "web-1")
        assert home.json("status")["holder_pid"]
        home.run("umount", home.target)
    finally:
        home.clear()
    home.judge()
