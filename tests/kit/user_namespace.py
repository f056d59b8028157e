"""A command as root of a user namespace and a separate mount namespace: without any right outside of them.

    python -m tests.kit.user_namespace COMMAND...      as root, which alone may choose the users of the namespace

Sources: user_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

FIRST: Final = 100_000  # the user and the group outside that are root inside
COUNT: Final = 65_536
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000


def run(words: list[str]) -> int:
    """The command's exit status."""
    is_apart, has_users = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(has_users[1])
            _become(FIRST)
            _unshare(_CLONE_NEWUSER)
            os.write(is_apart[1], b".")
            os.read(has_users[0], 1)
            _become(0)
            _unshare(_CLONE_NEWNS)
            os.execvp(words[0], words)
        finally:
            os._exit(127)
    os.close(is_apart[1])
    if os.read(is_apart[0], 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {FIRST} {COUNT}\n")
    os.close(has_users[1])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
