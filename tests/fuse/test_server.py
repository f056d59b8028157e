"""A mount from beginning to end: start, answers, faults, signals, and what is left afterwards."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowfs.errors import HomeBusy, MissingRequirement, MountError, command_line
from cowfs.fuse.background import mount_in_background
from cowfs.mounts import mountpoint
from cowfs.mounts.mountinfo import encode_source, mount_at
from cowfs.mounts.mountpoint import find_server, unmount
from tests.conftest import Account
from tests.fuse.conftest import Serve, mounted_at

pytestmark = pytest.mark.fuse

SERVE = str(Path(__file__).with_name("serve.py"))


def run_python(account: Account, code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run code as the account; `Path`, `os`, and the functions under test are imported."""
    prelude = "import os, sys, errno, time\nfrom pathlib import Path\nfrom cowfs.mounts.mountpoint import *\n"
    return account.run([sys.executable, "-c", prelude + code, *arguments], check=check)


# The mount table, and the way back out.


def test_mount_table_shows_what_it_is(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    mount = mounted_at(served.target)
    assert mount.fstype == "fuse.cowfs"
    assert mount.source == encode_source(account.directory, "disk")
    assert ("allow_other" in mount.super_options) == (account.uid == 0)
    assert "default_permissions" in mount.super_options
    assert {"nosuid", "nodev", "noatime"} <= mount.options
    assert find_server(mount) == served.process.pid
    assert served.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_and_close(account: Account, serve: Serve, number: int) -> None:
    served = serve(account, "memory")
    served.process.send_signal(number)
    assert served.process.wait(30) == 0
    assert mount_at(served.target) is None
    assert "closed cleanly" in served.logged()


def test_signal_while_files_are_in_use(root_user: Account, serve: Serve) -> None:
    served = serve(root_user, "memory")
    fd = os.open(served.target / "f", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"x")
        served.process.terminate()
        assert served.process.wait(30) == 0
        assert mount_at(served.target) is None
    finally:
        with contextlib.suppress(OSError):  # its file system is gone
            os.close(fd)
    assert "closed cleanly" in served.logged()


def test_umount_returns_when_the_server_has_ended(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    run_python(account, "unmount(sys.argv[1])", served.target)
    assert served.process.wait(0.5) == 0
    assert mount_at(served.target) is None


def test_a_server_that_hangs_is_unmounted_and_named_with_the_command_that_ends_it(
    account: Account, serve: Serve
) -> None:
    """`umount` again would say that nothing is mounted."""
    served = serve(account, "memory")
    link = account.directory / "link"
    link.symlink_to(served.target.parent)
    served.process.send_signal(signal.SIGSTOP)
    code = (
        "from cowfs.mounts import mountpoint\n"
        "mountpoint._ASK_AFTER_SECONDS = 0.1\n"
        "unmount(sys.argv[1], timeout_seconds=0.1)\n"
    )
    done = run_python(account, code, f"{link / served.target.name}/", check=False)
    assert f"process {served.process.pid}, has not ended" in done.stderr
    assert mount_at(served.target) is None
    command = re.search(r"end it with: (kill -KILL \d+)", done.stderr)
    assert command is not None
    subprocess.run(command[1].split(), check=True)
    assert served.process.wait(60) == -signal.SIGKILL


def test_root_unmounts_for_a_user(root_user: Account, ordinary_user: Account, serve: Serve) -> None:
    served = serve(ordinary_user, "memory")
    unmount(str(served.target))
    assert served.process.wait(0.5) == 0


def test_busy(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    holder = account.start(["sh", "-c", 'cd "$1" && echo in && exec sleep 600', "sh", served.target], stdout=-1)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        done = run_python(account, "unmount(sys.argv[1])", served.target, check=False)
        assert f"umount {mounted_at(served.target).source}:{served.target}: files in it are in use" in done.stderr
        assert f"{command_line('fuser', '-vm', str(served.target))}" in done.stderr
        run_python(account, "unmount(sys.argv[1], lazy=True)", served.target)
        assert mount_at(served.target) is None
        assert served.process.poll() is None
    finally:
        holder.kill()
        holder.communicate()
    assert served.process.wait(30) == 0


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(MountError, match=f"^umount {tmp_path}: not mounted$") as caught:
        unmount(str(tmp_path))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(MountError, match=r"no such mount point$"):
        unmount(str(tmp_path / "missing"))
    with pytest.raises(MountError, match=r"this is a mount of proc .*, not of cowfs; use umount$"):
        unmount("/proc")


def test_unmounting_the_mount_of_another_user(root_user: Account, ordinary_user: Account, serve: Serve) -> None:
    served = serve(root_user, "memory", target=ordinary_user.mkdir("of-root"))
    done = run_python(ordinary_user, "unmount(sys.argv[1])", served.target, check=False)
    assert "MountError" in done.stderr
    assert mount_at(served.target) is not None


# A server that was killed.


def test_killed_server_leaves_a_mount_that_goes_away(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    served.process.kill()
    served.process.wait()
    assert find_server(mounted_at(served.target)) is None
    run_python(account, "assert is_dead(mount_at(sys.argv[1])); unmount(sys.argv[1])", served.target)
    assert mount_at(served.target) is None


def test_a_process_that_a_server_has_forked_keeps_no_mount(root_user: Account, serve: Serve, tmp_path: Path) -> None:
    """Nor any other descriptor of the kernel's: the mount ends with its server, though the child lives on."""
    served = serve(root_user, "memory", "--fork", tmp_path / "child")
    while not (tmp_path / "child").exists():
        assert served.process.poll() is None, served.logged()
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    with contextlib.closing(os.fdopen(os.pidfd_open(child), "rb")) as handle:
        try:
            assert "/dev/fuse" not in [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
            served.process.kill()
            served.process.wait()
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.statvfs(served.target)
            signal.pidfd_send_signal(handle.fileno(), 0)  # it lives
        finally:
            signal.pidfd_send_signal(handle.fileno(), signal.SIGKILL)


def test_mounting_over_a_dead_mount_cleans_it(account: Account, serve: Serve) -> None:
    first = serve(account, "memory")
    first.process.kill()  # and not waited for: it may still be on its way out, and stays a zombie
    second = serve(account, "memory", target=first.target)
    assert find_server(mounted_at(second.target)) == second.process.pid
    assert second.end() == 0
    assert mount_at(first.target) is None


# Mount points that cannot be used.


def refused(account: Account, target: object) -> str:
    done = run_python(account, "check_mount_point('cowfs:/h:disk', sys.argv[1])", target, check=False)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1].removeprefix("cowfs.errors.")


def test_bad_mount_points(account: Account, serve: Serve) -> None:
    home = account.directory
    (home / "file").touch()
    full = account.mkdir("full")
    (full / "a").touch()
    assert refused(account, home / "no") == (
        f"MountError: mount cowfs:/h:disk:{home}/no: "
        f"the mount point does not exist; create it first: mkdir -p {home}/no"
    )
    assert refused(account, home / "file").endswith(f"{home}/file: the mount point is not a directory")
    assert refused(account, full).endswith("not empty: it holds a; use an empty directory")
    (full / "b").touch()
    assert refused(account, full).endswith("not empty: it holds a and 1 more; use an empty directory")
    served = serve(account, "memory")
    assert refused(account, served.target).endswith(
        f"already a mount point (fuse.cowfs {mounted_at(served.target).source}); unmount it first"
    )
    assert served.end() == 0


def test_mount_points_of_others(ordinary_user: Account, ordinary_root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a directory of another user; run: sudo make test")
    closed, open_ = ordinary_root / "closed-mount-point", ordinary_root / "open-mount-point"
    for path, mode in ((closed, 0o700), (open_, 0o755)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    assert refused(ordinary_user, closed).endswith("the mount point cannot be read: Permission denied")
    assert refused(ordinary_user, open_).endswith("may not write to the mount point; use a directory of your own")


def test_missing_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountpoint, "_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MissingRequirement, match=r"fuse does not exist; try: modprobe fuse"):
        mountpoint.check_requirements()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirement, match=r"pyfuse3 is not installed; try: .*pip install 'cowfs-thin\[fuse\]'"):
        mountpoint.check_requirements()


def test_all_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountpoint, "_DEVICE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    texts = [str(missing) for missing in mountpoint.missing_requirements()]
    assert len(texts) == 2
    assert texts[0] == f"{tmp_path} cannot be opened: Is a directory; try: modprobe fuse"


def test_requirements_of_a_user(ordinary_user: Account, tmp_path: Path, needs_fuse: None) -> None:
    device = ordinary_user.directory / "fuse"
    device.touch(0o600)
    code = "import cowfs.mounts.mountpoint as m; m._DEVICE = sys.argv[1]; m.check_requirements()"
    if os.geteuid() == 0:
        done = run_python(ordinary_user, code, device, check=False)
        assert "MissingRequirement" in done.stderr
        assert "may not be opened by uid 65534 (mode 600); try: as root, chmod 666" in done.stderr
    code = "import cowfs.mounts.mountpoint as m; m.fusermount = lambda: None; m.check_requirements()"
    done = run_python(ordinary_user, code, check=False)
    assert "fusermount3 is not installed, and only root mounts without it; try: apt-get install fuse3" in done.stderr


def test_unmounting_needs_the_table_of_mounts(ordinary_user: Account, serve: Serve) -> None:
    """The kernel's own answer would be about a file that the user never named."""
    served = serve(ordinary_user, "memory")
    code = "import cowfs.mounts.mountpoint as m; m._MTAB = sys.argv[1]; "
    for action in ("m.check_requirements()", "m.fusermount = lambda: '/bin/false'; m.unmount(sys.argv[2])"):
        done = run_python(ordinary_user, code + action, "/no/mtab", served.target, check=False)
        assert "MissingRequirement: /no/mtab does not exist, and fusermount3 looks there" in done.stderr
        assert "try: as root, ln -s /proc/self/mounts /no/mtab" in done.stderr
    assert served.end() == 0


def test_options_a_user_may_not_have(ordinary_user: Account, serve: Serve) -> None:
    if os.geteuid() == 0 and "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("/etc/fuse.conf allows allow_other here")
    for option, reason in (
        ("--allow-other", "data: allow_other: put 'user_allow_other' into /etc/fuse.conf, or mount as root"),
        ("--suid-dev", "data: dev,suid: only root may mount with that; mount as root"),
    ):
        target = ordinary_user.mkdir("mnt" + option)
        done = ordinary_user.run([sys.executable, SERVE, "-1", target, "cowfs:/h:d", "memory", option], check=False)
        assert reason in done.stderr
        assert mount_at(target) is None


# Starting in the background, as a library caller does.


def background(tmp_path: Path, *arguments: str, timeout_seconds: float = 60.0) -> tuple[int, Path]:
    target = tmp_path / "mnt"
    target.mkdir()
    server = mount_in_background(
        lambda fd: [sys.executable, SERVE, str(fd), str(target), "cowfs:/h:d", *arguments],
        source="cowfs:/h:d",
        target=str(target),
        log_path=tmp_path / "log",
        timeout_seconds=timeout_seconds,
    )
    return server.pid, target


def test_background_mount(tmp_path: Path, needs_fuse: None) -> None:
    pid, target = background(tmp_path, "memory")
    (target / "f").write_text("at once")
    assert pid == find_server(mounted_at(target))
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    unmount(str(target))
    with pytest.raises(ProcessLookupError):
        os.kill(reap(pid), 0)


def reap(pid: int) -> int:
    os.waitpid(pid, 0)
    return pid


def test_errors_before_readiness_keep_their_class(tmp_path: Path, needs_fuse: None) -> None:
    with pytest.raises(HomeBusy, match=r"^home H is held by process 77$") as caught:
        background(tmp_path, "memory", "--fault", "start")
    assert caught.value.holder_pid == 77
    assert caught.value.errno == errno.EBUSY
    assert mount_at(tmp_path / "mnt") is None
    assert "ended by itself" in (tmp_path / "log").read_text(), "it was interrupted while it wrote down why"


def test_a_service_that_fails_before_readiness(tmp_path: Path, needs_fuse: None) -> None:
    with pytest.raises(HomeBusy, match=r"^the service gave up$"):
        background(tmp_path, "memory", "--fault", "service")
    assert mount_at(tmp_path / "mnt") is None


def test_a_service_that_fails_later_does_not_take_the_mount_away(root_user: Account, serve: Serve) -> None:
    served = serve(root_user, "memory", "--fault", "late-service")
    (served.target / "f").write_text("still here")
    assert served.end() == 0
    assert "the mount continues without it" in served.logged()


def test_a_server_that_dies(tmp_path: Path, needs_fuse: None) -> None:
    with pytest.raises(
        MountError, match=r"ended with status 9 before it was ready; its log .*something is badly wrong"
    ):
        background(tmp_path, "memory", "--fault", "exit")


def test_a_server_that_hangs_is_stopped(tmp_path: Path, needs_fuse: None) -> None:
    began = time.monotonic()
    with pytest.raises(MountError, match=r"was not ready after 2 s and was stopped") as caught:
        background(tmp_path, "memory", "--fault", "hang", timeout_seconds=2)
    assert caught.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - began < 30


def test_a_close_that_fails_is_reported(root_user: Account, serve: Serve) -> None:
    served = serve(root_user, "memory", "--fault", "close")
    root_user.run(["fusermount3", "-u", served.target])
    assert served.process.wait(30) != 0
    assert "no space for the last commit" in served.logged()


# Faults behind the mount.


def test_a_bug_does_not_end_the_mount(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    code = """
root = Path(sys.argv[1])
(root / "f").write_text("before")
for name, number in (("bad-errno", errno.EIO), ("corrupt", errno.EIO), ("bug", errno.EIO)):
    try: os.stat(root / name)
    except OSError as error: assert error.errno == number, error
    else: raise AssertionError(name)
try: (root / "g").write_text("after")
except OSError as error: assert error.errno == errno.EROFS
else: raise AssertionError("still writable")
assert (root / "f").read_text() == "before"
assert os.listdir(root) == ["f"]
"""
    run_python(account, code, served.target)
    assert served.end() == 0
    assert "ZeroDivisionError: a bug in the engine" in served.logged()
    assert "Traceback" in served.logged()


def test_full_pool_fails_writes(account: Account, serve: Serve) -> None:
    served = serve(account, "memory")
    code = """
root = Path(sys.argv[1])
(root / "mapped").write_bytes(bytes(1000))
os.setxattr(root, "user.full", b"1")
try: (root / "f").write_bytes(bytes(1000))
except OSError as error: assert error.errno == errno.ENOSPC
else: raise AssertionError("written")
os.setxattr(root, "user.full", b"0")
(root / "f").write_bytes(bytes(1000))
"""
    run_python(account, code, served.target)
    assert served.end() == 0


def test_writes_queue_while_others_go_on(account: Account, serve: Serve) -> None:
    served = serve(account, "memory", "--queue-seconds", "100")
    code = """
import threading
root = Path(sys.argv[1])
(root / "mapped").write_bytes(b"x" * 1000)
os.setxattr(root, "user.full", b"2")
threads = [threading.Thread(target=(root / f"f{n}").write_bytes, args=(b"y" * 100_000,)) for n in range(20)]
for thread in threads: thread.start()
threads[0].join(1)
assert all(thread.is_alive() for thread in threads)
assert (root / "mapped").read_bytes() == b"x" * 1000
(root / "empty").touch()
assert len(os.listdir(root)) == 22
os.setxattr(root, "user.full", b"0")
for thread in threads: thread.join(30)
assert all((root / f"f{n}").read_bytes() == b"y" * 100_000 for n in range(20))
"""
    run_python(account, code, served.target)
    assert served.end() == 0


def test_queued_writes_fail_in_the_end(root_user: Account, serve: Serve) -> None:
    served = serve(root_user, "memory", "--queue-seconds", "3")
    os.setxattr(served.target, "user.full", b"2")
    with pytest.raises(OSError, match=r"No space left") as caught:
        (served.target / "f").write_bytes(bytes(1000))
    assert caught.value.errno == errno.ENOSPC
    assert served.end() == 0


FILL_POOL = """
disk = Path(sys.argv[1], "disk")
fd = os.open(disk, os.O_RDWR)
for block in range(16):
    os.pwrite(fd, bytes([block + 1]) * 65536, block * 65536)
"""


def test_a_full_pool_makes_writes_wait_and_then_fail(account: Account, serve: Serve) -> None:
    served = serve(account, "thin", "--queue-seconds", "3")
    code = """
import threading
began, results = time.monotonic(), []
def write():
    try: os.pwrite(fd, b"x" * 65536, 20 * 65536)
    except OSError as error: results.append((error.errno, time.monotonic() - began))
thread = threading.Thread(target=write)
thread.start()
thread.join(0.5)
assert thread.is_alive(), "the write did not wait"
assert os.pread(fd, 65536, 15 * 65536) == bytes([16]) * 65536
assert os.stat(disk).st_size == 4 << 20
thread.join()
[(number, seconds)] = results
assert number == errno.ENOSPC and 2 < seconds < 30, results
try: os.pwrite(fd, b"x" * 65536, 21 * 65536)
except OSError as error: assert error.errno == errno.ENOSPC
else: raise AssertionError("written into a full pool")
os.pwrite(fd, b"y" * 65536, 0)
assert os.pread(fd, 65536, 0) == b"y" * 65536
"""
    run_python(account, FILL_POOL + code, served.target)
    assert served.end() == 0


def test_a_full_pool_that_grows_lets_waiting_writes_through(account: Account, serve: Serve) -> None:
    served = serve(account, "thin", "--queue-seconds", "60", "--grow")
    code = """
os.pwrite(fd, b"x" * 65536, 20 * 65536)
os.fsync(fd)
assert os.pread(fd, 65536, 20 * 65536) == b"x" * 65536
"""
    run_python(account, FILL_POOL + code, served.target)
    assert served.end() == 0


def test_read_only(account: Account, serve: Serve) -> None:
    served = serve(account, "memory", "--read-only")
    assert "ro" in mounted_at(served.target).options
    code = """
root = Path(sys.argv[1])
try: (root / "f").touch()
except OSError as error: assert error.errno == errno.EROFS
else: raise AssertionError
fd = os.open(root, os.O_RDONLY); os.fsync(fd); os.close(fd)
"""
    run_python(account, code, served.target)
    assert served.end() == 0


def test_what_was_written_a_while_ago_survives_a_kill(root_user: Account, serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    served = serve(root_user, "volume", image)
    (served.target / "f").write_bytes(b"kept" * 10_000)
    deadline = time.monotonic() + 60
    while b"kept" not in debugfs(image, "cat /f") and time.monotonic() < deadline:
        time.sleep(0.2)  # no application syncs: the server does
    served.process.kill()
    assert debugfs(image, "cat /f") == b"kept" * 10_000
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
    assert b"Filesystem state:         clean" in debugfs(image, "stats -h")


def test_a_quiesced_volume_holds_all_that_was_written(root_user: Account, serve: Serve, tmp_path: Path) -> None:
    image, request = tmp_path / "image", tmp_path / "request"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    served = serve(root_user, "volume", image, "--copy-on", request)
    (served.target / "plain").write_bytes(b"plain" * 1000)
    fd = os.open(served.target / "mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4 << 20)
    with mmap.mmap(fd, 0) as mapped:
        mapped[:] = b"a" * len(mapped)  # dirty in the kernel only: no msync, no close
        request.touch()
        copy = tmp_path / "request.copy"
        deadline = time.monotonic() + 60
        while not copy.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        mapped[:] = b"b" * len(mapped)  # still mapped, and not part of the copy
    os.close(fd)
    assert served.end() == 0
    subprocess.run(["e2fsck", "-fn", copy], check=True, capture_output=True)
    assert b"Filesystem state:         clean" in debugfs(copy, "stats -h")
    assert debugfs(copy, "cat /plain") == b"plain" * 1000
    assert debugfs(copy, "cat /mapped") == b"a" * (4 << 20)
    assert debugfs(image, "cat /mapped") == b"b" * (4 << 20)


def test_a_request_that_the_kernel_takes_back(account: Account, serve: Serve) -> None:
    """Its process is killed between the poll and the read: nothing in the server waits for another request."""
    victim = account.directory / "victim"
    served = serve(account, "memory", "--kill", victim)
    look = "import os, sys; sys.stdin.readline(); os.stat(sys.argv[1])"
    for number in range(3):
        with account.start([sys.executable, "-c", look, served.target / f"missing{number}"], stdin=-1) as client:
            (account.directory / "number").write_text(str(client.pid))
            (account.directory / "number").rename(victim)
            client.communicate("\n", timeout=60)
        assert client.returncode == -signal.SIGKILL
        answered = victim.with_suffix(".answered")
        deadline = time.monotonic() + 30
        while not answered.exists():
            assert time.monotonic() < deadline, "the event loop stands still"
            time.sleep(0.01)
        answered.unlink()
    account.run(["touch", served.target / "f"])
    assert served.end() == 0


def debugfs(image: Path, command: str) -> bytes:
    return subprocess.run(["debugfs", "-R", command, image], check=True, capture_output=True).stdout


# The raw view.


@pytest.fixture
def image(account: Account) -> Path:
    path = account.directory / "image"
    path.write_bytes(os.urandom(3 << 20))
    os.chown(path, account.uid, account.gid)
    return path


def test_raw_is_the_disk(account: Account, serve: Serve, image: Path) -> None:
    served = serve(account, "raw", image)
    code = """
import mmap
disk, image = Path(sys.argv[1], "disk"), Path(sys.argv[2])
assert os.listdir(disk.parent) == ["disk"]
status = disk.stat()
assert (status.st_size, status.st_mode, status.st_uid) == (3 << 20, 0o100600, os.geteuid())
assert disk.read_bytes() == image.read_bytes()
fd = os.open(disk, os.O_RDWR)
for offset, length in ((0, 1), (4095, 4098), (1 << 20, 1 << 20), ((3 << 20) - 1, 1), (123, 2_000_000)):
    data = os.urandom(length)
    assert os.pwrite(fd, data, offset) == length
    assert os.pread(fd, length, offset) == data
os.fsync(fd)
with mmap.mmap(fd, 0) as mapped:
    mapped[5000:5005] = b"hello"
    mapped.flush()
assert os.pread(fd, 100, 3 << 20) == b""
os.close(fd)
assert disk.read_bytes() == image.read_bytes()
assert disk.read_bytes()[5000:5005] == b"hello"
"""
    run_python(account, code, served.target, image)
    assert served.end() == 0


def test_raw_behaves_like_a_disk_at_its_end(account: Account, serve: Serve, image: Path) -> None:
    served = serve(account, "raw", image)
    code = """
def fails(number, action, *arguments):
    try: action(*arguments)
    except OSError as error: assert error.errno == number, error
    else: raise AssertionError(action)
disk, size = Path(sys.argv[1], "disk"), 3 << 20
fd = os.open(disk, os.O_RDWR)
fails(errno.ENOSPC, os.pwrite, fd, b"x", size)
assert os.pwrite(fd, b"x" * 10_000, size - 100) == 100
for length in (0, size - 1, size + 1):
    fails(errno.EINVAL, os.ftruncate, fd, length)
os.ftruncate(fd, size)
os.utime(fd, ns=(7, 8))
assert os.fstat(fd).st_mtime_ns == 8
os.close(fd)
fails(errno.EPERM, os.chmod, disk, 0o644)
fails(errno.ENOENT, os.stat, disk.parent / "other")
for action in (os.unlink, os.mkdir, os.readlink):
    fails(errno.EEXIST if action is os.mkdir else errno.EINVAL if action is os.readlink else errno.ENOSYS, action, disk)
with open(disk, "wb") as file:  # O_TRUNC does nothing to a disk
    file.write(b"begin")
assert disk.stat().st_size == size
assert disk.read_bytes()[:5] == b"begin" and len(disk.read_bytes()) == size
"""
    run_python(account, code, served.target)
    assert served.end() == 0


def test_raw_read_only(account: Account, serve: Serve, image: Path) -> None:
    served = serve(account, "raw", image, "--read-only")
    code = """
disk = Path(sys.argv[1], "disk")
assert disk.stat().st_mode == 0o100400
assert disk.read_bytes() == Path(sys.argv[2]).read_bytes()
try: os.open(disk, os.O_RDWR)
except OSError as error: assert error.errno in (errno.EROFS, errno.EACCES), error
else: raise AssertionError
"""
    run_python(account, code, served.target, image)
    assert served.end() == 0


def test_raw_under_a_loop_device(root_user: Account, serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    served = serve(root_user, "raw", image)
    inside = root_user.mkdir("inside")
    try:
        mounted = root_user.run(["mount", "-o", "loop", served.target / "disk", inside], check=False)
        if mounted.returncode != 0 and "failed to setup loop device" in mounted.stderr:
            pytest.skip("needs loop devices; run: sudo modprobe loop")
        assert mounted.returncode == 0, mounted.stderr
        (inside / "f").write_bytes(b"x" * 100_000)
    finally:
        subprocess.run(["umount", inside], check=False, capture_output=True)
    assert served.end() == 0
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
    subprocess.run(["debugfs", "-R", "stat /f", image], check=True, capture_output=True)


def test_shared_mmap_is_written_back_before_the_end(root_user: Account, serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    served = serve(root_user, "raw", image)
    fd = os.open(served.target / "disk", os.O_RDWR)
    mapped = mmap.mmap(fd, 0)
    mapped[:5] = b"dirty"
    served.process.terminate()  # in use: it must detach, but first fetch what the kernel holds
    assert served.process.wait(30) == 0
    mapped.close()
    with contextlib.suppress(OSError):  # its file system is gone
        os.close(fd)
    assert image.read_bytes()[:5] == b"dirty"


# A process that starts a server and is interrupted.


class Interrupted(Exception):
    pass


def test_an_interruption_when_the_mount_is_ready_undoes_it(tmp_path: Path, needs_fuse: None) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    ready: list[int] = []

    def on_ready() -> None:
        ready.append(find_server(mounted_at(target)) or 0)
        raise Interrupted

    with pytest.raises(Interrupted):
        mount_in_background(
            lambda fd: [sys.executable, SERVE, str(fd), str(target), "cowfs:/h:d", "memory"],
            source="cowfs:/h:d",
            target=str(target),
            on_ready=on_ready,
        )
    assert mount_at(target) is None
    assert not os.path.exists(f"/proc/{ready[0]}")


def test_an_interruption_while_a_server_is_started_ends_it(
    tmp_path: Path, needs_fuse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(KeyboardInterrupt):
        background(tmp_path, "memory")
    assert started[0].poll() is not None
    assert mount_at(tmp_path / "mnt") is None


def test_a_server_that_is_not_waited_for_any_more_undoes_its_mount(account: Account, needs_fuse: None) -> None:
    """The process that started it was killed."""
    receiver, sender = os.pipe()
    os.close(receiver)
    target = account.mkdir("mnt")
    arguments = [sys.executable, SERVE, str(sender), target, "cowfs:/h:d", "memory"]
    done = account.run(arguments, check=False, pass_fds=(sender,), timeout=60)
    os.close(sender)
    assert done.returncode
    assert "the process that waited for this server has ended" in done.stderr
    assert mount_at(target) is None


def test_writes_are_not_asked_about_one_by_one(account: Account, serve: Serve) -> None:
    """The kernel looks for `security.capability` before the first write of a file, and leaves the rest to us."""
    served = serve(account, "memory")
    program = "import sys; file = open(sys.argv[1], 'wb', 0); [file.write(b'x') for _ in range(50)]"
    account.run([sys.executable, "-c", program, served.target / "f"])
    assert served.end() == 0
    assert served.logged().count("asked for security.capability") == 1
