"""In every Python process of the tests: a server that touches a path on its own mount raises, and the run fails.

Python loads this by its name, since tests/conftest.py puts this directory on PYTHONPATH. What CPython audits is
watched by an audit hook; the calls that it does not audit are wrapped. Not seen: what C code does by itself, paths that
lead to the mount by a symbolic link, and what is done with descriptors.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

AUDITED = {"open", "ctypes.dlopen", "subprocess.Popen"} | {
    f"os.{name}"
    for name in (
        "chdir",
        "chmod",
        "chown",
        "exec",
        "getxattr",
        "link",
        "listdir",
        "listxattr",
        "mkdir",
        "posix_spawn",
        "remove",
        "removexattr",
        "rename",
        "rmdir",
        "scandir",
        "setxattr",
        "symlink",
        "truncate",
        "utime",
    )
}
NOT_AUDITED = ("stat", "lstat", "access", "readlink", "statvfs", "mkfifo", "mknod", "pathconf")


def served_mount_points() -> list[str]:
    module = sys.modules.get("cowfs.mounts.mountpoint")
    return list(getattr(module, "SERVED", ()))


def check(what: str, paths: tuple[Any, ...]) -> None:
    for target in served_mount_points():
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and is_below(os.fsdecode(path), target):
                complain(f"{what}({os.fsdecode(path)!r}) in process {os.getpid()}, which serves {target}")


def is_below(path: str, target: str) -> bool:
    absolute = os.path.abspath(path)
    return absolute == target or absolute.startswith(f"{target}/")


def complain(message: str) -> None:
    log = os.open(os.environ["COWFS_SERVER_GUARD"], os.O_WRONLY | os.O_APPEND)
    os.write(log, f"{message}\n".encode())
    os.close(log)
    raise AssertionError(message)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in AUDITED:
        # A program may be given the path: it is another process. Neither itself nor where it starts may be there.
        check(event, (arguments[0], arguments[2]) if event == "subprocess.Popen" else arguments)


def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def checked(*arguments: Any, **options: Any) -> Any:
        check(f"os.{name}", arguments[:1])
        return call(*arguments, **options)

    return checked


if "COWFS_SERVER_GUARD" in os.environ:
    sys.addaudithook(audit)
    for name in NOT_AUDITED:
        replacement = wrapped(name, getattr(os, name))
        for functions in (os.supports_dir_fd, os.supports_follow_symlinks, os.supports_effective_ids, os.supports_fd):
            if getattr(os, name) in functions:
                functions.add(replacement)
        setattr(os, name, replacement)
