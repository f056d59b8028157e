"""Every command answers the same on the emulated and on the kernel's pool, rightly and wrongly used."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from cowfs.uml import UmlKernel
from tests.conftest import REPOSITORY, Account

GUEST = "tests.uml.guest_command_line"
# Run in the guest by the account that the test is for.
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


def test_both_backends_answer_the_same(uml_kernel: UmlKernel, account: Account, needs_fuse: None) -> None:
    if account.run(["test", "-x", uml_kernel.executable], check=False).returncode != 0:
        pytest.skip(f"{account.name} cannot reach {uml_kernel.executable}; run: sudo apt-get install user-mode-linux")
    ours, theirs = account.mkdir("ours"), account.mkdir("theirs")
    emulated = account.run([sys.executable, "-m", GUEST, "emulated", ours], cwd=REPOSITORY)
    boot = [sys.executable, "-c", CLIENT, uml_kernel.executable, uml_kernel.modules]
    kernels = account.run([*boot, sys.executable, "-m", GUEST, "dmthin", theirs], cwd=REPOSITORY)
    expected, found = records(emulated.stdout), records(kernels.stdout)
    assert len(expected) > 100
    differences = [
        f"{a['words']}\n  emulated: {a}\n  dmthin:   {b}" for a, b in zip(expected, found, strict=True) if a != b
    ]
    assert not differences, "\n".join(differences)
    # Both kinds were seen: what works, and each class of refusal.
    assert {0, 2, 4, 5, 6} <= {record["status"] for record in expected}
    account.run(["thin_check", theirs / "home" / "devicemapper" / "metadata"])
