"""The snapshotter on a pool of the kernel in trouble, and beside mounts of others: its checks in one guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.uml.guest_snapshotter_faults import check


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, str]]) -> dict[str, str]:
    return results_of("tests.uml.guest_snapshotter_faults")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
