"""Layers that the kernel mounts, of ext4 and of xfs: their checks in one guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.uml.guest_layers import check


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, str]], needs_mkfs_xfs: None) -> dict[str, str]:
    return results_of("tests.uml.guest_layers")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
