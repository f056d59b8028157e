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
from tests.kit.guests import run_in_guest_of

GUEST = "tests.uml.guest_command_line"

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
    directory = account.mkdir("theirs")
    output = run_in_guest_of(account, uml_kernel, GUEST, "dmthin", directory)
    account.run(["thin_check", directory / "home" / "devicemapper" / "metadata"])
    yield records(output)
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
