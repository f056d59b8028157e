"""xfs is read as the kernel shows it, of both versions of the format, also after a stop: the checks in one guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.uml.guest_xfs import check


@pytest.fixture(scope="module")
def results(results_of: Callable[[str], dict[str, str]], needs_mkfs_xfs: None) -> dict[str, str]:
    return results_of("tests.uml.guest_xfs")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
