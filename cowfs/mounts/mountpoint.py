"""Before and after a mount, without FUSE itself: what is missing here, is this a usable mount point, unmount it.

A server of cowfs names its main thread after the device number of what it serves (`cowfs 0:53` in ps and top). So the
server of a mount is found without asking the mount, which may be dead, hung or closed to us.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import os
import select
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from cowfs.errors import MissingRequirement, MountError, command_line
from cowfs.mounts.build_needs import how_to_install
from cowfs.mounts.mountinfo import Mount, decode_source, mount_at, mount_point_at, mounts, topmost_at

_DEVICE: Final = "/dev/fuse"
_FUSE_CONF: Final = "/etc/fuse.conf"
_MTAB: Final = "/etc/mtab"
_MNT_DETACH: Final = 2
_PF_EXITING: Final = 4
_TOOL_SECONDS: Final = 60.0
_ASK_AFTER_SECONDS: Final = 5.0

SERVED: Final[dict[str, str]] = {}
"""Mount points that this process serves, with the device numbers of what it has mounted there.

Its threads touch no path there: they would wait for their own answers.
"""


# What a mount needs.


def check_requirements() -> None:
    """Raises MissingRequirement for the first thing this machine lacks to mount anything as this user."""
    for missing in missing_requirements():
        raise missing


def missing_requirements() -> list[MissingRequirement]:
    """All that this machine lacks to mount anything as this user."""
    missing = []
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing.append(_device_problem(error))
    if os.geteuid() != 0 and fusermount() is None:
        text = "fusermount3 is not installed, and only root mounts without it"
        missing.append(MissingRequirement(text, remedy="apt-get install fuse3", errno=errno.ENOENT))
    if os.geteuid() != 0 and not os.path.exists(_MTAB):
        missing.append(_no_mtab())
    if importlib.util.find_spec("pyfuse3") is None:
        text = "the Python package pyfuse3 is not installed"
        missing.append(MissingRequirement(text, remedy=how_to_install()))
    return missing


def _device_problem(error: OSError) -> MissingRequirement:
    if error.errno in {errno.EACCES, errno.EPERM}:
        text = f"{_DEVICE} may not be opened by uid {os.geteuid()} (mode {os.stat(_DEVICE).st_mode & 0o777:03o})"
        remedy = f"as root, chmod 666 {_DEVICE}, or join the group that owns it"
    elif error.errno == errno.ENOENT:
        text, remedy = f"{_DEVICE} does not exist", "modprobe fuse; in a container, docker run --device /dev/fuse"
    else:
        text, remedy = f"{_DEVICE} cannot be opened: {error.strerror}", "modprobe fuse"
    return MissingRequirement(text, remedy=remedy, errno=error.errno)


def _no_mtab() -> MissingRequirement:
    text = f"{_MTAB} does not exist, and fusermount3 looks there for what a user may unmount"
    return MissingRequirement(text, remedy=f"as root, ln -s /proc/self/mounts {_MTAB}", errno=errno.ENOENT)


def fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount3", path="/usr/bin:/bin")


def may_allow_other() -> bool:
    """Whether this user may let others into a mount."""
    if os.geteuid() == 0:
        return True
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def check_mount_point(source: str, target: str) -> str:
    """The absolute path of a usable mount point.

    A dead mount of cowfs on it (its server was killed) is detached first; nothing can use it any more.

    Raises:
        MountError: missing, not a directory, not empty, mounted already, or not ours to mount on.
    """
    path = os.path.realpath(target)

    def refuse(number: int, reason: str) -> MountError:
        return MountError("mount", source, path, errno=number, reason=reason)

    detach_dead(path)
    mount = mount_at(path)
    if mount is not None:
        raise refuse(errno.EBUSY, f"already a mount point ({mount.fstype} {mount.source}); unmount it first")
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        make = command_line("mkdir", "-p", path)
        raise refuse(errno.ENOENT, f"the mount point does not exist; create it first: {make}") from None
    except NotADirectoryError:
        raise refuse(errno.ENOTDIR, "the mount point is not a directory") from None
    except OSError as error:
        raise refuse(error.errno or errno.EIO, f"the mount point cannot be read: {error.strerror}") from None
    if names:
        found = names[0] if len(names) == 1 else f"{min(names)} and {len(names) - 1} more"
        raise refuse(errno.ENOTEMPTY, f"the mount point is not empty: it holds {found}; use an empty directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise refuse(errno.EACCES, f"uid {os.geteuid()} may not write to the mount point; use a directory of your own")
    return path


def detach_dead(path: str) -> None:
    """Detach a mount of cowfs whose server is gone; any other mount, or none, stays as it is.

    Args:
        path: absolute, without symbolic links.

    Raises:
        MountError, MissingRequirement: it cannot be detached.
    """
    mount = mount_at(path)
    if mount is not None and mount.is_cowfs and is_dead(mount):
        unmount_now(mount.target, source=mount.source, lazy=True)


def is_dead(mount: Mount) -> bool:
    """Whether the server of a mount of cowfs is gone, so that every request to it fails at once."""
    if find_server(mount) is not None:
        return False  # and asking a server that hangs would hang
    try:
        os.statvfs(mount.target)  # never answered from a cache
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


# Its server.


def server_title(device: str) -> str:
    """The name of the main thread of the server of the file system with this device number, at most 15 bytes."""
    return f"cowfs {device}"


def set_title(title: str) -> None:
    Path("/proc/self/comm").write_text(title, encoding="ascii")


def find_server(mount: Mount) -> int | None:
    """Pid of the process that serves a mount of cowfs; None when there is none any more."""
    title = server_title(mount.device)
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        try:
            comm = Path(entry.path, "comm").read_text(encoding="utf-8", errors="replace")
            if comm.rstrip("\n") == title and entry.stat().st_uid == mount.owner_uid:
                alive, start_time = _life(entry.path)
                found += [(start_time, _pid_here(entry.path))] if alive else []
        except OSError:
            continue  # it ended meanwhile
    # Device numbers are used again: one that has just lost its mount may not have dropped its title yet.
    return max(found)[1] if found else None


def _life(process: str) -> tuple[bool, int]:
    """Whether a process is not about to end, and when it started, in clock ticks since boot (see proc(5), stat)."""
    fields = Path(process, "stat").read_bytes().rpartition(b")")[2].split()
    state, flags, start_time = fields[0], int(fields[6]), int(fields[19])
    return state not in {b"Z", b"X"} and not flags & _PF_EXITING, start_time


def _pid_here(process: str) -> int:
    """The pid of a process in our pid namespace, which an inner one is to /proc when that was not mounted anew.

    Raises:
        ProcessLookupError: it is in an outer namespace, and has no pid here.
    """
    depth = len(_pids("/proc/self"))
    pids = _pids(process)
    if len(pids) < depth:
        raise ProcessLookupError(errno.ESRCH, "no pid in this namespace", process)
    return pids[depth - 1]


def _pids(process: str) -> list[int]:
    """Of a process in the pid namespace of /proc and in each one inside that it is in (proc(5), status, NSpid)."""
    for line in Path(process, "status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return [int(os.path.basename(os.path.realpath(process)))]  # a kernel without namespaces


# Unmounting.


def unmount(target: str, *, lazy: bool = False, timeout_seconds: float = 120.0) -> list[str]:
    """Unmount what cowfs mounted, and return when its server has closed everything and is gone.

    Args:
        lazy: detach at once; a process that still uses files in it keeps the server running, and nothing is waited for.

    Returns:
        Where the files are still mounted (mount --bind): the server goes on until the last of these is unmounted.

    Raises:
        MountError: nothing of cowfs is mounted there, files in it are in use, or the server does not end.
        MissingRequirement: fusermount3 is not there, or not the table that it looks into.
    """
    path = mount_point_at(target)
    mount = topmost_at(path)
    if mount is None:
        reason = "not mounted" if os.path.lexists(path) else "no such mount point"
        raise MountError("umount", "", path, errno=errno.EINVAL, reason=reason)
    if not mount.is_cowfs:
        reason = f"this is a mount of {mount.fstype} ({mount.source}), not of cowfs; use umount"
        raise MountError("umount", mount.source, path, errno=errno.EINVAL, reason=reason)
    pid = find_server(mount)
    server = _open_process(pid)
    try:
        unmount_now(mount.target, source=mount.source, lazy=lazy)
        copies = [other.target for other in mounts() if other.device == mount.device]
        if server is not None and not lazy and not copies and not _ends(server, timeout_seconds):
            raise MountError("umount", mount.source, path, errno=errno.ETIMEDOUT, reason=_why_not_free(pid, mount))
    finally:
        if server is not None:
            os.close(server)
    return copies


def _why_not_free(pid: int | None, mount: Mount) -> str:
    source = decode_source(mount.source)
    where = f" in {source[0]}" if source is not None else ""
    return (
        f"unmounted, but its server, process {pid}, has not ended and holds the home; what it does is in its log"
        f"{where}; wait until it has ended, or end it with: kill -KILL {pid} (what was synced is kept)"
    )


def unmount_now(target: str, *, source: str = "", lazy: bool = False) -> None:
    """The bare unmount, as root by umount2(2) and else by fusermount3. Raises MountError, MissingRequirement."""
    number = _umount2(target, lazy) if os.geteuid() == 0 else _run_fusermount(target, lazy)
    if not number:
        return
    reason = ""
    if number == errno.EBUSY:
        show = command_line("fuser", "-vm", target)
        reason = f"files in it are in use; see them with: {show}; or detach it with --lazy"
    elif number == errno.EPERM:
        reason = "mounted by another user"
    raise MountError("umount", source, target, flags=_MNT_DETACH if lazy else 0, errno=number, reason=reason)


def _umount2(target: str, lazy: bool) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0) == 0:
        return 0
    return ctypes.get_errno()


def _run_fusermount(target: str, lazy: bool) -> int:
    tool = fusermount()
    if tool is None:
        raise MissingRequirement("fusermount3 is not installed", remedy="apt-get install fuse3", errno=errno.ENOENT)
    command = [tool, "-u", *(["-z"] if lazy else []), "--", target]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_TOOL_SECONDS,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return errno.ETIMEDOUT
    if done.returncode == 0:
        return 0
    if not os.path.exists(_MTAB):
        raise _no_mtab()
    said = done.stderr.decode(errors="replace")
    for number in (errno.EBUSY, errno.EPERM, errno.EINVAL, errno.ENOENT):
        if os.strerror(number) in said:
            return number
    return errno.EPERM


def _open_process(pid: int | None) -> int | None:
    try:
        return None if pid is None else os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _ends(server: int, timeout_seconds: float) -> bool:
    """Whether a process ends in time; it is asked to after a while."""
    poll = select.poll()
    poll.register(server, select.POLLIN)
    if poll.poll(_ASK_AFTER_SECONDS * 1000):
        return True
    with contextlib.suppress(OSError):  # another user's
        signal.pidfd_send_signal(server, signal.SIGTERM)  # for a copy of the mount that it does not see itself
    return bool(poll.poll(timeout_seconds * 1000))
