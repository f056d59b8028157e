"""Tests that this machine cannot run: skipped, or failed where --cow-require says that they must run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cowfs.errors import MissingRequirement
from cowfs.pytest_plugin.wishes import Wishes


@contextmanager
def required(config: pytest.Config, wishes: Wishes, *needs: str) -> Iterator[None]:
    """Skip the test where the block finds something missing, naming it and the command that provides it.

    Args:
        needs: what the block may find missing, of `options.NEEDS`, besides the backend. Where one of them is required,
            the test fails instead.
    """
    needed = {*needs, "dm"} if wishes.backend == "dmthin" else set(needs)
    try:
        yield
    except MissingRequirement as missing:
        if required := needed & config.option.cow_require:
            pytest.fail(f"{missing.message} (--cow-require={','.join(sorted(required))})", pytrace=False)
        pytest.skip(missing.message)
