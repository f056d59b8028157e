"""Every test begins with a store that holds a hundred values, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from store import Store


@pytest.fixture(scope="session")
def cow_prepare() -> Callable[[Path], object]:
    def fill(path: Path) -> None:
        with Store(path) as store:
            for number in range(100):
                store.put(f"key {number}", number)

    return fill
