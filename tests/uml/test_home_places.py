"""Where the pool of a home may be: the checks in a guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.uml.guest_home_places import check


@pytest.fixture(scope="module")
def results(results_of: Callable[..., dict[str, str]]) -> dict[str, str]:
    return results_of("tests.uml.guest_home_places")


@pytest.mark.parametrize("name", [case.__name__ for case in check])
def test_in_the_guest(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]
