"""Programs of the tests in a guest of User-Mode Linux, where each step has a limit and not all of them together.

How long a guest takes is for the machine and what else runs on it to say. A program prints a line at the end of each
of its steps, and is ended when none comes for a long while.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Final

import pytest

from cowfs.errors import UmlError
from cowfs.uml import UmlKernel, run
from tests.conftest import GUEST_SECONDS, REPOSITORY, Account

ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    # Of the C library: memory that is freed is used again, as each page that is mapped anew is a call of the host.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_TOP_PAD_": str(4 << 20),
}
STEP_SECONDS: Final = 150
# Boots a guest, in a process of the user whose guest it is.
_CLIENT: Final = f"""
import os, sys
from pathlib import Path
from cowfs.uml import UmlKernel, run
kernel = UmlKernel(Path(sys.argv[1]), Path(sys.argv[2]))
sys.exit(run(sys.argv[3:], kernel=kernel, env=dict(os.environ), silence_seconds={STEP_SECONDS}))
"""


def run_in_guest(
    kernel: UmlKernel, *words: object, step_seconds: float = STEP_SECONDS, **options: Any
) -> subprocess.CompletedProcess[str]:
    """What a module printed that Python ran in a guest, from the checkout; `options` as of `cowfs.uml.run`.

    Raises:
        UmlError: the guest broke off or a step did not end; with what was printed until then.
    """
    command = [sys.executable, "-m", *map(str, words)]
    outputs: tuple[list[bytes], list[bytes]] = ([], [])
    fixed = {"kernel": kernel, "cwd": REPOSITORY, "env": ENVIRONMENT}
    streams = {"stdout": outputs[0].append, "stderr": outputs[1].append}
    try:
        status = run(command, silence_seconds=step_seconds, **{**fixed, **streams, **options})
    except UmlError as error:
        error.add_note("\n".join(joined(output)[-4000:] for output in outputs))
        raise
    return subprocess.CompletedProcess(command, status, joined(outputs[0]), joined(outputs[1]))


def run_in_guest_of(account: Account, kernel: UmlKernel, *words: object) -> str:
    """What a module printed in a guest of an account, which has root inside and its own rights outside."""
    require_reachable(account, kernel)
    boot = [sys.executable, "-c", _CLIENT, kernel.executable, kernel.modules]
    return account.run([*boot, sys.executable, "-m", *words], cwd=REPOSITORY, timeout=GUEST_SECONDS).stdout


def require_reachable(account: Account, kernel: UmlKernel) -> None:
    """Skip the test where the account cannot start the kernel."""
    if account.run(["test", "-x", kernel.executable], check=False).returncode != 0:
        pytest.skip(f"{account.name} cannot reach {kernel.executable}; run: sudo apt-get install user-mode-linux")


def joined(pieces: list[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace")
