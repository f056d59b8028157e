"""direct-lvm with LVM itself and xfs on the kernel, in User-Mode Linux."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from cowfs.errors import MissingRequirement
from cowfs.uml import UmlKernel, find_kernel, run_captured
from tests.conftest import REPOSITORY, SYSTEM_PATH
from tests.layers.options.guest_options import CHECKS

MEMORY_BYTES = 1 << 30
NEEDED = {"lvcreate": "lvm2", "mkfs.xfs": "xfsprogs", "thin_check": "thin-provisioning-tools"}


@pytest.fixture(scope="module")
def kernel() -> UmlKernel:
    for command, package in NEEDED.items():
        if shutil.which(command, path=SYSTEM_PATH) is None:
            pytest.skip(f"{command} is not installed; run: sudo apt-get install {package}")
    try:
        return find_kernel()
    except MissingRequirement as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def results(kernel: UmlKernel) -> dict[str, str]:
    """By check: why it failed, if it did."""
    done = run_captured(
        [sys.executable, "-m", "tests.layers.options.guest_options"],
        kernel=kernel,
        cwd=REPOSITORY,
        env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": "/root"},
        memory_bytes=MEMORY_BYTES,
        timeout_seconds=250,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    print(*(f"{line['seconds']:.1f} s {line['id']}" for line in lines), sep="\n")
    return {line["id"]: line["reason"] for line in lines}


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
