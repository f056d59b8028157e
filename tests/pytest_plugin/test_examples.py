"""The suites that users are shown pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pytest_plugin.conftest import Suite

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.fuse
@pytest.mark.slow
def test_the_store(suite: Callable[[str], Suite]) -> None:
    made = suite("")
    for path in (EXAMPLES / "store").glob("*.py"):
        shutil.copy(path, made.directory)
    (made.directory / "test_store.py").rename(made.directory / "test_it.py")
    outcome = made.run("--cow-seed=1")
    assert outcome.counts == {"passed": 17}, outcome.output
    assert made.left() == []
