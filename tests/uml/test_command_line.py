"""Every command answers the same on the emulated and on the kernel's pool, rightly and wrongly used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cowfs.uml import UmlKernel
from tests.conftest import REPOSITORY, Account, remove_tree

GUEST = "tests.uml.guest_command_line"
# Boots the guest, in a process of the user whose guest it is.
CLIENT = """
import os, sys
from pathlib import Path
from cowfs.uml import UmlKernel, run
kernel = UmlKernel(Path(sys.argv[1]), Path(sys.argv[2]))
sys.exit(run(sys.argv[3:], kernel=kernel, env=dict(os.environ), timeout_seconds=200))
"""


# What a disk was asked for and what that took: the kernel merges requests, and does not count all of it.
COUNTERS = re.compile(
    r"^(Reads|Writes|Discards|Flushes|Provisioned|Shared blocks copied|Unmapped) .*\n|,\n  \"counters\": \{[^}]*\}",
    re.M,
)


def records(lines: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return [record | {"out": COUNTERS.sub("", record["out"])} for record in found]


@pytest.fixture(scope="module")
def kernels(uml_kernel: UmlKernel, make_ordinary_account: Callable[[], Account]) -> Iterator[list[dict[str, Any]]]:
    """What the kernel's pool answers in a guest of an ordinary user, which has root inside and fewer rights outside."""
    account = make_ordinary_account()
    if account.run(["test", "-x", uml_kernel.executable], check=False).returncode != 0:
        pytest.skip(f"{account.name} cannot reach {uml_kernel.executable}; run: sudo apt-get install user-mode-linux")
    directory = account.mkdir("theirs")
    boot = [sys.executable, "-c", CLIENT, uml_kernel.executable, uml_kernel.modules]
    done = account.run([*boot, sys.executable, "-m", GUEST, "dmthin", directory], cwd=REPOSITORY)
    account.run(["thin_check", directory / "home" / "devicemapper" / "metadata"])
    yield records(done.stdout)
    remove_tree(account.directory)


def test_both_backends_answer_the_same(kernels: list[dict[str, Any]], account: Account, needs_fuse: None) -> None:
    directory = account.mkdir("ours")
    emulated = account.run([sys.executable, "-m", GUEST, "emulated", directory], cwd=REPOSITORY)
    expected, found = records(emulated.stdout), kernels
    assert len(expected) > 100
    differences = [
        f"{a['words']}\n  emulated: {a}\n  dmthin:   {b}" for a, b in zip(expected, found, strict=True) if a != b
    ]
    assert not differences, "\n".join(differences)
    # Both kinds were seen: what works, and each class of refusal.
    assert {0, 2, 4, 5, 6} <= {record["status"] for record in expected}
