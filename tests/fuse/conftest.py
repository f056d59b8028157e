"""Mount servers for the tests: each a separate process, ended by pid, whatever the test did."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cowfs.mounts.mountinfo import Mount, encode_source, mount_at

if TYPE_CHECKING:
    from tests.conftest import Account

SERVE = str(Path(__file__).with_name("serve.py"))
READY_SECONDS = 60.0


@dataclass
class Served:
    """A running server and its mount point."""

    process: subprocess.Popen[str]
    target: Path
    log: Path
    account: Account

    def end(self, timeout: float = 60.0) -> int:
        """Unmount as its owner, and the server's exit status."""
        self.account.run(["fusermount3", "-u", self.target])
        return self.process.wait(timeout)

    def logged(self) -> str:
        return self.log.read_text()


Serve = Callable[..., Served]


@pytest.fixture
def serve(needs_fuse: None, tmp_path: Path, ordinary_root: Path) -> Iterator[Serve]:
    """`serve(account, "memory" | "raw", ...)`: a mounted view, ready."""
    running: list[Served] = []

    def start(account: Account, *arguments: object, target: Path | None = None) -> Served:
        target = target or account.mkdir(f"mnt{len(running)}")
        log = account.directory / f"log{len(running)}"
        receiver, sender = os.pipe()
        with open(log, "w") as output:
            process = account.start(
                [sys.executable, SERVE, str(sender), target, encode_source(account.directory, "disk"), *arguments],
                stdout=output,
                stderr=output,
                pass_fds=(sender,),
                start_new_session=True,
            )
        os.close(sender)
        served = Served(process, target, log, account)
        running.append(served)
        with open(receiver, "rb") as pipe:
            ready, _, _ = select.select([pipe], [], [], READY_SECONDS)
            line = pipe.readline() if ready else b""
        if b'"pid"' not in line:
            pytest.fail(f"the server is not ready: {line!r}\n{served.logged()}")
        return served

    yield start
    for served in running:
        stop(served)


def mounted_at(target: Path) -> Mount:
    mount = mount_at(target)
    assert mount is not None, target
    return mount


def stop(served: Served) -> None:
    if served.process.poll() is None:
        served.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            served.process.wait(20)
    if served.process.poll() is None:
        served.process.kill()
        served.process.wait()
    while mount_at(served.target) is not None:
        subprocess.run(["fusermount3", "-uz", served.target], check=True)


@pytest.fixture
def root(root_user: Account) -> Account:
    return root_user
