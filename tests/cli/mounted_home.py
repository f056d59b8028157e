"""A home that is used by its command line alone, and what the tests of its mounts share."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Account

_JUDGE = """
import sys
from cowfs.devices import opening
from cowfs.ext4.tools.fsck import check_volume
from cowfs.pool import load_backend
with opening.open_home(sys.argv[1], load_backend("emulated")) as devices:
    for record in devices.records():
        result = check_volume(devices.active.activate(record.name, read_only=True))
        assert result.clean, (record.name, result.output)
        devices.active.deactivate(record.name)
"""

_NEEDS_REPLAY = """
import sys
from cowfs.devices import opening
from cowfs.ext4.journal.recovery import needs_recovery
from cowfs.pool import load_backend
with opening.open_home(sys.argv[1], load_backend("emulated")) as devices:
    print(needs_recovery(devices.active.activate(sys.argv[2], read_only=True)))
    devices.active.deactivate(sys.argv[2])
"""

SMALL = ("--data-size", "1G", "--metadata-size", "8M", "--base-size", "64M")


class MountedHome:
    """A home of one account, used by its command line."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.home = account.directory / "a home"
        self.target = account.mkdir("mount point")
        self.other_target = account.mkdir("other")

    def run(self, *words: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.account.run(["cowfs", "--home", self.home, *words], check=check, **options)

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.run("--json", *words).stdout)

    def refused(self, status: int, *words: str | Path) -> str:
        """The one line of an error."""
        result = self.run(*words, check=False)
        assert result.returncode == status, (words, result)
        (line,) = result.stderr.splitlines()
        return line

    def shell(self, script: str) -> str:
        return self.account.run(["sh", "-ec", script], cwd=self.account.directory).stdout

    def is_mounted(self, target: Path) -> bool:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            return f" {str(target).replace(' ', chr(92) + '040')} " in file.read()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Look again and again, for what happens in the background."""
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def judge(self) -> None:
        """Recount the pool, and ask e2fsck about every volume."""
        assert self.json("check")["clean"]
        self.account.run(["python", "-c", _JUDGE, self.home])

    def needs_replay(self, name: str) -> bool:
        """Whether the file system of a device, which is not mounted, has something in its journal."""
        return self.account.run(["python", "-c", _NEEDS_REPLAY, self.home, name]).stdout == "True\n"

    def clear(self) -> None:
        """Leave no mount behind, whatever a test did."""
        for target in (self.target, self.other_target):
            while self.is_mounted(target):
                self.run("umount", "--lazy", target, check=False)
        with contextlib.suppress(FileNotFoundError, ValueError):
            deadline = time.monotonic() + 20
            while (self.home / "cowfs.lock").read_text() and time.monotonic() < deadline:
                time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def kill_and_wait(pid: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(60_000)
    finally:
        os.close(handle)
