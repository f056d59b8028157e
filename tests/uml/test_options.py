"""direct-lvm with LVM itself, and xfs on the kernel: their checks in a guest."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.conftest import SYSTEM_PATH
from tests.uml.guest_options import check

NEEDED = {"lvcreate": "lvm2", "mkfs.xfs": "xfsprogs", "thin_check": "thin-provisioning-tools"}
# Its disks are files in its memory, of which half may be files; comparing the kernel's engines takes 300 MB of them.
MEMORY_BYTES = 1 << 30


@pytest.fixture(scope="module")
def results(results_of: Callable[..., dict[str, str]]) -> dict[str, str]:
    for command, package in NEEDED.items():
        if shutil.which(command, path=SYSTEM_PATH) is None:
            pytest.skip(f"{command} is not installed; run: sudo apt-get install {package}")
    return results_of("tests.uml.guest_options", memory_bytes=MEMORY_BYTES)


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
