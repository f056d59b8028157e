"""Layers that the kernel mounts, of ext4 and of xfs: their checks in one guest."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.conftest import SYSTEM_PATH
from tests.uml.guest_layers import check


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, str]]) -> dict[str, str]:
    if shutil.which("mkfs.xfs", path=SYSTEM_PATH) is None:
        pytest.skip("mkfs.xfs is not installed; run: sudo apt-get install xfsprogs")
    return results_of("tests.uml.guest_layers")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
